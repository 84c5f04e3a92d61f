"""Group commit: one behaviour a test, and seeded runs of clients over a store that fails."""

import asyncio
import random
from collections.abc import Awaitable, Callable

import pytest

from luciola.errors import Busy, Conflict, Error, InvalidArgument, MaybeCommitted, Unavailable
from luciola.kv import MemoryEngine, run
from luciola.kv.engine import VALUE_BYTES_MAX
from luciola.kv.grouped import GROUPS_MAX, Group, GroupedEngine
from luciola.kv.overlay import Layer
from luciola.kv.record import OPERATIONS_MAX, RECORD_BYTES_MAX, decode_record, replay

CLIENTS = 6
TURNS = 40


def put(engine, **pairs):
    transaction = engine.begin()
    for key, value in pairs.items():
        transaction.put(key.encode(), value)
    return transaction.commit()


def get(engine, key):
    return engine.begin().get(key)


class Stores:
    """Stores groups in an engine when a test says so, and fails when it says so."""

    def __init__(self, inner):
        self.inner = inner
        self.records: list[bytes] = []
        self.begun: asyncio.Queue[asyncio.Future[None]] = asyncio.Queue()

    async def __call__(self, group: Group):
        self.records.append(group.record())
        outcome = asyncio.get_running_loop().create_future()
        self.begun.put_nowait(outcome)
        await outcome
        transaction = self.inner.begin()
        replay(decode_record(group.record()), transaction)
        transaction.commit()


def by_hand():
    inner = MemoryEngine()
    store = Stores(inner)
    return GroupedEngine(inner, store), store, inner


def in_loop(test: Callable[[], Awaitable[None]]):
    """The test runs in an event loop, whose tasks are all done at its end."""

    def runs():
        asyncio.run(asyncio.wait_for(test(), 100))

    runs.__name__ = test.__name__
    return runs


@in_loop
async def test_commit_is_visible_at_once_and_stored_later():
    engine, store, inner = by_hand()
    put(engine, a=b"1")
    assert get(engine, b"a") == b"1"
    waiting = asyncio.ensure_future(engine.unstored.stored())
    outcome = await store.begun.get()
    assert (get(inner, b"a"), waiting.done()) == (None, False)
    outcome.set_result(None)
    await waiting
    assert (get(inner, b"a"), get(engine, b"a"), engine.unstored) == (b"1", b"1", None)


@in_loop
async def test_commits_of_one_turn_and_those_during_a_store_are_one_record_each():
    engine, store, _ = by_hand()
    put(engine, a=b"1")
    put(engine, b=b"2")
    first = await store.begun.get()
    put(engine, c=b"3")
    put(engine, d=b"4")
    first.set_result(None)
    (await store.begun.get()).set_result(None)
    await engine.sync()
    keys = [[list(each.writes) for each in decode_record(record)] for record in store.records]
    assert keys == [[[b"a"], [b"b"]], [[b"c"], [b"d"]]]


@in_loop
async def test_group_that_was_stored_meanwhile_does_not_keep_its_waiter():
    engine, store, _ = by_hand()
    put(engine, a=b"1")
    group = engine.unstored
    (await store.begun.get()).set_result(None)
    await engine.sync()
    await group.stored()


@in_loop
async def test_failed_group_takes_all_later_commits_with_it():
    engine, store, inner = by_hand()
    put(engine, a=b"1")
    first = engine.unstored
    outcome = await store.begun.get()
    put(engine, b=b"2")
    later = engine.unstored
    outcome.set_exception(Unavailable("no quorum"))
    for group in (first, later):
        with pytest.raises(Unavailable, match="no quorum"):
            await group.stored()
    assert engine.failure is not None
    assert inner.begin().get_range(b"", b"\xff") == []
    with pytest.raises(Unavailable):
        get(engine, b"a")
    with pytest.raises(Unavailable):
        put(engine, c=b"3")


@in_loop
async def test_unknown_outcome_is_said_to_all_who_may_have_seen_it():
    engine, store, _ = by_hand()
    put(engine, a=b"1")
    first = engine.unstored
    outcome = await store.begun.get()
    put(engine, b=b"2")
    later = engine.unstored
    outcome.set_exception(MaybeCommitted("no reply"))
    with pytest.raises(MaybeCommitted):
        await first.stored()
    with pytest.raises(Unavailable):  # certain: its record was never sent
        await later.stored()
    with pytest.raises(MaybeCommitted):  # asked late: it may have seen the first
        await engine.unstored.stored()
    with pytest.raises(MaybeCommitted):
        await engine.sync()


@in_loop
async def test_transaction_that_began_before_a_failure_is_not_committed():
    engine, store, _ = by_hand()
    put(engine, a=b"1")
    begun = engine.begin()
    assert begun.get(b"a") == b"1"
    begun.put(b"b", b"2")
    (await store.begun.get()).set_exception(Unavailable("no quorum"))
    with pytest.raises(Unavailable):
        await engine.unstored.stored()
    with pytest.raises(Unavailable):
        begun.commit()


@in_loop
async def test_defect_of_the_store_leaves_an_unknown_outcome():
    engine, store, _ = by_hand()
    put(engine, a=b"1")
    (await store.begun.get()).set_exception(KeyError("defect"))
    with pytest.raises(MaybeCommitted, match="defect"):
        await engine.sync()
    with pytest.raises(KeyError):
        await engine._storing


@in_loop
async def test_view_sees_its_version_while_its_group_is_stored_and_others_follow():
    engine, store, _ = by_hand()
    put(engine, a=b"1", b=b"1")
    view = engine.begin()
    assert view.snapshot_get(b"a") == b"1"
    (await store.begun.get()).set_result(None)
    await engine.sync()
    put(engine, a=b"2", c=b"2")
    remove = engine.begin()
    remove.delete_range(b"b", b"c")
    remove.commit()
    assert view.get_range(b"a", b"z") == [(b"a", b"1"), (b"b", b"1")]
    assert engine.begin().get_range(b"a", b"z") == [(b"a", b"2"), (b"c", b"2")]
    (await store.begun.get()).set_result(None)
    await engine.sync()
    assert view.get_range(b"a", b"z") == [(b"a", b"1"), (b"b", b"1")]
    with pytest.raises(Conflict):
        view.put(b"d", b"")
        view.commit()


@in_loop
async def test_snapshot_is_of_its_moment_while_groups_are_stored():
    engine, store, _ = by_hand()
    put(engine, a=b"1", b=b"1")
    (pairs,) = engine.snapshot([(b"a", b"z")])
    put(engine, a=b"2", c=b"2")
    (await store.begun.get()).set_result(None)
    await engine.sync()
    assert list(pairs) == [(b"a", b"1"), (b"b", b"1")]


@in_loop
async def test_group_is_bounded_in_bytes_and_operations():
    engine, store, _ = by_hand()
    for number in range(8):
        put(engine, **{f"k{number}": b"v" * VALUE_BYTES_MAX})
    for _ in range(OPERATIONS_MAX + 1):
        put(engine, small=b"")
    waiting = asyncio.ensure_future(engine.sync())
    while not waiting.done():
        step = asyncio.ensure_future(store.begun.get())
        await asyncio.wait({step, waiting}, return_when=asyncio.FIRST_COMPLETED)
        if step.done():
            step.result().set_result(None)
        else:
            step.cancel()
    await waiting
    assert max(map(len, store.records)) <= RECORD_BYTES_MAX
    counts = [len(decode_record(record)) for record in store.records]
    assert sum(counts) == 8 + OPERATIONS_MAX + 1
    assert max(counts) <= OPERATIONS_MAX


@in_loop
async def test_operations_of_one_transaction_are_recorded_apart_and_stay_together():
    engine, store, inner = by_hand()
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    transaction.end_operation()
    transaction.end_operation()
    transaction.put(b"a", b"2")
    transaction.put(b"b", b"2")
    assert transaction.get(b"a") == b"2"
    transaction.end_operation()
    transaction.delete(b"b")
    transaction.commit()
    assert (get(engine, b"a"), get(engine, b"b")) == (b"2", None)
    waiting = asyncio.ensure_future(engine.sync())
    (await store.begun.get()).set_result(None)
    await waiting
    (record,) = store.records
    assert [operation.writes for operation in decode_record(record)] == [
        {b"a": b"1"},
        {b"a": b"2", b"b": b"2"},
        {b"b": None},
    ]
    assert (get(inner, b"a"), get(inner, b"b")) == (b"2", None)


@in_loop
async def test_operations_of_one_transaction_that_fit_no_record_together_are_refused():
    engine, _, _ = by_hand()
    transaction = engine.begin()
    for number in range(8):
        transaction.put(b"%d" % number, b"v" * (RECORD_BYTES_MAX // 8))
        transaction.end_operation()
    with pytest.raises(InvalidArgument, match="at most"):
        transaction.commit()
    assert get(engine, b"0") is None
    assert engine.unstored is None


def test_what_waits_is_bounded():
    engine = GroupedEngine(MemoryEngine())
    value = b"v" * VALUE_BYTES_MAX
    with pytest.raises(Busy):
        for number in range(4 * GROUPS_MAX + 1):
            put(engine, **{f"k{number}": value})
    assert engine.failure is None
    asyncio.run(engine.sync())
    put(engine, more=value)
    engine.close()


@in_loop
async def test_close_throws_away_what_is_not_stored():
    engine, store, inner = by_hand()
    put(engine, a=b"1")
    group = engine.unstored
    await store.begun.get()
    engine.close()
    with pytest.raises(MaybeCommitted):
        await group.stored()
    await asyncio.wait({engine._storing})
    assert get(inner, b"a") is None


@in_loop
async def test_run_returns_when_its_commit_is_stored_and_raises_when_it_is_lost():
    engine, store, inner = by_hand()
    running = asyncio.ensure_future(run(engine, lambda txn: txn.put(b"a", b"1")))
    outcome = await store.begun.get()
    reading = asyncio.ensure_future(run(engine, lambda txn: txn.get(b"a")))
    await asyncio.sleep(0)
    assert not running.done()
    assert not reading.done()
    outcome.set_result(None)
    await running
    assert await reading == b"1"
    running = asyncio.ensure_future(run(engine, lambda txn: txn.put(b"a", b"2")))
    (await store.begun.get()).set_exception(Unavailable("no quorum"))
    with pytest.raises(Unavailable):
        await running
    assert get(inner, b"a") == b"1"


# Seeded runs: clients add one to a counter and leave a key of their own; now and then a group fails.


class Unreliable:
    """Takes some turns to store a group; the last one of a run fails, in one of three ways."""

    def __init__(self, inner, dice: random.Random):
        self.inner = inner
        self.dice = dice
        self.until_failure = dice.randint(1, 12)

    async def __call__(self, group: Group):
        for _ in range(self.dice.randint(0, 5)):
            await asyncio.sleep(0)
        self.until_failure -= 1
        outcome = "stored" if self.until_failure else self.dice.choice(("lost", "maybe done", "maybe lost"))
        if outcome in ("stored", "maybe done"):
            transaction = self.inner.begin()
            replay(decode_record(group.record()), transaction)
            transaction.commit()
        for _ in range(self.dice.randint(0, 2)):
            await asyncio.sleep(0)
        if outcome == "lost":
            raise Unavailable("lost")
        if outcome != "stored":
            raise MaybeCommitted(outcome)


class Run:
    """One engine's life, and what its clients were answered."""

    def __init__(self, seed: int, kind: type[GroupedEngine]):
        self.dice = random.Random(seed)
        self.inner = MemoryEngine()
        self.engine = kind(self.inner, Unreliable(self.inner, self.dice))
        self.wrong: list[str] = []
        self.order: list[bytes] = []  # keys, as committed
        self.answers: dict[bytes, str] = {}

    def stored_count(self) -> int:
        return int(self.inner.begin().get(b"count") or b"0")

    async def client(self, number: int):
        for step in range(TURNS):
            for _ in range(self.dice.randint(0, 3)):
                await asyncio.sleep(0)
            try:
                if self.dice.random() < 0.4:
                    await self.read()
                else:
                    await self.add(b"k%d.%d" % (number, step))
            except Error:
                if self.engine.failure is not None:
                    return

    async def read(self):
        transaction = self.engine.begin()
        count = int(transaction.get(b"count") or b"0")
        keys = len(transaction.get_range(b"k", b"l"))
        if keys != count:
            self.wrong.append(f"K2: {keys} keys beside a count of {count}")
        await self.finished()
        if count > self.stored_count():
            self.wrong.append(f"G2: a count of {count} was shown, {self.stored_count()} is stored")

    async def add(self, key: bytes):
        transaction = self.engine.begin()
        count = int(transaction.get(b"count") or b"0")
        transaction.put(b"count", b"%d" % (count + 1))
        transaction.put(key, b"")
        transaction.commit()
        self.order.append(key)
        try:
            await self.finished()
        except MaybeCommitted:
            self.answers[key] = "maybe"
            raise
        except Unavailable:
            self.answers[key] = "no"
            raise
        self.answers[key] = "yes"
        if self.inner.begin().get(key) is None:
            self.wrong.append(f"G2: {key!r} was acknowledged before it was stored")

    async def finished(self):
        unstored = self.engine.unstored
        if unstored is not None:
            await unstored.stored()

    async def whole(self):
        await asyncio.gather(*(self.client(number) for number in range(CLIENTS)))
        if self.engine.failure is None:
            await self.engine.sync()
        elif self.engine._storing is not None:
            await asyncio.wait({self.engine._storing})
        self.check()

    def check(self):
        present = {key for key, _ in self.inner.begin().get_range(b"k", b"l")}
        if [key for key in self.order if key in present] != self.order[: len(present)]:
            self.wrong.append("G1: a commit is stored, and one before it is not")
        if len(present) != self.stored_count():
            self.wrong.append(f"K1: {len(present)} keys are stored beside a count of {self.stored_count()}")
        for key, answer in self.answers.items():
            if answer != "maybe" and (answer == "yes") != (key in present):
                self.wrong.append(f"G3: {key!r} was answered {answer!r}, and is stored: {key in present}")
        if self.engine.failure is not None:
            try:
                self.engine.begin().get(b"count")
                self.wrong.append("G3: a failed engine shows what it has lost")
            except Unavailable:
                pass


def faults_of(seed: int, kind: type[GroupedEngine] = GroupedEngine) -> list[str]:
    run_of_seed = Run(seed, kind)
    try:
        asyncio.run(asyncio.wait_for(run_of_seed.whole(), 100))
    except AssertionError as error:
        run_of_seed.wrong.append(f"assertion: {error}")
    return run_of_seed.wrong


@pytest.mark.parametrize("seed", range(60))
def test_clients_over_a_store_that_fails(seed):
    assert faults_of(seed) == []


class AnswersAtOnce(GroupedEngine):
    @property
    def unstored(self):
        return self._lost


class ForgetsWhatIsBeingStored(GroupedEngine):
    def _begin_storing(self):
        if self._groups and not self._groups[-1].operations[-1].cleared:
            for group in list(self._groups)[:-1]:
                group.layer = Layer()
        super()._begin_storing()


class StoresAfterAFailure(GroupedEngine):
    def _throw_away(self, error):
        group = self._groups.popleft()
        group.end(error if isinstance(error, MaybeCommitted) else Unavailable(str(error)))


class TakesUnknownForLost(GroupedEngine):
    def _throw_away(self, error):
        super()._throw_away(Unavailable(str(error)))


class TakesLostForUnknownStored(GroupedEngine):
    def _throw_away(self, error):
        while self._groups:
            self._groups.popleft().end(None)
        self.fail(error)


class ShowsWhatIsLost(GroupedEngine):
    def look(self):
        return super(GroupedEngine, self).look()


class ForgetsTheFailure(GroupedEngine):
    @property
    def unstored(self):
        return self._groups[-1] if self._groups else None

    def look(self):
        return super(GroupedEngine, self).look()


class StoresOnlyTheFirst(GroupedEngine):
    async def _store_groups(self):
        for group in self._groups:
            del group._encoded[1:], group.operations[1:]
        await super()._store_groups()


@pytest.mark.parametrize(
    "mistake",
    [
        AnswersAtOnce,
        ForgetsWhatIsBeingStored,
        StoresAfterAFailure,
        TakesUnknownForLost,
        TakesLostForUnknownStored,
        ShowsWhatIsLost,
        ForgetsTheFailure,
        StoresOnlyTheFirst,
    ],
)
def test_mistake_is_found(mistake):
    assert any(faults_of(seed, mistake) for seed in range(60))
