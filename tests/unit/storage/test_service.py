"""A comparison of a returning replica that is overtaken by a late request to forget everything."""

import asyncio
from collections.abc import AsyncIterator, Callable
from types import SimpleNamespace
from typing import Any

import pytest

from luciola.errors import StaleRouting
from luciola.ids import ChainId, ChainVersion, TargetId
from luciola.states import Public
from luciola.storage import model
from luciola.storage.compare import Record
from luciola.storage.service import StorageService
from luciola.wire import SERVICE, Identity
from luciola.wire.pb.storage_pb2 import ChainRef, SyncDoneRequest, SyncStartRequest

CHAIN = ChainRef(chain=7, version=3)
WHO = Identity(SERVICE, 0, 0, ())


class Disk:
    """Chunks of one chain: what `StorageService` sees of an `Engine`. `wipes` waits for `may_wipe`."""

    def __init__(self) -> None:
        self.node = SimpleNamespace(wipe_chain="wipe_chain", sync="sync")
        self.chunks = [Record(5, index, 1, 1, 10, 0, False, False, 0) for index in range(4)]
        self.may_wipe = asyncio.Event()

    async def run(self, call: Callable[..., Any], *_: Any) -> None:
        if call == "sync":
            return
        await self.may_wipe.wait()
        self.chunks.clear()

    async def pages(self, _: int) -> AsyncIterator[list[Record]]:
        for record in list(self.chunks):
            yield [record]
            await asyncio.sleep(0)


class Replica:
    """What `StorageService` sees of a `Membership`: one SYNCING replica."""

    def __init__(self) -> None:
        seen = model.Seen(ChainId(7), ChainVersion(3), Public.SYNCING)
        self.state, _ = model.step(model.State(is_back=True), model.RoutingChanged({TargetId(70): seen}))
        self.is_done = False

    def sync_done(self, _: ChainId, __: ChainVersion) -> bool:
        self.is_done = True
        return True


def service(disk: Disk, replica: Replica) -> StorageService:
    return StorageService(disk, replica, None, None)  # type: ignore[arg-type] # what it sees of them


async def listed(stream: AsyncIterator[Any]) -> int:
    return sum([len(reply.chunks) async for reply in stream])


def test_a_replica_is_not_done_when_a_late_request_has_emptied_it() -> None:
    async def scenario() -> None:
        disk, replica = Disk(), Replica()
        served = service(disk, replica)
        disk.may_wipe.set()
        assert await listed(served.sync_start(SyncStartRequest(chain=CHAIN), WHO)) == 4
        late = served.sync_start(SyncStartRequest(chain=CHAIN, wipe=True), WHO)
        leaving = asyncio.ensure_future(anext(late))
        await asyncio.sleep(0)
        leaving.cancel()
        with pytest.raises(StaleRouting, match="again"):
            await served.sync_done(SyncDoneRequest(chain=CHAIN), WHO)
        assert not replica.is_done
        assert await listed(served.sync_start(SyncStartRequest(chain=CHAIN), WHO)) == 0
        await served.sync_done(SyncDoneRequest(chain=CHAIN), WHO)
        assert replica.is_done

    asyncio.run(scenario())


def test_a_comparison_waits_until_everything_is_forgotten() -> None:
    async def scenario() -> None:
        disk, replica = Disk(), Replica()
        served = service(disk, replica)
        leaving = asyncio.ensure_future(
            anext(served.sync_start(SyncStartRequest(chain=CHAIN, wipe=True), WHO))
        )
        await asyncio.sleep(0)
        leaving.cancel()
        comparing = asyncio.ensure_future(listed(served.sync_start(SyncStartRequest(chain=CHAIN), WHO)))
        await asyncio.sleep(0)
        disk.may_wipe.set()
        assert await comparing == 0

    asyncio.run(scenario())
