"""Which schedule is chosen, and why."""

import pytest

from luciola.plugins.dualpipe.costs import StageCosts
from luciola.plugins.dualpipe.plan import best_schedule, compare
from luciola.plugins.dualpipe.schedules import SCHEDULES


def makespans(costs: StageCosts, **size) -> dict[str, float]:
    return {each.name: each.timeline.makespan for each in compare(costs, **size) if each.timeline}


def test_all_candidates_do_the_same_work() -> None:
    costs = StageCosts(forward=1, backward=3, weight=1)
    for candidate in compare(costs, ranks=4, chunks=16):
        timeline = candidate.timeline
        assert timeline is not None
        assert [timeline.makespan - idle for idle in timeline.idle] == pytest.approx([16 * 4] * 4)


def test_a_cheap_pair_makes_dualpipe_the_best() -> None:
    assert best_schedule(StageCosts(overlap=2.2), ranks=8, chunks=32).name == "dualpipe"


def test_without_overlap_a_schedule_with_one_copy_is_the_best() -> None:
    best = best_schedule(StageCosts(), ranks=8, chunks=32)
    assert best.name in ("zbv", "zb1p-2x")
    assert best.timeline is not None
    assert max(best.timeline.parameters) == 1


def test_the_memory_limit_excludes_the_second_copy() -> None:
    costs = StageCosts(overlap=2.2, parameters=40, activation=1)
    assert best_schedule(costs, ranks=8, chunks=32, memory_max=90).name == "dualpipe"
    assert best_schedule(costs, ranks=8, chunks=32, memory_max=80).name == "dualpipev"
    candidates = {each.name: each for each in compare(costs, ranks=8, chunks=32, memory_max=48)}
    assert candidates["dualpipe"].reason == "needs memory of 89, more than 48"
    assert candidates["dualpipev"].reason == "needs memory of 48.5, more than 48"
    assert candidates["1f1b"].reason is None
    with pytest.raises(ValueError, match="no schedule can be used: 1f1b: needs memory of 48, more than 47"):
        best_schedule(costs, ranks=8, chunks=32, memory_max=47)


def test_of_equally_fast_schedules_the_smallest_is_the_best() -> None:
    """One rank is never idle, whatever the order; 1F1B holds one micro-batch."""
    assert best_schedule(StageCosts(), ranks=1, chunks=4).name == "1f1b"


def test_sizes_that_a_schedule_does_not_have_are_explained() -> None:
    reasons = {each.name: each.reason for each in compare(StageCosts(), ranks=3, chunks=7)}
    assert reasons["dualpipe"] == "dualpipe needs an even number of ranks, not 3; dualpipev takes any number"
    assert "multiple of 2 chunks, not 7" in (reasons["1f1b-2x"] or "")
    assert reasons["zbv"] is None


def test_costs_of_fine_parts_serve_both_cuts_of_the_model() -> None:
    """Twice as many parts as ranks: in pairs for schedules with one stage a rank."""
    even = makespans(StageCosts(forward=1, backward=2, weight=1), ranks=2, chunks=4)
    fine = makespans(StageCosts(forward=[0.5] * 4, backward=1, weight=0.5), ranks=2, chunks=4)
    assert even == pytest.approx(fine)
    assert fine.keys() == SCHEDULES.keys()


def test_costs_of_coarse_parts_cannot_be_cut() -> None:
    reasons = {each.name: each.reason for each in compare(StageCosts(forward=[1, 2]), ranks=2, chunks=4)}
    assert reasons["zbv"] == "costs of 2 stages do not tell those of 4"
    assert reasons["1f1b"] is None


def test_uneven_stages_slow_all_down() -> None:
    uneven = StageCosts(forward=[1, 1, 1, 3], backward=[2, 2, 2, 6], weight=[1, 1, 1, 3])
    assert makespans(uneven, ranks=4, chunks=16)["1f1b"] >= 16 * 9


def test_an_unknown_schedule_is_refused() -> None:
    with pytest.raises(ValueError, match="no schedule is named 'gpipe'; there are 1f1b, "):
        compare(StageCosts(), ranks=2, chunks=4, names=["gpipe"])


def test_too_many_micro_batches_to_wait_for_are_refused() -> None:
    with pytest.raises(
        ValueError, match="64 ranks with 4096 chunks are too many to simulate: at most 2048 chunks"
    ):
        compare(StageCosts(), ranks=64, chunks=4096)
