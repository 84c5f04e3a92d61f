"""Chunks set aside: what a returning replica held and its chain never had.

    DATA/quarantine/CHAIN-CONTENT.INDEX-CHAINVERSION.VERSION   the bytes of one chunk; CONTENT in hexadecimal

They may be the only copy of writes that were acknowledged and not synced before the power went. Each is kept for
`quarantine_s`, so that somebody can look at it, and then deleted.
"""

import asyncio
import logging
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..config import StorageConfig
from .compare import Record
from .engine import Engine

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3600.0  # between looks at what is old enough


@dataclass(slots=True)
class Counters:
    """Since the process started."""

    chunks: int = 0
    expired: int = 0


class Quarantine:
    """The chunks that one node has set aside."""

    def __init__(self, engine: Engine, folder: Path, *, config: StorageConfig) -> None:
        self.counters: Final = Counters()
        self.config = config
        self._engine = engine
        self._folder = folder

    async def keep(self, chain: int, chain_version: int, record: Record) -> bool:
        """Sets a chunk aside, if it is still in that state; whether it was.

        A record that our predecessor cannot read makes the chunk unreadable, if nothing of it is committed here.

        Raises: StaleRouting if our replica is not SYNCING under that version, Busy, NoSpace.
        """
        stamp = (record.chain_version, record.version)
        kept = await self._engine.run(
            self._engine.node.quarantine, chain, chain_version, record.name, stamp, self._folder
        )
        if kept and record.is_unreadable:
            log.error("chain %d: chunk %x.%d is lost: its predecessor cannot read it", chain, *record.name)
        elif kept:
            self.counters.chunks += 1
            log.error(
                "chain %d: chunk %x.%d in version %d.%d, %d bytes, was never in its chain; set aside for %d s in %s "
                "(docs/operations.md)",
                *(chain, *record.name, *stamp, record.length, self.config.quarantine_s, self._folder),
            )
        return kept

    async def run(self) -> None:
        """Deletes what is old enough, now and then."""
        while True:
            try:
                self.counters.expired += await asyncio.to_thread(self.expire, time.time())
            except OSError as error:
                log.warning("deleting chunks that were set aside failed (%s); tried again later", error)
            await asyncio.sleep(INTERVAL_S)

    def expire(self, now_unix_s: float) -> int:
        """Deletes what was set aside too long ago; how many chunks. Raises: OSError."""
        if not self._folder.exists():
            return 0
        old = [
            path
            for path in self._folder.iterdir()
            if now_unix_s - path.stat().st_mtime >= self.config.quarantine_s
        ]
        for path in old:
            path.unlink()
            log.info("deleted %s, set aside more than %d s ago", path, self.config.quarantine_s)
        return len(old)


__all__ = ["Counters", "Quarantine"]
