"""Which chunks of a returning replica differ from its predecessor's: pure, page by page.

The successor's records come first, then the predecessor's for the same range of chunks. A chunk is written at the
predecessor before it is forwarded. What both have in equal states, with nothing pending, need not travel. Everything
else is sent again: the predecessor's committed state is the truth, and sending it twice is harmless, because it is read
under the chunk's own lock.

`conflicts` are states that no history of the chain explains: the predecessor lost what it had not synced when its
power went, or an old disk was put back. A newer state is never overwritten by an older one, so the successor must
set the chunk aside first; it may be the only copy of something.

A record that cannot be read shows nothing committed. At the successor, what the predecessor has takes its place. At the
predecessor it says nothing about the chunk: what the successor has committed stays (`kept`), and where it has nothing
the chunk must become unreadable there as well (`lost`), because a missing chunk is read as zeros.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TypeAlias

Name: TypeAlias = tuple[int, int]  # (content, index), in the order of listings


@dataclass(frozen=True, slots=True)
class Record:
    """One replica of one chunk: the fields of `ChunkRecord`. `version` 0: nothing was ever committed."""

    content: int
    index: int
    version: int
    chain_version: int
    length: int
    crc32c: int
    pending: bool
    removed: bool
    pending_version: int

    @property
    def name(self) -> Name:
        """What the chunk is called."""
        return self.content, self.index

    @property
    def is_unreadable(self) -> bool:
        """Whether all that is known of the chunk is that there was one."""
        return self.pending and not self.version and not self.pending_version


@dataclass(frozen=True, slots=True)
class Conflict:
    """The successor holds a committed state, `record`, that it cannot have got from its predecessor."""

    record: Record
    reason: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What to do about one range of chunks: `conflicts` are set aside, then come `removes`, then `transfers`."""

    removes: list[Name] = field(default_factory=list)
    transfers: list[Name] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    kept: list[Name] = field(default_factory=list)
    lost: list[Record] = field(default_factory=list)  # the predecessor's
    equal_count: int = 0
    lengths: dict[Name, int] = field(default_factory=dict)  # of what is transferred, in bytes


def compare(local: Iterable[Record], remote: Iterable[Record]) -> Plan:
    """Return what makes `remote`, the successor's records of a range, equal to `local`, the predecessor's.

    Limits: both sorted by name without repetitions. Cost: linear.
    """
    removes: list[Name] = []
    transfers: dict[Name, int] = {}
    conflicts: list[Conflict] = []
    kept: list[Name] = []
    equal = 0
    mine = {record.name: record for record in local}
    lost = {name: record for name, record in mine.items() if record.is_unreadable}
    for theirs in remote:
        ours = mine.pop(theirs.name, None)
        if ours is not None and ours.is_unreadable:
            if theirs.version:
                kept.append(theirs.name)
            if theirs.version or theirs.is_unreadable:
                del lost[theirs.name]
            continue
        reason = _conflict(ours, theirs)
        if reason:
            conflicts.append(Conflict(theirs, reason))
        if ours is not None and _state(ours) == _state(theirs) and not theirs.pending and not ours.pending:
            equal += 1
        elif ours is not None:
            transfers[theirs.name] = ours.length
        elif not reason:
            removes.append(theirs.name)
    # Ours may be pending and yet not on its way to the successor: decided before we knew of it, and just being
    # committed. So what is pending on either side is sent, under the chunk's lock, once it is committed (R8).
    transfers |= {name: record.length for name, record in mine.items() if name not in lost}
    assert transfers.keys().isdisjoint(lost), "V5: a chunk that cannot be read is not sent"
    assert transfers.keys().isdisjoint(removes), "a chunk is sent or removed, not both"
    return Plan(removes, sorted(transfers), conflicts, kept, list(lost.values()), equal, transfers)


def _state(record: Record) -> tuple[int, int, bool, int, int]:
    content = (0, 0) if record.removed else (record.length, record.crc32c)
    return record.chain_version, record.version, record.removed, *content


def _conflict(ours: Record | None, theirs: Record) -> str:
    """Return why the successor's committed state should not exist; empty if there is no such reason."""
    if not theirs.version:
        return ""
    if ours is None:
        return "" if theirs.removed else "its predecessor has no such chunk"
    our_stamp = (ours.chain_version, ours.version)
    their_stamp = (theirs.chain_version, theirs.version)
    if our_stamp == their_stamp:
        return "" if _state(ours) == _state(theirs) else "two contents under one stamp"
    # The successor commits first, but never more than its predecessor has pending.
    under_way = ours.pending and theirs.version <= ours.pending_version
    return "the successor is ahead of its predecessor" if their_stamp > our_stamp and not under_way else ""


__all__ = ["Conflict", "Name", "Plan", "Record", "compare"]
