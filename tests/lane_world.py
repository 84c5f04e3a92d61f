"""A manager and a metadata service in memory, in a thread with a loop of its own, which clients reach over the lane."""

import asyncio
import threading
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

import luciola_core
import pytest
import uvloop

from luciola.clock import SystemClock, boot_s
from luciola.config import MetaConfig
from luciola.kv import MemoryEngine
from luciola.meta.bootstrap import build
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer
from luciola.wire import TRUSTED, LaneServer, methods, mint
from luciola.wire.addresses import parse_address
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.tls import Material, Tls
from unit.wire.tls_world import HERE

SECRET = bytes(range(32))
TOKEN = mint(SECRET, role=TRUSTED)


class Manager:
    """Knows one metadata service, and that all clients live."""

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


class LoopThread:
    """A loop in a thread of its own, and the lane servers in it."""

    def __init__(self) -> None:
        self.loop = uvloop.new_event_loop()  # as services do
        self._servers: list[LaneServer] = []
        self._thread = threading.Thread(target=self.loop.run_forever)
        self._thread.start()

    def run(self, work: Awaitable[Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(_await(work), self.loop).result()

    async def serve(self, bound: Any, protection: Tls | None = None) -> str:
        """Serve these methods until the end; return where."""
        server = LaneServer(bound, secret=SECRET, tls=protection)
        self._servers.append(server)
        return await server.start()

    async def serve_meta(self, protection: Tls | None = None) -> str:
        """Serve a new metadata service, which places files on one chain."""
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
        return await self.serve(methods.bind(methods.Meta, service), protection)

    def close(self) -> None:
        self.run(self._end())
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        self.loop.close()

    async def _end(self) -> None:
        for server in self._servers:
            await server.stop(grace_s=0)
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _await(work: Awaitable[Any]) -> Any:
    return await work


class Sniffer:
    """Passes bytes between clients and one server, and keeps them. Its address has no Unix socket beside it."""

    def __init__(self, server: str) -> None:
        self._server = parse_address(server)
        self.flips = False  # a bit of each piece from now on
        self._listener: asyncio.Server | None = None
        self._writers: list[asyncio.StreamWriter] = []
        self._connections: set[asyncio.Task[None] | None] = set()
        self.seen = bytearray()
        self.address = ""

    async def start(self) -> None:
        self._listener = await asyncio.start_server(self._serve, HERE, 0)
        self.address = f"{HERE}:{self._listener.sockets[0].getsockname()[1]}"

    async def close(self) -> None:
        assert self._listener is not None
        self._listener.close()
        for writer in self._writers:
            writer.close()
        await asyncio.gather(*(each for each in self._connections if each), return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._connections.add(asyncio.current_task())
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


class SniffedServices(LoopThread):
    """A manager and a metadata service, each behind a sniffer, and storage nodes with the one chain."""

    def __init__(self, mgmtd: Tls | None, meta: Tls | None) -> None:
        super().__init__()
        self._sniffers: list[Sniffer] = []
        self._nodes: list[luciola_core.StorageNode] = []
        self.run(self._start(mgmtd, meta))

    async def _start(self, mgmtd: Tls | None, meta: Tls | None) -> None:
        self.meta = await self._sniffed(await self.serve_meta(meta))
        self._manager = Manager(self.meta.address)
        self.mgmtd = await self._sniffed(await self.serve(methods.bind(methods.Mgmtd, self._manager), mgmtd))

    async def _sniffed(self, address: str) -> Sniffer:
        sniffer = Sniffer(address)
        await sniffer.start()
        self._sniffers.append(sniffer)
        return sniffer

    def add_storage(self, directory: Path, material: Material, wire: str) -> str:
        """Start the storage node of the chain, which protects its bytes so; return its address."""
        node = luciola_core.StorageNode(
            1,
            directory,
            secret=SECRET,
            reserve_bytes=0,
            transport="tcp",
            certificates=material.native(),
            wire=wire,
        )
        self._nodes.append(node)
        return node.tcp_address()

    def sniff(self, address: str) -> Sniffer:
        return self.run(self._sniffed(address))

    def route(self, data_address: str) -> None:
        """Let clients and the storage node know the chain."""
        routing = self._manager.routing
        routing.nodes.add(id=1, kind=pb.NODE_STORAGE, status=pb.CONNECTED, data_address=data_address)
        routing.chains.add(id=1, version=1, targets=[pb.Target(id=10, node=1, state=pb.SERVING)])
        routing.tables.add(id=1, version=1, chains=[1], replicas=1)
        for node in self._nodes:
            node.set_routing(routing.SerializeToString())
            node.set_lease(boot_s() + 3600, 1)

    def close(self) -> None:
        for sniffer in self._sniffers:
            self.run(sniffer.close())
        super().close()
        for node in self._nodes:
            node.stop()
