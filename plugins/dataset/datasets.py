"""Data sets for torch over records of any format.

    dataset = MapDataset(open_records("lu:/data/train"))        # *.ffr of a directory
    dataset[5]                                                  # a tensor of bytes
    dataset.__getitems__([5, 1, 7])                             # one submission to the ring: what DataLoader calls

A batch of records of one length is one tensor over the memory that the ring has filled, without a copy
(`Samples.tensor`); `collate` returns that, and so does `Loader`.
"""

import contextlib
import hashlib
import operator
import os
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset, default_collate, get_worker_info
from torch.utils.data import IterableDataset as TorchIterableDataset

from ...errors import CorruptData, InvalidArgument
from .bad import BadRecord, BadRecords, OnError
from .choice import Group, choice_of, choices_of, places_in
from .metrics import Metrics
from .pool import POOL_BYTES
from .reader import Batch, BatchReader
from .records import Integers, Records
from .rows import Unfit
from .sample_reader import Reading, SampleReader
from .sampler import BatchesIterator, BatchIndices, GlobalBatches, Key
from .samples import Samples

WORKERS_MAX: Final = 256  # of one IterableDataset
UNIFORM_RECORDS_MAX: Final = 10_000_000  # whose lengths are looked at before the first batch: 20 bytes each
FILTER_BATCH: Final = 1024  # samples that `filter` reads together
SKIP_BATCH: Final = 4096  # samples that are examined together behind a damaged block

Decode = Callable[..., Any]


def collate(samples: Any) -> Any:
    """Collate a batch: one tensor without a copy if all samples have one length, else a list; other kinds as torch."""
    if isinstance(samples, Samples) and samples.tensor is not None:
        return list(samples) if samples.is_uniform is False else samples.tensor
    are_listed = getattr(samples, "is_uniform", None) is False
    if all(isinstance(each, Tensor) for each in samples) and (
        are_listed or len({each.shape for each in samples}) > 1
    ):
        return list(samples)
    return default_collate(list(samples))


class Begun(NamedTuple):
    """A batch in flight: the samples that were asked for, and their keys if they have some."""

    reading: Reading
    numbers: Integers
    keys: Sequence[Key] | None


class MapDataset(Dataset[Any]):
    """Samples by number, of one `Records` or several, one after the other. May be sent to workers by fork and spawn.

    `decode(sample)` is applied to each sample: a tensor of bytes or tokens, or a dictionary of a tar's parts. With
    `keyed=True` it is `decode(sample, key)`: `key.generator()` has random numbers that depend on seed, epoch and
    position alone, so that augmentation is the same for any workers and after a stop. `check`: compare every record
    with its checksum. `pin`: page-locked memory, by default where there is CUDA and this is not a worker.

    `on_error`: the policy for a record that is damaged or that `decode` raises for. "raise" ends the iteration; "skip"
    takes the next record in its place, the same one each time; a function is called with the `BadRecord`, and then as
    "skip". More than `bad_records_max` different ones are an error all the same. See `bad_records`.
    """

    def __init__(  # noqa: PLR0913 (by keyword)
        self,
        records: Records | Sequence[Records],
        *,
        decode: Decode | None = None,
        keyed: bool = False,
        check: bool = True,
        pin: bool | None = None,
        on_error: OnError = "raise",
        bad_records_max: int = 100,
    ) -> None:
        self.parts = [records] if isinstance(records, Records) else list(records)
        if not self.parts or not all(isinstance(part, Records) for part in self.parts):
            raise TypeError("a data set is made of what `open_records` gives, or of a list of that")
        if keyed and decode is None:
            raise ValueError("keyed=True gives keys to decode=: there is none")
        self.decode, self.keyed, self.check, self.pin = decode, keyed, check, pin
        self.metrics = Metrics()
        self.bad = BadRecords(on_error, bad_records_max)
        self._groups: list[Group] = []
        start = 0
        for part in self.parts:
            self._groups.append(Group(start, len(part), None))
            start += len(part)
        self._is_uniform: bool | None = None
        self._forget_process()

    def _forget_process(self) -> None:
        self._samples_reader: SampleReader | None = None
        self._process = 0

    @property
    def sizes(self) -> list[int]:
        """The samples of each data set that is joined here, for `Order`."""
        return [group.size for group in self._groups]

    def __len__(self) -> int:
        return sum(group.size for group in self._groups)

    def __getitem__(self, index: int) -> Any:
        if not -len(self) <= index < len(self):
            raise IndexError(f"samples are 0 to {len(self) - 1}, not {index}")
        return self.__getitems__([index % len(self)])[0]

    def __getitems__(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Samples:
        return self.finish(self.start(indices))

    def start(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Begun:
        """Submit the reads of a batch; several may be in flight."""
        numbers = np.asarray(indices, np.int64).reshape(-1)
        keys = indices.keys() if self.keyed and isinstance(indices, BatchIndices) else None
        if self.keyed and keys is None:
            keys = [Key(0, 0, number) for number in numbers.tolist()]
        return Begun(self.sample_reader.start(self.places(numbers)), numbers, keys)

    def finish(self, begun: Begun) -> Samples:
        """Return the samples of a batch that was started. Raises: OSError; CorruptData, which names file and record."""
        try:
            return self._samples(self.sample_reader.finish(begun.reading), begun)
        except _RecordError as error:
            if not self.bad.skips:
                raise error.cause from error.cause.__cause__
        except CorruptData:
            if not self.bad.skips or not len(begun.numbers):
                raise
        return self._without_bad(begun)

    def cancel(self, begun: Begun) -> None:
        """Drop a batch that is not going to be finished."""
        if self._samples_reader is not None:
            self._samples_reader.cancel(begun.reading)

    # ---- parts of a data set

    def subset(self, chosen: range | slice | Sequence[int] | npt.NDArray[np.integer[Any]]) -> Self:
        """Make a data set of these samples; ranges take no memory. Raises: IndexError."""
        return self._with([Group(0, 0, choice_of(chosen, len(self))).over(self._groups)])

    def split(self, shares: Sequence[float], *, seed: int = 0) -> list[Self]:
        """Make random data sets of these shares, without a sample in common, in constant memory.

        The sizes are exact: they add up to all samples where the shares add up to 1. Raises: ValueError.
        """
        choices = choices_of(shares, len(self), seed)
        return [self._with([Group(0, 0, choice).over(self._groups)]) for choice in choices]

    def filter(self, keep: Callable[[Any], bool]) -> Self:
        """Make a data set of the samples for which `keep(sample)` is true: all are read and decoded, once."""
        kept = [np.empty(0, np.int64)]
        for numbers in self._stretches():
            samples = self.__getitems__(numbers)
            kept.append(numbers[np.array([bool(keep(sample)) for sample in samples], bool)])
        return self.subset(np.concatenate(kept))

    def measure(self, length: Callable[[Any], int]) -> Integers:
        """Compute `length(sample)` of each sample, for `LengthBuckets`: all are read and decoded, once."""
        return np.concatenate(
            [
                np.array([operator.index(length(sample)) for sample in self.__getitems__(numbers)], np.int64)
                for numbers in self._stretches()
            ]
        )

    def _stretches(self) -> Iterator[Integers]:
        for first in range(0, len(self), FILTER_BATCH):
            yield np.arange(first, min(first + FILTER_BATCH, len(self)))

    def lengths_of(self, numbers: Integers) -> Integers:
        """Look up the elements of these samples, as they are stored. Reads the indexes."""
        lengths = np.empty(len(numbers), np.int64)
        for part, mine, within in self.sample_reader.shares(self.places(numbers)):
            records = self.parts[part]
            lengths[mine] = records.locate(within).lengths // records.dtype.itemsize
        return lengths

    def require_lengths(self) -> None:
        """Require that lengths of samples are known before they are read. Raises: InvalidArgument."""
        unknown = [part.format for part in self.parts if not part.is_plain]
        if unknown:
            raise InvalidArgument(
                f"samples of {unknown[0]} have no length before they are read: give lengths= to LengthBuckets, an "
                "integer for each, as dataset.measure(lambda sample: len(sample[…])) finds them",
                path=self.parts[0].files[0].path,
            )

    def concat(self, *others: "MapDataset") -> "MapDataset":
        """Join this one and others, with the options of this one. `weights` of `Loader` mix them."""
        joined = self._with([])
        joined.parts = [part for each in (self, *others) for part in each.parts]
        start = 0
        for each in (self, *others):
            joined._groups += [group.moved(start) for group in each._groups]  # noqa: SLF001 (of this class)
            start += sum(len(part) for part in each.parts)
        return joined

    def _with(self, groups: list[Group]) -> Self:
        made = object.__new__(type(self))
        made.__dict__.update(self.__dict__, _groups=groups, _is_uniform=None)
        made.metrics = Metrics()
        made.bad = self.bad.fresh()
        made._forget_process()
        return made

    def places(self, numbers: Integers) -> Integers:
        """Map samples to the numbering of all parts. Raises: IndexError."""
        return places_in(self._groups, numbers)

    def block_sizes(self) -> list[Integers]:
        """Count the samples in each block of each data set that is joined here, for `Order(shuffle="blocks")`.

        Raises: InvalidArgument for parts of data sets at random, which `split` makes.
        """
        ends = np.cumsum(np.concatenate([part.block_sizes() for part in self.parts]))
        return [group.block_sizes(ends) for group in self._groups]

    def digest(self) -> str:
        """Hash the names, sizes and indexes of the files, and the choice of samples; the same at any location."""
        digests = [part.digest() for part in self.parts] + [group.digest() for group in self._groups]
        return hashlib.sha256(" ".join(digests).encode()).hexdigest()[:32]

    # ---- reading

    @property
    def reader(self) -> BatchReader:
        """This process's reader of the bytes of samples, or of their blocks."""
        return self.sample_reader.stored

    @property
    def sample_reader(self) -> SampleReader:
        """This process's reader, made at its first use."""
        if self._samples_reader is None or self._process != os.getpid():
            worker = get_worker_info()
            pin = None
            # A forked worker must not touch CUDA.
            if worker is None and (torch.cuda.is_available() if self.pin is None else self.pin):
                from .pinning import pin_array

                pin = pin_array
            share = POOL_BYTES // (1 if worker is None else worker.num_workers)
            self._samples_reader = SampleReader(self.parts, check=self.check, pin=pin, pool_bytes=share)
            self._samples_reader.stored.observe = self.metrics.observe_read
            self._process = os.getpid()
        return self._samples_reader

    def close(self) -> None:
        """Close this process's reader; the next use makes another."""
        if self._samples_reader is not None and self._process == os.getpid():
            self._samples_reader.close()
        self._samples_reader = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_samples_reader": None, "_process": 0}

    def settle_kind(self) -> None:
        """Determine whether batches are tensors or lists, so that all are of one type. Reads the indexes."""
        is_small = sum(len(part) for part in self.parts) <= UNIFORM_RECORDS_MAX
        if self._is_uniform is None and self.decode is None and is_small and self._is_one_kind():
            with contextlib.suppress(OSError):  # of a damaged or missing file: raised when it is read
                self._is_uniform = len(set().union(*(part.lengths() for part in self.parts))) <= 1

    def _is_one_kind(self) -> bool:
        return all(part.is_plain and part.dtype == self.parts[0].dtype for part in self.parts)

    def _samples(self, batch: Batch, begun: Begun) -> Samples:
        dtype = self.parts[0].dtype
        samples: Samples
        if self._is_one_kind() and batch.uniform is not None and batch.uniform % dtype.itemsize == 0:
            tensor = torch.from_numpy(batch.matrix().view(dtype))
            samples = Samples(tensor.unbind(0))
            samples.tensor = tensor if self.decode is None else None
        else:
            made = self.sample_reader.samples(begun.reading, batch)
            for place, sample in enumerate(made):
                if isinstance(sample, Unfit):
                    raise _RecordError(self._unfit(begun, place, sample))
            samples = Samples(_tensors(sample) for sample in made)
        samples.is_uniform = self._is_uniform
        if self.decode is not None:
            samples[:] = [self._decoded(sample, place, begun) for place, sample in enumerate(samples)]
        samples.indices, samples.batch = begun.numbers, batch
        return samples

    def _decoded(self, sample: Any, place: int, begun: Begun) -> Any:
        assert self.decode is not None, "it is called then"
        try:
            return self.decode(sample) if begun.keys is None else self.decode(sample, begun.keys[place])
        except Exception as error:  # of any class: it is about this record
            error.add_note(f"decode of {self._bad(begun, place, '').where}")
            raise _RecordError(error) from error

    def _bad(self, begun: Begun, place: int, reason: str) -> BadRecord:
        return self._bad_at(int(begun.reading.places[place]), int(begun.numbers[place]), reason)

    def _bad_at(self, place: int, number: int, reason: str) -> BadRecord:
        return BadRecord.of(*self.sample_reader.record_at(place), number, reason)

    def _unfit(self, begun: Begun, place: int, sample: Unfit) -> InvalidArgument:
        bad = self._bad(begun, place, sample.reason)
        return InvalidArgument(f"{bad.record} (sample {bad.number}) has {sample.reason}", path=bad.file)

    def _without_bad(self, begun: Begun) -> Samples:
        """Read a batch one by one, with the next good record in place of each bad one."""
        each = [self._substitute(begun, place) for place in range(len(begun.numbers))]
        samples = Samples(one[0] for one in each)
        samples.is_uniform, samples.indices = self._is_uniform, begun.numbers
        if all(one.tensor is not None for one in each) and len({one[0].shape for one in each}) == 1:
            samples.tensor = torch.stack(list(samples))
        return samples

    def _substitute(self, begun: Begun, place: int) -> Samples:
        number, keys = int(begun.numbers[place]), begun.keys and begun.keys[place : place + 1]
        reader = self.sample_reader
        for _ in range(len(self)):
            wanted = np.array([number])
            places = self.places(wanted)
            if not reader.is_damaged(places)[0]:
                one = Begun(reader.start(places), wanted, keys)
                try:
                    return self._samples(reader.finish(one.reading), one)
                except _RecordError as error:
                    cause: Exception = error.cause
                except CorruptData as error:
                    cause = error
                    reader.note_damage(int(places[0]))
                self.bad.add(self._bad(one, 0, f"{type(cause).__name__}: {cause}"), cause)
            self.metrics.observe_skip()
            following = self._next(number)
            if following is None:
                break
            number = following
        raise CorruptData(f"all {len(self)} records are bad", path=self.parts[0].files[0].path)

    def _next(self, number: int) -> int | None:
        """Return the sample behind one; blocks that are known to be damaged are left out."""
        for ahead in range(1, len(self), SKIP_BATCH):
            numbers = (number + np.arange(ahead, min(ahead + SKIP_BATCH, len(self)))) % len(self)
            good = np.flatnonzero(~self.sample_reader.is_damaged(self.places(numbers)))
            if good.size:
                return int(numbers[good[0]])
        return None

    def bad_records(self) -> list[BadRecord]:
        """List the records that were skipped, in all workers; their reasons are in those processes' logs."""
        numbers = self.bad.numbers()
        places = self.places(np.array(numbers, np.int64)).tolist()
        return [self._bad_at(place, number, "") for place, number in zip(places, numbers, strict=True)]


class _RecordError(Exception):
    """`decode` raised `cause`."""

    def __init__(self, cause: Exception) -> None:
        self.cause = cause


def _tensors(sample: Any) -> Any:
    if isinstance(sample, np.ndarray):
        return torch.from_numpy(sample)
    if isinstance(sample, Mapping):
        return {name: _tensors(value) for name, value in sample.items()}
    return sample


class IterableDataset(TorchIterableDataset[Any]):
    """Batches in the global order, one after the other: for `DataLoader(dataset, batch_size=None, num_workers=…)`.

    Worker w of W makes this rank's batches w, w+W, … of the rest of the epoch, which DataLoader returns in turn, so
    their order is that of `Loader`. The first iteration begins at the place of `batches`, or of a later `seek`, each
    further one with the next epoch (after a change of the number of workers call `set_epoch`). Under torchdata's
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
        # Memory that workers share: where to begin, with the number of that decision; and for each worker what it has
        # finished since: (decision, workers, next epoch). Each writes its own row, so none is ahead of another.
        self._place = _shared(1, batches.epoch, batches.sample)
        self._finished = _shared(*(0,) * 3 * WORKERS_MAX).view(WORKERS_MAX, 3)

    def seek(self, epoch: int, sample: int = 0) -> None:
        """Let the next iteration begin there, in all workers. Raises: ValueError."""
        self.batches.seek(epoch, sample)
        self._place.copy_(torch.tensor([int(self._place[0]) + 1, epoch, sample]))

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration be of that epoch, from its start."""
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
    """One iteration of an `IterableDataset` in one worker; its state is that after the last batch it returned."""

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
        """Return the state, for StatefulDataLoader, which saves one for each worker."""
        return self._indices.worker_state(ahead=len(self._ahead))

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume after the last batch that was returned. Raises: ValueError for another number of workers."""
        self._ahead.close()
        self._indices.load_worker_state(state)
        self._ahead = ReadAhead(self._source.dataset, self._indices, self._source.read_ahead)


class ReadAhead(Iterator[Samples]):
    """The batches of an iterator of indices, `ahead` of which are in flight while the caller has one."""

    def __init__(self, dataset: MapDataset, indices: BatchesIterator, ahead: int) -> None:
        self._dataset, self._indices, self._ahead = dataset, indices, ahead
        self._in_flight: deque[Begun] = deque()
        self._error: OSError | None = None
        self._more = True

    def __len__(self) -> int:
        """Count the batches that were started and not returned."""
        return len(self._in_flight)

    def __next__(self) -> Samples:
        while self._more and len(self._in_flight) <= self._ahead:
            try:
                self._in_flight.append(self._dataset.start(next(self._indices)))
            except StopIteration:
                self._more = False
            except OSError as error:  # raised when the batches before it have been returned
                self._error = error
                self._more = False
        if self._in_flight:
            return self._dataset.finish(self._in_flight.popleft())
        if self._error is not None:
            raise self._error
        raise StopIteration

    def close(self) -> None:
        """Cancel the batches in flight."""
        while self._in_flight:
            self._dataset.cancel(self._in_flight.popleft())


__all__ = ["BadRecord", "BatchStream", "IterableDataset", "MapDataset", "ReadAhead", "Samples", "collate"]
