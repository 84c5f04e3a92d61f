"""The default engine: RocksDB in a directory that one process owns.

Every commit is one WriteBatch, written to the write-ahead log by one system call before it becomes visible:
it survives `kill -9`. Reading costs a microsecond. The version of a commit is RocksDB's sequence number,
which grows with every entry and is recovered with the log.

A log is on the disk before RocksDB begins the next one: without that, power loss may leave the next one and not the
end of the first, and RocksDB opens with that gap, so a transaction would be there without one before it. RocksDB
does so for syncs only, so the engine itself decides when the next log begins (`_begin_log`), before RocksDB's own
limit is reached.

A view reads the store directly until the next commit, and through its own iterator, made before that commit,
from then on.
Values that are read often can be kept in memory as well (`cached`): every commit writes them there too.
"""

import fcntl
import logging
import os
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Final, cast

import rocksdict

from ..errors import Busy, Conflict, CorruptData, NoSpace, Unavailable
from ..units import KIB, MIB
from .conflicts import COMMITS_MAX
from .engine import KEY_END, TRANSACTION_BYTES_MAX, Engine, Pair, Transaction
from .manifest import cut_torn_record
from .syncer import Syncer

log = logging.getLogger(__name__)

SYNC_INTERVAL_S: Final = 0.05  # power loss costs at most this much of what was not asked to be synced
CACHE_BYTES: Final = 64 * MIB  # hot inodes and directory entries: about 200,000 of them
WRITE_BUFFER_BYTES: Final = 32 * MIB  # replayed in a second after a crash
RESERVE_BYTES: Final = 128 * MIB  # room for flushes and compactions that turn deletions into free space
ENTRY_BYTES: Final = 100  # of a write buffer, at most, beside key and value
SPACE_CHECK_BYTES: Final = 1 * MIB  # how much is written between two looks at the free space
assert SPACE_CHECK_BYTES + TRANSACTION_BYTES_MAX < RESERVE_BYTES, (
    "what is written between two looks fits the reserve"
)
CLEAR_KEYS_MAX: Final = (
    256  # a larger cleared range becomes one range tombstone, which slows every later read
)

CACHED_MAX: Final = 32_768  # values kept in memory: about 10 MB of inodes
CACHED_BYTES_MAX: Final = 256  # a longer value is not kept: the bytes of small files are in their inodes

STORE_SUFFIXES: Final = (".log", ".sst", ".blob")  # of files that exist only once a store was created

_MARKER: Final = b"\xff/marker"  # written by commits that only guard keys, so that the version grows


class RocksEngine(Engine):
    """RocksDB in `directory`. A store is created only where `create` says so: a lost one must not come back empty.

    `cached`: first bytes of the keys whose values stay in memory once they were read or written.
    `write_buffer_bytes`: what a log holds before it becomes a table. `cache_bytes`: blocks of tables in memory.
    `options`: in place of `store_options()`.
    Raises: Busy if another process has it open; NoSpace if RocksDB cannot open it and the disk is full; CorruptData if
    there is no store, or RocksDB refuses it.
    """

    def __init__(  # noqa: PLR0913, each has its default
        self,
        directory: Path,
        *,
        create: bool = False,
        sync_interval_s: float = SYNC_INTERVAL_S,
        commits_max: int = COMMITS_MAX,
        cached: bytes = b"",
        write_buffer_bytes: int = WRITE_BUFFER_BYTES,
        cache_bytes: int = CACHE_BYTES,
        options: rocksdict.Options | None = None,
    ) -> None:
        self.directory = directory
        self.cached = ValueCache(cached)
        if create:
            directory.mkdir(mode=0o700, parents=True, exist_ok=True)
            _sync(directory.parent)
        elif not directory.is_dir():
            raise CorruptData(f"no key-value store in {directory}: the directory does not exist")
        self._lock = _own(directory)
        try:
            _check_files(directory, create=create)
            options = options or store_options(write_buffer_bytes, cache_bytes)
            options.create_if_missing(create_if_missing=create)
            self._db = _open(directory, options)
        except CorruptData:
            os.close(self._lock)
            raise
        except Exception as error:  # rocksdict raises nothing more precise
            os.close(self._lock)
            message = f"cannot open the key-value store in {directory}: {error}"
            if is_short_of_space(directory):
                raise NoSpace(f"{message}; free some space: it is opened as soon as there is") from error
            raise CorruptData(message) from error
        super().__init__(version=self._db.latest_sequence_number(), commits_max=commits_max)
        self._syncer = Syncer(self._flush, interval_s=sync_interval_s)
        # Sequence number of the last commit that is known to survive power loss. Opening a store makes tables of what
        # its log held, and syncs them (`avoid_flush_during_recovery` is off).
        self.synced_position = self._db.latest_sequence_number()
        self._unchecked_bytes = SPACE_CHECK_BYTES
        self._write_buffer_bytes = write_buffer_bytes
        self._buffered_bytes = 0

    def new_view(self) -> "RocksView":
        return RocksView(self, self._db)

    def snapshot(self, ranges: Sequence[tuple[bytes, bytes]]) -> tuple[Iterator[Pair], ...]:
        """As `Engine.snapshot`. RocksDB keeps the files of that moment, at most the store's size once more.

        What is read does not displace anything from the cache.
        """
        opened = []
        for begin, end in ranges:
            bounds = rocksdict.ReadOptions()
            bounds.fill_cache(False)  # type: ignore[call-arg] # which the stub lacks
            bounds.set_iterate_upper_bound(min(end, KEY_END))
            opened.append(_read_on(self._db.iter(bounds), bounds, begin))
        return tuple(opened)

    def require_space(self, transaction: Transaction) -> None:
        self._unchecked_bytes += transaction.size_bytes
        if self._unchecked_bytes >= SPACE_CHECK_BYTES:
            self._check_space(may_use_reserve=transaction.may_use_reserve)

    def apply(self, transaction: Transaction) -> int:
        self.require_space(transaction)
        batch = rocksdict.WriteBatch(raw_mode=True)
        if transaction.cleared:
            for begin, end in transaction.cleared:
                self._clear(batch, begin, end)
        put = batch.put
        for key, value in transaction.writes.items():
            if value is None:
                batch.delete(key)
            else:
                put(key, value)
        if not transaction.writes and batch.is_empty():
            put(_MARKER, b"")
        self._buffered_bytes += transaction.size_bytes + ENTRY_BYTES * len(batch)
        try:
            if self._buffered_bytes > self._write_buffer_bytes:
                self._begin_log()
            self._db.write(batch)
        except Exception as error:  # rocksdict raises nothing more precise
            # Whether the log has it is unknown until the store is opened again: nothing may follow it.
            self.fail(error)
            raise Unavailable(f"cannot write to the key-value store in {self.directory}: {error}") from error
        self.cached.follow(transaction)
        self._syncer.wrote()
        return self._db.latest_sequence_number()

    @property
    def failure(self) -> BaseException | None:
        return self._broken or self._syncer.error

    async def sync(self) -> None:
        await self._syncer.sync()

    def checkpoint(self, directory: Path) -> None:
        """Make `directory`, which must not exist, a copy of the store as it is now: tables are hard links.

        May be called in another thread; commits continue meanwhile. What is copied is not synced.
        Raises: NoSpace; Unavailable.
        """
        try:
            rocksdict.Checkpoint(self._db).create_checkpoint(str(directory))
        except Exception as error:  # rocksdict raises nothing more precise
            message = f"cannot make a checkpoint of the key-value store in {self.directory}: {error}"
            raise (NoSpace if is_short_of_space(self.directory) else Unavailable)(message) from error

    @property
    def syncs(self) -> int:
        """Times the log went to disk: fewer than the commits that waited for it."""
        return self._syncer.flushes

    def close(self) -> None:
        try:
            self._syncer.close()
        finally:
            try:
                self._db.close()
            except Exception as error:  # rocksdict raises nothing more precise
                if self.failure is None:
                    raise Unavailable(f"cannot close the store in {self.directory}: {error}") from error
            finally:
                os.close(self._lock)

    def _begin_log(self) -> None:
        """Make the log durable, then let RocksDB make a table of it, beside us, and begin the next log."""
        self._db.flush_wal(sync=True)
        self._db.flush(wait=False)
        self._buffered_bytes = 0

    def _flush(self) -> None:
        position = self._db.latest_sequence_number()
        assert position >= self.synced_position, "sequence numbers grow"
        self._db.flush_wal(sync=True)
        self.synced_position = position

    def _clear(self, batch: rocksdict.WriteBatch, begin: bytes, end: bytes) -> None:
        end = min(end, KEY_END)
        pairs = self.look().scan(begin, end, limit=CLEAR_KEYS_MAX + 1)
        if len(pairs) > CLEAR_KEYS_MAX:
            batch.delete_range(begin, end)
            return
        for key, _value in pairs:
            batch.delete(key)

    def _check_space(self, *, may_use_reserve: bool) -> None:
        if not is_short_of_space(self.directory):
            self._unchecked_bytes = 0
        elif not may_use_reserve:
            raise NoSpace(f"less than {RESERVE_BYTES // MIB} MiB are free for metadata in {self.directory}")


def is_short_of_space(directory: Path, size_bytes: int = 0) -> bool:
    """Return whether `size_bytes` more would leave less than the reserve.

    False where the system cannot say how much is free: what is written then finds out.
    """
    try:
        space = os.statvfs(directory)
    except OSError as error:
        log.warning("free space is unknown: %s", error)
        return False
    return space.f_bavail * space.f_frsize < size_bytes + RESERVE_BYTES


class ValueCache:
    """Values as they are in the newest version of the store, so that reading them again costs no call of RocksDB."""

    def __init__(self, first_bytes: bytes) -> None:
        self._first_bytes = first_bytes
        self._values: dict[bytes, bytes] = {}
        self.get = self._values.get

    def learn(self, key: bytes, value: bytes) -> None:
        """What the store says of the key now."""
        if key[0] not in self._first_bytes or len(value) > CACHED_BYTES_MAX:
            return
        if len(self._values) >= CACHED_MAX:
            for oldest in list(islice(self._values, CACHED_MAX // 2)):
                del self._values[oldest]
        self._values[key] = value

    def follow(self, transaction: Transaction) -> None:
        """The transaction has just been carried out."""
        if transaction.cleared and any(self._meets(begin, end) for begin, end in transaction.cleared):
            self._values.clear()
        first_bytes = self._first_bytes
        for key, value in transaction.writes.items():
            if key[0] in first_bytes:
                self._values.pop(key, None)
                if value is not None:
                    self.learn(key, value)

    def _meets(self, begin: bytes, end: bytes) -> bool:
        return any(begin[0:1] <= bytes((first,)) <= end[0:1] for first in self._first_bytes)

    def __len__(self) -> int:
        return len(self._values)


class RocksView:
    """`RocksEngine` at one version: the store itself until the next commit, and then a RocksDB iterator, which sees the
    store as it was when it was made.

    A scan has an iterator of its own, which ends at the scan's end. One without a bound looks for the next key that
    exists, also beyond the end, and passes every key on its way that was deleted and not compacted yet: after a
    million files were removed, 50 ms for a range that holds nothing. Only a view that was overtaken by a commit scans
    with the iterator that it keeps: a new one would see the newest version.

    Of rocksdict 0.3.29 neither `Snapshot.iter`, which iterates over the newest version, nor
    `set_iterate_lower_bound`, which sets the upper bound, can be used; so there are no scans backwards.
    """

    __slots__ = ("__weakref__", "_cache", "_cursor", "_db", "_engine", "version")

    def __init__(self, engine: RocksEngine, db: rocksdict.Rdict) -> None:
        self._engine = engine
        self._db = db
        self._cache = engine.cached
        self._cursor: rocksdict.RdictIter | None = None
        self.version = engine.version

    def keep(self) -> None:
        if self._cursor is None:
            self._cursor = self._db.iter()

    def get(self, key: bytes) -> bytes | None:
        if self._engine.version == self.version:  # no commit since: the newest version is ours
            return self._newest(key)
        cursor = self._overtaken()
        cursor.seek(key)
        if not cursor.valid():
            _require_end(cursor)
            return None
        return cast("bytes", cursor.value()) if cursor.key() == key else None

    def get_many(self, keys: Sequence[bytes]) -> Sequence[bytes | None]:
        if self._engine.version != self.version:
            return [self.get(key) for key in keys]
        newest = self._newest
        return [value or newest(key) for key, value in zip(keys, map(self._cache.get, keys), strict=True)]

    def _newest(self, key: bytes) -> bytes | None:
        value = self._cache.get(key)
        if value is not None:
            return value
        try:
            value = cast("bytes | None", self._db.get(key))
        except Exception as error:  # rocksdict raises nothing more precise
            raise CorruptData(f"cannot read the key-value store: {error}") from error
        if value is not None:
            self._cache.learn(key, value)
        return value

    def scan(self, begin: bytes, end: bytes, *, limit: int) -> Sequence[Pair]:
        return list(islice(self.iterate(begin, end), limit))

    def iterate(self, begin: bytes, end: bytes) -> Iterator[Pair]:
        end = min(end, KEY_END)
        bounds = rocksdict.ReadOptions()  # owns the bound: it has to live as long as the iterator
        if self._engine.version == self.version:
            bounds.set_iterate_upper_bound(end)
            cursor = self._db.iter(bounds)
        else:
            cursor = self._overtaken()
        cursor.seek(begin)
        while cursor.valid():
            key = cursor.key()
            if key >= end:
                return
            yield key, cursor.value()
            cursor.next()
        _require_end(cursor)

    def _overtaken(self) -> rocksdict.RdictIter:
        if self._engine.window.is_too_old(self.version):
            raise Conflict("the transaction is too old: others have committed too much since it began")
        assert self._cursor is not None, "V1: `keep` was called before the commit"
        return self._cursor


def _own(directory: Path) -> int:
    """Take the directory's lock; RocksDB's own lock does not say who holds it."""
    lock = os.open(directory / "owner", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        owner = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
        os.close(lock)
        raise Busy(f"the key-value store in {directory} is in use by process {owner}") from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, b"%d\n" % os.getpid(), 0)
    return lock


def _open(directory: Path, options: rocksdict.Options) -> rocksdict.Rdict:
    try:
        return _attach(directory, options)
    except Exception as error:  # rocksdict raises nothing more precise
        if "MANIFEST" not in str(error) or not cut_torn_record(directory):
            raise
        log.warning("%s: last record of the manifest torn by power loss; truncated before it", directory)
        return _attach(directory, options)


def _attach(directory: Path, options: rocksdict.Options) -> rocksdict.Rdict:
    # Without `column_families` the options of an earlier opening are taken, and 8 MiB of cache.
    return rocksdict.Rdict(str(directory), options, column_families={"default": options})


def _sync(directory: Path) -> None:
    """Make the names in a directory survive power loss."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _check_files(directory: Path, *, create: bool) -> None:
    """Raises: CorruptData where the store, or its file CURRENT, is missing.

    RocksDB takes a directory without CURRENT for an empty one, and deletes the tables that it finds there.
    """
    if (directory / "CURRENT").exists():
        return
    if any(path.suffix in STORE_SUFFIXES for path in directory.iterdir()):
        raise CorruptData(f"the key-value store in {directory} is damaged: its file CURRENT is missing")
    if not create:
        raise CorruptData(f"no key-value store in {directory}: its files are missing")


def _read_on(
    cursor: rocksdict.RdictIter,
    bounds: rocksdict.ReadOptions,  # noqa: ARG001, owns the bound: it has to live as long as the iterator
    begin: bytes,
) -> Iterator[Pair]:
    cursor.seek(begin)
    while cursor.valid():
        yield cast("bytes", cursor.key()), cast("bytes", cursor.value())
        cursor.next()
    _require_end(cursor)


def _require_end(cursor: rocksdict.RdictIter) -> None:
    """An iterator that is not valid is at the end, or has met a bad block. Raises: CorruptData."""
    try:
        cursor.status()
    except Exception as error:  # rocksdict raises nothing more precise
        raise CorruptData(f"cannot read the key-value store: {error}") from error


def read_values(directory: Path, keys: Sequence[bytes]) -> Sequence[bytes | None]:
    """Return the values of `keys` in the store in `directory`, which no process has open and which stays as it is.

    Raises: CorruptData if RocksDB refuses the store.
    """
    options = store_options()
    options.create_if_missing(create_if_missing=False)
    try:
        store = rocksdict.Rdict(str(directory), options, access_type=rocksdict.AccessType.read_only())
        try:
            return [cast("bytes | None", store.get(key)) for key in keys]
        finally:
            store.close()
    except Exception as error:  # rocksdict raises nothing more precise
        raise CorruptData(f"cannot read the key-value store in {directory}: {error}") from error


def store_options(
    write_buffer_bytes: int = WRITE_BUFFER_BYTES, cache_bytes: int = CACHE_BYTES
) -> rocksdict.Options:
    """How RocksDB keeps the store. Its own limit of a write buffer is one that the engine never reaches."""
    table = rocksdict.BlockBasedOptions()
    table.set_block_cache(rocksdict.Cache(cache_bytes))
    table.set_bloom_filter(10, block_based=False)  # 1 % false positives: names that do not exist cost no read
    table.set_block_size(8 * KIB)
    table.set_cache_index_and_filter_blocks(v=True)  # so that the cache's size bounds them too
    table.set_pin_l0_filter_and_index_blocks_in_cache(v=True)
    # In blocks of 4 KiB: those of a whole table are megabytes, which a shard of the cache does not take, and then
    # every read loads them.
    table.set_index_type(rocksdict.BlockBasedIndexType.two_level_index_search())
    table.set_partition_filters(size=True)
    table.set_metadata_block_size(4 * KIB)
    table.set_pin_top_level_index_and_filter(v=True)
    options = rocksdict.Options(raw_mode=True)
    options.set_block_based_table_factory(table)
    options.set_compression_type(rocksdict.DBCompressionType.lz4())
    options.set_write_buffer_size(2 * write_buffer_bytes + TRANSACTION_BYTES_MAX)
    options.set_max_total_wal_size(4 * write_buffer_bytes + TRANSACTION_BYTES_MAX)
    options.set_max_background_jobs(2)
    options.set_level_compaction_dynamic_level_bytes(v=True)
    options.set_max_open_files(512)
    options.set_wal_recovery_mode(
        rocksdict.DBRecoveryMode.point_in_time()
    )  # a torn tail was never acknowledged
    options.set_keep_log_file_num(2)
    options.set_max_log_file_size(4 * MIB)
    options.set_stats_dump_period_sec(0)
    return options


__all__ = [
    "CACHE_BYTES",
    "RESERVE_BYTES",
    "SYNC_INTERVAL_S",
    "WRITE_BUFFER_BYTES",
    "RocksEngine",
    "RocksView",
    "is_short_of_space",
    "read_values",
    "store_options",
]
