"""gRPC between machines: who has no certificate, or another one than is expected, gets no further than TLS."""

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable

import grpc
import pytest

from luciola.errors import ConfigError, Unavailable
from luciola.wire import RpcClient, RpcClients, RpcServer, methods
from luciola.wire.credentials import ADMIN, mint
from luciola.wire.pb.meta_pb2 import LookupRequest
from luciola.wire.rpc import caller_names
from luciola.wire.tls import Material, service_name

from .service import SECRET, Service, bound
from .tls_world import CLUSTER, HERE, World, tls

TOKEN = mint(SECRET, role=ADMIN, uid=42, gid=42, groups=())
LOOKUP = LookupRequest(parent=7, name=b"name")
Call = Callable[..., Awaitable[None]]


class Asked(Service):
    """Remembers the names of who called."""

    names = frozenset()

    def lookup(self, request, identity):
        self.names = caller_names()
        return super().lookup(request, identity)


def run(shown: Material | Callable[[], Material], test) -> Asked:
    """Run `test(address)` beside a server that shows this."""

    async def main() -> Asked:
        service = Asked()
        server = RpcServer(bound(service), secret=SECRET, tls=tls(shown))
        address = await server.start()
        try:
            await test(address)
        finally:
            service.gate.set()
            await server.stop(grace_s=1)
        return service

    return asyncio.run(main())


async def call(address: str, material: Material | None, *, timeout_s: float = 10) -> None:
    async with RpcClients(TOKEN, tls=None if material is None else tls(material)) as clients:
        await clients.call(address, methods.Meta.lookup, LOOKUP, timeout_s=timeout_s)


async def refused(address: str, material: Material | None) -> str:
    with pytest.raises(Unavailable) as caught:
        await call(address, material)
    return str(caught.value)


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def test_service_and_caller_know_each_other_by_their_names(world: World):
    async def test(address: str) -> None:
        await call(address, world.machine("storage"))

    names = run(world.machine("meta"), test).names
    assert service_name("storage", HERE, CLUSTER) in names

    def blocking(address: str) -> None:
        with RpcClient(address, TOKEN, tls=tls(world.holder())) as client:
            client.call(methods.Meta.lookup, LOOKUP)

    assert run(world.machine("meta"), lambda address: asyncio.to_thread(blocking, address)).names


def test_certificate_of_another_role_or_machine_is_not_metas(world: World):
    async def test(address: str) -> None:
        assert "another role or another machine" in await refused(address, world.holder())

    run(world.machine("storage", "mgmtd"), test)
    run(world.machine("meta", address="10.0.0.1"), test)


def test_stranger_is_no_service(world: World):
    async def test(address: str) -> None:
        assert "not of this cluster's authority" in await refused(address, world.holder())

    run(World().machine("meta"), test)


def test_stranger_and_who_shows_nothing_get_no_answer(world: World):
    stranger = World().machine("mgmtd", "meta", "storage")
    mixed = Material(CLUSTER, world.issuer.certificate, stranger.key, stranger.certificate)

    async def test(address: str) -> None:
        assert "refused this machine's certificate" in await refused(address, mixed)
        expected = service_name("meta", HERE, CLUSTER)
        bare = grpc.ssl_channel_credentials(world.issuer.certificate)
        options = [("grpc.ssl_target_name_override", expected)]
        async with grpc.aio.secure_channel(address, bare, options=options) as channel:
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await channel.unary_unary(methods.Meta.lookup.path)(b"", timeout=10)
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE

    assert not run(world.machine("meta"), test).names


def test_expired_certificates_open_nothing(world: World):
    expired = world.machine("meta", ago_s=10 * 3600, lifetime_s=3600)

    async def to_expired(address: str) -> None:
        assert "luciola certificate renew" in await refused(address, world.holder())

    run(expired, to_expired)

    async def from_expired(address: str) -> None:
        assert "luciola certificate show" in await refused(address, expired)

    assert not run(world.machine("meta"), from_expired).names


def test_clear_text_and_tls_do_not_meet_and_say_so(world: World):
    async def test(address: str) -> None:
        assert "luciola token create" in await refused(address, None)

    run(world.machine("meta"), test)

    async def main() -> None:
        server = RpcServer(bound(Service()), secret=SECRET)
        try:
            assert "does not speak TLS" in await refused(await server.start(), world.holder())
        finally:
            await server.stop(grace_s=0)

    asyncio.run(main())


def test_address_that_is_a_name_is_refused(world: World):
    with pytest.raises(ConfigError, match="IP addresses"):
        asyncio.run(call("localhost:1", world.holder()))


def test_renewed_certificates_are_used_without_a_restart(world: World):
    shown = [world.machine("meta", ago_s=3598, lifetime_s=3600)]  # it ends in two seconds
    asking = [world.machine("storage", ago_s=3598, lifetime_s=3600)]
    end_s = time.monotonic() + 2.5

    async def test(address: str) -> None:
        async with RpcClients(TOKEN, tls=tls(lambda: asking[0])) as clients:
            await clients.call(address, methods.Meta.lookup, LOOKUP)
            shown[0], asking[0] = world.machine("meta"), world.machine("storage")
            await asyncio.sleep(max(0.0, end_s - time.monotonic()))
            await clients.call(address, methods.Meta.lookup, LOOKUP)  # over a new connection
        await call(address, world.holder())

    run(lambda: shown[0], test)


def test_a_sniffer_sees_no_token(world: World):
    seen = bytearray()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(1 << 16):
            seen.extend(data)
            writer.write(data)
            await writer.drain()
        writer.close()

    async def test(address: str) -> None:
        port = int(address.rpartition(":")[2])

        async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            there, back = await asyncio.open_connection(HERE, port)
            await asyncio.gather(relay(reader, back), relay(there, writer))

        server = await asyncio.start_server(between, HERE, 0)
        async with server:
            await call(f"{HERE}:{server.sockets[0].getsockname()[1]}", world.holder())

    run(world.machine("meta"), test)
    assert len(seen) > 1000
    claims, _, key = TOKEN.encode().partition(".")
    for secret in (claims, key, "authorization", "Lookup"):
        assert secret.encode() not in seen


def test_tls_1_2_is_refused_where_services_run(world: World):
    """In a process that is started as the supervisor starts services."""
    import os
    import sys

    from luciola.cli.supervisor import ONLY_TLS_1_3

    name, _, value = ONLY_TLS_1_3.partition("=")
    program = (
        "import asyncio, sys\n"
        "from unit.wire import test_rpc_tls as t\n"
        "async def test(address):\n"
        "    print(address, flush=True)\n"
        "    await asyncio.to_thread(sys.stdin.read)\n"
        "t.run(t.World().machine('meta'), test)\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program],
        env=os.environ | {name: value, "PYTHONPATH": "tests"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        found = {each: _handshake(address, each) for each in ("-tls1_2", "-tls1_3")}
        process.communicate("", timeout=30)
    assert "Cipher is (NONE)" in found["-tls1_2"]
    assert "TLSv1.3, Cipher is TLS_" in found["-tls1_3"]


def _handshake(address: str, version: str) -> str:
    done = subprocess.run(
        ["openssl", "s_client", "-connect", address, version],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=30,
    )
    return done.stdout
