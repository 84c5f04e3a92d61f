"""Delegations: every order of grants, recalls, returns, replies and ends of leases in small worlds; single rules."""

from dataclasses import dataclass

import pytest

from luciola.meta.delegations import DRIFT, HELD_MAX, Delegation, Delegations, Renewal

from .delegation_world import HOLDER, INODE, Budget, Holder, Kinds, Open, Opened, Renew, Renewed, World

# What may happen in each world, and how many states it has: one that changes its size explores something else.
WORLDS = {
    "orders": (Budget(opens=2, renewals=5, changes=2, give_ups=1), 7_256),
    "repeated": (Budget(opens=2, renewals=3, changes=1, give_ups=1, copies=1), 14_252),
    "lost": (Budget(opens=2, renewals=4, changes=1, losses=1, abandoned=1), 19_529),
    "restart": (Budget(opens=2, renewals=4, changes=1, restarts=1), 8_136),
    "leases end": (Budget(opens=1, renewals=2, changes=1, ticks=4), 5_341),
    "restart, leases end": (Budget(opens=1, renewals=3, changes=1, restarts=1, ticks=3), 39_342),
}


def explore(budget: Budget, kinds: Kinds) -> int:
    """Check each state that can be reached; return how many there are. Raises: AssertionError, with the way there."""
    first = World(kinds, budget)
    seen = {first.key()}
    frontier: list[tuple[World, tuple[object, ...]]] = [(first, ())]
    while frontier:
        found = []
        for world, way in frontier:
            for action in world.actions():
                after = world.copy()
                after.act(action)
                try:
                    after.check()
                except AssertionError as error:
                    raise AssertionError("\n".join(map(str, (error, *way, action)))) from error
                key = after.key()
                if key not in seen:
                    seen.add(key)
                    found.append((after, (*way, action)))
        frontier = found
    return len(seen)


@pytest.mark.parametrize("name", WORLDS)
def test_holder_never_answers_with_what_was_changed(name):
    budget, states = WORLDS[name]
    assert explore(budget, Kinds()) == states


# Planted mistakes of the service.


class GrantsWhatAChangeWaitsFor(Delegations):
    def grant(self, client: int, lease: int, inode: int, now_s: float) -> int:
        wanted, self._wanted = self._wanted, {}
        number = super().grant(client, lease, inode, now_s)
        self._wanted = wanted
        return number


class ChangesAtOnce(Delegations):
    def blocks(self, inodes, now_s: float) -> bool:
        return False


class LateRenewalBeginsALease(Delegations):
    def renew(self, client: int, lease: int, returned, now_s: float) -> Renewal:
        current = self._leases.get(client)
        if current is not None and current.number != lease:
            self._end(client)
        return super().renew(client, lease, returned, now_s)


class ExtendsWhileARecallIsUnanswered(Delegations):
    def renew(self, client: int, lease: int, returned, now_s: float) -> Renewal:
        renewal = super().renew(client, lease, returned, now_s)
        self._leases[client].until_s = now_s + self.longest_s
        return renewal._replace(is_extended=True)


class LateReturnEndsANewerOne(Delegations):
    def _take_back(self, client, lease, returned: Delegation) -> None:
        if returned.inode in lease.held:
            self._drop(client, lease, returned.inode)


class WaitsForNoClientAfterARestart(Delegations):
    def inherit(self, clients, now_s: float) -> None:
        super().inherit((), now_s)


class AnyRenewalConfirms(Delegations):
    def renew(self, client: int, lease: int, returned, now_s: float) -> Renewal:
        self._inherited.discard(client)
        return super().renew(client, lease, returned, now_s)


class CountsNoDrift(Delegations):
    @property
    def longest_s(self) -> float:
        return self._lease_s


# Planted mistakes of the holder.


class GrantBeforeRecall(Holder):
    """A delegation that comes after its recall is believed."""

    def on_recall(self, recalled: Delegation) -> None:
        floor = self.floor
        super().on_recall(recalled)
        self.floor = floor


class OlderGrantAfterGivingUp(Holder):
    def give_up(self) -> None:
        floor = self.floor
        super().give_up()
        self.floor = floor


class BelievesGrantsOfAnotherLease(Holder):
    def on_opened(self, reply: Opened) -> None:
        super().on_opened(Opened(self.lease, reply.version, reply.number))


class KeepsDelegationsUnderANewLease(Holder):
    def on_renewed(self, reply: Renewed, now: float) -> None:
        number, is_new = self.number, reply.renewal.lease != self.lease
        super().on_renewed(reply, now)
        if is_new:
            self.number = number


class CountsFromTheReply(Holder):
    def counted_from(self, reply: Renewed, now: float) -> float:
        return now


class AnswersOnAfterARecall(Holder):
    def on_recall(self, recalled: Delegation) -> None:
        number = self.number
        super().on_recall(recalled)
        self.number = number


class NeverLooksAtTheClock(Holder):
    def believes(self, now: float) -> bool:
        return self.number > 0


class HolderCountsNoDrift(Holder):
    def counted_from(self, reply: Renewed, now: float) -> float:
        return reply.sent + self.lease_s * DRIFT


MISTAKES = {
    Kinds(service=GrantsWhatAChangeWaitsFor): "orders",
    Kinds(service=ChangesAtOnce): "orders",
    Kinds(service=LateRenewalBeginsALease): "repeated",
    Kinds(service=ExtendsWhileARecallIsUnanswered): "leases end",
    Kinds(service=LateReturnEndsANewerOne): "repeated",
    Kinds(service=WaitsForNoClientAfterARestart): "restart",
    Kinds(service=AnyRenewalConfirms): "restart",
    Kinds(holder=GrantBeforeRecall): "orders",
    Kinds(holder=OlderGrantAfterGivingUp): "orders",
    Kinds(holder=BelievesGrantsOfAnotherLease): "restart",
    Kinds(holder=KeepsDelegationsUnderANewLease): "restart",
    Kinds(holder=CountsFromTheReply): "leases end",
    Kinds(holder=AnswersOnAfterARecall): "orders",
    Kinds(holder=NeverLooksAtTheClock): "leases end",
}


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_planted_mistake_is_found(mistake):
    budget, _ = WORLDS[MISTAKES[mistake]]
    with pytest.raises(AssertionError):
        explore(budget, mistake)


# Clocks.


@dataclass(frozen=True)
class Rates:
    """Of two clocks, to true time."""

    service: float
    holder: float


RATES = (Rates(1 + DRIFT, 1 - DRIFT), Rates(1, 1), Rates(1 - DRIFT, 1 + DRIFT))


def silence(kinds: Kinds, rates: Rates) -> float:
    """Cut the holder off after a grant; return how long a change waits, in true time."""
    world = World(kinds, Budget(ticks=1000), service_rate=rates.service, holder_rate=rates.holder, tick=0.01)
    world.now = 3.0
    world.act(("renew",))
    world.act(("tick",))
    for kind in (Renew, Renewed):
        world.act(("deliver", next(each for each in world.messages if isinstance(each, kind))))
    world.act(("open",))
    for kind in (Open, Opened):
        world.act(("deliver", next(each for each in world.messages if isinstance(each, kind))))
    assert world.holder.believes(world.holder_now)
    world.act(("change",))
    began = world.now
    while world.asked is not None:
        world.check()
        world.act(("try",))
        world.check()
        world.act(("tick",))
    return world.now - began


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_change_waits_a_lease_for_a_silent_holder(rates):
    assert 2.0 <= silence(Kinds(), rates) <= 2.0 * (1 + DRIFT) / (1 - DRIFT) + 0.05


@pytest.mark.parametrize(
    "mistake", [Kinds(service=CountsNoDrift), Kinds(holder=HolderCountsNoDrift)], ids=str
)
def test_clocks_that_drift_are_found_where_they_are_not_counted(mistake):
    with pytest.raises(AssertionError, match="answers with what was changed"):
        for rates in RATES:
            silence(mistake, rates)


# Single rules.


def delegations() -> Delegations:
    numbers = iter(range(1, 100))
    return Delegations(lambda: next(numbers))


def test_client_without_a_lease_gets_no_delegation():
    table = delegations()
    assert table.grant(HOLDER, 0, INODE, 0.0) == 0
    lease = table.renew(HOLDER, 0, (), 0.0).lease
    assert table.grant(HOLDER, lease + 1, INODE, 0.0) == 0
    assert table.grant(HOLDER, lease, INODE, 0.0) > 0
    assert table.grant(HOLDER, lease, INODE, table.longest_s) == 0


def test_client_holds_a_bounded_number():
    table = delegations()
    lease = table.renew(HOLDER, 0, (), 0.0).lease
    assert all(table.grant(HOLDER, lease, inode, 0.0) for inode in range(HELD_MAX))
    assert table.grant(HOLDER, lease, HELD_MAX, 0.0) == 0
    number = table.grant(HOLDER, lease, 5, 0.0)
    assert number, "that takes no room"
    table.renew(HOLDER, lease, [Delegation(5, number)], 0.0)
    assert table.grant(HOLDER, lease, HELD_MAX, 0.0) > 0
    assert table.count == HELD_MAX


def test_client_that_leaves_gives_everything_back():
    table = delegations()
    lease = table.renew(HOLDER, 0, (), 0.0).lease
    table.grant(HOLDER, lease, INODE, 0.0)
    assert not table.leave(HOLDER, lease + 1)
    assert table.blocks([INODE], 0.0)
    assert table.leave(HOLDER, lease)
    assert not table.blocks([INODE], 0.0)
    assert table.is_idle
    assert not table.clients


def test_recall_names_its_holders_once_and_is_repeated_until_it_is_answered():
    table = delegations()
    leases = {client: table.renew(client, 0, (), 0.0).lease for client in (7, 8)}
    numbers = {client: table.grant(client, lease, INODE, 0.0) for client, lease in leases.items()}
    table.want([INODE])
    assert set(table.recall([INODE, INODE + 1])) == {7, 8}
    assert not table.recall([INODE])
    for _ in range(2):
        assert table.renew(7, leases[7], (), 1.0) == (leases[7], False, (Delegation(INODE, numbers[7]),))
    assert table.until_s([INODE], 1.0) == pytest.approx(table.longest_s)
    assert table.renew(7, leases[7], [Delegation(INODE, numbers[7])], 1.0).is_extended
    assert table.blocks([INODE], 1.0)
    table.renew(8, leases[8], [Delegation(INODE, numbers[8])], 1.0)
    assert not table.blocks([INODE], 1.0)
    assert table.grant(7, leases[7], INODE, 1.0) == 0, "the change has not been made yet"
    table.done([INODE])
    assert table.grant(7, leases[7], INODE, 1.0) > 0


def test_change_after_a_restart_waits_for_all_who_may_have_leases():
    table = delegations()
    table.inherit([7, 8], 100.0)
    assert table.blocks([1], 100.0)
    lease = table.renew(7, 55, (), 100.0).lease
    assert table.blocks([1], 100.0)
    table.renew(7, lease, (), 100.0)
    assert table.blocks([1], 100.0), "8 has not been heard"
    assert table.until_s([1], 100.0) == pytest.approx(100.0 + table.longest_s)
    assert not table.expire_inherited(100.0)
    assert set(table.expire_inherited(100.0 + table.longest_s)) == {8}
    assert not table.blocks([1], 100.0 + table.longest_s)
    assert table.is_idle
