"""A cluster that belongs to a user who is not root: its owner can write into it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

UID = 1000
FUSE = Path("/dev/fuse")
# The interpreter may be in a home directory: this user reads everything, and writes only what is its own.
AS_USER = (
    "setpriv",
    f"--reuid={UID}",
    f"--regid={UID}",
    "--clear-groups",
    "--inh-caps=-all,+dac_read_search",
    "--ambient-caps=-all,+dac_read_search",
)
PROGRAM = """
import sys
import luciola
fs = luciola.connect(sys.argv[1])
with fs.open("/by-program", "wb") as file:
    file.write(b"bytes")
assert fs.stat("/by-program").st_uid == fs.stat("/").st_uid == 1000
"""


def run_as_user(home: Path, *command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        (*AS_USER, "env", f"HOME={home}", f"LUCIOLA_DATA={home / 'data'}", *command),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=home,
    )


def luciola(home: Path, *arguments: str) -> str:
    result = run_as_user(home, sys.executable, "-P", "-m", "luciola", *arguments)
    assert result.returncode == 0, f"luciola {' '.join(arguments)}: {result.stderr}"
    return result.stdout


@pytest.fixture
def home() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:  # those of pytest can be entered by root only
        home = Path(directory)
        os.chown(home, UID, UID)
        (home / "source").write_bytes(b"x" * 10_000)
        luciola(home, "up", "--storage-nodes", "1", "--detach")
        yield home
        luciola(home, "down")


@pytest.mark.root
def test_owner_of_a_cluster_writes_into_it(home: Path) -> None:
    luciola(home, "cp", "source", "lu:/copied")
    luciola(home, "mkdir", "/directory")
    result = run_as_user(home, sys.executable, "-P", "-c", PROGRAM, str(home / "data"))
    assert result.returncode == 0, result.stderr
    listed = luciola(home, "ls", "/")
    assert {"copied", "directory", "by-program"} <= {line.rstrip("/") for line in listed.split()}


@pytest.mark.root
@pytest.mark.mount
@pytest.mark.skipif(
    not FUSE.exists() or FUSE.stat().st_mode & 0o006 != 0o006, reason="/dev/fuse is not open to users"
)
def test_owner_of_a_cluster_writes_through_a_mount(home: Path) -> None:
    mountpoint = home / "mnt"
    luciola(home, "mount", str(home / "data"), str(mountpoint))
    try:
        result = run_as_user(home, "sh", "-c", f"echo hello > {mountpoint}/file && cat {mountpoint}/file")
        assert (result.stdout, result.stderr) == ("hello\n", "")
    finally:
        luciola(home, "umount", str(mountpoint))
