"""The queue of removals, the clock that dates them, and the work for one removal among many."""

import pytest

from luciola.clock import ManualClock
from luciola.kv import MemoryEngine
from luciola.kv.rocksdb import RocksEngine, store_options
from luciola.meta import removal_queue, schema
from luciola.meta.removal_clock import RESERVED_MS, RemovalClock
from luciola.meta.removal_queue import RETRY_S, RemovalQueue

from .world import CHUNK, PatientClock, World, check_store

LIMIT_MS = 1000


class Queued:
    """A queue over a store in memory."""

    def __init__(self) -> None:
        self.clock = ManualClock()
        self.engine = MemoryEngine()
        self.queue = RemovalQueue(self.engine, self.clock, b"O")

    def store(self, removed_ms: int, inode: int) -> bytes:
        key = schema.orphan_key(removed_ms, inode)
        transaction = self.engine.begin()
        transaction.put(key, b"")
        transaction.commit()
        return key

    def remove(self, key: bytes) -> None:
        transaction = self.engine.begin()
        transaction.delete(key)
        transaction.commit()
        self.queue.done(key)

    def take(self, limit: int = 10, before_ms: int = LIMIT_MS) -> list[bytes]:
        return [key for key, _ in self.queue.take(limit, before_ms=before_ms)]


class TestQueue:
    def test_records_come_by_age_and_once(self):
        queued = Queued()
        keys = [queued.store(removed_ms, 7) for removed_ms in (30, 10, 20)]
        assert queued.take(2) == [keys[1], keys[2]]
        assert queued.take(2) == [keys[0]]
        assert queued.take() == []

    def test_young_records_are_not_read(self):
        queued = Queued()
        young = queued.store(LIMIT_MS, 7)
        assert queued.take() == []
        assert queued.take(before_ms=LIMIT_MS + 1) == [young]

    def test_record_that_is_not_done_comes_again_later(self):
        queued = Queued()
        key = queued.store(1, 7)
        assert queued.take() == [key]
        queued.clock.advance(RETRY_S - 1)
        assert queued.take() == []
        queued.clock.advance(1)
        assert queued.take() == [key]
        queued.queue.put_off(key, queued.clock.monotonic())
        assert queued.take() == [key]
        queued.remove(key)
        queued.clock.advance(RETRY_S)
        assert queued.take() == []
        assert len(queued.queue) == 0

    def test_retries_leave_half_of_the_room_to_new_records(self):
        queued = Queued()
        old = [queued.store(1, inode) for inode in range(10)]
        assert queued.take() == old
        queued.clock.advance(RETRY_S)
        new = [queued.store(2, inode) for inode in range(10)]
        assert queued.take() == old[:5] + new[:5]

    def test_record_that_the_collector_adds_is_found(self):
        queued = Queued()
        assert queued.take() == []
        key = queued.store(LIMIT_MS - 1, 7)
        queued.queue.add(key)
        assert queued.take() == [key]

    def test_added_record_does_not_bring_others_again(self):
        queued = Queued()
        waiting = queued.store(LIMIT_MS - 1, 8)
        assert queued.take() == [waiting]
        key = queued.store(LIMIT_MS - 1, 7)
        queued.queue.add(key)
        assert queued.take() == [key]

    def test_no_new_records_are_read_while_too_many_wait(self, monkeypatch):
        monkeypatch.setattr(removal_queue, "WAITING_MAX", 3)
        queued = Queued()
        keys = [queued.store(1, inode) for inode in range(5)]
        assert queued.take() == keys[:3]
        assert queued.take() == []
        queued.remove(keys[1])
        assert queued.take() == [keys[3]]


class TestClock:
    def started(self, world: World, clock: ManualClock) -> RemovalClock:
        removals = RemovalClock(world.engine, clock)
        world.run(removals.start())
        return removals

    def test_moments_of_the_next_process_are_later(self, world):
        clock = PatientClock()
        before = self.started(world, clock)
        clock.advance(50)
        moment = before.now_ms()
        rebooted = PatientClock(start_s=1.0)  # a boot clock starts again
        after = self.started(world, rebooted)
        assert after.now_ms() > moment
        assert after.age_ms() == 0

    def test_stands_still_rather_than_use_what_is_not_reserved(self, world):
        clock = PatientClock()
        removals = self.started(world, clock)
        clock.advance(RESERVED_MS / 1000 + 100)
        moment = removals.now_ms()
        assert moment < self.started(world, clock).now_ms()
        clock.advance(1)
        assert removals.now_ms() == moment

    def test_extension_lets_the_clock_run(self, world):
        clock = PatientClock()
        removals = self.started(world, clock)
        first = removals.now_ms()
        for _ in range(9):
            clock.advance(RESERVED_MS / 3000)
            world.run(removals.extend())
        assert removals.now_ms() == first + 3 * RESERVED_MS


class TestWallClock:
    def stepping(self) -> World:
        world = World()
        world.clock.advance(10)
        return world

    def test_step_forwards_does_not_shorten_the_delay(self):
        world = self.stepping()
        inode, _ = world.chunked(b"f", b"x" * CHUNK)
        other, _ = world.chunked(b"g", b"x" * CHUNK)
        world.unlink(b"f")
        world.set_attr(b"g", length=0)
        world.clock.offset_ns += 3600 * 10**9
        world.clock.advance(0.9)
        world.collect()
        assert world.control.contents() == {inode.content, other.content}
        world.clock.advance(0.2)
        world.collect()
        assert world.control.contents() == set()

    @pytest.mark.parametrize("restarts", [False, True])
    def test_step_back_does_not_keep_what_was_removed_before(self, restarts):
        world = self.stepping()
        world.chunked(b"f", b"x" * CHUNK)
        world.chunked(b"g", b"x" * CHUNK)
        world.unlink(b"f")
        world.set_attr(b"g", length=0)
        world.clock.offset_ns -= 365 * 86400 * 10**9
        if restarts:
            world.crash()
        world.clock.advance(1.1)
        world.collect()
        assert world.control.contents() == set()
        check_store(world)

    def test_restart_grants_readers_the_whole_delay_again(self):
        world = self.stepping()
        inode, _ = world.chunked(b"f", b"x" * CHUNK)
        world.set_attr(b"f", length=0)
        world.clock.advance(0.9)
        world.crash()
        world.clock.advance(0.9)
        world.collect()
        assert world.control.contents() == {inode.content}


class TestWorkPerRemoval:
    """What RocksDB passes in scans, most of it deleted keys: work that no clock has to measure."""

    def skipped(self, tmp_path, count: int, remove) -> float:
        options = store_options()
        options.enable_statistics()
        world = World(RocksEngine(tmp_path / str(count), create=True, options=options))
        world.mkdir(b"d")
        for number in range(count):
            made = world.create(b"d/%06d" % number)
            world.close_one(made.inode.id, made.session)
        before = keys_skipped(options)
        remove(world, count)
        world.clock.advance(2)
        world.collect(count)
        assert world.keys(b"O") == []
        total = keys_skipped(options) - before
        # Later a trickle of removals, each followed by a round.
        before = keys_skipped(options)
        for _ in range(20):
            world.create(b"one", write=False)
            world.unlink(b"one")
            world.clock.advance(2)
            world.collect()
        trickle = (keys_skipped(options) - before) / 20
        world.engine.close()
        return max(total / count, trickle)

    def unlink_all(self, world: World, count: int) -> None:
        for number in range(count):
            world.unlink(b"d/%06d" % number)

    def remove_tree(self, world: World, count: int) -> None:
        world.remove_tree(b"d")

    @pytest.mark.parametrize("how", ["unlink_all", "remove_tree"])
    def test_does_not_grow_with_the_number_removed(self, tmp_path, how):
        remove = getattr(self, how)
        few, many = (self.skipped(tmp_path, count, remove) for count in (300, 1800))
        assert many <= 2 * few + 5
        assert many < 50


def keys_skipped(options) -> int:
    lines = options.get_statistics().splitlines()
    (skipped,) = [line for line in lines if line.startswith("rocksdb.number.iter.skip ")]
    return int(skipped.rpartition(":")[2])
