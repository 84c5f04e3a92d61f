"""Timelines as text."""

import pytest

from luciola.plugins.dualpipe.costs import StageCosts
from luciola.plugins.dualpipe.schedule import dualpipe
from luciola.plugins.dualpipe.schedules import one_f_one_b
from luciola.plugins.dualpipe.simulate import simulate
from luciola.plugins.dualpipe.timeline import as_text


def test_text_shows_tasks_in_proportion_and_idle_time_as_dots() -> None:
    assert as_text(simulate(dualpipe(4, 8), StageCosts())).splitlines() == [
        "dualpipe: 4 ranks, 4 stages, 8 micro-batches; makespan 26, idle 7.7%",
        "rank 0  |F0|F1|F2|f0|i0|w0|f1|F3b1    |···f2B0    |b2   |···f3B1    |b3   |I2|W2|I3|W3|",
        "rank 1  |···F0|f0|F1|f1|F2|b0   |f2B0    |F3b1    |f3B1    |b2   |B2   |···i3|I3|w3|W3|",
        "rank 2  |···f0|F0|f1|F1|f2|B0   |F2b0    |f3B1    |F3b1    |B2   |b2   |···I3|i3|W3|w3|",
        "rank 3  |f0|f1|f2|F0|I0|W0|F1|f3B1    |···F2b0    |B2   |···F3b1    |B3   |i2|w2|i3|w3|",
    ]


def test_text_that_nobody_could_read_is_refused() -> None:
    with pytest.raises(ValueError, match="as text this needs 1968 columns, more than 400: show less"):
        as_text(simulate(one_f_one_b(2, 40), StageCosts(forward=0.1, backward=1.1, weight=1)))


def test_tasks_that_take_no_time_are_left_out_of_the_text() -> None:
    text = as_text(simulate(one_f_one_b(1, 2), StageCosts(forward=1, backward=0, weight=0)))
    assert text.splitlines()[1] == "rank 0  |F0|F1|"
