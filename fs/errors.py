"""Operating errors: what a caller may meet while nothing is wrong with the program.

    Error                         code                errno          may be retried
    ├─ NotFound                   not_found           ENOENT         no   FileNotFoundError
    ├─ AlreadyExists              already_exists      EEXIST         no   FileExistsError
    ├─ NotADirectory              not_a_directory     ENOTDIR        no   NotADirectoryError
    ├─ IsADirectory               is_a_directory      EISDIR         no   IsADirectoryError
    ├─ NotEmpty                   not_empty           ENOTEMPTY      no   OSError
    ├─ PermissionDenied           permission_denied   EACCES/EPERM   no   PermissionError
    ├─ Unauthenticated            unauthenticated     EACCES         no   PermissionError
    ├─ InvalidArgument            invalid_argument    EINVAL, ...    no   ValueError, OSError
    ├─ NoSpace                    no_space            ENOSPC         no   OSError
    ├─ Unsupported                unsupported         ENOTSUP        no   OSError
    ├─ CorruptData                corrupt_data        EIO            no   OSError
    ├─ Unavailable                unavailable         EIO            yes  ConnectionError
    ├─ Timeout                    timeout             ETIMEDOUT      yes  TimeoutError
    ├─ Busy                       busy                EBUSY          yes  OSError
    ├─ Conflict                   conflict            EAGAIN         yes  (inside the cluster)
    ├─ MaybeCommitted             maybe_committed     EIO            yes  (inside the cluster)
    ├─ StaleRouting               stale_routing       ESTALE         yes  (inside the cluster)
    └─ ConfigError                config_error        EINVAL         no   ValueError

`code` is the wire form and never changes. Programmer errors are assertions, not members of this tree.
"""

import errno as _errno
import os
from typing import ClassVar


class Error(OSError):
    """Any operating error of Luciola. `errno` is set, as for every OSError."""

    code: ClassVar[str] = "error"
    default_errno: ClassVar[int] = _errno.EIO
    retryable: ClassVar[bool] = False

    def __init__(
        self, message: str, *, errno: int | None = None, path: str | None = None, **fields: object
    ) -> None:
        number = self.default_errno if errno is None else errno
        if path is None:
            super().__init__(number, message)
        else:
            super().__init__(number, message, path)
        self.message = message
        self.fields: dict[str, str] = {name: str(value) for name, value in fields.items()}

    def __str__(self) -> str:
        return self.message if self.filename is None else f"{self.message}: {self.filename!r}"

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (self.code, self.message, self.errno, self.filename, self.fields)


class NotFound(Error, FileNotFoundError):
    code = "not_found"
    default_errno = _errno.ENOENT


class AlreadyExists(Error, FileExistsError):
    code = "already_exists"
    default_errno = _errno.EEXIST


class NotADirectory(Error, NotADirectoryError):
    code = "not_a_directory"
    default_errno = _errno.ENOTDIR


class IsADirectory(Error, IsADirectoryError):
    code = "is_a_directory"
    default_errno = _errno.EISDIR


class NotEmpty(Error):
    code = "not_empty"
    default_errno = _errno.ENOTEMPTY


class PermissionDenied(Error, PermissionError):
    code = "permission_denied"
    default_errno = _errno.EACCES


class Unauthenticated(Error, PermissionError):
    """The caller has not shown that it holds the cluster secret or a token derived from it."""

    code = "unauthenticated"
    default_errno = _errno.EACCES


class InvalidArgument(Error, ValueError):
    """Also names that are too long (ENAMETOOLONG), loops (ELOOP) and files that are too large (EFBIG)."""

    code = "invalid_argument"
    default_errno = _errno.EINVAL


class NoSpace(Error):
    code = "no_space"
    default_errno = _errno.ENOSPC


class Unsupported(Error):
    code = "unsupported"
    default_errno = _errno.ENOTSUP


class CorruptData(Error):
    """Bytes do not match their checksum on any replica, or a record cannot be decoded."""

    code = "corrupt_data"
    default_errno = _errno.EIO


class Unavailable(Error, ConnectionError):
    code = "unavailable"
    default_errno = _errno.EIO
    retryable = True


class Timeout(Error, TimeoutError):
    code = "timeout"
    default_errno = _errno.ETIMEDOUT
    retryable = True


class Busy(Error):
    code = "busy"
    default_errno = _errno.EBUSY
    retryable = True


class Conflict(Error):
    """A transaction read something that another one changed; run it again."""

    code = "conflict"
    default_errno = _errno.EAGAIN
    retryable = True


class MaybeCommitted(Error):
    """A commit's outcome is unknown; run the operation again, it recognises itself by its request id."""

    code = "maybe_committed"
    default_errno = _errno.EIO
    retryable = True


class StaleRouting(Error):
    """The caller's picture of the cluster is old; refresh and try again."""

    code = "stale_routing"
    default_errno = _errno.ESTALE
    retryable = True


class ConfigError(Error, ValueError):
    """A configuration value is wrong. The message begins with the key's full path."""

    code = "config_error"
    default_errno = _errno.EINVAL


CLASSES: dict[str, type[Error]] = {
    cls.code: cls
    for cls in (
        Error,
        NotFound,
        AlreadyExists,
        NotADirectory,
        IsADirectory,
        NotEmpty,
        PermissionDenied,
        Unauthenticated,
        InvalidArgument,
        NoSpace,
        Unsupported,
        CorruptData,
        Unavailable,
        Timeout,
        Busy,
        Conflict,
        MaybeCommitted,
        StaleRouting,
        ConfigError,
    )
}


def from_code(code: str, message: str, *, errno: int = 0, **fields: str) -> Error:
    """Return the error with that wire form; a code that this version does not know becomes a plain `Error`."""
    cls = CLASSES.get(code, Error)
    return cls(message or os.strerror(errno or cls.default_errno), errno=errno or None, **fields)


def _rebuild(code: str, message: str, errno: int, path: str | None, fields: dict[str, str]) -> Error:
    error = CLASSES.get(code, Error)(message, errno=errno, path=path)
    error.fields = fields
    return error


__all__ = [
    "CLASSES",
    "AlreadyExists",
    "Busy",
    "ConfigError",
    "Conflict",
    "CorruptData",
    "Error",
    "InvalidArgument",
    "IsADirectory",
    "MaybeCommitted",
    "NoSpace",
    "NotADirectory",
    "NotEmpty",
    "NotFound",
    "PermissionDenied",
    "StaleRouting",
    "Timeout",
    "Unauthenticated",
    "Unavailable",
    "Unsupported",
    "from_code",
]
