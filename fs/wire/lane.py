"""The lane: protobuf requests in frames on a stream socket (docs/protocol.md).

`LaneServer` serves bound methods (methods.py) on asyncio. A handler that returns its reply at once costs no
task and no await; replies to requests that arrived together leave in one write. Invariants:

    I1  Nothing is parsed before the handshake has proved who calls.
    I2  What a connection can make us hold is bounded: FRAME_BYTES_MAX of unparsed input, IN_FLIGHT_MAX
        requests of HELD_BYTES_MAX together, and we stop reading while it does not read.
    I3  A malformed frame closes its connection and nothing else; a handler's mistake closes nothing.
    I4  A connection ends when its token expires.
    I5  A client repeats nothing by itself: a request whose reply is missing may have been executed.
"""

import asyncio
import inspect
import logging
import socket
import struct
import threading
import time
from collections.abc import Iterable
from functools import partial
from typing import Any, Final, Self, cast

from google.protobuf.message import DecodeError, Message

from ..errors import (
    Error,
    InvalidArgument,
    PermissionDenied,
    Timeout,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from . import errors as wire_errors
from . import handshake
from .credentials import Identity, Token
from .encoded import Encoded, kind_of
from .in_progress import InProgress
from .methods import Bound, Method, Reply, Request, by_lane

log = logging.getLogger(__name__)

FRAME_BYTES_MAX: Final = 8 << 20  # payload; the largest reply is a full page of a listing with attributes
CONNECTIONS_MAX: Final = 4096  # a client process holds a few; below the usual limit of file descriptors
HANDSHAKES_MAX: Final = 256  # strangers at the door; the one that has waited longest makes room
IN_FLIGHT_MAX: Final = 256  # requests of one connection that wait for something
HELD_BYTES_MAX: Final = 32 << 20  # their payloads, so that large ones wait their turn
KEEPALIVE_S: Final = 30  # a peer that vanished without a word is noticed after about three times this long
DEFAULT_TIMEOUT_S: Final = 30.0

HEADER: Final = struct.Struct("<IHHQ")
REPLY: Final = 1
FAILED: Final = 2


def parse_address(address: str) -> tuple[str, int]:
    """(host, port) of "host:port" or "[v6]:port". Raises: InvalidArgument."""
    host, colon, port = address.rpartition(":")
    if not colon or not host or not (port.isascii() and port.isdecimal()) or int(port) > 65535:
        raise InvalidArgument(f"not an address (host:port is expected): {address!r}")
    return host.strip("[]"), int(port)


def format_address(host: str, port: int) -> str:
    """The inverse of `parse_address`."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


class LaneServer:
    """Serves `bound` methods to whoever proves a token made with `secret`."""

    def __init__(
        self, bound: Iterable[Bound], *, secret: bytes, handshake_s: float = handshake.TIMEOUT_S
    ) -> None:
        self._methods = by_lane(bound)
        self._secret = secret
        self._handshake_s = handshake_s
        self._connections: set[_ServerConnection] = set()
        self._strangers: dict[_ServerConnection, None] = {}  # in the order of arrival
        self._server: asyncio.AbstractServer | None = None
        self._in_progress = InProgress()
        self.address = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens, and returns the address. Raises: Unavailable if it cannot."""
        assert self._server is None, "a server starts once"
        loop = asyncio.get_running_loop()
        try:
            self._server = await loop.create_server(
                partial(_ServerConnection, self), host, port, backlog=1024
            )
        except OSError as error:
            raise Unavailable(f"cannot listen on {format_address(host, port)}: {error.strerror}") from error
        self.address = format_address(*self._server.sockets[0].getsockname()[:2])
        self._in_progress.start()
        return self.address

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Accepts nothing new, lets requests in flight finish for `grace_s`, then closes every connection."""
        if self._server is None:
            return
        self._server.close()
        waited = [task for connection in self._connections for task in connection.tasks]
        if waited:
            await asyncio.wait(waited, timeout=grace_s)
        for connection in list(self._connections):
            connection.close()
        self._in_progress.stop()
        self._server = None

    @property
    def connection_count(self) -> int:
        """Connections now open, those in their handshake included."""
        return len(self._connections)


class _ServerConnection(asyncio.Protocol):
    def __init__(self, server: LaneServer) -> None:
        self._server = server
        self._methods = server._methods  # noqa: SLF001 (one module, two classes)
        self._shake = handshake.ServerSide(server._secret, kind=handshake.LANE)  # noqa: SLF001
        self._identity: Identity | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)
        self._loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Future[Any]] = set()
        self._writable = True
        self._paused = False
        self.in_flight = 0
        self._held_bytes = 0

    # Life and flow control.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        server = self._server
        self._transport = cast("asyncio.Transport", transport)
        if len(server._connections) >= CONNECTIONS_MAX:  # noqa: SLF001
            log.warning("lane: %d connections are open; one more was refused", CONNECTIONS_MAX)
            transport.abort()  # type: ignore[attr-defined]
            return
        server._connections.add(self)  # noqa: SLF001
        server._strangers[self] = None  # noqa: SLF001
        if len(server._strangers) > HANDSHAKES_MAX:  # noqa: SLF001
            next(iter(server._strangers)).close()  # noqa: SLF001
        _keep_alive(transport.get_extra_info("socket"))
        self._timer = self._loop.call_later(server._handshake_s, self._transport.abort)  # noqa: SLF001
        self._transport.write(self._shake.hello)

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's interface)
        self._forget_stranger()
        self._server._connections.discard(self)  # noqa: SLF001
        self._buffer.clear()

    def close(self) -> None:
        self._forget_stranger()
        self._transport.close()

    def _forget_stranger(self) -> None:
        self._server._strangers.pop(self, None)  # noqa: SLF001
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        self._writable = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self._resume()

    def _resume(self) -> None:
        if self._writable and not self._is_full() and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            if self._buffer:
                self._pump(b"")

    def _is_full(self) -> bool:
        return self.in_flight >= IN_FLIGHT_MAX or self._held_bytes >= HELD_BYTES_MAX

    # Bytes to requests.

    def data_received(self, data: bytes) -> None:
        if self._identity is None:
            data = self._welcome(data)
            if self._identity is None:
                return
        if data:
            self._pump(data)

    def _welcome(self, data: bytes) -> bytes:
        """Goes on with the handshake; returns what followed it."""
        buffer = self._buffer
        buffer += data
        try:
            answer = self._shake.answer(bytes(buffer[: handshake.ANSWER_BYTES_MAX]))
        except Unauthenticated as error:
            log.info("lane: refused %s: %s", self._transport.get_extra_info("peername"), error)
            self._transport.write(handshake.REFUSAL)
            self.close()
            return b""
        if answer is None:
            return b""
        self._identity, welcome, used = answer
        self._forget_stranger()
        if self._identity.expires_unix_s:
            self._timer = self._loop.call_later(self._identity.expires_unix_s - time.time(), self.close)
        self._transport.write(welcome)
        rest = bytes(buffer[used:])
        buffer.clear()
        return rest

    def _pump(self, data: bytes | bytearray) -> None:
        """Serves every whole frame of what was kept and `data`."""
        if self._buffer:
            self._buffer += data
            data = self._buffer
        offset = 0
        end = len(data)
        replies: list[bytes] = []
        while end - offset >= 16:
            length, number, flags, request = HEADER.unpack_from(data, offset)
            if length > FRAME_BYTES_MAX or flags:
                log.warning("lane: malformed frame from %s", self._transport.get_extra_info("peername"))
                self._buffer.clear()
                self._flush(replies)
                self.close()
                return
            stop = offset + 16 + length
            if stop > end:
                break
            if self._is_full():
                self._paused = True
                self._transport.pause_reading()
                break
            payload = data[offset + 16 : stop]
            offset = stop
            self._serve(number, request, bytes(payload), replies)
        if data is self._buffer:
            del self._buffer[:offset]
        elif offset < end:
            self._buffer += data[offset:]
        self._flush(replies)

    def _flush(self, replies: list[bytes]) -> None:
        if replies and not self._transport.is_closing():
            self._transport.write(b"".join(replies))

    def _serve(self, number: int, request: int, payload: bytes, replies: list[bytes]) -> None:
        entry = self._methods.get(number)
        identity = self._identity
        assert identity is not None, "the handshake is over"
        if entry is None:
            _append_error(replies, number, request, Unsupported(f"no method {number} on this service"))
            return
        method = entry.method
        if identity.role < method.role:
            refusal = PermissionDenied(f"{method.path} is not for this token's role")
            _append_error(replies, number, request, refusal)
            return
        try:
            message = method.request.FromString(payload)
            result = entry.handler(message, identity)
        except DecodeError:
            invalid = InvalidArgument(f"{method.path}: the request cannot be read")
            _append_error(replies, number, request, invalid)
            return
        except Exception as error:  # noqa: BLE001 (the top of a request: whatever it is goes to the caller)
            _append_error(replies, number, request, error)
            return
        if kind_of(result) is method.reply:
            _append_reply(replies, number, request, result)
            return
        if not inspect.isawaitable(result):
            mistake = AssertionError(f"{method.path} replied with {type(result).__name__}")
            _append_error(replies, number, request, mistake)
            return
        self.in_flight += 1
        self._held_bytes += len(payload)
        future = asyncio.ensure_future(result, loop=self._loop)
        self.tasks.add(future)
        peer = self._transport.get_extra_info("peername")
        self._server._in_progress.add(future, method.path, message, peer)  # noqa: SLF001
        future.add_done_callback(partial(self._finished, method, request, len(payload)))

    def _finished(
        self, method: Method[Any, Any], request: int, held: int, future: "asyncio.Future[Any]"
    ) -> None:
        number = method.lane
        self.in_flight -= 1
        self._held_bytes -= held
        self.tasks.discard(future)
        self._server._in_progress.remove(future)  # noqa: SLF001
        replies: list[bytes] = []
        if future.cancelled():
            _append_error(replies, number, request, Unavailable("the service is stopping"))
        elif (error := future.exception()) is not None:
            _append_error(replies, number, request, error)
        elif kind_of(reply := future.result()) is not method.reply:
            mistake = AssertionError(f"{method.path} replied with {type(reply).__name__}")
            _append_error(replies, number, request, mistake)
        else:
            _append_reply(replies, number, request, reply)
        self._flush(replies)
        if self._paused and self.in_flight <= IN_FLIGHT_MAX // 2 and self._held_bytes <= HELD_BYTES_MAX // 2:
            self._resume()


def _append_reply(replies: list[bytes], number: int, request: int, message: Message | Encoded[Any]) -> None:
    payload = message.SerializeToString()
    if len(payload) > FRAME_BYTES_MAX:
        _append_error(replies, number, request, AssertionError(f"reply of method {number} is too long"))
        return
    replies.append(HEADER.pack(len(payload), number, REPLY, request))
    replies.append(payload)


def _append_error(replies: list[bytes], number: int, request: int, error: BaseException) -> None:
    if isinstance(error, Error):
        message = wire_errors.encode(error)
    else:
        log.error("lane: method %d failed", number, exc_info=error)
        message = wire_errors.unexpected()
    payload = message.SerializeToString()
    replies.append(HEADER.pack(len(payload), number, REPLY | FAILED, request))
    replies.append(payload)


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
            frame = _frame(method, request, number)
            try:
                connection.settimeout(_remaining(deadline))
                connection.sendall(frame)
                flags, payload = _receive_reply(connection, number, deadline)
            except TimeoutError as error:
                self._drop()
                raise Timeout(f"{self.address}: {method.path} did not answer in {timeout_s:g} s") from error
            except OSError as error:
                self._drop()
                raise Unavailable(f"{self.address}: the connection was lost: {error}") from error
        return _decode(method, flags, payload, self.address)

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


def _frame(method: Method[Any, Any], request: Message, number: int) -> bytes:
    assert method.lane, f"{method.path} is not carried by the lane"
    assert type(request) is method.request, f"{method.path} takes {method.request.__name__}"
    payload = request.SerializeToString()
    if len(payload) > FRAME_BYTES_MAX:
        raise InvalidArgument(f"{method.path}: a request of {len(payload)} bytes is too long")
    return HEADER.pack(len(payload), method.lane, 0, number) + payload


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
        _keep_alive(connection)
        shake = handshake.ClientSide(token, kind=handshake.LANE)
        connection.sendall(shake.answer(_receive(connection, handshake.HELLO.size, deadline)))
        shake.finish(_receive(connection, handshake.WELCOME.size, deadline))
    except BaseException as error:
        if connection is not None:
            connection.close()
        if isinstance(error, Error) or not isinstance(error, OSError):
            raise
        if isinstance(error, TimeoutError):
            raise Timeout(f"{address}: no handshake in time") from error
        raise Unavailable(f"{address}: cannot connect: {error}") from error
    return connection


def _keep_alive(connection: socket.socket) -> None:
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_S)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, KEEPALIVE_S // 3)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _decode(method: Method[Any, Reply], flags: int, payload: bytes, address: str) -> Reply:
    if flags & FAILED:
        raise wire_errors.decode_bytes(payload)
    try:
        return method.reply.FromString(payload)
    except DecodeError as error:
        raise Unavailable(f"{address}: the reply of {method.path} cannot be read") from error


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
        return _decode(method, flags, payload, self.address)

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
            if isinstance(error, TimeoutError):
                raise Timeout(f"{self.address}: no handshake in time") from error
            raise Unavailable(f"{self.address}: cannot connect: {error}") from error
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
        frame = _frame(method, request, number)
        self._waiting[number] = future
        self._transport.write(frame)
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
        _keep_alive(transport.get_extra_info("socket"))

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
            self.ready.exception()  # whoever opened it may have given up already
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
            if future is not None and not future.done():  # a reply that nobody awaits any more is dropped
                future.set_result((flags, bytes(self._buffer[HEADER.size : stop])))
            del self._buffer[:stop]

    def _greet(self, shake: handshake.ClientSide) -> bool:
        """Goes on with the handshake; whether it is over."""
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


__all__ = [
    "DEFAULT_TIMEOUT_S",
    "FRAME_BYTES_MAX",
    "AsyncLaneClient",
    "LaneClient",
    "LaneServer",
    "format_address",
    "parse_address",
]
