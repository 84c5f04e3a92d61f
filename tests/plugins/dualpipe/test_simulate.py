"""The simulator against numbers that were published or worked out by hand, and its text."""

import math
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dualpipe.schedule import Forward, dualpipe, dualpipev
from luciola.plugins.dualpipe.simulate import StageCosts, Timeline, as_text, simulate

UNIT = StageCosts(forward=1, backward=2, weight=1)


def rounded(timeline: Timeline) -> list[float]:
    return [round(idle, 6) for idle in timeline.idle]


@pytest.mark.parametrize("ranks", [2, 4, 10, 16])
def test_idle_time_is_the_published_one(ranks: int) -> None:
    """(PP/2 - 1)(F&B + B - 3W) with F = I = W = 1 and a pair of 3."""
    for chunks in {2 * ranks, 2 * ranks + 6, 64}:
        idle = float(max(0, ranks // 2 - 1) * 2)
        assert rounded(simulate(dualpipe(ranks, chunks), UNIT)) == [idle] * ranks
        assert rounded(simulate(dualpipev(ranks // 2, chunks), UNIT)) == [idle] * (ranks // 2)


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


def test_8_stages_of_dualpipev_on_4_devices() -> None:
    timeline = simulate(dualpipev(4, 20), UNIT)
    assert (timeline.makespan, rounded(timeline), timeline.bubble) == (126, [6] * 4, 6 / 126)
    paired = simulate(dualpipev(4, 20), StageCosts(overlap=2.4))
    assert paired.makespan == pytest.approx(105.6)
    assert rounded(paired) == [3.0, 3.6, 4.2, 4.2]


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from([dualpipe, dualpipev]),
    st.integers(1, 3),
    st.integers(0, 5),
    st.floats(0, 3),
    st.floats(0, 3),
    st.floats(0, 3),
)
def test_what_holds_for_every_timeline(
    make, half: int, more: int, forward: float, inputs: float, weight: float
) -> None:
    ranks, chunks = 2 * half, 4 * half + 2 * more
    schedule = make(ranks, chunks)
    timeline = simulate(schedule, StageCosts(forward=forward, backward=inputs + weight, weight=weight))
    work = chunks * schedule.stages / ranks * (forward + inputs + weight)
    for own, idle in zip(timeline.spans, timeline.idle, strict=True):
        assert all(span.start <= span.end for span in own)
        assert all(first.end <= second.start for first, second in pairwise(own))
        assert timeline.makespan - idle == pytest.approx(work, abs=1e-9)
        assert idle >= -1e-9
    longest = schedule.stages * (forward + inputs + weight) - weight * (schedule.stages - 1)
    assert timeline.makespan >= min(longest, schedule.stages * (forward + inputs)) - 1e-9


def test_the_docs_table_of_times_is_what_the_simulator_gives() -> None:
    """8 devices, 32 micro-batches; DualPipeV cuts the model twice as fine, so its stages cost half."""
    text = (Path(__file__).parents[3] / "docs" / "plugins" / "dualpipe.md").read_text()
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if "%)" in line]
    table = {name.strip("`"): cells for name, *cells in rows}
    for name, make, part in (("dualpipe", dualpipe, 1.0), ("dualpipev", dualpipev, 0.5)):
        found = []
        for pair in (3, 2.8, 2.4, 2.0):
            costs = StageCosts(forward=part, backward=2 * part, weight=part, overlap=pair * part)
            timeline = simulate(make(8, 32), costs)
            found.append(f"{timeline.makespan:g} ({timeline.bubble:.1%})")
        assert table[name][:4] == found
    # The published bubbles, as a share of 32 (F + B) and themselves.
    for name, bubble in (("1F1B", 7 * 3), ("ZB1P", 7 * (3 - 2)), ("ZB-V", 7 * (3 - 2) / 2)):
        assert table[name][0] == f"{96 + bubble:g} ({bubble / (96 + bubble):.1%})"


def test_a_schedule_in_which_a_rank_waits_for_nothing_has_no_timeline() -> None:
    whole = dualpipe(2, 4)
    with pytest.raises(ValueError, match=r"ranks \[0\] wait for what no rank makes"):
        simulate(replace(whole, actions=(whole.actions[0], ())), UNIT)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"forward": -1}, "forward must be a finite number from 0 on, not -1"),
        ({"backward": math.nan}, "backward must be a finite number"),
        ({"forward": "1"}, "forward must be a finite number from 0 on, not '1'"),
        ({"weight": 3}, "the weight part 3 is more than the whole backward 2"),
    ],
)
def test_costs_that_cannot_be_are_refused(arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        StageCosts(**arguments)


def test_text_shows_tasks_in_proportion_and_idle_time_as_dots() -> None:
    assert as_text(simulate(dualpipe(4, 8), StageCosts())).splitlines() == [
        "dualpipe: 4 ranks, 4 stages, 8 micro-batches; makespan 26, idle 7.7%",
        "rank 0  |F0|F1|F2|f0|i0|w0|f1|F3b1    |···f2B0    |b2   |···f3B1    |b3   |I2|W2|I3|W3|",
        "rank 1  |···F0|f0|F1|f1|F2|b0   |f2B0    |F3b1    |f3B1    |b2   |B2   |···i3|I3|w3|W3|",
        "rank 2  |···f0|F0|f1|F1|f2|B0   |F2b0    |f3B1    |F3b1    |B2   |b2   |···I3|i3|W3|w3|",
        "rank 3  |f0|f1|f2|F0|I0|W0|F1|f3B1    |···F2b0    |B2   |···F3b1    |B3   |i2|w2|i3|w3|",
    ]


def test_text_too_wide_to_read_is_refused() -> None:
    with pytest.raises(ValueError, match=r"as text this needs \d{4} columns, more than 400: show less"):
        as_text(simulate(dualpipe(2, 40), StageCosts(forward=0.1, backward=1.1, weight=1)))


def test_tasks_that_take_no_time_are_left_out_of_the_text() -> None:
    text = as_text(simulate(dualpipev(1, 2), StageCosts(forward=1, backward=0, weight=0, overlap=0)))
    assert text.splitlines()[1] == "rank 0  |F0|f0|F1|"


def test_ranks_that_wait_for_the_same_all_continue_or_are_all_named() -> None:
    schedule = dualpipe(4, 8)
    makes, needs = (next(each for each in own if isinstance(each, Forward)) for own in schedule.actions[:2])
    assert (makes.stage, needs.stage) == (0, 1)
    joined = replace(schedule, actions=((makes,), (needs,), (needs,), (needs,)))
    assert [len(own) for own in simulate(joined, UNIT).spans] == [1, 1, 1, 1]
    with pytest.raises(ValueError, match=r"ranks \[1, 2, 3\] wait"):
        simulate(replace(joined, actions=((), *joined.actions[1:])), UNIT)
