"""What another user may do. Needs root, which becomes that user in a child."""

import os
import stat
import subprocess
from pathlib import Path

import pytest

from posix_calls import as_user, outcome

pytestmark = [pytest.mark.mount, pytest.mark.root]

OWNER, OTHER, GROUP = 1001, 1002, 3000


@pytest.fixture
def file(area):
    os.chmod(".", 0o755)
    Path("a").write_bytes(b"x")
    os.chown("a", OWNER, GROUP)
    return area


@pytest.mark.parametrize(
    ("mode", "uid", "groups", "read", "write"),
    [
        (0o600, OWNER, (), "ok", "ok"),
        (0o600, OTHER, (), "EACCES", "EACCES"),
        (0o640, OTHER, (GROUP,), "ok", "EACCES"),
        (0o660, OTHER, (GROUP,), "ok", "ok"),
        (0o604, OTHER, (), "ok", "EACCES"),
        (0o066, OWNER, (), "EACCES", "EACCES"),
        (0o606, OTHER, (GROUP,), "EACCES", "EACCES"),
        (0o000, 0, (), "ok", "ok"),
    ],
)
def test_mode_bits_decide_who_reads_and_writes(file, mode, uid, groups, read, write):
    os.chmod("a", mode)
    assert as_user(uid, "open('a', 'rb').read()", groups=groups) == read
    assert as_user(uid, "open('a', 'r+b').write(b'y')", groups=groups) == write


def test_directory_bits_decide_who_looks_and_changes(area):
    os.chmod(".", 0o755)
    os.mkdir("d")
    Path("d/a").write_bytes(b"x")
    for mode, listed, opened, created in (
        (0o755, "ok", "ok", "EACCES"),
        (0o744, "ok", "EACCES", "EACCES"),
        (0o711, "EACCES", "ok", "EACCES"),
        (0o777, "ok", "ok", "ok"),
        (0o700, "EACCES", "EACCES", "EACCES"),
    ):
        os.chmod("d", mode)
        assert as_user(OTHER, "os.listdir('d')") == listed
        assert as_user(OTHER, "open('d/a').read()") == opened
        assert as_user(OTHER, "open('d/new', 'w')") == created


def test_new_files_belong_to_their_maker(area):
    os.chmod(".", 0o777)
    assert (
        as_user(OTHER, "open('f','w'); os.mkdir('d'); os.symlink('x','l'); os.mkfifo('p')", gid=GROUP) == "ok"
    )
    for name in ("f", "d", "l", "p"):
        assert (os.lstat(name).st_uid, os.lstat(name).st_gid) == (OTHER, GROUP)


def test_set_group_id_directory_hands_its_group_down(area):
    os.mkdir("d")
    os.chown("d", 0, GROUP)
    os.chmod("d", 0o2777)
    assert as_user(OTHER, "open('d/f','w'); os.mkdir('d/e'); open('d/e/g','w')") == "ok"
    assert os.stat("d/f").st_gid == GROUP
    assert os.stat("d/e").st_gid == GROUP
    assert os.stat("d/e").st_mode & stat.S_ISGID
    assert os.stat("d/e/g").st_gid == GROUP
    assert not os.stat("d/f").st_mode & stat.S_ISGID


def test_sticky_directory_protects_the_files_of_others(area):
    os.mkdir("d")
    os.chmod("d", 0o1777)
    for name in ("d/a", "d/b"):
        Path(name).write_bytes(b"")
        os.chown(name, OWNER, OWNER)
    assert as_user(OTHER, "os.unlink('d/a')") == "EPERM"
    assert as_user(OTHER, "os.rename('d/a', 'd/c')") == "EPERM"
    assert as_user(OTHER, "open('d/own','w'); os.rename('d/own','d/b')") == "EPERM"
    assert as_user(OWNER, "os.unlink('d/a')") == "ok"


def test_only_the_owner_changes_modes_and_times(file):
    os.chmod("a", 0o666)
    assert as_user(OTHER, "os.chmod('a', 0o777)") == "EPERM"
    assert as_user(OTHER, "os.utime('a', (1, 1))") == "EPERM"
    assert as_user(OTHER, "os.utime('a')") == "ok", "who may write may set the present time"
    assert as_user(OWNER, "os.chmod('a', 0o600); os.utime('a', (1, 1))") == "ok"
    assert as_user(OTHER, "os.utime('a')") == "EACCES"


def test_only_root_gives_files_away(file):
    assert as_user(OWNER, f"os.chown('a', {OTHER}, -1)") == "EPERM"
    assert as_user(OWNER, f"os.chown('a', -1, {OTHER})") == "EPERM"
    assert as_user(OWNER, f"os.chown('a', -1, {OTHER})", groups=(OTHER,)) == "ok"


def test_writing_ends_set_user_id_unless_root_writes(file):
    os.chmod("a", 0o4777)
    with open("a", "ab") as mine:
        mine.write(b"root")
    assert os.stat("a").st_mode & 0o7777 == 0o4777
    assert as_user(OTHER, "open('a','ab').write(b'x')") == "ok"
    assert os.stat("a").st_mode & 0o7777 == 0o777


def test_truncating_ends_set_user_id(file):
    for code in ("os.truncate('a', 0)", "open('a', 'wb')"):
        os.chmod("a", 0o6777)
        assert as_user(OTHER, code) == "ok"
        assert os.stat("a").st_mode & 0o7777 == 0o777


def test_access_asks_for_the_real_user(file):
    os.chmod("a", 0o640)
    assert as_user(OWNER, "assert os.access('a', os.R_OK | os.W_OK) and not os.access('a', os.X_OK)") == "ok"
    assert as_user(OTHER, "assert not os.access('a', os.R_OK)") == "ok"
    assert (
        as_user(OTHER, "assert os.access('a', os.R_OK) and not os.access('a', os.W_OK)", groups=(GROUP,))
        == "ok"
    )


def test_open_descriptor_stays_valid_when_the_mode_changes(file):
    os.chmod("a", 0o644)
    code = (
        "f=open('a','r+b',buffering=0)\nos.chmod('a',0)\nf.write(b'y')\nassert os.pread(f.fileno(),1,0)==b'y'"
    )
    assert as_user(OWNER, code) == "ok"


def test_another_users_file_is_not_removed_from_a_private_directory(area):
    os.chmod(".", 0o755)
    os.mkdir("d", 0o755)
    Path("d/a").write_bytes(b"")
    assert as_user(OTHER, "os.unlink('d/a')") == "EACCES"
    assert as_user(OTHER, "os.rmdir('d')") == "EACCES"
    assert outcome(os.unlink, "d/a") == "ok"


def mode_shown(path: str) -> int:
    """The mode alone, which the kernel answers from what it knows."""
    found = subprocess.run(["stat", "-c", "%a", path], check=True, capture_output=True, text=True)
    return int(found.stdout, 8)


@pytest.mark.parametrize(
    "change",
    [
        "os.pwrite(d, b'x', 0)",
        "os.pwritev(d, [page], 0)",
        "os.posix_fallocate(d, 0, 100)",
        "os.posix_fallocate(d, 0, 100_000)",
        "fallocate(d, 1, 0, 100_000)",
        "fallocate(d, 3, 0, 4096)",
        "fallocate(d, 17, 0, 4096)",
        "os.ftruncate(d, 10)",
        "os.close(os.open('program', os.O_WRONLY | os.O_TRUNC))",
        "os.close(os.open('program', os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600))",
    ],
)
def test_change_of_bytes_by_a_user_ends_set_id_bits(area, change):
    Path("program").write_bytes(b"#" * 8192)
    Path("program").chmod(0o6777)
    assert mode_shown("program") == 0o6777
    direct = " | os.O_DIRECT" if "page" in change else ""
    code = f"page = mmap.mmap(-1, 4096); d = os.open('program', os.O_WRONLY{direct}); {change}"
    assert as_user(1000, code) == "ok"
    assert mode_shown("program") == 0o777
    assert Path("program").stat().st_mode & 0o7777 == 0o777


def test_mode_set_after_a_change_of_bytes_stays(area):
    Path("program").touch()
    Path("program").chmod(0o6777)
    with Path("program").open("wb", buffering=0) as held:
        assert as_user(1000, "os.write(os.open('program', os.O_WRONLY), b'x')") == "ok"
        Path("program").chmod(0o6777)
        os.fsync(held.fileno())
    assert mode_shown("program") == 0o6777


@pytest.mark.parametrize("make", ["os.mkdir('d/made')", "os.mknod('d/made')", "os.symlink('x', 'd/made')"])
def test_last_of_many_supplementary_groups_lets_a_user_create(area, make):
    os.mkdir("d")
    os.chown("d", OWNER, 5099)
    os.chmod("d", 0o770)
    groups = tuple(range(5000, 5100))
    assert as_user(OTHER, make, groups=groups) == "ok"
    assert as_user(OTHER, "os.open('d/file', os.O_WRONLY | os.O_CREAT, 0o600)", groups=groups) == "ok"
    assert (os.stat("d/file").st_uid, os.stat("d/file").st_gid) == (OTHER, OTHER)
    assert as_user(OTHER, "os.mkdir('d/refused')", groups=groups[:-1]) == "EACCES"
