"""A thread that looks after a step while the main thread waits inside it.

It ends the main thread's waits when a failure is told on the board, and tells one itself when a neighbour's signs of
life stop or the store is lost. It lives only while a step runs, on a GPU until the step's work there has ended.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from .board import Board, StoreLost
from .failure import Cause

LOOK_S: Final = 0.2
"""Between two looks: how long a rank that waits for a living one may take to learn of a failure elsewhere."""
BEAT_S: Final = 1.0
"""Between two signs of life."""
SILENCE_S: Final = 30.0
"""A rank without a sign of life for so long is taken for stopped; a thread that holds the interpreter for so long is
not a thing that happens in a step."""

IDLE: Final = b"idle"


class Watch:
    """Looks after one step of one rank."""

    def __init__(
        self,
        board: Board,
        *,
        neighbours: Sequence[int],
        cut: Callable[[], None],
        pending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._board = board
        self._cut = cut
        self._pending = pending
        self._left = threading.Event()
        self._left_at = 0.0
        self._beats = 0
        self._heard: dict[int, tuple[bytes | None, float]] = {
            each: (None, time.monotonic()) for each in neighbours
        }
        self._thread = threading.Thread(target=self._run, name="dualpipe-watch", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left_at = time.monotonic()
        self._left.set()
        if not self._pending():
            self._thread.join()

    def _run(self) -> None:
        next_beat = time.monotonic() + BEAT_S  # short steps leave no notes
        while not self._left.wait(LOOK_S) or self._pending():
            if self._left.is_set():
                time.sleep(LOOK_S)
            try:
                cause = self._board.failure() or self._overdue()
                if cause is None and time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + BEAT_S
                    self._beat()
                    cause = self._silent()
            except StoreLost:  # its host may have ended well; if not, the links tell
                return
            if cause is not None:
                self._cut()
                return
        self._rest()

    def _beat(self) -> None:
        self._beats += 1
        self._board.put(f"alive/{self._board.rank}", str(self._beats).encode())

    def _rest(self) -> None:
        if self._beats:
            try:
                self._board.put(f"alive/{self._board.rank}", IDLE)
            except StoreLost:
                return

    def _overdue(self) -> Cause | None:
        """Tells of work on a GPU that does not end after its step."""
        limit_s = self._board.timeout_s
        if not self._left.is_set() or time.monotonic() - self._left_at < limit_s:
            return None
        what = f"the work of a step on this GPU has not ended {limit_s:g} s after it: another rank is stuck"
        return self._board.fail(Cause(self._board.rank, "", what))

    def _silent(self) -> Cause | None:
        """Tells of a neighbour that has begun to give signs of life and stopped."""
        limit_s = min(SILENCE_S, self._board.timeout_s)
        now = time.monotonic()
        for rank, (last, since) in self._heard.items():
            note = self._board.look(f"alive/{rank}")
            if note != last:
                self._heard[rank] = (note, now)
            elif note is not None and note != IDLE and now - since > limit_s:
                what = f"no sign of life from pipeline rank {rank} for {limit_s:g} s: stopped, or its machine is lost"
                return self._board.fail(Cause(self._board.rank, "", what))
        return None


__all__ = ["Watch"]
