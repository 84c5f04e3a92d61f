"""Ordered transactional key-value engines, in the style of FoundationDB.

    engine     the interface: Transaction, Engine, limits; optimistic concurrency shared by local engines
    conflicts  the window of recent write sets
    views      which versions are still being read
    driver     run(): retries conflicts and unknown outcomes
    memory     for tests and simulation
    rocksdb    the default: one process owns a directory
    record     many operations' writes in one piece of bytes
    overlay    commits that are visible before they are stored
    grouped    an engine over an engine: commits that are made together are stored as one record
    faulty     wraps an engine and fails on purpose
    log/       an ordered log that several processes share, of which one appends
    applied    a store that carries out the records of such a log
    replica    one of several processes that hold the same store: follows the log, and leads it in turn
    replicated opens a replica whose log is in etcd
    checkpoint/  copies of such a store, from which another replica begins

    result = await run(engine, lambda txn: move_money(txn, source, target, amount))

All meaning lives above: an engine knows nothing of inodes and chains. Every engine passes tests/unit/kv.
"""

from .driver import Retry, run
from .engine import VALUE_BYTES_MAX, Durability, Engine, Pair, Transaction, prefix_end
from .memory import MemoryEngine

__all__ = [
    "VALUE_BYTES_MAX",
    "Durability",
    "Engine",
    "MemoryEngine",
    "Pair",
    "Retry",
    "Transaction",
    "prefix_end",
    "run",
]
