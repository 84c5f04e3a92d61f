"""The frames of a lane, requests and replies, and what both ends do with their sockets (docs/protocol.md)."""

import socket
import struct
from typing import Any, Final

from google.protobuf.message import DecodeError, Message

from ...errors import Error, InvalidArgument, Timeout, Unavailable
from .. import errors as wire_errors
from ..addresses import format_address
from ..methods import Method, Reply

FRAME_BYTES_MAX: Final = 8 << 20  # payload; the largest reply is a full page of a listing with attributes
KEEPALIVE_S: Final = 30  # a peer that vanished without a word is noticed after about three times this long
DEFAULT_TIMEOUT_S: Final = 30.0

HEADER: Final = struct.Struct("<IHHQ")
REPLY: Final = 1
FAILED: Final = 2


def frame(method: Method[Any, Any], request: Message, number: int) -> bytes:
    """A request. Raises: InvalidArgument if it is too long."""
    assert method.lane, f"{method.path} is not carried by the lane"
    assert type(request) is method.request, f"{method.path} takes {method.request.__name__}"
    payload = request.SerializeToString()
    if len(payload) > FRAME_BYTES_MAX:
        raise InvalidArgument(f"{method.path}: a request of {len(payload)} bytes is too long")
    return HEADER.pack(len(payload), method.lane, 0, number) + payload


def decode(method: Method[Any, Reply], flags: int, payload: bytes, address: str) -> Reply:
    """The reply that `payload` is. Raises: what the service raised; Unavailable if it cannot be read."""
    if flags & FAILED:
        raise wire_errors.decode_bytes(payload)
    try:
        return method.reply.FromString(payload)
    except DecodeError as error:
        raise Unavailable(f"{address}: the reply of {method.path} cannot be read") from error


def connect_failure(address: str, error: OSError) -> Error:
    """What a caller is told of a connection that did not come about."""
    if isinstance(error, TimeoutError):
        return Timeout(f"{address}: no handshake in time")
    return Unavailable(f"{address}: cannot connect: {error}")


def socket_name(host: str, port: int) -> str:
    """Name of the abstract Unix socket by which a server that listens at host:port is reached on its own host."""
    return f"\0luciola-lane/{format_address(host, port)}"


def keep_alive(connection: socket.socket) -> None:
    """Has the kernel notice that the peer is gone: of one on this host it knows."""
    if connection.family == socket.AF_UNIX:
        return
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


__all__ = [
    "DEFAULT_TIMEOUT_S",
    "FAILED",
    "FRAME_BYTES_MAX",
    "HEADER",
    "KEEPALIVE_S",
    "REPLY",
    "connect_failure",
    "decode",
    "frame",
    "keep_alive",
    "socket_name",
]
