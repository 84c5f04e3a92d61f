"""The commit of a checkpoint: it appears at once, durable, or not at all; and the cleanup after interrupted saves.

    .NAME.OWNER.part    a checkpoint that is being saved, beside its final name
    .NAME.OWNER.trash   one that is being removed

P1  A name that does not begin with a dot is a whole checkpoint: the hidden directory is renamed when everything in it
    is durable. If one of that name exists already, the two exchange names in one step.
P2  A hidden directory is never listed as a checkpoint. A save removes those it finds: trash always; a part if it has
    the same name, if its owner has ended, or if nothing in it has changed for STALE_S.
P3  A checkpoint that is removed is hidden first.

OWNER names the coordinating process of the save (host, process, its start), and is different for each save, so that
ranks of a job that was declared failed never write into the directory of the next.
"""

import contextlib
import ctypes
import errno
import hashlib
import os
import re
import secrets
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from luciola.client import FileSystem, LocalFileSystem
from luciola.client.location import AnyFileSystem
from luciola.errors import AlreadyExists, InvalidArgument, Unsupported

from .manifest import NAME

NAME_BYTES_MAX: Final = 180  # leaves room for the owner within 255
STALE_S: Final = 6 * 3600.0  # of silence: no save is so slow between two of its files
HIDDEN: Final = re.compile(
    r"\.(?P<name>.+)\.(?P<host>[0-9a-f]{8})-(?P<pid>\d+)-(?P<start>\d+)-[0-9a-f]{8}\.(?P<kind>part|trash)",
    re.DOTALL,
)
AT_FDCWD: Final = -100
RENAME_EXCHANGE: Final = 2

_active: "weakref.WeakValueDictionary[str, object]" = weakref.WeakValueDictionary()
"""Hidden directories that this process is filling, and their writers."""


@dataclass(frozen=True)
class Hidden:
    """The parts of the name of a hidden directory."""

    path: str
    name: str
    host: str
    pid: int
    start: int
    kind: str


def split(path: str) -> tuple[str, str]:
    """Split the path of a checkpoint into directory and name. Raises: InvalidArgument for an invalid one."""
    directory, name = os.path.split(path.rstrip("/") or "/")
    if name in {"", ".", ".."} or name.startswith("."):
        raise InvalidArgument("a checkpoint's name does not begin with a dot, and is not empty", path=path)
    if len(os.fsencode(name)) > NAME_BYTES_MAX:
        raise InvalidArgument(f"a checkpoint's name has at most {NAME_BYTES_MAX} bytes", path=path)
    return directory, name


def begin(file_system: AnyFileSystem, path: str, *, overwrite: bool, owner: object) -> str:
    """Make the hidden directory for a checkpoint, and remove what interrupted saves have left beside it.

    Raises: AlreadyExists if the name is taken by something else, or by a checkpoint without `overwrite`.
    """
    directory, name = split(path)
    require_free(file_system, path, overwrite=overwrite)
    if directory.strip("/"):
        file_system.makedirs(directory, exist_ok=True)
    hidden = _hidden_name(directory, name, "part")
    file_system.mkdir(hidden)
    _active[hidden] = owner
    clean(file_system, directory, own=hidden)
    return hidden


def require_free(file_system: AnyFileSystem, path: str, *, overwrite: bool) -> None:
    """Require that a checkpoint can take this name. Raises: AlreadyExists."""
    if not file_system.exists(path):
        return
    if file_system.exists(os.path.join(path, NAME)):
        if not overwrite:
            raise AlreadyExists("there is such a checkpoint: give another name, or overwrite=True", path=path)
    elif not file_system.isdir(path) or file_system.listdir(path):
        raise AlreadyExists(
            "something else has this name (a checkpoint is a directory of its own): give a name below it",
            path=path,
        )


def commit(file_system: AnyFileSystem, hidden: str, path: str, *, overwrite: bool) -> str | None:
    """Rename a complete hidden directory; return the new path of the one that had the name before, for `discard`.

    Raises: AlreadyExists, as `begin`; Unsupported where names cannot be exchanged.
    """
    require_free(file_system, path, overwrite=overwrite)
    replaces = file_system.exists(path)
    if replaces:
        _exchange(file_system, hidden, path)
    else:
        file_system.rename(hidden, path)
    _active.pop(hidden, None)
    return hidden if replaces else None


def _exchange(file_system: AnyFileSystem, one: str, other: str) -> None:
    if isinstance(file_system, FileSystem):
        file_system.connection.client.rename(os.fsencode(one), os.fsencode(other), exchange=True)
        return
    libc = ctypes.CDLL(None, use_errno=True)
    names = os.fsencode(one), os.fsencode(other)
    if libc.renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
        return
    number = ctypes.get_errno()
    if number in {errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP}:
        raise Unsupported(
            "this file system cannot replace a directory in one step: save under another name", path=other
        )
    raise OSError(number, os.strerror(number), one, None, other)


def discard(file_system: AnyFileSystem, path: str) -> None:
    """Remove a checkpoint or a hidden directory; it is hidden first, so no reader sees a part of it."""
    directory, name = os.path.split(path)
    hidden = parse_hidden(directory, name)
    trash = _hidden_name(directory, name if hidden is None else hidden.name, "trash")
    file_system.rename(path, trash)
    _active.pop(path, None)
    file_system.rmtree(trash)


def clean(file_system: AnyFileSystem, directory: str, *, own: str | None = None) -> list[str]:
    """Remove what interrupted saves have left in a directory; return their paths. `own`: of the save that cleans.

    Without `own`, parts of other hosts stay, at any age; `leftovers` lists them.
    """
    name = parse_hidden(*os.path.split(own)) if own is not None else None
    removed = []
    for hidden in leftovers(file_system, directory):
        if hidden.path != own and _is_left(file_system, hidden, name):
            # Another save may be cleaning too, and what cannot be removed does no harm.
            file_system.rmtree(hidden.path, ignore_errors=True)
            removed.append(hidden.path)
    return removed


def leftovers(file_system: AnyFileSystem, directory: str) -> list[Hidden]:
    """List the hidden directories of saves and removals in a directory, of live ones too."""
    try:
        names = file_system.listdir(directory or ".")
    except FileNotFoundError:
        return []
    return [hidden for name in sorted(names) if (hidden := parse_hidden(directory, name)) is not None]


def parse_hidden(directory: str, name: str) -> Hidden | None:
    """Parse the name of a hidden directory; None for other names."""
    found = HIDDEN.fullmatch(name)
    if found is None:
        return None
    return Hidden(
        os.path.join(directory, name),
        found["name"],
        found["host"],
        int(found["pid"]),
        int(found["start"]),
        found["kind"],
    )


def _is_left(file_system: AnyFileSystem, hidden: Hidden, own: Hidden | None) -> bool:
    if hidden.kind == "trash" or (own is not None and hidden.name == own.name):
        return True
    if hidden.host == _host():
        if hidden.pid == os.getpid() and hidden.start == _start_of(hidden.pid):
            return hidden.path not in _active
        return _start_of(hidden.pid) != hidden.start
    return own is not None and _silent_s(file_system, hidden, own) > STALE_S


def _silent_s(file_system: AnyFileSystem, hidden: Hidden, own: Hidden) -> float:
    """Compute the time since the last change in it, by the clock that both directories' times are from."""
    newest = 0.0
    with contextlib.suppress(FileNotFoundError):
        newest = file_system.stat(hidden.path).st_mtime
        for name in file_system.listdir(hidden.path):
            newest = max(newest, file_system.stat(os.path.join(hidden.path, name)).st_mtime)
    return file_system.stat(own.path).st_mtime - newest


def find_part(file_system: AnyFileSystem, path: str) -> str | None:
    """Find the hidden directory of the one running save of this name."""
    directory, name = split(path)
    found = [each for each in leftovers(file_system, directory) if each.name == name and each.kind == "part"]
    return found[0].path if len(found) == 1 else None


def _hidden_name(directory: str, name: str, kind: str) -> str:
    owner = f"{_host()}-{os.getpid()}-{_start_of(os.getpid())}-{secrets.token_hex(4)}"
    return os.path.join(directory, f".{name}.{owner}.{kind}")


@lru_cache(maxsize=1)
def _host() -> str:
    """Identify this boot of this machine, and its namespace of processes."""
    with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        boot = file.read().strip()
    return hashlib.sha256(f"{boot} {os.readlink('/proc/self/ns/pid')}".encode()).hexdigest()[:8]


def _start_of(pid: int) -> int:
    """Read the start of a process, in ticks since boot; 0 if it does not exist, or is a zombie."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            fields = file.read().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return 0
    return 0 if fields[0] in {"Z", "X"} else int(fields[19])


@contextlib.contextmanager
def durable_name(file_system: AnyFileSystem, path: str, data: bytes) -> Iterator[None]:
    """Write the last file of a hidden directory; the block renames the directory; then sync that too."""
    file: object
    with file_system.open(path, "xb") as file:
        file.write(data)
        file.flush()
        _fsync(file)
        if isinstance(file_system, LocalFileSystem):
            file_system.sync_directory(os.path.dirname(path))
        yield
        if isinstance(file_system, LocalFileSystem):
            file_system.sync_directory(os.path.dirname(os.path.dirname(path)))
        else:
            _fsync(file)  # names are as durable as inodes


def _fsync(file: object) -> None:
    file.fsync()  # type: ignore[attr-defined]


__all__ = [
    "Hidden",
    "begin",
    "clean",
    "commit",
    "discard",
    "durable_name",
    "find_part",
    "leftovers",
    "parse_hidden",
    "require_free",
    "split",
]
