"""Contenders and leaderships in virtual time. The random walks are in test_simulation."""

import asyncio
from contextlib import aclosing

import pytest

from luciola.errors import InvalidArgument, NoSpace
from luciola.kv.log import DRIFT, Contender, MemoryLog
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from virtual_loop import LoopClock, simulate

LEASE_S = 10.0


def contender(log, owner="first", *, rate=1.0):
    return Contender(log, owner, lease_s=LEASE_S, clock=LoopClock(rate=rate))


def now() -> float:
    return asyncio.get_running_loop().time()


def test_leader_of_an_unclaimed_log_leads_at_once_and_stays():
    async def scenario():
        log = MemoryLog()
        leadership = await contender(log).lead()
        assert now() == 0.0
        await asyncio.sleep(100 * LEASE_S)
        assert leadership.holds()
        claim = await log.claim()
        assert claim.epoch == leadership.epoch
        assert claim.revision > claim.epoch, "it was renewed"
        await leadership.close()
        assert not leadership.holds()

    simulate(scenario())


def test_second_leads_as_soon_as_the_first_resigns():
    async def scenario():
        log = MemoryLog()
        first = await contender(log).lead()
        waiting = asyncio.create_task(contender(log, "second").lead())
        await asyncio.sleep(50.0)
        assert not waiting.done()
        await first.resign()
        second = await waiting
        assert now() == pytest.approx(50.0)
        assert second.epoch > first.epoch
        assert not first.holds()
        assert (await log.claim()).owner == "second"
        await second.close()

    simulate(scenario())


def test_second_waits_for_the_lease_of_one_that_is_silent():
    async def scenario():
        log = MemoryLog()
        first = await contender(log).lead()
        waiting = asyncio.create_task(contender(log, "second").lead())
        await asyncio.sleep(101.0)
        await first.close()  # as if it had died: its claim stays
        begun_s = now()
        second = await waiting
        assert LEASE_S / 2 < now() - begun_s <= LEASE_S * (1 + DRIFT) + 0.01
        assert second.holds()
        await second.close()

    simulate(scenario())


def test_leader_that_is_cut_off_stops_before_another_begins():
    async def scenario():
        shared = MemoryLog()
        network = FaultyLog(shared)
        first = await contender(network, rate=1 - DRIFT).lead()  # its lease seems short to it
        waiting = asyncio.create_task(contender(shared, "second", rate=1 + DRIFT).lead())
        await asyncio.sleep(33.0)
        network.cut()
        reason = await asyncio.wait_for(first.lost(), LEASE_S)
        assert not waiting.done(), "L1"
        assert "run out" in reason
        second = await waiting
        assert not first.holds()
        await asyncio.gather(first.close(), second.close())

    simulate(scenario())


def test_leader_whose_claim_was_ended_notices():
    async def scenario():
        log = MemoryLog()
        first = await contender(log).lead()
        assert await log.end_claim(await log.claim())
        reason = await asyncio.wait_for(first.lost(), LEASE_S / 2)
        assert "ended its claim" in reason
        await first.close()

    simulate(scenario())


def test_lease_is_measured_from_when_the_renewal_was_sent():
    async def scenario():
        shared = MemoryLog()
        network = FaultyLog(shared, lambda method: Outcome(after_s=1.0))
        clock = LoopClock()
        leadership = await contender(network).lead()
        for _ in range(100):
            assert leadership.until_s <= clock.monotonic() + LEASE_S - 1.0 or leadership.until_s <= (
                clock.monotonic() + LEASE_S * (1 - DRIFT)
            )
            await asyncio.sleep(0.1)
        await leadership.close()

    simulate(scenario())


def test_first_lease_ends_as_if_counted_from_the_request():
    async def scenario():
        shared = MemoryLog()
        network = FaultyLog(shared, lambda method: Outcome(after_s=3.0 if method == "create_claim" else 0.0))
        leadership = await contender(network).lead()
        assert leadership.until_s - LoopClock().monotonic() == pytest.approx(LEASE_S * (1 - DRIFT) - 3.0)
        await leadership.close()

    simulate(scenario())


@pytest.mark.parametrize("fault", [Fault.REFUSED, Fault.DONE, Fault.LOST, Fault.FULL])
def test_renewals_that_fail_now_and_then_cost_nothing(fault):
    calls = 0

    def plan(method):
        nonlocal calls
        calls += method == "renew_claim"
        return Outcome(fault if method == "renew_claim" and calls % 2 else Fault.NONE)

    async def scenario():
        leadership = await contender(FaultyLog(MemoryLog(), plan)).lead()
        await asyncio.sleep(20 * LEASE_S)
        assert leadership.holds()
        await leadership.close()

    simulate(scenario())


def test_renewals_of_unknown_outcome_do_not_extend_the_lease():
    def plan(method):
        return Outcome(Fault.DONE if method == "renew_claim" else Fault.NONE)

    async def scenario():
        leadership = await contender(FaultyLog(MemoryLog(), plan)).lead()
        await leadership.lost()
        assert now() == pytest.approx(LEASE_S * (1 - DRIFT), abs=0.1)
        await leadership.close()

    simulate(scenario())


@pytest.mark.parametrize("fault", [Fault.DONE, Fault.LOST, Fault.LATE])
def test_claim_of_unknown_outcome_is_claimed_again(fault):
    calls = 0

    def plan(method):
        nonlocal calls
        calls += method == "create_claim"
        return Outcome(fault if method == "create_claim" and calls == 1 else Fault.NONE, late_s=0.5)

    async def scenario():
        log = FaultyLog(MemoryLog(), plan)
        leadership = await contender(log).lead()
        assert leadership.holds()
        assert now() <= LEASE_S * (1 + DRIFT) + 1.0
        await asyncio.sleep(5 * LEASE_S)
        assert leadership.holds()
        await leadership.close()
        await log.close()

    simulate(scenario())


def test_contender_asks_again_after_errors():
    left = 5

    def plan(method):
        nonlocal left
        if method in ("claims", "create_claim") and left:
            left -= 1
            return Outcome(Fault.REFUSED)
        return Outcome()

    async def scenario():
        leadership = await contender(FaultyLog(MemoryLog(), plan)).lead()
        assert leadership.holds()
        await leadership.close()

    simulate(scenario())


def test_full_log_is_reported_to_the_contender():
    async def scenario():
        with pytest.raises(NoSpace):
            await contender(FaultyLog(MemoryLog(), _full)).lead()

    simulate(scenario())


def _full(method):
    return Outcome(Fault.FULL if method == "create_claim" else Fault.NONE)


def test_contender_that_is_cancelled_leaves_nothing_behind():
    async def scenario():
        log = MemoryLog()
        first = await contender(log).lead()
        waiting = asyncio.create_task(contender(log, "second").lead())
        await asyncio.sleep(1.0)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        assert len(asyncio.all_tasks()) == 2, "this one and the leader's renewals"
        await first.close()

    simulate(scenario())


def test_resigned_claim_is_gone_even_if_its_last_renewal_was_not_heard_of():
    async def scenario():
        shared = MemoryLog()
        plan = {"after_s": 0.0}
        network = FaultyLog(shared, lambda method: Outcome(**plan if method == "renew_claim" else {}))
        leadership = await contender(network).lead()
        plan["after_s"] = 1000.0
        await asyncio.sleep(LEASE_S / 2)
        async with aclosing(shared.claims()) as claims:
            assert (await anext(claims)).revision > leadership._claim.revision
        await leadership.resign()
        assert await shared.claim() is None

    simulate(scenario())


def test_resigned_claim_is_gone_even_if_a_renewal_is_stored_while_it_is_ended():
    class Renewed(MemoryLog):
        """A renewal that was on its way is stored after the claim was looked at."""

        late = 1

        async def end_claim(self, claim):
            if self.late:
                self.late -= 1
                await self.renew_claim(claim)
            return await super().end_claim(claim)

    async def scenario():
        log = Renewed()
        leadership = await contender(log).lead()
        await leadership.resign()
        assert await log.claim() is None

    simulate(scenario())


@pytest.mark.parametrize("fault", [Fault.FULL, Fault.REFUSED, Fault.LOST])
def test_resignation_that_fails_leaves_the_lease_to_end(fault):
    async def scenario():
        shared = MemoryLog()
        network = FaultyLog(shared, lambda method: Outcome(fault if method == "end_claim" else Fault.NONE))
        leadership = await contender(network).lead()
        await leadership.resign()
        assert not leadership.holds()
        second = await contender(shared, "second").lead()
        assert now() >= LEASE_S
        await second.close()

    simulate(scenario())


def test_owner_has_a_name():
    with pytest.raises(InvalidArgument):
        Contender(object(), "", clock=LoopClock())
