"""The log of mounts in the background: never a file of another user's choice."""

import os
from pathlib import Path

import pytest

from luciola.cli.mount import _opened_log
from luciola.errors import PermissionDenied
from luciola.fuse import records

ELSEWHERE = Path("host:1")


@pytest.fixture
def directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where this user's directory is, which does not exist yet."""
    monkeypatch.setattr(records.tempfile, "gettempdir", lambda: str(tmp_path))
    return tmp_path / f"luciola-{os.geteuid()}"


def test_the_log_is_made_and_appended_to(directory: Path) -> None:
    for text in (b"one\n", b"two\n"):
        with _opened_log(ELSEWHERE) as output:
            assert os.get_blocking(output.fileno())
            assert output.name == str(directory / "mounts.log"), "errors of the mount are read there"
            output.write(text)
    log = directory / "mounts.log"
    assert log.read_bytes() == b"one\ntwo\n"
    assert log.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("kind", ["link", "fifo", "socket"])
def test_a_log_that_is_no_file_is_refused(directory: Path, kind: str) -> None:
    directory.mkdir(mode=0o700)
    victim = directory.parent / "victim"
    victim.write_text("whole")
    log = directory / "mounts.log"
    if kind == "link":
        log.symlink_to(victim)
    elif kind == "fifo":
        os.mkfifo(log)
    else:
        os.mknod(log, 0o600 | 0o140000)
    with pytest.raises(PermissionDenied, match="regular file"):
        _opened_log(ELSEWHERE)
    assert victim.read_text() == "whole"


@pytest.mark.skipif(os.geteuid() != 0, reason="only root gives files away")
@pytest.mark.parametrize("taken", ["directory", "log"])
def test_what_another_user_made_is_refused(directory: Path, taken: str) -> None:
    directory.mkdir(mode=0o700)
    log = directory / "mounts.log"
    log.touch()
    os.chown(directory if taken == "directory" else log, 65534, 65534)
    with pytest.raises(PermissionDenied, match="this user"):
        _opened_log(ELSEWHERE)
    assert log.read_bytes() == b""
