"""The kernel's table of mounts, read without touching any of them, and unmounting from outside."""

import errno
import os
import re
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..errors import Busy

TYPE: Final = "fuse.luciola"
TABLE: Final = Path("/proc/self/mountinfo")
# A mount that answers does so at once; one whose process hangs must not hang us too.
ANSWER_S: Final = 5.0


@dataclass(frozen=True)
class Mounted:
    """One row of the table."""

    mountpoint: Path
    type: str
    source: str

    @property
    def cluster(self) -> str:
        """Of a mount of Luciola: the data directory of its cluster, or the address of mgmtd."""
        return self.source.removeprefix("luciola:")


def mounts() -> list[Mounted]:
    """Return all mounts that this process sees, in the order in which they were made."""
    rows = []
    for line in TABLE.read_bytes().splitlines():
        words = line.split(b" ")
        # Optional fields end with a lone hyphen; then come type and source.
        end = words.index(b"-", 6)
        place, kind, source = (os.fsdecode(_unescape(word)) for word in (words[4], *words[end + 1 : end + 3]))
        rows.append(Mounted(Path(place), kind, source))
    return rows


def find_mount(mountpoint: Path) -> Mounted | None:
    """Return the topmost mount on exactly that path, if there is one."""
    path = resolve(mountpoint)
    return next((row for row in reversed(mounts()) if row.mountpoint == path), None)


def mount_of(path: Path) -> Mounted | None:
    """Return the mount of Luciola that the absolute `path` is on, if it is on one.

    Links are not followed, and the mount is not asked: a dead one would not answer.
    """
    above = [row for row in mounts() if path.is_relative_to(row.mountpoint)]
    deepest = max(above, key=lambda row: len(row.mountpoint.parts), default=None)
    if deepest is None:
        return None
    topmost = next(row for row in reversed(above) if row.mountpoint == deepest.mountpoint)
    return topmost if topmost.type == TYPE else None


def resolve(mountpoint: Path) -> Path:
    """Return the path as the table spells it. What is mounted there is not asked: a dead mount would not answer."""
    absolute = Path(os.path.abspath(mountpoint))
    if os.path.islink(absolute):  # is_symlink() would raise for a dead mount
        return Path(os.path.realpath(absolute))
    return Path(os.path.realpath(absolute.parent)) / absolute.name


def is_mounted(mountpoint: Path) -> bool:
    """Return whether a Luciola mount is on that path, served or not."""
    row = find_mount(mountpoint)
    return row is not None and row.type == TYPE


def is_stale(mountpoint: Path) -> bool:
    """Return whether the process behind the mount on that path is gone ("Transport endpoint is not connected").

    ECANCELED: it ended while the kernel was handing the request to it over io_uring.
    """
    return _error_of_statfs(mountpoint) in (errno.ENOTCONN, errno.ECONNABORTED, errno.ECANCELED)


def answers(mountpoint: Path) -> bool:
    """Return whether the file system on that path answers.

    Another process asks. A process that serves a mount never waits for it itself: killed while it does, it could not
    end before it has answered, and the kernel would never learn that no answer will come.
    """
    command = ["stat", "--", str(mountpoint)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        return process.wait(ANSWER_S) == 0
    except subprocess.TimeoutExpired:
        process.kill()  # it is gone as soon as the mount is
        return False


def clean_stale_mount(mountpoint: Path) -> bool:
    """Take off Luciola mounts on that path whose process is gone. True if there were any.

    Raises: Busy if one cannot be taken off.
    """
    cleaned = False
    while is_mounted(mountpoint) and is_stale(mountpoint):
        unmount(mountpoint, lazy=True)
        cleaned = True
    return cleaned


def stale_mounts(source: str) -> list[Path]:
    """Return the mountpoints of that source whose process is gone, the last one first."""
    rows = [row for row in reversed(mounts()) if (row.type, row.source) == (TYPE, source)]
    return [row.mountpoint for row in rows if is_stale(row.mountpoint)]


def unmount(mountpoint: Path, *, lazy: bool) -> None:
    """Take the topmost mount off that path; with `lazy` also while programs use it.

    Raises: Busy.
    """
    path = str(resolve(mountpoint))
    if os.geteuid() == 0:
        command = ["umount", *(["-l"] if lazy else []), "--", path]
    else:
        command = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", path]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode != 0:
        said = result.stderr.strip() or f"{command[0]} failed"
        hint = "" if lazy else "; with --lazy, programs that use it may finish"
        raise Busy(f"not unmounted ({said}){hint}", path=path)


def _error_of_statfs(path: Path) -> int:
    """Return the errno of statfs(2) on `path`, 0 for none, ETIMEDOUT when it does not return.

    The kernel asks the process each time. It answers stat(2) itself as long as it may keep attributes, dead or not.
    """
    outcome: list[int] = []

    def ask() -> None:
        try:
            os.statvfs(path)
        except OSError as error:
            outcome.append(error.errno or errno.EIO)
        else:
            outcome.append(0)

    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(ANSWER_S)
    return outcome[0] if outcome else errno.ETIMEDOUT


def _unescape(word: bytes) -> bytes:
    return re.sub(rb"\\([0-7]{3})", lambda match: bytes([int(match[1], 8)]), word)


__all__ = [
    "TYPE",
    "Mounted",
    "answers",
    "clean_stale_mount",
    "find_mount",
    "is_mounted",
    "is_stale",
    "mount_of",
    "mounts",
    "resolve",
    "stale_mounts",
    "unmount",
]
