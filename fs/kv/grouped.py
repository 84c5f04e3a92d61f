"""Group commit: an engine over an engine, which stores the commits that are made together as one record.

A transaction is carried out in memory and visible at once, also to those that begin after it ("early lock release").
The commits of one turn of the event loop, and all that are made while a record is being stored, form a group. One
record is stored at a time.

    G1  groups are stored in the order in which their commits were made, each whole or not at all
    G2  a commit has finished when its group is stored (`Engine.unstored`): what may leave the process before that
        contains nothing that may be lost
    G3  when a group could not be stored, it and all commits after it, which have seen it, are thrown away, and the
        engine has failed: it commits nothing and shows nothing any more. What its user has derived from the commits
        that were lost goes with it; an engine that is opened again shows what is stored.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Sequence
from typing import Final

from ..errors import Busy, Error, InvalidArgument, MaybeCommitted, Unavailable
from .conflicts import COMMITS_MAX
from .engine import Engine, Pair, Transaction, Unstored
from .overlay import Layer, LayeredView
from .record import (
    HEAD_BYTES,
    OPERATIONS_MAX,
    RECORD_BYTES_MAX,
    Operation,
    encode_operation,
    replay,
    seal_record,
)

log = logging.getLogger(__name__)

GROUPS_MAX: Final = 16  # that wait: 16 MiB of memory, and more than a second of records that take 70 ms each


class EncodedCommit:
    """The operations of one transaction, which stay together in one record."""

    def __init__(self, transaction: Transaction) -> None:
        """Raises: InvalidArgument if no record has room for them."""
        first, *rest = transaction.operations
        self.operations = [Operation(first, transaction.cleared), *map(Operation, rest)]
        self.encoded = [encode_operation(operation) for operation in self.operations]
        self.size_bytes = sum(map(len, self.encoded))
        assert len(self.operations) <= OPERATIONS_MAX, "one transaction has fewer operations than a record"
        if HEAD_BYTES + self.size_bytes > RECORD_BYTES_MAX:
            raise InvalidArgument(
                f"a transaction has at most {RECORD_BYTES_MAX} bytes here, not {self.size_bytes}"
            )


class Group:
    """Commits that are stored together."""

    def __init__(self, begin_storing: Callable[[], None]) -> None:
        self._begin_storing = begin_storing
        self._ended = asyncio.Event()
        self._error: Error | None = None
        self._encoded: list[bytes] = []
        self._size_bytes = HEAD_BYTES
        self.operations: list[Operation] = []
        self.layer = Layer()
        self.is_full = False  # or being stored: no commit joins it any more

    def has_room(self, size_bytes: int, count: int) -> bool:
        """Return whether a commit of so many bytes and operations may join."""
        fits = self._size_bytes + size_bytes <= RECORD_BYTES_MAX
        return fits and len(self.operations) + count <= OPERATIONS_MAX and not self.is_full

    def add(self, version: int, transaction: Transaction, commit: EncodedCommit) -> None:
        """Take in a commit."""
        assert self.has_room(commit.size_bytes, len(commit.operations)), "the commit fits into the group"
        self._size_bytes += commit.size_bytes
        self._encoded.extend(commit.encoded)
        self.operations.extend(commit.operations)
        self.layer.add(version, transaction.writes, transaction.cleared)

    def record(self) -> bytes:
        """Return the bytes of the record (record.py)."""
        assert self.is_full, "a record holds all commits of its group"
        return seal_record(self._encoded)

    def end(self, error: Error | None) -> None:
        """The group is stored, or `error` says why it is not, or may not be."""
        assert not self._ended.is_set(), "a group ends once"
        self._error = error
        self._ended.set()

    async def stored(self) -> None:
        """As `Unstored.stored`. A group that has ended long ago is asked in the same way."""
        self._begin_storing()
        await self._ended.wait()
        if self._error is not None:
            raise _again(self._error)


StoreGroup = Callable[[Group], Awaitable[None]]
"""Stores the record of a group; when it returns, the inner engine shows the group's writes.

Raises: MaybeCommitted if that is unknown. After any other error the record is not stored, and never will be.
"""


class GroupedEngine(Engine):
    """Groups of commits over `inner`, which only `store` writes to.

    Without `store` a group is one transaction of `inner`. Await `sync` before `close`, which throws away what is not
    stored.
    """

    commits_later = True

    def __init__(
        self, inner: Engine, store: StoreGroup | None = None, *, commits_max: int = COMMITS_MAX
    ) -> None:
        super().__init__(version=inner.version, commits_max=commits_max)
        self.inner = inner
        self._store = store or self._store_in_inner
        self._groups: deque[Group] = deque()  # oldest first; only the first is being stored
        self._storing: asyncio.Task[None] | None = None
        self._lost: Lost | None = None

    # What is there.

    def look(self) -> LayeredView:
        """As `Engine.look`. Raises: Unavailable after a failure (G3)."""
        if self.failure is not None:
            raise Unavailable(f"the key-value store has failed: {self.failure}") from self.failure
        view = super().look()
        assert isinstance(view, LayeredView), "`new_view` makes all views"
        return view

    def new_view(self) -> LayeredView:
        layers = tuple(group.layer for group in reversed(self._groups))
        return LayeredView(self.version, layers, self.inner.look(), window=self.window)

    def snapshot(self, ranges: Sequence[tuple[bytes, bytes]]) -> tuple[Iterator[Pair], ...]:
        view = self.look()
        stored = self.inner.snapshot(ranges)
        return tuple(view.over(pairs, begin, end) for pairs, (begin, end) in zip(stored, ranges, strict=True))

    def forget_commits(self) -> None:
        super().forget_commits()
        self.inner.forget_commits()

    @property
    def failure(self) -> BaseException | None:
        return self._broken or self.inner.failure

    @property
    def unstored(self) -> Unstored | None:
        return self._lost or (self._groups[-1] if self._groups else None)

    # What is committed.

    def apply(self, transaction: Transaction) -> int:
        self.inner.require_space(transaction)
        commit = EncodedCommit(transaction)
        version = self.version + 1
        self._open_group(commit).add(version, transaction, commit)
        self._begin_storing()
        return version

    async def sync(self) -> None:
        """As `Engine.sync`. Raises: MaybeCommitted; Unavailable."""
        unstored = self.unstored
        if unstored is not None:
            await unstored.stored()
        await self.inner.sync()

    def close(self) -> None:
        if self._groups:
            self._throw_away(MaybeCommitted("the store was closed while commits were being stored"))
        if self._storing is not None and not self._storing.done():
            self._storing.get_loop().call_soon_threadsafe(self._storing.cancel)
        self.inner.close()

    def _open_group(self, commit: EncodedCommit) -> Group:
        """Return the group that this commit joins. Raises: Busy."""
        if self._groups and self._groups[-1].has_room(commit.size_bytes, len(commit.operations)):
            return self._groups[-1]
        if len(self._groups) >= GROUPS_MAX:
            raise Busy(f"{GROUPS_MAX} records of commits wait to be stored; try again later")
        if self._groups:
            self._groups[-1].is_full = True
        self._groups.append(Group(self._begin_storing))
        return self._groups[-1]

    def _begin_storing(self) -> None:
        """Store what waits, from the next turn of the event loop on; without one, from the first who waits on."""
        if not self._groups or (self._storing is not None and not self._storing.done()):
            return
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return
        self._storing = loop.create_task(self._store_groups(), name="kv-groups")

    async def _store_groups(self) -> None:
        while self._groups:
            group = self._groups[0]
            group.is_full = True
            try:
                await self._store(group)
            except Error as error:
                self._throw_away(error)
            except BaseException as error:
                if not isinstance(error, asyncio.CancelledError):
                    log.critical("storing a record of commits failed: %r", error)
                unknown = MaybeCommitted(f"storing a record of commits failed: {error!r}")
                unknown.__cause__ = error
                self._throw_away(unknown)
                raise
            else:
                self._stored(group)

    def _stored(self, group: Group) -> None:
        if not self._groups:  # closed meanwhile
            return
        assert self._groups[0] is group, "G1: groups are stored in order"
        self._groups.popleft()
        group.end(None)

    def _throw_away(self, error: Error) -> None:
        """The first group was not stored, or may not be (G3)."""
        if not self._groups:
            return
        lost = error if isinstance(error, MaybeCommitted) else _not_stored(error)
        self.fail(error)
        self._lost = Lost(lost)
        after = _not_stored(error)
        self._groups.popleft().end(lost)
        while self._groups:
            self._groups.popleft().end(after)

    async def _store_in_inner(self, group: Group) -> None:
        transaction = self.inner.begin()
        transaction.may_use_reserve = True  # `require_space` was asked with each commit
        replay(group.operations, transaction)
        transaction.commit()


class Lost:
    """In place of groups, when the engine has failed: it is not known which of them a caller has seen."""

    def __init__(self, error: Error) -> None:
        self._error = error

    async def stored(self) -> None:
        raise _again(self._error)


def _not_stored(error: Error) -> Unavailable:
    lost = Unavailable(f"the operation was thrown away: a record of commits could not be stored: {error}")
    lost.__cause__ = error
    return lost


def _again(error: Error) -> Error:
    """Return an error of its own for each caller: they add to its traceback."""
    copy = type(error)(str(error))
    copy.__cause__ = error
    return copy


__all__ = ["GROUPS_MAX", "Group", "GroupedEngine", "StoreGroup"]
