"""Whether the disk answers. One that hangs gives no error: every call to it waits, while heartbeats would continue.

W1  A probe overwrites one block of a file, past the page cache and without a journal commit. It waits for the device
    and for nothing that others have written, so that a loaded disk answers it, however much there is to flush.
W2  A probe that `limit_s` does not end is a disk that hangs. It is looked at `LOOKS` times meanwhile, so a process or a
    machine that was stopped itself, and missed the time, does not conclude anything from it.
W3  Accesses of the engine may wait for gigabytes to be flushed. They count as hanging only after `ACCESS_FACTOR` times
    as long: something between them and a device that answers is stuck then.
"""

import errno
import logging
from collections.abc import Callable
from concurrent.futures import Future
from typing import Final

from ..clock import Clock

log = logging.getLogger(__name__)

LOOKS: Final = 6
ACCESS_FACTOR: Final = 10


class DiskWatch:
    """Watches one disk for as long as the process runs."""

    def __init__(
        self,
        probe: Callable[[], Future[None]],
        oldest_access_s: Callable[[], float],
        failed: Callable[[str], None],
        *,
        clock: Clock,
        limit_s: float,
    ) -> None:
        """Call `failed` with the reason when a probe fails with EIO, or something waits for too long.

        `probe`: begins one, on a thread of its own, since all others may wait for the disk.
        `oldest_access_s`: how long the engine's oldest access to the disk has been in flight.
        """
        self._probe = probe
        self._oldest_access_s = oldest_access_s
        self._failed = failed
        self._clock = clock
        self._limit_s = limit_s

    async def run(self) -> None:
        """Probe the disk until cancelled."""
        probe: Future[None] | None = None
        looks = 0
        while True:
            if probe is None:
                probe, looks = self._probe(), 0
            await self._clock.sleep(self._limit_s / LOOKS)
            looks += 1
            if probe.done():
                self._review(probe)
                probe = None
            elif looks == LOOKS:
                self._failed(f"a write of one block has not ended for {self._limit_s:.0f} s")
            access_s = self._oldest_access_s()
            if access_s >= ACCESS_FACTOR * self._limit_s:
                self._failed(f"an access of the engine has not ended for {access_s:.0f} s")

    def _review(self, probe: Future[None]) -> None:
        error = probe.exception()
        if error is None:
            return
        if not isinstance(error, OSError):
            raise error
        if error.errno == errno.EIO:
            self._failed("a write of one block failed")
        else:
            log.warning("disk probe failed: %s", error)


__all__ = ["DiskWatch"]
