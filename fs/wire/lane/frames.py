"""The frames of a lane, requests and replies, and the names and options of its sockets (docs/protocol.md)."""

import socket
import struct
from typing import Final

from ..addresses import format_address

FRAME_BYTES_MAX: Final = 8 << 20  # payload; the largest reply is a full page of a listing with attributes
KEEPALIVE_S: Final = 30  # a peer that vanished without closing is noticed after about three times this long
DEFAULT_TIMEOUT_S: Final = 30.0

HEADER: Final = struct.Struct("<IHHQ")
assert HEADER.size == 16, "docs/protocol.md draws 16 bytes"
REPLY: Final = 1
FAILED: Final = 2


def socket_name(host: str, port: int) -> str:
    """Name of the abstract Unix socket by which a server that listens at host:port is reached on its own host."""
    return f"\0luciola-lane/{format_address(host, port)}"


def keep_alive(connection: socket.socket) -> None:
    """Have the kernel notice that the peer is gone; of one on this host it knows."""
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
    "keep_alive",
    "socket_name",
]
