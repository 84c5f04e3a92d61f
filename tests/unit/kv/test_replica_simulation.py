"""Replicas in trouble, in virtual time. A failure names its seed: `live(World(seed))` repeats it."""

import asyncio
from collections.abc import Callable
from functools import partial

import pytest

from luciola.errors import Error, MaybeCommitted, Unavailable
from luciola.kv.applied import POSITION_KEY, Applied
from luciola.kv.grouped import Group
from luciola.kv.log import Deposed, Record
from luciola.kv.replica import PrimaryEngine, Replica
from replica_world import LEASE_S, Node, World, live
from virtual_loop import Stuck, simulate

SEEDS = 20
FIRST_SEED = 10  # one by which most are found
SEEDS_MAX = 40  # in which a planted mistake has to be found


@pytest.mark.parametrize("seed", range(SEEDS))
def test_replicas_in_trouble_keep_what_they_acknowledge(seed):
    world = simulate(live(World(seed)))
    assert world.wrong == []
    assert len(world.history.acknowledged) > 50


class Promotes(World):
    """Now and then another replica is to lead."""

    promoted = 0

    async def _checkpointed(self, node: Node) -> None:
        await super()._checkpointed(node)
        for other in self.nodes:
            if other is not node and other.is_up and other.replica is not None:
                other.replica.hold_back(self.dice.uniform(0.1, 3 * LEASE_S))
                self.promoted += 1


@pytest.mark.parametrize("seed", range(10))
def test_replicas_that_are_promoted_in_trouble_keep_what_they_acknowledge(seed):
    world = simulate(live(Promotes(seed)))
    assert world.wrong == []
    assert world.promoted > 0
    assert len(world.history.acknowledged) > 50


# Planted mistakes.


class WithEngine(Replica):
    """Serves with an engine that has a mistake."""

    engine_class: type[PrimaryEngine]

    def begin_term(self, leadership, appender):
        return self.engine_class(self.applied, leadership, appender)


def mistaken(engine: type[PrimaryEngine]) -> Callable[[int], World]:
    return partial(World, replica=type(engine.__name__, (WithEngine,), {"engine_class": engine}))


class ReadsWithoutLease(PrimaryEngine):
    """A process that was paused does not look at the clock."""

    def _require_lease(self):
        return


class AnswersBeforeStored(PrimaryEngine):
    """What is visible is reported as stored."""

    @property
    def unstored(self):
        return None


class CarriesOutBeforeStored(PrimaryEngine):
    """The local store is ahead of the log."""

    async def _append(self, payload):
        self._applied.apply(Record.create(payload, after=self._applied.position, epoch=self.epoch))
        await self._appender.append(payload)


class CarriesOutRefused(PrimaryEngine):
    """A record that the log has refused is carried out all the same."""

    async def _append(self, payload):
        try:
            await super()._append(payload)
        except Deposed:
            self._applied.apply(Record.create(payload, after=self._applied.position, epoch=self.epoch))


class CallsUnknownThrownAway(PrimaryEngine):
    """A record of which nothing is known is reported as thrown away."""

    def _throw_away(self, error: Error):
        super()._throw_away(Unavailable(str(error)))


class CallsUnknownStored(PrimaryEngine):
    """A record of which nothing is known is reported as stored."""

    async def _store_in_log(self, group: Group):
        try:
            await super()._store_in_log(group)
        except MaybeCommitted:
            self._applied.apply(Record.create(group.record(), after=self._applied.position, epoch=self.epoch))


class EndsQuietly(PrimaryEngine):
    """At the end of a term, callers that wait for their commits get no answer."""

    def _throw_away(self, error: Error):
        self.fail(error)
        self._groups.clear()


class FailsQuietly(PrimaryEngine):
    """An engine that has failed keeps the leadership."""

    async def failed(self):
        await asyncio.Event().wait()


class TakesOverAtOnce(Replica):
    """The rest of the log is not read before the store is served."""

    async def _come_up(self, leadership):
        return leadership.holds()


class AppliesTwice(Applied):
    """The position of every other record is not stored, and that record is carried out again after a restart."""

    def _carry_out(self, operations, record):
        before = self.engine.begin().snapshot_get(POSITION_KEY)
        super()._carry_out(operations, record)
        if record.index % 2:
            transaction = self.engine.begin()
            transaction._writes[POSITION_KEY] = before
            transaction.commit()


class SkipsGaps(Applied):
    """Every tenth record is skipped."""

    def _carry_out(self, operations, record):
        super()._carry_out(operations if record.index % 10 else (), record)


class TrimsEverything(World):
    """The log is trimmed up to its end."""

    def first_to_keep(self, last):
        return last.index + 1


MISTAKES = [
    mistaken(ReadsWithoutLease),
    mistaken(AnswersBeforeStored),
    mistaken(CarriesOutBeforeStored),
    mistaken(CarriesOutRefused),
    mistaken(CallsUnknownThrownAway),
    mistaken(CallsUnknownStored),
    mistaken(EndsQuietly),
    mistaken(FailsQuietly),
    partial(World, replica=TakesOverAtOnce),
    partial(World, applied=AppliesTwice),
    partial(World, applied=SkipsGaps),
    TrimsEverything,
]
NAMES = [
    "ReadsWithoutLease",
    "AnswersBeforeStored",
    "CarriesOutBeforeStored",
    "CarriesOutRefused",
    "CallsUnknownThrownAway",
    "CallsUnknownStored",
    "EndsQuietly",
    "FailsQuietly",
    "TakesOverAtOnce",
    "AppliesTwice",
    "SkipsGaps",
    "TrimsEverything",
]


@pytest.mark.timeout(900)  # of many simulations on a busy machine
@pytest.mark.parametrize("make", MISTAKES, ids=NAMES)
def test_planted_mistake_is_found(make):
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS_MAX):
        try:
            world = simulate(live(make(seed)))
        except (AssertionError, Stuck, TimeoutError):
            return
        if world.wrong:
            print("found with seed", seed, world.wrong[0])
            return
    pytest.fail(f"not found in {SEEDS_MAX} seeds")
