"""A cluster that belongs to a user who is not root: its owner can write into it."""

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

UID = 1000
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


# Where only root may open /dev/fuse, as in many containers, the user gets a node of it in a mount namespace.
IN_NAMESPACE = """
set -e
mknod -m 666 fuse c 10 229
mount --bind fuse /dev/fuse
exec "$@"
"""
USE_MOUNT = """
set -e
mkdir mnt
"$1" -P -m luciola mount data mnt
trap '"$1" -P -m luciola umount mnt' EXIT
echo hello > mnt/file
cat mnt/file
"""


@pytest.mark.root
@pytest.mark.mount
def test_owner_of_a_cluster_writes_through_a_mount(home: Path) -> None:
    result = subprocess.run(
        (
            *("unshare", "--mount", "sh", "-c", IN_NAMESPACE, "sh"),
            *(*AS_USER, "env", f"HOME={home}", "sh", "-c", USE_MOUNT, "sh", sys.executable),
        ),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
        cwd=home,
    )
    assert result.returncode == 0, result.stderr
    assert (result.stdout, result.stderr) == ("hello\n", "")
