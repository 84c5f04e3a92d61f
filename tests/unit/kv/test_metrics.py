"""What a replica shows of itself and of its log, in virtual time."""

import asyncio
from pathlib import Path

import pytest

from luciola.kv.log import MemoryLog
from luciola.kv.log.faulty import Fault, Outcome
from luciola.metrics.exposition import SOURCE_S
from virtual_loop import simulate

from .test_replica_service import Process, two

OF_LOG = {"luciola_log_first_position", "luciola_log_last_position", "luciola_replica_lag_records"}


async def shown_by(process: Process) -> dict[str, object]:
    """Values by name; those with labels as a dict."""
    found: dict[str, object] = {}
    for family in await process.service.families():
        values = dict(family.samples)
        found[family.name] = values if family.labels else values[()]
    return found


def test_replica_shows_its_role_and_how_far_it_is(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(MemoryLog(), tmp_path) as (first, second):
            await first.put(5)
            await asyncio.sleep(1.0)
            for process, role, terms in ((first, "primary", 1), (second, "standby", 0)):
                shown = await shown_by(process)
                roles = shown["luciola_replica_role"]
                assert isinstance(roles, dict)
                assert [labels for labels, value in roles.items() if value] == [(role,)]
                assert shown["luciola_replica_terms_total"] == terms
                assert shown["luciola_store_position"] == shown["luciola_log_last_position"] == 5
                assert shown["luciola_log_first_position"] == 1
                assert shown["luciola_replica_lag_records"] == 0

    simulate(scenario())


def test_standby_that_hears_nothing_of_records_shows_its_lag(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with two(MemoryLog(), tmp_path) as (first, second):
            await first.put(2)
            await asyncio.sleep(1.0)
            second.log.plan = lambda method: Outcome(Fault.NONE if method == "bounds" else Fault.REFUSED)
            second.log.cut()
            await first.put(3)
            second.log.join()
            shown = await shown_by(second)
            assert shown["luciola_replica_lag_records"] == 3

    simulate(scenario())


@pytest.mark.parametrize(
    "outcome", [Outcome(Fault.REFUSED), Outcome(before_s=100.0)], ids=["refuses", "hangs"]
)
def test_log_that_does_not_answer_costs_only_what_it_knows(tmp_path: Path, outcome: Outcome) -> None:
    async def scenario() -> None:
        async with two(MemoryLog(), tmp_path) as (first, _):
            await first.put(5)
            whole = await shown_by(first)
            first.log.plan = lambda method: outcome if method == "bounds" else Outcome()
            begun_s = asyncio.get_running_loop().time()
            shown = await shown_by(first)
            assert asyncio.get_running_loop().time() - begun_s < SOURCE_S
            assert set(whole) - set(shown) == OF_LOG
            assert shown["luciola_store_position"] == 5

    simulate(scenario())
