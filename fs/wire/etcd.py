"""A client of etcd (3.4 and later): transactions, watches, passwords, TLS, and another member when one fails.

    async with EtcdClient(EtcdOptions(("10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"))) as client:
        reply = await client.range(b"key", limit=1)
        async with aclosing(client.watch(b"key", b"key0", start=reply.header.revision + 1)) as replies:
            async for reply in replies: ...

Each call is sent to one member, once. After a failure the next call goes to the next member; whether a call may be
repeated is for the caller to say, since only it knows what a second execution would do. A write whose answer was lost
raises MaybeCommitted: etcd may still execute it, at any time. A call that no member could be reached for raises
Unavailable, and has not been sent.
"""

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Generic, Self, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from ..errors import (
    ConfigError,
    Error,
    InvalidArgument,
    MaybeCommitted,
    NoSpace,
    NotFound,
    PermissionDenied,
    Timeout,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from . import grpc_fork  # noqa: F401 (for what it does)
from .addresses import parse_address
from .pb import etcd_pb2 as pb

log = logging.getLogger(__name__)

ENDPOINTS_MAX: Final = 16  # etcd's own advice is at most seven members
REQUEST_S: Final = 2.0  # for one attempt: etcd elects a leader within one or two seconds
CONNECT_S: Final = 1.0  # for one member's connection, before the next one is tried
MESSAGE_BYTES_MAX: Final = 64 << 20  # 32 records of 1 MiB, and as much again
KEEPALIVE_MS: Final = 10_000  # etcd closes the connections of clients that ask more often than every 5 s

_CHANNEL: Final = (
    ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
    ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
    ("grpc.keepalive_time_ms", KEEPALIVE_MS),
    ("grpc.keepalive_timeout_ms", KEEPALIVE_MS // 4),
    ("grpc.enable_http_proxy", 0),
    ("grpc.enable_retries", 0),  # an attempt is one attempt
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.min_reconnect_backoff_ms", round(CONNECT_S * 1000)),
    ("grpc.use_local_subchannel_pool", 1),
)

# Texts that etcd's own clients compare with, since several errors share a status (api/v3rpc/rpctypes/error.go).
_NO_SPACE: Final = "etcdserver: mvcc: database space exceeded"
_STALE_TOKEN: Final = ("etcdserver: invalid auth token", "etcdserver: revision of auth store is old")
_COMPACTED: Final = "etcdserver: mvcc: required revision has been compacted"

# A status that etcd gives before it executes anything: the call had no effect.
_REFUSED: Final[dict[grpc.StatusCode, type[Error]]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.UNAUTHENTICATED: Unauthenticated,
    grpc.StatusCode.RESOURCE_EXHAUSTED: Unavailable,  # too many requests wait, or an answer is too large
    grpc.StatusCode.OUT_OF_RANGE: NotFound,  # of a revision
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.UNIMPLEMENTED: Unsupported,
}


class Compacted(NotFound):
    """The revision is not kept any more."""


Reply = TypeVar("Reply", bound=Message)


@dataclass(frozen=True, slots=True)
class _Method(Generic[Reply]):
    """One of etcd's methods: where it is, and how its answers are read."""

    path: str
    parse: Callable[[bytes], Reply]


_RANGE: Final = _Method("/etcdserverpb.KV/Range", pb.RangeResponse.FromString)
_TXN: Final = _Method("/etcdserverpb.KV/Txn", pb.TxnResponse.FromString)
_DELETE: Final = _Method("/etcdserverpb.KV/DeleteRange", pb.DeleteRangeResponse.FromString)
_COMPACT: Final = _Method("/etcdserverpb.KV/Compact", pb.CompactionResponse.FromString)
_STATUS: Final = _Method("/etcdserverpb.Maintenance/Status", pb.StatusResponse.FromString)
_ALARM: Final = _Method("/etcdserverpb.Maintenance/Alarm", pb.AlarmResponse.FromString)
_DEFRAGMENT: Final = _Method("/etcdserverpb.Maintenance/Defragment", pb.DefragmentResponse.FromString)


@dataclass(frozen=True, slots=True)
class EtcdOptions:
    """How to reach etcd. With `ca` connections use TLS; `certificate` and `key` are this client's own, if any."""

    endpoints: tuple[str, ...]
    ca: Path | None = None
    certificate: Path | None = None
    key: Path | None = None
    user: str = ""
    password: str = ""

    def __post_init__(self) -> None:
        if not 0 < len(self.endpoints) <= ENDPOINTS_MAX:
            raise ConfigError(f"etcd.endpoints: 1 to {ENDPOINTS_MAX} addresses are needed")
        for endpoint in self.endpoints:
            parse_address(endpoint)
        if (self.certificate is None) != (self.key is None):
            raise ConfigError("etcd.certificate and etcd.key: one is of no use without the other")
        if self.certificate is not None and self.ca is None:
            raise ConfigError("etcd.ca: a certificate of the client needs TLS, which needs this")

    def credentials(self) -> grpc.ChannelCredentials | None:
        """Return what connections are secured with, if they are. Raises: ConfigError."""
        if self.ca is None:
            return None
        try:
            return grpc.ssl_channel_credentials(
                root_certificates=self.ca.read_bytes(),
                private_key=self.key.read_bytes() if self.key else None,
                certificate_chain=self.certificate.read_bytes() if self.certificate else None,
            )
        except OSError as error:
            raise ConfigError(f"etcd: a file for TLS cannot be read: {error}") from error


class EtcdClient:
    """Connections to the members of one etcd, opened when first used."""

    def __init__(self, options: EtcdOptions, *, request_s: float = REQUEST_S) -> None:
        self._options = options
        self._request_s = request_s
        self._credentials = options.credentials()
        self._channels: dict[str, grpc.aio.Channel] = {}
        self._at = 0  # the member that is asked: an index of the endpoints
        self._token: str | None = None
        self._renewing = asyncio.Lock()

    async def range(self, begin: bytes, end: bytes = b"", *, limit: int) -> pb.RangeResponse:
        """Return a key's pair, or the first `limit` with begin <= key < end, in order."""
        return await self._call(_RANGE, pb.RangeRequest(key=begin, range_end=end, limit=limit))

    async def transact(
        self,
        compare: Sequence[pb.Compare],
        success: Sequence[pb.RequestOp],
        failure: Sequence[pb.RequestOp] = (),
    ) -> pb.TxnResponse:
        """Execute `success` if every comparison is true, else `failure`. Raises: NoSpace; MaybeCommitted if one puts
        or deletes."""
        request = pb.TxnRequest(compare=compare, success=success, failure=failure)
        writes = any(op.WhichOneof("request") != "request_range" for op in (*success, *failure))
        return await self._call(_TXN, request, writes=writes)

    async def delete(self, begin: bytes, end: bytes) -> pb.DeleteRangeResponse:
        """Delete the keys with begin <= key < end. Raises: MaybeCommitted."""
        request = pb.DeleteRangeRequest(key=begin, range_end=end)
        return await self._call(_DELETE, request, writes=True)

    async def compact(self, revision: int) -> None:
        """Forget what keys were before `revision`. Done twice it does nothing."""
        request = pb.CompactionRequest(revision=revision)
        try:
            await self._call(_COMPACT, request)
        except Compacted:
            log.debug("etcd has been compacted beyond revision %d", revision)

    async def watch(self, begin: bytes, end: bytes, *, start: int) -> AsyncGenerator[pb.WatchResponse]:
        """Yield what happens to begin <= key < end from revision `start` on; the first reply comes at once, without
        events.

        Raises: Compacted if that revision is not kept; Unavailable when the member fails or has lost the others.
        """
        endpoint, channel = await self._connected()
        invoke = channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=pb.WatchRequest.SerializeToString,
            response_deserializer=pb.WatchResponse.FromString,
        )
        metadata = (*await self._metadata(), ("hasleader", "true"))  # without a leader it would say nothing
        call = invoke(request_iterator=None, metadata=metadata)
        create = pb.WatchCreateRequest(key=begin, range_end=end, start_revision=start, fragment=True)
        try:
            await call.write(pb.WatchRequest(create_request=create))
            async for reply in call:
                if reply.canceled:
                    raise self._canceled(reply, endpoint)
                yield reply
            raise Unavailable(f"etcd at {endpoint} ended a watch")
        except grpc.aio.AioRpcError as error:
            self._leave(endpoint)
            self._forget_token(error)
            raise Unavailable(f"etcd at {endpoint} ended a watch: {error.details()}") from error
        finally:
            call.cancel()

    async def status(self, endpoint: str) -> pb.StatusResponse:
        """Return what the member at `endpoint` says of itself."""
        return await self._call(_STATUS, pb.StatusRequest(), endpoint=endpoint)

    async def alarms(self) -> Sequence[pb.AlarmMember]:
        """Return the alarms that are raised: a full member refuses all puts to the whole etcd."""
        reply = await self._call(_ALARM, pb.AlarmRequest())
        return tuple(reply.alarms)

    async def disarm(self, alarm: pb.AlarmMember) -> None:
        """End an alarm: its cause has been removed."""
        request = pb.AlarmRequest(
            action=pb.AlarmRequest.DEACTIVATE, member_id=alarm.member_id, alarm=alarm.alarm
        )
        await self._call(_ALARM, request)

    async def defragment(self, endpoint: str, *, timeout_s: float = 60.0) -> None:
        """Give the free space of a member's file back; it serves nothing meanwhile."""
        await self._call(
            _DEFRAGMENT,
            pb.DefragmentRequest(),
            endpoint=endpoint,
            timeout_s=timeout_s,
        )

    async def close(self) -> None:
        """Close every connection."""
        channels, self._channels = list(self._channels.values()), {}
        await asyncio.gather(*(channel.close(None) for channel in channels))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.close()

    async def _call(
        self,
        method: _Method[Reply],
        request: Message,
        *,
        writes: bool = False,
        endpoint: str | None = None,
        timeout_s: float | None = None,
    ) -> Reply:
        """Send one request to one member. A token that has expired is renewed, and the request sent again."""
        for attempt in (1, 2):
            asked, channel = await self._connected(endpoint)
            invoke = channel.unary_unary(
                method.path,
                request_serializer=type(request).SerializeToString,
                response_deserializer=method.parse,
            )
            metadata = await self._metadata()
            limit_s = timeout_s or self._request_s
            try:
                reply: Reply = await invoke(request, timeout=limit_s, metadata=metadata)
            except grpc.aio.AioRpcError as error:
                if self._forget_token(error) and attempt == 1:
                    continue
                self._leave(asked)
                raise _error(error, asked, writes=writes) from error
            except asyncio.CancelledError:  # the caller had no patience with this member
                self._leave(asked)
                raise
            return reply
        raise AssertionError("the second attempt returns or raises")

    # Members.

    async def _connected(self, endpoint: str | None = None) -> tuple[str, grpc.aio.Channel]:
        """Return a member that is connected, the present one if it is. Raises: Unavailable; nothing was sent."""
        for _ in self._options.endpoints:
            asked = endpoint or self._options.endpoints[self._at]
            channel = self._channel(asked)
            if channel.get_state(try_to_connect=True) is grpc.ChannelConnectivity.READY:
                return asked, channel
            try:
                async with asyncio.timeout(CONNECT_S):
                    await channel.channel_ready()
            except TimeoutError:
                self._leave(asked)
            except asyncio.CancelledError:
                self._leave(asked)
                raise
            else:
                return asked, channel
            if endpoint is not None:
                break
        raise Unavailable(f"etcd cannot be reached at {endpoint or ', '.join(self._options.endpoints)}")

    def _channel(self, endpoint: str) -> grpc.aio.Channel:
        channel = self._channels.get(endpoint)
        if channel is None:
            if self._credentials is None:
                channel = grpc.aio.insecure_channel(endpoint, options=_CHANNEL)
            else:
                channel = grpc.aio.secure_channel(endpoint, self._credentials, options=_CHANNEL)
            self._channels[endpoint] = channel
        return channel

    def _leave(self, endpoint: str) -> None:
        """Ask the next member from now on, if `endpoint` is the one that is asked."""
        endpoints = self._options.endpoints
        if endpoints[self._at] == endpoint:
            self._at = (self._at + 1) % len(endpoints)

    def _canceled(self, reply: pb.WatchResponse, endpoint: str) -> Error:
        if reply.compact_revision:
            return Compacted(f"etcd has forgotten what was before revision {reply.compact_revision}")
        self._leave(endpoint)
        self._token = None  # it may be the reason; a new one costs little
        return Unavailable(f"etcd at {endpoint} ended a watch: {reply.cancel_reason}")

    # Passwords.

    async def _metadata(self) -> tuple[tuple[str, str], ...]:
        if not self._options.user:
            return ()
        async with self._renewing:
            if self._token is None:
                self._token = await self._authenticate()
            return (("token", self._token),)

    async def _authenticate(self) -> str:
        """Return a new token. Raises: Unauthenticated."""
        endpoint, channel = await self._connected()
        invoke = channel.unary_unary(
            "/etcdserverpb.Auth/Authenticate",
            request_serializer=pb.AuthenticateRequest.SerializeToString,
            response_deserializer=pb.AuthenticateResponse.FromString,
        )
        request = pb.AuthenticateRequest(name=self._options.user, password=self._options.password)
        try:
            reply: pb.AuthenticateResponse = await invoke(request, timeout=self._request_s)
        except grpc.aio.AioRpcError as error:
            self._leave(endpoint)
            found = _error(error, endpoint, writes=False)
            if isinstance(found, InvalidArgument):
                raise Unauthenticated(f"etcd refuses the user {self._options.user!r}: {found}") from error
            raise found from error
        return reply.token

    def _forget_token(self, error: grpc.aio.AioRpcError) -> bool:
        """Whether the call failed for a token that is not valid any more; the next call gets a new one."""
        if not self._options.user or error.details() not in _STALE_TOKEN:
            return False
        self._token = None
        return True


def _error(error: grpc.aio.AioRpcError, endpoint: str, *, writes: bool) -> Error:
    """Return what a failed call means."""
    details = error.details() or error.code().name
    text = f"etcd at {endpoint}: {details}"
    if details == _NO_SPACE:
        return NoSpace(text)
    if details == _COMPACTED:
        return Compacted(text)
    refusal = _REFUSED.get(error.code())
    if refusal is not None:
        return refusal(text)
    if writes:
        return MaybeCommitted(text)
    return Timeout(text) if error.code() is grpc.StatusCode.DEADLINE_EXCEEDED else Unavailable(text)


def read(key: bytes) -> pb.RequestOp:
    """Return the operation that reads a key."""
    return pb.RequestOp(request_range=pb.RangeRequest(key=key))


def put(key: bytes, value: bytes) -> pb.RequestOp:
    """Return the operation that sets a key."""
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value))


def delete(key: bytes, end: bytes = b"") -> pb.RequestOp:
    """Return the operation that deletes a key, or with `end` those with key <= k < end."""
    return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key, range_end=end))


def created_at(key: bytes, revision: int) -> pb.Compare:
    """Return the condition that the key was created at `revision`; with 0, that it does not exist."""
    return pb.Compare(target=pb.Compare.CREATE, key=key, create_revision=revision)


def changed_at(key: bytes, revision: int) -> pb.Compare:
    """Return the condition that the key was changed last at `revision`."""
    return pb.Compare(target=pb.Compare.MOD, key=key, mod_revision=revision)


def has_value(key: bytes, value: bytes) -> pb.Compare:
    """Return the condition that the key exists and has `value`."""
    return pb.Compare(target=pb.Compare.VALUE, key=key, value=value)


__all__ = [
    "REQUEST_S",
    "Compacted",
    "EtcdClient",
    "EtcdOptions",
    "changed_at",
    "created_at",
    "delete",
    "has_value",
    "put",
    "read",
]
