"""Chunks set aside: what a returning replica held and its chain never had.

    DATA/quarantine/CHAIN-CONTENT.INDEX-CHAINVERSION.VERSION   the bytes of one chunk; CONTENT in hexadecimal

They may be the only copy of writes that were acknowledged and not synced before the power went. Each is kept for
`quarantine_s`, so that an operator can look at it, and then deleted.

The wall clock alone never expires a chunk, since it may be set forwards: this process must have seen the file for
`quarantine_s` on the boot clock, or have run for `SETTLE_S`, in which a wrong clock is noticed, where it found the file
at its start.
"""

import asyncio
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..clock import Clock, SystemClock
from ..config import StorageConfig
from .compare import Record
from .engine import Engine

log = logging.getLogger(__name__)

INTERVAL_S: Final = 3600.0  # between looks at what is old enough
SETTLE_S: Final = 86_400.0  # a machine with a dead clock has been synchronized or attended to by then


@dataclass(slots=True)
class Counters:
    """Since the process started."""

    chunks: int = 0
    expired: int = 0


class Quarantine:
    """The chunks that one node has set aside."""

    def __init__(
        self, engine: Engine, folder: Path, *, config: StorageConfig, clock: Clock | None = None
    ) -> None:
        self.counters: Final = Counters()
        self.config = config
        self._engine = engine
        self._folder = folder
        self._clock = clock or SystemClock()
        self._found: dict[str, float] | None = None  # name of a file → when the boot clock lets it expire

    async def keep(self, chain: int, chain_version: int, record: Record) -> bool:
        """Set a chunk aside, if it is still in that state; return whether it was.

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
        """Delete what is old enough, every `INTERVAL_S`."""
        while True:
            try:
                self.counters.expired += await asyncio.to_thread(self.expire)
            except OSError as error:
                log.warning(
                    "quarantine: deleting expired chunks failed: %s; tried again in %d s", error, INTERVAL_S
                )
            await asyncio.sleep(INTERVAL_S)

    def expire(self) -> int:
        """Delete what was set aside too long ago; return how many chunks. Raises: OSError."""
        now_s = self._clock.monotonic()
        paths = list(self._folder.iterdir()) if self._folder.exists() else []
        wait_s = SETTLE_S if self._found is None else self.config.quarantine_s
        found = self._found or {}
        self._found = {path.name: found.get(path.name, now_s + wait_s) for path in paths}
        old = [path for path in paths if now_s >= self._found[path.name] and self._is_old(path)]
        for path in old:
            path.unlink()
            log.info("quarantine: deleted %s, older than %d s", path, self.config.quarantine_s)
        return len(old)

    def _is_old(self, path: Path) -> bool:
        return self._clock.unix_ns() / 1e9 - path.stat().st_mtime >= self.config.quarantine_s


__all__ = ["Counters", "Quarantine"]
