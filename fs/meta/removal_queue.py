"""Records of removals in the store, in the order in which they were made; each is read once.

A store that deletes from the front of a range leaves deleted keys there until it compacts them, and a scan from the
front passes all of them: work that grows with what was removed before. So the queue remembers where it begins.

    Q1  a record below `_begin` is in `_waiting`, or does not exist: removals are dated by `RemovalClock`, so new
        records come after all that were due; what the collector itself stores among those is passed to `add`
    Q2  a record that was taken stays in `_waiting` until it is `done`, and is taken again after `RETRY_S`
"""

from collections.abc import Iterator
from heapq import heappop, heappush
from typing import Final

from ..clock import Clock
from ..kv import Engine, Pair
from . import schema

RETRY_S: Final = 5.0  # a file stays open, or a chain away, for seconds rather than milliseconds
# Records that were taken and are not done: files that are open, contents of chains that are away. While there are so
# many, no new ones are read. Each costs about 200 bytes of memory: 26 MB.
WAITING_MAX: Final = 131_072


class RemovalQueue:
    """The records of one kind, `O` or `G`."""

    def __init__(self, engine: Engine, clock: Clock, kind: bytes) -> None:
        self._engine = engine
        self._clock = clock
        self._kind = kind
        self._begin = kind
        self._waiting: dict[bytes, float] = {}  # key → when it is taken again
        self._retries: list[
            tuple[float, bytes]
        ] = []  # a heap of the same, and of what is done or has been put off

    def take(self, limit: int, *, before_ms: int) -> list[Pair]:
        """Up to `limit` records dated before `before_ms`: some that wait for another attempt, then new ones."""
        assert limit > 1, "half of them are retries"
        now_s = self._clock.monotonic()
        found = list(self._retried(limit // 2, now_s))
        end = schema.removal_begin(self._kind, before_ms)
        wanted = min(limit - len(found), WAITING_MAX - len(self._waiting))
        if self._begin < end and wanted > 0:
            pairs = self._engine.begin().snapshot_range(self._begin, end, limit=wanted)
            assert not pairs or self._begin <= pairs[0][0], "Q1: each record is read once"
            self._begin = end if len(pairs) < wanted else pairs[-1][0] + b"\x00"
            found += [pair for pair in pairs if pair[0] not in self._waiting]
        assert len(found) <= limit, "no more than asked for"
        for key, _ in found:
            self.put_off(key, now_s + RETRY_S)
        return found

    def done(self, key: bytes) -> None:
        """The record is gone from the store."""
        self._waiting.pop(key, None)

    def put_off(self, key: bytes, until_s: float) -> None:
        """The record is taken again at `until_s`."""
        assert key.startswith(self._kind), "the record is of this queue"
        self._waiting[key] = until_s
        heappush(self._retries, (until_s, key))

    def add(self, key: bytes) -> None:
        """The collector has stored a record that is due already."""
        assert key.startswith(self._kind), "the record is of this queue"
        self._begin = min(self._begin, key)

    def __len__(self) -> int:
        return len(self._waiting)

    def _retried(self, limit: int, now_s: float) -> Iterator[Pair]:
        transaction = self._engine.begin()
        while limit and self._retries and self._retries[0][0] <= now_s:
            until_s, key = heappop(self._retries)
            if self._waiting.get(key) != until_s:
                continue
            value = transaction.snapshot_get(key)
            if value is None:  # a spare content that its file has moved to
                del self._waiting[key]
                continue
            limit -= 1
            yield key, value


__all__ = ["RETRY_S", "WAITING_MAX", "RemovalQueue"]
