"""An event loop whose time passes only when nothing else can happen: an hour of timeouts takes a moment.

    result = simulate(scenario())        # `asyncio.run`, in virtual time
    clock = LoopClock(rate=1.04)         # a process's clock, which runs 4 % fast

What is simulated may use everything of asyncio but threads and the network. A simulation in which nothing can ever
happen again fails at once, as does one that takes longer than its limit (of virtual time).
"""

import asyncio
import selectors
from collections.abc import Coroutine
from typing import Any, TypeVar

T = TypeVar("T")

LIMIT_S = 3600.0


class Stuck(AssertionError):
    """Every task waits for something that nothing will do."""


class _Selector(selectors.SelectSelector):
    """Waits for no descriptor; moves time forward by what it should have waited."""

    def __init__(self) -> None:
        super().__init__()
        self.now_s = 0.0

    def select(self, timeout: float | None = None):
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise Stuck("every task waits for something that nothing will do")
            self.now_s += max(0.0, timeout)
        return ready


class VirtualLoop(asyncio.SelectorEventLoop):
    """See the module."""

    def __init__(self) -> None:
        self._selector_of_time = _Selector()
        super().__init__(self._selector_of_time)

    def time(self) -> float:
        return self._selector_of_time.now_s


def simulate(scenario: Coroutine[Any, Any, T], *, limit_s: float = LIMIT_S) -> T:
    """Return what `scenario` returns; it must end within `limit_s` of virtual time."""

    async def limited() -> T:
        async with asyncio.timeout(limit_s):
            return await scenario

    with asyncio.Runner(loop_factory=VirtualLoop) as runner:
        return runner.run(limited())


class LoopClock:
    """A clock (`luciola.clock.Clock`) that runs `rate` times as fast as the loop's time, from `start_s` on."""

    def __init__(self, *, rate: float = 1.0, start_s: float = 1000.0) -> None:
        self.rate = rate
        self.start_s = start_s

    def monotonic(self) -> float:
        return self.start_s + asyncio.get_running_loop().time() * self.rate

    def boot_id(self) -> str:
        return "simulated"

    def unix_ns(self) -> int:
        return 1_700_000_000_000_000_000 + round(self.monotonic() * 1e9)

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(duration_s / self.rate)
