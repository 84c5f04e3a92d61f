"""The schedules that DualPipe is compared with: known orders, and PyTorch's own where it has the same schedule."""

from typing import Any

import pytest
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from luciola.plugins.dualpipe.schedule import (
    Backward,
    BackwardInput,
    BackwardWeight,
    Exchange,
    Forward,
    Schedule,
    dualpipev,
    label,
    parts,
)
from luciola.plugins.dualpipe.schedules import one_f_one_b, zb1p, zbv

LETTERS = {Forward: "F", Backward: "B", BackwardInput: "I", BackwardWeight: "W"}


def order(schedule: Schedule, rank: int) -> str:
    return " ".join(label(each) for each in schedule.actions[rank] if not isinstance(each, Exchange))


def test_1f1b_by_hand() -> None:
    schedule = one_f_one_b(3, 4)
    assert order(schedule, 0) == "F0:0 F0:1 F0:2 B0:0 F0:3 B0:1 B0:2 B0:3"
    assert order(schedule, 1) == "F0:0 F0:1 B0:0 F0:2 B0:1 F0:3 B0:2 B0:3"
    assert order(schedule, 2) == "F0:0 B0:0 F0:1 B0:1 F0:2 B0:2 F0:3 B0:3"


def test_zb1p_by_hand() -> None:
    schedule = zb1p(3, 4)
    assert order(schedule, 0) == "F0:0 F0:1 F0:2 I0:0 W0:0 F0:3 I0:1 W0:1 I0:2 W0:2 I0:3 W0:3"
    assert order(schedule, 2) == "F0:0 I0:0 F0:1 I0:1 F0:2 I0:2 W0:0 F0:3 I0:3 W0:1 W0:2 W0:3"


def test_zbv_by_hand() -> None:
    schedule = zbv(2, 3)
    assert (
        order(schedule, 0)
        == "F0:0 F0:1 F0:2 F1:0 I1:0 W1:0 F1:1 I1:1 W1:1 I0:0 W0:0 F1:2 I1:2 W1:2 I0:1 W0:1 I0:2 W0:2"
    )
    assert (
        order(schedule, 1)
        == "F0:0 F1:0 F0:1 F1:1 I1:0 W1:0 F0:2 I0:0 W0:0 F1:2 I1:1 W1:1 I0:1 I1:2 I0:2 W0:1 W1:2 W0:2"
    )


def test_fewer_chunks_than_ranks_are_possible_where_nothing_forbids_it() -> None:
    assert order(one_f_one_b(4, 1), 1) == "F0:0 B0:0"
    assert order(zb1p(4, 2), 3) == "F0:0 I0:0 F0:1 I0:1 W0:0 W0:1"
    assert order(zbv(3, 1), 0) == "F0:0 F1:0 I1:0 W1:0 I0:0 W0:0"


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("make", "name"),
    [
        (zbv, "ZBVZeroBubble"),
        (dualpipev, "DualPipeV"),
    ],
    ids=["zbv", "dualpipev"],
)
@pytest.mark.parametrize(
    ("ranks", "chunks"), [(1, 4), (2, 4), (2, 9), (3, 6), (4, 8), (4, 20), (5, 15), (8, 24)]
)
def test_pytorch_has_the_same_order(make, name: str, ranks: int, chunks: int) -> None:
    """But for which weight gradient is done where one is: ours are done in the order they were put off."""
    try:
        schedule = make(ranks, chunks)
    except ValueError:
        with pytest.raises(ValueError, match="number of microbatches"):
            get_schedule_ops(name, ranks, chunks, num_stages_per_rank=2)
        return
    for rank, actions in enumerate(get_schedule_ops(name, ranks, chunks, num_stages_per_rank=2)):
        own, theirs = ours(schedule, rank), [each for action in actions if action for each in listed(action)]
        assert sorted(own) == sorted(theirs)
        assert [without_weight(each) for each in own] == [without_weight(each) for each in theirs]


Done = tuple[str, int, int]


def ours(schedule: Schedule, rank: int) -> list[Done]:
    return [
        (LETTERS[type(part)], part.stage, part.chunk)
        for action in schedule.actions[rank]
        for part in parts(action)
    ]


def listed(action: Any) -> list[Done]:
    if action.sub_actions:
        return [each for sub in action.sub_actions for each in listed(sub)]
    return [(action.computation_type.value, action.stage_index, action.microbatch_index)]


def without_weight(done: Done) -> Done | str:
    return "W" if done[0] == "W" else done
