"""Ids that are never used twice, not even after power loss.

A range is reserved in the store and the store synced to disk before the first id of it is handed out. A
restart begins with a new range: at most `RANGE` ids are lost, of 2^63.
"""

from typing import Final

from ..clock import Clock
from ..kv import Durability, Engine, Transaction, run
from . import schema
from .retry import RetryAfterRefill

RANGE: Final = 65_536  # at 10,000 creates a second one sync in six seconds
LOW: Final = RANGE // 2  # when the next range is fetched in the background
assert 0 < LOW < RANGE, "a range is not low as soon as it is reserved"

INODES: Final = b"i"
CONTENTS: Final = b"c"
FIRST_ID: Final = 16  # below are ids with a meaning: 0 none, 1 the root


class Allocator:
    """Hands out ids of one kind."""

    def __init__(self, engine: Engine, kind: bytes, clock: Clock) -> None:
        self._engine = engine
        self._kind = kind
        self._clock = clock
        self._next = 0
        self._end = 0
        self._reserve: list[tuple[int, int]] = []
        self._floor = FIRST_ID  # no smaller id is handed out

    @property
    def is_low(self) -> bool:
        """Whether it is time to `refill`."""
        return not self._reserve and self._end - self._next < LOW

    @property
    def upcoming(self) -> int:
        """No id that is handed out from now on is smaller."""
        return max(self._next, self._floor)

    def take(self) -> int:
        """Return a new id. Raises: RetryAfterRefill."""
        if self._next == self._end:
            if not self._reserve:
                raise RetryAfterRefill(self.refill)
            self._next, self._end = self._reserve.pop(0)
        number = self._next
        self._next += 1
        assert self._floor <= number < self._end, "ids are handed out of reserved ranges, above the floor"
        return number

    def take_range(self, count: int) -> int:
        """Return the first of `count` consecutive new ids. Raises: RetryAfterRefill."""
        assert 0 < count <= LOW, "a refill brings enough"
        if self._end - self._next < count:
            if not self._reserve:
                raise RetryAfterRefill(self.refill)
            self._next, self._end = self._reserve.pop(0)  # a few ids are lost
        first = self.take()
        self._next = first + count
        assert self._next <= self._end, "ids are handed out of reserved ranges"
        return first

    async def skip_past(self, number: int) -> None:
        """Hand out no id up to `number`, not after a restart either."""

        def advance(txn: Transaction) -> bool:
            key = schema.allocator_key(self._kind)
            value = txn.get(key)
            if value is not None and schema.decode_next(value) > number:
                return False
            txn.put(key, schema.encode_next(number + 1))
            return True

        assert number >= 0, "ids are positive"
        self._floor = max(self._floor, number + 1)
        self._reserve = [(max(first, self._floor), end) for first, end in self._reserve if end > self._floor]
        self._next = min(max(self._next, self._floor), self._end)
        await run(self._engine, advance, durability=Durability.SYNC, clock=self._clock)

    async def refill(self) -> None:
        """Reserve another range, if this is still low."""
        if not self.is_low:
            return

        def reserve(txn: Transaction) -> int:
            key = schema.allocator_key(self._kind)
            value = txn.get(key)
            first = FIRST_ID if value is None else schema.decode_next(value)
            txn.put(key, schema.encode_next(first + RANGE))
            return first

        # A reservation that is run twice, after an unknown outcome, skips a range and does no harm.
        reserved = await run(self._engine, reserve, durability=Durability.SYNC, clock=self._clock)
        end = reserved + RANGE  # two that wait for the disk at one time may end in either order
        assert all(
            end <= first or last <= reserved for first, last in ((self._next, self._end), *self._reserve)
        ), "no id is reserved twice"
        first = min(max(reserved, self._floor), end)
        if self._next == self._end:
            self._next, self._end = first, end
        elif first < end:
            self._reserve.append((first, end))


__all__ = ["CONTENTS", "FIRST_ID", "INODES", "LOW", "RANGE", "Allocator"]
