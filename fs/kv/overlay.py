"""Commits that are visible before they are stored: layers of them over the view of a store.

A layer holds the commits of one group, each write with its version. It only ever gets newer versions, so a view of an
older one reads it while commits are added. A view keeps the layers that were there when it was made: it sees the same
when a layer has been stored, and the store below has it too.
"""

import enum
from bisect import bisect_left, insort
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Final

from ..errors import Conflict
from .conflicts import ConflictWindow, KeyRange
from .engine import Pair, View, merge_pairs


class Unknown(enum.Enum):
    """A layer's answer about a key that none of its commits has written or cleared."""

    UNKNOWN = "unknown"


UNKNOWN: Final = Unknown.UNKNOWN


class Layer:
    """The writes of consecutive commits."""

    __slots__ = ("_cleared", "_ordered", "_written")

    def __init__(self) -> None:
        self._written: dict[bytes, list[tuple[int, bytes | None]]] = {}  # versions ascend
        self._ordered: list[bytes] = []  # the keys of `_written`
        self._cleared: list[tuple[int, KeyRange]] = []

    def add(self, version: int, writes: Mapping[bytes, bytes | None], cleared: Sequence[KeyRange]) -> None:
        """Take in a commit, whose version is higher than any before."""
        self._cleared.extend((version, each) for each in cleared)
        for key, value in writes.items():
            versions = self._written.get(key)
            if versions is None:
                versions = self._written[key] = []
                insort(self._ordered, key)
            assert not versions or versions[-1][0] < version, "versions grow from commit to commit"
            versions.append((version, value))

    def find(self, key: bytes, version: int) -> bytes | Unknown | None:
        """Return what the commits up to `version` have made of the key; None if they have removed it."""
        found: bytes | Unknown | None = UNKNOWN
        written_at = 0
        for at, value in reversed(self._written.get(key, ())):
            if at <= version:
                found, written_at = value, at
                break
        for at, cleared in reversed(self._cleared):
            if at <= written_at:  # a commit clears before it writes
                break
            if at <= version and cleared.holds(key):
                return None
        return found

    def keys_between(self, begin: bytes, end: bytes) -> Sequence[bytes]:
        """Return the keys with begin <= key < end that any commit has written, in order."""
        return self._ordered[bisect_left(self._ordered, begin) : bisect_left(self._ordered, end)]


class LayeredView:
    """The store at one version: layers, the newest first, over a view of what is stored."""

    __slots__ = ("__weakref__", "_layers", "_stored", "_window", "version")

    def __init__(
        self, version: int, layers: Sequence[Layer], stored: View, *, window: ConflictWindow
    ) -> None:
        self.version = version
        self._window = window
        self._layers = layers
        self._stored = stored

    def keep(self) -> None:
        return

    def get(self, key: bytes) -> bytes | None:
        self._check()
        found = self._find(key)
        return self._stored.get(key) if found is UNKNOWN else found

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        self._check()
        if not self._layers:
            return self._stored.get_many(keys)
        return [self.get(key) for key in keys]

    def scan(self, begin: bytes, end: bytes, *, limit: int) -> Sequence[Pair]:
        return list(islice(self.iterate(begin, end), limit))

    def iterate(self, begin: bytes, end: bytes) -> Iterator[Pair]:
        self._check()
        return self.over(self._stored.iterate(begin, end), begin, end)

    def over(self, stored: Iterator[Pair], begin: bytes, end: bytes) -> Iterator[Pair]:
        """Yield the pairs of a range, of which `stored` are those that the layers have not changed."""
        if not self._layers:
            yield from stored
            return
        keys = {key for layer in self._layers for key in layer.keys_between(begin, end)}
        known = {key: found for key in keys if (found := self._find(key)) is not UNKNOWN}
        for key, value in merge_pairs(stored, sorted(known.items())):
            if value is not None and (key in known or self._find(key) is UNKNOWN):
                yield key, value

    def _check(self) -> None:
        if self._window.is_too_old(self.version):
            raise Conflict("the transaction is too old: others have committed too much since it began")

    def _find(self, key: bytes) -> bytes | Unknown | None:
        for layer in self._layers:
            found = layer.find(key, self.version)
            if found is not UNKNOWN:
                return found
        return UNKNOWN


__all__ = ["UNKNOWN", "Layer", "LayeredView", "Unknown"]
