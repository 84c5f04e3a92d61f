"""Random lives of three processes that want to lead one log, in virtual time, over networks that lose and delay.

The clocks of the processes differ as much as is allowed. Each leader appends numbered records and keeps the reply to
each. The same seed gives the same life: `pytest -k "test_life[17]"` replays one. The second half plants mistakes, one
at a time, and demands that some life finds it.
"""

import asyncio
import random
from contextlib import aclosing
from dataclasses import dataclass, field
from types import SimpleNamespace

import pytest

from luciola.errors import Error, MaybeCommitted, NoSpace, Timeout, Unavailable
from luciola.kv.log import DRIFT, START, Appender, Contender, Deposed, Leadership, MemoryLog
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from virtual_loop import LoopClock, simulate

LEASE_S = 2.0
LIFE_S = 40.0
CALM_S = 60.0  # within which a process leads and appends once all faults have ended
LATE_S = 6.0  # after which nothing is late any more
SEEDS = range(30)
FINDERS = range(120)  # lives that are tried until one finds a planted mistake


@dataclass
class World:
    """What the processes share, and the replies that they got."""

    log: MemoryLog
    calm: bool = False
    processes: list["Process"] = field(default_factory=list)
    stored: dict[bytes, int] = field(default_factory=dict)  # acknowledged: payload, index
    denied: set[bytes] = field(default_factory=set)  # refused for good
    appended: int = 0

    def check_leaders(self) -> None:
        holders = [process.name for process in self.processes if process.holds()]
        assert len(holders) <= 1, f"L1: {holders} lead at {asyncio.get_running_loop().time():.3f}"

    def check_end(self) -> None:
        payloads = [record.payload for record in self.log._records]
        assert len(set(payloads)) == len(payloads), "a record is stored twice"
        for payload, index in self.stored.items():
            assert payloads[index - 1 : index] == [payload], f"A2: {payload} is not at its place"
        epochs = [record.epoch for record in self.log._records]
        assert epochs == sorted(epochs), "O2: a leader has appended after its successor"
        wrong = self.denied.intersection(payloads)
        assert not wrong, f"A2: {wrong} are stored, their leader got a refusal"
        for process in self.processes:
            assert process.followed == self.log._records[: len(process.followed)], "O1"


class Process:
    """One contender, its clock and its network."""

    def __init__(self, world: World, number: int, dice: random.Random) -> None:
        self.world = world
        self.name = f"process {number}"
        self.dice = dice
        self.clock = LoopClock(rate=dice.choice((1 - DRIFT, 1 + DRIFT)), start_s=dice.uniform(0, 1e6))
        self.storm = dice.choice((0.0, 0.02, 0.1, 0.3))
        self.pauses = list(self.plan_pauses())
        self.log = FaultyLog(world.log, self.plan)
        self.leadership: Leadership | None = None
        self.begun = 0  # the length of the log when the present leadership had read it
        self.followed = []

    def holds(self) -> bool:
        return self.leadership is not None and self.leadership.holds()

    def plan(self, method: str) -> Outcome:
        if self.world.calm:
            return Outcome(before_s=0.002, after_s=0.002)
        fault = Fault.NONE
        if self.dice.random() < self.storm:
            fault = self.dice.choice((Fault.REFUSED, Fault.DONE, Fault.LOST, Fault.LATE, Fault.FULL))
        before_s, after_s = self.delay(), self.delay()
        arrival = asyncio.get_running_loop().time() + before_s + after_s
        for begin, end in self.pauses:
            if begin < arrival < end:  # the answer waits for the process
                after_s += end - arrival
        return Outcome(fault, before_s=before_s, after_s=after_s, late_s=self.dice.uniform(0.01, LATE_S))

    def delay(self) -> float:
        slow = self.dice.random() < self.storm / 4
        return self.dice.uniform(0.1, 1.5 * LEASE_S) if slow else self.dice.uniform(0.001, 0.005)

    def plan_pauses(self):
        """Yield when the process does not run. It is often cut off after that."""
        now = 0.0
        while now < LIFE_S:
            now += self.dice.expovariate(1 / 5)
            end = now + self.dice.uniform(0.1, LEASE_S / 2)
            yield now, end
            now = end

    async def run(self) -> None:
        contender = Contender(self.log, self.name, lease_s=LEASE_S, clock=self.clock)
        while True:
            try:
                self.leadership = await contender.lead()
                self.world.check_leaders()
                await self.lead(self.leadership)
            except (Unavailable, Timeout, NoSpace, MaybeCommitted):
                await asyncio.sleep(0.1)
            finally:
                if self.leadership is not None:
                    end = self.leadership.resign if self.dice.random() < 0.3 else self.leadership.close
                    await end()
                    self.leadership = None

    async def lead(self, leadership: Leadership) -> None:
        last = (await self.log.bounds()).last
        self.begun = last.index
        appender = Appender(self.log, leadership, last, patience_s=2 * LEASE_S, clock=self.clock)
        if self.dice.random() < 0.5:  # what others have sent may arrive meanwhile
            await asyncio.sleep(self.dice.uniform(0.0, LATE_S))
            self.check_reads(leadership)
        turns = self.dice.randrange(5, 200)
        while leadership.holds() and (turns := turns - 1):
            await self.append(appender, leadership)
            self.check_reads(leadership)
            await asyncio.sleep(self.dice.uniform(0.0, 0.2))

    async def append(self, appender: Appender, leadership: Leadership) -> None:
        self.world.appended += 1
        payload = b"%d" % self.world.appended
        try:
            position = await appender.append(payload)
        except (Deposed, NoSpace):
            self.world.denied.add(payload)
        except MaybeCommitted:
            pass  # the outcome stays unknown
        else:
            self.world.stored[payload] = position.index
        self.world.check_leaders()

    def check_reads(self, leadership: Leadership) -> None:
        """What it would read is everything: others have stored nothing since it began."""
        if leadership.holds():
            strangers = [r for r in self.world.log._records[self.begun :] if r.epoch != leadership.epoch]
            assert not strangers, f"L2: {self.name} leads, and others have stored {strangers}"

    async def follow(self) -> None:
        while True:
            after = self.followed[-1].position if self.followed else START
            try:
                async with aclosing(self.log.follow(after)) as batches:
                    async for batch in batches:
                        self.followed += batch
            except Error:
                await asyncio.sleep(0.1)

    async def cuts(self) -> None:
        """Be cut off, after half of the pauses."""
        loop = asyncio.get_running_loop()
        for _, end in self.pauses:
            await asyncio.sleep(end + 0.01 - loop.time())
            if self.dice.random() < 0.5 and not self.world.calm:
                self.log.cut()
                await asyncio.sleep(self.dice.uniform(0.1, 3 * LEASE_S))
                self.log.join()


async def live(seed: int) -> World:
    """One life of the world. Raises: AssertionError."""
    world = World(MemoryLog())
    world.processes = [Process(world, n, random.Random(f"{seed} {n}")) for n in range(3)]
    tasks = []
    async with asyncio.TaskGroup() as group:
        for process in world.processes:
            tasks += [group.create_task(work()) for work in (process.run, process.follow, process.cuts)]
        tasks.append(group.create_task(watch(world)))
        await asyncio.sleep(LIFE_S)
        world.calm = True
        for process in world.processes:
            process.log.join()
        await progress(world)
        await asyncio.sleep(LATE_S + 1.0)
        for task in tasks:
            task.cancel()
    for process in world.processes:
        await process.log.close()
    world.check_end()
    return world


async def watch(world: World) -> None:
    while True:
        world.check_leaders()
        await asyncio.sleep(0.02)


async def progress(world: World) -> None:
    """Wait until each process has followed records that were stored in calm."""
    stored = len(world.stored)
    goal = len(world.log._records) + 3
    for _ in range(round(CALM_S / 0.1)):
        if len(world.stored) > stored + 3 and all(
            len(process.followed) > goal for process in world.processes
        ):
            return
        await asyncio.sleep(0.1)
    raise AssertionError("no process leads and appends although nothing fails any more")


@pytest.mark.parametrize("seed", SEEDS)
def test_life(seed):
    world = simulate(live(seed))
    assert world.stored, "some records are stored"


def test_lives_are_eventful():
    worlds = [simulate(live(seed)) for seed in range(8)]
    epochs = [len({record.epoch for record in world.log._records}) for world in worlds]
    assert max(epochs) >= 5, "leaders change"
    assert any(world.denied for world in worlds)
    assert any(len(world.log._records) > len(world.stored) for world in worlds), "some outcomes stay unknown"


# Planted mistakes.

_real = SimpleNamespace(
    extend=Leadership._extend,
    see=Contender._see,
    end_claim=MemoryLog.end_claim,
    renew_claim=FaultyLog.renew_claim,
    append=MemoryLog.append,
)


def patience_without_drift(monkeypatch):
    def left_s(self, claim):
        return self._seen_s + claim.lease_s * (1 - DRIFT) - self._clock.monotonic()

    monkeypatch.setattr(Contender, "_left_s", left_s)


def lease_counted_from_the_answer(monkeypatch):
    def extend(self, sent_s):
        _real.extend(self, self._clock.monotonic())

    monkeypatch.setattr(Leadership, "_extend", extend)


def unknown_renewal_extends_the_lease(monkeypatch):
    async def renew_claim(self, claim):
        try:
            return await _real.renew_claim(self, claim)
        except MaybeCommitted:
            return claim

    monkeypatch.setattr(FaultyLog, "renew_claim", renew_claim)


def renewals_are_not_seen(monkeypatch):
    def see(self, claim):
        seen, seen_s = self._seen, self._seen_s
        _real.see(self, claim)
        if seen is not None and claim is not None and seen.epoch == claim.epoch:
            self._seen_s = seen_s

    monkeypatch.setattr(Contender, "_see", see)


def claim_is_ended_although_it_was_renewed(monkeypatch):
    async def end_claim(self, claim):
        return await _real.end_claim(self, self._claim or claim)

    monkeypatch.setattr(MemoryLog, "end_claim", end_claim)


def deposed_leader_may_append(monkeypatch):
    async def append(self, record):
        kept, self._claim = self._claim, SimpleNamespace(epoch=record.epoch)
        try:
            await _real.append(self, record)
        finally:
            self._claim = kept

    monkeypatch.setattr(MemoryLog, "append", append)


def record_is_appended_anywhere(monkeypatch):
    async def append(self, record):
        kept, self._last = self._last, record.after
        try:
            await _real.append(self, record)
        finally:
            self._last = kept if self._last == record.after else self._last

    monkeypatch.setattr(MemoryLog, "append", append)


def looking_once_proves_that_nothing_is_stored(monkeypatch):
    async def store(self, record):
        try:
            await self._log.append(record)
        except MaybeCommitted:
            await self._recognize(record)
        except (Unavailable, Timeout) as error:
            raise Deposed("not stored") from error

    monkeypatch.setattr(Appender, "_store", store)


def unknown_outcome_is_success(monkeypatch):
    async def store(self, record):
        try:
            await self._log.append(record)
        except (Deposed, NoSpace):
            raise
        except (MaybeCommitted, Unavailable, Timeout):
            return

    monkeypatch.setattr(Appender, "_store", store)


def refusal_after_an_unknown_attempt_is_believed(monkeypatch):
    def give_up_early(self, error, *, uncertain):
        if isinstance(error, NoSpace):
            raise error

    monkeypatch.setattr(Appender, "_give_up_early", give_up_early)


def deposition_after_an_unknown_attempt_is_believed(monkeypatch):
    async def recognize(self, record):
        raise Deposed("it has ended, so nothing is stored")

    monkeypatch.setattr(Appender, "_recognize", recognize)


def patience_ends_with_a_certain_refusal(monkeypatch):
    monkeypatch.setattr(
        Appender, "_give_up", lambda self, record, *, uncertain: Deposed("waited long enough")
    )


MISTAKES = (
    patience_without_drift,
    lease_counted_from_the_answer,
    unknown_renewal_extends_the_lease,
    renewals_are_not_seen,
    claim_is_ended_although_it_was_renewed,
    deposed_leader_may_append,
    record_is_appended_anywhere,
    looking_once_proves_that_nothing_is_stored,
    unknown_outcome_is_success,
    refusal_after_an_unknown_attempt_is_believed,
    deposition_after_an_unknown_attempt_is_believed,
    patience_ends_with_a_certain_refusal,
)


@pytest.mark.parametrize("plant", MISTAKES, ids=lambda plant: plant.__name__)
def test_planted_mistake_is_found(plant, monkeypatch):
    plant(monkeypatch)
    for seed in FINDERS:
        try:
            simulate(live(seed))
        except AssertionError:
            return
        except BaseExceptionGroup as errors:
            if errors.subgroup(AssertionError):
                return
            raise
    pytest.fail(f"no life of {len(FINDERS)} has found it")
