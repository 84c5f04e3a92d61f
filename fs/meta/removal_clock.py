"""The clock that removed inodes and contents age by.

What was removed waits `gc_delay_ms` before it is collected. The wall clock cannot measure that: it is set forwards
(the delay would be void) and back (a removal dated in the future would never be due). The boot clock starts again at
every boot. So the store has a clock of its own, in milliseconds, which runs while a service runs over the store:

    A1  it never goes back, neither within a process nor from one process to the next, so removals sort by age
    A2  within a process it runs like the boot clock; what passes between two processes is not counted
    A3  a process skips what the one before had reserved: moments of two processes have an order, but no distance

An inode's `change` is counted from there as well. After a loss of power an inode is older than clients may know it, and
the numbers of changes that were lost must not come again, for others: a client would take them for those that it knows.
So the first process of each boot counts on from a number above all that any process before it can have given. Where
another store gave numbers last (a dump was loaded, an older copy is used), it skips `SKIPPED_MS` besides.

A3 is why the collector removes nothing before it has itself run for `gc_delay_ms`: then all that an earlier process
dated is older than that, and what this process dated has its true age.
"""

from typing import Final

from ..clock import Clock
from ..kv import Durability, Engine, Transaction, run
from . import schema

RESERVED_MS: Final = (
    24 * 3_600_000
)  # one synced commit in half a day; a restart skips at most this much, of 2^64

CHANGES_PER_MS: Final = 1 << 16  # of one inode: more than a process can carry out
SKIPPED_MS: Final = 1 << 35  # 397 starts of a process after what is known of another state; 8192 times
CHANGE_MAX: Final = 1 << 63  # of a dump that is loaded: as many are left above it
FIRST_MS: Final = 1  # so that there is a moment before each
assert SKIPPED_MS > RESERVED_MS, "more is skipped than a process can have used"
assert SKIPPED_MS * CHANGES_PER_MS < CHANGE_MAX, "what is skipped leaves numbers"

MOMENTS: Final = b"t"  # kinds of the allocator records
CHANGES: Final = b"b"


class RemovalClock:
    """Hands out moments; `start` it before use, and `extend` it from time to time."""

    def __init__(self, engine: Engine, clock: Clock) -> None:
        self._engine = engine
        self._clock = clock
        self._first_ms = 0
        self._end_ms = 0
        self._started_s = 0.0
        # Above every `change` that an inode had in an earlier boot; 0 in the first one over a store.
        self.first_change = 0

    async def start(self) -> None:
        """Reserve moments that no process before this one has used."""
        self._end_ms, self.first_change = await self._reserve()
        self._first_ms = self._end_ms - RESERVED_MS
        assert self._first_ms >= FIRST_MS, "there is a moment before each"
        self._started_s = self._clock.monotonic()

    async def extend(self) -> None:
        """Reserve more, if half of it has passed."""
        if self._end_ms - self.now_ms() < RESERVED_MS // 2:
            end_ms, _ = await self._reserve()
            assert end_ms > self._end_ms, "A1: reservations grow"
            self._end_ms = end_ms

    def now_ms(self) -> int:
        """Return the moment of a removal. It stands still when all that was reserved has passed: the delay grows."""
        assert self._end_ms, "the clock was not started"
        run_ms = int((self._clock.monotonic() - self._started_s) * 1000)
        assert run_ms >= 0, "A1: the clock never goes back"
        return min(self._first_ms + run_ms, self._end_ms - 1)

    def age_ms(self) -> int:
        """Return how long this process has run the clock."""
        return self.now_ms() - self._first_ms

    def next_change(self, change: int) -> int:
        """Return the `change` of an inode after one more: above all that were given out in an earlier boot."""
        return max(change, self.first_change) + 1

    async def skip_changes(self, known: int) -> None:
        """Give from now on only numbers of changes that are above `known`, and as `skip_changes` says."""

        def skip(txn: Transaction) -> tuple[int, int]:
            skip_changes(txn, known)
            return self._reserve_once(txn)

        reserved = await run(self._engine, skip, durability=Durability.SYNC, clock=self._clock)
        self._end_ms, self.first_change = reserved

    async def _reserve(self) -> tuple[int, int]:
        # A reservation that is run twice, after an unknown outcome, skips a day and does no harm.
        return await run(self._engine, self._reserve_once, durability=Durability.SYNC, clock=self._clock)

    def _reserve_once(self, txn: Transaction) -> tuple[int, int]:
        """Return the end of what is reserved, and `first_change`."""
        txn.may_use_reserve = True
        first_ms = _unreserved_ms(txn)
        txn.put(schema.allocator_key(MOMENTS), schema.encode_next(first_ms + RESERVED_MS))
        return first_ms + RESERVED_MS, self._first_change(txn, first_ms)

    def _first_change(self, txn: Transaction, first_ms: int) -> int:
        """Return what this boot has, or has from now on."""
        key = schema.allocator_key(CHANGES)
        value, boot_id = txn.get(key), self._clock.boot_id()
        if value is not None:
            known, known_boot_id = schema.decode_first_change(value)
            if known_boot_id == boot_id:
                return known
        first = (first_ms - FIRST_MS) * CHANGES_PER_MS
        txn.put(key, schema.encode_first_change(first, boot_id))
        return first


def skip_changes(txn: Transaction, known: int = 0) -> None:
    """The next process, of whatever boot, begins `SKIPPED_MS` beyond `known` and beyond what this store gave."""
    first_ms = max(_unreserved_ms(txn), FIRST_MS + known // CHANGES_PER_MS + 1)
    txn.put(schema.allocator_key(MOMENTS), schema.encode_next(first_ms + SKIPPED_MS))
    txn.delete(schema.allocator_key(CHANGES))


def _unreserved_ms(txn: Transaction) -> int:
    value = txn.get(schema.allocator_key(MOMENTS))
    return FIRST_MS if value is None else schema.decode_next(value)


__all__ = ["CHANGE_MAX", "RESERVED_MS", "RemovalClock", "skip_changes"]
