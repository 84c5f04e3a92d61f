"""Checkpoints in time, in virtual time: when they are made, what is announced, and what the log forgets."""

import asyncio

import pytest

from luciola.errors import CorruptData, NoSpace, Unavailable
from luciola.kv.checkpoint.keeper import CHECK_S, Announcement, Keeper, Member, Policy, announcements
from luciola.kv.log import START, MemoryLog, Position, Record
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from luciola.kv.record_sizes import RecordSizes
from virtual_loop import LoopClock, simulate

KEPT_RECORDS = 1024
POLICY = Policy(
    records=100,
    size_bytes=10_000,
    interval_s=300.0,
    retained=2,
    copies=2,
    kept_records=KEPT_RECORDS,
    kept_bytes=4000,
)


class Disk:
    """The checkpoints of a replica that is always at the end of the log, without a store."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        self.made: list[Position] = []
        self.sizes = RecordSizes(0)
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

    async def append(self, count: int, *, size_bytes: int = 1) -> None:
        for _ in range(count):
            record = Record.create(bytes(size_bytes), after=self.log._last, epoch=self._epoch)
            await self.log.append(record)
            for disk in self.disks.values():
                disk.sizes.add(size_bytes)

    async def kept_bytes(self) -> int:
        bounds = await self.log.bounds()
        return next(iter(self.disks.values())).sizes.at_most(bounds.first - 1, bounds.last.index)

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


def test_checkpoint_is_made_when_records_have_many_bytes():
    async def scenario():
        async with World("a") as world:
            await world.append(9, size_bytes=1000)
            await asyncio.sleep(3 * CHECK_S)
            assert world.disks["a"].made == []
            await world.append(1, size_bytes=1000)
            await asyncio.sleep(2 * CHECK_S)
            assert [each.index for each in world.disks["a"].made] == [10]

    simulate(scenario())


def test_what_the_log_keeps_has_a_limit_in_bytes():
    async def scenario():
        async with World("a", "b") as world:
            await world.append(100)
            for _ in range(5):
                await world.append(12, size_bytes=1000)
                await asyncio.sleep(2 * CHECK_S)
            assert await world.first() == 100 + 5 * 12 - 4 + 1

    simulate(scenario())


def test_records_that_the_store_has_not_carried_out_yet_are_not_trimmed():
    """Else a replica that comes up with the log would need a checkpoint once more."""

    async def scenario():
        async with World("a", "b") as world:
            place = Position(10, START.digest)
            world.disks["a"].position = lambda: place
            world.access["b"].plan = lambda method: Outcome(Fault.REFUSED if method == "trim" else Fault.NONE)
            await world.append(KEPT_RECORDS + 300)
            await world.log.announce("c", Announcement(world.log._last, "c:1").encode())
            await asyncio.sleep(2 * CHECK_S)
            await world.end("a")
            world.start("a")
            await asyncio.sleep(2 * CHECK_S)
            assert await world.first() == 11

    simulate(scenario())


def test_disk_without_room_for_a_checkpoint_gets_that_of_the_older_ones():
    async def scenario():
        async with World("a") as world:
            for _ in range(2):
                await world.append(100)
                await asyncio.sleep(2 * CHECK_S)
            assert len(world.disks["a"].made) == 2
            world.disks["a"].error = NoSpace("injected")
            await world.append(100)
            await asyncio.sleep(2 * CHECK_S)
            assert [each.index for each in world.disks["a"].made] == [200]
            assert await world.announced() == {"a": 200}

    simulate(scenario())


def test_error_of_an_unknown_kind_does_not_end_the_keeper():
    async def scenario():
        async with World("a") as world:
            world.disks["a"].error = RuntimeError("injected")
            await world.append(100)
            await asyncio.sleep(2 * CHECK_S)
            world.disks["a"].error = None
            await asyncio.sleep(2 * CHECK_S)
            assert await world.announced() == {"a": 100}

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


@pytest.mark.parametrize("removed", [False, True])
def test_checkpoint_of_a_replica_that_is_away_counts_until_the_replica_is_removed(removed):
    async def scenario():
        async with World("a", "b", "c") as world:
            for name in ("a", "b"):
                world.disks[name].error = NoSpace("injected: no room for a checkpoint")
            await world.append(KEPT_RECORDS + 200)
            await asyncio.sleep(2 * CHECK_S)
            await world.end("c")
            if removed:
                await world.log.withdraw("c")
            world.disks["a"].error = None
            await asyncio.sleep(2 * CHECK_S)
            assert [name for name, index in (await world.announced()).items() if index] == (
                ["a"] if removed else ["a", "c"]
            )
            assert await world.first() == (1 if removed else 201)

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


class CountsRecordsOnly(Keeper):
    """Ten thousand records of 1 MiB are more than any etcd takes."""

    def _is_due(self):
        new = self._checkpoints.position().index - self._checkpoints.newest().index
        return new >= self._policy.records


class KeepsByCountOnly(Keeper):
    """So are a thousand of them behind the checkpoints, with what is before."""

    def _first_of_kept(self, first):
        return max(1, first - self._policy.kept_records)


async def largest(keeper: type[Keeper]) -> int:
    """How many bytes the log keeps, at most, while large records are written."""
    most_bytes = 0
    async with World("a", "b", keeper=keeper) as world:
        for _ in range(100):
            await world.append(3, size_bytes=1000)
            await asyncio.sleep(CHECK_S)
            most_bytes = max(most_bytes, await world.kept_bytes())
    return most_bytes


def test_log_of_large_records_stays_small():
    assert simulate(largest(Keeper)) <= 2 * (POLICY.size_bytes + POLICY.kept_bytes)


@pytest.mark.parametrize("keeper", [CountsRecordsOnly, KeepsByCountOnly])
def test_planted_mistake_that_fills_the_log_is_found(keeper):
    assert simulate(largest(keeper)) > 2 * (POLICY.size_bytes + POLICY.kept_bytes)


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
