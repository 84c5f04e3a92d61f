"""The one way to run an operation: try, and try again when that is what the outcome asks for."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

from ..clock import Clock, SystemClock
from ..errors import Conflict, MaybeCommitted
from .engine import Durability, Engine, Transaction

T = TypeVar("T")


@dataclass(frozen=True)
class Retry:
    """How often and how long one operation is tried."""

    tries: int = 10  # conflicts among so many are a hot key, which the caller should hear of
    first_s: float = 0.001  # a conflicting transaction is over within a millisecond
    max_s: float = 1.0
    total_s: float = 5.0  # callers time out and send again


DEFAULT_RETRY: Final = Retry()
_SYSTEM_CLOCK: Final = SystemClock()


async def run(
    engine: Engine,
    operation: Callable[[Transaction], T],
    *,
    durability: Durability = Durability.WRITE,
    retry: Retry = DEFAULT_RETRY,
    clock: Clock = _SYSTEM_CLOCK,
) -> T:
    """Return what `operation` returns, once its transaction is committed, and stored with all that it has seen.

    `operation` may run several times, also after a run that did commit (`MaybeCommitted`): it recognises its
    own work by a request id, or is idempotent by nature. It must not wait for anything.
    Raises: whatever `operation` raises; Conflict or MaybeCommitted, the last one, when the tries are used up.
    """
    assert retry.tries > 0, "an operation is tried at least once"
    begun_s: float | None = None
    failed = 0
    while True:
        transaction = engine.begin()
        try:
            result = operation(transaction)
            transaction.commit()
        except (Conflict, MaybeCommitted):
            failed += 1
            now_s = clock.monotonic()
            begun_s = now_s if begun_s is None else begun_s
            if failed >= retry.tries or now_s - begun_s > retry.total_s:
                raise
        else:
            if durability is Durability.SYNC:
                await engine.sync()
            elif engine.commits_later and (unstored := engine.unstored) is not None:
                await unstored.stored()
            return result
        finally:
            transaction.cancel()
        longest_s = min(retry.max_s, retry.first_s * 2**failed)
        await clock.sleep(random.uniform(longest_s / 2, longest_s))  # noqa: S311, spreads rivals, guards nothing


__all__ = ["DEFAULT_RETRY", "Retry", "run"]
