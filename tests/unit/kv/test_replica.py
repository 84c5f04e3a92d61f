"""Replicas in single situations, in virtual time. The random walks are in test_replica_simulation."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, suppress

import pytest

from luciola.errors import CorruptData, MaybeCommitted, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.applied import Applied
from luciola.kv.log import DRIFT, Diverged, MemoryLog, Trimmed
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from luciola.kv.replica import PrimaryEngine, Replica, Role, first_to_keep
from store_content import content
from virtual_loop import LoopClock, simulate

from .records import chain

LOG = b"cluster 1, meta"
LEASE_S = 4.0


class Process:
    """A replica that runs, its access to the log, and the engine of its present term."""

    def __init__(self, shared: MemoryLog, name: str, engine: MemoryEngine | None = None) -> None:
        self.engine = engine or MemoryEngine()
        self.log = FaultyLog(shared)
        self.applied = Applied(self.engine, log_id=LOG, create=True)
        self.replica = Replica(self.log, self.applied, owner=name, lease_s=LEASE_S, clock=LoopClock())
        self.leads = asyncio.Event()
        self.primary: PrimaryEngine | None = None
        self.stop_serving = asyncio.Event()
        self.serve_error: Exception | None = None
        self.task = asyncio.create_task(self.replica.run(self._serve))

    async def _serve(self, engine: PrimaryEngine) -> None:
        self.primary = engine
        self.leads.set()
        try:
            await self.stop_serving.wait()
            if self.serve_error is not None:
                raise self.serve_error
        finally:
            self.leads.clear()

    async def engine_of_term(self) -> PrimaryEngine:
        await self.leads.wait()
        assert self.primary is not None
        return self.primary

    async def kill(self) -> None:
        self.log.cut()
        await self.end()

    async def end(self) -> None:
        self.task.cancel()
        with suppress(asyncio.CancelledError, Exception):
            await self.task
        await self.log.close()


@asynccontextmanager
async def processes(shared: MemoryLog, *names: str) -> AsyncGenerator[list[Process]]:
    made = []
    try:
        for name in names:
            made.append(Process(shared, name))
            if len(made) == 1:
                await made[0].leads.wait()
        yield made
    finally:
        for each in made:
            await each.end()


def put(engine: PrimaryEngine, key: bytes, value: bytes = b"1") -> None:
    transaction = engine.begin()
    transaction.put(key, value)
    transaction.commit()


def now() -> float:
    return asyncio.get_running_loop().time()


def test_standby_becomes_equal_to_the_primary():
    async def scenario():
        async with processes(MemoryLog(), "first", "second", "third") as (first, second, third):
            engine = await first.engine_of_term()
            for number in range(50):
                put(engine, b"%d" % number)
                await engine.sync()
            await asyncio.sleep(1.0)
            assert content(first.engine) == content(second.engine) == content(third.engine)
            assert [each.replica.role for each in (first, second, third)] == [
                Role.PRIMARY,
                Role.STANDBY,
                Role.STANDBY,
            ]

    simulate(scenario())


def test_commit_is_visible_at_once_and_in_the_local_store_only_when_it_is_in_the_log():
    async def scenario():
        shared = MemoryLog()
        async with processes(shared, "first") as (first,):
            engine = await first.engine_of_term()
            first.log.plan = lambda method: Outcome(before_s=0.5)
            put(engine, b"a")
            assert engine.begin().get(b"a") == b"1"
            assert first.engine.begin().get(b"a") is None
            assert (await shared.bounds()).last.index == 0
            await engine.sync()
            assert first.engine.begin().get(b"a") == b"1"
            assert (await shared.bounds()).last.index == 1

    simulate(scenario())


def test_standby_takes_over_from_a_killed_primary_when_its_lease_has_run_out():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            put(await first.engine_of_term(), b"a")
            await (await first.engine_of_term()).sync()
            await first.kill()
            killed_s = now()
            engine = await second.engine_of_term()
            assert now() - killed_s <= LEASE_S * (1 + DRIFT) + 0.1
            assert engine.begin().get(b"a") == b"1"
            put(engine, b"b")
            await engine.sync()

    simulate(scenario())


def test_standby_takes_over_at_once_from_a_primary_that_ends():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            await asyncio.sleep(1.0)
            await first.end()
            ended_s = now()
            await second.engine_of_term()
            assert now() - ended_s < LEASE_S / 4

    simulate(scenario())


def test_replica_that_is_wanted_takes_over_at_once_when_the_others_hold_back():
    async def scenario():
        async with processes(MemoryLog(), "first", "second", "third") as (first, second, third):
            engine = await first.engine_of_term()
            put(engine, b"a")
            await engine.sync()
            held_s = now()
            second.replica.hold_back(20.0)
            first.replica.hold_back(20.0)
            engine = await third.engine_of_term()
            assert now() - held_s < LEASE_S / 4
            assert engine.begin().get(b"a") == b"1"
            await third.kill()
            await asyncio.sleep(20.0 - (now() - held_s) - 0.1)
            assert not first.leads.is_set()
            assert not second.leads.is_set()
            await asyncio.sleep(0.2)
            assert first.leads.is_set() or second.leads.is_set()

    simulate(scenario())


def test_replica_that_held_back_is_wanted_again():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            await asyncio.sleep(1.0)
            first.replica.hold_back(20.0)
            await second.engine_of_term()
            wanted_s = now()
            first.replica.hold_back(0.0)
            second.replica.hold_back(20.0)
            await first.engine_of_term()
            assert now() - wanted_s < LEASE_S / 4
            terms = first.replica.terms
            first.replica.hold_back(0.0)
            await asyncio.sleep(1.0)
            assert first.replica.terms == terms
            assert first.leads.is_set()

    simulate(scenario())


@pytest.mark.parametrize("delay_s", [0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.2])
def test_replica_that_holds_back_leads_no_more_also_if_it_was_about_to(delay_s):
    async def scenario():
        process = Process(MemoryLog(), "first")
        process.log.plan = lambda method: Outcome(before_s=0.25, after_s=0.25)
        try:
            await asyncio.sleep(delay_s)
            process.replica.hold_back(50.0)
            await asyncio.sleep(2 * LEASE_S)
            assert not process.leads.is_set()
            await asyncio.sleep(50.0)
            assert process.leads.is_set()
        finally:
            await process.end()

    simulate(scenario())


def test_primary_that_is_cut_off_refuses_everything_before_another_leads():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            engine = await first.engine_of_term()
            put(engine, b"a")
            await engine.sync()
            begun = engine.begin()
            first.log.cut()
            put(engine, b"lost")
            waiting = asyncio.create_task(engine.sync())
            other = await second.engine_of_term()
            for call in (
                engine.begin,
                engine.look,
                lambda: begun.get(b"a"),
                lambda: engine.snapshot([(b"a", b"b")]),
                lambda: put(engine, b"b"),
            ):
                with pytest.raises(Unavailable):
                    call()
            with pytest.raises(MaybeCommitted):
                await waiting
            assert other.begin().get(b"lost") is None

    simulate(scenario())


def test_commit_behind_one_that_was_lost_is_thrown_away_and_says_so():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            engine = await first.engine_of_term()
            first.log.cut()
            put(engine, b"in flight")
            in_flight = engine.unstored
            await asyncio.sleep(0.1)
            put(engine, b"behind")
            behind = engine.unstored
            await second.engine_of_term()
            with pytest.raises(MaybeCommitted):
                await in_flight.stored()
            with pytest.raises(Unavailable) as refused:
                await behind.stored()
            assert not isinstance(refused.value, MaybeCommitted)

    simulate(scenario())


def test_term_has_an_engine_of_its_own_and_epochs_grow():
    async def scenario():
        async with processes(MemoryLog(), "first") as (first,):
            earlier = await first.engine_of_term()
            put(earlier, b"a")
            await earlier.sync()
            first.log.cut()
            await asyncio.sleep(LEASE_S)
            first.log.join()
            later = await first.engine_of_term()
            assert later is not earlier
            assert later.epoch > earlier.epoch
            assert later.begin().get(b"a") == b"1"
            assert first.replica.terms == 2

    simulate(scenario())


def test_full_log_throws_the_commit_away_and_the_term_ends():
    async def scenario():
        async with processes(MemoryLog(), "first") as (first,):
            engine = await first.engine_of_term()
            first.log.plan = lambda method: Outcome(Fault.FULL if method != "end_claim" else Fault.NONE)
            put(engine, b"a")
            with pytest.raises(Unavailable, match="no space"):
                await engine.sync()
            await asyncio.sleep(2 * LEASE_S)
            assert first.replica.role is Role.STANDBY
            first.log.plan = lambda method: Outcome()
            later = await first.engine_of_term()
            assert later.begin().get(b"a") is None

    simulate(scenario())


def test_failed_engine_gives_the_leadership_to_another():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            (await first.engine_of_term()).fail(OSError("planted"))
            await second.engine_of_term()

    simulate(scenario())


def test_failed_local_store_ends_the_replica_and_another_leads():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            first.engine.fail(OSError("planted"))  # as a flush in the background
            await second.engine_of_term()
            with pytest.raises(Unavailable, match="local key-value store has failed"):
                await first.task
            assert first.replica.role is Role.STOPPED

    simulate(scenario())


def test_record_that_is_stored_but_not_carried_out_may_be_committed():
    class Failing(MemoryEngine):
        def apply(self, transaction):
            if b"bad" in transaction.writes:
                error = Unavailable("planted: the disk is gone")
                self.fail(error)
                raise error
            return super().apply(transaction)

    async def scenario():
        shared = MemoryLog()
        first = Process(shared, "first", Failing())
        try:
            engine = await first.engine_of_term()
            put(engine, b"bad")
            with pytest.raises(MaybeCommitted):
                await engine.sync()
            assert (await shared.bounds()).last.index == 1
        finally:
            await first.end()

    simulate(scenario())


def test_end_of_serving_ends_the_term_and_an_error_of_it_the_replica():
    async def scenario():
        async with processes(MemoryLog(), "first", "second") as (first, second):
            first.stop_serving.set()
            await second.engine_of_term()
            second.serve_error = CorruptData("planted")
            second.stop_serving.set()
            with pytest.raises(CorruptData, match="planted"):
                await second.task

    simulate(scenario())


def test_store_that_is_ahead_of_the_log_is_refused():
    async def scenario():
        engine = MemoryEngine()
        applied = Applied(engine, log_id=LOG, create=True)
        for each in chain(5):
            applied.apply(each)
        process = Process(MemoryLog(), "first", engine)  # restored from a snapshot of before
        try:
            with pytest.raises(Diverged):
                await process.task
        finally:
            await process.end()

    simulate(scenario())


def test_store_with_another_history_than_the_log_is_refused_and_never_serves():
    async def scenario():
        shared = MemoryLog()
        async with processes(shared, "first") as (first,):
            engine = await first.engine_of_term()
            for number in range(8):
                put(engine, b"%d" % number)
                await engine.sync()
        stranger = MemoryEngine()
        applied = Applied(stranger, log_id=LOG, create=True)
        for each in chain(8):
            applied.apply(each)
        process = Process(shared, "stranger", stranger)
        try:
            with pytest.raises(Diverged):
                await process.task
            assert process.replica.terms == 0
        finally:
            await process.end()

    simulate(scenario())


def test_store_that_is_behind_a_trimmed_log_needs_a_checkpoint():
    async def scenario():
        shared = MemoryLog()
        async with processes(shared, "first") as (first,):
            engine = await first.engine_of_term()
            for number in range(8):
                put(engine, b"%d" % number)
                await engine.sync()
            await shared.trim(6)
            late = Process(shared, "late")
            try:
                with pytest.raises(Trimmed):
                    await late.task
            finally:
                await late.end()

    simulate(scenario())


def test_take_over_carries_out_what_the_standby_has_not_seen():
    async def scenario():
        shared = MemoryLog()
        async with processes(shared, "first", "second") as (first, second):
            await asyncio.sleep(1.0)
            second.log.plan = lambda method: Outcome(before_s=100.0 if method == "follow" else 0.0)
            engine = await first.engine_of_term()
            for number in range(70):  # more than one answer of the log holds
                put(engine, b"%02d" % number)
                await engine.sync()
            assert second.applied.position.index == 0
            await first.end()
            engine = await second.engine_of_term()
            assert len(engine.begin().get_range(b"0", b"9")) == 70

    simulate(scenario())


def test_take_over_that_loses_its_lease_while_it_reads_is_a_standby_again():
    """Another process led and appended meanwhile: the store is behind the end that was read first, and in the log."""

    async def scenario():
        shared = MemoryLog()
        async with processes(shared, "first", "second", "third") as (first, second, third):
            engine = await first.engine_of_term()
            await asyncio.sleep(1.0)  # the others are up with the log
            slow = {"follow": 1e6, "read": 3 * LEASE_S, "renew_claim": 1e6}
            second.log.plan = lambda method: Outcome(before_s=slow.get(method, 0.0))
            third.log.plan = lambda method: Outcome(before_s=0.2 if method == "create_claim" else 0.0)
            for number in range(5):
                put(engine, b"%d" % number)
                await engine.sync()
            assert second.applied.position.index == 0
            await first.end()
            engine = await third.engine_of_term()  # after `second`, whose lease ended before it had read
            assert second.replica.role is Role.TAKING_OVER
            put(engine, b"5")
            await engine.sync()
            await asyncio.sleep(3 * LEASE_S)  # the read that was under way ends
            assert second.applied.position.index > 5
            assert not second.task.done(), second.task
            assert second.replica.role is Role.STANDBY

    simulate(scenario())


class SlowToClose(FaultyLog):
    """Following it ends some time after it was cancelled."""

    def __init__(self, inner: MemoryLog) -> None:
        super().__init__(inner)
        self.closing = asyncio.Event()

    async def follow(self, after):
        try:
            async with aclosing(super().follow(after)) as batches:
                async for batch in batches:
                    yield batch
        finally:
            self.closing.set()
            await asyncio.sleep(1.0)


def test_replica_that_is_ended_as_it_begins_to_lead_gives_the_leadership_up():
    async def scenario():
        shared = MemoryLog()
        log = SlowToClose(shared)
        applied = Applied(MemoryEngine(), log_id=LOG, create=True)
        replica = Replica(log, applied, owner="first", lease_s=LEASE_S, clock=LoopClock())

        async def serve(engine: PrimaryEngine) -> None:
            await asyncio.Event().wait()

        task = asyncio.create_task(replica.run(serve))
        await log.closing.wait()  # it leads, and does not follow any more
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert await shared.claim() is None
        await asyncio.sleep(0)
        names = {each.get_name() for each in asyncio.all_tasks()}
        assert "log-leadership" not in names, "no task renews the claim"

    simulate(scenario())


@pytest.mark.parametrize(
    ("checkpoints", "copies", "expected"),
    [
        ([], 1, 1),
        ([50], 2, 1),  # of the others nothing is known
        ([50, 0], 2, 1),
        ([50, 40, 0], 2, 31),
        ([50, 40, 45], 3, 31),
        ([50, 40, 45], 1, 41),
        ([5, 4, 3], 2, 1),
    ],
)
def test_log_is_kept_behind_what_enough_replicas_have(checkpoints, copies, expected):
    assert first_to_keep(checkpoints, copies=copies, kept=10) == expected
