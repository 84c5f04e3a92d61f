"""Requests that their clients have settled: void when they come late, and their answers gone."""

import contextlib
import random
from dataclasses import replace

import pytest

from luciola.errors import Busy, InvalidArgument, NotFound, PermissionDenied
from luciola.kv import MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine, at
from luciola.meta import requests, schema
from luciola.wire import CLIENT, Identity
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller

from .world import World, refused


def request_of(kind, *, sequence: int, settled_below: int = 0, client: int = 1, **fields):
    """A request as a client that keeps a mark sends it."""
    caller = Caller(client=client, sequence=sequence, settled_below=settled_below)
    return kind(caller=caller, **fields)


def unlink(name: bytes, **who):
    return request_of(pb.UnlinkRequest, path=pb.Path(at=1, path=name), **who)


def mkdir(name: bytes, **who):
    return request_of(pb.MkdirRequest, path=pb.Path(at=1, path=name), permissions=0o755, **who)


def send(world: World, request):
    handler = {
        pb.UnlinkRequest: "unlink",
        pb.MkdirRequest: "mkdir",
        pb.OpenRequest: "open",
        pb.HoldRequest: "hold",
    }[type(request)]
    return world.run(getattr(world.service, handler)(request, world.identity))


def stored(world: World) -> set[int]:
    """The requests whose answers are in the store."""
    pairs = world.engine.begin().snapshot_range(*schema.kind_range(b"R"))
    return {schema.decode_record(value).sequence for _, value in pairs}


class TestVoid:
    def test_late_unlink_spares_a_file_created_after_it_was_given_up(self, world):
        world.create(b"f", sequence=1)
        late = unlink(b"f", sequence=2)  # given up by its client before it arrived
        send(world, unlink(b"f", sequence=3, settled_below=3))
        created = world.create(b"f", sequence=4).inode
        with refused(InvalidArgument):
            send(world, late)
        assert world.lookup(b"f", sequence=0).id == created.id

    def test_request_that_waits_here_ends_when_its_client_gives_it_up(self):
        engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
        world = World(engine)
        engine.plan = at(engine.commits, Fault.CONFLICT)
        late = world.service.mkdir(mkdir(b"late", sequence=100), world.identity)  # lost to another, waits
        send(world, mkdir(b"d", sequence=101, settled_below=101))
        with refused(InvalidArgument):
            world.run(late)
        assert world.names(sequence=0) == [b"d"]

    def test_mark_of_one_client_is_not_that_of_another(self, world):
        send(world, mkdir(b"a", sequence=9, settled_below=9, client=1))
        send(world, mkdir(b"b", sequence=5, client=2))
        assert world.names(sequence=0) == [b"a", b"b"]

    def test_mark_never_falls(self, world):
        send(world, mkdir(b"a", sequence=9, settled_below=9))
        send(world, mkdir(b"b", sequence=10, settled_below=3))
        with refused(InvalidArgument):
            send(world, mkdir(b"c", sequence=8, settled_below=3))

    def test_live_request_below_newer_ones_is_carried_out(self, world):
        send(world, mkdir(b"a", sequence=9, settled_below=7))
        send(world, mkdir(b"b", sequence=7, settled_below=2))
        assert world.names(sequence=0) == [b"a", b"b"]

    def test_mark_of_a_caller_who_is_refused_counts_for_nothing(self, world):
        stranger = Identity(CLIENT, 1000, 1000, ())
        with refused(PermissionDenied):
            world.run(world.service.mkdir(mkdir(b"a", sequence=90, settled_below=90), stranger))
        send(world, mkdir(b"b", sequence=1))
        assert world.names(sequence=0) == [b"b"]

    def test_late_open_and_hold_hold_nothing(self, world):
        inode = world.create(b"f", sequence=1).inode.id
        send(world, mkdir(b"a", sequence=9, settled_below=9))
        with refused(InvalidArgument):
            send(world, request_of(pb.OpenRequest, sequence=3, path=pb.Path(at=inode), read=True))
        with refused(InvalidArgument):
            send(world, request_of(pb.HoldRequest, sequence=4, inodes=[inode]))
        assert world.dependencies.holds.count == 0

    def test_mark_above_its_own_request_is_refused(self, world):
        with refused(InvalidArgument):
            send(world, mkdir(b"a", sequence=3, settled_below=4))
        send(world, mkdir(b"a", sequence=3, settled_below=3))


class TestAnswers:
    def test_are_overwritten_by_that_to_the_next_request_of_their_client(self, world):
        for sequence in range(1, 200):
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=sequence))
        assert stored(world) == {199}

    def test_stay_while_their_requests_are_live(self, world):
        for sequence in range(1, 50):
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=1))
        first = send(world, mkdir(b"20", sequence=20, settled_below=1))
        assert first.inode.id == world.lookup(b"20", sequence=0).id
        assert len(world.keys(b"R")) == 49

    def test_of_a_long_queue_go_in_bounded_steps(self, world):
        for sequence in range(1, 300):
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=1))
        for sequence in range(300, 305):
            before = len(world.keys(b"R"))
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=sequence))
            assert before - len(world.keys(b"R")) <= requests.DROPPED_MAX
        assert len(world.keys(b"R")) <= requests.FREE_MAX + 1

    def test_outlive_a_restart_while_their_requests_are_live(self, world):
        for sequence in (1, 2, 3):
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=1))
        world.crash()
        again = send(world, mkdir(b"2", sequence=2, settled_below=1))
        assert again.inode.id == world.lookup(b"2", sequence=0).id
        send(world, mkdir(b"4", sequence=4, settled_below=4))
        again = send(world, mkdir(b"4", sequence=4, settled_below=4))
        assert again.inode.id == world.lookup(b"4", sequence=0).id

    def test_out_of_order_make_room_for_later_ones(self, world):
        for sequence in (5, 2, 9, 1, 7, 3):
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=1))
        for sequence in range(10, 15):
            send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=8))
        assert stored(world) == {9, 10, 11, 12, 13, 14}

    def test_requests_are_distinguished_where_one_could_not_overwrite_another(self):
        engine = FaultyEngine(MemoryEngine(), lambda _: Fault.NONE)
        world = World(engine)
        send(world, mkdir(b"a", sequence=1))
        engine.plan = at(engine.commits, Fault.MAYBE_LOST)
        second = send(world, mkdir(b"b", sequence=2, settled_below=2))
        assert second.inode.id == world.lookup(b"b", sequence=0).id
        assert stored(world) == {2}

    def test_to_random_requests_are_found_and_never_mixed_up(self, world):
        """Sent in any order, again after any number of others, with marks that rise and restarts between them."""
        choose = random.Random(8)
        mark, answers = 1, {}
        for _ in range(3000):
            sequence = choose.randrange(mark, mark + 40)
            answer = send(world, mkdir(b"%d" % sequence, sequence=sequence, settled_below=mark)).inode.id
            assert answers.setdefault(sequence, answer) == answer
            if choose.random() < 0.2:
                mark += choose.randrange(30)
            if choose.random() < 0.01:
                world.crash()
        assert set(answers) >= stored(world) >= {each for each in answers if each >= mark}


class TestClientsThatAreGone:
    def leave_behind(self, world: World, count: int, *, client: int = 7) -> None:
        """Answers in the store as a long run of unsettled requests leaves them."""
        for begin in range(0, count, 10_000):
            txn = world.engine.begin()
            for sequence in range(begin, min(count, begin + 10_000)):
                txn.put(schema.record_key(client, sequence + 1), schema.encode_record(sequence + 1, 25, b""))
            txn.commit()
        world.crash()

    def pass_time(self, world: World, duration_s: float) -> None:
        """Rounds of the collector, as they come while the process runs."""
        until_s = world.clock.monotonic() + duration_s
        while world.clock.monotonic() < until_s:
            world.collect(rounds=1000)
            world.clock.advance(5.0)

    def test_leave_nothing_of_a_hundred_thousand_answers(self):
        world = World(idempotence_ms=10_000)
        world.members.known = {1}
        self.leave_behind(world, 100_000)
        assert len(world.keys(b"R")) == 100_000
        self.pass_time(world, 120)
        assert world.keys(b"R") == []

    def test_rounds_count_the_answers_they_delete(self):
        world = World(idempotence_ms=10_000)
        world.members.known = set()
        self.leave_behind(world, 1000)
        self.pass_time(world, 60)
        world.clock.advance(20)
        assert world.run(world.collector.round()) > 0

    def test_known_to_the_manager_keep_their_answers(self):
        world = World(idempotence_ms=10_000)
        world.members.known = {7}
        self.leave_behind(world, 10)
        self.pass_time(world, 300)
        assert len(world.keys(b"R")) == 10

    def test_that_still_send_requests_keep_their_answers(self):
        world = World(idempotence_ms=100_000)
        world.members.known = set()
        send(world, mkdir(b"a", sequence=1, client=7))
        for _ in range(10):
            self.pass_time(world, 50)
            again = send(world, mkdir(b"a", sequence=1, client=7))
        assert again.inode.id == world.lookup(b"a", sequence=0).id

    def test_keep_their_answers_while_the_manager_cannot_say(self):
        world = World(idempotence_ms=10_000)
        self.leave_behind(world, 10)
        self.pass_time(world, 300)
        assert len(world.keys(b"R")) == 10

    def test_are_not_declared_gone_after_a_leap_of_the_clock(self):
        """A machine that slept: the manager has forgotten everybody too, and hears of them again within seconds."""
        world = World(idempotence_ms=10_000)
        world.members.known = {7}
        self.leave_behind(world, 10)
        self.pass_time(world, 60)
        world.members.known = set()
        world.clock.advance(8 * 3600)
        self.pass_time(world, 10)
        world.members.known = {7}
        self.pass_time(world, 300)
        assert len(world.keys(b"R")) == 10

    def test_wall_clock_forgets_nothing(self, monkeypatch):
        world = World(idempotence_ms=10_000)
        world.members.known = set()
        send(world, mkdir(b"a", sequence=1, client=7))
        leap_ns = world.clock.unix_ns() + 3600 * 10**9
        monkeypatch.setattr(world.clock, "unix_ns", lambda: leap_ns)
        world.collect()
        assert len(world.keys(b"R")) == 1


def test_clients_beyond_the_limit_are_refused(world, monkeypatch):
    monkeypatch.setattr(requests, "CLIENTS_MAX", 3)
    for client in (1, 2, 3):
        world.mkdir(b"%d" % client, client=client)
    with refused(Busy):
        world.mkdir(b"4", client=4)
    world.mkdir(b"5", client=3)
    with pytest.raises(NotFound):
        world.lookup(b"4", sequence=0)


def test_one_user_with_many_clients_leaves_room_for_others(world, monkeypatch):
    monkeypatch.setattr(requests, "CLIENTS_MAX", 80)
    hostile, honest = world.identity, [replace(world.identity, uid=uid) for uid in range(1, 5)]
    before = len(world.dependencies.requests._counts)
    for client in range(1000, 1200):
        with contextlib.suppress(Busy):
            world.mkdir(b"%d" % client, client=client)
    for number, each in enumerate(honest):
        world.identity = each
        world.mkdir(b"honest %d" % number, client=number + 1)
    world.identity = hostile
    with refused(Busy):
        world.mkdir(b"one more", client=1500)
    world.mkdir(b"again", client=1000)
    assert len(world.dependencies.requests._counts) <= before + 5


def test_numbered_request_names_its_client(world):
    with refused(InvalidArgument):
        world.mkdir(b"d", client=0)


def record_of(world: World, sequence: int) -> bytes:
    pairs = world.engine.begin().snapshot_range(*schema.kind_range(b"R"))
    return next(value for _, value in pairs if schema.decode_record(value).sequence == sequence)


REQUESTS = {
    "create": lambda world, sequence: world.create(b"new", sequence=sequence),
    "mkdir": lambda world, sequence: world.mkdir(b"d", sequence=sequence),
    "parents": lambda world, sequence: world.mkdir(b"d/e/f", parents=True, sequence=sequence),
    "symlink": lambda world, sequence: world.symlink(b"s", b"f", sequence=sequence),
    "set_attr": lambda world, sequence: world.set_attr(b"f", permissions=0o600, sequence=sequence),
    "rename": lambda world, sequence: world.rename(b"f", b"g", sequence=sequence),
    "link": lambda world, sequence: world.link(b"f", b"g", sequence=sequence),
    "unlink one of two": lambda world, sequence: world.unlink(b"second", sequence=sequence),
}


class TestRecordsAreSmall:
    """An inode that has a name is recorded by its id: asked again, its request gets it as it is then."""

    @pytest.mark.parametrize("name", REQUESTS)
    def test_answer_is_the_same_again_out_of_a_few_bytes(self, world, name):
        world.create(b"f", write=False)
        world.link(b"f", b"second")
        first = REQUESTS[name](world, 7777)
        assert len(record_of(world, 7777)) < 40
        world.crash()
        assert REQUESTS[name](world, 7777) == first

    def test_answer_to_a_close_is_the_same_again_out_of_a_few_bytes(self, world):
        opened = world.create(b"f")
        close = {"length": 5, "has_inline": True, "inline_data": b"hello", "inline_base": opened.inode.change}
        first = world.close_one(opened.inode.id, opened.session, sequence=7777, **close)
        assert first[0].inode.length == 5
        assert len(record_of(world, 7777)) < 40
        world.crash()
        assert world.close_one(opened.inode.id, opened.session, sequence=7777, **close) == first

    def test_record_of_an_earlier_release_is_read(self, world):
        found = world.create(b"f", write=False, sequence=7777).inode
        (key,) = world.keys(b"R")
        whole = pb.InodeReply(inode=found, session=5, created=True)
        transaction = world.engine.begin()
        lane = schema.decode_record(record_of(world, 7777)).method
        transaction.put(key, schema.encode_record(7777, lane, whole.SerializeToString()))
        transaction.commit()
        world.crash()
        again = world.create(b"f", write=False, sequence=7777)
        assert (again.inode, again.session, again.created) == (found, 5, True)
        transaction = world.engine.begin()  # and what is gone since is answered as it was
        transaction.delete(schema.inode_key(found.id))
        transaction.commit()
        assert world.create(b"f", write=False, sequence=7777).inode == found

    def test_file_that_was_removed_since_is_not_found(self, world):
        world.create(b"f", write=False, sequence=7777)
        world.unlink(b"f")
        world.clock.advance(10)
        world.collect()
        with refused(NotFound):
            world.create(b"f", write=False, sequence=7777)

    def test_close_of_a_file_that_was_removed_since_is_answered_without_news(self, world):
        opened = world.create(b"f")
        close = {"length": 0}
        world.close_one(opened.inode.id, opened.session, sequence=7777, **close)
        world.unlink(b"f")
        world.clock.advance(10)
        world.collect()
        result, error = world.close_one(opened.inode.id, opened.session, sequence=7777, **close)
        assert (result, error.code) == (pb.InodeReply(), "")

    def test_removed_file_is_recorded_as_it_was(self, world):
        world.create(b"f", write=False)
        first = world.unlink(b"f", sequence=7777)
        world.clock.advance(10)
        world.collect()
        again = world.unlink(b"f", sequence=7777)
        assert (again.id, again.link_count, again.ctime_ns) == (first.id, 0, first.ctime_ns)
