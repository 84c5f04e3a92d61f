"""Replace a file as a whole, readable by its owner alone: secrets, addresses, state."""

import os
import stat
from pathlib import Path

from ..errors import PermissionDenied
from ..tempname import temp_beside


def write_private(path: Path, text: str) -> None:
    """Replace `path` by `text`, readable by its owner alone: a reader sees all of the old file or all of the new one.

    Raises: OSError (a full disk among others); the old file is then as it was.
    """
    temporary = Path(temp_beside(str(path)))
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
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

    Raises: PermissionDenied if it belongs to another user, or is no regular file; OSError, UnicodeDecodeError.
    """
    # A FIFO would hold this process.
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), encoding="utf-8") as stream:
        about = os.fstat(stream.fileno())
        if about.st_uid not in (0, os.geteuid()):
            raise PermissionDenied(
                f"belongs to uid {about.st_uid}, not to this user or to root", path=str(path)
            )
        if not stat.S_ISREG(about.st_mode):
            raise PermissionDenied("is not a regular file", path=str(path))
        return stream.read()


__all__ = ["read_private", "write_private"]
