"""When commits were made: a record in the log each second in which something was committed.

The moment is that of the primary's wall clock, in the store itself: what the log has before it was committed before it.

    W1  moments in a log never decrease: while a clock is behind that of a primary before, all commits have the same one
    W2  nothing is written while nothing is committed; the last commits before that have a moment within `INTERVAL_S`
"""

import logging
from typing import Final

from ..clock import Clock
from ..errors import Error
from ..kv import Engine
from . import schema
from .context import NS_PER_MS

log: Final = logging.getLogger("luciola.meta")

INTERVAL_S: Final = 1.0
KEY: Final = schema.allocator_key(b"w")


class Moments:
    """Writes the moments of one term."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._version = -1  # of the last moment

    async def run(self) -> None:
        """Work until cancelled."""
        while True:
            try:
                self.write()
            except Error as error:  # the log is full, or the term ends
                log.info("no moment is written: %s", error)
            await self._clock.sleep(INTERVAL_S)

    def write(self) -> None:
        """Commit the present moment if something was committed since the last one. Raises: what a commit raises."""
        if self._engine.version == self._version:
            return
        transaction = self._engine.begin()
        try:
            known = transaction.snapshot_get(KEY)
            now_ms = max(
                self._clock.unix_ns() // NS_PER_MS, 0 if known is None else schema.decode_next(known)
            )
            transaction.may_use_reserve = True
            transaction.put(KEY, schema.encode_next(now_ms))
            self._version = transaction.commit()
        finally:
            transaction.cancel()


__all__ = ["INTERVAL_S", "KEY", "Moments"]
