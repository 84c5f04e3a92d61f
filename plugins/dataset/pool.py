"""Page-aligned memory that comes back by itself, also from another process that it was lent to.

    pool = Pool()
    piece, array = pool.take(nbytes)                        # `piece.memory` is what a ring fills
    loan = pool.lend(piece, array)                          # the other process calls `flag_raise` at its end

P1  Memory is used again only when nothing refers to it any more: here, and where it was lent to.
P2  A piece has a flag behind its bytes. The borrower raises it to the number of the loan when it needs it no longer.
"""

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

POOL_BYTES: Final = 1 << 30  # of free memory that is kept
SMALLEST: Final = 64 << 10  # a piece of the pool
FLAG_BYTES: Final = 8
LOANS_MAX: Final = 64  # each holds a descriptor of this process; who keeps more batches gets copies


@dataclass(eq=False)
class Piece:
    """Memory of the pool. `serial` is its name in this pool, `turn` the number of the last loan."""

    memory: memoryview
    whole: Bytes
    serial: int
    turn: int = 0
    is_known: bool = False
    """The borrower has mapped it."""

    @property
    def size(self) -> int:
        return self.whole.nbytes


class Loan(NamedTuple):
    """What the borrower is told, once: `retired` are pieces that will not come again."""

    pool: bytes
    serial: int
    turn: int
    size: int
    descriptor: int | None
    """Of memory that it has not mapped yet."""
    retired: tuple[int, ...]


class Pool:
    """Memory of one process. `pin` is applied to each new piece. Several threads may use it."""

    def __init__(self, *, pin: Callable[[Bytes], None] | None = None, limit_bytes: int = POOL_BYTES) -> None:
        self._pin, self._limit_bytes = pin, limit_bytes
        self._free: dict[int, deque[Piece]] = {}
        self._name = secrets.token_bytes(8)
        self._made = 0
        self._lent: list[tuple[Piece, Bytes]] = []
        self._retired: deque[int] = deque()
        self._lock = threading.Lock()

    @property
    def free_bytes(self) -> int:
        """Of memory that waits to be used again."""
        return sum(size * len(free) for size, free in list(self._free.items()))

    @property
    def lent(self) -> int:
        """Pieces that another process has not given back."""
        self._collect()
        return len(self._lent)

    def take(self, nbytes: int) -> tuple[Piece, Bytes]:
        """A piece, and its bytes as an array of at least that many. It is free when the array is gone."""
        if self._lent:
            self._collect()
        size = _rounded(nbytes)
        free = self._free.setdefault(size, deque())
        try:
            piece = free.pop()
        except IndexError:
            piece = self._make(size)
        array = np.frombuffer(
            piece.memory, np.uint8, size
        )  # it dies with its last view, and `memory` does not
        weakref.finalize(array, self._give_back, piece).atexit = False
        return piece, array

    def _make(self, size: int) -> Piece:
        memory = memoryview(Buffer(size + FLAG_BYTES))
        whole = np.frombuffer(memory, np.uint8, size)
        if self._pin is not None:
            self._pin(whole)
        self._made += 1
        return Piece(memory, whole, self._made)

    def _give_back(self, piece: Piece) -> None:
        # May run inside any allocation of any thread: no locks.
        if self.free_bytes + piece.size <= self._limit_bytes or self._pin is not None:
            self._free[piece.size].append(piece)
        elif piece.is_known:
            self._retired.append(piece.serial)

    def lend(self, piece: Piece, array: Bytes) -> Loan | None:
        """A loan of what `take` has given; None if there are LOANS_MAX already. One borrower at a time."""
        self._collect()
        with self._lock:
            if len(self._lent) >= LOANS_MAX:
                return None
            piece.turn += 1
            self._lent.append((piece, array))
            retired = tuple(self._retired.popleft() for _ in range(len(self._retired)))
            descriptor = None if piece.is_known else piece.memory.obj.fileno()  # type: ignore[attr-defined]
            piece.is_known = True
            return Loan(self._name, piece.serial, piece.turn, piece.size, descriptor, retired)

    def _collect(self) -> None:
        """Ends the loans whose flags are up."""
        with self._lock:
            self._lent = [
                (piece, array)
                for piece, array in self._lent
                if luciola_core.flag_wait(piece.memory, piece.size, piece.turn, 0) < piece.turn
            ]


def _rounded(nbytes: int) -> int:
    """Up to one of eight sizes in each power of two, so that batches of nearly equal size share pieces."""
    if nbytes <= SMALLEST:
        return SMALLEST
    step = 1 << ((nbytes - 1).bit_length() - 4)
    return -(-nbytes // step) * step


__all__ = ["FLAG_BYTES", "LOANS_MAX", "Loan", "Piece", "Pool"]
