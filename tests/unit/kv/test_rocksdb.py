"""What only an engine on a disk can do: be locked, come back, and survive kill -9."""

import asyncio
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from luciola.errors import Busy, Conflict, CorruptData, NoSpace, Unavailable
from luciola.kv import Durability, run
from luciola.kv import rocksdb as module
from luciola.kv.rocksdb import RocksEngine, store_options

# Commits transactions of three keys that must stay together; prints each number after its commit.
CHILD = """
import sys
from pathlib import Path
from luciola.kv.rocksdb import RocksEngine
engine = RocksEngine(Path(sys.argv[1]), create=True)
number = int(engine.begin().get(b"count") or b"-1")
while True:
    number += 1
    transaction = engine.begin()
    assert int(transaction.get(b"count") or b"-1") == number - 1
    transaction.put(b"count", b"%d" % number)
    transaction.put(b"left/%08d" % number, b"x" * (number * 37 % 5000))
    transaction.put(b"right/%08d" % number, b"x" * (number * 37 % 5000))
    if number >= 10:
        transaction.delete_range(b"left/%08d" % (number - 10), b"left/%08d" % (number - 9))
        transaction.delete(b"right/%08d" % (number - 10))
    transaction.commit()
    sys.stdout.buffer.write(b"%d\\n" % number)
    sys.stdout.buffer.flush()
"""


def test_closed_store_comes_back_with_its_content_and_version(tmp_path):
    first = RocksEngine(tmp_path, create=True)
    transaction = first.begin()
    transaction.put(b"a", b"1")
    version = transaction.commit()
    first.close()
    second = RocksEngine(tmp_path, create=True)
    assert second.version == version
    assert second.begin().get(b"a") == b"1"
    transaction = second.begin()
    transaction.put(b"a", b"2")
    assert transaction.commit() > version
    second.close()


def test_refused_transaction_does_not_hold_the_store_once_it_is_closed(tmp_path):
    """Errors are kept, and with them the frames and transactions they went through."""
    engine = RocksEngine(tmp_path, create=True)
    refused, other = engine.begin(), engine.begin()
    assert refused.get(b"a") is None
    other.put(b"a", b"1")
    other.commit()
    refused.put(b"a", b"2")
    with pytest.raises(Conflict):
        refused.commit()
    engine.close()
    RocksEngine(tmp_path, create=True).close()  # RocksDB would still be locked


def test_directory_is_private(tmp_path):
    RocksEngine(tmp_path / "deep" / "kv", create=True).close()
    assert (tmp_path / "deep" / "kv").stat().st_mode & 0o777 == 0o700


def test_second_owner_is_refused_by_name(tmp_path):
    engine = RocksEngine(tmp_path, create=True)
    with pytest.raises(Busy, match=f"in use by process {os.getpid()}"):
        RocksEngine(tmp_path, create=True)
    engine.close()
    RocksEngine(tmp_path, create=True).close()


def test_damaged_store_is_refused_and_unlocked(tmp_path):
    RocksEngine(tmp_path, create=True).close()
    current = tmp_path / "CURRENT"
    good = current.read_bytes()
    current.write_bytes(b"garbage\n")
    with pytest.raises(CorruptData, match="cannot open"):
        RocksEngine(tmp_path, create=True)
    current.write_bytes(good)
    RocksEngine(tmp_path, create=True).close()


def test_bad_block_ends_a_scan_with_an_error_not_with_silence(tmp_path):
    engine = RocksEngine(tmp_path, create=True)
    for number in range(2000):
        transaction = engine.begin()
        transaction.put(b"%06d" % number, os.urandom(500))
        transaction.commit()
    engine._db.flush()
    engine.close()
    table = max(tmp_path.glob("*.sst"), key=lambda path: path.stat().st_size)
    with table.open("r+b") as file:
        file.seek(table.stat().st_size // 2)
        file.write(b"\xff" * 64)
    engine = RocksEngine(tmp_path, create=True)
    with pytest.raises(CorruptData):
        list(engine.begin().get_range(b"0", b"1"))
    engine.close()


def test_scan_passes_no_deleted_key_beyond_its_end(tmp_path):
    options = store_options()
    options.enable_statistics()
    engine = RocksEngine(tmp_path, options=options, create=True)
    transaction = engine.begin()
    for number in range(1000):
        transaction.put(b"k%06d" % number, b"")
    transaction.put(b"z", b"")
    transaction.commit()
    transaction = engine.begin()
    transaction.delete_range(b"k", b"l")
    for number in range(1000):
        transaction.delete(b"k%06d" % number)
    transaction.commit()
    before = keys_skipped(options)
    transaction = engine.begin()
    assert transaction.get_range(b"k000000", b"k000001") == []
    transaction.put(b"k000001", b"own writes are merged from another path")
    assert len(transaction.get_range(b"k000000", b"k000002")) == 1
    assert keys_skipped(options) - before <= 10
    engine.close()


def test_overtaken_view_scans_the_moment_of_its_first_read(tmp_path):
    engine = RocksEngine(tmp_path, create=True)
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    transaction.commit()
    early = engine.begin()
    assert early.get(b"a") == b"1"
    transaction = engine.begin()
    transaction.put(b"b", b"2")
    transaction.commit()
    assert early.snapshot_range(b"a", b"c") == [(b"a", b"1")]
    assert engine.begin().snapshot_range(b"a", b"c") == [(b"a", b"1"), (b"b", b"2")]
    early.cancel()
    engine.close()


def keys_skipped(options) -> int:
    """Keys that RocksDB has passed in scans without returning them, most of them deleted ones."""
    lines = options.get_statistics().splitlines()
    (skipped,) = [line for line in lines if line.startswith("rocksdb.number.iter.skip ")]
    return int(skipped.rpartition(":")[2])


def test_full_disk_is_reported_before_the_log_is_touched(tmp_path, monkeypatch):
    engine = RocksEngine(tmp_path, create=True)
    monkeypatch.setattr(module, "RESERVE_BYTES", 1 << 60)
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    with pytest.raises(NoSpace):
        transaction.commit()
    removal = engine.begin()
    removal.may_use_reserve = True
    removal.delete(b"a")
    removal.commit()
    monkeypatch.undo()
    transaction = engine.begin()
    transaction.put(b"a", b"2")
    transaction.commit()
    assert engine.begin().get(b"a") == b"2"
    engine.close()


def test_store_whose_free_space_is_unknown_is_written(tmp_path, caplog):
    directory, away = tmp_path / "kv", tmp_path / "away"
    engine = RocksEngine(directory, create=True)
    directory.rename(away)  # statvfs finds nothing there; the store's files stay open
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    transaction.commit()
    assert "free space is unknown" in caplog.text
    assert engine.failure is None
    away.rename(directory)
    engine.close()
    engine = RocksEngine(directory)
    assert engine.begin().get(b"a") == b"1"
    engine.close()


@pytest.mark.root
def test_store_on_a_full_disk_is_not_reported_as_damaged(tmp_path):
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=200m", "tmpfs", str(tmp_path)], check=True)
    try:
        engine = RocksEngine(tmp_path / "store", create=True)
        transaction = engine.begin()
        transaction.put(b"a", b"1")
        transaction.commit()
        engine.close()
        free = os.statvfs(tmp_path)
        (tmp_path / "filler").write_bytes(bytes(free.f_bavail * free.f_frsize))
        with pytest.raises(NoSpace, match="free some space"):
            RocksEngine(tmp_path / "store")
        (tmp_path / "filler").unlink()
        engine = RocksEngine(tmp_path / "store")
        assert engine.begin().get(b"a") == b"1"
        engine.close()
    finally:
        subprocess.run(["umount", str(tmp_path)], check=True)


def test_after_a_failed_write_nothing_is_written_any_more(tmp_path):
    engine = RocksEngine(tmp_path, create=True)
    engine._db.close()  # as if the disk were gone
    for _ in range(2):
        transaction = engine.begin()
        transaction.put(b"a", b"1")
        with pytest.raises(Unavailable):
            transaction.commit()
    engine._syncer.close()
    os.close(engine._lock)


def test_waiting_commits_share_syncs(tmp_path):
    engine = RocksEngine(tmp_path, sync_interval_s=60, create=True)

    async def writer(number: int) -> None:
        for turn in range(20):
            key = b"%d/%d" % (number, turn)
            await run(
                engine, lambda transaction, key=key: transaction.put(key, b""), durability=Durability.SYNC
            )

    async def scenario() -> None:
        await asyncio.gather(*(writer(number) for number in range(50)))

    asyncio.run(scenario())
    assert len(engine.begin().get_range(b"0", b"a")) == 1000
    assert engine.syncs <= 100, "1000 commits should share about 20 syncs"
    engine.close()


def verify(directory: Path, acknowledged: int) -> None:
    engine = RocksEngine(directory, create=True)
    look = engine.begin()
    count = int(look.get(b"count") or b"-1")
    assert count >= acknowledged, "an acknowledged transaction is gone"
    assert count <= acknowledged + 1, "more than the one in flight was written"
    expected = range(max(0, count - 9), count + 1)
    for side in (b"left", b"right"):
        found = look.get_range(side + b"/", side + b"0")
        assert [int(key.rpartition(b"/")[2]) for key, _ in found] == list(expected), "half a transaction"
        assert all(value == b"x" * (int(key.rpartition(b"/")[2]) * 37 % 5000) for key, value in found)
    engine.close()


def test_values_in_memory_are_few_and_short_and_those_of_the_store(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "CACHED_MAX", 10)
    engine = RocksEngine(tmp_path, cached=b"k", create=True)
    for number in range(25):
        transaction = engine.begin()
        transaction.put(b"k%02d" % number, b"%d" % number)
        transaction.put(b"other%02d" % number, b"")
        transaction.commit()
        assert len(engine.cached) <= 10
    keys = [b"k%02d" % number for number in range(26)]
    assert engine.begin().snapshot_get_many(keys) == [b"%d" % number for number in range(25)] + [None]
    assert 0 < len(engine.cached) <= 10
    assert engine.cached.get(b"k24") == b"24"
    transaction = engine.begin()
    transaction.put(b"k24", b"x" * (module.CACHED_BYTES_MAX + 1))
    transaction.put(b"k23", b"new")
    transaction.commit()
    assert engine.cached.get(b"k24") is None
    assert engine.begin().snapshot_get_many(keys[23:25]) == [b"new", b"x" * (module.CACHED_BYTES_MAX + 1)]
    transaction = engine.begin()
    transaction.delete_range(b"k", b"l")
    transaction.put(b"k00", b"last")
    transaction.commit()
    assert engine.begin().snapshot_get_many(keys) == [b"last"] + [None] * 25
    engine.close()


def test_kill_at_random_moments_loses_nothing_and_leaves_nothing_half_written(tmp_path):
    dice = random.Random(20261125)
    acknowledged = -1
    for _ in range(8):
        child = subprocess.Popen(
            [sys.executable, "-c", CHILD, str(tmp_path)],
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert child.stdout is not None
        first = child.stdout.readline()
        assert int(first) in (acknowledged + 1, acknowledged + 2)  # one may have been committed unheard
        time.sleep(dice.uniform(0.0, 0.3))  # a real process needs real time
        child.send_signal(signal.SIGKILL)
        rest = child.stdout.read()  # all that it acknowledged before it died
        child.stdout.close()
        assert child.wait() == -signal.SIGKILL
        lines = (first + rest).split(b"\n")
        acknowledged = int(lines[-2])  # the last whole line
        verify(tmp_path, acknowledged)
    assert acknowledged > 100


def test_store_is_created_only_on_request(tmp_path):
    with pytest.raises(CorruptData, match="does not exist"):
        RocksEngine(tmp_path / "kv")
    assert not (tmp_path / "kv").exists()
    (tmp_path / "kv").mkdir()
    with pytest.raises(CorruptData, match="files are missing"):
        RocksEngine(tmp_path / "kv")
    RocksEngine(tmp_path / "kv", create=True).close()
    RocksEngine(tmp_path / "kv").close()


@pytest.mark.parametrize("create", [False, True])
def test_store_without_current_is_refused_and_keeps_its_files(tmp_path, create):
    engine = RocksEngine(tmp_path, create=True)
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    transaction.commit()
    engine.close()
    current = (tmp_path / "CURRENT").read_bytes()
    (tmp_path / "CURRENT").unlink()
    left = sorted(path.name for path in tmp_path.iterdir())
    with pytest.raises(CorruptData, match="CURRENT is missing"):
        RocksEngine(tmp_path, create=create)
    assert sorted(path.name for path in tmp_path.iterdir()) == left
    (tmp_path / "CURRENT").write_bytes(current)
    engine = RocksEngine(tmp_path)
    assert engine.begin().get(b"a") == b"1"
    engine.close()


def test_a_read_loads_single_blocks_into_the_cache_of_a_store_opened_again(tmp_path):
    pairs, cache_bytes = 200_000, 5 << 20
    engine = RocksEngine(tmp_path, create=True)
    for first in range(0, pairs, 10_000):
        transaction = engine.begin()
        for number in range(first, first + 10_000):
            transaction.put(b"%08d" % number, b"%08d" % number * 8)
        transaction.commit()
    engine._db.flush()
    engine._db.compact_range(None, None)  # of a table that is new, all of that is kept
    engine.close()
    engine = RocksEngine(tmp_path, cache_bytes=cache_bytes)
    try:
        assert engine._db.property_int_value("rocksdb.block-cache-capacity") == cache_bytes
        before = engine._db.property_int_value("rocksdb.block-cache-usage")
        assert engine.begin().get(b"%08d" % (pairs // 2)) == b"%08d" % (pairs // 2) * 8
        loaded = engine._db.property_int_value("rocksdb.block-cache-usage") - before
        assert loaded < 64 << 10, "not the filter and the index of the whole table"
    finally:
        engine.close()
