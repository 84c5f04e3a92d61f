"""The one map between operating errors and their message, and from codes to gRPC's classes of status.

`path` of an OSError travels as the field "path". An exception that is not an operating error is a mistake of
ours: its text stays in the log of the service, the caller learns that it happened.
"""

import errno as _errno
from typing import TYPE_CHECKING, Final

from google.protobuf.message import DecodeError

from ..errors import Error, Unavailable, from_code
from .pb import common_pb2

if TYPE_CHECKING:
    import grpc  # at run time only where it is spoken: clients of the lane do not wait for it

TRAILER: Final = "luciola-error-bin"
TEXT_CHARS_MAX: Final = 1024  # of a message or field: trailing metadata is limited to 8 KiB by peers

# Names of `grpc.StatusCode`.
STATUS: Final[dict[str, str]] = {
    "error": "INTERNAL",
    "not_found": "NOT_FOUND",
    "already_exists": "ALREADY_EXISTS",
    "not_a_directory": "FAILED_PRECONDITION",
    "is_a_directory": "FAILED_PRECONDITION",
    "not_empty": "FAILED_PRECONDITION",
    "permission_denied": "PERMISSION_DENIED",
    "unauthenticated": "UNAUTHENTICATED",
    "invalid_argument": "INVALID_ARGUMENT",
    "no_space": "RESOURCE_EXHAUSTED",
    "unsupported": "UNIMPLEMENTED",
    "corrupt_data": "DATA_LOSS",
    "unavailable": "UNAVAILABLE",
    "timeout": "DEADLINE_EXCEEDED",
    "busy": "RESOURCE_EXHAUSTED",
    "conflict": "ABORTED",
    "maybe_committed": "UNKNOWN",
    "stale_routing": "FAILED_PRECONDITION",
    "config_error": "INVALID_ARGUMENT",
}

# What a status without our trailer means: it was made by gRPC itself, not by a service.
_CODES: Final[dict[str, str]] = {
    "UNAVAILABLE": "unavailable",
    "DEADLINE_EXCEEDED": "timeout",
    "CANCELLED": "unavailable",
    "UNIMPLEMENTED": "unsupported",
    "UNAUTHENTICATED": "unauthenticated",
    "PERMISSION_DENIED": "permission_denied",
    "RESOURCE_EXHAUSTED": "busy",
    "INVALID_ARGUMENT": "invalid_argument",
}


def encode(error: Error) -> common_pb2.Error:
    """Return the message that carries `error`."""
    fields = {name: value[:TEXT_CHARS_MAX] for name, value in error.fields.items()}
    if error.filename is not None:
        fields["path"] = str(error.filename)[:TEXT_CHARS_MAX]
    return common_pb2.Error(
        code=error.code,
        message=error.message[:TEXT_CHARS_MAX],
        errno=error.errno or 0,
        retryable=error.retryable,
        fields=fields,
    )


def unexpected() -> common_pb2.Error:
    """Return what a caller learns of a programmer error."""
    return common_pb2.Error(
        code=Error.code, message="internal error; the service's log has the traceback", errno=_errno.EIO
    )


def decode(message: common_pb2.Error) -> Error:
    """Return the error that `message` carries."""
    fields = dict(message.fields)
    path = fields.pop("path", None)
    error = from_code(message.code, message.message, errno=message.errno)
    error.fields = fields
    if path is not None:
        error.filename = path
    return error


def decode_bytes(payload: bytes) -> Error:
    """Return the error in a serialized `Error`."""
    try:
        return decode(common_pb2.Error.FromString(payload))
    except DecodeError:
        return Unavailable("the service's answer cannot be read")


def from_status(code: "grpc.StatusCode", details: str | None, *, address: str) -> Error:
    """Return the error for a status that gRPC made itself."""
    name = _CODES.get(code.name, Error.code)
    what = "no service there, or it does not answer: " if code.name == "UNAVAILABLE" else ""
    return from_code(name, f"{address}: {what}{details or code.name}")


__all__ = ["STATUS", "TRAILER", "decode", "decode_bytes", "encode", "from_status", "unexpected"]
