"""`Loader`: torch's DataLoader in the global order, which stops and resumes anywhere, on any number of ranks.

    loader = Loader(dataset, global_batch_size=512, seed=7, num_workers=4)
    for epoch in range(loader.epoch, EPOCHS):
        for batch in loader:
            train(batch)
            if time_to_save():
                save({"model": …, "loader": loader.state_dict()})

L1  The state after a batch was returned is (epoch, sample): where the next batch begins. Batches that workers have
    read ahead are not in it, so no sample is skipped or repeated.
L2  The sequence of global batches depends on data set, seed, epoch and global batch size alone. The state of one rank
    is that of all, and any number of ranks may resume from it.
L3  An iteration is an epoch, `len` its batches: of the next epoch if the one before was begun, whether it was left
    early or not. It resumes in the middle of one only after `load_state_dict`, `seek`, or with `resume=True`.

With `num_workers=0` no process is started: `read_ahead` batches are in flight in the ring while this process computes,
and tensors are views of the memory that the ring has filled. Workers pay off when decoding is the work.
"""

import sys
import time
import warnings
import weakref
from collections.abc import Callable, Generator, Iterator
from contextlib import closing, contextmanager
from typing import Any, Final

import torch
from torch.utils.data import DataLoader, DistributedSampler

from .block_shuffle import MIXED_BLOCKS
from .buckets import BucketOrder, LengthBuckets, Lengths
from .datasets import MapDataset, ReadAhead, collate
from .ranks import RankSource
from .sampler import BatchesIterator, GlobalBatches, Tail
from .shared_batches import SharedCollate, unmap_ended
from .shuffle import Order, Shuffle, Weights

READ_AHEAD: Final = 2  # batches in flight beside the one in use
REFUSED: Final = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last", "generator")


class _OwnBatches(GlobalBatches):
    """The batches of a loader, which no other loader may iterate: they are this rank's already."""

    is_open = False

    def __iter__(self) -> BatchesIterator:
        if not self.is_open:
            raise RuntimeError(
                "a Loader's batches are this rank's part already, and another loader was made of them (accelerate's "
                "skip_first_batches, or a sampler that a framework replaced): use the Loader itself, and resume by "
                "load_state_dict"
            )
        return super().__iter__()


class _RankSampler(DistributedSampler[Any]):
    """Shows frameworks that samples are cut by ranks already, and passes their epochs to the loader."""

    def __init__(self, loader: "Loader") -> None:
        self._loader = weakref.ref(loader)

    def set_epoch(self, epoch: int) -> None:
        loader = self._loader()
        if loader is not None:
            loader.set_epoch(epoch)

    def __len__(self) -> int:
        loader = self._loader()
        return 0 if loader is None else len(loader)

    def __iter__(self) -> Iterator[Any]:
        raise RuntimeError("a Loader has batches (`batch_sampler`), not a sampler: use the Loader itself")


class Loader(DataLoader[Any]):
    """Batches of a `MapDataset`, this rank's part of each global batch.

    `shuffle="blocks"`: for Parquet and Arrow, whose blocks of rows are read as wholes: blocks in a random order, and
    the samples of `mixed_blocks` of them at a time (`Order`). `buckets`: batches of samples of similar length.
    `rank`, `ranks`: by default those of torch.distributed, or of the launcher's environment, as they are when the
    first iteration begins. `mesh`, `process_group`: instead of them, the device mesh or group along which data
    differ; ranks outside of it, as those of one tensor-parallel replica, read the same. `weights`: of the data sets
    that `dataset` joins, as a mixture, also by epochs (`Order`); `samples`: the length of its epoch. `tail`: "drop",
    "short" or "pad" (see `GlobalBatches`). `resume`: an iteration begins where the one before was left, instead of with
    the next epoch. `collate_fn` gets `Samples`, a list with `.tensor`; by default that tensor is the batch.
    `read_ahead` is for `num_workers=0`. Other options are DataLoader's: num_workers, multiprocessing_context,
    pin_memory, …
    Raises: TypeError and ValueError for options that contradict the global order; RuntimeError, as the first iteration
    begins, for ranks that are unknown.
    """

    _is_accelerate_prepared = True
    """`Accelerator.prepare` returns it unchanged: it would shard it again."""
    use_stateful_dataloader = True
    """`Accelerator.save_state` saves its state."""
    end_of_dataloader = False
    """Whether the batch in use is the last one: `Accelerator.accumulate` steps there."""
    remainder = -1
    """Samples of the last batch that are not filled up, 0 for all: `Accelerator.gather_for_metrics` keeps so many."""

    def __init__(  # noqa: PLR0913 (those of DataLoader, by keyword)
        self,
        dataset: MapDataset,
        *,
        global_batch_size: int,
        seed: int = 0,
        shuffle: Shuffle = True,
        mixed_blocks: int = MIXED_BLOCKS,
        buckets: LengthBuckets | None = None,
        weights: Weights | None = None,
        samples: int | None = None,
        rank: int | None = None,
        ranks: int | None = None,
        mesh: Any = None,
        process_group: Any = None,
        tail: Tail = "drop",
        resume: bool = False,
        read_ahead: int = READ_AHEAD,
        collate_fn: Callable[[Any], Any] = collate,
        **options: Any,
    ) -> None:
        if not isinstance(dataset, MapDataset):
            raise TypeError(
                f"Loader reads a MapDataset, not {type(dataset).__name__}: MapDataset has subset, split, filter and "
                "concat"
            )
        _require_allowed(options, read_ahead)
        self._rank_source = RankSource(rank, ranks, mesh, process_group)
        place = self._rank_source.given or (0, 1)
        base = Order(
            dataset.sizes,
            weights=weights,
            seed=seed,
            shuffle=shuffle,
            samples=samples,
            blocks=dataset.block_sizes() if shuffle == "blocks" else None,
            mixed_blocks=mixed_blocks,
        )
        order: Order | BucketOrder = base
        if buckets is not None:
            order = buckets.order(base, Lengths(buckets.lengths, dataset), global_batch_size)
        batches = _OwnBatches(
            order,
            global_batch_size=global_batch_size,
            rank=place[0],
            ranks=place[1],
            tail=tail,
            digest=dataset.digest(),
        )
        self.read_ahead, self.resume = read_ahead, resume
        self._epoch = self._sample = 0
        self._at_place = True  # the next iteration begins at the place: nothing was taken from the one before
        self._turn = 0  # of iterations: an older one that continues does not move the place
        self._has_warned = False  # of parts of unequal size
        self._moves = 0  # of the place, by `seek`: an iteration from before is over
        self._is_default = collate_fn is collate
        super().__init__(dataset, batch_sampler=batches, collate_fn=SharedCollate(collate_fn), **options)
        self.__dict__["sampler"] = _RankSampler(self)  # DataLoader refuses another assignment

    @property
    def batches(self) -> GlobalBatches:
        """The cut of the global order."""
        found = self.batch_sampler
        assert isinstance(found, _OwnBatches), "it was made so"
        return found

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to; that of the last one until its iteration has ended."""
        return self._epoch

    @property
    def sample(self) -> int:
        """The samples of the epoch that have been returned, to all ranks together."""
        return self._sample

    def __len__(self) -> int:
        """Count the batches of an epoch, at any place in it."""
        self._find_rank()
        return len(self.batches)

    @property
    def left(self) -> int:
        """The batches from here to the end of the epoch."""
        self._find_rank()
        return self.batches.own_left(self._sample)

    def seek(self, epoch: int, sample: int = 0) -> None:
        """Let the next iteration begin there; the end of an epoch is the start of the next. Raises: ValueError."""
        self.batches.seek(epoch, sample)
        self._epoch, self._sample = self.batches.epoch, self.batches.sample
        self._at_place = True
        self._turn += 1
        self._moves += 1

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of that epoch; after the load of a state of that epoch, keep the place."""
        if epoch != self._epoch or not self._at_place:
            self.seek(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the place of training: a small dictionary of plain values, the same on all ranks."""
        return self.batches.state_at(self._epoch, self._sample)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume there. Raises: ValueError for the state of another data set, seed or mixture."""
        self.seek(*self.batches.place_in(state))

    def _find_rank(self) -> None:
        rank, ranks = self._rank_source.find()
        if (rank, ranks) != (self.batches.rank, self.batches.ranks):
            self.batches.assign(rank, ranks)
        if self.batches.global_batch_size % ranks and not self._has_warned:
            self._has_warned = True
            warnings.warn(
                f"a global batch of {self.batches.global_batch_size} on {ranks} ranks: their parts differ by one "
                "sample, and a mean over ranks weighs samples unequally",
                stacklevel=3,
            )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._find_rank()
        if self._is_default:
            self.dataset.settle_kind()  # type: ignore[attr-defined]
        return self._counted(*self._begin())

    def _begin(self) -> tuple[int, int, int, int]:
        """Begin an iteration; return its number, that of the moves before it, and its place."""
        if self._at_place or self.resume:
            self.batches.seek(self._epoch, self._sample)
        else:
            self.batches.seek(self._epoch + 1)
        self._epoch, self._sample = self.batches.epoch, self.batches.sample
        self._at_place = True
        self._turn += 1
        return self._turn, self._moves, self._epoch, self._sample

    def _counted(self, turn: int, moves: int, epoch: int, sample: int) -> Iterator[Any]:
        """Return batches, and keep the place after each, and the time that the consumer waits."""
        metrics = self.dataset.metrics  # type: ignore[attr-defined]
        if 0 < self._moves - moves == self._turn - turn:
            # The place was moved before the first batch was asked for, as Lightning does: it begins there.
            turn, moves, epoch, sample = self._begin()
        place = (epoch, sample)
        source = self._from_workers(place) if self.num_workers else self._from_ring(place)
        with closing(source), self._in_accelerate():
            while True:
                started = time.perf_counter()
                batch = next(source, self)
                if moves != self._moves:
                    raise RuntimeError("the place was changed during this iteration: begin another one")
                if batch is self:
                    break
                metrics.observe_wait(time.perf_counter() - started)
                sample = self.batches.after(sample)
                self.end_of_dataloader = not self.batches.own_left(sample)
                if turn == self._turn:
                    self._epoch, self._sample, self._at_place = epoch, sample, False
                yield batch
        if turn == self._turn:
            self._epoch, self._sample, self._at_place = epoch + 1, 0, True

    @contextmanager
    def _in_accelerate(self) -> Iterator[None]:
        """Register the loader in use with Accelerate, if the program has an Accelerator."""
        module = sys.modules.get("accelerate.state")
        if module is None or not module.GradientState._shared_state:  # noqa: SLF001 (empty: no Accelerator yet)
            yield
            return
        state = module.GradientState()
        rest = self.batches.order.samples % self.batches.global_batch_size
        self.end_of_dataloader, self.remainder = False, rest if self.batches.tail == "pad" else 0
        state._add_dataloader(self)  # noqa: SLF001 (as its own loaders do)
        try:
            yield
        finally:
            state._remove_dataloader(self)  # noqa: SLF001

    def _from_workers(self, place: tuple[int, int]) -> Generator[Any]:
        unmap_ended()
        batches = self.batches
        assert isinstance(batches, _OwnBatches), "it was made so"
        try:
            batches.is_open = True
            batches.seek(*place)
            try:
                source = super().__iter__()
            finally:
                batches.is_open = False
            yield from source
        except RuntimeError:
            # Workers that died are not used again: the next iteration starts others.
            self._iterator = None
            raise

    def _from_ring(self, place: tuple[int, int]) -> Generator[Any]:
        dataset: MapDataset = self.dataset  # type: ignore[assignment]
        indices = BatchesIterator(self.batches, place=place)
        pin = self.pin_memory and torch.cuda.is_available()
        ahead = ReadAhead(dataset, indices, self.read_ahead)
        try:
            for samples in ahead:
                batch = self.collate_fn(samples)
                yield _pinned(batch) if pin else batch
        finally:
            if not sys.is_finalizing():
                ahead.close()


def _require_allowed(options: dict[str, Any], read_ahead: int) -> None:
    refused = [name for name in REFUSED if name in options]
    if refused:
        raise TypeError(
            f"{', '.join(refused)}: the global order decides; use global_batch_size, seed=, shuffle= and tail= of "
            "Loader"
        )
    if not options.get("in_order", True):
        raise ValueError("in_order=False: batches would come in another order than that of the state")
    if options.get("timeout") and not options.get("num_workers"):
        raise ValueError(
            "timeout= is for workers (num_workers=); reads have the deadline of the client, `deadline_ms` of connect"
        )
    if read_ahead < 0:
        raise ValueError(f"read_ahead is 0 or more batches, not {read_ahead}")


def _pinned(batch: Any) -> Any:
    """Copy to page-locked memory what is not in it already."""
    from torch.utils.data._utils.pin_memory import pin_memory

    return pin_memory(batch)  # type: ignore[no-untyped-call]


__all__ = ["Loader"]
