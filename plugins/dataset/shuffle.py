"""The global order of samples: a pure function of seed, epoch and position, with random access and no tables.

    order = Order([60_000], seed=7)
    order.indices(epoch=3, positions=numpy.arange(512))     # the first 512 samples of epoch 3

O1  Within one pass over a data set every sample comes exactly once (`permutation`).
O2  The sample at a position depends on sizes, weights, seed and epoch alone: not on ranks, workers, machines, the
    versions of Python, numpy or torch, or on what was asked before.
O3  Memory does not grow with the size; shuffled by blocks (`block_shuffle`), with the number of blocks.
O4  VERSION names the function. A change of any result is a new version; golden tests hold this one.

A mixture takes blocks of BLOCK samples. Each data set has its quota of every block, spread over it by a permutation;
so the share of each is exact after every block, and a data set continues where it was at the end of an epoch. Where
weights change between epochs, a new sequence of blocks begins, and each data set continues where it was.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from .block_shuffle import MIXED_BLOCKS, BlockShuffle, digest
from .permutation import SIZE_MAX, Indices, permute

VERSION: Final = 1
BLOCK: Final = 1 << 16  # samples of a mixture with exact shares, and the resolution of weights

Weights = Sequence[float] | Mapping[int, Sequence[float]]
Shuffle = bool | Literal["blocks"]


class Order:
    """Which sample is at which position of which epoch, for one data set or several.

    `sizes`: of the data sets, whose samples are numbered one after the other. Without `weights` they are one data set,
    and an epoch is all of it once. With `weights` an epoch is `samples` long (by default as many as there are), and
    each data set is passed through repeatedly, in a new order each time, as often as its weight asks. Weights that
    change are a dictionary of the epochs from which they apply: `{0: [1, 1], 3: [1, 9]}`. `shuffle="blocks"`: the
    samples of `mixed_blocks` blocks at a time, in a random order of blocks; `blocks` are their sizes in each data set.
    """

    def __init__(  # noqa: PLR0913 (by keyword)
        self,
        sizes: Sequence[int],
        *,
        weights: Weights | None = None,
        seed: int = 0,
        shuffle: Shuffle = True,
        samples: int | None = None,
        blocks: Sequence[npt.ArrayLike] | None = None,
        mixed_blocks: int = MIXED_BLOCKS,
    ) -> None:
        self.sizes = tuple(operator.index(size) for size in sizes)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"each data set has at least one sample, not {list(self.sizes)}")
        total = sum(self.sizes)
        self.seed = operator.index(seed)
        self.shuffle: Shuffle = "blocks" if shuffle == "blocks" else bool(shuffle)
        self.weights = None if weights is None else _schedule(weights)
        self.samples = total if samples is None else operator.index(samples)
        if not 1 <= max(total, self.samples) <= SIZE_MAX or self.samples < 1:
            raise ValueError(f"an epoch has 1 to 2**53 samples, not {self.samples} of {total}")
        if self.weights is None and self.samples != total:
            raise ValueError(f"without weights an epoch is all {total} samples once, not {self.samples}")
        self._phases = [] if self.weights is None else self._phases_of(self.weights)
        self._starts = np.concatenate(([0], np.cumsum(self.sizes, dtype=np.int64)))
        self._shuffles: list[BlockShuffle] = []
        self._blocks = ""
        if self.shuffle == "blocks":
            self._set_blocks(blocks, mixed_blocks)

    def _set_blocks(self, blocks: Sequence[npt.ArrayLike] | None, mixed: int) -> None:
        given = [np.asarray(each, np.int64) for each in blocks or ()]
        if [int(each.sum()) for each in given] != list(self.sizes):
            raise ValueError(
                'shuffle="blocks" needs the sizes of the blocks of each data set, which add up to its size'
            )
        self._blocks = f"{digest(given)}, {mixed} together"
        joined = [np.concatenate(given)] if self.weights is None else given
        self._shuffles = [
            BlockShuffle(each, mixed, self._key("blocks", owner)) for owner, each in enumerate(joined)
        ]

    def indices(self, epoch: int, positions: npt.ArrayLike) -> Indices:
        """Compute the samples at those positions (0 … samples-1) of an epoch."""
        if epoch < 0:
            raise ValueError(f"epochs count from 0, not {epoch}")
        places = np.asarray(positions, np.int64)
        if places.size and not 0 <= int(places.min()) <= int(places.max()) < self.samples:
            raise IndexError(f"positions are 0 to {self.samples - 1}")
        if not self._phases:
            total = int(self._starts[-1])
            if self._shuffles:
                return self._shuffles[0].samples(places, epoch)
            return permute(places, total, self._key("pass", 0), epoch) if self.shuffle else places.copy()
        phase = max((each for each in self._phases if each.epoch <= epoch), key=lambda each: each.epoch)
        before = (epoch - phase.epoch) * self.samples
        return self._mixed(places.reshape(-1) + before, phase).reshape(places.shape)

    def description(self) -> dict[str, Any]:
        """Describe what decides the order, for a state: two orders with equal descriptions are equal."""
        return {
            "version": VERSION,
            "sizes": list(self.sizes),
            "weights": self._described_weights(),
            "seed": self.seed,
            "shuffle": self.shuffle,
            "samples": self.samples,
            **({"blocks": self._blocks} if self._shuffles else {}),
        }

    def _described_weights(self) -> Any:
        """Return a list if weights do not change, else a dictionary whose keys are texts, as in JSON."""
        if self.weights is None:
            return None
        if list(self.weights) == [0]:
            return list(self.weights[0])
        return {str(epoch): list(each) for epoch, each in self.weights.items()}

    def agrees(self, description: Mapping[str, Any], epoch: int, sample: int) -> bool:
        """Compare the weights of a description with these up to a place in training: later ones may change."""
        theirs = description.get("weights")
        if self.weights is None or theirs is None:
            return self.weights is theirs
        schedule = _schedule({int(key): each for key, each in _by_epoch(theirs).items()})
        until = epoch + (sample > 0)
        mine, others = (
            {start: each for start, each in one.items() if start < until} for one in (self.weights, schedule)
        )
        return mine == others

    def _phases_of(self, weights: Mapping[int, Sequence[float]]) -> list["_Phase"]:
        phases: list[_Phase] = []
        for epoch, each in weights.items():
            carried = np.zeros(len(self.sizes), np.int64)
            shares = quotas(each, len(self.sizes))
            if phases:  # whole blocks: part of one is not the first samples of each
                blocks = -(-(epoch - phases[-1].epoch) * self.samples // BLOCK)
                carried = phases[-1].carried + blocks * phases[-1].quotas
            phases.append(_Phase(epoch, shares, carried, self.seed))
        return phases

    def _mixed(self, places: Indices, phase: "_Phase") -> Indices:
        """Compute the samples at positions of an endless mixture."""
        blocks, within = np.divmod(places, BLOCK)
        within = permute(within, BLOCK, phase.key(), blocks)
        ends = np.cumsum(phase.quotas)
        owners = np.searchsorted(ends, within, side="right")
        shares = phase.quotas[owners]
        ordinals = phase.carried[owners] + blocks * shares + within - (ends - phase.quotas)[owners]
        result = np.empty_like(places)
        for owner in np.unique(owners):
            mine = owners == owner
            result[mine] = self._starts[owner] + self._passed(int(owner), ordinals[mine])
        return result

    def _passed(self, owner: int, ordinals: Indices) -> Indices:
        """Compute the samples of one data set that is passed through repeatedly."""
        size = self.sizes[owner]
        passes, places = np.divmod(ordinals, size)
        if self._shuffles:
            return self._shuffles[owner].samples(places, passes)
        return permute(places, size, self._key("pass", owner), passes) if self.shuffle else places

    def _key(self, use: str, owner: int) -> bytes:
        return f"{VERSION} {use} {self.seed} {owner}".encode()


class _Phase(NamedTuple):
    """Epochs with the same weights, from `epoch` on. `carried`: samples of each data set in the epochs before."""

    epoch: int
    quotas: Indices
    carried: Indices
    seed: int

    def key(self) -> bytes:
        use = "block" if not self.epoch else f"block of {self.epoch}"
        return f"{VERSION} {use} {self.seed} 0".encode()


def _by_epoch(weights: Any) -> Mapping[Any, Sequence[float]]:
    return weights if isinstance(weights, Mapping) else {0: weights}


def _schedule(weights: Weights) -> dict[int, tuple[float, ...]]:
    """Sort weights by the epoch from which they apply. Raises: ValueError for a schedule that does not begin at 0."""
    given = {operator.index(epoch): each for epoch, each in _by_epoch(weights).items()}
    if not given or min(given) != 0:
        raise ValueError(f"weights that change need those of epoch 0 too, not only of epochs {sorted(given)}")
    result: dict[int, tuple[float, ...]] = {}
    for epoch in sorted(given):
        each = tuple(float(weight) for weight in given[epoch])
        if not result or each != result[max(result)]:
            result[epoch] = each
    return result


def quotas(weights: Sequence[float], count: int) -> Indices:
    """Compute the samples of each data set in a block, by largest remainders, at least one of each.

    Raises: ValueError for weights that are not `count` positive numbers.
    """
    if len(weights) != count:
        raise ValueError(f"there are {count} data sets and {len(weights)} weights: give one for each")
    if not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise ValueError(
            f"weights are positive numbers, not {list(weights)}: leave a data set out instead of 0"
        )
    if count > BLOCK:
        raise ValueError(f"a mixture has at most {BLOCK} data sets, not {count}")
    total = math.fsum(weights)
    exact = [weight / total * BLOCK for weight in weights]
    result = [max(1, int(share)) for share in exact]
    by_remainder = sorted(range(count), key=lambda each: (result[each] - exact[each], each))
    for step in range(BLOCK - sum(result)):
        result[by_remainder[step % count]] += 1
    while sum(result) > BLOCK:  # ones that were raised from less take from the largest
        result[max(range(count), key=lambda each: (result[each], -each))] -= 1
    return np.array(result, np.int64)


__all__ = ["BLOCK", "VERSION", "Order", "Shuffle", "Weights", "quotas"]
