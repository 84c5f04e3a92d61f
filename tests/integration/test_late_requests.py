"""Metadata requests that come late: a connection stalls, its client gives up and uses another one."""

import asyncio
from collections.abc import Iterator

import pytest

import luciola
from cluster import until
from lane_world import TOKEN, LoopThread, Manager
from luciola.config import ClientConfig
from luciola.errors import Timeout
from luciola.wire import methods
from luciola.wire.addresses import parse_address

DEADLINE_MS = 4000  # what is not held back takes a busy machine less


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


class Services(LoopThread):
    """A manager, a metadata service and a proxy before it."""

    def __init__(self) -> None:
        super().__init__()
        self.run(self._start())

    async def _start(self) -> None:
        self.proxy = Proxy(await self.serve_meta())
        await self.proxy.start()
        self.mgmtd = await self.serve(methods.bind(methods.Mgmtd, Manager(self.proxy.address)))

    def close(self) -> None:
        self.loop.call_soon_threadsafe(self.proxy.close)
        super().close()


@pytest.fixture
def services() -> Iterator[Services]:
    services = Services()
    yield services
    services.close()


def test_late_unlink_spares_a_file_that_its_client_created_afterwards(services: Services) -> None:
    config = ClientConfig(deadline_ms=DEADLINE_MS, attribute_timeout_ms=0)
    with luciola.connect(services.mgmtd, token=TOKEN.encode(), config=config) as fs:
        fs.write("/f", b"first")
        services.loop.call_soon_threadsafe(services.proxy.hold)
        with pytest.raises(Timeout):
            fs.remove("/f")
        assert services.proxy.held
        fs.write("/f", b"second")
        services.loop.call_soon_threadsafe(services.proxy.release)
        until(lambda: services.proxy.replies >= services.proxy.held, what="the answer to the late request")
        assert fs.read("/f") == b"second"
