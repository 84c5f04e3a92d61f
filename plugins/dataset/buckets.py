"""Batches of samples of similar length, so that padding is little: for texts and other sequences.

    loader = Loader(dataset, global_batch_size=64, buckets=LengthBuckets(), collate_fn=pad)

The order of an epoch is taken in pools of so many global batches. The samples of a pool are sorted by length and cut
into batches, and its batches come in a random order. So a batch is of neighbours in length, of a pool that is a random
part of the data.

U1  Every position of an epoch has the sample of one position of the order below, and each of those comes once.
U2  What is where depends on that order, the lengths, the size of pools and global batches, and the epoch alone: not on
    ranks or workers. A state is resumed with the same global batch size only.
U3  Samples that fill no batch at the end of an epoch stay at its end regardless of their length: with tail="drop"
    those that are left out are a random part.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...errors import InvalidArgument
from .permutation import Indices, permute
from .shuffle import Order

POOL_BATCHES: Final = 64  # global batches that are sorted together
POOLS_KEPT: Final = 4  # a rank asks for a few batches of one pool at a time


class LengthBuckets:
    """Makes `Loader` put samples of similar length together.

    `lengths`: an integer for each sample of the data set; by default those that token files have. `pool_batches`:
    global batches that are sorted together; more make lengths in a batch more alike, and batches less random.
    """

    def __init__(self, lengths: npt.ArrayLike | None = None, *, pool_batches: int = POOL_BATCHES) -> None:
        if pool_batches < 1:
            raise ValueError(f"a pool has at least one batch, not {pool_batches}")
        self.pool_batches = pool_batches
        self.lengths = None if lengths is None else _checked(lengths)

    def order(self, base: Order, lengths: "Lengths", global_batch_size: int) -> "BucketOrder":
        """Make the order of batches of similar length."""
        return BucketOrder(base, lengths, batch=global_batch_size, pool_batches=self.pool_batches)


class Lengths:
    """The lengths of samples by their numbers: given, or looked up in the indexes of `dataset`."""

    def __init__(self, given: Indices | None, dataset: Any) -> None:
        self._given, self._dataset = given, dataset
        self.digest = ""
        """Of lengths that were given; those of files are in the digest of the data."""
        if given is not None and len(given) != len(dataset):
            raise InvalidArgument(
                f"lengths= has {len(given)} numbers for {len(dataset)} samples: give one for each"
            )
        if given is None:
            dataset.require_lengths()
        else:
            self.digest = hashlib.sha256(given.astype("<i8").tobytes()).hexdigest()[:32]

    def of(self, numbers: Indices) -> Indices:
        """Look up the lengths, in elements."""
        if self._given is not None:
            return self._given[numbers]
        found: Indices = self._dataset.lengths_of(numbers)
        return found


class BucketOrder:
    """An `Order` whose global batches are of similar length."""

    def __init__(self, base: Order, lengths: Lengths, *, batch: int, pool_batches: int) -> None:
        self._base, self._lengths = base, lengths
        self._batch, self._pool = batch, batch * pool_batches
        self._pools: OrderedDict[tuple[int, int], Indices] = OrderedDict()
        self.sizes, self.samples, self.seed = base.sizes, base.samples, base.seed

    def indices(self, epoch: int, positions: npt.ArrayLike) -> Indices:
        """Compute the samples at those positions (0 … samples-1) of an epoch."""
        places = np.asarray(positions, np.int64)
        flat = places.reshape(-1)
        if flat.size and not 0 <= int(flat.min()) <= int(flat.max()) < self.samples:
            raise IndexError(f"positions are 0 to {self.samples - 1}")
        pools = flat // self._pool
        result = np.empty_like(flat)
        for pool in np.unique(pools):
            mine = pools == pool
            result[mine] = self._sorted(epoch, int(pool))[flat[mine] - int(pool) * self._pool]
        return result.reshape(places.shape)

    def _sorted(self, epoch: int, pool: int) -> Indices:
        """Compute the samples of a pool, batch by batch."""
        found = self._pools.get((epoch, pool))
        if found is None:
            start = pool * self._pool
            samples = self._base.indices(epoch, np.arange(start, min(start + self._pool, self.samples)))
            count = len(samples) // self._batch
            whole, rest = samples[: count * self._batch], samples[count * self._batch :]
            batches = whole[np.argsort(self._lengths.of(whole), kind="stable")].reshape(count, self._batch)
            if count:
                key = f"buckets {self.seed} {epoch}".encode()
                batches = batches[permute(np.arange(count), count, key, pool)]
            while len(self._pools) >= POOLS_KEPT:
                self._pools.popitem(last=False)
            found = self._pools[epoch, pool] = np.concatenate([batches.reshape(-1), rest])
        return found

    def description(self) -> dict[str, Any]:
        """Describe what decides the order, for a state."""
        buckets = [self._batch, self._pool, self._lengths.digest]
        return {**self._base.description(), "buckets": buckets}

    def agrees(self, description: Mapping[str, Any], epoch: int, sample: int) -> bool:
        """Compare weights, as `Order.agrees`."""
        return self._base.agrees(description, epoch, sample)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_pools": OrderedDict()}


def _checked(lengths: npt.ArrayLike) -> Indices:
    given = np.asarray(lengths)
    if given.ndim != 1 or given.dtype.kind not in "iu":
        raise InvalidArgument(
            f"lengths= is an integer for each sample, not {given.dtype} in {given.ndim} dimensions"
        )
    return given.astype(np.int64)


__all__ = ["BucketOrder", "LengthBuckets", "Lengths"]
