"""Replies over an engine that stores commits later: one behaviour a test, and seeded runs over a store that fails."""

import asyncio
import contextlib
import inspect
import random

import pytest

from luciola.errors import AlreadyExists, Busy, Error, MaybeCommitted, NotFound, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.grouped import Group, GroupedEngine
from luciola.kv.record import replay
from luciola.meta import committed_replies, schema
from luciola.meta.committed_replies import CommittedReplies, committed
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller, Empty
from luciola.wire.preserialized import Preserialized

from .scenarios import CLEANING, SCENARIOS
from .test_faults import plain
from .world import World, check_store, dump


class Store:
    """Stores each group at once, until it is held up; then a test says what happens to the next."""

    def __init__(self, inner):
        self.inner = inner
        self.held: asyncio.Queue[asyncio.Future[None]] | None = None

    async def __call__(self, group: Group):
        if self.held is not None:
            outcome = asyncio.get_running_loop().create_future()
            self.held.put_nowait(outcome)
            await outcome
        transaction = self.inner.begin()
        replay(group.operations, transaction)
        transaction.commit()


class Late:
    """A service over an engine whose next record is stored, or lost, when a test says so."""

    def __init__(self):
        self.inner = MemoryEngine()
        self.store = Store(self.inner)
        self.engine = GroupedEngine(self.inner, self.store)
        self.world = World(self.engine)
        self.store.held = asyncio.Queue()

    def send(self, name, request, *, sequence=0, client=1):
        """Send a request from within the event loop; its reply is a task."""
        if isinstance(request, Empty):
            pass
        elif "caller" in request.DESCRIPTOR.fields_by_name:
            request.caller.CopyFrom(Caller(client=client, sequence=sequence))
        try:
            answer = getattr(self.world.service, name)(request, self.world.identity)
        except Error as error:
            answer = _raise(error)
        if not inspect.isawaitable(answer):
            answer = _return(answer)
        return asyncio.ensure_future(answer)

    def create(self, name, *, sequence, exclusive=False):
        path = pb.Path(at=1, path=name)
        request = pb.CreateRequest(path=path, permissions=0o644, exclusive=exclusive)
        return self.send("create", request, sequence=sequence)

    def stat(self, name):
        return self.send("stat", pb.StatRequest(path=pb.Path(at=1, path=name), follow=True))

    def run(self, scene):
        self.world.run(asyncio.wait_for(scene, 100))


async def _raise(error):
    raise error


async def _return(value):
    return value


async def turns(count=20):
    """Let every task do what it can do."""
    for _ in range(count):
        await asyncio.sleep(0)


def whole(reply):
    return reply.message() if isinstance(reply, Preserialized) else reply


@pytest.fixture
def late():
    return Late()


def test_service_over_an_engine_that_stores_at_once_is_as_it_is():
    world = World()
    assert not isinstance(world.service, CommittedReplies)
    service = object()
    assert committed(service, world.engine) is service


def test_replies_refusals_and_reads_wait_for_what_they_have_seen(late):
    async def scene():
        before = await late.stat(b"/")
        sent = {
            "create": late.create(b"a", sequence=1, exclusive=True),
            "refusal": late.create(b"a", sequence=2, exclusive=True),
            "read": late.stat(b"a"),
            "count": late.send("stat_fs", pb.StatFsRequest()),
            "hold": late.send("hold", pb.HoldRequest(inodes=[1])),
        }
        await turns()
        assert [name for name, reply in sent.items() if reply.done()] == []
        (await late.store.held.get()).set_result(None)
        with pytest.raises(AlreadyExists):
            await sent["refusal"]
        created, read = whole(await sent["create"]), whole(await sent["read"])
        assert created.inode.id == read.inode.id
        assert (await sent["count"]).inode_count == 2
        assert whole(before).inode.id == 1
        await sent["hold"]
        assert schema.inode_key(created.inode.id) in dict(late.inner.begin().get_range(b"I", b"J"))

    late.run(scene())


def test_reply_that_saw_the_record_in_flight_does_not_wait_for_the_next(late):
    async def scene():
        first = late.create(b"a", sequence=1)
        read = late.stat(b"a")
        outcome = await late.store.held.get()
        second = late.create(b"b", sequence=2)
        outcome.set_result(None)
        await first
        await read
        assert not second.done()
        (await late.store.held.get()).set_result(None)
        await second

    late.run(scene())


def test_refusal_whose_record_is_stored_before_it_waits_is_not_kept(late):
    """The lane starts what a handler returns in a turn of its own."""

    async def scene():
        created = late.create(b"a", sequence=1)
        path = pb.Path(at=1, path=b"a")
        request = pb.CreateRequest(path=path, exclusive=True, caller=Caller(client=1, sequence=2))
        refusal = late.world.service.create(request, late.world.identity)
        (await late.store.held.get()).set_result(None)
        await created
        with pytest.raises(AlreadyExists):
            await refusal

    late.run(scene())


@pytest.mark.parametrize(
    ("failure", "answer"),
    [(Unavailable("no quorum"), Unavailable), (MaybeCommitted("no reply"), MaybeCommitted)],
)
def test_lost_record_answers_all_that_have_seen_it(late, failure, answer):
    async def scene():
        sent = [
            late.create(b"a", sequence=1, exclusive=True),
            late.create(b"a", sequence=2, exclusive=True),
            late.stat(b"a"),
            late.send("stat_fs", pb.StatFsRequest()),
        ]
        (await late.store.held.get()).set_exception(failure)
        for reply in sent:
            with pytest.raises(answer):
                await reply

    late.run(scene())


def test_nothing_is_answered_from_memory_that_follows_what_is_lost(late):
    async def scene():
        created = late.create(b"a", sequence=1)
        (await late.store.held.get()).set_exception(Unavailable("no quorum"))
        with pytest.raises(Unavailable):
            await created
        for name, request in (
            ("stat_fs", pb.StatFsRequest()),
            ("hold", pb.HoldRequest(inodes=[1], keep_holds=True)),
            ("status", Empty()),
            ("stat", pb.StatRequest(path=pb.Path(at=1))),
        ):
            with pytest.raises(Unavailable):
                await late.send(name, request)
        with pytest.raises(Unavailable):
            await anext(late.world.service.scan_inodes(pb.ScanRequest(), late.world.identity))

    late.run(scene())


def test_items_of_a_stream_wait_for_what_they_have_seen(late):
    async def scene():
        created = late.create(b"a", sequence=1)
        stream = late.world.service.scan_dentries(pb.ScanRequest(), late.world.identity)
        item = asyncio.ensure_future(anext(stream))
        outcome = await late.store.held.get()
        await turns()
        assert not item.done()
        outcome.set_result(None)
        assert (await item).entry.name == b"a"
        await created
        await stream.aclose()

    late.run(scene())


class Streams:
    """A service of which only streams are used: they end with an error."""

    def __init__(self, engine):
        self.engine = engine
        self.closed = False

    def __getattr__(self, name):
        return self.stream

    async def stream(self, request, identity):
        try:
            yield pb.Inode(id=int(self.engine.begin().get(b"a")))
            raise Busy("enough")
        finally:
            self.closed = True


def test_refusal_of_a_stream_waits_for_what_it_has_seen_and_follows_its_items():
    inner = MemoryEngine()
    store = Store(inner)
    engine = GroupedEngine(inner, store)

    async def scene():
        store.held = asyncio.Queue()
        transaction = engine.begin()
        transaction.put(b"a", b"7")
        transaction.commit()
        streams = Streams(engine)
        stream = CommittedReplies(streams, engine).scan_inodes(pb.ScanRequest(), None)
        item = asyncio.ensure_future(anext(stream))
        outcome = await store.held.get()
        await turns()
        assert not item.done()
        outcome.set_result(None)
        assert (await item).id == 7
        with pytest.raises(Busy):
            await anext(stream)
        assert streams.closed

    asyncio.run(asyncio.wait_for(scene(), 100))


def test_stream_that_is_given_up_is_closed():
    engine = GroupedEngine(MemoryEngine())
    streams = Streams(engine)

    async def scene():
        transaction = engine.begin()
        transaction.put(b"a", b"7")
        transaction.commit()
        many = CommittedReplies(streams, engine)
        stream = many.scan_inodes(pb.ScanRequest(), None)
        assert (await anext(stream)).id == 7
        await stream.aclose()
        assert streams.closed

    asyncio.run(asyncio.wait_for(scene(), 100))


@pytest.mark.parametrize("scenario", SCENARIOS + CLEANING, ids=lambda scenario: scenario.name)
def test_operation_has_the_same_effect_when_commits_are_stored_later(scenario):
    outcomes = []
    for engine in (MemoryEngine(), GroupedEngine(MemoryEngine())):
        world = World(engine)
        scenario.prepare(world)
        reply = scenario.act(world)
        world.run(engine.sync())
        if isinstance(engine, GroupedEngine):  # only what is stored counts
            world.engine = engine.inner
            world.start()
        check_store(world)
        outcomes.append(
            (plain(reply), dump(world), [len(world.keys(kind)) for kind in (b"S", b"O", b"G", b"P")])
        )
    assert outcomes[0] == outcomes[1]


# Seeded runs. Names that begin with "n" are made and stay, names that begin with "o" are there and go: whatever shows
# that one has come or gone is true of the store as well, when it leaves the service.


class Unreliable:
    """Takes some turns to store a group, and fails once, in one of three ways."""

    def __init__(self, inner, dice: random.Random):
        self.inner = inner
        self.dice = dice
        self.until_failure = 1 << 30

    async def __call__(self, group: Group):
        for _ in range(self.dice.randint(0, 6)):
            await asyncio.sleep(0)
        self.until_failure -= 1
        outcome = "stored" if self.until_failure else self.dice.choice(("lost", "maybe done", "maybe lost"))
        if outcome in ("stored", "maybe done"):
            transaction = self.inner.begin()
            replay(group.operations, transaction)
            transaction.commit()
        for _ in range(self.dice.randint(0, 2)):
            await asyncio.sleep(0)
        if outcome == "lost":
            raise Unavailable("lost")
        if outcome != "stored":
            raise MaybeCommitted(outcome)


NAMES = 12
STEPS = 25


class Run:
    """Clients of one service, and what is wrong with its answers."""

    def __init__(self, seed: int):
        self.dice = random.Random(seed)
        self.inner = MemoryEngine()
        store = Unreliable(self.inner, self.dice)
        self.engine = GroupedEngine(self.inner, store)
        self.world = World(self.engine)
        for number in range(NAMES):
            self.world.create(b"o%d" % number, write=False)
        self.world.run(self.engine.sync())
        store.until_failure = self.dice.randint(1, 25)
        self.wrong: list[str] = []
        self.sequence = 1_000_000

    def stored(self, name: bytes) -> bool:
        return self.inner.begin().get(schema.entry_key(1, name)) is not None

    async def ask(self, verb, request):
        self.sequence += 1
        request.caller.CopyFrom(
            Caller(client=1, sequence=self.sequence if verb in ("create", "unlink") else 0)
        )
        answer = getattr(self.world.service, verb)(request, self.world.identity)
        return whole(await answer if inspect.isawaitable(answer) else answer)

    async def client(self):
        for _ in range(STEPS):
            for _ in range(self.dice.randint(0, 3)):
                await asyncio.sleep(0)
            try:
                await self.dice.choice((self.make, self.remove, self.look, self.count, self.scan))()
            except (Unavailable, MaybeCommitted):
                if self.engine.failure is not None:
                    return

    async def make(self):
        name = b"n%d" % self.dice.randrange(NAMES)
        path = pb.Path(at=1, path=name)
        with contextlib.suppress(AlreadyExists):
            await self.ask("create", pb.CreateRequest(path=path, permissions=0o644, exclusive=True))
        self.expect(name, there=True)

    async def remove(self):
        name = b"o%d" % self.dice.randrange(NAMES)
        with contextlib.suppress(NotFound):
            await self.ask("unlink", pb.UnlinkRequest(path=pb.Path(at=1, path=name)))
        self.expect(name, there=False)

    async def look(self):
        name = self.dice.choice((b"n", b"o")) + b"%d" % self.dice.randrange(NAMES)
        try:
            await self.ask("lookup", pb.LookupRequest(parent=1, name=name))
        except NotFound:
            if name.startswith(b"o"):
                self.expect(name, there=False)
        else:
            if name.startswith(b"n"):
                self.expect(name, there=True)

    async def count(self):
        reply = await self.ask("stat_fs", pb.StatFsRequest())
        stored = len(self.inner.begin().get_range(b"I", b"J"))
        if reply.inode_count > stored:
            self.wrong.append(f"{reply.inode_count} inodes were shown, and {stored} are stored")

    async def scan(self):
        async for each in self.world.service.scan_dentries(pb.ScanRequest(), self.world.identity):
            if each.entry.name.startswith(b"n"):
                self.expect(each.entry.name, there=True)

    def expect(self, name: bytes, *, there: bool):
        if self.stored(name) != there:
            self.wrong.append(
                f"{name!r} was shown {'' if there else 'not '}to be there before that was stored"
            )

    async def whole(self):
        await asyncio.gather(*(self.client() for _ in range(8)))
        if self.engine.failure is not None:
            try:
                await self.ask("stat_fs", pb.StatFsRequest())
                self.wrong.append("a service that has lost commits answers")
            except Unavailable:
                pass


def faults_of(seed: int) -> list[str]:
    run = Run(seed)
    run.world.run(asyncio.wait_for(run.whole(), 100))
    run.world.close()
    return run.wrong


@pytest.mark.parametrize("seed", range(25))
def test_answers_over_a_store_that_fails(seed):
    assert faults_of(seed) == []


def reads_at_once(replies, handler, request, identity):
    if type(request) in (pb.LookupRequest, pb.StatFsRequest):
        replies._require_engine()
        return handler(request, identity)
    return CORRECT["_unary"](replies, handler, request, identity)


def refuses_at_once(replies, handler, request, identity):
    replies._require_engine()
    reply = handler(request, identity)  # its error leaves at once
    if inspect.isawaitable(reply):
        return replies._answered(reply)
    unstored = replies._engine.unstored
    return reply if unstored is None else committed_replies._stored(unstored, reply)


def counts_after_a_failure(replies, handler, request, identity):
    if type(request) is pb.StatFsRequest and replies._engine.failure is not None:
        return handler(request, identity)
    return CORRECT["_unary"](replies, handler, request, identity)


def changes_at_once(replies, handler, request, identity):
    replies._require_engine()
    return handler(request, identity)


def streams_at_once(replies, handler, request, identity):
    return handler(request, identity)


CORRECT = {"_unary": CommittedReplies._unary, "_stream": CommittedReplies._stream}


@pytest.mark.parametrize(
    ("place", "mistake"),
    [
        ("_unary", reads_at_once),
        ("_unary", refuses_at_once),
        ("_unary", counts_after_a_failure),
        ("_unary", changes_at_once),
        ("_stream", streams_at_once),
    ],
    ids=lambda each: each if isinstance(each, str) else each.__name__,
)
def test_mistake_is_found(place, mistake, monkeypatch):
    monkeypatch.setattr(CommittedReplies, place, mistake)
    assert any(faults_of(seed) for seed in range(25))
