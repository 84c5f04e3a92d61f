"""Time as a dependency: services take a `Clock`, tests hand them one they turn by hand.

Promises between machines (leases, timeouts of sessions, moments from which a request is void) are measured on the boot
clock, which runs while a machine is suspended. CLOCK_MONOTONIC stands still then, and a promise would last longer
here than where it was made. Waits of one process (`sleep`, the event loop) may stand still: they end later, never
earlier, and what is decided after them looks at the boot clock.
"""

import asyncio
import time
from pathlib import Path
from typing import Final, Protocol

BOOT_ID: Final = Path("/proc/sys/kernel/random/boot_id")


def boot_s() -> float:
    """Seconds since the machine was started, the time it was suspended included."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Clock(Protocol):
    """What a service may know of time."""

    def monotonic(self) -> float:
        """Seconds on the boot clock, which only goes forward; durations are measured with it."""

    def boot_id(self) -> str:
        """Of which boot: data that the kernel had taken can be missing only after another one."""

    def unix_ns(self) -> int:
        """Nanoseconds since 1970, for time stamps that people see."""

    async def sleep(self, duration_s: float) -> None:
        """Wait."""


class SystemClock:
    """The machine's clock."""

    def monotonic(self) -> float:
        return boot_s()

    def boot_id(self) -> str:
        return BOOT_ID.read_text().strip()

    def unix_ns(self) -> int:
        return time.time_ns()

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s)


class ManualClock:
    """A clock that stands still until `advance` is called."""

    def __init__(self, *, start_s: float = 1000.0) -> None:
        self._now_s = start_s
        self._boots = 1
        self._sleepers: list[tuple[float, asyncio.Future[None]]] = []

    def monotonic(self) -> float:
        return self._now_s

    def boot_id(self) -> str:
        return f"boot {self._boots}"

    def reboot(self) -> None:
        """From now on it is another boot's."""
        self._boots += 1

    def unix_ns(self) -> int:
        return 1_700_000_000_000_000_000 + int(self._now_s * 1e9)

    def advance(self, duration_s: float) -> None:
        """Move time forward and wake the sleepers whose time has come."""
        assert duration_s >= 0, "time does not go back"
        self._now_s += duration_s
        due = [future for at, future in self._sleepers if at <= self._now_s]
        self._sleepers = [(at, future) for at, future in self._sleepers if at > self._now_s]
        for future in due:
            if not future.done():
                future.set_result(None)

    async def sleep(self, duration_s: float) -> None:
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self._now_s + duration_s, future))
        await future


__all__ = ["Clock", "ManualClock", "SystemClock", "boot_s"]
