"""What a replica does for an administrator, in virtual time."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from luciola.errors import InvalidArgument, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.applied import Applied
from luciola.kv.checkpoint.catalog import Catalog
from luciola.kv.checkpoint.keeper import Keeper, Member, Policy, announcements
from luciola.kv.log import START, MemoryLog, Position
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from luciola.kv.record_sizes import RecordSizes
from luciola.kv.replica import PrimaryEngine, Replica
from luciola.kv.replica_service import HOLD_BACK_MS_MAX, ReplicaService
from luciola.wire.credentials import SERVICE, Identity
from luciola.wire.pb import replicas_pb2 as pb
from luciola.wire.pb.common_pb2 import Empty
from virtual_loop import LoopClock, simulate

LOG = b"cluster 1, meta"
LEASE_S = 4.0
IDENTITY = Identity(SERVICE, 0, 0, ())
NEVER = Policy(
    records=1000,
    size_bytes=1 << 40,
    interval_s=1e9,
    retained=2,
    copies=2,
    kept_records=0,
    kept_bytes=0,
)


class Checkpoints:
    """Those of a store in memory."""

    def __init__(self, applied: Applied) -> None:
        self._applied = applied
        self.made: list[Position] = []

    @property
    def sizes(self) -> RecordSizes:
        return self._applied.sizes

    def position(self) -> Position:
        return self._applied.position

    def newest(self) -> Position:
        return self.made[-1] if self.made else START

    async def make(self) -> None:
        await asyncio.sleep(0.5)
        self.made.append(self.position())

    async def retain(self, count: int) -> object:
        return None


class Process:
    """A replica, its keeper, and what it serves."""

    def __init__(self, shared: MemoryLog, name: str, directory: Path) -> None:
        self.log = FaultyLog(shared)
        applied = Applied(MemoryEngine(), log_id=LOG, create=True)
        self.checkpoints = Checkpoints(applied)
        self.service = ReplicaService(Catalog(directory / name))
        self.replica = Replica(self.log, applied, owner=name, lease_s=LEASE_S, clock=LoopClock())
        self.keeper = Keeper(
            self.log, self.checkpoints, member=Member(name, f"{name}:1"), policy=NEVER, clock=LoopClock()
        )
        self.leads = asyncio.Event()
        self.engine: PrimaryEngine | None = None

    async def serve(self, engine: PrimaryEngine) -> None:
        self.engine = engine
        self.leads.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.leads.clear()

    async def put(self, count: int) -> None:
        await self.leads.wait()
        assert self.engine is not None
        for number in range(count):
            transaction = self.engine.begin()
            transaction.put(b"%d" % number, b"1")
            transaction.commit()
            await self.engine.sync()

    async def state(self) -> tuple[int, int, bool]:
        state = await self.service.state(Empty(), IDENTITY)
        return state.position, state.checkpoint, state.leads

    async def hold_back(self, duration_ms: int) -> pb.ReplicaState:
        return await self.service.hold_back(pb.HoldBackRequest(duration_ms=duration_ms), IDENTITY)


@asynccontextmanager
async def two(shared: MemoryLog, directory: Path) -> AsyncGenerator[tuple[Process, Process]]:
    first, second = Process(shared, "first", directory), Process(shared, "second", directory)
    tasks: list[asyncio.Task[None]] = []
    with (
        first.service.running(first.replica, first.keeper),
        second.service.running(second.replica, second.keeper),
    ):
        try:
            for process in (first, second):
                tasks += [
                    asyncio.create_task(process.replica.run(process.serve)),
                    asyncio.create_task(process.keeper.run()),
                ]
                await first.leads.wait()
            yield first, second
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await asyncio.gather(first.log.close(), second.log.close())


def test_state_says_who_leads_and_how_far_each_store_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(MemoryLog(), tmp_path) as (first, second):
            await first.put(5)
            await asyncio.sleep(1.0)
            assert await first.state() == (5, 0, True)
            assert await second.state() == (5, 0, False)

    simulate(scenario())


def test_checkpoints_that_are_wanted_are_made_once_and_the_log_is_trimmed(tmp_path: Path) -> None:
    async def scenario() -> None:
        shared = MemoryLog()
        async with two(shared, tmp_path) as (first, second):
            await first.put(5)
            await asyncio.sleep(100.0)
            assert first.checkpoints.made == second.checkpoints.made == []  # none is due
            made = await first.service.make_checkpoint(Empty(), IDENTITY)
            assert made.checkpoint == 5
            assert (await shared.bounds()).first == 1  # the other has none
            await second.service.make_checkpoint(Empty(), IDENTITY)
            assert (await shared.bounds()).first == 6
            assert {name: each.position.index for name, each in (await announcements(shared)).items()} == {
                "first": 5,
                "second": 5,
            }
            await first.service.make_checkpoint(Empty(), IDENTITY)
            assert len(first.checkpoints.made) == 1  # nothing was new
            await first.put(1)
            await asyncio.sleep(100.0)
            assert len(first.checkpoints.made) == 1  # what was wanted is done

    simulate(scenario())


def test_log_is_trimmed_again_when_it_has_room_for_what_the_other_says(tmp_path: Path) -> None:
    async def scenario() -> None:
        shared = MemoryLog()
        async with two(shared, tmp_path) as (first, second):
            await first.put(5)
            await asyncio.sleep(1.0)
            for process in (first, second):
                process.log.plan = lambda method: Outcome(Fault.FULL if method == "announce" else Fault.NONE)
                await process.service.make_checkpoint(Empty(), IDENTITY)
            assert (await shared.bounds()).first == 1
            for process in (first, second):
                process.log.plan = lambda method: Outcome()
                await process.service.make_checkpoint(Empty(), IDENTITY)
            assert (await shared.bounds()).first == 6

    simulate(scenario())


def test_checkpoints_that_are_wanted_at_once_are_made_one_after_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(MemoryLog(), tmp_path) as (first, _):
            await first.put(5)
            await asyncio.gather(*(first.service.make_checkpoint(Empty(), IDENTITY) for _ in range(3)))
            assert len(first.checkpoints.made) == 1

    simulate(scenario())


def test_primary_that_is_to_hold_back_leaves_the_log_to_the_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(MemoryLog(), tmp_path) as (first, second):
            await first.hold_back(20_000)
            async with asyncio.timeout(LEASE_S / 4):
                await second.leads.wait()
            assert await first.state() == (0, 0, False)
            assert await second.state() == (0, 0, True)
            with pytest.raises(InvalidArgument):
                await second.hold_back(HOLD_BACK_MS_MAX + 1)
            assert (await second.state())[2]

    simulate(scenario())


def test_process_without_a_replica_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        process = Process(MemoryLog(), "first", tmp_path)
        with pytest.raises(Unavailable, match="not able to follow"):
            await process.state()
        with pytest.raises(Unavailable):
            await process.hold_back(1)
        with pytest.raises(Unavailable):
            await process.service.make_checkpoint(Empty(), IDENTITY)
        assert (await process.service.list_seals(Empty(), IDENTITY)).seals == []

    simulate(scenario())
