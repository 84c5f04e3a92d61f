"""Batches of records: all reads of a batch in one submission to the ring, into one piece of page-aligned memory.

    reader = BatchReader([records])
    first, second = reader.start(indices), reader.start(more)      # both in flight
    batch = reader.finish(first)
    batch.arrays()                                                  # views of the batch's memory, in the order asked

B1  A batch's memory is reused only when nothing refers to it any more: arrays and tensors over it keep it.
B2  Records that follow one another in a file and in the batch are one read; a large one is several of PIECE_BYTES.
B3  Where the format has checksums every record is compared with its own (unless `check=False`); an error names file
    and record.
B4  A reader belongs to one process. Several threads may use it.
B5  An exception of a signal handler, which may come between any two steps, leaves every read where it is found again:
    queued, in flight, or completed. A result may be processed twice.

If all records of a batch have one length they are stored back to back, and the batch is one two-dimensional array.
Others begin at multiples of ALIGNMENT, so that any element type may be viewed.
"""

import os
import resource
import threading
import time
import weakref
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import luciola_core
import numpy as np
import numpy.typing as npt

from ...client import Completion, Operation
from ...client.local import LocalFile, LocalFileSystem
from ...errors import CorruptData
from .pool import POOL_BYTES, Export, Piece, Pool
from .records import Bytes, Checksums, Integers, Numbering, Records, concurrently

ENTRIES: Final = 512  # reads in flight on one file system
PIECE_BYTES: Final = 4 << 20  # of one read: four chunks, which come from as many nodes
ALIGNMENT: Final = 64  # a cache line, and a multiple of every element type
OPEN_FILES_MAX: Final = 16384  # 10 MiB here; the metadata service holds each for us
LOCAL_SHARE: Final = 2  # local files may take this part (a half) of the descriptors that the process may have

Observe = Callable[[int, int, float | None], None]
"""Called for every batch: records, bytes, seconds from its submission to its last completion; None without reads."""


@dataclass(eq=False)
class Batch:
    """Records in memory. `positions` and `lengths` are those of each in `memory`."""

    pool: Pool
    piece: Piece
    memory: Bytes
    positions: Integers
    lengths: Integers
    uniform: int | None
    """The one length of all records, which are back to back then."""

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def nbytes(self) -> int:
        return int(self.lengths.sum())

    def export(self) -> Export | None:
        """Export the memory to another process (`Pool.export`)."""
        return self.pool.export(self.piece, self.memory)

    def arrays(self) -> list[Bytes]:
        """View the bytes of each record, without a copy."""
        spans = zip(self.positions.tolist(), self.lengths.tolist(), strict=True)
        return [self.memory[start : start + length] for start, length in spans]

    def matrix(self) -> Bytes:
        """View all records as rows, without a copy. Raises: ValueError if their lengths differ."""
        if self.uniform is None:
            raise ValueError(
                f"records of {int(self.lengths.min())} to {int(self.lengths.max())} bytes are not one array"
            )
        return self.memory[: len(self) * self.uniform].reshape(len(self), self.uniform)


@dataclass(eq=False)
class Pending:
    """A batch in flight."""

    batch: Batch
    indices: Integers
    checks: list[tuple[Records, Integers, Integers, Checksums]]
    """(data set, places in the batch, numbers in the data set, checksums)."""
    started: float
    completed: float
    reads: int = 0
    open: set[int] = field(default_factory=set)
    """Numbers of the reads whose results have not been processed."""
    error: BaseException | None = None
    files: list["_OpenFile"] = field(default_factory=list)
    channels: list["_Channel"] = field(default_factory=list)


@dataclass(eq=False)
class _OpenFile:
    file: Any


class _Channel:
    """The ring of one file system, and a queue of the operations that it has no room for."""

    def __init__(self, file_system: Any) -> None:
        self.file_system = file_system
        self.ring: Any = file_system.ring(ENTRIES)
        self.queue: list[Operation] = []
        self._completed: list[Completion] = []

    def submit(self) -> None:
        if self.queue and self.ring.in_flight < ENTRIES:
            self.ring.submit_from(self.queue)

    def cancel(self, pending: Pending) -> None:
        """Drop the operations of a batch that have not been submitted."""
        self.queue[:] = [each for each in self.queue if each.user_data[0] is not pending]

    def complete(self, *, least: int) -> None:
        """Process results, `least` of them at least, and submit what waits for room."""
        if not self._completed:
            self.ring.drain(least=least, into=self._completed)
        while self._completed:
            self._process(self._completed[-1])
            self._completed.pop()
        self.submit()

    def _process(self, done: Completion) -> None:
        pending, number, wanted, path, end = done.user_data
        if done.result != wanted:
            try:
                if done.moved < wanted:
                    raise CorruptData(f"the file ends before byte {end}", path=path)
            except OSError as error:
                if error.filename is None:
                    error.filename = path
                pending.error = pending.error or error
        pending.open.discard(number)
        if not pending.open:
            pending.completed = time.perf_counter()


class BatchReader:
    """Reads batches of records of several data sets, which are numbered one after the other.

    `pool_bytes`: of free memory that is kept for later batches.
    """

    def __init__(
        self,
        parts: Sequence[Records],
        *,
        check: bool = True,
        pin: Callable[[Bytes], None] | None = None,
        open_files_max: int = OPEN_FILES_MAX,
        pool_bytes: int = POOL_BYTES,
    ) -> None:
        assert open_files_max > 0, "a batch is read from open files"
        self.parts = list(parts)
        self.check = check
        self.observe: Observe | None = None
        self._numbering = Numbering.of("samples", map(len, self.parts))
        self._pool = Pool(pin=pin, limit_bytes=pool_bytes)
        self._channels: dict[int, _Channel] = {}  # by data set; those of one file system share theirs
        self._open: OrderedDict[int, _OpenFile] = OrderedDict()
        self._open_max = open_files_max
        if any(isinstance(part.place.file_system, LocalFileSystem) for part in self.parts):
            limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0] // LOCAL_SHARE
            self._open_max = max(1, min(open_files_max, limit))
        self._begun: weakref.WeakSet[Pending] = weakref.WeakSet()  # whose files are in use
        self._lock = threading.RLock()
        self._process = os.getpid()
        weakref.finalize(self, _close, self._open, self._channels, self._process)

    def read(self, indices: npt.ArrayLike) -> Batch:
        """Read records, in that order; one may come twice."""
        return self.finish(self.start(indices))

    def start(self, indices: npt.ArrayLike) -> Pending:
        """Submit the reads of a batch. Raises: IndexError; what opening a file raises."""
        assert self._process == os.getpid(), "a reader belongs to one process"
        started = time.perf_counter()
        wanted = np.asarray(indices, np.int64).reshape(-1)
        keys, offsets, lengths = (np.empty(len(wanted), np.int64) for _ in range(3))
        checks: list[tuple[Records, Integers, Integers, Checksums]] = []
        for part, chosen, numbers in self._numbering.shares(wanted):
            records = self.parts[part]
            extents = records.locate(numbers)
            keys[chosen] = (part << 32) | extents.files
            offsets[chosen], lengths[chosen] = extents.offsets, extents.lengths
            if self.check and extents.checksums is not None:
                checks.append((records, chosen, numbers, extents.checksums))
        uniform = int(lengths[0]) if len(lengths) and (lengths == lengths[0]).all() else None
        room = lengths if uniform is not None else -(-lengths // ALIGNMENT) * ALIGNMENT
        positions = np.cumsum(room) - room
        piece, array = self._pool.take(int(room.sum()))
        batch = Batch(self._pool, piece, array, positions, lengths, uniform)
        pending = Pending(batch, wanted, checks, started, started)
        with self._lock:
            self._begun.add(pending)
            self._submit(pending, piece.memory, keys, offsets)
        return pending

    def _submit(self, pending: Pending, memory: Any, keys: Integers, offsets: Integers) -> None:
        batch = pending.batch
        runs = _runs(keys, offsets, batch.positions, batch.lengths)
        try:
            keys_of_files = list({run[0] for run in runs})
            self._open_files(keys_of_files, pending)
            known = {key: self._use(key, pending) for key in keys_of_files}
        except BaseException:
            pending.files = []
            raise
        try:
            for key, offset, position, length in runs:
                file, path, channel = known[key]
                for at in range(0, length, PIECE_BYTES):
                    size = min(PIECE_BYTES, length - at)
                    data = (pending, pending.reads, size, path, offset + at + size)
                    pending.open.add(pending.reads)
                    pending.reads += 1
                    channel.queue.append(
                        Operation(file, offset + at, memory, position + at, size, False, data)
                    )
            for channel in pending.channels:
                channel.submit()
        except BaseException:
            self._cancel(pending)
            raise

    def finish(self, pending: Pending, *, samples: int | None = None) -> Batch:
        """Wait for a batch. Raises: OSError; CorruptData, which names file and record.

        `samples`: how many its records are read for, if they are blocks.
        """
        with self._lock:
            while pending.open:
                self._require_reads(pending)
                for channel in pending.channels:
                    channel.complete(least=1)
            pending.files = []
        if pending.error is not None:
            raise pending.error
        if self.observe is not None:
            count = len(pending.batch) if samples is None else samples
            seconds = pending.completed - pending.started if pending.reads else None
            self.observe(count, pending.batch.nbytes, seconds)
        for records, places, numbers, checksums in pending.checks:
            _compare(pending.batch, records, places, numbers, checksums)
        return pending.batch

    def cancel(self, pending: Pending) -> None:
        """Drop a batch that is not going to be finished. Its memory is reused when its reads have completed."""
        with self._lock:
            self._cancel(pending)
            for channel in pending.channels:
                channel.complete(least=0)

    def _cancel(self, pending: Pending) -> None:
        for channel in pending.channels:
            channel.cancel(pending)
        pending.files = []

    @staticmethod
    def _require_reads(pending: Pending) -> None:
        """Require that a batch has reads in flight or queued. Raises: RuntimeError."""
        if not any(channel.queue or channel.ring.in_flight for channel in pending.channels):
            raise RuntimeError(
                f"{len(pending.open)} reads of a batch have no results, and none is in flight: the batch was "
                "cancelled, or its reader was closed while it was read"
            )

    def close(self) -> None:
        """Wait for the reads in flight, and close the files."""
        with self._lock:
            _close(self._open, self._channels, self._process)

    def _channel(self, part: int) -> _Channel:
        found = self._channels.get(part)
        if found is None:
            file_system = self.parts[part].place.file_system
            same = (each for each in self._channels.values() if each.file_system is file_system)
            found = self._channels[part] = next(same, None) or _Channel(file_system)
        return found

    def _open_files(self, keys: list[int], pending: Pending) -> None:
        """Open the files that are not open, concurrently; a batch uses the others from now on."""
        for key in keys:
            if key in self._open:
                pending.files.append(self._open[key])
                self._open.move_to_end(key)
        missing = [key for key in keys if key not in self._open]
        self._make_room(len(missing))
        concurrently(self._open_one, missing)

    def _open_one(self, key: int) -> None:
        file = self.parts[key >> 32].open(key & 0xFFFFFFFF)
        self._open[key] = _OpenFile(file)

    def _use(self, key: int, pending: Pending) -> tuple[Any, str, _Channel]:
        """Return (file, its path, the channel that reads it); a batch uses it from now on."""
        found, part = self._open[key], key >> 32
        pending.files.append(found)
        channel = self._channel(part)
        if channel not in pending.channels:
            pending.channels.append(channel)
        return found.file, self.parts[part].files[key & 0xFFFFFFFF].path, channel

    def _make_room(self, count: int) -> None:
        """Close the files that were used longest ago, of those that no batch in flight uses."""
        over = len(self._open) + count - self._open_max
        if count and over > 0:
            used = {id(opened) for pending in list(self._begun) for opened in pending.files}
            unused = [key for key, opened in self._open.items() if id(opened) not in used]
            for key in unused[:over]:
                self._open.pop(key).file.close()


def _close(files: dict[int, _OpenFile], channels: dict[int, _Channel], process: int) -> None:
    """Close a reader, also one that a fork inherited: its ring and its files on a cluster are the parent's."""
    own = process == os.getpid()
    for channel in {id(each): each for each in channels.values()}.values():
        channel.queue.clear()
        if own:
            channel.ring.close()
    for opened in files.values():
        if own or isinstance(opened.file, LocalFile):
            opened.file.close()
    channels.clear()
    files.clear()


def _runs(
    keys: Integers, offsets: Integers, positions: Integers, lengths: Integers
) -> list[tuple[int, int, int, int]]:
    """List (file, offset, position, bytes) of reads: neighbours in the file and in memory are one."""
    if not len(keys):
        return []
    follows = (
        (keys[1:] == keys[:-1])
        & (offsets[1:] == offsets[:-1] + lengths[:-1])
        & (positions[1:] == positions[:-1] + lengths[:-1])
    )
    firsts = np.concatenate(([0], np.flatnonzero(~follows) + 1))
    sums = np.add.reduceat(lengths, firsts)
    columns = (keys[firsts], offsets[firsts], positions[firsts], sums)
    return [run for run in zip(*(column.tolist() for column in columns), strict=True) if run[3]]


def _compare(
    batch: Batch, records: Records, places: Integers, numbers: Integers, checksums: Checksums
) -> None:
    lengths = batch.lengths[places]
    found = luciola_core.crc32s(batch.memory.data, batch.positions[places].tolist(), lengths.tolist())
    wrong = np.flatnonzero(np.array(found, np.uint32) != checksums)
    if wrong.size:
        number, length = int(numbers[wrong[0]]), int(lengths[wrong[0]])
        file, _ = records.in_file(number)
        raise CorruptData(
            f"{records.name(number)} does not match its checksum ({length} bytes)", path=file.path
        )


__all__ = ["Batch", "BatchReader", "Pending"]
