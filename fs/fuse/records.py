"""Which process serves which mount: one small file each, for `luciola status`, `down` and `umount`.

Mounts of a cluster on this machine are recorded under its data directory (run/mounts), others in a directory of the
user's own. A record whose process is gone means nothing and is removed by any process that finds it; one of another pid
namespace says nothing of the processes here, and is left alone.
"""

import contextlib
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from ..errors import PermissionDenied


@dataclass(frozen=True)
class Record:
    """A mount and its process."""

    pid: int
    started: (
        int  # clock ticks after boot, so that a process that got the same id later is not mistaken for it
    )
    mountpoint: str
    cluster: str  # data directory, or address of mgmtd
    namespace: int  # inode number of the pid namespace that `pid` belongs to
    # Where requests come from, "io_uring" or "/dev/fuse"; not known before the mount answers.
    channel: str = ""
    channel_reason: str = ""  # why not over io_uring

    def is_visible(self) -> bool:
        """Return whether `pid` means the same process here as where the mount was made."""
        return self.namespace == pid_namespace()

    def is_alive(self) -> bool:
        """Return whether that very process runs."""
        return self.is_visible() and started_at(self.pid) == self.started


def pid_namespace() -> int:
    """Inode number of this process's pid namespace."""
    return os.stat("/proc/self/ns/pid").st_ino


def source_of(cluster: str) -> str:
    """Return what the kernel's table calls mounts of that cluster."""
    return f"luciola:{cluster}"


def started_at(pid: int) -> int | None:
    """Return when the process was started, in clock ticks after boot; None if it is gone, or a zombie of one thread.

    The first thread of a process that was killed is a zombie as long as another one ends, which has its files open.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return None
    return None if fields[0] == "Z" and int(fields[17]) <= 1 else int(fields[19])


def directory_for(cluster: str) -> Path:
    """Return where mounts of that cluster are recorded. Raises: PermissionDenied if it belongs to another user."""
    data = Path(cluster)
    if data.is_dir():
        directory = data / "run" / "mounts"
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        return directory
    return own_directory()


def own_directory() -> Path:
    """Return this user's directory for what belongs to no data directory on this machine.

    Raises: PermissionDenied if another user made it, or may write there.
    """
    directory = Path(tempfile.gettempdir()) / f"luciola-{os.geteuid()}"
    directory.mkdir(mode=0o700, exist_ok=True)
    about = directory.lstat()
    if not stat.S_ISDIR(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o077:
        raise PermissionDenied("must be a directory of this user alone", path=str(directory))
    return directory


def record_of(mountpoint: str, cluster: str) -> Path:
    """Return the name, without an ending, of files about that mount. Raises: PermissionDenied as `directory_for`."""
    name = hashlib.sha256(os.fsencode(mountpoint)).hexdigest()[:16]
    return directory_for(cluster) / name


@contextlib.contextmanager
def recorded(mountpoint: Path, cluster: str) -> Iterator[Record]:
    """Record this process as the one that serves `mountpoint`, as long as the block runs."""
    pid = os.getpid()
    started = started_at(pid)
    assert started is not None, "this process runs"
    record = Record(pid, started, str(mountpoint), cluster, pid_namespace())
    path = write(record)
    try:
        yield record
    finally:
        # Another mount may have taken the place meanwhile.
        found = _read(path)
        if found is not None and (found.pid, found.started) == (pid, started):
            path.unlink(missing_ok=True)


def write(record: Record) -> Path:
    """Write the record of a mount of this process, in place of an earlier one; return its file."""
    path = record_of(record.mountpoint, record.cluster).with_suffix(".json")
    temporary = path.with_suffix(f".{record.pid}")
    temporary.write_text(json.dumps(asdict(record)) + "\n")
    temporary.replace(path)
    return path


def read_records(cluster: str) -> list[Record]:
    """Return the mounts of that cluster that are served now, by processes that can be seen from here."""
    found = []
    for path in sorted(directory_for(cluster).glob("*.json")):
        record = _read(path)
        if record is None or not record.is_visible():
            continue
        if record.is_alive():
            found.append(record)
        else:
            path.unlink(missing_ok=True)
    return found


def find_record(mountpoint: Path, cluster: str) -> Record | None:
    """Return the record of that mount, if its process runs."""
    return next((record for record in read_records(cluster) if record.mountpoint == str(mountpoint)), None)


def _read(path: Path) -> Record | None:
    try:
        return Record(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


__all__ = [
    "Record",
    "directory_for",
    "find_record",
    "own_directory",
    "read_records",
    "record_of",
    "recorded",
    "source_of",
    "started_at",
    "write",
]
