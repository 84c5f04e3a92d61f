"""A primary without a process around it, for the contract of engines: its log, its lease, and the loop that they need.

Contract tests call an engine outside of any event loop, where nothing is stored: `stored` engines run the loop with
each commit. At the end all is stored, and a second store that reads the log must be equal.
"""

import asyncio
import random
from collections.abc import Iterator
from contextlib import contextmanager

from luciola.kv import Engine, MemoryEngine, Transaction
from luciola.kv.applied import Applied
from luciola.kv.conflicts import COMMITS_MAX
from luciola.kv.log import Appender, Contender, Leadership, MemoryLog, OrderedLog
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from luciola.kv.replica import PrimaryEngine
from store_content import content

LOG = b"contract"


class StillClock:
    """No time passes, and every wait is over at once."""

    def monotonic(self) -> float:
        return 1000.0

    def boot_id(self) -> str:
        return "still"

    def unix_ns(self) -> int:
        return 1_700_000_000_000_000_000

    async def sleep(self, duration_s: float) -> None:
        await asyncio.sleep(0)


class StoredAtOnce(PrimaryEngine):
    """Each commit is stored before it returns."""

    loop: asyncio.AbstractEventLoop

    def commit(self, transaction: Transaction) -> int:
        version = super().commit(transaction)
        self.loop.run_until_complete(self.sync())
        return version


def unreliable(seed: int):
    """A plan: a third of all appends are refused, lost, or done without an answer."""
    dice = random.Random(seed)

    def plan(method: str) -> Outcome:
        if method != "append" or dice.random() > 0.33:
            return Outcome()
        return Outcome(dice.choice([Fault.REFUSED, Fault.LOST, Fault.DONE]))

    return plan


@contextmanager
def primary(
    inner: Engine, *, stored: bool, faulty: bool = False, commits_max: int = COMMITS_MAX
) -> Iterator[PrimaryEngine]:
    """A primary over `inner`, which is closed at the end."""
    shared = MemoryLog()
    log: OrderedLog = FaultyLog(shared, unreliable(5)) if faulty else shared
    clock = StillClock()
    applied = Applied(inner, log_id=LOG, create=True)
    with asyncio.Runner() as runner:
        leadership = runner.run(_lead(log, clock))
        appender = Appender(log, leadership, applied.position, clock=clock)
        made = (StoredAtOnce if stored else PrimaryEngine)(
            applied, leadership, appender, commits_max=commits_max
        )
        if isinstance(made, StoredAtOnce):
            made.loop = runner.get_loop()
        try:
            yield made
            runner.run(_end(made))
            assert content(inner) == runner.run(_replayed(shared))
        finally:
            made.close()
            runner.run(_close(made, leadership))
            inner.close()


async def _lead(log: OrderedLog, clock: StillClock) -> Leadership:
    return await Contender(log, "the primary", clock=clock).lead()


async def _end(engine: PrimaryEngine) -> None:
    await engine.sync()


async def _close(engine: PrimaryEngine, leadership: Leadership) -> None:
    await engine.ended()
    await leadership.close()


async def _replayed(log: MemoryLog) -> object:
    engine = MemoryEngine()
    applied = Applied(engine, log_id=LOG, create=True)
    while records := await log.read(applied.position):
        for record in records:
            applied.apply(record)
    return content(engine)
