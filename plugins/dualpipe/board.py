"""Where the ranks of a pipeline leave notes for one another: a store that does not need the links.

Notes are small: what a rank's step looks like, what crosses a border, why a step failed, that a rank is alive. A
`Board` lives for one generation; after a failure the ranks begin another, so that old notes are not taken for new ones.

Invariant: nothing here blocks inside the store. `take` asks again and again, and looks for a failure each time.
"""

import time
from collections.abc import Iterable
from typing import Final

from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed hides them from type checkers

from .failure import Cause, PipelineError

ASK_S: Final = 0.0002
"""First pause between two questions to the store: about what one question costs."""
ASK_S_MAX: Final = 0.02
"""Last pause: a rank that waits for a slow one should not load the store."""

FAILURE: Final = "failure"


class StoreLost(Exception):
    """The store does not answer: the process that hosts it has gone."""


class Board:
    """Notes of one generation of one pipeline."""

    def __init__(self, store: Store, *, rank: int, timeout_s: float) -> None:
        self._store = store
        self.rank = rank
        self.timeout_s = timeout_s

    def put(self, key: str, value: bytes) -> None:
        """Leave a note."""
        try:
            self._store.set(key, value.decode())
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def look(self, key: str) -> bytes | None:
        """A note if it is there."""
        try:
            return self._store.get(key) if self._store.check([key]) else None
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def take(self, key: str, *, what: str) -> bytes:
        """A note that another rank leaves, now or later.

        Raises: PipelineError if a failure is told meanwhile, or the note does not come in time.
        """
        deadline, pause = time.monotonic() + self.timeout_s, ASK_S
        while True:
            note = self.look(key)
            if note is not None:
                return note
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self.timeout_s:g} s for {what}")
            time.sleep(pause)
            pause = min(2 * pause, ASK_S_MAX)

    def drop(self, keys: Iterable[str]) -> None:
        """Take notes away that nobody will read again."""
        try:
            for key in keys:
                self._store.delete_key(key)
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def fail(self, cause: Cause) -> Cause:
        """Tell a failure to all. Returns the first one told, which may be another."""
        try:
            first: bytes = self._store.compare_set(FAILURE, "", cause.encode().decode())
        except RuntimeError as error:
            raise StoreLost(str(error)) from error
        return Cause.decode(first)

    def failure(self) -> Cause | None:
        """The failure of this generation, if one was told."""
        note = self.look(FAILURE)
        return None if note is None else Cause.decode(note)

    def check(self) -> None:
        """Raises: PipelineError if a failure was told."""
        told = self.failure()
        if told is not None:
            raise PipelineError(told)

    def below(self, prefix: str) -> Store:
        """A part of the store for somebody else's notes."""
        return PrefixStore(prefix, self._store)


__all__ = ["Board", "StoreLost"]
