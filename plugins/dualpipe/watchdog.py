"""A thread that supervises a step while the main thread waits inside it.

It ends the main thread's waits when a failure is reported, and reports one itself when a neighbour's heartbeats stop or
work on a GPU does not end. It lives only while a step runs, on a GPU until the step's work there has ended.
"""

import threading
import time
from collections.abc import Callable, Sequence
from typing import Final, Self

from .failure import Cause
from .rendezvous import Rendezvous, StoreLost

POLL_S: Final = 0.2
"""How long a rank that waits for a living one may take to learn of a failure elsewhere."""
HEARTBEAT_S: Final = 1.0
SILENCE_S: Final = 30.0
"""A rank without a heartbeat for so long is declared failed; a thread that holds the interpreter for so long is not a
thing that happens in a step."""

IDLE: Final = b"idle"


class Watchdog:
    """Supervise one step of one rank."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        *,
        neighbours: Sequence[int],
        cut: Callable[[], None],
        pending: Callable[[], bool] = lambda: False,
    ) -> None:
        self._rendezvous = rendezvous
        self._cut = cut
        self._pending = pending
        self._left = threading.Event()
        self._left_at = 0.0
        self._beats = 0
        self._heard: dict[int, tuple[bytes | None, float]] = {
            each: (None, time.monotonic()) for each in neighbours
        }
        self._thread = threading.Thread(target=self._run, name="dualpipe-watchdog", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._left_at = time.monotonic()
        self._left.set()
        if not self._pending():
            self._thread.join()

    def _run(self) -> None:
        next_beat = time.monotonic() + HEARTBEAT_S  # short steps publish none
        while not self._left.wait(POLL_S) or self._pending():
            if self._left.is_set():
                time.sleep(POLL_S)
            try:
                cause = self._rendezvous.failure() or self._overdue()
                if cause is None and time.monotonic() >= next_beat:
                    next_beat = time.monotonic() + HEARTBEAT_S
                    self._beats += 1
                    self._rendezvous.put(self._key(self._rendezvous.rank), str(self._beats).encode())
                    cause = self._silent()
            except StoreLost:  # its host may have ended well; if not, the broken links say so
                return
            if cause is not None:
                self._cut()
                return
        if self._beats:
            try:
                self._rendezvous.put(self._key(self._rendezvous.rank), IDLE)
            except StoreLost:
                return

    @staticmethod
    def _key(rank: int) -> str:
        return f"alive/{rank}"

    def _overdue(self) -> Cause | None:
        """Report work on a GPU that does not end after its step."""
        limit_s = self._rendezvous.timeout_s
        if not self._left.is_set() or time.monotonic() - self._left_at < limit_s:
            return None
        what = f"the work of a step on this GPU has not ended {limit_s:g} s after it: another rank is stuck"
        return self._rendezvous.report(Cause(self._rendezvous.rank, "", what))

    def _silent(self) -> Cause | None:
        """Report a neighbour whose heartbeats have begun and stopped."""
        limit_s = min(SILENCE_S, self._rendezvous.timeout_s)
        now = time.monotonic()
        for rank, (last, since) in self._heard.items():
            value = self._rendezvous.get(self._key(rank))
            if value != last:
                self._heard[rank] = (value, now)
            elif value is not None and value != IDLE and now - since > limit_s:
                what = f"no heartbeat from pipeline rank {rank} for {limit_s:g} s: stopped, or its machine is lost"
                return self._rendezvous.report(Cause(self._rendezvous.rank, "", what))
        return None


__all__ = ["Watchdog"]
