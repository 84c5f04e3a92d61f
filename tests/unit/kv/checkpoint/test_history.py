"""The history of a log: which states it gives, how far back it reaches, and what happens when a part is missing."""

import asyncio
import shutil
import struct
from itertools import pairwise

import pytest

from luciola.clock import ManualClock
from luciola.errors import CorruptData, InvalidArgument, NotFound
from luciola.kv.applied import Applied, begin_again
from luciola.kv.checkpoint import Catalog
from luciola.kv.checkpoint.history import PARTS, Archive, History, format_moment
from luciola.kv.checkpoint.restore import restore
from luciola.kv.checkpoint.segment import SUFFIX, MomentKey, read_segment
from luciola.kv.log import MemoryLog
from luciola.kv.rocksdb import RocksEngine

from ..records import puts

LOG = b"cluster 1, meta"
WINDOW_S = 2400.0
PART_S = int(WINDOW_S) // PARTS


class World:
    """A replica whose log gets a record and a moment each second; `step` makes a checkpoint and archives."""

    def __init__(self, directory):
        self.directory = directory
        self.clock = ManualClock()
        self.log = MemoryLog()
        self.engine = RocksEngine(directory / "kv", create=True)
        self.applied = Applied(self.engine, log_id=LOG, create=True)
        self.catalog = Catalog(directory / "checkpoints")
        self.archive = Archive(directory / "history", log_id=LOG, moment=MomentKey(b"moment"))
        self.keep_history()
        self.moments: list[tuple[int, int]] = []  # index of the record, moment
        self.epoch = 0

    def keep_history(self, *, room_bytes=0):
        self.history = History(
            self.archive, self.catalog, window_s=WINDOW_S, room_bytes=room_bytes, clock=self.clock
        )

    def now_ms(self):
        return self.clock.unix_ns() // 1_000_000

    async def write(self, seconds):
        for _ in range(seconds):
            if not self.epoch:
                self.epoch = (await self.log.create_claim("leader", lease_s=1.0)).epoch
            self.clock.advance(1)
            await self.append(value=b"%d" % (self.applied.position.index + 1))
            await self.append(moment=struct.pack("<Q", self.now_ms()))
            self.moments.append((self.applied.position.index, self.now_ms()))

    async def append(self, **pairs):
        record = puts(self.applied.position, epoch=self.epoch, **pairs)
        await self.log.append(record)
        self.applied.apply(record)

    async def step(self, *, trims=True):
        checkpoint = await self.catalog.create(self.engine)
        await self.history.archive(self.log)
        await self.catalog.retain(1)
        if trims:
            await self.log.trim(checkpoint.seal.position.index + 1)
        return checkpoint

    async def value_at(self, at_ms):
        """What the store has that is restored to a moment, and that moment."""
        target = await self.archive.find(self.log, at_ms)
        path = self.directory / "restored"
        shutil.rmtree(path, ignore_errors=True)
        await restore(target.checkpoint, path)
        engine = RocksEngine(path)
        try:
            applied = Applied(engine, log_id=LOG)
            async for record in self.archive.records(self.log, applied.position):
                if record.index > target.position.index:
                    break
                applied.apply(record)
            assert applied.position == target.position
            return int(engine.begin().snapshot_get(b"value")), target.unix_ms
        finally:
            engine.close()


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.engine.close()


def test_every_second_of_the_window_can_be_restored_also_when_the_log_has_forgotten_it(world):
    async def scenario():
        await world.write(5)
        await world.step()
        for _ in range(3):
            await world.write(20)
            await world.step()
        await world.write(10)
        assert (await world.log.bounds()).first > 100
        for index, moment_ms in world.moments[4:-1]:
            assert await world.value_at(moment_ms) == (index - 1, moment_ms)
            assert await world.value_at(moment_ms + 999) == (index - 1, moment_ms)

    asyncio.run(scenario())


def test_times_that_the_history_does_not_have_are_refused(world):
    async def scenario():
        with pytest.raises(NotFound, match="empty so far"):
            await world.archive.find(world.log, world.now_ms())
        await world.write(5)
        await world.step()
        begins = format_moment(world.moments[-1][1])
        with pytest.raises(NotFound, match=begins.replace("+", r"\+")):
            await world.archive.find(world.log, world.moments[-2][1])
        await world.write(5)
        with pytest.raises(InvalidArgument, match="nothing was changed after"):
            await world.archive.find(world.log, world.now_ms())
        await world.append(value=b"1")  # after which the service was killed
        assert await world.value_at(world.now_ms()) == (world.moments[-1][0] - 1, world.now_ms())

    asyncio.run(scenario())


def test_history_begins_with_the_first_moment_behind_a_checkpoint_that_has_none(world):
    async def scenario():
        world.epoch = (await world.log.create_claim("leader", lease_s=1.0)).epoch
        await world.append(value=b"0")
        await world.step()
        await world.write(3)
        with pytest.raises(NotFound, match="the history begins at"):
            await world.archive.find(world.log, world.moments[0][1] - 1)
        assert await world.value_at(world.moments[1][1]) == (world.moments[1][0] - 1, world.moments[1][1])

    asyncio.run(scenario())


def test_history_has_a_checkpoint_for_each_part_and_nothing_older_than_the_window(world):
    async def scenario():
        await world.write(1)
        for _ in range(2 * PARTS):
            world.clock.advance(PART_S - 10)
            for _ in range(2):
                await world.write(5)
                await world.step()
        first_ms = world.archive.moment_of(world.archive.checkpoints()[0])
        assert world.now_ms() - 2 * PART_S * 1000 < first_ms + int(WINDOW_S * 1000) <= world.now_ms()
        assert PARTS <= len(world.archive.checkpoints()) <= PARTS + 2
        segments = world.archive.segments()
        assert segments[0].after == world.archive.checkpoints()[0].seal.position
        assert all(one.last == two.after for one, two in pairwise(segments))

    asyncio.run(scenario())


def test_clock_that_is_ahead_forgets_nothing(world):
    async def scenario():
        await world.write(1)
        await world.step()
        await world.write(200)
        await world.step()
        world.clock.advance(10 * WINDOW_S)
        await world.append(value=b"1")
        await world.step()
        assert await world.value_at(world.moments[1][1]) == (world.moments[1][0] - 1, world.moments[1][1])

    asyncio.run(scenario())


def test_records_that_the_log_has_forgotten_before_are_a_gap(world):
    async def scenario():
        await world.write(5)
        await world.step()
        await world.write(5)
        await world.log.trim(world.applied.position.index + 1)
        await world.step()
        await world.write(5)
        with pytest.raises(NotFound, match="has a gap after"):
            await world.archive.find(world.log, world.moments[7][1])
        assert await world.value_at(world.moments[11][1]) == (world.moments[11][0] - 1, world.moments[11][1])

    asyncio.run(scenario())


def test_abandoned_state_stays_in_the_history(world):
    async def scenario():
        await world.write(5)
        await world.step()
        await world.write(5)
        await world.step()
        begin_log_again(world)
        await world.step(trims=False)
        await world.write(5)
        await world.step()
        for index, moment_ms in world.moments[4:-1]:
            assert await world.value_at(moment_ms) == (index - 1, moment_ms)

    asyncio.run(scenario())


def test_state_that_was_abandoned_twice_before_a_replica_ran_stays_in_the_history(world):
    async def scenario():
        await world.write(5)
        await world.step()
        await world.write(5)
        await world.archive.complete(world.log, world.applied.position, world.catalog.checkpoints())
        for _ in range(2):
            begin_log_again(world)
            checkpoint = await world.catalog.create(world.engine)
            await world.archive.complete(world.log, world.applied.position, [checkpoint])
        await world.write(5)
        await world.step()
        for index, moment_ms in world.moments[4:-1]:
            assert await world.value_at(moment_ms) == (index - 1, moment_ms)

    asyncio.run(scenario())


@pytest.mark.parametrize("damage", ["a bit", "no table", "too old"])
def test_history_is_completed_with_a_checkpoint_that_is_whole_and_continued_by_the_log(world, damage):
    async def scenario():
        await world.write(5)
        await world.step()
        await world.write(5)
        await world.archive.complete(world.log, world.applied.position, [])
        begin_log_again(world)
        other = Catalog(world.directory / "other")
        if damage == "too old":
            damaged = await other.create(world.engine)
            await world.write(5)
            checkpoint = await world.catalog.create(world.engine)
            await world.log.trim(checkpoint.seal.position.index + 1)
            await world.write(5)
        else:
            damaged = await other.create(world.engine)
            checkpoint = await world.catalog.create(world.engine)
            table = next(damaged.directory.glob("*.sst"))
            content = bytearray(table.read_bytes())
            content[100] ^= 1
            table.unlink()  # the other checkpoint shares it
            if damage == "a bit":
                table.write_bytes(content)
        await world.archive.complete(world.log, world.applied.position, [damaged, checkpoint])
        assert [each.seal.position for each in world.archive.checkpoints()][1:] == [checkpoint.seal.position]
        assert world.archive.end()[0] == world.applied.position
        await world.write(5)
        for index, moment_ms in world.moments[-5:-1]:
            assert await world.value_at(moment_ms) == (index - 1, moment_ms)

    asyncio.run(scenario())


def begin_log_again(world):
    """What a restore does to a log: nothing before is in it."""
    position = begin_again(world.applied, behind=world.applied.position)
    world.log = MemoryLog()
    world.log._last = position
    world.epoch = 0


@pytest.mark.parametrize("change", ["a bit", "the end", "a table"])
def test_damage_is_found(world, change):
    async def scenario():
        await world.write(5)
        await world.step()
        await world.write(5)
        await world.step()
        (path,) = world.archive.directory.glob(f"*{SUFFIX}")
        if change == "a table":
            path = next(world.archive.checkpoints()[0].directory.glob("*.sst"))
        content = bytearray(path.read_bytes())
        if change == "the end":
            del content[-10:]
        else:
            content[100] ^= 1
        path.unlink()
        path.write_bytes(content)
        with pytest.raises(NotFound if change == "the end" else CorruptData):
            await world.value_at(world.moments[6][1])

    asyncio.run(scenario())


def test_history_without_room_is_forgotten_and_the_log_is_not_held_up(world):
    async def scenario():
        await world.write(5)
        await world.step()
        await world.write(5)
        world.keep_history(room_bytes=1 << 60)
        await world.step()
        assert not world.archive.checkpoints()
        assert not world.archive.segments()
        world.keep_history()
        await world.write(1)
        await world.step()
        await world.write(2)
        assert await world.value_at(world.moments[-2][1]) == (world.moments[-2][0] - 1, world.moments[-2][1])

    asyncio.run(scenario())


def test_what_a_killed_process_left_is_removed(world):
    async def scenario():
        (world.archive.directory / f"new{SUFFIX}.part").write_bytes(b"half")
        again = Archive(world.archive.directory, log_id=LOG, moment=MomentKey(b"moment"))
        assert list(again.directory.iterdir()) == []

    asyncio.run(scenario())


def test_file_that_is_no_segment_is_refused(tmp_path):
    for content in (b"", b"x" * 4, b"x" * 1000):
        path = tmp_path / f"1{SUFFIX}"
        path.write_bytes(content)
        with pytest.raises(CorruptData, match="not a whole file of records"):
            read_segment(path)
