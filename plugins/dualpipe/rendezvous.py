"""Small values that the ranks of a pipeline share through the job's store, beside the links.

What a rank's step looks like, what crosses a boundary, why a step failed, that a rank is alive. A `Rendezvous` lives
for one generation; after a failure the ranks begin another, so that old values are not read as new ones.

Invariant: nothing here blocks inside the store. `wait` polls, and looks for a failure each time.
"""

import time
from collections.abc import Iterable
from typing import Final

from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed hides them from type checkers

from .failure import Cause, PipelineError

POLL_S: Final = 0.0002
"""First pause between two polls: about what one costs."""
POLL_S_MAX: Final = 0.02
"""Last pause: a rank that waits for a slow one should not load the store."""

FAILURE: Final = "failure"


class StoreLost(Exception):
    """The store does not answer: the process that hosts it has gone."""


class Rendezvous:
    """The values of one generation of one pipeline. Every method raises StoreLost."""

    def __init__(self, store: Store, *, rank: int, timeout_s: float) -> None:
        self._store = store
        self.rank = rank
        self.timeout_s = timeout_s

    def put(self, key: str, value: bytes) -> None:
        """Publish a value."""
        try:
            self._store.set(key, value.decode())
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def get(self, key: str) -> bytes | None:
        """A value if it is there."""
        try:
            return self._store.get(key) if self._store.check([key]) else None
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def wait(self, key: str, *, what: str) -> bytes:
        """A value that another rank publishes, now or later.

        Raises: PipelineError if a failure is reported meanwhile; TimeoutError, with `what`.
        """
        deadline, pause = time.monotonic() + self.timeout_s, POLL_S
        while True:
            value = self.get(key)
            if value is not None:
                return value
            self.check()
            if time.monotonic() > deadline:
                raise TimeoutError(f"waited {self.timeout_s:g} s for {what}")
            time.sleep(pause)
            pause = min(2 * pause, POLL_S_MAX)

    def delete(self, keys: Iterable[str]) -> None:
        """Remove values that no rank will read again."""
        try:
            for key in keys:
                self._store.delete_key(key)
        except RuntimeError as error:
            raise StoreLost(str(error)) from error

    def report(self, cause: Cause) -> Cause:
        """Report a failure to all ranks. Returns the first one reported, which may be another."""
        try:
            first: bytes = self._store.compare_set(FAILURE, "", cause.encode().decode())
        except RuntimeError as error:
            raise StoreLost(str(error)) from error
        return Cause.decode(first)

    def failure(self) -> Cause | None:
        """The failure of this generation, if one was reported."""
        value = self.get(FAILURE)
        return None if value is None else Cause.decode(value)

    def check(self) -> None:
        """Raises: PipelineError if a failure was reported."""
        failure = self.failure()
        if failure is not None:
            raise PipelineError(failure)

    def prefixed(self, prefix: str) -> Store:
        """A part of the store for other keys."""
        return PrefixStore(prefix, self._store)


__all__ = ["Rendezvous", "StoreLost"]
