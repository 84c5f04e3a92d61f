import asyncio
import contextlib
import gc
import socket
import time
import weakref

import grpc
import pytest

from child_process import Child
from luciola.errors import (
    Error,
    InvalidArgument,
    NotFound,
    PermissionDenied,
    Timeout,
    Unauthenticated,
    Unavailable,
    Unsupported,
)
from luciola.wire import RpcClient, RpcClients, RpcServer, methods
from luciola.wire.credentials import ADMIN, CLIENT, SERVICE, SERVICE_TOKEN_S, Minter, Token, mint, verify
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import ListRequest, LookupRequest, RmdirRequest, ScanRequest, StatRequest

from .service import SECRET, Service, bound

TOKEN = mint(SECRET, role=ADMIN, uid=42, gid=42, groups=())
LOOKUP = LookupRequest(parent=7, name=b"\xff\x00name")


def run(test, **limits):
    """Runs `test(address, service, clients)` beside a server."""

    async def main() -> None:
        service = Service()
        server = RpcServer(bound(service), secret=SECRET, **limits)
        address = await server.start()
        try:
            async with RpcClients(TOKEN) as clients:
                await test(address, service, clients)
        finally:
            service.gate.set()
            await server.stop(grace_s=1)

    asyncio.run(main())


def test_request_and_reply_travel_whole():
    async def test(address, _, clients):
        inode = (await clients.call(address, methods.Meta.lookup, LOOKUP)).inode
        assert (inode.id, inode.name, inode.uid) == (7, b"\xff\x00name", 42)

    run(test)


class Listener(grpc.GenericRpcHandler):
    """A stranger on a service's port: it records the credentials of callers, and refuses them."""

    def __init__(self) -> None:
        self.recorded = []

    def service(self, call):
        self.recorded += [value for name, value in call.invocation_metadata if name == "authorization"]


def test_token_that_a_service_shows_to_a_listener_soon_expires():
    async def test(address, *_):
        listener = Listener()
        server = grpc.aio.server()
        server.add_generic_rpc_handlers((listener,))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        now = [time.time()]
        async with RpcClients(Minter(SECRET, role=SERVICE, now_unix_s=lambda: now[0])) as services:
            with pytest.raises(Unsupported):
                await services.call(f"127.0.0.1:{port}", methods.Meta.lookup, LOOKUP)
            await server.stop(0)
            captured = Token.parse(listener.recorded[0].removeprefix("Bearer "))
            assert verify(SECRET, captured).role == SERVICE
            with pytest.raises(Unauthenticated, match="expired"):
                verify(SECRET, captured, now_unix_s=now[0] + SERVICE_TOKEN_S)
            # A token of long ago is refused; the service renews its own.
            now[0] -= 2 * SERVICE_TOKEN_S
            with pytest.raises(Unauthenticated, match="expired"):
                await services.call(address, methods.Meta.lookup, LOOKUP)
            now[0] += 2 * SERVICE_TOKEN_S
            assert await services.call(address, methods.Meta.lookup, LOOKUP)

    run(test)


def test_blocking_client_does_the_same():
    async def test(address, *_):
        def blocking() -> None:
            with RpcClient(address, TOKEN) as client:
                assert client.call(methods.Meta.lookup, LOOKUP).inode.id == 7
                with pytest.raises(NotFound) as caught:
                    client.call(methods.Meta.stat, StatRequest())
                assert caught.value.filename == "/no/such"
                items = []
                with pytest.raises(NotFound, match="the end"):
                    items.extend(client.stream(methods.Meta.scan_inodes, ScanRequest(limit=3)))

        await asyncio.to_thread(blocking)

    run(test)


def test_error_arrives_as_the_class_that_was_raised():
    async def test(address, _, clients):
        with pytest.raises(NotFound, match="no such file") as caught:
            await clients.call(address, methods.Meta.stat, StatRequest())
        assert (caught.value.errno, caught.value.filename, caught.value.fields) == (
            2,
            "/no/such",
            {"inode": "5"},
        )

    run(test)


def test_exception_in_a_handler_is_eio_for_its_caller_only(caplog):
    async def test(address, _, clients):
        with pytest.raises(Error, match="internal error") as caught:
            await clients.call(address, methods.Meta.rmdir, RmdirRequest())
        assert type(caught.value) is Error
        assert (await clients.call(address, methods.Meta.lookup, LOOKUP)).inode.id == 7

    run(test)
    assert "ZeroDivisionError" in caplog.text


def test_stream_brings_its_items_then_its_error():
    async def test(address, service, clients):
        stream = clients.stream(address, methods.Meta.scan_inodes, ScanRequest(limit=4))
        items = [(await anext(stream)).id for _ in range(4)]
        with pytest.raises(NotFound, match="the end"):
            await anext(stream)
        assert items == [0, 1, 2, 3]
        assert service.closed_streams == 1

    run(test)


@pytest.mark.parametrize(
    "token",
    [mint(bytes(32), role=ADMIN), Token(TOKEN.claims + b"\x08\x03", TOKEN.key), mint(SECRET, lifetime_s=-10)],
)
def test_false_and_expired_tokens_are_refused_before_the_handler(token):
    async def test(address, service, _):
        async with RpcClients(token) as clients:
            with pytest.raises(Unauthenticated):
                await clients.call(address, methods.Meta.lookup, LOOKUP)
            with pytest.raises(Unauthenticated):
                async for _ in clients.stream(address, methods.Meta.scan_inodes, ScanRequest(limit=1)):
                    pass
        assert service.calls == 0
        assert service.closed_streams == 0

    run(test)


@pytest.mark.parametrize(
    "metadata",
    [
        (),
        (("authorization", ""),),
        (("authorization", "Bearer "),),
        (("authorization", "Bearer x.y"),),
        (("authorization", TOKEN.encode()),),
        (("authorization", "Basic " + TOKEN.encode()),),
    ],
)
def test_headers_without_a_bearer_token_are_refused(metadata):
    async def test(address, service, _):
        async with grpc.aio.insecure_channel(address) as channel:
            for path in (methods.Meta.lookup.path, "/luciola.Meta/Nothing", "/grpc.health.v1.Health/Check"):
                with pytest.raises(grpc.aio.AioRpcError) as caught:
                    await channel.unary_unary(path)(LOOKUP.SerializeToString(), metadata=metadata)
                assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        assert service.calls == 0

    run(test)


def test_method_of_a_higher_role_is_refused():
    async def test(address, service, _):
        async with RpcClients(mint(SECRET, role=CLIENT)) as clients:
            with pytest.raises(PermissionDenied):
                await clients.call(address, methods.Meta.status, Empty())
            with pytest.raises(PermissionDenied):
                async for _ in clients.stream(address, methods.Meta.scan_inodes, ScanRequest(limit=1)):
                    pass
            await clients.call(address, methods.Meta.lookup, LOOKUP)
        assert service.closed_streams == 0

    run(test)


def test_service_that_is_not_served_is_unsupported():
    async def test(address, _, clients):
        with pytest.raises(Unsupported):
            await clients.call(address, methods.Storage.space, Empty())

    run(test)


def test_payload_that_is_no_message_is_an_invalid_argument():
    async def test(address, *_):
        async with grpc.aio.insecure_channel(address) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(methods.Meta.lookup.path)(
                    b"\xff\xff\xff", metadata=(("authorization", "Bearer " + TOKEN.encode()),)
                )
            assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT

    run(test)


def test_message_above_the_limit_is_refused_and_the_server_lives():
    async def test(address, service, clients):
        with pytest.raises(Error):
            await clients.call(address, methods.Meta.lookup, LookupRequest(name=b"n" * (17 << 20)))
        assert service.calls == 0
        assert (await clients.call(address, methods.Meta.lookup, LOOKUP)).inode.id == 7

    run(test)


def test_garbage_on_the_port_affects_no_other_connection():
    async def test(address, _, clients):
        host, _, port = address.rpartition(":")

        def babble() -> None:
            for garbage in (
                b"\0" * 100,
                b"GET / HTTP/1.1\r\n\r\n",
                b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\xff" * 99,
            ):
                with socket.create_connection((host, int(port)), timeout=60) as raw:
                    raw.sendall(garbage)

        await asyncio.to_thread(babble)
        assert (await clients.call(address, methods.Meta.lookup, LOOKUP)).inode.id == 7

    run(test)


async def never():
    """A request that does not come."""
    await asyncio.Event().wait()
    yield b""


async def attempt(address, path, requests, *, metadata=()):
    """One call that sends `requests` as they come; the status of its refusal."""
    async with grpc.aio.insecure_channel(address) as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.stream_unary(path)(requests, metadata=metadata)
        return caught.value.code()


BEARER = (("authorization", "Bearer " + TOKEN.encode()),)
EITHER = pytest.mark.parametrize("path", [methods.Meta.lookup.path, methods.Meta.scan_inodes.path])


@EITHER
def test_strangers_are_refused_before_their_request_comes(path):
    async def test(address, *_):
        assert await attempt(address, path, never()) == grpc.StatusCode.UNAUTHENTICATED

    run(test, request_s=3600)


@EITHER
def test_a_request_that_does_not_come_is_not_waited_for(path):
    async def test(address, service, clients):
        assert await attempt(address, path, never(), metadata=BEARER) == grpc.StatusCode.DEADLINE_EXCEEDED
        assert service.calls == service.closed_streams == 0
        assert (await clients.call(address, methods.Meta.lookup, LOOKUP)).inode.id == 7

    run(test, request_s=1.0)


@EITHER
def test_a_call_without_a_request_is_an_invalid_argument(path):
    async def nothing():
        for payload in ():
            yield payload

    async def test(address, *_):
        assert await attempt(address, path, nothing(), metadata=BEARER) == grpc.StatusCode.INVALID_ARGUMENT

    run(test)


@pytest.mark.parametrize("algorithm", [grpc.Compression.Gzip, grpc.Compression.Deflate])
@pytest.mark.parametrize("size", [8 << 20, 64 << 20])
def test_a_compressed_request_is_not_inflated(algorithm, size):
    async def zeros():
        yield LookupRequest(name=bytes(size)).SerializeToString()

    async def test(address, service, clients):
        options = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(address, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.stream_unary(methods.Meta.lookup.path)(
                    zeros(), metadata=BEARER, compression=algorithm
                )
            assert caught.value.code() == grpc.StatusCode.UNIMPLEMENTED, "from its headers"
        assert service.calls == 0
        assert (await clients.call(address, methods.Meta.lookup, LOOKUP)).inode.id == 7

    run(test)


def test_a_connection_that_does_not_speak_is_closed():
    async def test(address, *_):
        reader, writer = await asyncio.open_connection(*address.split(":"))
        await reader.read()  # until the server ends it
        writer.close()

    run(test, handshake_s=0.1)


def test_call_times_out():
    async def test(address, _, clients):
        with pytest.raises(Timeout):
            await clients.call(address, methods.Meta.list, ListRequest(), timeout_s=0.1)

    run(test)


def test_absent_service_is_unavailable():
    async def main() -> None:
        with socket.create_server(("127.0.0.1", 0)) as unused:
            address = f"127.0.0.1:{unused.getsockname()[1]}"
        async with RpcClients(TOKEN) as clients:
            with pytest.raises(Unavailable, match=address):
                await clients.call(address, methods.Meta.lookup, LOOKUP)
            await clients.forget(address)

    asyncio.run(main())


class Tardy:
    """Stands before a service and lets connections wait before they reach it, as an overloaded machine does."""

    def __init__(self, address, wait_s):
        self.address, self.wait_s, self.tasks = address, wait_s, []

    async def __aenter__(self):
        self._server = await asyncio.start_server(self._pass_on, "127.0.0.1", 0)
        host, port = self._server.sockets[0].getsockname()
        return f"{host}:{port}"

    async def __aexit__(self, *_):
        self._server.close()
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)

    async def _pass_on(self, reader, writer):
        self.tasks.append(asyncio.current_task())
        with contextlib.closing(writer):
            await asyncio.sleep(self.wait_s)
            far_reader, far_writer = await asyncio.open_connection(*self.address.split(":"))
            with contextlib.closing(far_writer):
                await asyncio.gather(self._copy(reader, far_writer), self._copy(far_reader, writer))

    async def _copy(self, source, target):
        while data := await source.read(65536):
            target.write(data)


def test_a_server_that_is_late_to_greet_is_waited_for():
    async def test(address, _, clients):
        tardy = Tardy(address, wait_s=1.5)
        async with tardy as late:
            reply = await clients.call(late, methods.Meta.lookup, LOOKUP, timeout_s=60)
            assert reply.inode.id == 7
            await clients.forget(late)
        assert len(tardy.tasks) == 1, "the first connection was good"

    run(test)


def test_a_server_that_never_greets_is_named_with_the_time_it_had():
    async def test(address, _, clients):
        async with Tardy(address, wait_s=3600) as never:
            with pytest.raises(Timeout, match=rf"{never}: no answer within 0\.5 s"):
                await clients.call(never, methods.Meta.lookup, LOOKUP, timeout_s=0.5)

    run(test)


def test_a_server_that_never_greets_is_not_waited_for_as_long_as_the_call_may_take():
    async def test(address, *_):
        async with (
            Tardy(address, wait_s=3600) as never,
            RpcClients(TOKEN, connect_s=0.5) as clients,
        ):
            with pytest.raises(Unavailable, match=f"{never}: no service there, or it does not answer"):
                await clients.call(never, methods.Meta.lookup, LOOKUP, timeout_s=3600)

    run(test)


def test_port_in_use_is_unavailable():
    async def test(address, *_):
        second = RpcServer(bound(Service()), secret=SECRET)
        with pytest.raises(Unavailable, match="cannot listen"):
            await second.start(port=int(address.rpartition(":")[2]))

    run(test)


def test_bad_address_is_an_invalid_argument():
    async def main() -> None:
        async with RpcClients(TOKEN) as clients:
            with pytest.raises(InvalidArgument):
                await clients.call("nowhere", methods.Meta.lookup, LOOKUP)
        with pytest.raises(InvalidArgument):
            RpcClient("nowhere", TOKEN)

    asyncio.run(main())


def test_a_forked_child_may_collect_what_its_parent_has_left_of_grpc():
    """To free the last channel is to wait for a thread that a child does not have."""

    async def leave() -> "weakref.ref[grpc.aio.Channel]":
        channel = grpc.aio.insecure_channel("127.0.0.1:1")
        left: list[object] = [channel]
        left.append(left)
        await channel.close()
        return weakref.ref(channel)

    gc.disable()
    try:
        channel = asyncio.run(leave())
        with Child(gc.collect) as child:
            child.result()
        assert channel() is not None, "it was there to be found"
    finally:
        gc.enable()
    gc.collect()
    assert channel() is None
