"""The end of the lane that serves, on asyncio.

A handler that returns its reply at once costs no task and no await; replies to requests that arrived together leave in
one write. Keeps I1 to I4 of the package.
"""

import asyncio
import heapq
import inspect
import logging
import socket
import time
from collections.abc import Iterable
from functools import partial
from typing import Final, cast

from google.protobuf.message import DecodeError, Message

from ...errors import (
    Error,
    InvalidArgument,
    PermissionDenied,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from .. import errors as wire_errors
from .. import handshake
from ..addresses import format_address
from ..audit import NO_AUDIT, AuditLog
from ..authority import Authority
from ..credentials import Identity
from ..methods import AnyMethod, Bound, by_lane
from ..preserialized import Preserialized, is_reply
from ..slow_requests import PendingRequests
from ..tls import Tls
from .frames import FAILED, FRAME_BYTES_MAX, HEADER, REPLY, keep_alive, socket_name

log = logging.getLogger(__name__)

CONNECTIONS_MAX: Final = 4096  # a client process holds a few; below the usual limit of file descriptors
BACKLOG: Final = 1024  # connections that wait to be accepted
HANDSHAKES_MAX: Final = 256  # connections that are not authenticated yet; the oldest is closed to make room
IDLE_CLOSED: Final = 64  # at once, when there is no room: looking for them takes a millisecond
IN_FLIGHT_MAX: Final = 256  # requests of one connection that wait for something
HELD_BYTES_MAX: Final = 32 << 20  # their payloads, so that large ones wait their turn
BATCH_REPLIES: Final = 64  # written together; then other connections have their turn
BATCH_BYTES: Final = 1 << 20  # the same, of longer replies
ACCEPT_AGAIN_S: Final = 1.0  # after an error that has no connection to blame
TLS_CLOSE_S: Final = 1.0  # for the other end to say that it closes, which ours never does
LOOPBACK: Final = "127.0.0.1"
assert HELD_BYTES_MAX > FRAME_BYTES_MAX, "a request of any size is served"
assert max(HANDSHAKES_MAX, IDLE_CLOSED) < CONNECTIONS_MAX, (
    "some connections are past their handshake, and stay"
)


class LaneServer:
    """Serves `bound` methods to clients that prove a token made with `secret`, and valid for `Authority`.

    With `tls` also a certificate, before anything else; who comes over the Unix socket is on this host and needs none.
    `audit`: where it is written down who was refused.
    """

    def __init__(
        self,
        bound: Iterable[Bound],
        *,
        secret: bytes | Authority,
        tls: Tls | None = None,
        audit: AuditLog = NO_AUDIT,
        handshake_s: float = handshake.TIMEOUT_S,
    ) -> None:
        self.methods: Final = by_lane(bound)
        self.authority: Final = Authority.of(secret)
        self.authority.on_change(self._close_void)
        self.tls: Final = tls
        self.audit: Final = audit
        self.handshake_s: Final = handshake_s
        self.pending: Final = PendingRequests()
        self._connections: set[_ServerConnection] = set()
        self._unauthenticated: dict[_ServerConnection, None] = {}  # in the order of arrival
        self._server: asyncio.AbstractServer | _TlsListener | None = None
        self._local: asyncio.AbstractServer | None = None
        self.address = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens, and returns the address. Raises: Unavailable if it cannot."""
        assert self._server is None, "a server starts once"
        loop = asyncio.get_running_loop()
        try:
            if self.tls is None:
                self._server = await loop.create_server(
                    partial(_ServerConnection, self), host, port, backlog=BACKLOG
                )
                bound = self._server.sockets[0].getsockname()[:2]
            else:
                self._server = _TlsListener(self, self.tls, host, port)
                bound = self._server.bound
        except OSError as error:
            raise Unavailable(f"cannot listen on {format_address(host, port)}: {error.strerror}") from error
        self.address = format_address(*bound)
        self._local = await self._listen_locally(socket_name(*bound))
        self.pending.start()
        return self.address

    async def _listen_locally(self, name: str) -> asyncio.AbstractServer | None:
        """Serve clients on this host over a Unix socket too, if its name is free: they find it, or use TCP.

        The name is abstract: it is gone with this process, however that ends.
        """
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            listener.bind(name)
            return await asyncio.get_running_loop().create_unix_server(
                partial(_ServerConnection, self), sock=listener, backlog=BACKLOG
            )
        except OSError as error:
            listener.close()
            log.warning(
                "lane: no Unix socket beside %s: %s; clients on this host use TCP", self.address, error
            )
            return None

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Accept nothing new, lets requests in flight finish for `grace_s`, then close every connection."""
        if self._server is None:
            return
        self._server.close()
        if self._local is not None:
            self._local.close()
            self._local = None
        waited = [task for connection in self._connections for task in connection.tasks]
        if waited:
            await asyncio.wait(waited, timeout=grace_s)
        for connection in list(self._connections):
            connection.close()
        self.pending.stop()
        self._server = None

    def admit(self, connection: "_ServerConnection") -> bool:
        """Take in a new connection; return whether there is room. The oldest unauthenticated one may have to go."""
        if self.connection_count >= CONNECTIONS_MAX:
            self._close_idle()
        if self.connection_count >= CONNECTIONS_MAX:
            log.warning("lane: refused a connection: %d are open", CONNECTIONS_MAX)
            return False
        self._connections.add(connection)
        self._unauthenticated[connection] = None
        if len(self._unauthenticated) > HANDSHAKES_MAX:
            next(iter(self._unauthenticated)).close()
        assert len(self._unauthenticated) <= HANDSHAKES_MAX, "I2: what is not authenticated is bounded"
        return True

    def authenticated(self, connection: "_ServerConnection") -> None:
        """Its handshake is over, or it is being closed before that."""
        self._unauthenticated.pop(connection, None)

    def forget(self, connection: "_ServerConnection") -> None:
        """The connection is gone."""
        self._unauthenticated.pop(connection, None)
        self._connections.discard(connection)

    def _close_void(self) -> None:
        """Close the connections whose tokens are not valid any more."""
        for connection in list(self._connections):
            if connection.identity is not None and not self.authority.is_valid(connection.identity):
                log.info("lane: closed a connection of a revoked token")
                connection.close()

    def _close_idle(self) -> None:
        """Make room: close the connections that have been idle for longest. Their clients open new ones."""
        idle = [each for each in self._connections if each.is_idle]
        for connection in heapq.nsmallest(IDLE_CLOSED, idle, key=lambda each: each.active_s):
            connection.close()
            self._connections.discard(connection)

    @property
    def connection_count(self) -> int:
        """Connections now open, those in their handshake included."""
        return len(self._connections)


class _TlsListener:
    """Accepts connections that begin with TLS.

    Each counts from the moment that it is accepted: a loop's own server with TLS shows only those that end that well.
    Raises: OSError; what `tls` raises: what is wrong with it is an error of the start.
    """

    def __init__(self, server: LaneServer, tls: Tls, host: str, port: int) -> None:
        tls.lane()
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        self._listener = socket.create_server((host, port), family=family, backlog=BACKLOG)
        self._listener.setblocking(False)
        self.bound: tuple[str, int] = self._listener.getsockname()[:2]
        self._accepting = asyncio.get_running_loop().create_task(self._accept(server, tls))

    async def _accept(self, server: LaneServer, tls: Tls) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                accepted, _ = await loop.sock_accept(self._listener)
            except OSError as error:  # no descriptor is left, for one
                log.warning("lane: cannot accept connections: %s; trying again", error)
                await asyncio.sleep(ACCEPT_AGAIN_S)
                continue
            _ServerConnection(server).begin_tls(accepted, tls)

    def close(self) -> None:
        self._accepting.cancel()
        self._listener.close()


class _ServerConnection(asyncio.Protocol):
    def __init__(self, server: LaneServer) -> None:
        self._server = server
        self._methods = server.methods
        self._shake = handshake.ServerSide(server.authority, kind=handshake.LANE)
        self.identity: Identity | None = None
        self._buffer = bytearray()
        self._timer: asyncio.TimerHandle | None = None
        self._tls: asyncio.Task[None] | None = None
        self._transport: asyncio.Transport = cast("asyncio.Transport", None)  # none before TLS has begun
        self._name: object = None  # of the other end
        self._loop = asyncio.get_running_loop()
        self.tasks: set[asyncio.Future[object]] = set()
        self._writable = True
        self._paused = False
        self._turn: asyncio.Handle | None = None  # in which the frames that a batch left are served
        self.in_flight = 0
        self._held_bytes = 0
        self.active_s = self._loop.time()

    @property
    def is_idle(self) -> bool:
        """Whether its client has no request in flight, as far as this end knows."""
        return self.identity is not None and not self.in_flight and not self._buffer

    # Life and flow control.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.Transport", transport)
        if self._tls is None:
            self._name = transport.get_extra_info("peername")
            if not self._server.admit(self):
                self._transport.abort()
                return
            self._begin(transport.get_extra_info("socket"))
        self._transport.write(self._shake.hello)

    def begin_tls(self, accepted: socket.socket, tls: Tls) -> None:
        """Take in a connection: `connection_made` follows once TLS protects it."""
        if not self._server.admit(self):
            accepted.close()
            return
        self._begin(accepted)
        self._tls = self._loop.create_task(self._protect(accepted, tls))

    async def _protect(self, accepted: socket.socket, tls: Tls) -> None:
        try:
            self._name = accepted.getpeername()
            await self._loop.connect_accepted_socket(
                lambda: self,
                accepted,
                ssl=tls.lane(),
                ssl_handshake_timeout=self._server.handshake_s,
                ssl_shutdown_timeout=TLS_CLOSE_S,
            )
        except (OSError, Error) as error:
            log.info("lane: refused %s: TLS: %s", self._peer(), error)
            self._server.audit.refused("TLS", str(error), host=self._host())
        finally:
            if self._transport is None:  # no loop says that it is lost
                accepted.close()
                self.connection_lost(None)

    def _begin(self, accepted: socket.socket) -> None:
        keep_alive(accepted)
        self._timer = self._loop.call_later(self._server.handshake_s, self._abort)

    def _abort(self) -> None:
        if self._transport is not None:
            self._transport.abort()
        elif self._tls is not None:
            self._tls.cancel()

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002 (asyncio's interface)
        self._end_handshake()
        if self._turn is not None:
            self._turn.cancel()
        self._server.forget(self)
        self._buffer.clear()

    def close(self) -> None:
        self._end_handshake()
        if self._transport is not None:
            self._transport.close()
        else:
            self._abort()

    def _peer(self) -> object:
        """Return who is at the other end, for the log."""
        return self._name or "a client on this host"

    def _host(self) -> str:
        """Return the address of the other end; a client that came over the Unix socket is on this host."""
        return str(self._name[0]) if isinstance(self._name, tuple) else LOOPBACK

    def _end_handshake(self) -> None:
        self._server.authenticated(self)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def pause_writing(self) -> None:
        self._writable = False
        self._transport.pause_reading()

    def resume_writing(self) -> None:
        self._writable = True
        self._resume()

    def _next_turn(self) -> None:
        self._turn = None
        self._resume()

    def _resume(self) -> None:
        is_held = not self._writable or self._turn is not None or self._is_full()
        if not is_held and not self._transport.is_closing():
            self._paused = False
            self._transport.resume_reading()
            if self._buffer:
                self._pump(b"")

    def _is_full(self) -> bool:
        return self.in_flight >= IN_FLIGHT_MAX or self._held_bytes >= HELD_BYTES_MAX

    # Bytes to requests.

    def data_received(self, data: bytes) -> None:
        self.active_s = self._loop.time()
        if self.identity is None:
            data = self._welcome(data)
            if self.identity is None:
                return
        if self._turn is not None:
            self._buffer += data
        elif data:
            self._pump(data)

    def _welcome(self, data: bytes) -> bytes:
        """Continue the handshake; return the bytes that followed it."""
        buffer = self._buffer
        buffer += data
        try:
            answer = self._shake.answer(bytes(buffer[: handshake.ANSWER_BYTES_MAX]))
        except Unauthenticated as error:
            log.info("lane: refused %s: %s", self._peer(), error)
            self._server.audit.refused("handshake", str(error), host=self._host())
            self._transport.write(handshake.REFUSAL)
            self.close()
            return b""
        except Unavailable:
            self._transport.abort()  # no verdict: its client tries again
            return b""
        if answer is None:
            return b""
        identity, welcome, used = answer
        if not identity.may_call_from(self._host()):
            log.info("lane: refused %s: its token may not be used there", self._peer())
            self._server.audit.refused(
                "handshake", "the token may not be used there", host=self._host(), identity=identity
            )
            self._transport.write(handshake.REFUSAL)
            self.close()
            return b""
        self.identity = identity
        self._end_handshake()
        if identity.expires_unix_s:
            self._timer = self._loop.call_later(identity.expires_unix_s - time.time(), self.close)
        self._transport.write(welcome)
        rest = bytes(buffer[used:])
        buffer.clear()
        return rest

    def _pump(self, data: bytes | bytearray) -> None:
        """Serve whole frames of what was kept and `data`: all of them, or until their replies are a batch."""
        if self._buffer:
            self._buffer += data
            data = self._buffer
        offset = 0
        end = len(data)
        replies: list[bytes] = []
        reply_bytes = 0
        while end - offset >= 16:
            length, number, flags, request = HEADER.unpack_from(data, offset)
            if length > FRAME_BYTES_MAX or flags:
                log.warning("lane: malformed frame from %s", self._peer())
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
            if len(replies) >= 2 * BATCH_REPLIES or reply_bytes >= BATCH_BYTES:
                self._transport.pause_reading()
                self._turn = self._loop.call_soon(self._next_turn)
                break
            payload = data[offset + 16 : stop]
            offset = stop
            count = len(replies)
            self._serve(number, request, bytes(payload), replies)
            if len(replies) > count:
                reply_bytes += len(replies[-1])
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
        identity = self.identity
        assert identity is not None, "the handshake is over"
        if entry is None:
            _append_error(replies, number, request, Unsupported(f"no method {number} on this service"))
            return
        method = entry.method
        if not identity.may(method.role):
            refusal = PermissionDenied(f"{method.path} is not for this token's role")
            self._server.audit.refused(method.path, str(refusal), host=self._host(), identity=identity)
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
        if is_reply(result, method.reply):
            _append_reply(replies, number, request, result)
            return
        if not inspect.isawaitable(result):
            mistake = AssertionError(f"{method.path} replied with {type(result).__name__}")
            _append_error(replies, number, request, mistake)
            return
        self.in_flight += 1
        self._held_bytes += len(payload)
        assert self.in_flight <= IN_FLIGHT_MAX, "I2: no request is taken from a full connection"
        future: asyncio.Future[object] = asyncio.ensure_future(result, loop=self._loop)
        self.tasks.add(future)
        self._server.pending.add(future, method.path, message, self._peer())
        future.add_done_callback(partial(self._finished, method, request, len(payload)))

    def _finished(self, method: AnyMethod, request: int, held: int, future: "asyncio.Future[object]") -> None:
        number = method.lane
        self.in_flight -= 1
        self._held_bytes -= held
        assert self.in_flight >= 0, "a request is finished once"
        assert self._held_bytes >= 0, "a payload is released once"
        self.tasks.discard(future)
        self._server.pending.remove(future)
        replies: list[bytes] = []
        if future.cancelled():
            _append_error(replies, number, request, Unavailable("the service is stopping"))
        elif (error := future.exception()) is not None:
            _append_error(replies, number, request, error)
        elif is_reply(reply := future.result(), method.reply):
            _append_reply(replies, number, request, reply)
        else:
            mistake = AssertionError(f"{method.path} replied with {type(reply).__name__}")
            _append_error(replies, number, request, mistake)
        self._flush(replies)
        if self._paused and self.in_flight <= IN_FLIGHT_MAX // 2 and self._held_bytes <= HELD_BYTES_MAX // 2:
            self._resume()


def _append_reply(
    replies: list[bytes], number: int, request: int, message: Message | Preserialized[Message]
) -> None:
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


__all__ = ["LaneServer"]
