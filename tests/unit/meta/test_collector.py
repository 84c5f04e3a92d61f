"""What the collector must leave alone, and until when."""

from luciola.errors import NotFound
from luciola.meta import schema
from luciola.meta.removal_queue import RETRY_S
from luciola.wire.pb import meta_pb2 as pb

from .world import CHAINS, CHUNK, TIMEOUT_S, World, check_store, refused

DATA = b"x" * (2 * CHUNK)


class TestDelays:
    def test_unlinked_files_wait(self, world):
        inode, _ = world.chunked(b"f", DATA)
        world.clock.advance(100)
        world.unlink(b"f")
        world.collect()
        world.clock.advance(0.9)
        world.collect()
        assert world.control.contents() == {inode.content}
        world.clock.advance(0.2)
        world.collect()
        assert world.control.contents() == set()

    def test_replaced_content_waits(self, world):
        inode, _ = world.chunked(b"f", DATA)
        world.clock.advance(100)
        world.set_attr(b"f", length=0)
        world.collect()
        assert world.control.contents() == {inode.content}
        world.clock.advance(1.1)
        world.collect()
        assert world.control.contents() == set()
        check_store(world)

    def test_chains_without_chunks_are_not_asked(self, world):
        world.chunked(b"one", b"x")
        world.chunked(b"three", b"x" * (2 * CHUNK + 1))
        for name, count in ((b"one", 1), (b"three", 3)):
            world.unlink(name)
            world.clock.advance(2)
            calls = world.control.calls
            world.collect()
            assert world.control.calls - calls == count
        assert world.control.contents() == set()

    def test_unreported_bytes_of_a_replaced_content_go_too(self, world):
        inode, session = world.chunked(b"f", b"x", close=False)
        world.write(inode, 3 * CHUNK, b"not reported yet")
        world.set_attr(b"f", length=0, session=session)
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == set()

    def test_inline_files_ask_no_chain(self, world):
        reply = world.create(b"f")
        world.close_one(reply.inode.id, reply.session, has_inline=True, inline_data=b"abc", inline_base=1)
        world.unlink(b"f")
        world.clock.advance(2)
        world.collect()
        assert world.control.calls == 0
        assert len(world.keys(b"I")) == 1

    def test_held_inodes_do_not_keep_others_waiting(self):
        world = World(gc_batch=4)
        for number in range(12):
            world.create(b"%02d" % number, write=False)
            if number < 9:
                world.open(b"%02d" % number)
            world.unlink(b"%02d" % number)
        world.clock.advance(100)
        for _ in range(4):
            world.run(world.collector.round())
        assert len(world.keys(b"O")) == 9


class TestHistory:
    """Chunks stay as long as a state may be restored in which a file had them."""

    def test_removed_and_replaced_contents_stay_for_the_history(self):
        world = World(history_s=100.0)
        removed, _ = world.chunked(b"removed", DATA)
        replaced, _ = world.chunked(b"replaced", DATA)
        world.clock.advance(1000)
        world.unlink(b"removed")
        world.set_attr(b"replaced", length=0)
        world.clock.advance(50)
        world.collect()
        world.clock.advance(49)
        world.crash()  # the next process does not wait for all of it again
        world.clock.advance(0.9)
        world.collect()
        assert world.control.contents() == {removed.content, replaced.content}
        check_store(world)
        listed = world.run(_all(world.service.scan_removed(pb.ScanRequest(), world.identity)))
        assert {each.content for each in listed} == {removed.content, replaced.content}
        world.clock.advance(52)  # an inode is erased by the collector, and its content is kept from then on
        world.collect()
        assert world.control.contents() == set()
        assert world.keys(b"G") == world.keys(b"H") == []

    def test_a_clock_that_is_set_forwards_ends_nothing(self):
        world = World(history_s=100.0)
        inode, _ = world.chunked(b"f", DATA)
        world.unlink(b"f")
        world.clock.offset_ns = 10**15
        world.clock.advance(2)
        world.collect()
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == {inode.content}

    def test_a_history_that_is_switched_off_ends_what_was_kept(self):
        world = World(history_s=1e6)
        world.chunked(b"f", DATA)
        world.unlink(b"f")
        world.clock.advance(2)
        world.collect()
        assert len(world.keys(b"H")) == 1
        world.history_s = 0.0
        world.crash()
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == set()


async def _all(stream):
    return [each async for each in stream]


class TestTrouble:
    def test_content_in_use_is_never_removed(self, world):
        """Even if a record says so: this one is wrong."""
        inode, _ = world.chunked(b"f", DATA)
        transaction = world.engine.begin()
        transaction.put(schema.garbage_key(1, inode.content), schema.encode_garbage(inode, 1, length=40))
        transaction.commit()
        world.clock.advance(2)
        world.collect()
        assert world.read(world.lookup(b"f")) == DATA
        assert world.keys(b"G") == []

    def test_silent_chains_delay_only_their_own(self, world):
        world.chunked(b"f", DATA)
        world.mkdir(b"d", layout=pb.Layout(stripe=1))
        reply = world.create(b"d/g", layout=pb.Layout(chunk_bytes=CHUNK, stripe=1, inline_bytes=0))
        world.write(reply.inode, 0, b"x")
        world.close_one(reply.inode.id, reply.session, length=1)
        (chain,) = world.placer.chains(reply.inode.layout)
        world.unlink(b"f")
        world.unlink(b"d/g")
        world.clock.advance(2)
        world.control.down.update(set(CHAINS) - {chain})
        world.collect()
        assert reply.inode.content not in world.control.contents()
        assert len(world.keys(b"G")) == 1
        world.control.down.clear()
        world.clock.advance(RETRY_S)
        world.collect()
        assert world.control.contents() == set()

    def test_unreadable_record_stays_and_blocks_no_other(self, world):
        world.chunked(b"f", DATA)
        world.unlink(b"f")
        transaction = world.engine.begin()
        transaction.put(schema.garbage_key(1, 5), b"\xff\xff")
        transaction.commit()
        world.clock.advance(2)
        world.collect()
        assert world.control.contents() == set()
        assert world.keys(b"G") == [schema.garbage_key(1, 5)]

    def test_unknown_table_delays(self, world):
        world.chunked(b"f", DATA)
        world.unlink(b"f")
        world.clock.advance(2)
        world.placer.set_tables([])
        world.collect()
        assert len(world.keys(b"G")) == 1


class TestPruning:
    def prune(self, world, advance):
        world.clock.advance(advance)
        world.collect()

    def open_(self, world):
        inode, session = world.chunked(b"f", b"", close=False, client=9)
        world.open(b"f", client=9)
        world.write(inode, CHUNK, b"abc")
        return inode, session

    def test_known_clients_keep_their_sessions(self, world):
        self.open_(world)
        world.members.known = {9}
        for _ in range(5):
            self.prune(world, TIMEOUT_S)
        assert (world.dependencies.writers.count, world.dependencies.holds.count) == (1, 1)

    def test_unknown_clients_lose_them_after_a_while(self, world):
        inode, session = self.open_(world)
        world.members.known = set()
        self.prune(world, 0)
        self.prune(world, TIMEOUT_S - 1)
        assert (world.dependencies.writers.count, world.dependencies.holds.count) == (1, 1)
        self.prune(world, 6)
        assert (world.dependencies.writers.count, world.dependencies.holds.count) == (0, 0)
        settled = world.stat(b"f", client=2)
        assert settled.length == CHUNK + 3
        assert world.read(settled) == bytes(CHUNK) + b"abc"
        check_store(world)
        # It was not dead after all: its close still counts.
        world.write(inode, CHUNK, b"abcdef")
        result, error = world.close_one(inode.id, session, length=CHUNK + 6, client=9)
        assert not error.code
        assert result.inode.length == CHUNK + 6

    def test_no_client_is_unknown_while_mgmtd_bootstraps(self, world):
        self.open_(world)
        for _ in range(5):
            world.members.known = None
            self.prune(world, TIMEOUT_S)
        world.members.known = set()
        self.prune(world, 6)
        assert world.dependencies.writers.count == 1

    def test_a_client_that_comes_back_is_forgiven(self, world):
        self.open_(world)
        for known in (set(), {9}, set()):
            world.members.known = known
            self.prune(world, TIMEOUT_S - 6)
        assert world.dependencies.writers.count == 1

    def test_session_waits_for_its_chains(self, world):
        self.open_(world)
        world.members.known = set()
        self.prune(world, 0)
        world.control.down.update(CHAINS)
        self.prune(world, TIMEOUT_S + 1)
        assert world.dependencies.writers.count == 1
        world.control.down.clear()
        self.prune(world, 6)
        assert world.dependencies.writers.count == 0
        assert world.stat(b"f").length == CHUNK + 3

    def test_unlinked_file_of_a_dead_client_goes(self, world):
        self.open_(world)
        world.unlink(b"f")
        world.members.known = set()
        self.prune(world, 10)
        assert world.control.contents()
        self.prune(world, TIMEOUT_S + 1)
        self.prune(world, 6)
        assert world.control.contents() == set()
        assert len(world.keys(b"I")) == 1

    def test_a_dead_writer_of_an_inline_file_asks_no_chain(self, world):
        world.create(b"f", client=9)
        world.control.down.update(CHAINS)
        world.members.known = set()
        self.prune(world, 0)
        self.prune(world, TIMEOUT_S + 1)
        assert world.dependencies.writers.count == 0


def test_hold_is_replaced_as_a_whole(world):
    numbers = [world.create(b"%d" % index, write=False).inode.id for index in range(3)]
    world.call("hold", pb.HoldRequest(inodes=[numbers[0], numbers[0], numbers[1]]), client=4)
    assert world.dependencies.holds.count == 3
    world.call("hold", pb.HoldRequest(inodes=[numbers[2]]), client=4)
    assert world.dependencies.holds.count == 1
    for index in range(3):
        world.unlink(b"%d" % index)
    world.clock.advance(100)
    world.collect()
    with refused(NotFound):
        world.stat(b"", at=numbers[0])
    assert world.stat(b"", at=numbers[2]).id


class TestChainsThatAreAway:
    def test_dead_chain_is_asked_once_for_many_abandoned_sessions(self, world):
        inodes = [world.chunked(f"f{n}".encode(), b"x", close=False) for n in range(8)]
        world.control.down.update(CHAINS)
        for inode, session in inodes:
            world.close_one(inode.id, session, measure=True)
        calls, retry = world.control.calls, world.control.retried_calls
        world.run(world.collector.end_abandoned())
        assert world.control.calls - calls <= len(CHAINS) * len(CHAINS)
        calls = world.control.calls
        world.run(world.collector.end_abandoned())
        assert world.control.calls == calls, "all chains are known to be away"
        assert world.control.retried_calls == retry
        world.control.down.clear()
        world.clock.advance(RETRY_S)
        world.run(world.collector.end_abandoned())
        assert world.dependencies.writers.abandoned == []

    def test_abandoned_sessions_are_ended_some_at_a_time(self):
        world = World(gc_batch=2)
        for n in range(3):
            inode, session = world.chunked(f"f{n}".encode(), b"x", close=False)
            world.close_one(inode.id, session, measure=True)
        assert world.run(world.collector.end_abandoned()) == 2
        assert world.run(world.collector.end_abandoned()) == 1

    def test_chunks_on_other_chains_go_while_one_is_away(self, world):
        inode, _ = world.chunked(b"f", b"x" * (len(CHAINS) * CHUNK))
        holders = {chain for chain in CHAINS if world.control.chunks.get((chain, inode.content))}
        assert len(holders) > 1
        dead = min(holders)
        world.control.down.add(dead)
        world.unlink(b"f")
        for _ in range(3):
            world.clock.advance(RETRY_S)
            world.run(world.collector.round())
        left = {chain for chain in CHAINS if world.control.chunks.get((chain, inode.content))}
        assert left == {dead}
        world.control.down.clear()
        world.clock.advance(RETRY_S)
        world.collect()
        assert world.control.contents() == set()
        assert world.keys(b"G") == []
