"""Retries, with a clock that only the test moves."""

import asyncio

import pytest

from luciola.clock import ManualClock
from luciola.errors import Conflict, MaybeCommitted, NotFound
from luciola.kv import Durability, MemoryEngine, Retry, run
from luciola.kv.faulty import Fault, FaultyEngine, at, every, randomly


class Impatient(ManualClock):
    """Sleeping takes no time, but it is written down."""

    def __init__(self) -> None:
        super().__init__()
        self.slept: list[float] = []

    async def sleep(self, duration_s: float) -> None:
        self.slept.append(duration_s)
        self.advance(duration_s)


class SyncCounting(MemoryEngine):
    syncs = 0

    async def sync(self) -> None:
        self.syncs += 1


def write(transaction):
    transaction.put(b"a", b"1")
    return "done"


def test_operation_runs_once_when_nothing_goes_wrong():
    clock = Impatient()
    assert asyncio.run(run(MemoryEngine(), write, clock=clock)) == "done"
    assert clock.slept == []


@pytest.mark.parametrize("fault", [Fault.CONFLICT, Fault.MAYBE_DONE, Fault.MAYBE_LOST])
def test_every_fault_is_retried(fault):
    engine = FaultyEngine(MemoryEngine(), at(0, fault))
    assert asyncio.run(run(engine, write, clock=Impatient())) == "done"
    assert engine.commits == 2
    assert engine.begin().get(b"a") == b"1"


@pytest.mark.parametrize(("fault", "error"), [(Fault.CONFLICT, Conflict), (Fault.MAYBE_LOST, MaybeCommitted)])
def test_tries_are_limited_and_the_last_error_is_raised(fault, error):
    engine = FaultyEngine(MemoryEngine(), lambda _number: fault)
    with pytest.raises(error):
        asyncio.run(run(engine, write, clock=Impatient()))
    assert engine.commits == 10


def test_waits_grow_and_are_bounded():
    clock = Impatient()
    engine = FaultyEngine(MemoryEngine(), lambda _number: Fault.CONFLICT)
    with pytest.raises(Conflict):
        asyncio.run(run(engine, write, retry=Retry(tries=20, max_s=0.1, total_s=1e9), clock=clock))
    assert len(clock.slept) == 19
    assert max(clock.slept) <= 0.1
    assert clock.slept[0] < 0.01 < clock.slept[-1]


def test_time_is_limited():
    clock = Impatient()
    engine = FaultyEngine(MemoryEngine(), lambda _number: Fault.CONFLICT)
    with pytest.raises(Conflict):
        asyncio.run(run(engine, write, retry=Retry(tries=1_000_000, max_s=1, total_s=5), clock=clock))
    assert 5 < sum(clock.slept) < 7


def test_other_errors_pass_and_nothing_is_written():
    engine = MemoryEngine()

    def fails(transaction):
        transaction.put(b"a", b"1")
        raise NotFound("no")

    with pytest.raises(NotFound):
        asyncio.run(run(engine, fails))
    assert engine.begin().get(b"a") is None


def test_conflict_while_reading_is_retried():
    tries = []

    def reads(transaction):
        tries.append(transaction)
        if len(tries) == 1:
            raise Conflict("too old")

    asyncio.run(run(MemoryEngine(), reads, clock=Impatient()))
    assert len(tries) == 2


@pytest.mark.parametrize(("durability", "syncs"), [(Durability.WRITE, 0), (Durability.SYNC, 1)])
def test_sync_durability_waits_for_the_disk(durability, syncs):
    engine = SyncCounting()
    asyncio.run(run(engine, write, durability=durability))
    assert engine.syncs == syncs


def test_every_operation_fails_once_with_every():
    engine = FaultyEngine(MemoryEngine(), every(Fault.MAYBE_DONE))
    for _ in range(5):
        asyncio.run(run(engine, write, clock=Impatient()))
    assert engine.commits == 10


def test_idempotent_counter_survives_random_faults():
    engine = FaultyEngine(MemoryEngine(), randomly(seed=7))

    def add(request: bytes):
        def operation(transaction):
            if transaction.get(b"seen/" + request) is not None:
                return
            transaction.put(b"seen/" + request, b"")
            transaction.put(b"count", b"%d" % (int(transaction.get(b"count") or b"0") + 1))

        return operation

    for number in range(200):
        asyncio.run(run(engine, add(b"%d" % number), clock=Impatient()))
    assert engine.begin().get(b"count") == b"200"
    assert engine.commits > 230, "the plan injected nothing"
