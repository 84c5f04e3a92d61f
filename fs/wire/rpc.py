"""gRPC between services and for administrators: the same methods and handlers as the lane (methods.py).

Every call carries `authorization: Bearer <token>`. A caller without a valid token, or whose role may not use the
method, is refused before its request is read; a call whose request does not arrive within 10 s is ended. So
unauthenticated callers hold no call. Between machines, who has no certificate of the cluster does not come so far
(tls.py). Compressed requests are refused: a short one may stand for any number of bytes.
Errors travel as a status and, whole, in a trailer.
"""

import asyncio
import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterable
from contextvars import ContextVar
from time import monotonic
from typing import Final, NamedTuple, NoReturn, Self, TypeAlias, cast
from urllib.parse import unquote

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from ..closing import Closing
from ..errors import Error, InvalidArgument, PermissionDenied, Timeout, Unauthenticated, Unavailable
from . import errors as wire_errors
from . import grpc_fork  # noqa: F401 (for what it does)
from .addresses import format_address, parse_address
from .audit import NO_AUDIT, AuditLog, caller_host
from .authority import Authority
from .credentials import Identity, Token
from .failover import Endpoints, was_refused
from .lane import DEFAULT_TIMEOUT_S
from .methods import Bound, Method, Reply, Request
from .preserialized import is_reply
from .tls import Material, Tls

log = logging.getLogger(__name__)

MESSAGE_BYTES_MAX: Final = 16 << 20  # a routing snapshot of a large cluster; a page of chunk records is 1 MiB
CONCURRENT_MAX: Final = 1024  # calls served at once
CONNECTION_CONCURRENT_MAX: Final = (
    128  # of them from one connection: a service has a few streams and short calls
)
REQUEST_S: Final = 10.0  # for a request to arrive after its headers
HANDSHAKE_S: Final = 5.0  # for a new connection to speak HTTP/2
IDLE_S: Final = 600.0  # a connection without calls is closed; its client opens another when it needs one
KEEPALIVE_MS: Final = 10_000
# A server that is overloaded takes seconds to greet a client. One that has not greeted by then hangs: the call
# fails, however long its deadline, and the next one makes a new connection.
CONNECT_S: Final = 10.0
BEARER: Final = "Bearer "

TokenSource: TypeAlias = Token | Callable[[], Token]  # asked for each call
_Context: TypeAlias = "grpc.aio.ServicerContext[bytes, bytes]"
_Requests: TypeAlias = AsyncIterator[bytes]

_COMMON: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 2),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.keepalive_permit_without_calls", 0),
)
_SERVER: Final = (
    *_COMMON,
    ("grpc.so_reuseport", 0),  # a second server on the port is an error, not a partner
    ("grpc.http2.min_ping_interval_without_data_ms", KEEPALIVE_MS // 2),
    ("grpc.max_metadata_size", 8192),
    ("grpc.compression_enabled_algorithms_bitset", 1),  # identity
    ("grpc.max_concurrent_streams", CONNECTION_CONCURRENT_MAX),
    ("grpc.max_connection_idle_ms", round(IDLE_S * 1000)),
)
_CHANNEL: Final = (
    *_COMMON,
    ("grpc.enable_http_proxy", 0),  # loopback and cluster addresses, whatever the environment says
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.use_local_subchannel_pool", 1),
)


_ChannelOptions: TypeAlias = tuple[tuple[str, int | str], ...]

_caller_names: ContextVar[Collection[str]] = ContextVar("caller_names", default=())


def caller_names() -> Collection[str]:
    """Return the names in the certificate of who called the handler that asks; without TLS there are none."""
    return _caller_names.get()


def _channel_options(connect_s: float) -> _ChannelOptions:
    # In spite of its name it is how long one attempt may take.
    return (*_CHANNEL, ("grpc.min_reconnect_backoff_ms", round(connect_s * 1000)))


def _protected(options: _ChannelOptions, tls: Tls, service: str, address: str) -> _ChannelOptions:
    """Options of a channel that is for `service` at `address` alone. Raises: ConfigError."""
    expected = tls.expected_name(service, parse_address(address)[0])
    return (*options, ("grpc.ssl_target_name_override", expected))


class RpcServer:
    """Serves `bound` methods over gRPC to clients that show a token made with `secret`, and valid for `Authority`.

    With `tls` also a certificate, before anything else. `audit`: where it is written down who was refused.
    """

    def __init__(  # noqa: PLR0913 (what a server is made of)
        self,
        bound: Iterable[Bound],
        *,
        secret: bytes | Authority,
        tls: Tls | None = None,
        audit: AuditLog = NO_AUDIT,
        handshake_s: float = HANDSHAKE_S,
        request_s: float = REQUEST_S,
    ) -> None:
        self._dispatcher = _Dispatcher(bound, Authority.of(secret), request_s, audit)
        self._options = (*_SERVER, ("grpc.server_handshake_timeout_ms", round(handshake_s * 1000)))
        self._tls = tls
        self._server: grpc.aio.Server | None = None
        self.address = ""

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> str:
        """Listens, and returns the address. Raises: Unavailable if it cannot."""
        assert self._server is None, "a server starts once"
        server = grpc.aio.server(options=self._options, maximum_concurrent_rpcs=CONCURRENT_MAX)
        server.add_generic_rpc_handlers((self._dispatcher,))
        wanted = format_address(host, port)
        try:
            if self._tls is None:
                bound_port = server.add_insecure_port(wanted)
            else:
                bound_port = server.add_secure_port(wanted, self._tls.server())
        except RuntimeError as error:
            raise Unavailable(f"cannot listen on {wanted}: {error}") from error
        await server.start()
        self._server = server
        self.address = format_address(host, bound_port)
        return self.address

    async def stop(self, *, grace_s: float = 5.0) -> None:
        """Accept nothing new and let calls in flight finish for `grace_s`."""
        if self._server is not None:
            await self._server.stop(grace_s)
            self._server = None


class _Dispatcher(grpc.GenericRpcHandler):  # type: ignore[type-arg] # not generic when it runs
    """Chooses what serves a call from its headers alone: the method's handler, or a refusal."""

    def __init__(
        self, bound: Iterable[Bound], authority: Authority, request_s: float, audit: AuditLog
    ) -> None:
        self._audit = audit
        self._bound = {entry.method.path: entry for entry in bound}
        self._authority = authority
        self._request_s = request_s

    def service(self, call: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes] | None":
        entry = self._bound.get(call.method)
        identity: Identity | None = None
        try:
            identity = self._identify(call)
            if entry is None:
                return None
            if not identity.may(entry.method.role):
                raise PermissionDenied(f"{entry.method.path} is not for this token's role")
        except Error as error:
            if isinstance(error, Unauthenticated):
                log.info("grpc: refused %s: %s", call.method, error)
            return grpc.stream_unary_rpc_method_handler(_refusal(error, call.method, identity, self._audit))
        # On the wire as unary requests. A handler of these would be called only when the request is in memory.
        if entry.method.streams:
            stream = _stream(entry, identity, self._authority, self._request_s, self._audit)
            return grpc.stream_stream_rpc_method_handler(stream)
        return grpc.stream_unary_rpc_method_handler(_unary(entry, identity, self._request_s, self._audit))

    def _identify(self, call: grpc.HandlerCallDetails) -> Identity:
        for name, value in call.invocation_metadata or ():
            if name == "authorization":
                text = value if isinstance(value, str) else value.decode("ascii", "replace")
                if not text.startswith(BEARER):
                    raise Unauthenticated("authorization must be a bearer token")
                return self._authority.verify(Token.parse(text.removeprefix(BEARER)))
        raise Unauthenticated("a token of this cluster is needed")


def _refusal(
    error: Error, what: str, identity: Identity | None, audit: AuditLog
) -> Callable[[_Requests, _Context], Awaitable[NoReturn]]:
    async def refuse(_: _Requests, context: _Context) -> NoReturn:
        if isinstance(error, Unauthenticated | PermissionDenied):
            audit.refused(what, str(error), host=_host_of(context), identity=identity)
        await _abort(context, error)

    return refuse


def _unary(
    entry: Bound, identity: Identity, request_s: float, audit: AuditLog
) -> Callable[[_Requests, _Context], Awaitable[bytes]]:
    method = entry.method

    async def serve(requests: _Requests, context: _Context) -> bytes:
        try:
            _require_network(entry, identity, context, audit)
            payload = await _received(requests, method, request_s)
            _caller_names.set(_names_of(context))
            caller_host.set(_host_of(context))
            result = entry.handler(_parse(method, payload), identity)
            if inspect.isawaitable(result):
                result = await result
            assert is_reply(result, method.reply), f"{method.path} replies with {method.reply.__name__}"
        except Exception as error:  # noqa: BLE001 (the top of a request: whatever it is goes to the caller)
            await _abort(context, error)
        return bytes(result.SerializeToString())

    return serve


def _stream(
    entry: Bound, identity: Identity, authority: Authority, request_s: float, audit: AuditLog
) -> Callable[[_Requests, _Context], AsyncIterator[bytes]]:
    method = entry.method

    async def serve(requests: _Requests, context: _Context) -> AsyncIterator[bytes]:
        try:
            _require_network(entry, identity, context, audit)
            payload = await _received(requests, method, request_s)
            caller_host.set(_host_of(context))
            items = entry.handler(_parse(method, payload), identity)
            assert isinstance(items, AsyncIterator), f"{method.path} is a stream"
            async for item in items:
                assert type(item) is method.reply, f"{method.path} streams {method.reply.__name__}"
                authority.require_valid(identity)  # a stream may last for days
                yield bytes(item.SerializeToString())
        except Exception as error:  # noqa: BLE001 (as above)
            await _abort(context, error)

    return serve


def _require_network(entry: Bound, identity: Identity, context: _Context, audit: AuditLog) -> None:
    """Raises: Unauthenticated if the token may not be used where the caller is."""
    if identity.limits.networks:
        host = _host_of(context)
        if not identity.may_call_from(host):
            refusal = Unauthenticated(f"the token may not be used from {host or 'there'}")
            audit.refused(entry.method.path, str(refusal), host=host, identity=identity)
            raise refusal


def _host_of(context: _Context) -> str:
    """Return the IP address of the caller; empty if it has none."""
    kind, _, place = context.peer().partition(":")
    return unquote(place.rpartition(":")[0]).strip("[]") if kind in ("ipv4", "ipv6") else ""


def _names_of(context: _Context) -> Collection[str]:
    names = context.auth_context().get("x509_subject_alternative_name", ())
    return frozenset(name.decode("ascii", "replace") for name in names)


async def _received(requests: _Requests, method: Method[Request, Reply], timeout_s: float) -> bytes:
    """Return the one request of a call. Raises: Timeout, InvalidArgument if there is none."""
    # It is not cancelled at the time limit: gRPC still writes to what it has asked for, until the call has ended.
    reading = asyncio.ensure_future(anext(requests, None))
    reading.add_done_callback(_retrieve)
    await asyncio.wait((reading,), timeout=timeout_s)
    if not reading.done():
        raise Timeout(f"{method.path}: no request within {timeout_s:g} s")
    payload = reading.result()
    if payload is None:
        raise InvalidArgument(f"{method.path}: the request is missing")
    return payload


def _retrieve(reading: "asyncio.Future[bytes | None]") -> None:
    """Take the error of a read that is not awaited any more."""
    if not reading.cancelled():
        reading.exception()


def _parse(method: Method[Request, Reply], payload: bytes) -> Request:
    try:
        return method.request.FromString(payload)
    except DecodeError as error:
        raise InvalidArgument(f"{method.path}: the request cannot be read") from error


async def _abort(context: _Context, error: Exception) -> NoReturn:
    if isinstance(error, Error):
        message = wire_errors.encode(error)
    else:
        log.error("grpc: a call failed", exc_info=error)
        message = wire_errors.unexpected()
    status = grpc.StatusCode[wire_errors.STATUS.get(message.code, "INTERNAL")]
    await context.abort(status, message.message, ((wire_errors.TRAILER, message.SerializeToString()),))
    raise AssertionError("abort raises")


def _error(
    error: "grpc.RpcError | grpc.aio.AioRpcError",
    address: str,
    timeout_s: float | None,
    tls: Tls | None,
) -> Error:
    """Return what a failed call means. Both kinds of gRPC error have these three methods."""
    assert isinstance(error, grpc.Call | grpc.aio.AioRpcError), "every failed call is one"
    # Both kinds have pairs, which the stubs of one of them do not say; a name in -bin has bytes.
    trailers = cast("Iterable[tuple[str, bytes]]", error.trailing_metadata() or ())
    for name, value in trailers:
        if name == wire_errors.TRAILER:
            return wire_errors.decode_bytes(value)
    if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED and timeout_s is not None:
        return Timeout(
            f"{address}: no answer within {timeout_s:g} s; it is overloaded, hangs or cannot be reached"
        )
    details = error.details() or ""
    return wire_errors.from_status(error.code(), details + _advice(details, tls), address=address)


def _advice(details: str, tls: Tls | None) -> str:
    """Return what to do about a handshake that failed. gRPC says why in its text alone; nothing is decided by it."""
    if "failed to connect" not in details:
        return ""
    if tls is None:
        if "Socket closed" not in details:
            return ""
        return (
            " (a service of several machines wants TLS: use --data on one of them, or --token-file with a token that "
            "`luciola token create` of this release made there)"
        )
    for found, advice in _ADVICE.items():
        if found in details:
            return f" ({advice})"
    return ""


# In this order: the first that is found counts.
_ADVICE: Final = {
    "WRONG_VERSION_NUMBER": "what answers there does not speak TLS: a service that was started without the cluster's "
    "certificates, of an earlier release, or no service",
    "certificate has expired": "its certificate has expired: run `luciola certificate renew` there",
    "CERTIFICATE_VERIFY_FAILED": "its certificate is not of this cluster's authority, but of another one's",
    "Hostname Verification": "its certificate is of another role or another machine of this cluster",
    "Socket closed": "it may have refused this machine's certificate: `luciola certificate show` says whether that is "
    "valid",
}


def _headers(token: TokenSource) -> tuple[tuple[str, str], ...]:
    shown = token if isinstance(token, Token) else token()
    return (("authorization", BEARER + shown.encode()),)


def _check(method: Method[Request, Reply], request: Request) -> None:
    assert type(request) is method.request, f"{method.path} takes {method.request.__name__}"


class RpcClients:
    """Channels to any number of services, one per address, opened when first used. For asyncio.

    Every service that is called sees the token: who holds the secret gives a `Minter` of tokens that soon expire.
    With `tls` each channel is for one service at one address, whose certificate says that it is that.
    """

    def __init__(self, token: TokenSource, *, tls: Tls | None = None, connect_s: float = CONNECT_S) -> None:
        self._token = token
        self._tls = tls
        self._options = _channel_options(connect_s)
        self._channels: dict[tuple[str, str], _Channel] = {}
        self._retired: list[grpc.aio.Channel] = []
        self._services: dict[str, Endpoints] = {}

    async def call(
        self,
        address: str,
        method: Method[Request, Reply],
        request: Request,
        *,
        timeout_s: float = DEFAULT_TIMEOUT_S,
    ) -> Reply:
        """Return the reply of the service at `address`, which may be several (`failover`).

        What a standby refuses is sent on; after any other failure it is the caller's to call again, and the call then
        goes to the next address. Raises: Timeout, Unavailable, or what the service raised.
        """
        assert not method.streams, f"{method.path} is a stream"
        assert timeout_s >= 0, f"{method.path}: a deadline is not negative"
        _check(method, request)
        endpoints = self._service(address)
        begun_s, rest_s = monotonic(), timeout_s
        for left in reversed(range(len(endpoints))):
            current = endpoints.current
            try:
                return await self._call(current, method, request, timeout_s=rest_s)
            except Error as error:
                endpoints.failed(current, error)
                if not left or not was_refused(error):
                    raise
            rest_s = max(0.0, begun_s + timeout_s - monotonic())
        raise AssertionError("the last attempt returns or raises")

    async def _call(
        self, address: str, method: Method[Request, Reply], request: Request, *, timeout_s: float
    ) -> Reply:
        invoke = self._channel(address, method.service).unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        try:
            reply: Reply = await invoke(request, timeout=timeout_s, metadata=_headers(self._token))
        except grpc.aio.AioRpcError as error:
            raise _error(error, address, timeout_s, self._tls) from error
        return reply

    async def stream(
        self,
        address: str,
        method: Method[Request, Reply],
        request: Request,
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[Reply]:
        """The replies of a streaming method, as they come, until another address is in use. Raises as `call`."""
        assert method.streams, f"{method.path} is not a stream"
        _check(method, request)
        endpoints = self._service(address)
        current = endpoints.current
        invoke = self._channel(current, method.service).unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        call = invoke(request, timeout=timeout_s, metadata=_headers(self._token))
        leave = endpoints.on_move(call.cancel)  # a process that hangs does not end its streams
        try:
            async for reply in call:
                yield reply
        except grpc.aio.AioRpcError as error:
            failure = _error(error, current, timeout_s, self._tls)
            endpoints.failed(current, failure)
            raise failure from error
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if current == endpoints.current or (task is not None and task.cancelling()):
                raise
            raise Unavailable(f"{current}: another process of this service is in use now") from error
        finally:
            leave()
            call.cancel()

    async def forget(self, address: str) -> None:
        """Close the channels to a service that is gone."""
        self._services.pop(address, None)
        for key in [key for key in self._channels if key[0] == address]:
            await self._channels.pop(key).channel.close(None)

    async def close(self) -> None:
        """Close every channel."""
        channels = [*(each.channel for each in self._channels.values()), *self._retired]
        self._channels, self._retired = {}, []
        await asyncio.gather(*(channel.close(None) for channel in channels))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    def _service(self, addresses: str) -> Endpoints:
        found = self._services.get(addresses)
        if found is None:
            found = self._services[addresses] = Endpoints(addresses)
        return found

    def _channel(self, address: str, service: str) -> grpc.aio.Channel:
        if self._tls is None:
            key = address, ""
            found = self._channels.get(key)
            if found is None:
                parse_address(address)
                channel = grpc.aio.insecure_channel(address, options=self._options)
                found = self._channels[key] = _Channel(channel)
            return found.channel
        key = address, service
        found = self._channels.get(key)
        if found is None or found.material != self._tls.current():
            if found is not None:
                self._retired.append(found.channel)  # its calls end in their own time
            options = _protected(self._options, self._tls, service, address)
            material, credentials = self._tls.channel()
            channel = grpc.aio.secure_channel(address, credentials, options=options)
            found = self._channels[key] = _Channel(channel, material)
        return found.channel


class _Channel(NamedTuple):
    """`material`: the certificates that it was made with."""

    channel: grpc.aio.Channel
    material: Material | None = None


class RpcClient(Closing):
    """A blocking client of one service, for commands and tests."""

    def __init__(self, address: str, token: TokenSource, *, tls: Tls | None = None) -> None:
        parse_address(address)
        self.address: Final = address
        self._token = token
        self._tls = tls
        self._channels: dict[str, grpc.Channel] = {}  # one, or with TLS one for each gRPC service there

    def call(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float = DEFAULT_TIMEOUT_S
    ) -> Reply:
        """Return the service's reply. Raises: Timeout, Unavailable, or what the service raised."""
        assert not method.streams, f"{method.path} is a stream"
        _check(method, request)
        invoke = self._channel(method.service).unary_unary(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        try:
            reply: Reply = invoke(request, timeout=timeout_s, metadata=_headers(self._token))
        except grpc.RpcError as error:
            raise _error(error, self.address, timeout_s, self._tls) from error
        return reply

    def stream(
        self, method: Method[Request, Reply], request: Request, *, timeout_s: float | None = None
    ) -> "Iterable[Reply]":
        """The replies of a streaming method, as they come. Raises as `call`."""
        assert method.streams, f"{method.path} is not a stream"
        _check(method, request)
        invoke = self._channel(method.service).unary_stream(
            method.path,
            request_serializer=method.request.SerializeToString,
            response_deserializer=method.reply.FromString,
        )
        call = invoke(request, timeout=timeout_s, metadata=_headers(self._token))
        try:
            yield from call
        except grpc.RpcError as error:
            raise _error(error, self.address, timeout_s, self._tls) from error
        finally:
            call.cancel()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        """Close the channel."""
        for channel in self._channels.values():
            channel.close()
        self._channels.clear()

    def _channel(self, service: str) -> grpc.Channel:
        options, tls = _channel_options(CONNECT_S), self._tls
        key = "" if tls is None else service
        channel = self._channels.get(key)
        if channel is None and tls is None:
            channel = self._channels[key] = grpc.insecure_channel(self.address, options=options)
        elif channel is None and tls is not None:
            _, credentials = tls.channel()
            options = _protected(options, tls, service, self.address)
            channel = self._channels[key] = grpc.secure_channel(self.address, credentials, options=options)
        assert channel is not None, "made above"
        return channel


__all__ = ["MESSAGE_BYTES_MAX", "RpcClient", "RpcClients", "RpcServer", "TokenSource", "caller_names"]
