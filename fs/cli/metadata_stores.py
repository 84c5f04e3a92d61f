"""Stores of a cluster that is stopped, as commands use them that move or restore its metadata."""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ..errors import CorruptData
from ..kv.applied import Applied
from ..kv.checkpoint.catalog import sync_directory, sync_file
from ..kv.log import Bounds, OrderedLog
from ..kv.log.ordered_log import check_position
from ..kv.rocksdb import RocksEngine
from .metadata_log import patiently

log = logging.getLogger(__name__)


@contextmanager
def opened(store: Path) -> Iterator[RocksEngine]:
    """Open a store inside the block. Raises: CorruptData; Busy if a process has it open."""
    engine = RocksEngine(store)
    try:
        yield engine
    finally:
        engine.close()


def furthest_first(stores: Sequence[Path], log_id: bytes) -> Sequence[Path]:
    """Return the stores that follow the log and can be opened, by how far they have come."""
    found = []
    for store in stores:
        try:
            with opened(store) as engine:
                found.append((Applied(engine, log_id=log_id).position.index, store))
        except CorruptData as error:
            log.warning("%s is left out: %s", store, error)
    return [store for _, store in sorted(found, reverse=True)]


async def bring_up(ordered: OrderedLog, bounds: Bounds, engine: RocksEngine, log_id: bytes) -> None:
    """Bring a store to the end of its log. Raises: Trimmed, Diverged, CorruptData; what etcd raises."""
    applied = Applied(engine, log_id=log_id)
    while applied.position.index < bounds.last.index:
        for record in await patiently(lambda: ordered.read(applied.position)):
            applied.apply(record)
    check_position(applied.position, bounds)
    await engine.sync()


def make_durable(store: Path) -> None:
    """See to it that files and names of a closed store survive power loss."""
    for path in store.iterdir():
        sync_file(path)
    sync_directory(store)


__all__ = ["bring_up", "furthest_first", "make_durable", "opened"]
