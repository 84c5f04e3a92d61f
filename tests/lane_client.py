"""Clients of the lane for tests and benchmarks: one blocks, one has many requests in flight on asyncio.

Programs use the lane through the Rust client (`core/src/client`). As that one, these repeat nothing by themselves: a
request whose reply is missing may have been executed.
"""

import asyncio
import socket
import threading
import time
from typing import Any, Final, Self, cast

from google.protobuf.message import DecodeError, Message

from luciola.errors import Error, InvalidArgument, Timeout, Unavailable
from luciola.wire import Token, handshake, parse_address
from luciola.wire import errors as wire_errors
from luciola.wire.lane.frames import (
    DEFAULT_TIMEOUT_S,
    FAILED,
    FRAME_BYTES_MAX,
    HEADER,
    REPLY,
    keep_alive,
)
from luciola.wire.methods import Method, Reply, Request


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
    """The error of a connection that could not be opened."""
    if isinstance(error, TimeoutError):
        return Timeout(f"{address}: no handshake in time")
    return Unavailable(f"{address}: cannot connect: {error}")


class LaneClient:
    """A blocking client: one request at a time, on one connection that is opened when needed.

    May be shared by threads. After an error of the connection the next call opens a new one.
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
    """Whether the peer closed this idle connection (or sent an unexpected frame)."""
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


class AsyncLaneClient:
    """As `LaneClient`, for asyncio: many requests in flight on one connection."""

    def __init__(self, address: str, token: Token, *, connect_s: float = handshake.TIMEOUT_S) -> None:
        self.address: Final = address
        self._token = token
        self._connect_s = connect_s
        self._opening = asyncio.Lock()
        self._connection: _ClientConnection | None = None

    async def call(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Reply:
        """The service's reply. Raises: Timeout, Unavailable, Unauthenticated, or what the service raised."""
        try:
            async with asyncio.timeout(timeout_s):
                connection = await self._connected()
                flags, payload = await connection.call(method, request)
        except TimeoutError as error:
            if isinstance(error, Error):
                raise
            raise Timeout(f"{self.address}: {method.path} did not answer in {timeout_s:g} s") from error
        return decode(method, flags, payload, self.address)

    async def close(self) -> None:
        """Closes the connection; a later call opens another."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _connected(self) -> "_ClientConnection":
        async with self._opening:
            if self._connection is None or self._connection.is_lost:
                self._connection = await self._open()
            return self._connection

    async def _open(self) -> "_ClientConnection":
        host, port = parse_address(self.address)
        connection = _ClientConnection(self.address, self._token)
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._connect_s):
                await loop.create_connection(lambda: connection, host, port)
                await connection.ready
        except BaseException as error:
            connection.close()
            if isinstance(error, Error) or not isinstance(error, OSError):
                raise
            raise connect_failure(self.address, error) from error
        return connection


class _ClientConnection(asyncio.Protocol):
    def __init__(self, address: str, token: Token) -> None:
        self._address = address
        self._shake: handshake.ClientSide | None = handshake.ClientSide(token, kind=handshake.LANE)
        self._answered = False
        self._buffer = bytearray()
        self._waiting: dict[int, asyncio.Future[tuple[int, bytes]]] = {}
        self._next = 1
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._writable = asyncio.Event()
        self._writable.set()
        self.is_lost = False
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def call(self, method: Method[Any, Any], request: Message) -> tuple[int, bytes]:
        await self._writable.wait()
        if self.is_lost:
            raise Unavailable(f"{self._address}: the connection was lost")
        number = self._next
        self._next += 1
        future: asyncio.Future[tuple[int, bytes]] = asyncio.get_running_loop().create_future()
        data = frame(method, request, number)
        self._waiting[number] = future
        self._transport.write(data)
        try:
            return await future
        finally:
            self._waiting.pop(number, None)

    def close(self) -> None:
        self.is_lost = True
        transport: asyncio.Transport | None = self._transport
        if transport is not None:
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        keep_alive(transport.get_extra_info("socket"))

    def pause_writing(self) -> None:
        self._writable.clear()

    def resume_writing(self) -> None:
        self._writable.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.is_lost = True
        self._writable.set()
        error = Unavailable(f"{self._address}: the connection was lost{f': {exc}' if exc else ''}")
        if not self.ready.done():
            self.ready.set_exception(error)
            self.ready.exception()  # its opener may have given up already
        for future in self._waiting.values():
            if not future.done():
                future.set_exception(error)
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        if self._shake is not None and not self._greet(self._shake):
            return
        while len(self._buffer) >= HEADER.size:
            length, _, flags, number = HEADER.unpack_from(self._buffer)
            if length > FRAME_BYTES_MAX or not flags & REPLY:
                self._transport.abort()
                return
            stop = HEADER.size + length
            if len(self._buffer) < stop:
                return
            future = self._waiting.get(number)
            if future is not None and not future.done():  # a reply that no caller awaits any more is dropped
                future.set_result((flags, bytes(self._buffer[HEADER.size : stop])))
            del self._buffer[:stop]

    def _greet(self, shake: handshake.ClientSide) -> bool:
        """Continue the handshake; return whether it is over."""
        try:
            if not self._answered and len(self._buffer) >= handshake.HELLO.size:
                self._transport.write(shake.answer(self._take(handshake.HELLO.size)))
                self._answered = True
            if self._answered and len(self._buffer) >= handshake.WELCOME.size:
                shake.finish(self._take(handshake.WELCOME.size))
                self._shake = None
                if not self.ready.done():
                    self.ready.set_result(None)
        except Error as error:
            if not self.ready.done():
                self.ready.set_exception(error)
                self.ready.exception()
            self._transport.abort()
        return self._shake is None

    def _take(self, count: int) -> bytes:
        piece = bytes(self._buffer[:count])
        del self._buffer[:count]
        return piece


__all__ = ["AsyncLaneClient", "LaneClient"]
