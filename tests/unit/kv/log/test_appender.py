"""An appender under each fault: what it says of a record is true, at once and later."""

import asyncio
from collections import deque
from contextlib import aclosing, asynccontextmanager

import pytest

from luciola.errors import InvalidArgument, MaybeCommitted, NoSpace
from luciola.kv.log import RECORD_BYTES_MAX, START, Appender, Contender, Deposed, MemoryLog
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from virtual_loop import LoopClock, simulate

LEASE_S = 2.0
PATIENCE_S = 3.0


class Script:
    """A plan: the next calls of `method` meet these faults, one after another."""

    def __init__(self, method: str, *faults: Fault, late_s: float = 0.05) -> None:
        self.method = method
        self.faults = deque(faults)
        self.late_s = late_s
        self.calls = 0

    def __call__(self, method: str) -> Outcome:
        if method != self.method:
            return Outcome()
        self.calls += 1
        return Outcome(self.faults.popleft() if self.faults else Fault.NONE, late_s=self.late_s)


@asynccontextmanager
async def leading(log, *, owner="first", lease_s=LEASE_S):
    """A leadership and its appender, closed at the end."""
    clock = LoopClock()
    leadership = await Contender(log, owner, lease_s=lease_s, clock=clock).lead()
    try:
        last = (await log.bounds()).last
        yield leadership, Appender(log, leadership, last, patience_s=PATIENCE_S, clock=clock)
    finally:
        await leadership.close()


def on_log(scenario, plan):
    """Run `scenario(shared, log)`: the log itself, and one process's access to it."""

    async def prepared():
        shared = MemoryLog()
        log = FaultyLog(shared, plan)
        try:
            return await scenario(shared, log)
        finally:
            await log.close()

    return simulate(prepared())


async def payloads(log):
    return [record.payload for record in log._records]


async def stored(log, count):
    """Wait until so many records are stored."""
    async with aclosing(log.follow(START)) as batches:
        got = 0
        while got < count:
            got += len(await anext(batches))


@pytest.mark.parametrize(
    "faults",
    [
        (),
        (Fault.REFUSED,),
        (Fault.DONE,),
        (Fault.LOST,),
        (Fault.LATE,),
        (Fault.LOST, Fault.DONE),
        (Fault.LATE, Fault.REFUSED, Fault.REFUSED, Fault.REFUSED),
        (Fault.LATE, Fault.FULL, Fault.FULL, Fault.FULL, Fault.FULL),
        (Fault.DONE, Fault.LATE),
    ],
)
def test_record_is_stored_once_whatever_happens_to_the_first_attempts(faults, caplog):
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            positions = [await appender.append(payload) for payload in (b"1", b"2", b"3")]
            await asyncio.sleep(5.0)  # of virtual time: what is late has come
            assert await payloads(shared) == [b"1", b"2", b"3"]
            assert [record.position for record in shared._records] == positions
            assert appender.last == positions[-1]

    on_log(scenario, Script("append", *faults))
    said = [record.args[0] for record in caplog.records if "not known to be stored" in record.msg]
    assert said == [1][: len(faults)], "once, however often it is sent"


def test_appends_of_several_tasks_keep_their_order():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            await asyncio.gather(*(appender.append(b"%d" % number) for number in range(20)))
            assert await payloads(shared) == [b"%d" % number for number in range(20)]

    on_log(scenario, lambda _method: Outcome(before_s=0.01, after_s=0.01))


def test_full_log_refuses_and_takes_records_again_later():
    async def scenario(shared, log):
        async with leading(log) as (leadership, appender):
            with pytest.raises(NoSpace):
                await appender.append(b"1")
            assert leadership.holds()
            assert appender.failure is None
            await appender.append(b"2")
            assert await payloads(shared) == [b"2"]

    on_log(scenario, Script("append", Fault.FULL))


def test_record_that_is_too_large_does_not_end_the_appender():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            with pytest.raises(InvalidArgument):
                await appender.append(bytes(RECORD_BYTES_MAX + 1))
            await appender.append(b"1")
            assert await payloads(shared) == [b"1"]

    on_log(scenario, Script("append"))


def test_record_whose_outcome_stays_unknown_ends_the_leadership():
    async def scenario(shared, log):
        async with leading(log) as (leadership, appender):
            with pytest.raises(MaybeCommitted):
                await appender.append(b"1")
            assert not leadership.holds()
            with pytest.raises(Deposed):
                await appender.append(b"2")
            assert await payloads(shared) == []

    on_log(scenario, Script("append", *[Fault.LOST] * 1000))


def test_full_log_says_nothing_of_an_attempt_before():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            with pytest.raises(MaybeCommitted):
                await appender.append(b"1")
            await asyncio.sleep(60.0)
            assert await payloads(shared) == [b"1"], "it came late"

    on_log(scenario, Script("append", Fault.LATE, *[Fault.FULL] * 1000, late_s=30.0))


def test_unreachable_log_that_refuses_leaves_no_doubt():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            with pytest.raises(Deposed):
                await appender.append(b"1")
            assert await payloads(shared) == []

    on_log(scenario, Script("append", *[Fault.REFUSED] * 1000))


def test_late_record_of_a_deposed_leader_is_not_stored():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            append = asyncio.create_task(appender.append(b"old"))
            await asyncio.sleep(0)
            assert await shared.end_claim(await shared.claim())
            async with leading(shared, owner="second") as (_, other):
                with pytest.raises(Deposed):
                    await append
                await asyncio.sleep(60.0)
                await other.append(b"new")
            assert await payloads(shared) == [b"new"]

    on_log(scenario, Script("append", Fault.LATE, late_s=30.0))


def test_record_that_came_before_the_deposition_is_recognized():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            append = asyncio.create_task(appender.append(b"old"))
            await stored(shared, 1)
            assert await shared.end_claim(await shared.claim())
            async with leading(shared, owner="second") as (_, other):
                await other.append(b"new")
                position = await append
            assert position == shared._records[0].position
            with pytest.raises(Deposed):
                await appender.append(b"older")
            assert await payloads(shared) == [b"old", b"new"]

    on_log(scenario, Script("append", Fault.DONE))


def test_outcome_is_unknown_when_the_record_was_trimmed():
    async def scenario(shared, log):
        async with leading(log) as (_, appender):
            await appender.append(b"0")
            append = asyncio.create_task(appender.append(b"1"))
            await stored(shared, 2)
            await shared.trim(3)
            with pytest.raises(MaybeCommitted):
                await append

    on_log(scenario, Script("append", Fault.NONE, Fault.DONE))


def test_cancelled_append_ends_the_appender():
    async def scenario(shared, log):
        async with leading(log) as (leadership, appender):
            append = asyncio.create_task(appender.append(b"1"))
            await asyncio.sleep(0.5)
            append.cancel()
            with pytest.raises(asyncio.CancelledError):
                await append
            assert not leadership.holds()
            with pytest.raises(Deposed):
                await appender.append(b"2")
            await asyncio.sleep(60.0)
            assert await payloads(shared) in ([], [b"1"])

    on_log(scenario, lambda method: Outcome(before_s=1.0 if method == "append" else 0.0))
