"""`Loader`: torch's DataLoader in the global order, which stops and goes on anywhere, on any number of ranks.

    loader = Loader(dataset, global_batch_size=512, seed=7, num_workers=4)
    for epoch in range(loader.epoch, EPOCHS):
        for batch in loader:
            train(batch)
            if time_to_save():
                save({"model": …, "loader": loader.state_dict()})

L1  The state after a batch was handed out is (epoch, sample): where the next batch begins. Batches that workers have
    read ahead are not in it, so nothing is skipped, and nothing comes twice.
L2  The sequence of global batches depends on data set, seed, epoch and global batch size alone. The state of one rank
    is that of all, and any number of ranks may go on from it.
L3  Iterating goes on where the last iteration stopped; at the end of an epoch the next one begins.

With `num_workers=0` no process is started: `read_ahead` batches are under way in the ring while this process computes,
and tensors lie in the memory that the ring has filled. Workers pay off when decoding is the work.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final

from torch.utils.data import DataLoader

from .batches import BatchesIterator, GlobalBatches, Tail, distributed_rank
from .datasets import MapDataset, ReadAhead, collate
from .lending import Lending, forget_ended
from .order import Order

READ_AHEAD: Final = 2  # batches under way beside the one in use
REFUSED: Final = ("batch_size", "shuffle", "sampler", "batch_sampler", "drop_last")


class Loader(DataLoader[Any]):
    """Batches of a `MapDataset`, this rank's part of each global batch.

    `rank`, `ranks`: by default those of torch.distributed or torchrun. `weights`: of the data sets that `dataset`
    joins, as a mixture; `samples`: the length of its epoch. `tail`: "drop", "short" or "pad" (see `GlobalBatches`).
    `collate_fn` gets `Samples`, a list with `.tensor`; by default that tensor is the batch. `read_ahead` is for
    `num_workers=0`. Other options are DataLoader's: num_workers, multiprocessing_context, persistent_workers, …
    """

    def __init__(  # noqa: PLR0913 (those of DataLoader, by keyword)
        self,
        dataset: MapDataset,
        *,
        global_batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        weights: Sequence[float] | None = None,
        samples: int | None = None,
        rank: int | None = None,
        ranks: int | None = None,
        tail: Tail = "drop",
        read_ahead: int = READ_AHEAD,
        collate_fn: Callable[[Any], Any] = collate,
        **options: Any,
    ) -> None:
        if not isinstance(dataset, MapDataset):
            raise TypeError(f"Loader reads a MapDataset, not {type(dataset).__name__}")
        refused = [name for name in REFUSED if name in options]
        if refused:
            raise TypeError(
                f"{', '.join(refused)}: the global order decides; use global_batch_size, shuffle= and tail= of Loader"
            )
        if not options.get("in_order", True):
            raise ValueError("in_order=False: batches would come in another order than that of the state")
        if read_ahead < 0:
            raise ValueError(f"read_ahead is 0 or more batches, not {read_ahead}")
        if (rank is None) != (ranks is None):
            raise ValueError("give rank and ranks, or neither")
        if rank is None or ranks is None:
            rank, ranks = distributed_rank()
        order = Order(dataset.sizes, weights=weights, seed=seed, shuffle=shuffle, samples=samples)
        batches = GlobalBatches(order, global_batch_size=global_batch_size, rank=rank, ranks=ranks, tail=tail)
        self.read_ahead = read_ahead
        self._epoch = self._sample = 0
        self._turn = 0  # of iterations: an older one that goes on does not move the place
        super().__init__(dataset, batch_sampler=batches, collate_fn=Lending(collate_fn), **options)

    @property
    def batches(self) -> GlobalBatches:
        """The cut of the global order."""
        found = self.batch_sampler
        assert isinstance(found, GlobalBatches), "it was made so"
        return found

    @property
    def epoch(self) -> int:
        """The epoch that the next batch belongs to; that of the last one until its iteration has ended."""
        return self._epoch

    @property
    def sample(self) -> int:
        """How many samples of the epoch have been handed out, to all ranks together."""
        return self._sample

    def __len__(self) -> int:
        """Batches to the end of the epoch."""
        return self.batches.own_left(self._sample)

    def seek(self, epoch: int, sample: int = 0) -> None:
        """The next iteration begins there."""
        self.batches.seek(epoch, sample)
        self._epoch, self._sample = epoch, sample
        self._turn += 1

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of that epoch; in the one where it stands, it stays where it stands."""
        if epoch != self._epoch:
            self.seek(epoch)

    def state_dict(self) -> dict[str, Any]:
        """Where training stands; a small dictionary of plain values, the same on all ranks."""
        return self.batches.state_at(self._epoch, self._sample)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on there. Raises: ValueError for the state of another data set, seed or mixture."""
        self.seek(*self.batches.place_in(state))

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        self._turn += 1
        self.batches.seek(self._epoch, self._sample)
        if self.num_workers:
            return self._counted(self._from_workers(), self._turn)
        return self._counted(self._from_ring(), self._turn)

    def _counted(self, source: Iterator[Any], turn: int) -> Iterator[Any]:
        """Batches, with the place behind each, and the time that the consumer waits."""
        epoch, sample = self._epoch, self._sample
        metrics = self.dataset.metrics  # type: ignore[attr-defined]
        while True:
            started = time.perf_counter()
            try:
                batch = next(source)
            except StopIteration:
                break
            metrics.observe_wait(time.perf_counter() - started)
            sample = self.batches.after(sample)
            if turn == self._turn:
                self._sample = sample
            yield batch
        if turn == self._turn:
            self._epoch, self._sample = epoch + 1, 0

    def _from_workers(self) -> Iterator[Any]:
        forget_ended()
        try:
            yield from super().__iter__()
        except RuntimeError:
            # Workers that died are not asked again: the next iteration starts others, at the same place.
            self._iterator = None
            raise

    def _from_ring(self) -> Iterator[Any]:
        dataset: MapDataset = self.dataset  # type: ignore[assignment]
        ahead = ReadAhead(dataset, BatchesIterator(self.batches), self.read_ahead)
        try:
            for samples in ahead:
                yield self.collate_fn(samples)
        finally:
            ahead.close()


__all__ = ["Loader"]
