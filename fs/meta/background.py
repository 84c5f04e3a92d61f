"""What a metadata service does besides answering, for as long as it serves its store."""

import logging
from typing import Final

from ..clock import Clock
from ..config import MetaConfig
from ..errors import Error
from .collector import Collector
from .dependencies import Dependencies

log: Final = logging.getLogger("luciola.meta")


async def collect(collector: Collector, dependencies: Dependencies, clock: Clock) -> None:
    """Remove garbage in the background; return never."""
    await dependencies.inode_counter.count_all(dependencies.engine)
    while True:
        try:
            while await collect_once(collector, dependencies):
                await clock.sleep(0.001)
        except Error as error:
            log.warning("garbage collection round ended: %s; another one follows", error)
        except Exception:  # the top of a task: a defect here must not take the namespace down
            log.exception("garbage collection round failed")
        await clock.sleep(dependencies.shared.config.gc_interval_ms / 1000)


async def collect_once(collector: Collector, dependencies: Dependencies) -> int:
    """Run a round of the collector, unless the namespace is being loaded; return how much was done."""
    async with dependencies.load.lock:
        return 0 if dependencies.load.is_active else await collector.round()


async def resume_truncations(dependencies: Dependencies, clock: Clock) -> None:
    """Complete interrupted truncations, apart from collection: each waits for its chains. Return never."""
    while True:
        try:
            await dependencies.truncations.resume()
        except Error as error:
            log.warning("resuming truncations ended: %s; they are tried again", error)
        except Exception:  # the top of a task: a defect here must not take the namespace down
            log.exception("resuming truncations failed")
        await clock.sleep(dependencies.shared.config.gc_interval_ms / 1000)


def configure(collector: Collector, dependencies: Dependencies, config: MetaConfig) -> None:
    """Use the hot keys of `config` from now on."""
    collector.config = dependencies.shared.config = config


__all__ = ["collect", "collect_once", "configure", "resume_truncations"]
