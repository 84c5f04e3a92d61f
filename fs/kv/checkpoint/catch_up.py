"""A store that the log can be followed from, for a process that begins: its own, or one from a checkpoint.

U1  a store is replaced only when the log has forgotten the record after its position (`Trimmed`): one that is of
    another history (`Diverged`) is left as it is
U2  it is replaced by a checkpoint whose position is in the log, which was verified, and is listed here: a process
    that is killed on the way finds that at its next start, and needs no other replica
"""

import logging
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, Protocol

from ...clock import Clock, SystemClock
from ...errors import CorruptData, Error, NoSpace, Unavailable
from ..applied import Applied
from ..log import START, Diverged, OrderedLog, Position, Trimmed
from ..rocksdb import CACHE_BYTES, RocksEngine
from .catalog import Catalog, Checkpoint, in_thread
from .fetch import Source, fetch
from .keeper import announcements
from .restore import restore

log = logging.getLogger(__name__)

_SYSTEM_CLOCK: Final = SystemClock()


class Disk(Protocol):
    """A replica's store and the checkpoints beside it, while no engine is open."""

    def open(self) -> Applied:
        """Open the store; one that does not exist is created, and is at the beginning."""

    def positions(self) -> Sequence[Position]:
        """Return those of the checkpoints, oldest first."""

    async def fetch(self, address: str) -> Position:
        """Copy the newest checkpoint of the replica at `address` to here, and return its position.

        Raises: NoSpace; another Error if that replica gives none.
        """

    async def replace(self, position: Position) -> None:
        """Put the checkpoint of that position in place of the store.

        Raises: CorruptData if it is damaged: then the store was left as it is, and the checkpoint is gone.
        """


@dataclass(frozen=True, slots=True)
class StoreDisk:
    """A `Disk` with RocksDB. `source` reaches the replica at an address; `cached`, `cache_bytes`: see `RocksEngine`."""

    store: Path
    catalog: Catalog
    log_id: bytes
    source: Callable[[str], Source]
    cached: bytes = b""
    cache_bytes: int = CACHE_BYTES
    clock: Clock = _SYSTEM_CLOCK

    def open(self) -> Applied:
        engine = RocksEngine(self.store, create=True, cached=self.cached, cache_bytes=self.cache_bytes)
        try:
            return Applied(engine, log_id=self.log_id, create=True)
        except BaseException:
            engine.close()
            raise

    def positions(self) -> Sequence[Position]:
        return [checkpoint.seal.position for checkpoint in self._checkpoints()]

    async def fetch(self, address: str) -> Position:
        checkpoint = await fetch(self.source(address), self.catalog, log_id=self.log_id, clock=self.clock)
        return checkpoint.seal.position

    async def replace(self, position: Position) -> None:
        checkpoint = next(each for each in self._checkpoints() if each.seal.position == position)
        try:
            await self.catalog.verify(checkpoint)
        except CorruptData:
            await self.catalog.discard(
                checkpoint
            )  # else another replica's of this position would not be fetched
            raise
        if self.store.exists():
            await in_thread(lambda _check: shutil.rmtree(self.store))
        await restore(checkpoint, self.store)

    def _checkpoints(self) -> Sequence[Checkpoint]:
        return [each for each in self.catalog.checkpoints() if each.seal.log_id == self.log_id]


async def open_store(log: OrderedLog, disk: Disk, *, name: str) -> Applied:
    """Return the store, open, at a position from which `log` can be followed. Its engine is closed by the caller.

    `name`: under which this replica announces its own checkpoints.
    Raises: Unavailable if no replica gives a checkpoint that is needed; Diverged; CorruptData; what the log raises.
    """
    applied = disk.open()
    try:
        is_behind = await _is_behind(log, applied.position)
    except BaseException:
        applied.engine.close()
        raise
    if not is_behind:
        return applied
    behind = applied.position
    applied.engine.close()
    await _replace(log, disk, behind, name=name)
    return disk.open()


async def _replace(ordered: OrderedLog, disk: Disk, behind: Position, *, name: str) -> None:
    """Replace the store by a checkpoint that is here, or another replica's. Raises: Unavailable."""
    for position in reversed(disk.positions()):
        if await _fits(ordered, position) and await _was_replaced(disk, behind, position):
            return
    reasons = []
    for other, announced in sorted(
        (await announcements(ordered)).items(), key=lambda pair: pair[1].position.index, reverse=True
    ):
        if other == name or announced.position == START:
            continue
        try:
            position = await disk.fetch(announced.address)
        except NoSpace:
            raise
        except Error as error:  # also of a stranger who listens at that address now
            reasons.append(f"{other}: {error}")
            continue
        if not await _fits(ordered, position):
            reasons.append(f"{other}: the log does not continue its checkpoint {position.index}")
        elif await _was_replaced(disk, behind, position):
            return
    why = "; ".join(reasons) or "no other replica has announced one"
    raise Unavailable(f"the store needs a checkpoint of another replica, and none gives one ({why})")


async def _was_replaced(disk: Disk, behind: Position, position: Position) -> bool:
    """Replace the store; return False if the checkpoint is damaged."""
    log.warning(
        "the store is at record %d, which the log does not continue: restoring checkpoint %d",
        behind.index,
        position.index,
    )
    try:
        await disk.replace(position)
    except CorruptData as error:
        log.warning("%s", error)
        return False
    return True


async def _is_behind(log: OrderedLog, position: Position) -> bool:
    """Whether records after the position are missing. Raises: Diverged."""
    try:
        await log.read(position, limit=1)
    except Trimmed:
        return True
    return False


async def _fits(log: OrderedLog, position: Position) -> bool:
    try:
        return not await _is_behind(log, position)
    except Diverged:
        return False


__all__ = ["Disk", "StoreDisk", "open_store"]
