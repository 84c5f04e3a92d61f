"""A client and the lane of other machines: a sniffer reads nothing, and strangers get nothing."""

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import luciola_core
import pytest

import luciola
from integration.test_late_requests import SECRET, Manager
from luciola.clock import SystemClock, boot_s
from luciola.config import ClientConfig, MetaConfig
from luciola.errors import Unavailable
from luciola.kv import MemoryEngine
from luciola.meta.bootstrap import build
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer
from luciola.wire import TRUSTED, LaneServer, methods, mint
from luciola.wire.addresses import parse_address
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.tls import Material, Tls, encode_holding
from unit.wire.tls_world import HERE, World, tls

CONFIG = ClientConfig(attribute_timeout_ms=0, transport="tcp", deadline_ms=3000)
TOKEN = mint(SECRET, role=TRUSTED)


class Sniffer:
    """Passes bytes between clients and one server, and keeps them. Its address has no Unix socket beside it."""

    def __init__(self, server: str) -> None:
        self._server = parse_address(server)
        self.flips = False  # a bit of each piece from now on
        self._listener: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.seen = bytearray()
        self.address = ""

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, HERE, 0)
        self.address = f"{HERE}:{self._listener.sockets[0].getsockname()[1]}"

    def close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_connection(*self._server)
        self._writers += [writer, back]
        await asyncio.gather(self._pass(reader, back), self._pass(there, writer))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(1 << 16):
                self.seen += data
                writer.write(data[:-1] + bytes([data[-1] ^ self.flips]))
        except ConnectionError:
            pass
        writer.close()


class Services:
    """A manager and a metadata service, each behind a sniffer, in a thread of their own."""

    def __init__(self, mgmtd: Tls | None, meta: Tls | None) -> None:
        self._servers: list[LaneServer] = []
        self._sniffers: list[Sniffer] = []
        self.nodes: list[luciola_core.StorageNode] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._run(self._start(mgmtd, meta))

    async def _start(self, mgmtd: Tls | None, meta: Tls | None) -> None:
        config = MetaConfig()
        placer = Placer(config)
        placer.set_tables([pb.ChainTable(id=1, version=1, chains=[1], replicas=1)])
        service, _, _ = await build(
            MemoryEngine(),
            FakeControl(),
            Manager(""),
            config=config,
            clock=SystemClock(),
            cluster_id="test",
            session_timeout_s=60.0,
            placer=placer,
        )
        self.meta = await self._served(methods.bind(methods.Meta, service), meta)
        self.manager = Manager(self.meta.address)
        self.mgmtd = await self._served(methods.bind(methods.Mgmtd, self.manager), mgmtd)

    async def _served(self, bound: Any, protection: Tls | None) -> Sniffer:
        server = LaneServer(bound, secret=SECRET, tls=protection)
        sniffer = Sniffer(await server.start())
        await sniffer.start()
        self._servers.append(server)
        self._sniffers.append(sniffer)
        return sniffer

    def add_storage(self, directory: Path, material: Material, wire: str) -> Sniffer:
        """Start a storage node that protects its bytes so, and serves the one chain; return what is before it."""
        node = luciola_core.StorageNode(
            1,
            directory,
            secret=SECRET,
            reserve_bytes=0,
            transport="tcp",
            certificates=material.native(),
            wire=wire,
        )
        self.nodes.append(node)
        sniffer = Sniffer(node.tcp_address())
        self._run(sniffer.start())
        self._sniffers.append(sniffer)
        routing = self.manager.routing
        routing.nodes.add(id=1, kind=pb.NODE_STORAGE, status=pb.CONNECTED, data_address=sniffer.address)
        routing.chains.add(id=1, version=1, targets=[pb.Target(id=10, node=1, state=pb.SERVING)])
        routing.tables.add(id=1, version=1, chains=[1], replicas=1)
        node.set_routing(routing.SerializeToString())
        node.set_lease(boot_s() + 600, 1)
        return sniffer

    def _run(self, work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(work, self._loop).result()  # type: ignore[arg-type]

    async def _end(self) -> None:
        for sniffer in self._sniffers:
            sniffer.close()
        for server in self._servers:
            await server.stop(grace_s=0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def close(self) -> None:
        self._run(self._end())
        for node in self.nodes:
            node.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


Start = Callable[..., Services]


@pytest.fixture
def start() -> Iterator[Start]:
    started: list[Services] = []

    def begin(mgmtd: Tls | None, meta: Tls | None = None) -> Services:
        started.append(Services(mgmtd, meta))
        return started[-1]

    yield begin
    for services in started:
        services.close()


@pytest.fixture(scope="module")
def world() -> World:
    return World()


def refused(services: Services, material: Material | None) -> str:
    """Return why a client that shows this gets no connection."""
    with pytest.raises(Unavailable) as caught:
        luciola_core.Client(
            [services.mgmtd.address],
            TOKEN.claims,
            TOKEN.key,
            certificates=None if material is None else material.native(),
            deadline_ms=300,
        )
    return str(caught.value)


def connect(services: Services, holder: Material) -> "luciola.FileSystem":
    text = f"{TOKEN.encode()}\n{encode_holding(holder)}"
    return luciola.connect(services.mgmtd.address, token=text, config=CONFIG)


def test_a_sniffer_sees_neither_names_nor_bytes_nor_tokens(world: World, start: Start):
    services = start(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    with connect(services, world.holder()) as fs:
        fs.write("/a secret name", b"bytes of a small file")
        assert fs.read("/a secret name") == b"bytes of a small file"
    seen = bytes(services.mgmtd.seen + services.meta.seen)
    assert len(services.meta.seen) > 1000
    for secret in (b"a secret name", b"bytes of a small file", TOKEN.claims, b"LUC1"):
        assert secret not in seen


def test_a_server_of_another_role_machine_or_cluster_or_one_that_expired_is_refused(
    world: World, start: Start
):
    for shown in (
        world.machine("meta"),
        world.machine("mgmtd", address="10.0.0.1"),
        World().machine("mgmtd"),
        world.machine("mgmtd", ago_s=7200, lifetime_s=3600),
    ):
        services = start(tls(shown))
        assert "TLS: invalid peer certificate" in refused(services, world.holder())
        assert TOKEN.claims not in services.mgmtd.seen


def test_a_client_with_a_strangers_certificate_or_an_expired_one_is_refused(world: World, start: Start):
    services = start(tls(world.machine("mgmtd")))
    stranger = World().holder()
    mixed = Material(stranger.cluster_id, world.issuer.certificate, stranger.key, stranger.certificate)
    for shown in (mixed, world.machine("storage", ago_s=7200, lifetime_s=3600)):
        assert "does not accept this machine's" in refused(services, shown)
    assert TOKEN.claims not in services.mgmtd.seen


def test_clear_text_and_tls_do_not_meet_and_say_so(world: World, start: Start):
    services = start(None)
    assert "clear text" in refused(services, world.holder())
    assert TOKEN.claims not in services.mgmtd.seen
    assert "luciola token create" in refused(start(tls(world.machine("mgmtd"))), None)


def test_renewed_certificates_are_used_by_the_next_connection(world: World, start: Start):
    shown = [world.machine("meta", ago_s=3597, lifetime_s=3600)]
    end_s = time.monotonic() + 3.5
    services = start(tls(world.machine("mgmtd")), tls(lambda: shown[0]))
    with connect(services, world.holder()) as fs:
        fs.write("/f", b"before")
        shown[0] = world.machine("meta")
        time.sleep(max(0.0, end_s - time.monotonic()))
        with connect(services, world.holder()) as other:
            assert other.read("/f") == b"before"
        assert fs.read("/f") == b"before"


@pytest.mark.parametrize("wire", ["encrypt", "mac", "none"])
def test_bytes_are_protected_as_their_storage_node_says(
    wire: str, world: World, start: Start, tmp_path: Path
):
    services = start(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    sniffer = services.add_storage(tmp_path / "chunks", world.machine("storage"), wire)
    content = b"bytes of a large file" * 20_000
    with connect(services, world.holder()) as fs:
        fs.write("/large", content)
        assert fs.read("/large") == content
        seen = bytes(sniffer.seen)
        assert TOKEN.claims not in seen
        assert (content[:1000] in seen) == (wire != "encrypt")
        sniffer.flips = True
        if wire != "none":
            with pytest.raises(OSError):
                fs.read("/large")


def test_a_storage_node_that_is_another_machine_gets_neither_token_nor_bytes(
    world: World, start: Start, tmp_path: Path
):
    services = start(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    sniffer = services.add_storage(tmp_path / "chunks", world.machine("storage", address="10.0.0.1"), "none")
    with connect(services, world.holder()) as fs, pytest.raises(OSError):
        fs.write("/large", b"bytes" * 20_000)
    assert sniffer.seen
    assert TOKEN.claims not in sniffer.seen
    assert b"bytes" not in sniffer.seen
