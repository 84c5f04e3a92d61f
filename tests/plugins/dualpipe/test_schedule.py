"""The two schedules against the facts known of them: sums, symmetries, and orders written out by hand."""

from collections import Counter
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributed.pipelining._schedule_visualizer import get_schedule_ops

from luciola.plugins.dualpipe.schedule import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Exchange,
    Forward,
    Overlap,
    Part,
    Payload,
    Receive,
    Schedule,
    Send,
    dualpipe,
    dualpipev,
    label,
    parts,
    transfers,
)

SIZES = [(ranks, chunks) for ranks in (2, 4, 6, 8) for chunks in (2 * ranks, 2 * ranks + 2, 4 * ranks + 6)]


@st.composite
def schedules(draw: st.DrawFn) -> Schedule:
    if draw(st.booleans()):
        ranks = 2 * draw(st.integers(1, 6))
        return dualpipe(ranks, 2 * draw(st.integers(ranks, 16)))
    ranks = draw(st.integers(1, 7))
    return dualpipev(ranks, draw(st.integers(2 * ranks, 20)))


def tasks(actions: tuple[Action, ...]) -> list[str]:
    return [label(action) for action in actions if not isinstance(action, Exchange)]


def test_rank_1_of_8_with_20_chunks_has_the_published_order() -> None:
    assert " ".join(tasks(dualpipe(8, 20).actions[1])) == (
        "F0:0 F0:1 F0:2 F0:3 "
        "F0:4 F1:0 F0:5 F1:1 "
        "I1:0 W1:0 F1:2 I1:1 W1:1 F1:3 "
        "F0:6|B1:2 F1:4|B0:0 F0:7|B1:3 F1:5|B0:1 F0:8|B1:4 F1:6|B0:2 F0:9|B1:5 F1:7|B0:3 "
        "B1:6 F1:8|B0:4 B1:7 F1:9|B0:5 "
        "B1:8 B0:6 I1:9 I0:7 "
        "W1:9 I0:8 W0:7 I0:9 "
        "W0:8 W0:9"
    )


def test_middle_ranks_start_the_steady_part_without_a_pair() -> None:
    assert " ".join(tasks(dualpipe(4, 8).actions[1])) == (
        "F0:0 F1:0 F0:1 F1:1 F0:2 B1:0 F1:2|B0:0 F0:3|B1:1 F1:3|B0:1 B1:2 B0:2 I1:3 I0:3 W1:3 W0:3"
    )


def test_exchanges_of_an_end_rank_are_queued_in_the_known_batches() -> None:
    """Rank 0 of 4 with 8 chunks: the Receive of the next F0 stands before the Send of this one in step 2."""
    assert [label(action) for action in dualpipe(4, 8).actions[0]] == [
        *("F0:0", "[>1 a0:0]", "F0:1", "[>1 a0:1]"),
        *("F0:2", "[<1 a1:0]", "F1:0", "[>1 a0:2]"),
        *("I1:0", "[>1 g1:0, <1 a1:1]", "W1:0", "F1:1"),
        "F0:3|B1:1",
        "[>1 a0:3, >1 g1:1, <1 a1:2, <1 g0:0]",
        "F1:2|B0:0",
        *("B1:2", "[>1 g1:2, <1 a1:3, <1 g0:1]", "F1:3|B0:1"),
        *("B1:3", "[>1 g1:3, <1 g0:2]", "I0:2"),
        *("W0:2", "[<1 g0:3]", "I0:3"),
        "W0:3",
    ]


def test_the_last_rank_of_a_v_hands_over_inside_the_process() -> None:
    alone = dualpipev(1, 3)
    assert " ".join(tasks(alone.actions[0])) == (
        "F0:0 F1:0 F0:1 B1:0 F1:1|B0:0 F0:2|B1:1 F1:2|B0:1 B1:2 I0:2 W0:2"
    )
    assert list(transfers(alone.actions[0])) == []
    assert {each.peer for each in transfers(dualpipev(3, 8).actions[2])} == {1}


def exchanged(action: Action) -> Action:
    """The same action with the two directions exchanged, transfers left out."""

    def other(part: Part) -> Part:
        return type(part)(1 - part.module, 1 - part.flow, part.stage, part.chunk)

    if isinstance(action, Overlap):
        forward, backward = parts(action)
        return Overlap(other(forward), other(backward))
    assert not isinstance(action, Exchange)
    return other(action)


@pytest.mark.parametrize(("ranks", "chunks"), SIZES)
def test_mirror_rule(ranks: int, chunks: int) -> None:
    schedule = dualpipe(ranks, chunks)
    for rank in range(ranks):
        mirror = [each for each in schedule.actions[ranks - 1 - rank] if not isinstance(each, Exchange)]
        own = [each for each in schedule.actions[rank] if not isinstance(each, Exchange)]
        assert [exchanged(each) for each in own] == mirror


@pytest.mark.parametrize(("ranks", "chunks"), SIZES)
def test_cut_in_half_rule(ranks: int, chunks: int) -> None:
    whole, half = dualpipe(ranks, chunks), dualpipev(ranks // 2, chunks // 2)
    for rank in range(ranks // 2):
        assert tasks(whole.actions[rank]) == tasks(half.actions[rank])


@pytest.mark.parametrize(("ranks", "chunks"), SIZES)
def test_counts_of_each_kind(ranks: int, chunks: int) -> None:
    for rank, actions in enumerate(dualpipe(ranks, chunks).actions):
        depth = min(rank, ranks - 1 - rank)
        inner = ranks // 2 - 1 - depth
        kinds = Counter((type(part), part.module) for action in actions for part in parts(action))
        for module in (0, 1):
            assert kinds[Forward, module] == chunks // 2
            assert kinds[Backward, module] + kinds[BackwardInput, module] == chunks // 2
        put_off = sum(kinds[BackwardInput, module] for module in (0, 1))
        assert put_off == sum(kinds[BackwardWeight, module] for module in (0, 1)) == 2 * inner + depth + 1
        pairs = sum(isinstance(action, Overlap) for action in actions)
        steady = chunks // 2 - ranks + depth + 1
        assert pairs == 2 * steady + inner - (inner == 0)


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_each_chunk_passes_each_stage_once_and_backward(schedule: Schedule) -> None:
    """I1."""
    done: dict[tuple[int, int, int], list[type]] = {}
    for rank, actions in enumerate(schedule.actions):
        for part in (part for action in actions for part in parts(action)):
            assert schedule.places[rank][part.module].stage == part.stage
            assert schedule.places[rank][part.module].flow == part.flow
            done.setdefault((part.flow, part.stage, part.chunk), []).append(type(part))
    wanted = {
        (flow, stage, chunk)
        for flow in range(schedule.flows)
        for stage in range(schedule.stages)
        for chunk in range(schedule.chunks)
    }
    assert set(done) == wanted
    for kinds in done.values():
        assert kinds in ([Forward, Backward], [Forward, BackwardInput, BackwardWeight])


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_both_ends_of_a_link_have_one_order(schedule: Schedule) -> None:
    """I2."""
    for rank, actions in enumerate(schedule.actions):
        for peer in range(schedule.ranks):
            sent = [each for each in transfers(actions) if isinstance(each, Send) and each.peer == peer]
            taken = [
                each
                for each in transfers(schedule.actions[peer])
                if isinstance(each, Receive) and each.peer == rank
            ]
            assert [(each.payload, each.flow, each.boundary, each.chunk) for each in sent] == [
                (each.payload, each.flow, each.boundary, each.chunk) for each in taken
            ]
            assert abs(peer - rank) == 1 or not sent


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_weight_gradients_leave_in_the_order_they_came(schedule: Schedule) -> None:
    """I3."""
    for actions in schedule.actions:
        alone = [part for action in actions for part in parts(action)]
        put = [(each.module, each.chunk) for each in alone if isinstance(each, BackwardInput)]
        taken = [(each.module, each.chunk) for each in alone if isinstance(each, BackwardWeight)]
        assert put == taken


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_tasks_have_what_they_need(schedule: Schedule) -> None:
    """I4, and a whole backward of a stage comes after its forward."""
    for rank, actions in enumerate(schedule.actions):
        here = {(place.flow, place.stage) for place in schedule.places[rank]}
        ready: set[tuple[Payload, int, int, int]] = set()
        for action in actions:
            if isinstance(action, Exchange):
                for each in action.transfers:
                    key = (each.payload, each.flow, each.boundary, each.chunk)
                    if isinstance(each, Send):
                        assert key in ready
                    else:
                        stage = each.boundary if each.payload is Payload.ACTIVATION else each.boundary + 1
                        assert (each.flow, stage) not in here
                        assert key not in ready
                        ready.add(key)
            for part in parts(action):
                if isinstance(part, Forward):
                    below = (Payload.ACTIVATION, part.flow, part.stage - 1, part.chunk)
                    assert part.stage == 0 or below in ready
                    ready.add((Payload.ACTIVATION, part.flow, part.stage, part.chunk))
                elif isinstance(part, Backward | BackwardInput):
                    above = (Payload.GRADIENT, part.flow, part.stage, part.chunk)
                    last = part.stage == schedule.stages - 1
                    assert last or above in ready
                    assert (Payload.ACTIVATION, part.flow, part.stage, part.chunk) in ready
                    ready.add((Payload.GRADIENT, part.flow, part.stage - 1, part.chunk))


@settings(max_examples=25, deadline=None)
@given(schedules())
def test_forward_only_has_the_forwards_in_the_same_order(schedule: Schedule) -> None:
    for whole, only in zip(schedule.actions, schedule.forward_only().actions, strict=True):
        forwards = [part for action in whole for part in parts(action) if isinstance(part, Forward)]
        assert [action for action in only if not isinstance(action, Exchange)] == forwards
        assert list(transfers(only)) == [
            each for each in transfers(whole) if each.payload is Payload.ACTIVATION
        ]


@pytest.mark.parametrize(
    ("make", "ranks", "chunks", "words"),
    [
        (dualpipe, 3, 8, "even number of ranks, not 3"),
        (dualpipe, 0, 8, "ranks must be from 1 to"),
        (dualpipe, 4, 9, "even number of chunks"),
        (dualpipe, 4, 6, "at least 8 chunks"),
        (dualpipev, 3, 5, "at least 6 chunks"),
        (dualpipev, 2, 10**9, "chunks must be from 1 to"),
    ],
)
def test_sizes_that_cannot_be_are_refused(make, ranks, chunks, words) -> None:
    with pytest.raises(ValueError, match=words):
        make(ranks, chunks)


def test_sizes_must_be_integers() -> None:
    with pytest.raises(TypeError, match="chunks must be an int"):
        dualpipe(2, 4.0)


LETTERS = {Forward: "F", Backward: "B", BackwardInput: "I", BackwardWeight: "W"}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("ranks", "chunks"), [(1, 4), (2, 4), (2, 9), (3, 6), (4, 8), (4, 20), (5, 15), (8, 24)]
)
def test_pytorch_has_the_same_order_of_dualpipev(ranks: int, chunks: int) -> None:
    """But for which weight gradient is done where one is: ours are done in the order they were put off."""
    schedule = dualpipev(ranks, chunks)
    for rank, actions in enumerate(get_schedule_ops("DualPipeV", ranks, chunks, num_stages_per_rank=2)):
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
