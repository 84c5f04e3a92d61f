"""The simulator against numbers that were published, worked out by hand, or follow from what it models."""

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dualpipe.costs import StageCosts
from luciola.plugins.dualpipe.event_sim import Deadlock, Transport
from luciola.plugins.dualpipe.schedule import dualpipe, dualpipev
from luciola.plugins.dualpipe.schedules import SCHEDULES, one_f_one_b, zb1p, zbv
from luciola.plugins.dualpipe.simulate import Timeline, simulate

UNIT = StageCosts(forward=1, backward=2, weight=1)


def rounded(timeline: Timeline) -> list[float]:
    return [round(idle, 6) for idle in timeline.idle]


@pytest.mark.parametrize(
    ("backward", "weight", "idle"), [(2, 1, 6.0), (2.2, 1, 6.6), (1.8, 1, 6.0), (2, 0.5, 9.5)]
)
def test_idle_time_of_dualpipe_on_8_ranks(backward: float, weight: float, idle: float) -> None:
    timeline = simulate(dualpipe(8, 20), StageCosts(forward=1, backward=backward, weight=weight))
    assert rounded(timeline) == [idle] * 8


def test_a_cheaper_pair_makes_the_ends_wait_less_than_the_middle() -> None:
    timeline = simulate(dualpipe(8, 20), StageCosts(overlap=2.4))
    assert rounded(timeline) == [3.0, 3.6, 4.2, 4.2, 4.2, 4.2, 3.6, 3.0]


@pytest.mark.parametrize(
    ("forward", "backward", "weight", "overlap"),
    [(1, 2, 1, 3), (1, 2, 1, 2.4), (1, 2.2, 1, 3.2), (1, 1.8, 1, 2.8), (1, 2, 0.5, 3), (2, 3, 2, 4.5)],
)
def test_the_bubble_of_4_ranks(forward: float, backward: float, weight: float, overlap: float) -> None:
    """F&B + F - 2W + max(0, F - I)."""
    costs = StageCosts(forward=forward, backward=backward, weight=weight, overlap=overlap)
    bubble = overlap + forward - 2 * weight + max(0.0, forward - (backward - weight))
    assert max(rounded(simulate(dualpipe(4, 20), costs))) == pytest.approx(bubble)


@pytest.mark.parametrize(
    ("schedule", "makespan", "idle", "peak"),
    [
        (dualpipev(4, 20), 126, 6, 9),
        (zbv(4, 20), 123, 3, 8),
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_8_stages_on_4_devices(schedule, makespan: float, idle: float, peak: int) -> None:
    timeline = simulate(schedule, UNIT)
    assert timeline.makespan == makespan
    assert rounded(timeline) == [idle] * 4
    assert max(timeline.peak_chunks) == peak


def test_only_dualpipev_gains_from_a_cheaper_pair() -> None:
    paired = StageCosts(overlap=2.4)
    assert simulate(dualpipev(4, 20), paired).makespan == pytest.approx(105.6)
    assert rounded(simulate(dualpipev(4, 20), paired)) == [3.0, 3.6, 4.2, 4.2]
    assert simulate(zbv(4, 20), paired).makespan == 123


@pytest.mark.parametrize("ranks", [1, 2, 4, 7, 8])
@pytest.mark.parametrize(("forward", "backward", "weight"), [(1, 2, 1), (1, 2, 0.5), (1.5, 3, 1.2)])
def test_bubbles_of_1f1b_and_zb1p(ranks: int, forward: float, backward: float, weight: float) -> None:
    """(P-1)(F+B) and (P-1)(F+B-2W)."""
    costs = StageCosts(forward=forward, backward=backward, weight=weight)
    plain = simulate(one_f_one_b(ranks, 3 * ranks), costs)
    assert plain.idle == pytest.approx([(ranks - 1) * (forward + backward)] * ranks)
    assert plain.peak_chunks == tuple(range(ranks, 0, -1))
    late = simulate(zb1p(ranks, 3 * ranks), costs)
    assert late.idle == pytest.approx([(ranks - 1) * (forward + backward - 2 * weight)] * ranks)
    assert late.peak_activation == (ranks,) * ranks


def test_peaks_count_what_the_weight_gradients_keep() -> None:
    assert simulate(zb1p(4, 12), StageCosts(activation=8)).peak_activation == (32, 32, 32, 32)
    assert simulate(one_f_one_b(4, 12), StageCosts(activation=8)).peak_activation == (32, 24, 16, 8)


def test_dualpipe_holds_two_copies_of_the_parameters() -> None:
    costs = StageCosts(parameters=3)
    assert simulate(dualpipe(4, 8), costs).parameters == (6, 6, 6, 6)
    assert simulate(one_f_one_b(4, 8), costs).parameters == (3, 3, 3, 3)


def test_a_transfer_takes_its_time_and_the_link_is_shared_by_turns() -> None:
    """Rank 0 makes a chunk every 1, but a transfer takes 5: chunk n reaches rank 1 at 6 + 5n."""
    costs = StageCosts(forward=1, backward=0, weight=0, communication=5)
    schedule = one_f_one_b(2, 3).forward_only()
    timeline = simulate(schedule, costs)
    assert [span.start for span in timeline.spans[0]] == [0, 1, 2]
    assert [span.start for span in timeline.spans[1]] == [6, 11, 16]
    assert timeline.makespan == 17
    assert timeline.idle == (14, 14)
    assert timeline.bubble == 28 / 34


def test_a_rank_that_waits_for_its_sends_is_slowed_down_by_them() -> None:
    costs = StageCosts(forward=1, backward=0, weight=0, communication=5)
    schedule = one_f_one_b(2, 3).forward_only()
    assert [span.start for span in simulate(schedule, costs, transport=Transport.BUFFERED).spans[0]] == [
        0,
        1,
        2,
    ]
    waiting = simulate(schedule, costs, transport=Transport.RENDEZVOUS)
    assert [span.start for span in waiting.spans[0]] == [0, 6, 12]
    assert [span.start for span in waiting.spans[1]] == [6, 12, 18]


def test_a_schedule_that_stops_has_no_timeline() -> None:
    with pytest.raises(Deadlock, match="stops in a circle: rank 0 waits"):
        simulate(zbv(2, 8), UNIT, transport=Transport.RENDEZVOUS)


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(sorted(SCHEDULES)),
    st.integers(1, 5),
    st.integers(1, 16),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0, 2),
)
def test_what_holds_for_every_timeline(
    name: str, ranks: int, chunks: int, forward: float, inputs: float, weight: float, crossing: float
) -> None:
    try:
        schedule = SCHEDULES[name](ranks, chunks)
    except ValueError:
        return
    costs = StageCosts(forward=forward, backward=inputs + weight, weight=weight, communication=crossing)
    timeline = simulate(schedule, costs)
    work = chunks * schedule.stages / ranks * (forward + inputs + weight)
    for own, idle in zip(timeline.spans, timeline.idle, strict=True):
        assert all(span.start <= span.end for span in own)
        assert all(first.end <= second.start for first, second in pairwise(own))
        assert timeline.makespan - idle == pytest.approx(work, abs=1e-9)
        assert idle >= -1e-9
    longest = schedule.stages * (forward + inputs + weight) - weight * (schedule.stages - 1)
    assert timeline.makespan >= min(longest, schedule.stages * (forward + inputs)) - 1e-9
    assert simulate(schedule, costs, transport=Transport.BUFFERED).makespan >= timeline.makespan - 1e-9


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"forward": -1}, "forward must be a finite number from 0 on, not -1"),
        ({"backward": math.nan}, "backward must be a finite number"),
        ({"communication": math.inf}, "communication must be a finite number"),
        ({"forward": "1"}, "forward must be a finite number from 0 on, not '1'"),
        ({"weight": 3}, "the weight part 3 is more than the whole backward 2"),
    ],
)
def test_costs_that_cannot_be_are_refused(arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StageCosts(**arguments)


def test_pieces_of_a_stage_share_its_costs() -> None:
    costs = StageCosts(forward=1, backward=3, weight=1, overlap=3.5, communication=0.2)
    assert costs.cut(2) == StageCosts(
        forward=0.5, backward=1.5, weight=0.5, overlap=1.75, communication=0.2, activation=0.5, parameters=0.5
    )
