"""The end of the lane that asks and waits: a blocking client."""

import socket
import threading
import time
from typing import Final, Self

from ...errors import Error, Timeout, Unavailable
from .. import handshake
from ..addresses import parse_address
from ..credentials import Token
from ..methods import Method, Reply, Request
from .frames import (
    DEFAULT_TIMEOUT_S,
    FRAME_BYTES_MAX,
    HEADER,
    REPLY,
    connect_failure,
    decode,
    frame,
    keep_alive,
)


class LaneClient:
    """A blocking client: one request at a time, on one connection that is opened when needed.

    May be shared by threads. After an error of the connection the next call opens a new one (I5).
    """

    def __init__(self, address: str, token: Token, *, connect_s: float = handshake.TIMEOUT_S) -> None:
        self.address: Final = address
        self._token = token
        self._connect_s = connect_s
        self._lock = threading.Lock()
        self._socket: socket.socket | None = None
        self._next = 1

    def call(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Reply:
        """The service's reply. Raises: Timeout, Unavailable, Unauthenticated, or what the service raised."""
        with self._lock:
            deadline = time.monotonic() + timeout_s
            connection = self._connected(deadline)
            number = self._next
            self._next += 1
            data = frame(method, request, number)
            try:
                connection.settimeout(_remaining(deadline))
                connection.sendall(data)
                flags, payload = _receive_reply(connection, number, deadline)
            except TimeoutError as error:
                self._drop()
                raise Timeout(f"{self.address}: {method.path} did not answer in {timeout_s:g} s") from error
            except OSError as error:
                self._drop()
                raise Unavailable(f"{self.address}: the connection was lost: {error}") from error
        return decode(method, flags, payload, self.address)

    def close(self) -> None:
        """Closes the connection; a later call opens another."""
        with self._lock:
            self._drop()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _drop(self) -> None:
        if self._socket is not None:
            self._socket.close()
            self._socket = None

    def _connected(self, deadline: float) -> socket.socket:
        if self._socket is not None and _is_stale(self._socket):
            self._drop()
        if self._socket is None:
            limit = min(deadline, time.monotonic() + self._connect_s)
            self._socket = _connect(self.address, self._token, limit)
        return self._socket


def _remaining(deadline: float) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _receive_reply(connection: socket.socket, number: int, deadline: float) -> tuple[int, bytes]:
    length, _, flags, echoed = HEADER.unpack(_receive(connection, HEADER.size, deadline))
    if length > FRAME_BYTES_MAX or not flags & REPLY or echoed != number:
        raise ConnectionError("malformed reply")
    return flags, _receive(connection, length, deadline)


def _receive(connection: socket.socket, count: int, deadline: float) -> bytes:
    data = bytearray()
    while len(data) < count:
        connection.settimeout(_remaining(deadline))
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("closed by the peer")
        data += piece
    return bytes(data)


def _is_stale(connection: socket.socket) -> bool:
    """Whether the peer closed this idle connection (or sent what nobody asked for)."""
    try:
        connection.setblocking(False)
        return connection.recv(1, socket.MSG_PEEK) is not None
    except BlockingIOError:
        return False
    except OSError:
        return True


def _connect(address: str, token: Token, deadline: float) -> socket.socket:
    connection: socket.socket | None = None
    try:
        connection = socket.create_connection(parse_address(address), timeout=_remaining(deadline))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        keep_alive(connection)
        shake = handshake.ClientSide(token, kind=handshake.LANE)
        connection.sendall(shake.answer(_receive(connection, handshake.HELLO.size, deadline)))
        shake.finish(_receive(connection, handshake.WELCOME.size, deadline))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, Error) or not isinstance(error, OSError):
            raise
        raise connect_failure(address, error) from error
    return connection


__all__ = ["LaneClient"]
