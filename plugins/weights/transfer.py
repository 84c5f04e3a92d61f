"""Many reads in flight, into their targets or through a staging buffer of bounded size.

Parts come in the order of the file. A part that knows its memory and is large is read straight into it. Small ones
that lie near each other share one read; they, and parts that must be converted or go to a device, pass through one of
SLOTS staging slots. Memory: SLOTS × BLOCK_BYTES, for any size.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final

from luciola.client import Buffer, Operation
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData

from .plan import BLOCK_BYTES

ENTRIES: Final = 64  # reads in flight: 64 MiB of them
SLOTS: Final = 16  # staging slots: enough to copy out of one while the others fill
BATCH: Final = 8  # reads handed over at once
SMALL_BYTES: Final = 64 << 10  # below this a copy costs less than a read of its own

Land = Callable[[memoryview], Any]


@dataclass(slots=True)
class Part:
    """Bytes of a file that are wanted. Exactly one of `target` and `land` says where they go.

    `land(bytes)` takes them out of a staging slot; if it returns something with `synchronize()`, the slot is used again
    only after that. `check` sees the bytes first.
    """

    file: int  # index into the files of the transfer
    offset: int
    nbytes: int
    target: memoryview | None = None
    land: Land | None = None
    check: Callable[[memoryview], None] | None = None


@dataclass(slots=True)
class Read:
    """One operation of the ring."""

    file: int
    offset: int
    nbytes: int
    parts: list[Part] = field(default_factory=list)
    slot: int | None = None

    @property
    def is_direct(self) -> bool:
        return len(self.parts) == 1 and self.parts[0].target is not None


def grouped(parts: Iterable[Part], gap_bytes: int) -> Iterator[Read]:
    """One read for each part, or for several small ones with gaps of at most `gap_bytes`."""
    read: Read | None = None
    for part in parts:
        if read is not None and _belongs(part, read, gap_bytes):
            read.nbytes = max(read.nbytes, part.offset + part.nbytes - read.offset)
            read.parts.append(part)
            continue
        if read is not None:
            yield read
        read = Read(part.file, part.offset, part.nbytes, [part])
    if read is not None:
        yield read


def _belongs(part: Part, read: Read, gap_bytes: int) -> bool:
    end = read.offset + read.nbytes
    return (
        part.file == read.file
        and part.nbytes < SMALL_BYTES
        and read.parts[-1].nbytes < SMALL_BYTES
        and read.offset <= part.offset <= end + gap_bytes
        and part.offset + part.nbytes - read.offset <= BLOCK_BYTES
    )


def submit_all(ring: Any, waiting: list[Operation], settle: Callable[[int], None]) -> None:
    """Hand the waiting operations to a ring and empty the list.

    `settle(least)` takes from the ring what is done: where the ring is full, at least one, which makes room.
    """
    while waiting:
        taken = ring.submit(waiting)
        del waiting[:taken]
        settle(1 if waiting else 0)


class Transfer:
    """Carries out reads of some open files. `bytes_read` counts what was asked of the file system."""

    def __init__(
        self, file_system: AnyFileSystem, files: list[Any], staging: memoryview | None = None
    ) -> None:
        self._file_system = file_system
        self._files = files
        self._staging = memoryview(Buffer(SLOTS * BLOCK_BYTES)) if staging is None else staging
        self._free = list(range(SLOTS))
        self._busy: dict[int, list[Any]] = {}  # slots whose bytes are still on their way to a device
        self._waiting: list[Operation] = []
        self.bytes_read = 0
        self.reads = 0

    def run(self, reads: Iterable[Read]) -> None:
        """Carry out all reads, and return when their bytes are in place.

        Raises: OSError, CorruptData; no operation is in flight afterwards.
        """
        with self._file_system.ring(ENTRIES) as ring:
            for read in reads:
                if not read.is_direct:
                    read.slot = self._slot(ring)
                self._waiting.append(self._operation(read))
                if len(self._waiting) >= BATCH:
                    self._submit(ring)
            while self._waiting or ring.in_flight:
                self._submit(ring)
                self._land(ring, least=1)
        while self._busy:
            self._reclaim()

    def _slot(self, ring: Any) -> int:
        while not self._free:
            if self._busy:
                self._reclaim()
            else:
                self._submit(ring)
                self._land(ring, least=1)
        return self._free.pop()

    def _reclaim(self) -> None:
        slot = next(iter(self._busy))
        for pending in self._busy.pop(slot):
            pending.synchronize()
        self._free.append(slot)

    def _operation(self, read: Read) -> Operation:
        self.bytes_read += read.nbytes
        self.reads += 1
        file = self._files[read.file]
        if read.slot is None:
            assert read.parts[0].target is not None, "it is direct"
            return Operation(file, read.offset, read.parts[0].target, user_data=read)
        return Operation(
            file, read.offset, self._staging, read.slot * BLOCK_BYTES, read.nbytes, user_data=read
        )

    def _submit(self, ring: Any) -> None:
        submit_all(ring, self._waiting, lambda least: self._land(ring, least=least))

    def _land(self, ring: Any, *, least: int) -> None:
        for done in ring.drain(least=least):
            read: Read = done.user_data
            if done.moved < read.nbytes:
                name = self._files[read.file].name
                raise CorruptData(f"the file ends before byte {read.offset + read.nbytes}", path=name)
            self._distribute(read)

    def _distribute(self, read: Read) -> None:
        if read.slot is None:
            (part,) = read.parts
            if part.check is not None and part.target is not None:
                part.check(part.target)
            return
        pending = []
        for part in read.parts:
            start = read.slot * BLOCK_BYTES + part.offset - read.offset
            view = self._staging[start : start + part.nbytes]
            if part.check is not None:
                part.check(view)
            if part.target is not None:
                part.target[:] = view
            elif part.land is not None and (wait := part.land(view)) is not None:
                pending.append(wait)
        if pending:
            self._busy[read.slot] = pending
        else:
            self._free.append(read.slot)


__all__ = ["Part", "Read", "Transfer", "grouped", "submit_all"]
