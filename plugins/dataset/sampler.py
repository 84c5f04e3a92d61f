"""The global order cut into global batches, and those into the slices of ranks.

    batches = GlobalBatches(order, global_batch_size=512, rank=3, ranks=8)
    for indices in batches: ...                 # this rank's samples of each batch of the epoch

The global batch that begins at sample s of an epoch is the positions s … s+G-1 of the order. Rank r of R has the
slice from floor(r·n/R) to floor((r+1)·n/R) of a batch of n, so the slices of all ranks, one after the other, are the
batch. The place of training is (epoch, sample): nothing in it depends on ranks or workers, so it is the same for all
of them, and any other number of ranks resumes exactly there.

It is a batch sampler for torch's DataLoader, and for torchdata's StatefulDataLoader, which saves and restores the
iterator's state.
"""

import operator
from collections.abc import Iterator, Sequence
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np

from .buckets import BucketOrder
from .permutation import Indices
from .shuffle import Order

STATE_VERSION: Final = 1
WINDOW: Final = 4096  # positions put in order at a time: the cost of a call to numpy is shared by so many

Tail = Literal["drop", "short", "pad"]
TAILS: Final = ("drop", "short", "pad")
REMEDY: Final = "to train on with changed data, begin an epoch with them: seek(epoch)"


class Key(NamedTuple):
    """The name of one sample of a training, the same on any rank and worker: the seed of its random numbers."""

    seed: int
    epoch: int
    position: int

    def generator(self) -> np.random.Generator:
        """Make a generator of random numbers for this sample of this epoch."""
        return np.random.Generator(np.random.Philox(key=_words(self.seed), counter=[0, 0, *self[1:]]))


def _words(seed: int) -> Any:
    return np.array([seed & _MASK, (seed >> 64) & _MASK], np.uint64)


_MASK: Final = (1 << 64) - 1


class BatchIndices(list[int]):
    """The numbers of a batch's samples, and the keys of each."""

    def __init__(self, numbers: Sequence[int], seed: int, epoch: int, positions: Indices) -> None:
        super().__init__(numbers)
        self.seed, self.epoch, self.positions = seed, epoch, positions

    def __reduce__(self) -> tuple[Any, ...]:
        return BatchIndices, (list(self), self.seed, self.epoch, self.positions)

    def keys(self) -> list[Key]:
        """Make a key for each sample."""
        return [Key(self.seed, self.epoch, position) for position in self.positions.tolist()]


class GlobalBatches:
    """This rank's samples of one global batch after the other, from (epoch, sample) to the end of the epoch.

    `tail`: the treatment of samples that do not fill the last batch of an epoch. "drop": they are left out; "short": a
    smaller batch (a rank whose slice is empty has one batch fewer); "pad": it is filled with the first samples of the
    epoch. When an iteration has returned its last batch, the next begins with the next epoch. `digest` names the data,
    for states.
    """

    def __init__(  # noqa: PLR0913 (by keyword)
        self,
        order: Order | BucketOrder,
        *,
        global_batch_size: int,
        rank: int = 0,
        ranks: int = 1,
        tail: Tail = "drop",
        digest: str | None = None,
    ) -> None:
        self.order, self.digest = order, digest
        self.global_batch_size = operator.index(global_batch_size)
        self.tail = tail
        self.assign(rank, ranks)
        if tail not in TAILS:
            raise ValueError(f"tail is one of {', '.join(TAILS)}, not {tail!r}")
        if tail == "drop" and order.samples < self.global_batch_size:
            raise ValueError(
                f"an epoch of {order.samples} samples has no batch of {global_batch_size}: "
                'make the batch smaller, or tail="short"'
            )
        self.epoch, self.sample = 0, 0

    def assign(self, rank: int, ranks: int) -> None:
        """Set this process's rank, `rank` of `ranks`. Raises: ValueError."""
        self.rank, self.ranks = operator.index(rank), operator.index(ranks)
        if not 0 <= self.rank < self.ranks:
            raise ValueError(f"rank is 0 to ranks-1, not {rank} of {ranks}")
        if self.global_batch_size < self.ranks:
            raise ValueError(
                f"a global batch of {self.global_batch_size} is too small for {ranks} ranks: one sample each"
            )

    def seek(self, epoch: int, sample: int = 0) -> None:
        """Let the next iteration begin there; the end of an epoch is the start of the next. Raises: ValueError."""
        epoch, sample = operator.index(epoch), operator.index(sample)
        if epoch < 0 or not 0 <= sample <= self.order.samples:
            raise ValueError(
                f"epochs count from 0 and samples to {self.order.samples}, not epoch {epoch}, sample {sample}"
            )
        self.epoch, self.sample = (epoch, sample) if self.left(sample) else (epoch + 1, 0)

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of that epoch; in the current epoch, keep the place."""
        if epoch != self.epoch:
            self.seek(epoch)

    def left(self, sample: int | None = None) -> int:
        """Count the global batches from there to the end of the epoch."""
        rest = self.order.samples - (self.sample if sample is None else sample)
        return rest // self.global_batch_size if self.tail == "drop" else -(-rest // self.global_batch_size)

    def own_left(self, sample: int) -> int:
        """Count those of them in which this rank has samples."""
        rest = self.order.samples - sample
        short = rest % self.global_batch_size
        count = self.left(sample)
        if self.tail == "short" and short and self._slice(short)[0] == self._slice(short)[1]:
            count -= 1
        return count

    def __len__(self) -> int:
        """Count the batches of this rank in an epoch."""
        return self.own_left(0)

    def _slice(self, count: int) -> tuple[int, int]:
        return self.rank * count // self.ranks, (self.rank + 1) * count // self.ranks

    def after(self, sample: int) -> int:
        """Return the end of the batch that begins there."""
        return min(sample + self.global_batch_size, self.order.samples)

    def indices(
        self, epoch: int, first: int, count: int, *, stride: int = 1
    ) -> list[tuple[Indices, Indices]]:
        """List (samples, their positions) of this rank in `count` batches, each `stride` batches after the last."""
        places = [self._places(first + turn * stride * self.global_batch_size) for turn in range(count)]
        if not places:
            return []
        samples = self.order.indices(epoch, np.concatenate(places) % self.order.samples)
        cuts = np.cumsum([len(each) for each in places])[:-1]
        return list(zip(np.split(samples, cuts), places, strict=True))

    def _places(self, sample: int) -> Indices:
        count = self.global_batch_size
        if self.tail != "pad":
            count = min(count, self.order.samples - sample)
        begin, end = self._slice(count)
        return np.arange(sample + begin, sample + end, dtype=np.int64)

    def __iter__(self) -> "BatchesIterator":
        return BatchesIterator(self)

    def state_dict(self) -> dict[str, Any]:
        """Return the place where the next iteration begins, and what decides the order."""
        return self.state_at(self.epoch, self.sample)

    def state_at(self, epoch: int, sample: int) -> dict[str, Any]:
        """Return the state of training at that place."""
        return {
            "version": STATE_VERSION,
            "epoch": epoch,
            "sample": sample,
            "global_batch_size": self.global_batch_size,
            "order": self.order.description(),
            **({} if self.digest is None else {"data": self.digest}),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Set the place. Raises: ValueError for the state of another order; ranks and size of batches may differ."""
        self.seek(*self.place_in(state))

    def place_in(self, state: dict[str, Any]) -> tuple[int, int]:
        """Return (epoch, sample) of a state. Raises: ValueError, with what differs."""
        if not isinstance(state, dict) or state.get("version") != STATE_VERSION:
            raise ValueError(
                f"not a state of version {STATE_VERSION} of a data set's order: {str(state)[:100]}"
            )
        theirs = state["order"]
        mine = self.order.description()
        if self.order.agrees(theirs, state["epoch"], state["sample"]):
            theirs = {**theirs, "weights": mine["weights"]}
        differing = [name for name in {**mine, **theirs} if theirs.get(name) != mine.get(name)]
        if differing:
            pairs = ", ".join(
                f"{name} {_short(theirs.get(name))}, now {_short(mine.get(name))}" for name in differing
            )
            raise ValueError(f"the state is of another order: {pairs}; {REMEDY}")
        if None not in {self.digest, state.get("data")} and state["data"] != self.digest:
            raise ValueError(
                "the state is of another data set, whose files have other names, sizes or indexes: "
                f"{state['data']}, now {self.digest}; {REMEDY}"
            )
        return state["epoch"], state["sample"]


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


class BatchesIterator(Iterator[BatchIndices]):
    """One iteration: lists of samples, and the state after the last one that was taken."""

    def __init__(
        self,
        batches: GlobalBatches,
        *,
        worker: int = 0,
        workers: int = 1,
        place: tuple[int, int] | None = None,
    ) -> None:
        self.batches = batches
        self.worker, self.workers = worker, workers
        self.epoch, sample = place or (batches.epoch, batches.sample)
        self._begin(sample)

    def _begin(self, sample: int) -> None:
        """Begin at a sample; one of several workers takes every `workers`-th batch from there, `worker` first."""
        self._start = sample
        self._taken = 0
        self._ready: list[tuple[Indices, Indices]] = []

    @property
    def sample(self) -> int:
        """The end of the batches that this iterator has returned."""
        if not self._taken:
            return self._start
        last = self._start + (self.worker + (self._taken - 1) * self.workers) * self.batches.global_batch_size
        return self.batches.after(last)

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> BatchIndices:
        """Return this rank's samples of the next batch, of this worker."""
        if not self._ready:
            self._fill()
        self._taken += 1
        samples, positions = self._ready.pop()
        if not self._ready and not self._left():
            self._finish()
        return BatchIndices(samples.tolist(), self.batches.order.seed, self.epoch, positions)

    def _left(self) -> int:
        """Count the batches of this worker that have not been taken."""
        turn = self.worker + self._taken * self.workers
        return -(-(self.batches.own_left(self._start) - turn) // self.workers)

    def _finish(self) -> None:
        """Let the next iteration be of the next epoch."""
        if (self.batches.epoch, self.batches.sample) == (self.epoch, self._start):
            self.batches.seek(self.epoch + 1)

    def _fill(self) -> None:
        batches = self.batches
        left = self._left()
        if left <= 0:
            self._finish()
            raise StopIteration
        turn = self.worker + self._taken * self.workers
        own = max(1, batches.global_batch_size // batches.ranks)
        count = min(left, max(1, WINDOW // own))
        first = self._start + turn * batches.global_batch_size
        self._ready = batches.indices(self.epoch, first, count, stride=self.workers)[::-1]

    def state_dict(self) -> dict[str, Any]:
        """Return the state, for StatefulDataLoader."""
        return self.batches.state_at(self.epoch, self.sample)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the last batch that was returned."""
        self.batches.seek(*self.batches.place_in(state))
        self.epoch = self.batches.epoch
        self._begin(self.batches.sample)

    def worker_state(self, *, ahead: int) -> dict[str, Any]:
        """Return the state of one of several workers, `ahead` of whose batches have not been returned."""
        state = self.batches.state_at(self.epoch, self._start)
        return {**state, "taken": self._taken - ahead, "worker": self.worker, "workers": self.workers}

    def load_worker_state(self, state: dict[str, Any]) -> None:
        """Resume after what this worker has returned. Raises: ValueError for another number of workers."""
        mine = {"worker": self.worker, "workers": self.workers}
        theirs = {name: state.get(name) for name in mine}
        if theirs != mine:
            raise ValueError(
                f"the state is that of worker {theirs['worker']} of {theirs['workers']}, this is {self.worker} of "
                f"{self.workers}: use as many workers, or `Loader`, which resumes with any number"
            )
        self.epoch, sample = self.batches.place_in(state)
        self._begin(sample)
        self._taken = state["taken"]
        self.batches.seek(self.epoch, sample)


__all__ = ["TAILS", "BatchIndices", "BatchesIterator", "GlobalBatches", "Key", "Tail"]
