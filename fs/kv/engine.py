"""The interface that everything above the key-value layer is written against, and what all engines share.

Keys are bytes, ordered like bytes. A `Transaction` buffers its writes, reads its own writes merged into one
consistent picture of the store, and commits all or nothing.

    K1  serializable: committed transactions are explained by running them one after another in commit order
    K2  opaque: what a transaction reads, even one that will not commit, is the store at one moment
    K3  atomic: after any crash all of a transaction's writes are there, or none
    K4  what a finished commit wrote survives `kill -9`; after `await engine.sync()` it survives power loss

An engine may store commits later (`Engine.commits_later`). Then a commit is visible at once, also to transactions that
begin after it, and has finished, for K3 and K4, when `stored` of what `Engine.unstored` returned has returned.

An engine is used from one thread (the event loop's). Calls are synchronous because they cost microseconds.
"""

import enum
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Final, Protocol

from ..errors import Conflict, Error, InvalidArgument, Unavailable
from .conflicts import COMMITS_MAX, ConflictWindow, KeyRange, WriteSet
from .views import OpenViews

KEY_BYTES_MAX: Final = 4096  # a directory entry: a name of 255 bytes and some ids
VALUE_BYTES_MAX: Final = 256 * 1024  # an inode with the largest inline file, 64 KiB, with room to grow
TRANSACTION_BYTES_MAX: Final = 8 * 1024 * 1024  # keeps one commit below about 50 ms, as the lane's frames do
assert KEY_BYTES_MAX + VALUE_BYTES_MAX <= TRANSACTION_BYTES_MAX, "any one pair can be written"
KEY_END: Final = b"\xff"  # keys from here on are the engines' own
RANGE_LIMIT_MAX: Final = 100_000  # pairs in one answer; larger scans page through with several transactions

Pair = tuple[bytes, bytes]


class Durability(enum.Enum):
    """What a commit has survived when it is acknowledged."""

    WRITE = "write"  # kill -9 of the process: the log is in the operating system's hands
    SYNC = "sync"  # power loss: the log is on the disk


class Unstored(Protocol):
    """Commits that are visible, and not stored yet."""

    async def stored(self) -> None:
        """Return when they are stored, with all before them.

        Raises: MaybeCommitted if that is unknown; Unavailable if they were thrown away, and nothing of them is stored.
        """


class View(Protocol):
    """The store at one version. Shared by all who look at that version; what they read together is one moment."""

    version: int

    def keep(self) -> None:
        """The store is about to change: see to it that this version stays readable. Called again, it does nothing."""

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None. Raises: Conflict if the version is too old to be read."""

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """As `get` of each, in order."""

    def scan(self, begin: bytes, end: bytes, *, limit: int) -> Sequence[Pair]:
        """Return the first `limit` pairs with begin <= key < end."""

    def iterate(self, begin: bytes, end: bytes) -> Iterator[Pair]:
        """The same, one by one."""


class Transaction:
    """One attempt. Get it from `Engine.begin`, or let `run` do so and try again after a conflict.

    Reads see the transaction's own writes. A plain read must still be true when the transaction commits; a
    `snapshot_` read need not. The picture that is read is taken at the first read.
    """

    __slots__ = (
        "_cleared",
        "_engine",
        "_keys",
        "_open",
        "_parts",
        "_ranges",
        "_view",
        "_writes",
        "may_use_reserve",
        "size_bytes",
    )

    def __init__(self, engine: "Engine") -> None:
        self._engine = engine
        self._view: View | None = None
        self._keys: set[bytes] = set()
        self._ranges: list[KeyRange] = []
        self._writes: dict[bytes, bytes | None] = {}
        self._cleared: list[KeyRange] = []
        self._parts: list[dict[bytes, bytes | None]] | None = None  # `_writes` by operation
        self.size_bytes = 0  # of keys and values to be written
        self.may_use_reserve = False  # set it in operations that free space: they may write to a full disk
        self._open = True

    # Reading.

    @property
    def read_version(self) -> int:
        """The version that this transaction reads at; fixed by the first use."""
        return self._look().version

    def get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None; the commit fails if another transaction changes it before."""
        if key in self._writes:
            return self._writes[key]
        self._keys.add(key)
        return self._read(key)

    def snapshot_get(self, key: bytes) -> bytes | None:
        """Return the value of `key`, or None; it may change before the commit."""
        if key in self._writes:
            return self._writes[key]
        return self._read(key)

    def snapshot_get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        """As `snapshot_get` of each, in order, for a fraction of the cost."""
        if self._writes or self._cleared:
            return [self.snapshot_get(key) for key in keys]
        return self._look().get_many(keys)

    def get_range(self, begin: bytes, end: bytes, *, limit: int = RANGE_LIMIT_MAX) -> Sequence[Pair]:
        """Pairs with begin <= key < end in order; the commit fails if the answer changes before.

        With a limit only the part that was looked at is guarded.
        Raises: InvalidArgument for a limit out of bounds.
        """
        pairs = self.snapshot_range(begin, end, limit=limit)
        if len(pairs) == limit:  # nothing beyond the last pair was looked at
            end = pairs[-1][0] + b"\x00"
        if begin < end:
            self._ranges.append(KeyRange(begin, end))
        return pairs

    def snapshot_range(self, begin: bytes, end: bytes, *, limit: int = RANGE_LIMIT_MAX) -> Sequence[Pair]:
        """As `get_range`, but the answer may change before the commit."""
        if not 0 < limit <= RANGE_LIMIT_MAX:
            raise InvalidArgument(f"limit of a range must be between 1 and {RANGE_LIMIT_MAX}, not {limit}")
        if begin >= end:
            return ()
        if not self._writes and not self._cleared:
            return self._look().scan(begin, end, limit=limit)
        return self._merged(KeyRange(begin, end), limit=limit)

    # Writing.

    def put(self, key: bytes, value: bytes) -> None:
        """Set `key`. Raises: InvalidArgument when a limit is exceeded."""
        assert self._open, "the transaction has ended"
        if not 0 < len(key) <= KEY_BYTES_MAX or key >= KEY_END:
            raise _bad_key(key)
        if len(value) > VALUE_BYTES_MAX:
            raise InvalidArgument(f"a value has at most {VALUE_BYTES_MAX} bytes, not {len(value)}")
        self.size_bytes += len(key) + len(value)
        if self.size_bytes > TRANSACTION_BYTES_MAX:
            raise _too_large()
        self._writes[key] = value
        if self._parts is not None:
            self._parts[-1][key] = value

    def delete(self, key: bytes) -> None:
        """Remove `key`, if it is there."""
        assert self._open, "the transaction has ended"
        if not 0 < len(key) <= KEY_BYTES_MAX or key >= KEY_END:
            raise _bad_key(key)
        self.size_bytes += len(key)
        if self.size_bytes > TRANSACTION_BYTES_MAX:
            raise _too_large()
        self._writes[key] = None
        if self._parts is not None:
            self._parts[-1][key] = None

    def delete_range(self, begin: bytes, end: bytes) -> None:
        """Remove every key with begin <= key < end: its own writes and what exists at commit."""
        assert self._open, "the transaction has ended"
        assert self._parts is None, "a transaction of several operations clears no range"
        if max(len(begin), len(end)) > KEY_BYTES_MAX:
            raise InvalidArgument(f"a key has at most {KEY_BYTES_MAX} bytes")
        if begin >= end:
            return
        cleared = KeyRange(begin, end)
        self.size_bytes += len(begin) + len(end)
        if self.size_bytes > TRANSACTION_BYTES_MAX:
            raise _too_large()
        for key in [key for key in self._writes if cleared.holds(key)]:
            del self._writes[key]
        self._cleared.append(cleared)

    def end_operation(self) -> None:
        """What was written until now is one operation, what follows is another, for those who follow the log.

        They are committed together. Afterwards no range may be cleared.
        """
        if self._parts is None:
            assert not self._cleared, "a transaction of several operations clears no range"
            self._parts = [dict(self._writes)]
        if self._parts[-1]:
            self._parts.append({})

    def add_read_conflict(self, key: bytes) -> None:
        """Fail the commit if another transaction writes `key` before."""
        if self._view is None:
            self._look()
        self._keys.add(key)

    # The end.

    @property
    def is_read_only(self) -> bool:
        return not (self._writes or self._cleared)

    def commit(self) -> int:
        """Make the writes visible and safe against `kill -9`; return their version.

        A transaction without writes always succeeds: it has read one moment of the store.
        Raises: Conflict, nothing was done; MaybeCommitted, all was done or nothing.
        """
        assert self._open, "the transaction has ended"
        self._open = False
        try:
            if self.is_read_only:
                return self._engine.version if self._view is None else self._view.version
            return self._engine.commit(self)
        finally:
            self._view = None

    def cancel(self) -> None:
        """Forget everything. Dropping the last reference does the same, but an error may hold it for long."""
        self._open = False
        self._view = None

    def let_go(self) -> int | None:
        """Give up the picture that was read; its version, or None if nothing was read."""
        view, self._view = self._view, None
        return None if view is None else view.version

    # What engines and the fault-injecting fake look at.

    @property
    def read_keys(self) -> set[bytes]:
        return self._keys

    @property
    def read_ranges(self) -> Sequence[KeyRange]:
        return self._ranges

    @property
    def writes(self) -> Mapping[bytes, bytes | None]:
        """Last write of each key; None removes it. Applied after `cleared`."""
        return self._writes

    @property
    def operations(self) -> Sequence[Mapping[bytes, bytes | None]]:
        """The writes of each operation, in their order; together they are `writes`."""
        return (self._writes,) if self._parts is None else [part for part in self._parts if part]

    @property
    def cleared(self) -> Sequence[KeyRange]:
        return self._cleared

    def _look(self) -> View:
        view = self._view
        if view is None:
            assert self._open, "the transaction has ended"
            view = self._view = self._engine.look()
        return view

    def _read(self, key: bytes) -> bytes | None:
        view = self._view or self._look()
        if self._cleared and any(cleared.holds(key) for cleared in self._cleared):
            return None
        return view.get(key)

    def _merged(self, wanted: KeyRange, *, limit: int) -> Sequence[Pair]:
        stored = self._look().iterate(wanted.begin, wanted.end)
        mine = sorted(key for key in self._writes if wanted.holds(key))
        found: list[Pair] = []
        for key, value in merge_pairs(stored, [(key, self._writes[key]) for key in mine]):
            if value is None:
                continue
            if key not in self._writes and any(cleared.holds(key) for cleared in self._cleared):
                continue
            found.append((key, value))
            if len(found) == limit:
                break
        return found


class Engine(ABC):
    """A store. Subclasses say how to look at it and how to apply one transaction's writes.

    Optimistic concurrency control is the same for all that live in one process: `commit` refuses a
    transaction whose reads were overtaken, and remembers what was written for as long as others are open that it may
    have overtaken.
    """

    commits_later = False  # a commit is visible before it is stored

    def __init__(self, *, version: int, commits_max: int = COMMITS_MAX) -> None:
        self.version = version  # of the newest commit; survives a restart
        self.window = ConflictWindow(version=version, commits_max=commits_max)
        self._views = OpenViews[View]()
        self._broken: BaseException | None = None

    def begin(self) -> Transaction:
        """Return a new transaction."""
        return Transaction(self)

    def look(self) -> View:
        """Return the store as it is now; it stays so while others commit."""
        view = self._views.newest()
        if view is None:
            view = self.new_view()
            self._views.add(view)
        assert view.version == self.version, "K2: a transaction begins with the newest version"
        return view

    @abstractmethod
    def new_view(self) -> View:
        """Return what `look` gives to the first who looks at the newest version."""

    @abstractmethod
    def snapshot(self, ranges: Sequence[tuple[bytes, bytes]]) -> tuple[Iterator[Pair], ...]:
        """The pairs of each range in order, all as of this call, however late and slowly they are read.

        A transaction is refused when it becomes too old, a snapshot never is. The store keeps what it needs until the
        iterators are closed or dropped.
        """

    @abstractmethod
    def apply(self, transaction: Transaction) -> int:
        """Do the writes atomically; return their version, which is larger than any before."""

    @property
    def unstored(self) -> Unstored | None:
        """What of the commits so far is not stored yet; None if all is."""
        return None

    def require_space(self, transaction: Transaction) -> None:  # noqa: B027, most engines need none
        """Raises: NoSpace if the disk has no room for the transaction's writes."""

    @abstractmethod
    async def sync(self) -> None:
        """Return when all that was committed before the call survives power loss."""

    @abstractmethod
    def close(self) -> None:
        """Sync and let go of the store. A closed engine must not be used."""

    def forget(self, oldest: WriteSet) -> None:  # noqa: B027, most engines have nothing to forget
        """Called with each commit that leaves the window: versions at or before it are not read any more."""

    def skipped(self, transaction: Transaction) -> None:  # noqa: B027, as `forget`
        """As `forget`, of a commit that never was in the window."""

    @property
    def failure(self) -> BaseException | None:
        """Why nothing can be written any more until the store is opened again, if so."""
        return self._broken

    def fail(self, error: BaseException) -> None:
        """Write nothing any more: `error` has kept what is in memory from following what was committed."""
        self._broken = error

    def forget_commits(self) -> None:
        """Let go of the memory of what was written so far. Transactions that have begun fail with Conflict."""
        for oldest in self.window.clear():
            self.forget(oldest)

    def commit(self, transaction: Transaction) -> int:
        """Return what `Transaction.commit` does. Raises: Conflict; Unavailable after a failure."""
        if self.failure is not None:
            raise Unavailable(f"the key-value store has failed: {self.failure}")
        assert transaction.size_bytes <= TRANSACTION_BYTES_MAX, "checked with each write"
        read_version = transaction.let_go()  # so that it does not count as one that this commit overtakes
        if read_version is not None and read_version != self.version:
            assert read_version < self.version, "no transaction reads a version that is yet to come"
            self._check(transaction, read_version)
        try:
            return self._commit(transaction)
        except Error:
            raise
        except BaseException as error:  # the store may have it, and conflicts with it would not be found (K1)
            self.fail(error)
            raise

    def _commit(self, transaction: Transaction) -> int:
        self._views.keep()
        version = self.apply(transaction)
        assert version > self.version, "W1: versions must grow"
        self.version = version
        self._views.overtake()
        self._remember(transaction, version)
        assert self.window.floor <= version, "W2: nothing is known of later versions"
        return version

    def _remember(self, transaction: Transaction, version: int) -> None:
        """Keep what was written for those who have begun before, and may still commit; nothing if there are none."""
        window = self.window
        if self._views.has_overtaken(window.floor):
            oldest = window.record(WriteSet(version, tuple(transaction.writes), transaction.cleared))
            if oldest is not None:
                self.forget(oldest)
            return
        if window:
            self.forget_commits()
        window.skip(version)
        self.skipped(transaction)

    def _check(self, transaction: Transaction, read_version: int) -> None:
        if not (transaction.read_keys or transaction.read_ranges):
            return
        if self.window.is_too_old(read_version):
            raise Conflict("the transaction is too old: others have committed too much since it began")
        if self.window.conflicts(read_version, transaction.read_keys, transaction.read_ranges):
            raise Conflict("another transaction has changed what this one read")


def prefix_end(prefix: bytes) -> bytes:
    """Return the end of the range of all keys that begin with `prefix`."""
    trimmed = prefix.rstrip(b"\xff")
    assert trimmed, "a prefix of 0xff bytes has no end"
    return trimmed[:-1] + bytes((trimmed[-1] + 1,))


def _too_large() -> InvalidArgument:
    return InvalidArgument(f"a transaction writes at most {TRANSACTION_BYTES_MAX} bytes")


def _bad_key(key: bytes) -> InvalidArgument:
    if key >= KEY_END:
        return InvalidArgument("keys that begin with 0xff belong to the engine")
    return InvalidArgument(f"a key has 1 to {KEY_BYTES_MAX} bytes, not {len(key)}")


def merge_pairs(
    stored: Iterator[Pair], mine: Sequence[tuple[bytes, bytes | None]]
) -> Iterator[tuple[bytes, bytes | None]]:
    """Both in order; where both have a key, mine wins."""
    index = 0
    for key, value in stored:
        while index < len(mine) and mine[index][0] < key:
            yield mine[index]
            index += 1
        if index < len(mine) and mine[index][0] == key:
            yield mine[index]
            index += 1
        else:
            yield key, value
    yield from mine[index:]


__all__ = [
    "KEY_BYTES_MAX",
    "KEY_END",
    "RANGE_LIMIT_MAX",
    "TRANSACTION_BYTES_MAX",
    "VALUE_BYTES_MAX",
    "Durability",
    "Engine",
    "Pair",
    "Transaction",
    "Unstored",
    "View",
    "merge_pairs",
    "prefix_end",
]
