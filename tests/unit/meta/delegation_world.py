"""A file, a client that may have it delegated, another one that changes it, and messages in any order.

What the service decides is the product's (`Delegations`). `Holder` is the specification of the client's side, which is
to be written in Rust. Whatever the client may answer itself is compared with what the service has at that moment.
"""

import copy
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from luciola.meta.delegations import DRIFT, Delegation, Delegations, Lease, Renewal

INODE = 9
HOLDER = 7

Action = tuple[object, ...]


@dataclass(frozen=True)
class Open:
    """An open for reading that asks for a delegation in the name of a lease."""

    lease: int


@dataclass(frozen=True)
class Opened:
    """The reply to `Open`: the version of the inode, and the number of its delegation, or 0."""

    lease: int
    version: int
    number: int


@dataclass(frozen=True)
class Renew:
    """A request to extend a lease. Only the reply to the newest one is taken in."""

    poll: int
    lease: int
    returned: tuple[Delegation, ...]
    sent: float  # by the holder's clock


@dataclass(frozen=True)
class Renewed:
    """The reply to `Renew`."""

    poll: int
    sent: float
    renewal: Renewal


Message = Open | Opened | Renew | Renewed


@dataclass
class Holder:
    """The client's side."""

    lease_s: float
    lease: int = 0
    until: float = 0.0
    poll: int = 0  # number of the newest request
    floor: int = 0  # delegations up to this one are not believed: they were recalled before they came (O5)
    number: int = 0  # of the delegation; 0: none
    version: int = 0
    returned: tuple[Delegation, ...] = ()

    def believes(self, now: float) -> bool:
        """Return whether an open is answered here."""
        return self.number > 0 and now < self.until

    def renew(self, now: float) -> Renew:
        self.poll += 1
        returned, self.returned = self.returned, ()
        return Renew(self.poll, self.lease, returned, now)

    def open(self, now: float) -> Open:
        return Open(self.lease if now < self.until else 0)

    def on_opened(self, reply: Opened) -> None:
        if reply.number == 0 or reply.lease != self.lease:  # O6
            return
        if reply.number <= self.floor:
            self.returned = (*self.returned, Delegation(INODE, reply.number))
        elif reply.number > self.number:
            self.number, self.version = reply.number, reply.version

    def on_renewed(self, reply: Renewed, now: float) -> None:
        if reply.poll != self.poll:
            return
        renewal = reply.renewal
        if renewal.lease != self.lease:
            self.lease, self.until = renewal.lease, 0.0
            self.number = self.floor = 0
            self.returned = ()
        if renewal.is_extended:
            self.until = self.counted_from(reply, now) + self.lease_s * (1 - DRIFT)
        for each in renewal.recalled:
            self.on_recall(each)

    def counted_from(self, reply: Renewed, now: float) -> float:
        return reply.sent

    def on_recall(self, recalled: Delegation) -> None:
        self.floor = max(self.floor, recalled.number)
        if self.number <= recalled.number:
            self.number = 0
        self.returned = (*self.returned, recalled)

    def give_up(self) -> None:
        """Give the delegation back unasked: there is no room for it. An older one may still come."""
        self.floor = max(self.floor, self.number)
        self.returned = (*self.returned, Delegation(INODE, self.number))
        self.number = 0


@dataclass(frozen=True)
class Kinds:
    """Which code plays the roles; a planted mistake replaces one."""

    service: type[Delegations] = Delegations
    holder: type[Holder] = Holder

    def __str__(self) -> str:
        return self.service.__name__ if self.holder is Holder else self.holder.__name__


@dataclass(frozen=True)
class Budget:
    """How often each thing may still happen."""

    opens: int = 1
    renewals: int = 1
    changes: int = 1
    give_ups: int = 0
    ticks: int = 0
    abandoned: int = 0  # renewals that the holder stops waiting for
    losses: int = 0
    copies: int = 0
    restarts: int = 0


@dataclass
class World:
    """A state. `actions` are all that may happen next; `act` does one."""

    kinds: Kinds
    left: Budget
    lease_s: float = 2.0
    service_rate: float = 1.0  # of clocks, to true time
    holder_rate: float = 1.0
    tick: float = 1.0
    now: float = 0.0
    version: int = 1
    stored: bool = False  # the service has stored that the holder may have a lease
    asked: float | None = None  # since when the change waits
    leases: int = 0
    messages: tuple[Message, ...] = ()
    service: Delegations = field(init=False)
    holder: Holder = field(init=False)

    def __post_init__(self) -> None:
        self.service = self.kinds.service(self._draw, lease_s=self.lease_s)
        self.holder = self.kinds.holder(self.lease_s)

    def _draw(self) -> int:
        self.leases += 1
        return self.leases

    @property
    def service_now(self) -> float:
        return self.now * self.service_rate

    @property
    def holder_now(self) -> float:
        return self.now * self.holder_rate

    def actions(self) -> Iterator[Action]:
        left = self.left
        if left.renewals and (left.abandoned or not self._is_renewing()):
            yield ("renew",)
        if left.give_ups and self.holder.number:
            yield ("give up",)
        if self.asked is not None:
            yield ("try",)
        elif left.changes:
            yield ("change",)
        for action, count in (("open", left.opens), ("restart", left.restarts), ("tick", left.ticks)):
            if count:
                yield (action,)
        fates = ("deliver", *(("lose",) if left.losses else ()), *(("copy",) if left.copies else ()))
        for message in sorted(set(self.messages), key=repr):
            yield from ((fate, message) for fate in fates)

    def _is_renewing(self) -> bool:
        poll = self.holder.poll
        return any(isinstance(each, (Renew, Renewed)) and each.poll == poll for each in self.messages)

    def _spend(self, **spent: int) -> None:
        self.left = replace(
            self.left, **{name: getattr(self.left, name) - count for name, count in spent.items()}
        )

    def act(self, action: Action) -> None:
        match action:
            case ("deliver" | "lose" | "copy" as fate, Open() | Opened() | Renew() | Renewed() as message):
                self._send(fate, message)
            case (str() as name,):
                getattr(self, f"_{name.replace(' ', '_')}")()

    def _send(self, fate: str, message: Message) -> None:
        if fate == "copy":
            self._spend(copies=1)
            self.messages += (message,)
            return
        left = list(self.messages)
        left.remove(message)
        self.messages = tuple(left)
        if fate == "lose":
            self._spend(losses=1)
        else:
            self._deliver(message)

    def _renew(self) -> None:
        self._spend(renewals=1, abandoned=int(self._is_renewing()))
        self.messages += (self.holder.renew(self.holder_now),)

    def _open(self) -> None:
        self._spend(opens=1)
        self.messages += (self.holder.open(self.holder_now),)

    def _give_up(self) -> None:
        self._spend(give_ups=1)
        self.holder.give_up()

    def _change(self) -> None:
        self._spend(changes=1)
        self.asked = self.now
        self.service.want([INODE])
        self._try()

    def _tick(self) -> None:
        self._spend(ticks=1)
        self.now += self.tick
        if self.service.expire(self.service_now) or self.service.expire_inherited(self.service_now):
            self.stored = HOLDER in self.service.clients

    def check(self) -> None:
        """Raises: AssertionError if O1 does not hold, seen from the holder, or O3, seen from who waits."""
        if self.holder.believes(self.holder_now):
            assert self.holder.version == self.version, "the holder answers with what was changed"
        # The lease on the slowest clock of the service, and the tick in which that is seen.
        longest = self.lease_s * (1 + DRIFT) / self.service_rate + self.tick
        if self.asked is not None and self.now - self.asked > longest:
            assert not self.service.blocks([INODE], self.service_now), "a change waits longer than a lease"

    def _deliver(self, message: Message) -> None:
        match message:
            case Open(lease):
                number = self.service.grant(HOLDER, lease, INODE, self.service_now) if lease else 0
                assert not number or self.asked is None, "O4: a delegation is granted while a change waits"
                self.messages += (Opened(lease, self.version, number),)
            case Renew(poll, lease, returned, sent):
                self.stored = True  # before the lease is given
                renewal = self.service.renew(HOLDER, lease, returned, self.service_now)
                self.messages += (Renewed(poll, sent, renewal),)
            case Opened():
                self.holder.on_opened(message)
            case Renewed():
                self.holder.on_renewed(message, self.holder_now)

    def _try(self) -> None:
        self.service.recall([INODE])
        if not self.service.blocks([INODE], self.service_now):
            self.version += 1
            self.asked = None
            self.service.done([INODE])

    def _restart(self) -> None:
        """Requests to the process before are lost, its replies may be on their way. The change is asked for again."""
        self._spend(restarts=1)
        self.messages = tuple(each for each in self.messages if isinstance(each, (Opened, Renewed)))
        self.service = self.kinds.service(self._draw, lease_s=self.lease_s)
        self.service.inherit([HOLDER] if self.stored else [], self.service_now)
        if self.asked is not None:
            self.asked = self.now
            self.service.want([INODE])

    def copy(self) -> "World":
        made = copy.copy(self)
        made.holder = copy.copy(self.holder)
        made.service = _copied(self.service, made._draw)
        return made

    def key(self) -> object:
        """Equal for states that continue alike: messages have no order."""
        service, holder = self.service, self.holder
        lease = service._leases.get(HOLDER)
        return (
            *(self.left, self.now, self.version, self.stored, self.asked, self.leases),
            frozenset(Counter(self.messages).items()),
            *(holder.lease, holder.until, holder.poll, holder.floor, holder.number, holder.version),
            holder.returned,
            None if lease is None else (lease.number, lease.until_s, *lease.held.items(), *lease.recalled),
            *(tuple(service._wanted.items()), service._last),
            *(tuple(service._inherited), service._inherited_until_s),
        )


def _copied(service: Delegations, draw: Callable[[], int]) -> Delegations:
    """`copy.deepcopy` takes ten times as long."""
    made = copy.copy(service)
    made._draw = draw
    made._leases = {
        client: Lease(lease.number, lease.until_s, dict(lease.held), set(lease.recalled))
        for client, lease in service._leases.items()
    }
    made._holders = {inode: dict(holders) for inode, holders in service._holders.items()}
    made._wanted = dict(service._wanted)
    made._inherited = set(service._inherited)
    return made
