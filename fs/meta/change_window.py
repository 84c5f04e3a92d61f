"""The newest changes of a log that a store follows, and the names that inodes had before each of them.

    W1  the window ends where the store is: a record is added in the moment in which the store has carried it out
    W2  `name_before` says what a name was when a change was made, however far the store has come since: the first move
        after that change says what was moved from, and where none follows, the store says it
    W3  the window is bounded; it begins later, and never has a gap

A window that is not long enough is extended backwards with records that the log still keeps.
"""

from collections import deque
from collections.abc import Iterator, Sequence
from typing import Final, NamedTuple

from ..errors import CorruptData
from ..kv.log import Position, Record
from ..kv.record import Operation
from .changes import RESET, Change, Name, changes_of

CHANGES_MAX: Final = 65_536  # about 30 MB of memory; the backlog of a watcher
RECORDS_MAX: Final = 65_536  # also of records without changes


class Entry(NamedTuple):
    """One record: its changes, what it follows, and where it ends."""

    after: Position
    position: Position
    changes: Sequence[Change]


class Move(NamedTuple):
    """An inode lost this name with change `number` of `record`."""

    record: int
    number: int
    name: Name


class Window:
    """See the module. It begins empty, at the position of the store."""

    def __init__(self, end: Position) -> None:
        self.end = end
        self._entries: deque[Entry] = deque()
        self._moves: dict[int, deque[Move]] = {}
        self._count = 0

    @property
    def begin(self) -> Position:
        """The position of the oldest record's predecessor."""
        return self._entries[0].after if self._entries else self.end

    @property
    def count(self) -> int:
        """How many changes it has."""
        return self._count

    @property
    def is_full(self) -> bool:
        return self._count > CHANGES_MAX or len(self._entries) > RECORDS_MAX

    def has(self, position: Position) -> bool:
        """Return whether what follows `position` is here; one with another digest is of another log."""
        if not self.begin.index <= position.index <= self.end.index:
            return False
        if position.index == self.end.index:
            return position == self.end
        return self.entry_after(position).after == position

    def entry_after(self, position: Position) -> Entry:
        """Return the record that follows `position`, which is in the window."""
        assert self.begin.index <= position.index < self.end.index, "the window has the next record"
        return self._entries[position.index - self.begin.index]

    def append(self, entry: Entry) -> None:
        """The store has carried out the record of `entry` (W1)."""
        assert entry.after == self.end, "W3: no record is missing"
        self._entries.append(entry)
        self.end = entry.position
        self._count += len(entry.changes)
        for inode, move in _moves_of(entry):
            self._moves.setdefault(inode, deque()).append(move)
        while self.is_full:
            self._drop_first()

    def prepend(self, entries: Sequence[Entry]) -> None:
        """Put records before the window, the last of which ends where it begins."""
        for entry in reversed(entries):
            assert entry.position == self.begin, "W3: no record is missing"
            self._entries.appendleft(entry)
            self._count += len(entry.changes)
            for inode, move in reversed(_moves_of(entry)):
                self._moves.setdefault(inode, deque()).appendleft(move)

    def name_before(self, inode: int, index: int, number: int) -> Name | None:
        """Return the name that `inode` had after change `number` of record `index`, if it has moved since (W2)."""
        return next((move.name for move in self._after(inode, index, number)), None)

    def name_with_cookie(self, inode: int, wanted: Name, index: int, number: int) -> Name | None:
        """As `name_before`, of one of the names of a file: that with the directory and the cookie of `wanted`."""
        return next(
            (
                move.name
                for move in self._after(inode, index, number)
                if (move.name.directory, move.name.cookie) == (wanted.directory, wanted.cookie)
            ),
            None,
        )

    def _after(self, inode: int, index: int, number: int) -> Iterator[Move]:
        moves = self._moves.get(inode, ())
        return (move for move in moves if (move.record, move.number) > (index, number))

    def _drop_first(self) -> None:
        entry = self._entries.popleft()
        self._count -= len(entry.changes)
        for inode, move in _moves_of(entry):
            dropped = self._moves[inode].popleft()
            assert dropped == move, "moves are in the order of their records"
            if not self._moves[inode]:
                del self._moves[inode]


def _moves_of(entry: Entry) -> Sequence[tuple[int, Move]]:
    """Return which inodes lose which names."""
    moves = []
    for number, change in enumerate(entry.changes):
        if change.before is not None and change.inode:
            moves.append((change.inode, Move(entry.position.index, number, change.before)))
        if change.at is not None and change.replaced and not change.exchanged:
            moves.append((change.replaced, Move(entry.position.index, number, change.at)))
    return moves


def entry_of(record: Record, operations: Sequence[Operation]) -> Entry:
    """Return what a window keeps of a record."""
    try:
        changes = [change for operation in operations for change in changes_of(operation)]
    except CorruptData:  # who reads the inode gets the error: here it must not end what carries out records
        changes = [Change(RESET)]
    return Entry(record.after, record.position, changes)


__all__ = ["CHANGES_MAX", "RECORDS_MAX", "Entry", "Window", "entry_of"]
