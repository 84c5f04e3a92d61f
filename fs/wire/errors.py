"""The one map between operating errors and their message, and from codes to gRPC's classes of status.

`path` of an OSError travels as the field "path". An exception that is not an operating error is a mistake of
ours: its text stays in the log of the service, the caller learns that it happened.
"""

import errno as _errno
from typing import Final

import grpc
from google.protobuf.message import DecodeError

from ..errors import Error, Unavailable, from_code
from .pb import common_pb2

TRAILER: Final = "luciola-error-bin"
TEXT_CHARS_MAX: Final = 1024  # of a message or field: trailing metadata is limited to 8 KiB by peers

STATUS: Final[dict[str, grpc.StatusCode]] = {
    "error": grpc.StatusCode.INTERNAL,
    "not_found": grpc.StatusCode.NOT_FOUND,
    "already_exists": grpc.StatusCode.ALREADY_EXISTS,
    "not_a_directory": grpc.StatusCode.FAILED_PRECONDITION,
    "is_a_directory": grpc.StatusCode.FAILED_PRECONDITION,
    "not_empty": grpc.StatusCode.FAILED_PRECONDITION,
    "permission_denied": grpc.StatusCode.PERMISSION_DENIED,
    "unauthenticated": grpc.StatusCode.UNAUTHENTICATED,
    "invalid_argument": grpc.StatusCode.INVALID_ARGUMENT,
    "no_space": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "unsupported": grpc.StatusCode.UNIMPLEMENTED,
    "corrupt_data": grpc.StatusCode.DATA_LOSS,
    "unavailable": grpc.StatusCode.UNAVAILABLE,
    "timeout": grpc.StatusCode.DEADLINE_EXCEEDED,
    "busy": grpc.StatusCode.RESOURCE_EXHAUSTED,
    "conflict": grpc.StatusCode.ABORTED,
    "maybe_committed": grpc.StatusCode.UNKNOWN,
    "stale_routing": grpc.StatusCode.FAILED_PRECONDITION,
    "config_error": grpc.StatusCode.INVALID_ARGUMENT,
}

# What a status without our trailer means: it was made by gRPC itself, not by a service.
_CODES: Final[dict[grpc.StatusCode, str]] = {
    grpc.StatusCode.UNAVAILABLE: "unavailable",
    grpc.StatusCode.DEADLINE_EXCEEDED: "timeout",
    grpc.StatusCode.CANCELLED: "unavailable",
    grpc.StatusCode.UNIMPLEMENTED: "unsupported",
    grpc.StatusCode.UNAUTHENTICATED: "unauthenticated",
    grpc.StatusCode.PERMISSION_DENIED: "permission_denied",
    grpc.StatusCode.RESOURCE_EXHAUSTED: "busy",
    grpc.StatusCode.INVALID_ARGUMENT: "invalid_argument",
}


def encode(error: Error) -> common_pb2.Error:
    """The message that carries `error`."""
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
    """What a caller learns of a programmer error."""
    return common_pb2.Error(
        code=Error.code, message="internal error; the service's log has the traceback", errno=_errno.EIO
    )


def decode(message: common_pb2.Error) -> Error:
    """The error that `message` carries."""
    fields = dict(message.fields)
    path = fields.pop("path", None)
    error = from_code(message.code, message.message, errno=message.errno)
    error.fields = fields
    if path is not None:
        error.filename = path
    return error


def decode_bytes(payload: bytes) -> Error:
    """The error in a serialized `Error`."""
    try:
        return decode(common_pb2.Error.FromString(payload))
    except DecodeError:
        return Unavailable("the service's answer cannot be read")


def from_status(code: grpc.StatusCode, details: str | None, *, address: str) -> Error:
    """The error for a status that gRPC made itself."""
    name = _CODES.get(code, Error.code)
    return from_code(name, f"{address}: {details or code.name}")


__all__ = ["STATUS", "TRAILER", "decode", "decode_bytes", "encode", "from_status", "unexpected"]
