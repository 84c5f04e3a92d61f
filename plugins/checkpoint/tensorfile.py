"""One safetensors file, written by many writes in flight while its tensors are added one by one. Does not import torch.

F1  A write is one whole block of the file (a chunk), straight from the tensor's memory; only the ends of tensors are
    staged, in slots of BLOCK_BYTES. At most ENTRIES writes are in flight.
F2  The header is written last, into room that was left for it: until then the file is no safetensors file.
F3  When `finish` returns, the file and its checksums beside it are durable. After an error neither exists.
"""

import contextlib
import errno
from collections.abc import Iterable
from typing import Any, Final, Self

from luciola_core import crc32c

from luciola.client import Buffer, LocalFileSystem, Operation
from luciola.client.location import AnyFileSystem
from luciola.errors import NoSpace

from ..weights.checksums import SUFFIX, Checksums
from ..weights.header import encode_header
from ..weights.plan import BLOCK_BYTES

ENTRIES: Final = 64  # writes in flight: 64 MiB of them
BATCH: Final = 8  # writes handed over at once
LOCAL_ENTRIES: Final = (
    2  # of local files: the kernel writes one block of a file at a time, the rest would spin
)
SLOTS: Final = 16  # staging slots
STRETCH_BYTES: Final = 16 * BLOCK_BYTES  # of one tensor at a time: its checksums, then its writes
PAGE_BYTES: Final = 4096
LONGEST_DTYPE: Final = "F8_E4M3FNUZ"
LARGEST: Final = 10**15  # bytes of one tensor, for counting digits

Entries = dict[str, tuple[str, tuple[int, ...], int]]


def header_room(shapes: dict[str, tuple[int, ...]], metadata: dict[str, str]) -> int:
    """Compute the longest header for tensors of these shapes, of any types; whole pages."""
    longest: Entries = {name: (LONGEST_DTYPE, (*shape, 2), LARGEST) for name, shape in shapes.items()}
    return -(-len(encode_header(longest, metadata)) // PAGE_BYTES) * PAGE_BYTES


class TensorFile:
    """A new file. Use as a context manager: without `finish`, it is removed."""

    def __init__(self, file_system: AnyFileSystem, path: str, room: int) -> None:
        self.path = path
        self._file_system = file_system
        self._room = room
        self._entries: Entries = {}
        self._crcs: dict[str, list[int]] = {}
        self._file: Any = file_system.open(path, "xb")
        self._blocks = _Blocks(file_system, self._file, room)
        self._is_finished = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self._blocks.close()
        with contextlib.suppress(OSError) if exception[0] is not None else contextlib.nullcontext():
            self._file.close()
        if not self._is_finished:
            for path in (self.path, self.path + SUFFIX):
                with contextlib.suppress(OSError):
                    self._file_system.remove(path)

    def add(self, name: str, dtype: str, shape: tuple[int, ...], pieces: Iterable[memoryview]) -> int:
        """Append a tensor; return its size in bytes. All pieces but the last are multiples of BLOCK_BYTES long.

        Their memory must not change before `finish` returns. Raises: NoSpace, OSError.
        """
        crcs: list[int] = []
        nbytes = 0
        with explained(self.path):
            for piece in pieces:
                for begin in range(0, piece.nbytes, STRETCH_BYTES):
                    stretch = piece[begin : begin + STRETCH_BYTES]
                    crcs.extend(
                        crc32c(stretch[at : at + BLOCK_BYTES]) for at in range(0, stretch.nbytes, BLOCK_BYTES)
                    )
                    self._blocks.write(stretch)
                nbytes += piece.nbytes
        self._entries[name] = (dtype, shape, nbytes)
        self._crcs[name] = crcs
        return nbytes

    def finish(self, metadata: dict[str, str]) -> dict[str, int]:
        """Complete the file, durably; return the lengths of the files by their paths. Raises: NoSpace, OSError."""
        head = encode_header(self._entries, metadata, room=self._room)
        assert len(head) == self._room, "the room was for the longest header"
        length = self._room + sum(nbytes for *_, nbytes in self._entries.values())
        sums = Checksums(length, crc32c(head), self._crcs).encode()
        with explained(self.path):
            self._blocks.finish(head)
            self._file.fsync()
            with self._file_system.open(self.path + SUFFIX, "xb") as beside:
                beside.write(sums)
                beside.flush()
                beside.fsync()  # type: ignore[attr-defined]
        self._is_finished = True
        return {self.path: length, self.path + SUFFIX: len(sums)}


@contextlib.contextmanager
def explained(path: str) -> Any:
    """Raise ENOSPC and EDQUOT as NoSpace, with the consequence for the checkpoint and a remedy."""
    try:
        yield
    except OSError as error:
        if error.errno not in {errno.ENOSPC, errno.EDQUOT}:
            raise
        raise NoSpace(
            "no space left for this checkpoint: it was not saved, and earlier ones are unchanged. Remove some "
            "(`luciola checkpoint prune`) or add storage",
            path=path,
        ) from error


class _Blocks:
    """A stream of bytes from an offset on, cut where the blocks of the file end."""

    def __init__(self, file_system: AnyFileSystem, file: Any, offset: int) -> None:
        self._file = file
        self._position = offset
        is_local = isinstance(file_system, LocalFileSystem)
        self._ring: Any = file_system.ring(LOCAL_ENTRIES if is_local else ENTRIES)
        self._waiting: list[Operation] = []
        self._staging = memoryview(b"")
        self._free: list[int] = []
        self._slot: int | None = None  # the one that is being filled
        self._slot_start = 0  # position of its first byte

    def write(self, data: memoryview) -> None:
        while data.nbytes:
            room = BLOCK_BYTES - self._position % BLOCK_BYTES
            take = min(room, data.nbytes)
            if self._slot is None and take == room:
                # The operation holds the memory until it is drained.
                part = data[:take]
                self._put(
                    Operation(self._file, self._position, part, 0, take, write=True, user_data=(None, part))
                )
                self._position += take
            else:
                self._fill(data[:take])
            data = data[take:]

    def _fill(self, data: memoryview) -> None:
        if self._slot is None:
            self._slot, self._slot_start = self._take_slot(), self._position
        at = self._slot * BLOCK_BYTES + self._position % BLOCK_BYTES
        self._staging[at : at + data.nbytes] = data
        self._position += data.nbytes
        if self._position % BLOCK_BYTES == 0:
            self._put_slot()

    def _take_slot(self) -> int:
        if not self._staging:
            self._staging = memoryview(Buffer(SLOTS * BLOCK_BYTES))
            self._free = list(range(SLOTS))
        while not self._free:
            self._submit()
            self._complete(least=1)
        return self._free.pop()

    def _put_slot(self) -> None:
        assert self._slot is not None, "there is one"
        at = self._slot * BLOCK_BYTES + self._slot_start % BLOCK_BYTES
        length = self._position - self._slot_start
        self._put(
            Operation(
                self._file,
                self._slot_start,
                self._staging,
                at,
                length,
                write=True,
                user_data=(self._slot, None),
            )
        )
        self._slot = None

    def _put(self, operation: Operation) -> None:
        self._waiting.append(operation)
        if len(self._waiting) >= BATCH:
            self._submit()

    def _submit(self) -> None:
        while self._waiting:
            taken = self._ring.submit(self._waiting)
            del self._waiting[:taken]
            self._complete(least=1 if self._waiting else 0)

    def _complete(self, *, least: int) -> None:
        for done in self._ring.drain(least=least):
            _ = done.moved
            slot, _memory = done.user_data
            if slot is not None:
                self._free.append(slot)

    def finish(self, head: bytes) -> None:
        """Write what is left, then the header at the beginning, and wait for all of it."""
        if self._slot is not None:
            self._put_slot()
        self._wait()
        self._put(Operation(self._file, 0, head, 0, len(head), write=True, user_data=(None, head)))
        self._wait()

    def _wait(self) -> None:
        self._submit()
        while self._ring.in_flight:
            self._complete(least=1)

    def close(self) -> None:
        """Wait for the writes in flight."""
        self._ring.close()


__all__ = ["TensorFile", "explained", "header_room"]
