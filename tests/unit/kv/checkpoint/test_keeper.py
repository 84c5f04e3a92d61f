"""Checkpoints in time, in virtual time: when they are made, what is announced, and what the log forgets."""

import asyncio

import pytest

from luciola.errors import CorruptData, NoSpace, Unavailable
from luciola.kv.checkpoint.keeper import CHECK_S, Announcement, Keeper, Member, Policy, announcements
from luciola.kv.log import START, MemoryLog, Position, Record
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from luciola.kv.replica import KEPT_RECORDS
from virtual_loop import LoopClock, simulate

POLICY = Policy(records=100, interval_s=300.0, retained=2, copies=2)


class Disk:
    """The checkpoints of a replica that is always at the end of the log, without a store."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.made: list[Position] = []
        self.error: Exception | None = None

    def position(self) -> Position:
        return self._log._last

    def newest(self) -> Position:
        return self.made[-1] if self.made else START

    async def make(self) -> None:
        if self.error is not None:
            raise self.error
        self.made.append(self.position())

    async def retain(self, count: int) -> object:
        del self.made[:-count]
        return None


class World:
    """A log that a leader appends to, and replicas with keepers."""

    def __init__(self, *names: str, keeper: type[Keeper] = Keeper, policy: Policy = POLICY) -> None:
        self.log = MemoryLog()
        self.access = {name: FaultyLog(self.log) for name in names}
        self.disks = {name: Disk(self.log) for name in names}
        self._keeper = keeper
        self._policy = policy
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._epoch = 0

    async def __aenter__(self):
        claim = await self.log.create_claim("leader", lease_s=5.0)
        assert claim is not None
        self._epoch = claim.epoch
        for name in self.access:
            self.start(name)
        await asyncio.sleep(1.0)
        return self

    async def __aexit__(self, *exception):
        for name in list(self._tasks):
            await self.end(name)

    def start(self, name: str) -> None:
        keeper = self._keeper(
            self.access[name],
            self.disks[name],
            member=Member(name, f"{name}:1"),
            policy=self._policy,
            clock=LoopClock(),
        )
        self._tasks[name] = asyncio.create_task(keeper.run())

    async def end(self, name: str) -> None:
        task = self._tasks.pop(name)
        assert not task.done(), "K3: a keeper works until it is cancelled"
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    async def append(self, count: int) -> None:
        for _ in range(count):
            await self.log.append(Record.create(b"x", after=self.log._last, epoch=self._epoch))

    async def first(self) -> int:
        return (await self.log.bounds()).first

    async def announced(self) -> dict[str, int]:
        return {name: each.position.index for name, each in (await announcements(self.log)).items()}


def test_checkpoint_is_made_when_enough_is_new_and_announced_with_its_address():
    async def scenario():
        async with World("a") as world:
            assert await world.announced() == {"a": 0}
            await world.append(99)
            await asyncio.sleep(3 * CHECK_S)
            assert world.disks["a"].made == []
            await world.append(1)
            await asyncio.sleep(2 * CHECK_S)
            assert [each.index for each in world.disks["a"].made] == [100]
            announced = (await announcements(world.log))["a"]
            assert announced == Announcement(world.disks["a"].made[0], "a:1")

    simulate(scenario())


def test_little_that_is_new_waits_for_the_interval_and_nothing_new_makes_none():
    async def scenario():
        async with World("a") as world:
            await asyncio.sleep(10 * POLICY.interval_s)
            assert world.disks["a"].made == []
            await world.append(1)
            await asyncio.sleep(2 * CHECK_S)
            assert [each.index for each in world.disks["a"].made] == [1]
            await world.append(1)
            await asyncio.sleep(POLICY.interval_s / 2)
            assert len(world.disks["a"].made) == 1
            await asyncio.sleep(POLICY.interval_s)
            assert [each.index for each in world.disks["a"].made] == [1, 2]

    simulate(scenario())


def test_log_forgets_what_enough_replicas_have_and_some_records_later():
    async def scenario():
        async with World("a", "b") as world:
            world.disks["b"].error = NoSpace("injected: no room for a checkpoint")
            await world.append(KEPT_RECORDS + 200)
            await asyncio.sleep(2 * CHECK_S)
            assert len(world.disks["a"].made) == 1
            assert await world.first() == 1, "only one replica has it"
            world.disks["b"].error = None
            await asyncio.sleep(2 * CHECK_S)
            assert await world.first() == 201
            assert len(world.disks["b"].made) == 1

    simulate(scenario())


def test_log_that_is_full_or_fails_does_not_end_the_keeper():
    async def scenario():
        async with World("a", "b") as world:
            for fault in (Fault.FULL, Fault.REFUSED, Fault.LOST, Fault.DONE):
                world.access["a"].plan = lambda method, fault=fault: Outcome(fault)
                await world.append(400)
                await asyncio.sleep(5 * CHECK_S)
            world.access["a"].plan = lambda method: Outcome()
            await world.append(400)
            await asyncio.sleep(2 * CHECK_S)
            assert await world.announced() == {"a": 2000, "b": 2000}
            assert await world.first() == 2001 - KEPT_RECORDS

    simulate(scenario())


def test_checkpoint_beyond_the_end_of_the_log_does_not_count_as_a_copy():
    """It is of a history that the log has lost."""

    async def scenario():
        async with World("a") as world:
            beyond = Announcement(Position(10 * KEPT_RECORDS, START.digest), "b:1")
            await world.log.announce("b", beyond.encode())
            await world.append(2 * KEPT_RECORDS)
            await asyncio.sleep(2 * CHECK_S)
            assert await world.first() == 1

    simulate(scenario())


def test_log_that_is_full_is_trimmed_behind_what_was_announced_before():
    async def scenario():
        async with World("a", "b") as world:
            await world.append(KEPT_RECORDS + 100)
            await asyncio.sleep(2 * CHECK_S)
            assert await world.first() == 101
            world.access["a"].plan = lambda method: Outcome(
                Fault.FULL if method == "announce" else Fault.NONE
            )
            await world.end("b")
            await world.append(100)
            await asyncio.sleep(2 * CHECK_S)
            assert await world.announced() == {"a": KEPT_RECORDS + 100, "b": KEPT_RECORDS + 100}
            world.start("b")
            await asyncio.sleep(2 * CHECK_S)
            await world.append(100)
            await asyncio.sleep(2 * CHECK_S)
            assert (await world.announced())["a"] == KEPT_RECORDS + 100
            assert await world.first() > 201

    simulate(scenario())


class TrimsOnlyAnnounced(Keeper):
    """What cannot be announced keeps the log from being trimmed."""

    async def _announce_if_needed(self):
        if not self._announced:
            await self._announce()


def test_replica_that_lost_its_checkpoints_says_so_when_it_starts():
    async def scenario():
        async with World("a", "b") as world:
            await world.append(100)
            await asyncio.sleep(2 * CHECK_S)
            assert await world.announced() == {"a": 100, "b": 100}
            await world.end("b")
            world.disks["b"].made.clear()
            world.disks["b"].error = Unavailable("injected: the disk is slow")
            world.start("b")
            await asyncio.sleep(2 * CHECK_S)
            assert await world.announced() == {"a": 100, "b": 0}

    simulate(scenario())


def test_announcement_that_cannot_be_read_is_refused():
    for value in (b"", b"short", START.encode() + b"\xff\xfe"):
        with pytest.raises(CorruptData):
            Announcement.decode(value)


# Planted mistakes: each lets the log forget what a replica that comes back could get nowhere.


class AnnouncesFirst(Keeper):
    """The store's position is announced as if it were a checkpoint's."""

    async def _announce(self):
        announcement = Announcement(self._checkpoints.position(), self._member.address)
        await self._log.announce(self._member.name, announcement.encode())
        self._announced = True


class TrimsBehindItself(Keeper):
    """One copy is enough."""

    async def _trim(self):
        await self._log.trim(self._checkpoints.newest().index + 1)


class NeverCorrects(Keeper):
    """After a start, what was announced before is left."""

    async def step(self):
        self._announced = True
        await super().step()


async def forgotten(keeper: type[Keeper]) -> list[str]:
    """Two replicas of which one loses its disk and cannot make checkpoints: what is wrong in the end."""
    async with World("a", "b", keeper=keeper) as world:
        await world.append(2 * KEPT_RECORDS)
        await asyncio.sleep(2 * CHECK_S)
        await world.end("b")
        world.disks["b"].made.clear()
        world.disks["b"].error = NoSpace("injected")
        world.start("b")
        for _ in range(20):
            await world.append(POLICY.records)
            await asyncio.sleep(2 * CHECK_S)
        wrong = []
        for name, index in (await world.announced()).items():
            if index != world.disks[name].newest().index:
                wrong.append(f"K1: {name} announces {index} and has {world.disks[name].newest().index}")
        if await world.first() > 2 * KEPT_RECORDS:
            wrong.append(f"K2: the log begins with {await world.first()}, which only one replica has")
        return wrong


def test_log_keeps_what_a_replica_without_checkpoints_needs():
    assert simulate(forgotten(Keeper)) == []


def test_planted_keeper_that_cannot_trim_a_full_log_is_found():
    async def first(keeper: type[Keeper]) -> int:
        async with World("a", "b", keeper=keeper) as world:
            for name in ("a", "b"):
                await world.log.announce(name, Announcement(START, name).encode())
            await world.append(2 * KEPT_RECORDS)
            await world.log.announce("b", Announcement(world.log._last, "b").encode())
            world.access["a"].plan = lambda method: Outcome(
                Fault.FULL if method == "announce" else Fault.NONE
            )
            world.access["b"].cut()
            await asyncio.sleep(3 * CHECK_S)
            return await world.first()

    assert simulate(first(Keeper)) == KEPT_RECORDS + 1
    assert simulate(first(TrimsOnlyAnnounced)) == 1


@pytest.mark.parametrize("keeper", [AnnouncesFirst, TrimsBehindItself, NeverCorrects])
def test_planted_mistake_is_found(keeper):
    assert simulate(forgotten(keeper)) != []
