"""Power loss at every change that the store makes to its disk: transactions, flushes of the log, tables, compactions.

Whatever is left, the store opens and is what it was after one of the transactions since the last finished sync: all of
that one, all before it, and none after it.
"""

import asyncio
import random
from pathlib import Path

import pytest

from luciola.kv import Durability, run
from luciola.kv.rocksdb import RocksEngine
from power_disk import PowerDisk, can_mount, every_state
from power_store import RecordedStore

pytestmark = [
    pytest.mark.mount,
    pytest.mark.crate("build", "--example", "power_disk"),
    pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse"),
]
CUTS_MIN = 200  # of the recorded workload; fewer: a part of it is not tested any more


async def work(engine: RecordedStore, dice: random.Random, count: int, value_bytes: int) -> None:
    """Transactions of one to five keys, some of which delete or clear, some of which wait for the disk."""

    def change(transaction):
        for _ in range(dice.randint(1, 5)):
            key = b"k%02d" % dice.randrange(30)
            match dice.randrange(8):
                case 0:
                    transaction.delete(key)
                case 1:
                    transaction.delete_range(key, b"k%02d" % dice.randrange(30))
                case _:
                    transaction.put(key, dice.randbytes(dice.randrange(value_bytes)))

    for _ in range(count):
        durability = Durability.SYNC if dice.randrange(4) == 0 else Durability.WRITE
        await run(engine, change, durability=durability)


def test_transactions_are_whole_and_in_order_whenever_power_is_lost(tmp_path):
    with PowerDisk(tmp_path / "disk") as disk:
        directory = disk.record("kv") / "store"
        store = RecordedStore(disk, "kv", directory)
        asyncio.run(work(store, random.Random(1), 25, 3000))
        store.close()
        store = RecordedStore(disk, "kv", directory, before=store)
        asyncio.run(work(store, random.Random(2), 10, 3000))
        store.close()

        def check(path: Path, cut: int) -> None:
            store.check(path / "store", cut)

        def recover(path: Path) -> None:
            RocksEngine(path / "store", create=True).close()

        report = every_state(
            disk, "kv", check, promises=store.promises, recover=recover, recoveries_every=100
        )
        print(report)
        assert report.cuts >= CUTS_MIN, report


def test_tables_and_compactions_lose_nothing_whenever_power_is_lost(tmp_path):
    with PowerDisk(tmp_path / "disk") as disk:
        directory = disk.record("kv") / "store"
        store = RecordedStore(disk, "kv", directory, write_buffer_bytes=64 << 10)
        asyncio.run(work(store, random.Random(3), 40, 16_000))
        store.close()

        def check(path: Path, cut: int) -> None:
            store.check(path / "store", cut)

        report = every_state(disk, "kv", check, promises=store.promises)
        print(report)
        assert report.cuts >= CUTS_MIN, report
