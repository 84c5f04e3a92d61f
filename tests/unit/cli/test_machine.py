"""What `luciola doctor` makes of a machine, its disks and its paths."""

import os
import resource
from pathlib import Path

import pytest

from luciola.cli.doctor import judge_address
from luciola.cli.machine import (
    DESCRIPTORS_MIN,
    SYNC_SLOW_S,
    Check,
    Disk,
    judge_descriptors,
    judge_device,
    judge_disk,
    judge_memlock,
    judge_unprivileged,
    look_at,
)


def code(check: Check) -> str:
    return "" if check.finding is None else check.finding.code


def test_limits_are_judged() -> None:
    assert code(judge_descriptors(DESCRIPTORS_MIN)) == ""
    assert code(judge_descriptors(resource.RLIM_INFINITY)) == ""
    assert code(judge_descriptors(DESCRIPTORS_MIN - 1)) == "DESCRIPTORS_FEW"
    assert code(judge_memlock(resource.RLIM_INFINITY)) == ""
    assert code(judge_memlock(64 << 10)) == "MEMLOCK_LOW"


def test_device_that_is_missing_is_named(tmp_path: Path) -> None:
    missing = judge_device(tmp_path / "fuse")
    assert (code(missing), "No such file" in missing.what) == ("FUSE_MISSING", True)
    (tmp_path / "fuse").touch()
    assert code(judge_device(tmp_path / "fuse")) == ""


@pytest.mark.parametrize(
    ("has_helper", "conf", "codes"),
    [
        (True, "user_allow_other\n", ["", ""]),
        (False, "  user_allow_other", ["FUSERMOUNT_MISSING", ""]),
        (True, "#user_allow_other\n", ["", "FUSE_ALLOW_OTHER"]),
    ],
)
def test_user_other_than_root_needs_a_helper_and_a_line(
    has_helper: bool, conf: str, codes: list[str]
) -> None:
    assert [code(each) for each in judge_unprivileged(has_helper=has_helper, conf=conf)] == codes


@pytest.mark.parametrize(
    ("read_only", "free", "sync_s", "found"),
    [
        (False, 500, 0.01, ""),
        (False, 500, None, ""),
        (True, 500, None, "DISK_READ_ONLY"),
        (False, 500, 2 * SYNC_SLOW_S, "DISK_SLOW"),
        (False, 50, 0.01, "DISK_NEARLY_FULL"),
    ],
)
def test_disk_is_judged_by_the_worst(read_only: bool, free: int, sync_s: float | None, found: str) -> None:
    disk = Disk(Path("/d"), is_read_only=read_only, size_bytes=1000, free_bytes=free, sync_s=sync_s)
    assert code(judge_disk(disk)) == found


def test_looking_at_a_disk_leaves_no_file(tmp_path: Path) -> None:
    disk = look_at(tmp_path)
    about = os.statvfs(tmp_path)
    assert (disk.is_read_only, disk.size_bytes) == (False, about.f_blocks * about.f_frsize)
    assert disk.sync_s is None or disk.sync_s > 0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("taken", "found"), [(0.001, ""), (0.5, "ADDRESS_SLOW"), ("Connection refused", "ADDRESS_UNREACHABLE")]
)
def test_path_is_judged_by_the_time_of_a_connection(taken: float | str, found: str) -> None:
    check = judge_address("storage 201", "10.0.0.1:9", taken)
    assert code(check) == found
    assert "storage 201 at 10.0.0.1:9" in check.what
