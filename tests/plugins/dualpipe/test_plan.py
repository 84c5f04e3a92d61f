"""Schedules side by side."""

import pytest

from luciola.plugins.dualpipe.costs import StageCosts
from luciola.plugins.dualpipe.plan import compare
from luciola.plugins.dualpipe.schedules import SCHEDULES


def names(costs: StageCosts, **size) -> list[str]:
    return [each.name for each in compare(costs, **size)]


def test_all_candidates_do_the_same_work() -> None:
    costs = StageCosts(forward=1, backward=3, weight=1)
    for candidate in compare(costs, ranks=4, chunks=16):
        timeline = candidate.timeline
        assert timeline is not None
        assert [timeline.makespan - idle for idle in timeline.idle] == pytest.approx([16 * 4] * 4)


def test_a_cheap_pair_makes_dualpipe_the_fastest_and_none_a_schedule_with_one_copy() -> None:
    assert names(StageCosts(overlap=2.2), ranks=8, chunks=32)[0] == "dualpipe"
    best = compare(StageCosts(), ranks=8, chunks=32)[0]
    assert best.name == "zbv"
    assert best.timeline is not None
    assert max(best.timeline.parameters) == 1


def test_sizes_that_a_schedule_does_not_have_are_explained() -> None:
    reasons = {each.name: each.reason for each in compare(StageCosts(), ranks=3, chunks=7)}
    assert reasons["dualpipe"] == "dualpipe needs an even number of ranks, not 3; dualpipev takes any number"
    assert reasons.keys() == SCHEDULES.keys()
    assert reasons["zbv"] is None


def test_what_cannot_be_simulated_is_refused() -> None:
    with pytest.raises(ValueError, match="no schedule is named 'gpipe'; there are 1f1b, "):
        compare(StageCosts(), ranks=2, chunks=4, names=["gpipe"])
    with pytest.raises(
        ValueError, match="64 ranks with 4096 chunks are too many to simulate: at most 2048 chunks"
    ):
        compare(StageCosts(), ranks=64, chunks=4096)
