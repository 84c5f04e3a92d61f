"""Replace a file as a whole, readable by its owner alone: secrets, addresses, state."""

import os
from pathlib import Path

from ..errors import PermissionDenied


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, readable by its owner alone: a reader sees all of the old file or all of the new one.

    Raises: OSError (a full disk among others); the old file is then as it was.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    temporary.unlink(missing_ok=True)  # of a process with this number that was killed
    descriptor = os.open(temporary, flags, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="utf-8") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_private(path: Path) -> str:
    """Return the text of `path`, if it belongs to this user or to root: others could name files of their own in it.

    Raises: PermissionDenied if it belongs to another user; OSError, UnicodeDecodeError.
    """
    with path.open(encoding="utf-8") as stream:
        owner = os.fstat(stream.fileno()).st_uid
        if owner not in (0, os.geteuid()):
            raise PermissionDenied(f"belongs to uid {owner}, not to this user or to root", path=str(path))
        return stream.read()


__all__ = ["read_private", "write_private"]
