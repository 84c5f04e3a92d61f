"""Global batches: elastic determinism, exhaustively over small worlds and with hypothesis over others. No I/O."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dataset import GlobalBatches, Order
from luciola.plugins.dataset.sampler import BatchesIterator

Sequence = list[list[int]]
"""Global batches."""


def world(order: Order, batch: int, ranks: int, **options) -> list[GlobalBatches]:
    return [
        GlobalBatches(order, global_batch_size=batch, rank=rank, ranks=ranks, **options)
        for rank in range(ranks)
    ]


def run(
    members: list[GlobalBatches], *, workers: int = 0, steps: int | None = None
) -> tuple[Sequence, list[dict]]:
    """The global batches that the ranks see, `steps` of them, and each rank's state behind them.

    With workers, as DataLoader does it: each has an iterator of its own, and they are asked in turn.
    """
    streams = []
    for member in members:
        if workers:
            iterators = [BatchesIterator(member, worker=each, workers=workers) for each in range(workers)]
            streams.append(next(each, None) for each in itertools.cycle(iterators))
        else:
            streams.append(iter(member))
    start = members[0].sample
    epoch = members[0].epoch
    result: Sequence = []
    while steps is None or len(result) < steps:
        slices = [next(stream, None) for stream in streams]
        if all(part is None for part in slices):
            break
        result.append([sample for part in slices if part is not None for sample in part])
    if workers:
        states = [
            member.state_at(epoch, start + len(result) * member.global_batch_size) for member in members
        ]
    else:
        states = [stream.state_dict() for stream in streams]
    return result, states


def reference(order: Order, batch: int, epoch: int) -> Sequence:
    samples = order.indices(epoch, np.arange(order.samples)).tolist()
    return [samples[at : at + batch] for at in range(0, len(samples) - batch + 1, batch)]


def test_small_worlds_exhaustively() -> None:
    """Ranks 1 to 8, workers 0 to 4, every point to stop at, resumed on every other number of ranks."""
    order = Order([75], seed=3)
    wanted = reference(order, 8, epoch=2)
    assert len(wanted) == 9
    for ranks, workers, stop in itertools.product(range(1, 9), range(5), range(10)):
        members = world(order, 8, ranks)
        for member in members:
            member.seek(2)
        seen, states = run(members, workers=workers, steps=stop)
        assert seen == wanted[:stop]
        assert all(state == states[0] for state in states), "the state of one rank is that of all"
        others = 1 + (ranks + stop) % 8
        going_on = world(order, 8, others)
        for member in going_on:
            member.load_state_dict(states[0])
        rest, _ = run(going_on, workers=(workers + stop) % 5)
        if stop == len(wanted):
            seen = wanted[:0]
            assert rest == reference(order, 8, epoch=3), "the end is the start of the next epoch"
        else:
            assert seen + rest == wanted, (ranks, workers, stop, others)


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_any_world_sees_the_same_batches(data) -> None:
    sizes = data.draw(st.lists(st.integers(1, 400), min_size=1, max_size=3))
    weights = data.draw(st.none() | st.lists(st.floats(0.1, 5), min_size=len(sizes), max_size=len(sizes)))
    order = Order(sizes, weights=weights, seed=data.draw(st.integers()), shuffle=data.draw(st.booleans()))
    batch = data.draw(st.integers(1, min(64, order.samples)))
    epoch = data.draw(st.integers(0, 3))
    wanted = reference(order, batch, epoch)
    members = world(order, batch, data.draw(st.integers(1, batch)))
    for member in members:
        member.seek(epoch)
    seen, states = run(members, steps=data.draw(st.integers(0, len(wanted))))
    going_on = world(order, batch, data.draw(st.integers(1, batch)))
    is_at_end = len(seen) == len(wanted)
    for member in going_on:
        member.load_state_dict(states[0])
        assert member.left() == (len(wanted) - len(seen) or len(wanted))
        assert member.epoch == epoch + is_at_end, "the end is the start of the next epoch"
        if is_at_end:
            member.seek(epoch)
    seen = [] if is_at_end else seen
    rest, _ = run(going_on, workers=data.draw(st.integers(0, 5)))
    assert seen + rest == wanted


@given(data=st.data())
@settings(deadline=None, max_examples=60)
def test_short_and_padded_tails(data) -> None:
    count, batch = data.draw(st.integers(1, 200)), data.draw(st.integers(1, 50))
    ranks, workers = data.draw(st.integers(1, batch)), data.draw(st.integers(0, 3))
    order = Order([count], seed=1)
    samples = order.indices(0, np.arange(count)).tolist()
    short, _ = run(world(order, batch, ranks, tail="short"), workers=workers)
    assert list(itertools.chain(*short)) == samples, "every sample once"
    members = world(order, batch, ranks, tail="pad")
    assert len({len(member) for member in members}) == 1
    padded, _ = run(members, workers=workers)
    assert {len(each) for each in padded} == {batch}
    everything = list(itertools.chain(*padded))
    assert everything == [samples[place % count] for place in range(len(everything))]
    assert count <= len(everything) < count + batch


def test_slices_of_ranks_differ_by_one_at_most() -> None:
    for ranks in range(1, 14):
        lengths = [len(next(iter(member))) for member in world(Order([13]), 13, ranks)]
        assert sum(lengths) == 13
        assert max(lengths) - min(lengths) <= 1


def test_epochs_follow_one_another() -> None:
    (batches,) = world(Order([10], seed=4), 5, 1)
    first, second = list(batches), list(batches)
    assert (batches.epoch, batches.sample) == (2, 0)
    assert first == reference(batches.order, 5, 0)
    assert second == reference(batches.order, 5, 1)
    batches.set_epoch(0)
    assert list(batches) == first
    batches.seek(0, 5)
    batches.set_epoch(0)
    assert list(batches) == first[1:], "the epoch in which it stands"


def test_state_resumes_with_another_batch_size() -> None:
    order = Order([40], seed=4)
    (batches,) = world(order, 8, 1)
    stream = iter(batches)
    seen = [*next(stream), *next(stream)]
    (other,) = world(order, 6, 1)
    other.load_state_dict(stream.state_dict())
    assert [*seen, *itertools.chain(*other)] == order.indices(0, np.arange(40)).tolist()


def test_a_state_of_another_order_says_what_differs() -> None:
    (batches,) = world(Order([10], seed=4), 5, 1)
    (other,) = world(Order([11], seed=5), 5, 1)
    with pytest.raises(
        ValueError, match=r"another order: sizes \[11\], now \[10\], seed 5, now 4, samples 11, now 10"
    ):
        batches.load_state_dict(other.state_dict())
    for wrong in ({}, {"version": 9}, None, [1]):
        with pytest.raises(ValueError, match="not a state of version 1"):
            batches.load_state_dict(wrong)
    with pytest.raises(ValueError, match="worker 0 of 2, this is 0 of 3"):
        BatchesIterator(batches, worker=0, workers=3).load_worker_state(
            BatchesIterator(batches, worker=0, workers=2).worker_state(ahead=0)
        )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"rank": 2, "ranks": 2}, "rank is 0 to ranks-1, not 2 of 2"),
        ({"rank": -1}, "not -1 of 1"),
        ({"ranks": 11}, "a global batch of 10 is too small for 11 ranks"),
        ({"global_batch_size": 0}, "too small for 1 ranks"),
        ({"global_batch_size": 30}, 'make the batch smaller, or tail="short"'),
        ({"tail": "cut"}, "drop, short, pad, not 'cut'"),
    ],
)
def test_bad_arguments_say_what_is_allowed(options, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        GlobalBatches(Order([20]), **{"global_batch_size": 10, **options})


@pytest.mark.parametrize(("epoch", "sample"), [(-1, 0), (0, -1), (0, 21)])
def test_places_outside_are_refused(epoch: int, sample: int) -> None:
    (batches,) = world(Order([20]), 5, 1)
    with pytest.raises(ValueError, match="samples to 20"):
        batches.seek(epoch, sample)
