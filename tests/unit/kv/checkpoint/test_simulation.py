"""Replicas that lose disks, in virtual time. A failure names its seed: `live(CheckpointWorld(seed))` repeats it."""

import asyncio
from functools import partial

import pytest

from checkpoint_world import POLICY, CheckpointWorld
from luciola.kv.checkpoint.catch_up import open_store
from luciola.kv.checkpoint.keeper import Keeper
from luciola.kv.log import Trimmed
from replica_world import live
from virtual_loop import Stuck, simulate

SEEDS = 8
FIRST_SEED = 12  # one by which all are found
SEEDS_MAX = 40  # in which a planted mistake has to be found
DURATION_S = 120.0


@pytest.mark.parametrize("seed", range(SEEDS))
def test_replicas_that_lose_disks_come_back_and_the_log_stays_short(seed):
    world = simulate(live(CheckpointWorld(seed), duration_s=DURATION_S))
    assert world.wrong == []
    assert world.losses > 0
    assert world.restored > 0, "the log was trimmed beyond a store"
    bounds = simulate(world.log.bounds())
    assert bounds.last.index - bounds.first < 10 * POLICY.records
    assert bounds.last.index > 20 * POLICY.records


# Planted mistakes.


class TrimsBehindItself(Keeper):
    """One copy is enough."""

    async def _trim(self):
        await self._log.trim(self._checkpoints.newest().index + 1)


class RemovesFirst(Keeper):
    """The older checkpoints are removed to make room for the new one."""

    async def _make(self):
        await self._checkpoints.retain(1)
        self._checkpoints.checkpoints.clear()
        await self._checkpoints.make()


class NeverTrims(Keeper):
    """The log grows until etcd is full."""

    async def _trim(self):
        return


async def opens_as_it_is(log, disk, *, name):
    """Whatever the log says."""
    await asyncio.sleep(1.0)  # else it begins again and again in no time
    return disk.open()


async def takes_its_own(log, disk, *, name):
    """The newest checkpoint here is taken, also where the log has forgotten what follows."""
    applied = disk.open()
    try:
        await log.read(applied.position, limit=1)
    except Trimmed:
        for position in reversed(disk.positions()):
            await disk.replace(position)
            return disk.open()
    return await open_store(log, disk, name=name)


async def asks_no_other(log, disk, *, name):
    """Only checkpoints of its own are looked at."""

    async def none_announced():
        return {}

    log.announced = none_announced
    try:
        return await open_store(log, disk, name=name)
    finally:
        del log.announced


KEEPERS = [TrimsBehindItself, RemovesFirst, NeverTrims]
OPENINGS = [opens_as_it_is, takes_its_own, asks_no_other]
MAKES = [
    *(pytest.param(partial(CheckpointWorld, keeper=each), id=each.__name__) for each in KEEPERS),
    *(pytest.param(partial(CheckpointWorld, opening=each), id=each.__name__) for each in OPENINGS),
]


@pytest.mark.timeout(900)  # of many simulations on a busy machine
@pytest.mark.parametrize("make", MAKES)
def test_planted_mistake_is_found(make):
    for seed in range(FIRST_SEED, FIRST_SEED + SEEDS_MAX):
        try:
            world = simulate(live(make(seed), duration_s=DURATION_S))
        except (AssertionError, Stuck, TimeoutError) as error:
            print("found with seed", seed, repr(error))
            return
        bounds = simulate(world.log.bounds())
        if world.wrong or bounds.last.index - bounds.first >= 10 * POLICY.records:
            print("found with seed", seed, world.wrong, bounds.first, bounds.last.index)
            return
    pytest.fail(f"not found in {SEEDS_MAX} seeds")
