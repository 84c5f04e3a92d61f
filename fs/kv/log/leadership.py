"""Who leads: a claim in the log, and a lease on it that is measured with each process's own clock.

    L1  at no moment do two processes hold a leadership
    L2  while a process holds one, no record of another has been stored since it began to lead

A leader renews its claim and relies on a renewal for `lease_s` from when it *sent* it, less the drift; a contender
ends a claim after it has seen it unchanged for `lease_s`, plus the drift, from when it *received* it. Of a renewal
with an unknown outcome the leader makes nothing, and the contender what it sees. Both measure on the boot clock, which
runs while a machine is suspended. Clocks are never compared, only durations on clocks whose rates differ by less.

What etcd offers for this, its own leases, is not used (docs/decisions/0040-metadata-log.md).
"""

import asyncio
import contextlib
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Final

from ...clock import Clock, SystemClock
from ...errors import MaybeCommitted, NoSpace, Timeout, Unavailable
from .ordered_log import Claim, Deposed, OrderedLog, check_owner

log = logging.getLogger(__name__)

LEASE_S: Final = 3.0  # an etcd that elects a leader of its own is silent for one to two seconds
DRIFT: Final = 0.05  # clocks whose rates differ from the true one by more are broken
RENEWALS: Final = 4  # sent during one lease: some of them may be lost
HELD_S: Final = 0.2  # between looks whether this process is to hold back for longer
RETRY_S: Final = 0.05  # between attempts after errors: etcd answers again some milliseconds after an election
assert DRIFT < 1.0 / RENEWALS, "a lease outlasts the wait between two renewals"

_SYSTEM_CLOCK: Final = SystemClock()
_TRANSIENT: Final = (Unavailable, Timeout, MaybeCommitted)


class Leadership:
    """What a process that leads has: `Contender.lead` makes it. It renews itself until it is lost or closed."""

    def __init__(self, log: OrderedLog, claim: Claim, *, sent_s: float, clock: Clock) -> None:
        self._log = log
        self._claim = claim
        self._clock = clock
        self._lost: str | None = None
        self._ended = asyncio.Event()
        self.until_s = 0.0  # on the clock's scale: the end of the lease
        self._extend(sent_s)
        self._task = asyncio.create_task(self._keep(), name="log-leadership")

    @property
    def epoch(self) -> int:
        """Of the claim; larger than any before."""
        return self._claim.epoch

    @property
    def reason(self) -> str:
        """Why it does not hold any more."""
        return self._lost or "its lease has run out"

    def holds(self) -> bool:
        """Whether no other process leads at this moment."""
        return self._lost is None and self._clock.monotonic() < self.until_s

    async def lost(self) -> str:
        """Wait for its end; return the reason."""
        await self._ended.wait()
        return self.reason

    def lose(self, reason: str) -> None:
        """Lead no more from now on: the claim has gone, or what this process has does not follow the log."""
        if self._lost is None:
            self._lost = reason
            self._ended.set()

    async def close(self) -> None:
        """Stop leading; others wait for the lease to end."""
        self.lose("it was given up")
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)

    async def resign(self) -> None:
        """Stop leading and let another begin at once. An append that is in flight may be stored or not."""
        await self.close()
        with contextlib.suppress(*_TRANSIENT, NoSpace):  # then others wait for the lease
            while (claim := await self._log.claim()) is not None and claim.epoch == self.epoch:
                if await self._log.end_claim(claim):
                    return
                # a renewal that was still on its way was stored in between: it is the last one

    def _extend(self, sent_s: float) -> None:
        self.until_s = max(self.until_s, sent_s + self._claim.lease_s * (1 - DRIFT))

    async def _keep(self) -> None:
        """Renew in time; end with the leadership."""
        try:
            while self.holds():
                await self._clock.sleep(await self._renew())
        except Deposed:
            self.lose("another process has ended its claim")
        except asyncio.CancelledError:
            raise
        except Exception as error:  # the top of a task: without renewals the leadership ends
            log.exception("renewing the claim on the log failed; the leadership ends")
            self.lose(f"renewing failed: {error}")
        self.lose("its lease has run out")

    async def _renew(self) -> float:
        """Renew once; return how long to wait before the next time."""
        sent_s = self._clock.monotonic()
        limit_s = min(self.until_s - sent_s, self._claim.lease_s / 2)
        try:
            async with asyncio.timeout(limit_s):
                self._claim = await self._log.renew_claim(self._claim)
        except Deposed:
            raise
        except (*_TRANSIENT, NoSpace, TimeoutError) as error:
            log.warning("renewing the claim on the log failed (%s); trying again", str(error) or "no answer")
            return min(RETRY_S, self._claim.lease_s / RENEWALS)
        self._extend(sent_s)
        return self._claim.lease_s / RENEWALS


class Contender:
    """A process that wants to lead `log`. `owner` says to others who leads, and how to reach it."""

    def __init__(
        self, log: OrderedLog, owner: str, *, lease_s: float = LEASE_S, clock: Clock = _SYSTEM_CLOCK
    ) -> None:
        check_owner(owner)
        assert lease_s > 0, "a lease lasts"
        self._log = log
        self._owner = owner
        self._lease_s = lease_s
        self._clock = clock
        self._seen: Claim | None = None
        self._seen_s = 0.0  # when the revision that was seen last was received
        self._held_until_s = clock.monotonic()

    def hold_back(self, duration_s: float) -> None:
        """Let others lead: claim nothing for `duration_s` from now on. 0: claim what can be claimed."""
        assert duration_s >= 0, "it is a duration"
        self._held_until_s = self._clock.monotonic() + duration_s

    @property
    def is_held(self) -> bool:
        """Whether others are to lead."""
        return self._clock.monotonic() < self._held_until_s

    async def lead(self) -> Leadership:
        """Return when this process leads. Raises: NoSpace; Ended; what is transient is tried again without end."""
        while True:
            try:
                leadership = await self._attempt()
            except Deposed:
                raise AssertionError("only renewals and appends are deposed") from None
            except _TRANSIENT as error:
                log.info("the log cannot be claimed now (%s); trying again", error)
                leadership = None
            if leadership is not None:
                return leadership
            await self._clock.sleep(RETRY_S)

    async def _attempt(self) -> Leadership | None:
        """Wait until no claim stands, then claim the log. Returns None if another was faster, or is to be."""
        await self._wait_for_end()
        if self.is_held:
            await self._clock.sleep(min(HELD_S, self._held_until_s - self._clock.monotonic()))
            return None
        sent_s = self._clock.monotonic()
        claim = await self._log.create_claim(self._owner, lease_s=self._lease_s)
        if claim is None:
            return None
        log.info("leading the log with epoch %d as %s", claim.epoch, self._owner)
        return Leadership(self._log, claim, sent_s=sent_s, clock=self._clock)

    async def _wait_for_end(self) -> None:
        """Return when there is no claim: its owner has ended it, or it was ended here for its silence."""
        while True:
            async with aclosing(self._log.claims()) as claims:
                await self._watch(claims)
            claim = self._seen
            if claim is None:
                return
            if self._left_s(claim) > 0:  # the loop's clock is faster than ours
                continue
            if not await self._log.end_claim(claim):
                raise Unavailable("the claim was renewed, but no renewal was seen")
            log.warning("%s has not renewed its claim on the log for its lease: ended it", claim.owner)
            self._seen = None

    async def _watch(self, claims: AsyncGenerator[Claim | None]) -> None:
        """Return when there is no claim, or its lease has run out."""
        self._see(await anext(claims))
        while self._seen is not None and (left_s := self._left_s(self._seen)) > 0:
            try:
                async with asyncio.timeout(left_s):
                    claim = await anext(claims)
            except Timeout:
                raise
            except TimeoutError:  # of this block
                return
            self._see(claim)

    def _see(self, claim: Claim | None) -> None:
        if claim is None or self._seen is None or claim.revision != self._seen.revision:
            self._seen = claim
            self._seen_s = self._clock.monotonic()

    def _left_s(self, claim: Claim) -> float:
        return self._seen_s + claim.lease_s * (1 + DRIFT) - self._clock.monotonic()


__all__ = ["DRIFT", "LEASE_S", "Contender", "Leadership"]
