"""What was written lately: the memory of optimistic concurrency control.

A transaction reads at one version and commits at a later one. It may commit only if no other transaction wrote, in
between, anything that it read. `ConflictWindow` remembers write sets, of the last `COMMITS_MAX` commits at most, so it
can answer that for every transaction that began inside the window; an older one must begin again. The engine records a
commit only while a transaction is open that began before it, and skips all others: no transaction could ask.

    W1  versions grow strictly from commit to commit
    W2  every write with version > floor is remembered; nothing is known of writes at or before the floor
    W3  memory is bounded by COMMITS_MAX write sets
"""

from collections import deque
from collections.abc import Collection, Sequence
from typing import Final, NamedTuple

# Three seconds of the fastest writer measured here (10,000 commits/s): longer than a transaction should live.
COMMITS_MAX: Final = 32_768


class KeyRange(NamedTuple):
    """The keys k with begin <= k < end."""

    begin: bytes
    end: bytes

    def holds(self, key: bytes) -> bool:
        return self.begin <= key < self.end

    def meets(self, other: "KeyRange") -> bool:
        return self.begin < other.end and other.begin < self.end


class WriteSet(NamedTuple):
    """What one commit changed."""

    version: int
    keys: Collection[bytes]
    ranges: Sequence[KeyRange]


class ConflictWindow:
    """The write sets of the most recent commits."""

    def __init__(self, *, version: int, commits_max: int = COMMITS_MAX) -> None:
        assert commits_max > 0, "a window without commits would refuse every transaction"
        self._commits_max = commits_max
        self._commits: deque[WriteSet] = deque()
        self._written_at: dict[bytes, int] = {}
        self._ranges: deque[tuple[int, KeyRange]] = deque()
        self.floor = version

    def record(self, written: WriteSet) -> WriteSet | None:
        """Remember a commit; return the one that fell out of the window, if any."""
        assert not self._commits or written.version > self._commits[-1].version, "W1: versions must grow"
        assert written.version > self.floor, "W2: what is remembered was written after the floor"
        self._commits.append(written)
        for key in written.keys:
            self._written_at[key] = written.version
        for cleared in written.ranges:
            self._ranges.append((written.version, cleared))
        oldest = self._forget_oldest() if len(self._commits) > self._commits_max else None
        assert len(self._commits) <= self._commits_max, "W3: memory is bounded"
        return oldest

    def conflicts(self, read_version: int, keys: Collection[bytes], ranges: Sequence[KeyRange]) -> bool:
        """True if anything in `keys` or `ranges` was written after `read_version`."""
        assert read_version >= self.floor, "W2: ask `is_too_old` first"
        written_at = self._written_at
        for key in keys:
            if written_at.get(key, 0) > read_version:
                return True
        if self._ranges and self._ranges[-1][0] > read_version and self._cleared(read_version, keys, ranges):
            return True
        return bool(ranges) and self._phantom(read_version, ranges)

    def skip(self, version: int) -> None:
        """Note a commit before which no open transaction began: the window, which is empty, begins after it."""
        assert not self._commits, "W2: forget what is remembered first"
        assert version > self.floor, "W1: versions must grow"
        self.floor = version

    def __bool__(self) -> bool:
        """Return whether anything is remembered."""
        return bool(self._commits)

    def is_too_old(self, read_version: int) -> bool:
        """True if the window no longer knows all that was written after `read_version`."""
        return read_version < self.floor

    def clear(self) -> Sequence[WriteSet]:
        """Forget every commit, as if each had fallen out of the window, and give them back, oldest first."""
        forgotten = [self._forget_oldest() for _ in range(len(self._commits))]
        assert not self._written_at, "W3: nothing is remembered of what is forgotten"
        return forgotten

    def _cleared(self, read_version: int, keys: Collection[bytes], ranges: Sequence[KeyRange]) -> bool:
        for version, cleared in reversed(self._ranges):
            if version <= read_version:
                return False
            if any(cleared.holds(key) for key in keys) or any(cleared.meets(read) for read in ranges):
                return True
        return False

    def _phantom(self, read_version: int, ranges: Sequence[KeyRange]) -> bool:
        for written in reversed(self._commits):
            if written.version <= read_version:
                return False
            for begin, end in ranges:
                for key in written.keys:
                    if begin <= key < end:
                        return True
        return False

    def _forget_oldest(self) -> WriteSet:
        oldest = self._commits.popleft()
        assert oldest.version > self.floor, "W1: versions must grow"
        self.floor = oldest.version
        for key in oldest.keys:
            if self._written_at.get(key) == oldest.version:
                del self._written_at[key]
        while self._ranges and self._ranges[0][0] <= self.floor:
            self._ranges.popleft()
        return oldest


__all__ = ["COMMITS_MAX", "ConflictWindow", "KeyRange", "WriteSet"]
