"""An engine in memory, for tests and simulation: every key keeps the versions that a view may still read."""

from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from itertools import islice

from ..errors import Conflict
from .conflicts import COMMITS_MAX, WriteSet
from .engine import Engine, Pair, Transaction


class MemoryEngine(Engine):
    """A store that forgets everything when it is dropped. Close and sync do nothing."""

    def __init__(self, *, commits_max: int = COMMITS_MAX) -> None:
        super().__init__(version=0, commits_max=commits_max)
        self._keys: list[bytes] = []  # in order; also keys whose newest version is a removal
        self._versions: dict[bytes, list[tuple[int, bytes | None]]] = {}

    def new_view(self) -> "MemoryView":
        return MemoryView(self, self.version)

    def snapshot(self, ranges: Sequence[tuple[bytes, bytes]]) -> tuple[Iterator[Pair], ...]:
        view = self.look()
        return tuple(iter(list(view.iterate(begin, end))) for begin, end in ranges)

    def apply(self, transaction: Transaction) -> int:
        version = self.version + 1
        for begin, end in transaction.cleared:
            for key in self._between(begin, end):
                self._write(key, version, None)
        for key, value in transaction.writes.items():
            self._write(key, version, value)
        return version

    async def sync(self) -> None:
        return

    def close(self) -> None:
        return

    def forget(self, oldest: WriteSet) -> None:
        for key in oldest.keys:
            self._prune(key, oldest.version)
        for begin, end in oldest.ranges:
            for key in self._between(begin, end):
                self._prune(key, oldest.version)

    def skipped(self, transaction: Transaction) -> None:
        self.forget(WriteSet(self.version, transaction.writes.keys(), transaction.cleared))

    def read(self, key: bytes, version: int) -> bytes | None:
        """Return the value that `key` had at `version`."""
        for written, value in reversed(self._versions.get(key, ())):
            if written <= version:
                return value
        return None

    def _between(self, begin: bytes, end: bytes) -> Sequence[bytes]:
        return self._keys[bisect_left(self._keys, begin) : bisect_left(self._keys, end)]

    def _write(self, key: bytes, version: int, value: bytes | None) -> None:
        versions = self._versions.get(key)
        if versions is None:
            versions = self._versions[key] = []
            insort(self._keys, key)
        assert not versions or versions[-1][0] <= version, "versions grow"
        if versions and versions[-1][0] == version:
            versions.pop()
        versions.append((version, value))

    def _prune(self, key: bytes, floor: int) -> None:
        """Drop versions that no view at or after `floor` sees."""
        versions = self._versions.get(key)
        if versions is None:
            return
        while len(versions) > 1 and versions[1][0] <= floor:
            versions.pop(0)
        if len(versions) == 1 and versions[0][1] is None and versions[0][0] <= floor:
            del self._versions[key]
            self._keys.pop(bisect_left(self._keys, key))


class MemoryView:
    """`MemoryEngine` at one version."""

    def __init__(self, engine: MemoryEngine, version: int) -> None:
        self._engine = engine
        self.version = version

    def keep(self) -> None:
        return

    def get(self, key: bytes) -> bytes | None:
        self._check()
        return self._engine.read(key, self.version)

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        return [self.get(key) for key in keys]

    def scan(self, begin: bytes, end: bytes, *, limit: int) -> Sequence[Pair]:
        return list(islice(self.iterate(begin, end), limit))

    def iterate(self, begin: bytes, end: bytes) -> Iterator[Pair]:
        self._check()
        for key in self._engine._between(begin, end):  # noqa: SLF001, one class in two halves
            value = self._engine.read(key, self.version)
            if value is not None:
                yield key, value

    def _check(self) -> None:
        if self._engine.window.is_too_old(self.version):
            raise Conflict("the transaction is too old: others have committed too much since it began")


__all__ = ["MemoryEngine", "MemoryView"]
