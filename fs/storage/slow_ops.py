"""Log the chunks whose updates make no progress, and what they wait for."""

import asyncio
import logging
from typing import Final

from .engine import Engine

log = logging.getLogger(__name__)

SLOW_S: Final = 10.0  # longer than a send to a successor may take, shorter than a client's attempt
INTERVAL_S: Final = 10.0
LINES_MAX: Final = 8  # per look: where one node hangs, hundreds of chunks wait for the same


async def report(engine: Engine) -> None:
    """Look periodically; return never."""
    while True:
        await asyncio.sleep(INTERVAL_S)
        await look(engine, slow_s=SLOW_S)


async def look(engine: Engine, *, slow_s: float) -> None:
    """Log a warning for each chunk that something has held for `slow_s`, the longest first."""
    lines = await engine.quick(engine.node.slow_ops, slow_s)
    for line in lines[:LINES_MAX]:
        log.warning("slow update: %s", line)
    if len(lines) > LINES_MAX:
        log.warning("slow update: suppressed %d further chunks", len(lines) - LINES_MAX)


__all__ = ["look", "report"]
