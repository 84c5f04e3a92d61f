"""A fault-injecting fake: one process's unreliable access to a log that others share."""

import asyncio
import enum
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final, TypeVar

from ...errors import MaybeCommitted, NoSpace, Timeout, Unavailable
from .ordered_log import READ_RECORDS_MAX, Bounds, Claim, OrderedLog, Position, Record

T = TypeVar("T")

CUT_TIMEOUT_S: Final = 0.5  # after which a call to a log that is cut off fails


class Fault(enum.Enum):
    """What happens to one call. Calls that only read fail as if refused where a write's outcome would be unknown."""

    NONE = "none"
    REFUSED = "refused"  # nothing done, and the caller gets Unavailable
    FULL = "full"  # the same, for lack of space
    DONE = "done"  # done, but the caller gets MaybeCommitted
    LOST = "lost"  # never done, and the caller gets MaybeCommitted
    LATE = "late"  # the caller gets MaybeCommitted; done some time after


@dataclass(frozen=True, slots=True)
class Outcome:
    """One call's fate: `before_s` passes until it is executed, `after_s` until its answer arrives."""

    fault: Fault = Fault.NONE
    before_s: float = 0.0
    after_s: float = 0.0
    late_s: float = 1.0  # for LATE: from the error until it is executed


Plan = Callable[[str], Outcome]
"""Given the name of the method, what happens to this call of it."""


def no_faults(_method: str) -> Outcome:
    """Let every call succeed at once."""
    return Outcome()


class FaultyLog(OrderedLog):
    """`inner`, reached through a network that follows `plan`, and can be cut off."""

    def __init__(self, inner: OrderedLog, plan: Plan = no_faults) -> None:
        self.inner = inner
        self.plan = plan
        self._joined = asyncio.Event()
        self._joined.set()
        self._late: set[asyncio.Task[object]] = set()

    def cut(self) -> None:
        """From now on no request and no answer arrives."""
        self._joined.clear()

    def join(self) -> None:
        """End the cut."""
        self._joined.set()

    async def bounds(self) -> Bounds:
        return await self._read("bounds", self.inner.bounds)

    async def read(self, after: Position, *, limit: int = READ_RECORDS_MAX) -> Sequence[Record]:
        return await self._read("read", lambda: self.inner.read(after, limit=limit))

    async def follow(self, after: Position) -> AsyncGenerator[Sequence[Record]]:
        async with aclosing(self.inner.follow(after)) as batches:
            async for batch in batches:
                await self._arrive("follow")
                yield batch

    async def append(self, record: Record) -> None:
        await self._write("append", lambda: self.inner.append(record))

    async def trim(self, first: int) -> None:
        await self._write("trim", lambda: self.inner.trim(first))

    async def announce(self, name: str, value: bytes) -> None:
        await self._write("announce", lambda: self.inner.announce(name, value))

    async def withdraw(self, name: str) -> None:
        await self._write("withdraw", lambda: self.inner.withdraw(name))

    async def announced(self) -> Mapping[str, bytes]:
        return await self._read("announced", self.inner.announced)

    async def claim(self) -> Claim | None:
        return await self._read("claim", self.inner.claim)

    async def claims(self) -> AsyncGenerator[Claim | None]:
        async with aclosing(self.inner.claims()) as claims:
            async for claim in claims:
                await self._arrive("claims")
                yield claim

    async def create_claim(self, owner: str, *, lease_s: float) -> Claim | None:
        return await self._write("create_claim", lambda: self.inner.create_claim(owner, lease_s=lease_s))

    async def renew_claim(self, claim: Claim) -> Claim:
        return await self._write("renew_claim", lambda: self.inner.renew_claim(claim))

    async def end_claim(self, claim: Claim) -> bool:
        return await self._write("end_claim", lambda: self.inner.end_claim(claim))

    async def close(self) -> None:
        """Drop the late calls. The inner log is its owner's."""
        for task in self._late:
            task.cancel()
        await asyncio.gather(*self._late, return_exceptions=True)

    async def _read(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        outcome = self.plan(method)
        await asyncio.sleep(outcome.before_s)
        await self._pass(method)
        if outcome.fault is not Fault.NONE:
            raise Unavailable(f"injected: {method} was refused")
        result = await call()
        await asyncio.sleep(outcome.after_s)
        await self._pass(method)
        return result

    async def _write(self, method: str, call: Callable[[], Awaitable[T]]) -> T:
        outcome = self.plan(method)
        await asyncio.sleep(outcome.before_s)
        if not self._joined.is_set():
            await asyncio.sleep(CUT_TIMEOUT_S)
            raise MaybeCommitted(f"injected: {method} did not arrive")
        match outcome.fault:
            case Fault.REFUSED:
                raise Unavailable(f"injected: {method} was refused")
            case Fault.FULL:
                raise NoSpace(f"injected: no space for {method}")
            case Fault.LOST:
                raise MaybeCommitted(f"injected: {method} was lost")
            case Fault.LATE:
                self._execute_later(call, outcome.late_s)
                raise MaybeCommitted(f"injected: {method} is late")
            case Fault.NONE | Fault.DONE:
                result = await call()
        await asyncio.sleep(outcome.after_s)
        if outcome.fault is Fault.DONE:
            raise MaybeCommitted(f"injected: the answer to {method} was lost")
        if not self._joined.is_set():
            await asyncio.sleep(CUT_TIMEOUT_S)
            raise MaybeCommitted(f"injected: the answer to {method} did not arrive")
        return result

    async def _arrive(self, method: str) -> None:
        """Deliver one item of a stream: late, not at all, or an error in its place."""
        outcome = self.plan(method)
        await asyncio.sleep(outcome.before_s)
        if outcome.fault is not Fault.NONE:
            raise Unavailable(f"injected: {method} was ended")
        await self._joined.wait()

    async def _pass(self, method: str) -> None:
        if not self._joined.is_set():
            await asyncio.sleep(CUT_TIMEOUT_S)
            raise Timeout(f"injected: no answer to {method}")

    def _execute_later(self, call: Callable[[], Awaitable[T]], late_s: float) -> None:
        async def execute() -> object:
            await asyncio.sleep(late_s)
            return await call()

        task = asyncio.create_task(execute(), name="late call")
        self._late.add(task)
        task.add_done_callback(self._end_late)

    def _end_late(self, task: asyncio.Task[object]) -> None:
        self._late.discard(task)
        if not task.cancelled():
            task.exception()  # the refusal of a late call is nothing new


__all__ = ["CUT_TIMEOUT_S", "Fault", "FaultyLog", "Outcome", "Plan", "no_faults"]
