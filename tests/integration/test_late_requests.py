"""Metadata requests that come late: a connection stalls, its client gives up and uses another one."""

import asyncio
import threading
from collections.abc import Awaitable, Iterator
from typing import Any

import pytest

import luciola
from cluster import until
from luciola.clock import SystemClock
from luciola.config import ClientConfig, MetaConfig
from luciola.errors import Timeout
from luciola.kv import MemoryEngine
from luciola.meta.bootstrap import build
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer
from luciola.wire import TRUSTED, LaneServer, methods, mint
from luciola.wire.addresses import parse_address
from luciola.wire.pb import mgmtd_pb2 as pb

SECRET = bytes(range(32))
DEADLINE_MS = 4000  # what is not held back takes a busy machine less


class Manager:
    """Knows one metadata service, and that everybody lives."""

    def __init__(self, meta: str) -> None:
        self.routing = pb.Routing(version=1, cluster_id="test")
        self.routing.nodes.add(
            id=100, kind=pb.NODE_META, status=pb.CONNECTED, incarnation=1, lane_address=meta
        )

    def get_routing(self, request: Any, identity: Any) -> Any:
        if request.known_version == self.routing.version:
            return self._later(request.wait_ms / 1000)
        return self.routing

    async def _later(self, duration_s: float) -> pb.Routing:
        await asyncio.sleep(duration_s)
        return pb.Routing(version=self.routing.version, delta=True)

    def extend_client(self, request: Any, identity: Any) -> pb.ExtendClientReply:
        return pb.ExtendClientReply(interval_ms=1000, session_timeout_ms=600_000)

    def __getattr__(self, name: str) -> Any:
        if name not in vars(methods.Mgmtd):
            raise AttributeError(name)
        return lambda request, identity: pytest.fail(f"unexpected call of {name}")

    async def clients(self) -> None:
        return None


class Proxy:
    """Passes bytes between clients and one server. While it holds, connections made before keep what clients send."""

    def __init__(self, server: str) -> None:
        self._server = parse_address(server)
        self._holding: asyncio.Event | None = None
        self._open = 0
        self._generation = 0
        self._listener: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self.held = 0  # requests that are kept back
        self.replies = 0  # to what had been kept back
        self.address = ""

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        host, port = self._listener.sockets[0].getsockname()
        self.address = f"{host}:{port}"

    def close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.close()

    def hold(self) -> None:
        """From now on, what is sent over connections that stand already waits for `release`."""
        self._holding = asyncio.Event()
        self._generation = self._open

    def release(self) -> None:
        assert self._holding is not None
        self._holding.set()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        number = self._open
        self._open += 1
        upstream_reader, upstream_writer = await asyncio.open_connection(*self._server)
        late = asyncio.Event()
        self._writers += [writer, upstream_writer]
        back = asyncio.ensure_future(self._pass_back(upstream_reader, writer, late))
        while data := await reader.read(1 << 16):
            holding = self._holding
            if holding is not None and number < self._generation and not holding.is_set():
                self.held += 1
                await holding.wait()
                late.set()
            upstream_writer.write(data)
        await back

    async def _pass_back(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: asyncio.Event
    ) -> None:
        while data := await reader.read(1 << 16):
            writer.write(data)
            self.replies += late.is_set()


class Services:
    """A manager, a metadata service and a proxy before it, in a thread of their own."""

    def __init__(self) -> None:
        self.loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()
        self.run(self._start())

    async def _start(self) -> None:
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
        self.meta = LaneServer(methods.bind(methods.Meta, service), secret=SECRET)
        self.proxy = Proxy(await self.meta.start())
        await self.proxy.start()
        self.mgmtd = LaneServer(methods.bind(methods.Mgmtd, Manager(self.proxy.address)), secret=SECRET)
        await self.mgmtd.start()

    def run(self, work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(_await(work), self.loop).result()

    def close(self) -> None:
        self.run(self._close())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _close(self) -> None:
        self.proxy.close()
        await self.meta.stop(grace_s=0)
        await self.mgmtd.stop(grace_s=0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _await(work: Awaitable[Any]) -> Any:
    return await work


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    yield services
    services.close()


def test_late_unlink_spares_a_file_that_its_client_created_afterwards(services: Services) -> None:
    token = mint(SECRET, role=TRUSTED).encode()
    config = ClientConfig(deadline_ms=DEADLINE_MS, attribute_timeout_ms=0)
    with luciola.connect(services.mgmtd.address, token=token, config=config) as fs:
        fs.write("/f", b"first")
        services.loop.call_soon_threadsafe(services.proxy.hold)
        with pytest.raises(Timeout):
            fs.remove("/f")
        assert services.proxy.held
        fs.write("/f", b"second")
        services.loop.call_soon_threadsafe(services.proxy.release)
        until(lambda: services.proxy.replies >= services.proxy.held, what="the answer to the late request")
        assert fs.read("/f") == b"second"
