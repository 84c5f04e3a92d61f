"""Page-aligned memory that is reused once nothing refers to it, in this process or in one that imported it.

    pool = Pool()
    piece, array = pool.take(nbytes)                        # `piece.memory` is what a ring fills
    export = pool.export(piece, array)                      # the importer calls `flag_raise` when it is done

P1  Memory is reused only when nothing refers to it any more: here, and where it was imported.
P2  A piece has a flag behind its bytes. The importer raises it to the number of the export when it has released it.
P3  Free memory is bounded. A new piece displaces free ones of the sizes that were taken longest ago; two of the size
    taken last are kept whatever it is.
"""

import contextlib
import secrets
import threading
import weakref
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, NamedTuple

import luciola_core
import numpy as np

from ...client import Buffer
from .records import Bytes

POOL_BYTES: Final = 1 << 30  # of free memory, of all workers of a loader together
SMALLEST: Final = 64 << 10  # a piece of the pool
FLAG_BYTES: Final = 8
EXPORTS_MAX: Final = 64  # each holds a descriptor of this process; batches beyond are copied
IN_USE: Final = 2  # free pieces of the size taken last: one batch is consumed while the next is read


@dataclass(eq=False)
class Piece:
    """Memory of the pool. `serial` is its name in this pool, `turn` the number of its last export."""

    memory: memoryview
    whole: Bytes
    serial: int
    turn: int = 0
    is_mapped: bool = False
    """By the importer."""

    @property
    def size(self) -> int:
        return self.whole.nbytes


class Export(NamedTuple):
    """What names a piece in another process. `retired` are pieces that are not exported again."""

    pool: bytes
    serial: int
    turn: int
    size: int
    descriptor: int | None
    """Of memory that the importer has not mapped yet."""
    retired: tuple[int, ...]


class Pool:
    """Memory of one process. `pin` is applied to each new piece. Several threads may use it."""

    def __init__(self, *, pin: Callable[[Bytes], None] | None = None, limit_bytes: int = POOL_BYTES) -> None:
        self._pin, self._limit_bytes = pin, limit_bytes
        self._free: dict[int, deque[Piece]] = {}
        self._takes: dict[int, int] = {}  # by size, the number of the last take
        self._name = secrets.token_bytes(8)
        self._taken = self._made = 0
        self._exported: list[tuple[Piece, Bytes]] = []
        self._retired: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Of memory that waits to be reused."""
        return sum(size * len(free) for size, free in list(self._free.items()))

    @property
    def exported(self) -> int:
        """Pieces that another process has not released."""
        self._collect()
        return len(self._exported)

    def take(self, nbytes: int) -> tuple[Piece, Bytes]:
        """Take a piece, and its bytes as an array of at least that many. It is free when the array is collected."""
        if self._exported:
            self._collect()
        size = _rounded(nbytes)
        free = self._free.setdefault(size, deque())
        self._taken += 1
        self._takes[size] = self._taken
        try:
            piece = free.pop()
        except IndexError:
            piece = self._make(size)
        array = np.frombuffer(
            piece.memory, np.uint8, size
        )  # it dies with its last view, and `memory` does not
        weakref.finalize(array, self._release, piece).atexit = False
        return piece, array

    def _make(self, size: int) -> Piece:
        self._make_room(size)
        memory = memoryview(Buffer(size + FLAG_BYTES))
        whole = np.frombuffer(memory, np.uint8, size)
        if self._pin is not None:
            self._pin(whole)
        self._made += 1
        return Piece(memory, whole, self._made)

    def _make_room(self, size: int) -> None:
        """Drop free pieces of the sizes that were taken longest ago (P3)."""
        for other in sorted(self._takes, key=self._takes.__getitem__):
            free = self._free[other]
            with contextlib.suppress(IndexError):  # another thread has taken the last one
                while free and self.free_bytes + size > self._limit_bytes:
                    self._retire(free.popleft())

    def _retire(self, piece: Piece) -> None:
        if piece.is_mapped:
            self._retired.append(piece.serial)

    def _release(self, piece: Piece) -> None:
        # May run inside any allocation of any thread: no locks. Pinned pieces stay: unpinning calls CUDA.
        free = self._free[piece.size]
        is_in_use = self._takes[piece.size] == self._taken and len(free) < IN_USE
        if is_in_use or self._pin is not None or self.free_bytes + piece.size <= self._limit_bytes:
            free.append(piece)
        else:
            self._retire(piece)

    def export(self, piece: Piece, array: Bytes) -> Export | None:
        """Export what `take` has returned to one other process; None above EXPORTS_MAX exports."""
        self._collect()
        with self._lock:
            if len(self._exported) >= EXPORTS_MAX:
                return None
            piece.turn += 1
            self._exported.append((piece, array))
            retired = tuple(self._retired.popleft() for _ in range(len(self._retired)))
            descriptor = None if piece.is_mapped else piece.memory.obj.fileno()  # type: ignore[attr-defined]
            piece.is_mapped = True
            return Export(self._name, piece.serial, piece.turn, piece.size, descriptor, retired)

    def _collect(self) -> None:
        """End the exports whose flags are up."""
        with self._lock:
            self._exported = [
                (piece, array)
                for piece, array in self._exported
                if luciola_core.flag_wait(piece.memory, piece.size, piece.turn, 0) < piece.turn
            ]


def _rounded(nbytes: int) -> int:
    """Up to one of eight sizes in each power of two, so that batches of nearly equal size share pieces."""
    if nbytes <= SMALLEST:
        return SMALLEST
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


__all__ = ["EXPORTS_MAX", "FLAG_BYTES", "POOL_BYTES", "Export", "Piece", "Pool"]
