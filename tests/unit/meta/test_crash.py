"""The process ends at any commit, or between two calls to storage; or the machine loses power."""

import asyncio

import pytest

from luciola.errors import Conflict, NotFound
from luciola.kv import Engine, MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.meta import schema
from luciola.meta.allocator import RANGE, Allocator
from luciola.meta.layout import chains_of
from luciola.wire.pb import meta_pb2 as pb

from .scenarios import CLEANING, SCENARIOS, Scenario
from .test_faults import plain
from .world import CHAINS, CHUNK, World, check_store, dump, refused

DATA = b"0123456789abcdef" * (CHUNK // 16) * 3


class Crash(BaseException):
    """The process is no more."""


class CrashingEngine(FaultyEngine):
    """Ends the process before or after one of its commits."""

    def __init__(self, inner: Engine) -> None:
        super().__init__(inner, lambda _: Fault.NONE)
        self.before: int | None = None
        self.after: int | None = None

    def commit(self, transaction):
        if self.commits == self.before:
            raise Crash
        version = super().commit(transaction)
        if self.commits - 1 == self.after:
            raise Crash
        return version


def finish(world: World, scenario: Scenario):
    """After a crash: the service starts, the client sends its request again, and everything settles."""
    world.crash()
    if scenario.cleans:
        world.clock.advance(100)
    return scenario.act(world)


def settled(world: World, reply):
    check_store(world)
    seen = dump(world)
    world.clock.advance(100)
    world.collect()
    check_store(world)
    queues = tuple(len(world.keys(kind)) for kind in (b"S", b"O", b"G", b"P"))
    return plain(reply), seen, dump(world), queues


def count(scenario: Scenario):
    """(commits, storage calls, outcome) when nothing fails."""
    engine = CrashingEngine(MemoryEngine())
    world = World(engine)
    scenario.prepare(world)
    commits, calls = engine.commits, world.control.calls
    reply = scenario.act(world)
    commits, calls = engine.commits - commits, world.control.calls - calls
    result = settled(world, reply)
    world.close()
    return commits, calls, result


@pytest.mark.parametrize("scenario", SCENARIOS + CLEANING, ids=lambda scenario: scenario.name)
def test_crash_at_every_commit_and_call(scenario):
    commits, calls, expected = count(scenario)
    points = [(place, number) for place in ("before", "after") for number in range(commits)]
    points += [("call", number) for number in range(calls)]
    for place, number in points:
        engine = CrashingEngine(MemoryEngine())
        world = World(engine)
        scenario.prepare(world)
        if place == "call":
            world.control.crash_at = world.control.calls + number
        else:
            setattr(engine, place, engine.commits + number)
        with pytest.raises(Crash):
            scenario.act(world)
        engine.before = engine.after = world.control.crash_at = None
        result = settled(world, finish(world, scenario))
        assert result == expected, f"crash {place} {number}"
        world.close()


@pytest.fixture(autouse=True)
def crashing_calls(monkeypatch):
    """Storage calls at which the process ends; the call itself is not carried out."""
    from luciola.meta.fake_control import FakeControl

    class CrashingControl(FakeControl):
        crash_at: int | None = None

        def _call(self, chain):
            if self.crash_at is not None and self.calls >= self.crash_at:
                raise Crash
            super()._call(chain)

    monkeypatch.setattr("meta.world.FakeControl", CrashingControl)


def test_crash_in_the_middle_of_removing_a_large_content(world):
    """Batches that were removed stay removed; the rest follows after the restart."""
    inode, session = world.chunked(b"big", b"x", close=False)
    for index in range(1000):
        chains = chains_of(inode.layout, CHAINS)
        world.control.write(chains[index % len(chains)], inode.content, index=index, data=b"y")
    world.close_one(inode.id, session, length=999 * CHUNK + 1)
    world.unlink(b"big")
    world.clock.advance(2)
    world.control.crash_at = world.control.calls + 2
    with pytest.raises(Crash):
        world.collect()
    left = sum(len(chunks) for chunks in world.control.chunks.values())
    assert 0 < left < 1000
    world.control.crash_at = None
    world.crash()
    world.clock.advance(2)
    world.collect()
    assert world.control.contents() == set()
    assert world.keys(b"G") == []


def test_truncation_that_was_cut_short_is_completed_without_its_client(world):
    inode, _ = world.chunked(b"f", DATA)
    world.control.crash_at = world.control.calls + 2
    with pytest.raises(Crash):
        world.set_attr(b"f", length=5)
    world.control.crash_at = None
    world.crash()
    assert inode.id in world.dependencies.truncations
    world.collect()
    cut = world.stat(b"f")
    assert (cut.length, cut.truncate_version) == (5, 1)
    longer = world.set_attr(b"f", length=len(DATA))
    assert world.read(longer) == DATA[:5].ljust(len(DATA), b"\0")
    check_store(world)


def test_first_request_after_a_crash_completes_the_truncation(world):
    world.chunked(b"f", DATA)
    world.control.crash_at = world.control.calls + 2
    with pytest.raises(Crash):
        world.set_attr(b"f", length=5)
    world.control.crash_at = None
    world.crash()

    assert world.stat(b"f").length == 5
    assert world.keys(b"P") == []


class PowerEngine(MemoryEngine):
    """Forgets, when the power goes, what was not synced."""

    def __init__(self) -> None:
        super().__init__()
        self.disk: list[tuple[bytes, bytes]] = []

    async def sync(self) -> None:
        self.disk = list(self.begin().snapshot_range(b"\0", b"\xfe"))

    def restore(self) -> "PowerEngine":
        engine = PowerEngine()
        transaction = engine.begin()
        for key, value in self.disk:
            transaction.put(key, value)
        transaction.commit()
        engine.disk = list(self.disk)
        return engine


def lose_power(world: World) -> None:
    world.engine = world.engine.restore()
    world.clock.reboot()
    world.crash()


def test_ids_that_a_client_has_reserved_survive_power_loss():
    world = World(PowerEngine())
    first = world.call("reserve_inodes", pb.ReserveInodesRequest(count=8)).first
    lose_power(world)
    create = pb.CreateRequest(path=pb.Path(at=1, path=b"f"), permissions=0o644, exclusive=True)
    results = world.call(
        "apply", pb.ApplyRequest(changes=[pb.Change(create=create, new_inode=first)])
    ).results
    assert [result.inode for result in results] == [first]
    assert world.create(b"g", write=False).inode.id >= first + 8
    world.close()


def test_ids_are_never_used_twice_not_even_after_power_loss():
    world = World(PowerEngine())
    seen_inodes, seen_contents = set(), set()
    for _ in range(4):
        for number in range(50):
            inode = world.create(b"%d" % number).inode
            assert inode.id not in seen_inodes
            assert inode.content not in seen_contents
            seen_inodes.add(inode.id)
            seen_contents.add(inode.content)
        lose_power(world)
        assert world.names() == []
    world.close()


def test_more_ids_than_one_range(world):
    engine = PowerEngine()
    allocator = Allocator(engine, b"t", world.clock)

    async def take(count):
        taken = []
        for _ in range(count):
            if allocator.is_low:
                await allocator.refill()
            taken.append(allocator.take())
        return taken

    taken = world.run(take(3 * RANGE))
    assert len(set(taken)) == len(taken)
    allocator = Allocator(engine.restore(), b"t", world.clock)
    assert not set(world.run(take(1000))) & set(taken)


def test_ranges_that_two_reserve_at_one_time_may_come_in_either_order(world):
    engine, synced = MemoryEngine(), []

    async def sync():
        synced.append(asyncio.Event())
        await synced[-1].wait()

    engine.sync = sync
    allocator = Allocator(engine, b"t", world.clock)

    async def reserve():
        refills = [asyncio.ensure_future(allocator.refill()) for _ in range(2)]
        await asyncio.sleep(0)
        assert len(synced) == 2
        for event, refill in zip(reversed(synced), reversed(refills), strict=True):
            event.set()
            await refill

    world.run(reserve())
    assert len({allocator.take() for _ in range(2 * RANGE)}) == 2 * RANGE


def test_create_waits_for_ids_when_there_are_none(world):
    world.dependencies.shared.inodes._next = world.dependencies.shared.inodes._end  # all taken
    world.dependencies.shared.inodes._reserve.clear()
    assert world.create(b"f").created


def test_chunks_go_only_when_the_removal_is_on_disk():
    world = World(PowerEngine(), gc_delay_ms=0)
    world.chunked(b"f", DATA)
    world.run(world.engine.sync())
    world.unlink(b"f")
    world.clock.advance(0.01)
    world.collect()
    assert world.control.contents() == set()
    lose_power(world)
    with refused(NotFound):
        world.lookup(b"f")
    world.close()


def test_chunks_are_cut_only_when_the_intent_is_on_disk():
    world = World(PowerEngine())
    world.chunked(b"f", DATA)
    world.run(world.engine.sync())
    world.control.crash_at = world.control.calls + 3
    with pytest.raises(Crash):
        world.set_attr(b"f", length=5)
    world.control.crash_at = None
    lose_power(world)
    world.collect()
    cut = world.stat(b"f")
    assert world.read(world.set_attr(b"f", length=len(DATA))) == DATA[:5].ljust(len(DATA), b"\0")
    assert cut.length == 5
    world.close()


class HeldEngine(PowerEngine):
    """Syncs when a test lets it."""

    def __init__(self) -> None:
        super().__init__()
        self.may_sync = asyncio.Event()
        self.may_sync.set()
        self.syncing = asyncio.Event()

    async def sync(self) -> None:
        self.syncing.set()
        await self.may_sync.wait()
        await super().sync()


def test_cancelled_truncation_cuts_nothing_before_its_intent_is_on_disk():
    world = World(HeldEngine())
    inode, _ = world.chunked(b"f", DATA)
    world.run(world.engine.sync())

    async def cancel():
        world.engine.may_sync.clear()
        world.engine.syncing.clear()
        request = pb.SetAttrRequest(path=pb.Path(at=inode.id), length=5, caller=world.caller())
        cut = asyncio.ensure_future(world.service.set_attr(request, world.identity))
        await asyncio.wait_for(world.engine.syncing.wait(), 100)
        cut.cancel()
        await asyncio.gather(cut, return_exceptions=True)
        request = pb.StatRequest(path=pb.Path(at=inode.id), caller=world.caller(sequence=0))
        look = asyncio.ensure_future(
            world.service.stat(request, world.identity)
        )  # carries out what is pending
        for _ in range(100):
            await asyncio.sleep(0)
        look.cancel()
        await asyncio.gather(look, return_exceptions=True)

    world.run(cancel())
    lose_power(world)
    assert world.read(world.stat(b"f")) == DATA
    world.close()


class TestPowerLossEverywhere:
    """The metadata service and all storage nodes lose power at the same moment, at every call to storage."""

    def outage(self, world: World, act, *, after_calls: int) -> bool:
        """Runs `act` until its call `after_calls`, then cuts the power. False: it made no more calls than that."""
        world.control.crash_at = world.control.calls + after_calls
        ended = True
        try:
            act()
        except Crash:
            ended = False
        world.control.crash_at = None
        world.control.lose_power()
        lose_power(world)
        return not ended

    @pytest.mark.parametrize("length", [0, 5, CHUNK, 2 * CHUNK + 7])
    def test_bytes_that_were_cut_off_do_not_come_back(self, length):
        calls = 0
        is_cut = True
        while is_cut:
            world = World(PowerEngine())
            _, session = world.chunked(b"f", DATA, close=False)
            world.run(world.engine.sync())
            other = {"client": 2} if length == 0 else {"session": session}

            def cut(world=world, other=other):
                world.set_attr(b"f", length=length, **other)
                world.run(world.engine.sync())  # what the write-ahead log does within 50 ms

            is_cut = self.outage(world, cut, after_calls=calls)
            calls += 1
            world.collect()
            found = world.stat(b"f")
            if found.length == length:
                longer = world.set_attr(b"f", length=len(DATA), client=2)
                assert world.read(longer) == DATA[:length].ljust(len(DATA), b"\0"), calls
            else:
                assert world.read(found) == DATA, calls
            world.close()
        assert calls > 4

    def test_garbage_is_not_forgotten_before_it_is_gone(self):
        calls = 0
        is_cut = True
        while is_cut:
            world = World(PowerEngine())
            world.chunked(b"f", DATA)
            world.chunked(b"g", DATA)
            world.unlink(b"f")
            world.unlink(b"g")
            world.run(world.engine.sync())
            world.clock.advance(2)

            def collect(world=world):
                world.collect()
                world.run(world.engine.sync())

            is_cut = self.outage(world, collect, after_calls=calls)
            calls += 1
            world.clock.advance(100)
            world.collect()
            assert world.control.contents() == set(), calls
            world.close()
        assert calls > 2


def test_durable_sync_survives_power_loss():
    world = World(PowerEngine())
    reply = world.create(b"f")
    world.sync(
        reply.inode.id, reply.session, has_inline=True, inline_data=b"abc", inline_base=1, durable=True
    )
    lose_power(world)
    assert world.read(world.lookup(b"f")) == b"abc"
    assert world.dependencies.writers.count == 1
    world.close()


class TestNumbersOfChanges:
    """Clients judge what they know of an inode by `change`: a state that was lost must not look newer, nor the same."""

    def after_loss(self) -> World:
        """A file that has "ab", whose client had seen two changes more."""
        world = World(PowerEngine())
        reply = world.create(b"f")
        self.write(world, reply.session, b"ab")
        world.run(world.engine.sync())
        self.lost = [self.write(world, reply.session, data) for data in (b"abc", b"abcd")]
        self.session = reply.session
        lose_power(world)
        return world

    def write(self, world: World, session: int, data: bytes, base: int | None = None):
        """The inode after the whole content was written over the state that is there."""
        seen = world.lookup(b"f")
        base = seen.change if base is None else base
        sync = {"has_inline": True, "inline_data": data, "inline_base": base}
        return world.sync(seen.id, session, **sync)

    def test_what_is_there_after_a_loss_of_power_is_newer_than_what_was_lost(self):
        world = self.after_loss()
        found = world.lookup(b"f")
        assert found.inline_data == b"ab"
        assert found.change > max(inode.change for inode in self.lost)
        assert world.lookup(b"f").change == found.change, "nothing has changed since"
        assert self.write(world, self.session, b"abX").change == found.change + 1
        world.close()

    def test_every_reply_shows_the_same_number(self):
        """And it is the one that reports are made from."""
        world = self.after_loss()
        found = world.lookup(b"f")
        shown = {
            "stat": world.stat(b"f"),
            "open": world.open(b"f").inode,
            "stat by number": world.stat(b"", at=found.id),
            "sync without anything to report": world.sync(found.id),
        }
        assert {name: inode.change for name, inode in shown.items()} == dict.fromkeys(shown, found.change)
        world.rename(b"f", b"g")
        assert world.stat(b"g").change >= found.change
        lose_power(world)
        result, error = world.close_one(found.id, self.session, length=2)
        assert not error.code
        assert not result.HasField("inode") or result.inode.change > found.change
        world.close()

    def test_bytes_made_from_a_lost_state_are_always_refused(self):
        world = self.after_loss()
        for number in range(4):
            for lost in self.lost:
                with refused(Conflict):
                    self.write(world, self.session, lost.inline_data + b"!", base=lost.change)
            assert self.write(world, self.session, b"ab%d" % number).inline_data == b"ab%d" % number
        world.close()

    def test_changes_by_the_service_itself_get_new_numbers_too(self):
        """A truncation that is completed after the loss, and the end of a session whose client is gone."""
        world = World(PowerEngine())
        inode, _ = world.chunked(b"f", DATA, close=False, client=9)
        world.run(world.engine.sync())

        def is_counted(act) -> bool:
            lose_power(world)
            before = world.stat(b"f").change
            act()
            return self.stored(world, inode.id).change > before

        def end_session():
            world.members.known = set()
            for advance in (0, 60, 60, 60):
                world.clock.advance(advance)
                world.collect()
            assert world.dependencies.writers.count == 0

        assert is_counted(lambda: world.set_attr(b"f", length=5))
        assert is_counted(end_session)
        world.close()

    def stored(self, world: World, inode: int):
        return schema.decode_inode(world.engine.begin().snapshot_get(schema.inode_key(inode)))


def test_durable_sync_of_a_directory_keeps_its_names():
    world = World(PowerEngine())
    directory = world.mkdir(b"a").id
    world.create(b"a/f")
    world.sync(directory, 0, durable=True)
    lose_power(world)
    assert world.names(directory) == [b"f"]
    world.close()


def test_every_reply_survives_power_loss_if_so_configured():
    world = World(PowerEngine(), durability="sync")
    world.mkdir(b"a")
    world.create(b"a/f")
    lose_power(world)
    assert world.stat(b"a/f").id
    world.unlink(b"a/f")
    lose_power(world)
    assert world.names(world.stat(b"a").id) == []
    world.close()


def test_store_of_another_cluster_is_refused(world):
    from luciola.errors import ConfigError
    from luciola.meta.bootstrap import format_store

    with refused(ConfigError):
        world.run(format_store(world.engine, cluster_id="other", clock=world.clock, create=False))
    world.run(format_store(world.engine, cluster_id="test", clock=world.clock, create=False))
    transaction = world.engine.begin()
    transaction.put(schema.SUPERBLOCK, b"\x09\0\0\0test")
    transaction.commit()
    with pytest.raises(ConfigError, match="have format 9, and this release reads format 5: run the release"):
        world.run(format_store(world.engine, cluster_id="test", clock=world.clock, create=False))
