"""Records that are damaged, or that `decode` raises for: the policy, its limit, and a list of them.

The numbers are in memory that all workers of a data set share, a row for each, so the training process has all of them.
"""

import logging
import operator
from collections.abc import Callable
from typing import Any, Final, Literal, NamedTuple, Self

import numpy as np
import torch
from torch.utils.data import get_worker_info

from ...errors import CorruptData
from .records import Records

ROWS: Final = 64  # workers; those beyond share rows
KEPT_MAX: Final = 1000  # numbers of a row, and the most that `bad_records_max` may be

logger = logging.getLogger(__name__)


class BadRecord(NamedTuple):
    """A record that was left out: its number in the data set, its place, and why."""

    number: int
    file: str
    record: str
    start: int
    end: int
    reason: str

    @property
    def where(self) -> str:
        """The place, for messages."""
        return f"{self.record} of {self.file!r}, bytes {self.start} to {self.end} (sample {self.number})"

    @classmethod
    def of(cls, records: Records, within: int, number: int, reason: str) -> Self:
        """Describe record `within` of `records`, which is sample `number` of a data set."""
        extents = records.locate(np.array([within]))
        file = records.files[int(extents.files[0])].path
        start, length = int(extents.offsets[0]), int(extents.lengths[0])
        return cls(number, file, records.name(within), start, start + length, reason)


OnError = Literal["raise", "skip"] | Callable[[BadRecord], Any]


class BadRecords:
    """The policy of a data set, and the numbers of its bad records."""

    def __init__(self, on_error: OnError, most: int) -> None:
        if not callable(on_error) and on_error not in {"raise", "skip"}:
            raise ValueError(f'on_error is "raise", "skip" or a function, not {on_error!r}')
        self.on_error, self.most = on_error, operator.index(most)
        if not 0 <= self.most <= KEPT_MAX:
            raise ValueError(f"bad_records_max is 0 to {KEPT_MAX}, not {most}")
        self._table: torch.Tensor | None = None
        if self.skips:  # shared memory is scarce in containers, and "raise" counts none
            table = torch.full((ROWS + 1, KEPT_MAX + 1), -1, dtype=torch.int64)
            self._table = table.share_memory_()  # type: ignore[no-untyped-call]

    @property
    def skips(self) -> bool:
        return self.on_error != "raise"

    def fresh(self) -> "BadRecords":
        """Make the same policy, without bad records."""
        return BadRecords(self.on_error, self.most)

    def numbers(self) -> list[int]:
        """List those of all workers, each once."""
        if self._table is None:
            return []
        found: list[int] = np.unique(self._table.numpy())[1:].tolist()
        return found

    def add(self, bad: BadRecord, cause: Exception) -> None:
        """Count one. Raises: CorruptData above the limit, from `cause`; what `on_error` raises."""
        assert self._table is not None, "only a policy that skips counts"
        if bad.number not in self.numbers():
            info = get_worker_info()
            row = self._table[0 if info is None else 1 + info.id % ROWS]
            row[int((row >= 0).sum())] = bad.number
            logger.warning("record skipped: %s: %s; the next one takes its place", bad.where, bad.reason)
        if callable(self.on_error):
            self.on_error(bad)
        if len(self.numbers()) > self.most:
            raise CorruptData(
                f"{len(self.numbers())} bad records are more than bad_records_max={self.most}; the last is "
                f"{bad.where}: {bad.reason}",
                path=bad.file,
            ) from cause


__all__ = ["BadRecord", "BadRecords", "OnError"]
