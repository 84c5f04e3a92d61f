"""The verifier accepts every schedule that is made here, in every size, and finds what is planted."""

import random
from collections.abc import Callable
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dualpipe.schedule import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Builder,
    Exchange,
    Forward,
    Overlap,
    Payload,
    Place,
    Receive,
    Schedule,
    Send,
    dualpipe,
    dualpipev,
    label,
)
from luciola.plugins.dualpipe.verify import find_deadlocks, find_problems

RANKS_MAX, CHUNKS_MAX = 16, 64


def one_f_one_b(ranks: int, chunks: int) -> Schedule:
    """One forward, one backward; stages one after the other (PipeDream-Flush, 2019)."""
    places = tuple((Place(0, rank),) for rank in range(ranks))
    actions = []
    for rank in range(ranks):
        builder = Builder(places, rank, ranks)
        ahead = min(ranks - 1 - rank, chunks)
        for step in range(chunks + ahead):
            if step < chunks:
                builder.forward(0)
            if step >= ahead:
                builder.backward(0)
        actions.append(builder.finish())
    return Schedule("1f1b", ranks, 1, chunks, places, tuple(actions))


def chunk_counts(ranks: int) -> list[int]:
    """Numbers of micro-batches: all for few ranks; for more those near the bounds, between which only the middle of
    the step grows."""
    every = range(2 * ranks, CHUNKS_MAX + 1)
    return list(every) if ranks <= 3 else sorted({*every[:4], *every[4::19], *every[-2:]})


@pytest.mark.parametrize("ranks", [2, 4, 6, 8, 12, RANKS_MAX])
def test_dualpipe_is_right_in_all_sizes(ranks: int) -> None:
    for chunks in chunk_counts(ranks):
        if chunks % 2:
            continue
        assert find_problems(dualpipe(ranks, chunks), live_chunks_max=ranks + 1) == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 4, 5, 8, RANKS_MAX])
def test_dualpipev_is_right_in_all_sizes(ranks: int) -> None:
    for chunks in chunk_counts(ranks):
        assert find_problems(dualpipev(ranks, chunks), live_chunks_max=2 * ranks + 1) == []


@pytest.mark.parametrize("ranks", [2, 12])
def test_inference_is_right_too(ranks: int) -> None:
    for chunks in (2 * ranks, 2 * ranks + 2, CHUNKS_MAX):
        for schedule in (dualpipe(ranks, chunks), dualpipev(ranks, chunks)):
            assert find_problems(schedule.forward_only(), inference=True) == []
    assert "rank 1: no Forward of flow 0, stage 1, micro-batch 1" in message_of(
        without(one_f_one_b(2, 2).forward_only(), 1, "F0:1"), inference=True
    )
    assert "has no place in inference" in message_of(dualpipe(2, 4), inference=True)


@pytest.mark.parametrize(("ranks", "chunks"), [(1, 1), (2, 1), (3, 5), (8, 12), (13, 26)])
def test_a_schedule_of_ones_own_is_right(ranks: int, chunks: int) -> None:
    assert find_problems(one_f_one_b(ranks, chunks), live_chunks_max=ranks) == []


def test_a_rank_with_too_many_live_micro_batches_is_named() -> None:
    problems = find_problems(dualpipe(4, 8), live_chunks_max=4)
    assert {problem.rank for problem in problems} == {0, 1, 2, 3}
    assert "holds 5 micro-batches, more than 4" in str(problems[0])
    assert "|" in str(problems[0]), "a pair is where the peak is"


def index_of(schedule: Schedule, rank: int, name: str) -> int:
    """Where a task with this label, or an Exchange with this transfer, stands."""
    for index, action in enumerate(schedule.actions[rank]):
        own = label(action)
        if name == own or (isinstance(action, Exchange) and name in own[1:-1].split(", ")):
            return index
    raise AssertionError(f"rank {rank} has no {name}")


def changed(schedule: Schedule, rank: int, change: Callable[[list[Action]], None]) -> Schedule:
    own = list(schedule.actions[rank])
    change(own)
    actions = tuple(tuple(own) if each == rank else old for each, old in enumerate(schedule.actions))
    return replace(schedule, actions=actions)


def moved(schedule: Schedule, rank: int, name: str, before: str) -> Schedule:
    source, target = index_of(schedule, rank, name), index_of(schedule, rank, before)
    return changed(schedule, rank, lambda own: own.insert(target, own.pop(source)))


def without(schedule: Schedule, rank: int, name: str) -> Schedule:
    index = index_of(schedule, rank, name)

    def change(own: list[Action]) -> None:
        action = own[index]
        if isinstance(action, Exchange) and label(action) != name:
            kept = tuple(each for each in action.transfers if label(Exchange((each,)))[1:-1] != name)
            own[index] = Exchange(kept)
        else:
            del own[index]

    return changed(schedule, rank, change)


def message_of(schedule: Schedule, *, inference: bool = False) -> str:
    return "\n".join(map(str, find_problems(schedule, inference=inference)))


def test_swapped_sends_are_found() -> None:
    good = dualpipe(4, 8)
    first, second = index_of(good, 0, ">1 a0:1"), index_of(good, 0, ">1 a0:0")

    def change(own: list[Action]) -> None:
        own[first], own[second] = own[second], own[first]

    text = message_of(changed(good, 0, change))
    assert "rank 0, action 1 [>1 a0:1]: the Send of activation 1 of flow 0" in text
    assert "before the task that makes it" in text


def test_sends_in_another_order_than_their_receives_are_found() -> None:
    good = dualpipe(4, 8)
    index = next(
        index
        for index, action in enumerate(good.actions[1])
        if isinstance(action, Exchange)
        and {(each.payload, each.peer) for each in action.transfers if isinstance(each, Send)}
        >= {(Payload.ACTIVATION, 2), (Payload.GRADIENT, 2)}
    )
    swapped = changed(good, 1, lambda own: own.__setitem__(index, Exchange(own[index].transfers[::-1])))
    text = message_of(swapped)
    assert "rank 2, action" in text
    assert "expects the Receive of" in text
    assert (
        f"but rank 1 sends the Send of gradient 0 of flow 1 across boundary 1 to rank 2 first, in its action {index}"
        in text
    )


def test_a_missing_receive_is_found() -> None:
    text = message_of(without(dualpipe(4, 8), 2, "<1 a0:3"))
    assert "rank 2, action" in text
    assert "F0:3 before its input: no Receive of it comes earlier" in text
    assert "rank 1, action" in text
    assert (
        "the Send of activation 3 of flow 0 across boundary 1 to rank 2 is never received by rank 2" in text
    )


def test_a_missing_send_is_found() -> None:
    text = message_of(without(dualpipev(3, 8), 1, ">2 a0:5"))
    assert (
        "the Receive of activation 5 of flow 0 across boundary 1 from rank 1 is never sent by rank 1" in text
    )
    assert text.startswith("rank 2, action ")


def test_a_circular_wait_is_found() -> None:
    """Each of two ranks wants the other's chunk before it gives its own."""
    places = ((Place(0, 0), Place(1, 1)), (Place(0, 1), Place(1, 0)))

    def rank(own: int) -> tuple[Action, ...]:
        flow, other = own, 1 - own
        return (
            Forward(flow, flow, 0, 0),
            Exchange((Receive(Payload.ACTIVATION, other, 0, 0, other),)),
            Exchange((Send(Payload.ACTIVATION, flow, 0, 0, other),)),
            Forward(1 - flow, other, 1, 0),
            Backward(1 - flow, other, 1, 0),
            Exchange(
                (
                    Send(Payload.GRADIENT, other, 0, 0, other),
                    Receive(Payload.GRADIENT, flow, 0, 0, other),
                )
            ),
            Backward(flow, flow, 0, 0),
        )

    schedule = Schedule("circle", 2, 2, 1, places, (rank(0), rank(1)))
    problems = find_problems(schedule)
    assert [(each.rank, each.position) for each in problems] == [(0, 1), (1, 1)]
    assert "deadlock: waits for the Receive of activation 0 of flow 1 across boundary 0 from rank 1" in str(
        problems[0]
    )


def test_sends_that_only_work_if_they_are_buffered_are_found() -> None:
    """Rank 0 sends both chunks before it listens; rank 1 answers the first before it takes the second."""
    schedule = moved(one_f_one_b(2, 2), 0, "F0:1", "B0:0")
    sends_first = changed(
        schedule,
        0,
        lambda own: own.__setitem__(
            slice(None),
            [
                Forward(0, 0, 0, 0),
                Exchange((Send(Payload.ACTIVATION, 0, 0, 0, 1),)),
                Forward(0, 0, 0, 1),
                Exchange((Send(Payload.ACTIVATION, 0, 0, 1, 1),)),
                Exchange((Receive(Payload.GRADIENT, 0, 0, 0, 1),)),
                Backward(0, 0, 0, 0),
                Exchange((Receive(Payload.GRADIENT, 0, 0, 1, 1),)),
                Backward(0, 0, 0, 1),
            ],
        ),
    )
    answers_first = changed(
        sends_first,
        1,
        lambda own: own.__setitem__(
            slice(None),
            [
                Exchange((Receive(Payload.ACTIVATION, 0, 0, 0, 0),)),
                Forward(0, 0, 1, 0),
                Backward(0, 0, 1, 0),
                Exchange((Send(Payload.GRADIENT, 0, 0, 0, 0),)),
                Exchange((Receive(Payload.ACTIVATION, 0, 0, 1, 0),)),
                Forward(0, 0, 1, 1),
                Backward(0, 0, 1, 1),
                Exchange((Send(Payload.GRADIENT, 0, 0, 1, 0),)),
            ],
        ),
    )
    problems = find_problems(answers_first)
    assert [(each.rank, each.position) for each in problems] == [(0, 3), (1, 3)]
    assert "deadlock: waits for the Send of activation 1" in str(problems[0])


def test_an_early_weight_gradient_is_found() -> None:
    text = message_of(moved(dualpipe(8, 20), 1, "W1:0", before="I1:0"))
    assert "rank 1, action" in text
    assert "W1:0: W1:0 before its BackwardInput" in text


def test_weight_gradients_in_another_order_are_found() -> None:
    text = message_of(moved(dualpipe(8, 20), 1, "W0:9", before="W0:8"))
    assert "W0:9 is not the oldest that was put off" in text


def test_an_early_forward_is_found() -> None:
    good = dualpipev(2, 4)
    text = message_of(moved(good, 1, "F1:0", before="F0:0"))
    assert "F1:0 before its input: no Forward of it comes earlier" in text


def test_an_early_backward_is_found() -> None:
    good = dualpipe(4, 8)
    pair = index_of(good, 3, "F0:2|B1:0")
    apart = changed(
        good, 3, lambda own: own.__setitem__(slice(pair, pair + 1), [own[pair].backward, own[pair].forward])
    )
    assert find_problems(apart) == []
    assert "before its gradient: no Receive of it comes earlier" in message_of(
        moved(apart, 3, "B1:0", before="I0:0")
    )
    alone = one_f_one_b(1, 2)
    assert "B0:1 before its Forward" in message_of(moved(alone, 0, "B0:1", before="F0:1"))


def test_what_is_done_twice_or_never_is_found() -> None:
    good = one_f_one_b(3, 4)
    twice = changed(good, 2, lambda own: own.insert(3, own[1]))
    assert "F0:0 is done twice" in message_of(twice)
    never = without(good, 0, "B0:3")
    assert "rank 0: no Backward of flow 0, stage 0, micro-batch 3" in message_of(never)
    assert "no BackwardWeight after its BackwardInput" in message_of(without(dualpipe(2, 4), 0, "W0:1"))


def test_a_transfer_that_is_received_twice_is_found() -> None:
    good = dualpipe(4, 8)
    index = index_of(good, 1, "<0 a0:1")
    text = message_of(changed(good, 1, lambda own: own.insert(index, own[index])))
    assert "comes twice" in text


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda own: own.insert(0, Forward(0, 0, 1, 0)), "module 0 of this rank is stage 0 of flow 0"),
        (lambda own: own.insert(0, Forward(2, 0, 0, 0)), "the rank has 2 modules"),
        (lambda own: own.insert(0, Forward(0, 0, 0, 4)), "a flow has 4 micro-batches"),
        (
            lambda own: own.insert(0, Exchange((Receive(Payload.GRADIENT, 0, 0, 0, 3),))),
            "boundary 0 of flow 0 goes from rank 1 to rank 0",
        ),
        (
            lambda own: own.insert(0, Exchange((Receive(Payload.GRADIENT, 0, 3, 0, 1),))),
            "boundary 3 of flow 0 is not part of the step",
        ),
        (
            lambda own: own.insert(0, Overlap(Forward(0, 0, 0, 0), BackwardInput(1, 1, 3, 0))),
            "a pair is a Forward and a whole Backward",
        ),
    ],
)
def test_actions_in_the_wrong_place_are_found(change, words) -> None:
    assert words in message_of(changed(dualpipe(4, 8), 0, change))


def test_places_that_leave_a_stage_out_are_found() -> None:
    good = one_f_one_b(2, 2)
    assert "each stage of each flow once" in message_of(
        replace(good, places=((Place(0, 0),), (Place(0, 0),)))
    )
    assert "1 lists of actions for 2 ranks" in message_of(replace(good, actions=good.actions[:1]))


@settings(max_examples=80, deadline=None)
@given(st.randoms(use_true_random=False), st.sampled_from([(2, 4), (4, 8), (4, 12)]))
def test_whatever_is_left_out_or_moved_to_the_front_is_found(
    source: random.Random, size: tuple[int, int]
) -> None:
    """Every action of DualPipe is necessary, and all but the first have something that must come before."""
    good = dualpipe(*size)
    rank = source.randrange(good.ranks)
    own = good.actions[rank]
    index = source.randrange(1, len(own))
    problems = find_problems(changed(good, rank, lambda own: own.pop(index)))
    assert problems
    assert all(0 <= each.rank < good.ranks for each in problems)
    early = next(
        index
        for index, action in enumerate(own)
        if isinstance(action, Backward | BackwardInput | BackwardWeight | Overlap)
    )
    late = source.randrange(early, len(own))
    if not isinstance(own[late], Exchange):
        assert find_problems(changed(good, rank, lambda own: own.insert(0, own.pop(late))))


def stuck(schedule: Schedule, source: random.Random) -> set[int]:
    """The ranks that never end, by trying all of them again and again, each time in another order."""
    at, open_now = [0] * schedule.ranks, [False] * schedule.ranks
    begun: set[tuple] = set()

    def end(each: Send | Receive, kind: type) -> tuple:
        return (kind, each.payload, each.flow, each.boundary, each.chunk)

    def go(rank: int) -> bool:
        """One thing, if it can be done."""
        if at[rank] == len(schedule.actions[rank]):
            return False
        action = schedule.actions[rank][at[rank]]
        transfers = action.transfers if isinstance(action, Exchange) else ()
        if not open_now[rank]:
            open_now[rank] = True
            begun.update(end(each, type(each)) for each in transfers)
            return True
        if all(end(each, Receive if isinstance(each, Send) else Send) in begun for each in transfers):
            at[rank], open_now[rank] = at[rank] + 1, False
            return True
        return False

    while any([go(rank) for rank in source.sample(range(schedule.ranks), schedule.ranks)]):  # noqa: C419 - all try
        pass
    return {rank for rank in range(schedule.ranks) if at[rank] < len(schedule.actions[rank])}


@settings(max_examples=30, deadline=None)
@given(
    st.randoms(use_true_random=False),
    st.sampled_from([(dualpipe, 4, 8), (dualpipev, 3, 6), (one_f_one_b, 3, 4)]),
)
def test_deadlocks_are_found_where_trying_stops(
    source: random.Random, size: tuple[Callable[[int, int], Schedule], int, int]
) -> None:
    """With exchanges moved about, so that some schedules stop and others do not."""
    make, ranks, chunks = size
    schedule = make(ranks, chunks)
    for _ in range(source.randrange(3)):
        rank = source.randrange(ranks)
        exchanges = [at for at, each in enumerate(schedule.actions[rank]) if isinstance(each, Exchange)]
        moved_from, moved_to = source.choice(exchanges), source.randrange(len(schedule.actions[rank]))
        schedule = changed(schedule, rank, lambda own, a=moved_from, b=moved_to: own.insert(b, own.pop(a)))
    assert {each.rank for each in find_deadlocks(schedule)} == stuck(schedule, source)
