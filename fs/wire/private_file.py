"""Small files that only their owner may read: the cluster's secret, and tokens."""

import os
import stat
from pathlib import Path
from typing import Final

from ..errors import ConfigError, PermissionDenied

READ_BYTES_MAX: Final = 16_384  # more than a token with all the groups that fit, and three certificates


def read_private_file(path: Path, *, what: str) -> str:
    """Return the text in `path` without the white space around it; `what` names it in errors.

    Raises: FileNotFoundError; PermissionDenied if this user may not read it; ConfigError if others may read or write
    it, if it belongs to another user than this one and root, or if it is no regular file.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except PermissionError as error:
        raise PermissionDenied(f"{what} may be read by its owner only", path=str(path)) from error
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise ConfigError(f"{path}: {what} cannot be opened: {error.strerror}") from error
    try:
        about = os.fstat(descriptor)
        if not stat.S_ISREG(about.st_mode):
            raise ConfigError(f"{path}: is not a regular file")
        if about.st_mode & 0o077:
            raise ConfigError(f"{path}: others may read or write {what}; run `chmod 600 {path}`")
        if about.st_uid not in (0, os.geteuid()):
            raise ConfigError(
                f"{path}: belongs to uid {about.st_uid}, not to this user or to root; use a file of your own, or run "
                f"`chown {os.geteuid()} {path}`"
            )
        return os.read(descriptor, READ_BYTES_MAX).decode("ascii", "replace").strip()
    finally:
        os.close(descriptor)


__all__ = ["read_private_file"]
