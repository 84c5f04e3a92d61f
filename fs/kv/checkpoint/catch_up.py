"""A store that the log can be followed from, for a process that begins: its own, or one from a checkpoint.

U1  a store is replaced only when the log has forgotten the record after its position (`Trimmed`): one that is of
    another history (`Diverged`) is left as it is
U2  it is replaced by a checkpoint whose position is in the log, which was verified, and is listed here: a process
    that is killed on the way finds that at its next start, and needs no other replica
"""

import logging
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ...clock import Clock, SystemClock
from ...errors import CorruptData, NotFound, Timeout, Unavailable
from ..applied import Applied
from ..log import START, Diverged, OrderedLog, Position, Trimmed
from ..rocksdb import RocksEngine
from .catalog import Catalog, Checkpoint, in_thread
from .fetch import Source, fetch
from .keeper import announcements
from .restore import restore

log = logging.getLogger(__name__)

_SYSTEM_CLOCK: Final = SystemClock()


@dataclass(frozen=True, slots=True)
class Begin:
    """What a replica begins with. `source` reaches the replica at an address, `name` is this replica's own."""

    log: OrderedLog
    log_id: bytes
    store: Path
    catalog: Catalog
    source: Callable[[str], Source]
    name: str
    clock: Clock = _SYSTEM_CLOCK


async def open_store(begin: Begin) -> Applied:
    """Return the store, open, at a position from which the log can be followed. Its engine is closed by the caller.

    Raises: Unavailable if no replica gives a checkpoint that is needed; Diverged; CorruptData; what the log raises.
    """
    applied = _open(begin)
    try:
        is_behind = await _is_behind(begin.log, applied.position)
    except BaseException:
        applied.engine.close()
        raise
    if not is_behind:
        return applied
    behind = applied.position
    applied.engine.close()
    checkpoint = await _find(begin)
    log.warning(
        "the store is at record %d, which the log does not continue: restoring checkpoint %s",
        behind.index,
        checkpoint.name,
    )
    await begin.catalog.verify(checkpoint)
    await in_thread(lambda _check: shutil.rmtree(begin.store))
    await restore(checkpoint, begin.store)
    return _open(begin)


def _open(begin: Begin) -> Applied:
    """Open the store; one that does not exist is created, and is at the beginning."""
    engine = RocksEngine(begin.store, create=True)
    try:
        return Applied(engine, log_id=begin.log_id, create=True)
    except BaseException:
        engine.close()
        raise


async def _is_behind(log: OrderedLog, position: Position) -> bool:
    """Whether records after the position are missing. Raises: Diverged."""
    try:
        await log.read(position, limit=1)
    except Trimmed:
        return True
    return False


async def _find(begin: Begin) -> Checkpoint:
    """Return a checkpoint that is listed here and from which the log can be followed. Raises: Unavailable."""
    for checkpoint in reversed(begin.catalog.checkpoints()):
        if await _fits(begin, checkpoint.seal.position):
            return checkpoint
    others = await announcements(begin.log)
    others = {name: each for name, each in others.items() if name != begin.name and each.position != START}
    for name, other in sorted(others.items(), key=lambda pair: pair[1].position.index, reverse=True):
        try:
            checkpoint = await fetch(
                begin.source(other.address), begin.catalog, log_id=begin.log_id, clock=begin.clock
            )
        except (Unavailable, Timeout, NotFound, CorruptData) as error:
            log.warning("the checkpoint of replica %s cannot be fetched: %s", name, error)
            continue
        if await _fits(begin, checkpoint.seal.position):
            return checkpoint
        log.warning("the checkpoint of replica %s is not followed by what the log keeps", name)
    raise Unavailable("the store needs a checkpoint of another replica, and none gives one")


async def _fits(begin: Begin, position: Position) -> bool:
    try:
        return not await _is_behind(begin.log, position)
    except Diverged:
        return False


__all__ = ["Begin", "open_store"]
