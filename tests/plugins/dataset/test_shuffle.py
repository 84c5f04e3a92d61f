"""The global order: permutations, mixtures, and that this version gives what it always gave."""

import itertools
import math
import pickle
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.dataset import Order
from luciola.plugins.dataset.permutation import permute
from luciola.plugins.dataset.shuffle import BLOCK, quotas

keys = st.binary(max_size=20)


# ---- permutations


@given(size=st.integers(1, 3000), key=keys)
@settings(deadline=None)
def test_every_number_comes_once(size: int, key: bytes) -> None:
    assert sorted(permute(np.arange(size), size, key).tolist()) == list(range(size))


@given(size=st.integers(1, 1 << 53), key=keys, data=st.data())
@settings(max_examples=50, deadline=None)
def test_numbers_of_any_size_stay_below_it_and_apart(size: int, key: bytes, data) -> None:
    values = data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=50, unique=True))
    result = permute(values, size, key).tolist()
    assert len(set(result)) == len(values)
    assert 0 <= min(result) <= max(result) < size
    assert [int(permute([value], size, key)[0]) for value in values] == result, "one by one as all at once"
    turns = data.draw(st.lists(st.integers(0, 3), min_size=len(values), max_size=len(values)))
    apart = [int(permute([value], size, key, turn)[0]) for value, turn in zip(values, turns, strict=True)]
    assert permute(values, size, key, turns).tolist() == apart, "each in the order of its turn"


def test_all_orders_of_few_are_equally_likely() -> None:
    """Within four standard deviations of chi square, over fixed seeds."""
    for size in range(2, 6):
        turns = np.repeat(np.arange(6000), size)
        orders = permute(np.tile(np.arange(size), 6000), size, b"seed", turns).reshape(-1, size)
        seen = Counter(map(tuple, orders.tolist()))
        freedom = math.factorial(size) - 1
        expected = 6000 / (freedom + 1)
        chi = sum((seen[each] - expected) ** 2 / expected for each in itertools.permutations(range(size)))
        assert chi < freedom + 4 * math.sqrt(2 * freedom), (size, chi)


def test_neighbours_are_far_apart_and_epochs_differ() -> None:
    order = Order([100_000], seed=1)
    first, second = order.indices(0, np.arange(100_000)), order.indices(1, np.arange(100_000))
    for one, other in ((first[1:], first[:-1]), (first, second), (first, np.arange(100_000))):
        assert abs(np.corrcoef(one, other)[0, 1]) < 0.02
        assert (np.abs(one - other) < 10).mean() < 1e-3


def test_this_version_gives_what_it_always_gave() -> None:
    """Golden: a change here breaks the resumption of every training. Then raise VERSION."""
    assert permute(np.arange(10), 10, b"key").tolist() == GOLDEN_SMALL
    assert permute([0, 1, 999_999_999_999], 10**12, b"key").tolist() == GOLDEN_LARGE
    assert Order([1000], seed=7).indices(3, np.arange(8)).tolist() == GOLDEN_ORDER
    mixed = Order([1000, 50], weights=[1, 0.5], seed=-7, samples=200_000)
    assert mixed.indices(2, [0, 1, 2, 77_777, 199_999]).tolist() == GOLDEN_MIXED


GOLDEN_SMALL = [6, 5, 0, 1, 3, 9, 2, 7, 4, 8]
GOLDEN_LARGE = [566287837901, 746117230904, 68965713274]
GOLDEN_ORDER = [103, 806, 608, 888, 651, 402, 376, 884]
GOLDEN_MIXED = [565, 274, 1011, 317, 95]


@pytest.mark.parametrize(
    ("size", "values", "kind"),
    [(0, [], ValueError), ((1 << 53) + 1, [], ValueError), (5, [5], IndexError), (5, [-1], IndexError)],
)
def test_what_is_outside_is_refused(size: int, values: list[int], kind) -> None:
    with pytest.raises(kind, match=r"places|positions are 0 to 4"):
        permute(values, size, b"")


# ---- orders


@given(
    sizes=st.lists(st.integers(1, 60), min_size=1, max_size=4), seed=st.integers(), epoch=st.integers(0, 5)
)
@settings(deadline=None)
def test_an_epoch_is_every_sample_once(sizes: list[int], seed: int, epoch: int) -> None:
    order = Order(sizes, seed=seed)
    samples = order.indices(epoch, np.arange(order.samples))
    assert sorted(samples.tolist()) == list(range(sum(sizes)))
    assert pickle.loads(pickle.dumps(order)).description() == order.description()


def test_without_shuffling_it_is_the_order_of_the_files() -> None:
    order = Order([3, 4], shuffle=False)
    assert order.indices(9, np.arange(7)).tolist() == list(range(7))


@given(
    parts=st.lists(st.tuples(st.integers(1, 40), st.floats(0.05, 10)), min_size=1, max_size=4),
    shuffle=st.booleans(),
)
@settings(max_examples=10, deadline=None)
def test_a_mixture_keeps_shares_and_goes_through_each_set_evenly(parts, shuffle: bool) -> None:
    sizes, weights = [list(each) for each in zip(*parts, strict=True)]
    epochs, samples = 4, BLOCK // 2
    order = Order(sizes, weights=weights, seed=5, shuffle=shuffle, samples=samples)
    everything = np.concatenate([order.indices(epoch, np.arange(samples)) for epoch in range(epochs)])
    starts = np.concatenate(([0], np.cumsum(sizes)))
    for number, share in enumerate(quotas(weights, len(sizes))):
        mine = everything[(starts[number] <= everything) & (everything < starts[number + 1])]
        assert len(mine) == 2 * share, "exact after every block"
        counts = np.bincount(mine - starts[number], minlength=sizes[number])
        assert counts.max() - counts.min() <= 1, "no sample comes again before all others have come"


def test_shares_are_near_the_weights_all_the_time() -> None:
    order = Order([1000, 1000, 1000], weights=[6, 3, 1], seed=2, samples=BLOCK)
    owners = order.indices(0, np.arange(BLOCK)) // 1000
    for length in (100, 1000, 10_000):
        shares = np.bincount(owners[:length], minlength=3) / length
        assert np.allclose(shares, [0.6, 0.3, 0.1], atol=3 / math.sqrt(length))


@given(st.lists(st.floats(1e-12, 1e12), min_size=1, max_size=40))
@settings(deadline=None)
def test_quotas_fill_a_block(weights: list[float]) -> None:
    result = quotas(weights, len(weights))
    assert result.sum() == BLOCK
    assert result.min() >= 1
    exact = np.array(weights) / math.fsum(weights) * BLOCK
    assert (np.abs(result - exact) <= len(weights)).all()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sizes": []}, "at least one sample"),
        ({"sizes": [5, 0]}, "at least one sample"),
        ({"sizes": [5], "weights": [1, 2]}, "1 data sets and 2 weights"),
        ({"sizes": [5, 5], "weights": [1, 0]}, "leave a data set out"),
        ({"sizes": [5, 5], "weights": [1, math.nan]}, "positive numbers"),
        ({"sizes": [5], "samples": 4}, "all 5 samples once"),
        ({"sizes": [1 << 54]}, r"1 to 2\*\*53"),
        ({"sizes": [5], "weights": [1], "samples": 0}, r"1 to 2\*\*53"),
    ],
)
def test_bad_arguments_say_what_is_allowed(arguments, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        Order(**arguments)
    with pytest.raises(ValueError, match="epochs count from 0"):
        Order([1]).indices(-1, [0])
    with pytest.raises(IndexError, match="0 to 0"):
        Order([1]).indices(0, [1])
