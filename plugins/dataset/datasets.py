"""Data sets for torch over records, whatever their format.

    dataset = MapDataset(open_records("lu:/data/train"))        # *.ffr of a directory
    dataset[5]                                                  # a tensor of bytes
    dataset.__getitems__([5, 1, 7])                             # one submission to the ring: what DataLoader calls

A batch of records of one length is one tensor over the memory that the ring has filled, without a copy
(`Samples.tensor`); `collate` hands that out, and so does `Loader`.
"""

import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from .batch import Batch, BatchReader, Pending
from .batches import BatchesIterator, GlobalBatches
from .metrics import Metrics
from .records import Integers, Records
from .samples import Samples

WORKERS_MAX: Final = 256  # of one IterableDataset

Decode = Callable[[Any], Any]


def collate(samples: Any) -> Any:
    """A batch: one tensor without a copy if `Samples` has it; a list of arrays of several lengths; else as torch."""
    if isinstance(samples, Samples) and samples.tensor is not None:
        return samples.tensor
    if all(isinstance(each, Tensor) for each in samples) and len({each.shape for each in samples}) > 1:
        return list(samples)
    return default_collate(list(samples))


class MapDataset(Dataset[Any]):
    """Samples by number, of one `Records` or several in a row. May be sent to workers by fork and by spawn.

    `decode(sample)` is applied to each sample: a tensor of bytes or tokens, or a dictionary of a tar's parts. `check`:
    compare every record with its checksum. `pin`: page-locked memory, by default where there is CUDA and this is not a
    worker; transfers to the GPU from it need no copy and may be asynchronous.
    """

    def __init__(
        self,
        records: Records | Sequence[Records],
        *,
        decode: Decode | None = None,
        check: bool = True,
        pin: bool | None = None,
    ) -> None:
        self.parts = [records] if isinstance(records, Records) else list(records)
        if not self.parts or not all(isinstance(part, Records) for part in self.parts):
            raise TypeError("a data set is made of what `open_records` gives, or of a list of that")
        self.sizes = [len(part) for part in self.parts]
        self.decode, self.check, self.pin = decode, check, pin
        self.metrics = Metrics()
        self._reader: BatchReader | None = None
        self._process = 0

    def __len__(self) -> int:
        return sum(self.sizes)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"samples are 0 to {len(self) - 1}, not {index}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Samples:
        return self.finish(self.start(indices))

    def start(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Pending:
        """Begins to read a batch; several may be under way."""
        return self.reader.start(indices)

    def finish(self, pending: Pending) -> Samples:
        """The samples of a batch that was begun. Raises: OSError; CorruptData, which names file and record."""
        return self._samples(self.reader.finish(pending), pending.indices)

    @property
    def reader(self) -> BatchReader:
        """This process's reader, made at its first use."""
        if self._reader is None or self._process != os.getpid():
            pin = None
            if self._wants_pin():
                from .pinning import pin_array

                pin = pin_array
            self._reader = BatchReader(self.parts, check=self.check, pin=pin)
            self._reader.observe = self.metrics.observe_read
            self._process = os.getpid()
        return self._reader

    def _wants_pin(self) -> bool:
        if get_worker_info() is not None:
            return False  # a forked worker must not touch CUDA
        return torch.cuda.is_available() if self.pin is None else self.pin

    def close(self) -> None:
        """Ends this process's reader; the next use makes another."""
        if self._reader is not None and self._process == os.getpid():
            self._reader.close()
        self._reader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None, "_process": 0}

    def _samples(self, batch: Batch, indices: Integers) -> Samples:
        first = self.parts[0]
        one_kind = all(part.is_plain and part.dtype == first.dtype for part in self.parts)
        samples: Samples
        if one_kind and batch.uniform is not None and batch.uniform % first.dtype.itemsize == 0:
            tensor = torch.from_numpy(batch.matrix().view(first.dtype))
            samples = Samples(tensor.unbind(0))
            samples.tensor = tensor if self.decode is None else None
        else:
            samples = Samples(self._shaped(batch, indices))
        if self.decode is not None:
            samples[:] = [self.decode(sample) for sample in samples]
        samples.indices, samples.batch = indices, batch
        return samples

    def _shaped(self, batch: Batch, indices: Integers) -> list[Any]:
        parts, numbers = self.reader.split(indices)
        arrays = batch.arrays()
        result: list[Any] = [None] * len(arrays)
        for part in np.unique(parts):
            places = np.flatnonzero(parts == part)
            made = self.parts[int(part)].samples(numbers[places], [arrays[place] for place in places])
            for place, sample in zip(places, made, strict=True):
                result[place] = _tensors(sample)
        return result


def _tensors(sample: Any) -> Any:
    if isinstance(sample, np.ndarray):
        return torch.from_numpy(sample)
    if isinstance(sample, Mapping):
        return {name: _tensors(value) for name, value in sample.items()}
    return sample


class IterableDataset(TorchIterableDataset[Any]):
    """Batches in the global order, one after the other: for `DataLoader(dataset, batch_size=None, num_workers=…)`.

    Worker w of W makes this rank's batches w, w+W, … of the rest of the epoch, which DataLoader hands out in turn, so
    their order is that of `Loader`. Iterating begins where `batches` stood, or where `seek` went since, and the next
    time with the next epoch (a loader with another number of workers has to be told: `set_epoch`). Under torchdata's
    StatefulDataLoader it is resumed in the middle of an epoch, by as many workers as there were.
    """

    def __init__(
        self,
        dataset: MapDataset,
        batches: GlobalBatches,
        *,
        collate_fn: Callable[[Any], Any] = collate,
        read_ahead: int = 1,
    ) -> None:
        self.dataset, self.batches, self.collate_fn = dataset, batches, collate_fn
        self.read_ahead = read_ahead
        # Memory that workers share: where to begin, with the number of that decision; and what each worker has finished
        # since: (decision, workers, next epoch). Each writes its own row, so none is ahead of another.
        self._place = _shared(1, batches.epoch, batches.sample)
        self._finished = _shared(*(0,) * 3 * WORKERS_MAX).view(WORKERS_MAX, 3)

    def seek(self, epoch: int, sample: int = 0) -> None:
        """The next iteration begins there, in all workers. Raises: ValueError."""
        self.batches.seek(epoch, sample)
        self._place.copy_(torch.tensor([int(self._place[0]) + 1, epoch, sample]))

    def set_epoch(self, epoch: int) -> None:
        """The next iteration is of that epoch, from its start."""
        self.seek(epoch)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> "BatchStream":
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        if workers > WORKERS_MAX:
            raise ValueError(f"at most {WORKERS_MAX} workers, not {workers}")
        decision, epoch, sample = self._place.tolist()
        finished = self._finished[worker].tolist()
        if finished[:2] == [decision, workers]:
            epoch, sample = finished[2], 0
        self.batches.seek(epoch, sample)
        return BatchStream(self, self._finished[worker], decision, worker, workers)


def _shared(*values: int) -> Tensor:
    shared: Tensor = torch.tensor(values).share_memory_()  # type: ignore[no-untyped-call]
    return shared


class BatchStream(Iterator[Any]):
    """One iteration of an `IterableDataset` in one worker; its state is behind the last batch that was handed out."""

    def __init__(
        self, source: IterableDataset, finished: Tensor, decision: int, worker: int, workers: int
    ) -> None:
        self._source = source
        self._finished, self._decision = finished, decision
        self._indices = BatchesIterator(source.batches, worker=worker, workers=workers)
        self._ahead = ReadAhead(source.dataset, self._indices, source.read_ahead)

    def __next__(self) -> Any:
        try:
            samples = next(self._ahead)
        except StopIteration:
            after = (self._decision, self._indices.workers, self._indices.epoch + 1)
            self._finished.copy_(torch.tensor(after))
            raise
        return self._source.collate_fn(samples)

    def state_dict(self) -> dict[str, Any]:
        """For StatefulDataLoader, which keeps one for each worker."""
        return self._indices.worker_state(ahead=len(self._ahead))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on behind the last batch that was handed out. Raises: ValueError for another number of workers."""
        self._ahead.close()
        self._indices.load_worker_state(state)
        self._ahead = ReadAhead(self._source.dataset, self._indices, self._source.read_ahead)


class ReadAhead(Iterator[Samples]):
    """The batches of an iterator of indices, `ahead` of which are under way while the caller has one."""

    def __init__(self, dataset: MapDataset, indices: BatchesIterator, ahead: int) -> None:
        self._dataset, self._indices, self._ahead = dataset, indices, ahead
        self._under_way: deque[Pending | OSError] = deque()
        self._more = True

    def __len__(self) -> int:
        """Batches that were begun and not handed out."""
        return len(self._under_way)

    def __next__(self) -> Samples:
        while self._more and len(self._under_way) <= self._ahead:
            try:
                self._under_way.append(self._dataset.start(self._indices.next_array()))
            except StopIteration:
                self._more = False
            except OSError as error:  # its turn comes when the batches before it have been handed out
                self._under_way.append(error)
                self._more = False
        if not self._under_way:
            raise StopIteration
        first = self._under_way.popleft()
        if isinstance(first, OSError):
            raise first
        return self._dataset.finish(first)

    def close(self) -> None:
        """Leaves what is under way."""
        while self._under_way:
            pending = self._under_way.popleft()
            if isinstance(pending, Pending):
                self._dataset.reader.abandon(pending)


__all__ = ["BatchStream", "IterableDataset", "MapDataset", "ReadAhead", "Samples", "collate"]
