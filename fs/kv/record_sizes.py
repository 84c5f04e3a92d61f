"""How many bytes the last records of a log have, as counted by who carried them out."""

from collections import deque
from typing import Final

from .log.ordered_log import RECORD_BYTES_MAX

COUNTED_MAX: Final = 1 << 17  # records: more than two checkpoints are apart


class RecordSizes:
    """Sizes of the records after `index`, as far as they were counted."""

    def __init__(self, index: int) -> None:
        self._last = index
        self._totals = deque(
            [0], maxlen=COUNTED_MAX + 1
        )  # bytes up to each record, the last one that of `_last`

    def add(self, size_bytes: int) -> None:
        """Count the next record."""
        assert 0 <= size_bytes <= RECORD_BYTES_MAX, "a record has a largest size"
        self._totals.append(self._totals[-1] + size_bytes)
        self._last += 1

    def at_most(self, after: int, upto: int) -> int:
        """Return a limit for the records after the index `after`, up to `upto`: others are as large as can be."""
        first, last = max(after, self._first), min(upto, self._last)
        counted = max(0, last - first)
        return self.at_least(after, upto) + (max(0, upto - after) - counted) * RECORD_BYTES_MAX

    def at_least(self, after: int, upto: int) -> int:
        """Return how many bytes those have that were counted."""
        first, last = max(after, self._first), min(upto, self._last)
        return self._totals[last - self._first] - self._totals[first - self._first] if first < last else 0

    @property
    def _first(self) -> int:
        """After which index sizes are known."""
        return self._last - len(self._totals) + 1


__all__ = ["COUNTED_MAX", "RecordSizes"]
