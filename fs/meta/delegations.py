"""Which clients may answer opens of which files themselves: a model without I/O, which no service uses yet.

A *delegation* of a file to a client says: until it is returned, or the client's lease ends, no request changes the
inode or opens it for writing. So what its holder knows of the inode is what the reply to a further open for reading
would say. A client has one *lease*, for all its delegations. Messages may be late, repeated and lost.

    O1  a change of an inode is carried out when no delegation of it can be believed by any client: each was returned,
        or its lease has ended
    O2  a holder counts its lease from before it asked for it, this service from after; clocks differ by `DRIFT` each
    O3  a lease is not extended while a recall of it is unanswered: a change waits for `LEASE_S` at most, and the drift
    O4  while a change waits, its inodes are not delegated
    O5  delegations have ascending numbers. A recall of number n, and a return, is about all up to n: a holder does not
        believe a delegation up to a number that was recalled, or that it has returned, also if the reply that grants
        it comes later
    O6  a lease has a number that no other one has. A holder asks in the name of its lease, and believes nothing that
        it has asked for in the name of another. A request that names another one changes nothing
    O7  a process that starts, or leads from now on, lets no inode change while a client may believe what a process
        before has granted: until that client has asked with the number of a new lease, which it has only after it
        gave up the others, or the longest lease is over. Which clients have leases must be stored

A holder in Python, its specification, is in tests/unit/meta/delegation_world.py; test_delegations.py explores both.
Not done here: storing who has leases, waiting, and directories (decision 0046).
"""

from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field
from typing import Final, NamedTuple

LEASE_S: Final = 5.0  # a change waits so long for a client that was killed; a client renews five times in it
DRIFT: Final = 0.05  # by which a clock may run faster or slower than the true one
CLIENTS_MAX: Final = 16_384  # each has one request waiting here
HELD_MAX: Final = 16_384  # of one client: 4 MiB of memory here; a client keeps fewer


class Delegation(NamedTuple):
    """A delegation of an inode, or all of it up to this number."""

    inode: int
    number: int


class Renewal(NamedTuple):
    """The reply to a client. `is_extended`: its lease is as long as ever again, counted from before it asked."""

    lease: int
    is_extended: bool
    recalled: tuple[Delegation, ...]


@dataclass(slots=True)
class Lease:
    """What one client has."""

    number: int
    until_s: float
    held: dict[int, int] = field(default_factory=dict)  # inode → number
    recalled: set[int] = field(default_factory=set)  # inodes of `held`


class Delegations:
    """See the module. `draw` makes numbers of leases, which no process has ever used; 0 is none."""

    def __init__(self, draw: Callable[[], int], *, lease_s: float = LEASE_S) -> None:
        self._draw = draw
        self._lease_s = lease_s
        self._leases: dict[int, Lease] = {}  # by client
        self._holders: dict[int, dict[int, int]] = {}  # inode → client → number
        self._wanted: dict[int, int] = {}  # inode → changes that wait, or have waited and are not done
        self._inherited: set[int] = set()  # clients that may believe what a process before granted
        self._inherited_until_s = 0.0
        self._last = 0  # number of a delegation

    @property
    def count(self) -> int:
        """How many delegations there are."""
        return sum(len(lease.held) for lease in self._leases.values())

    @property
    def longest_s(self) -> float:
        """A lease, on the slowest clock of a holder, takes so long on the fastest one here."""
        return self._lease_s * (1 + DRIFT)

    @property
    def clients(self) -> Collection[int]:
        """Clients with a lease."""
        return self._leases.keys()

    @property
    def inherited(self) -> Collection[int]:
        """Clients of a process before that are waited for (O7)."""
        return self._inherited

    @property
    def is_idle(self) -> bool:
        """No client has a delegation, or may believe so: no change has to wait."""
        return not self._holders and not self._inherited

    # Leases.

    def inherit(self, clients: Iterable[int], now_s: float) -> None:
        """These clients may have leases of a process before, which has granted nothing since `now_s` (O7)."""
        self._inherited = set(clients)
        self._inherited_until_s = now_s + self.longest_s

    def renew(self, client: int, lease: int, returned: Iterable[Delegation], now_s: float) -> Renewal:
        """Extend the client's lease, or give it one; take back what it returns.

        `lease` is the one that the client has, 0 if it has none.
        """
        self._expire(client, now_s)
        current = self._leases.get(client)
        if current is None:
            current = self._leases[client] = Lease(self._draw(), now_s + self.longest_s)
            assert current.number, "0 is no lease"
            return Renewal(current.number, True, ())
        if lease != current.number:  # late, or its client has not heard of the new one
            return Renewal(current.number, False, ())
        self._inherited.discard(client)
        for each in returned:
            self._take_back(client, current, each)
        if not current.recalled:
            current.until_s = now_s + self.longest_s
        recalled = tuple(Delegation(inode, current.held[inode]) for inode in current.recalled)
        return Renewal(current.number, not recalled, recalled)

    def leave(self, client: int, lease: int) -> bool:
        """The client believes nothing any more. False: that is not its lease."""
        current = self._leases.get(client)
        if current is None or current.number != lease:
            return False
        self._inherited.discard(client)
        self._end(client)
        return True

    def expire(self, now_s: float) -> Collection[int]:
        """End the leases that are over; return whose."""
        over = [client for client, lease in self._leases.items() if lease.until_s <= now_s]
        for client in over:
            self._end(client)
        return over

    def expire_inherited(self, now_s: float) -> Collection[int]:
        """Return clients of a process before whose leases are over."""
        if now_s < self._inherited_until_s:
            return ()
        over, self._inherited = self._inherited, set()
        return over

    # Delegations.

    def grant(self, client: int, lease: int, inode: int, now_s: float) -> int:
        """Delegate an inode that no client has open for writing; return the number, or 0: not now."""
        self._expire(client, now_s)
        current = self._leases.get(client)
        if current is None or current.number != lease or inode in self._wanted or inode in current.recalled:
            return 0
        if len(current.held) >= HELD_MAX and inode not in current.held:
            return 0
        self._last += 1
        current.held[inode] = self._last
        self._holders.setdefault(inode, {})[client] = self._last
        return self._last

    def blocks(self, inodes: Iterable[int], now_s: float) -> bool:
        """Return whether a change of these inodes has to wait (O1, O7)."""
        if self._inherited and now_s < self._inherited_until_s:
            return True
        return any(
            self._leases[client].until_s > now_s
            for inode in inodes
            for client in self._holders.get(inode, ())
        )

    def until_s(self, inodes: Iterable[int], now_s: float) -> float:
        """Return when a change of these inodes need not wait any longer, whatever their holders do."""
        ends = [self._leases[client].until_s for inode in inodes for client in self._holders.get(inode, ())]
        if self._inherited:
            ends.append(self._inherited_until_s)
        return max(ends, default=now_s)

    def want(self, inodes: Iterable[int]) -> None:
        """A change of these inodes waits, until `done` (O4)."""
        for inode in inodes:
            self._wanted[inode] = self._wanted.get(inode, 0) + 1

    def done(self, inodes: Iterable[int]) -> None:
        """The change is carried out or refused."""
        for inode in inodes:
            count = self._wanted[inode] - 1
            assert count >= 0, "O4: a change is done once"
            if count:
                self._wanted[inode] = count
            else:
                del self._wanted[inode]

    def recall(self, inodes: Iterable[int]) -> Collection[int]:
        """Ask for what is delegated of these inodes; return the clients to notify."""
        asked = set()
        for inode in inodes:
            for client in self._holders.get(inode, ()):
                lease = self._leases[client]
                if inode not in lease.recalled:
                    lease.recalled.add(inode)
                    asked.add(client)
        return asked

    def _take_back(self, client: int, lease: Lease, returned: Delegation) -> None:
        held = lease.held.get(returned.inode, 0)
        if 0 < held <= returned.number:  # O5: one that was granted since stays
            self._drop(client, lease, returned.inode)

    def _drop(self, client: int, lease: Lease, inode: int) -> None:
        del lease.held[inode]
        lease.recalled.discard(inode)
        holders = self._holders[inode]
        del holders[client]
        if not holders:
            del self._holders[inode]

    def _expire(self, client: int, now_s: float) -> None:
        lease = self._leases.get(client)
        if lease is not None and lease.until_s <= now_s:
            self._end(client)

    def _end(self, client: int) -> None:
        lease = self._leases[client]
        for inode in list(lease.held):
            self._drop(client, lease, inode)
        assert not lease.recalled, "what was recalled was held"
        del self._leases[client]


__all__ = ["CLIENTS_MAX", "DRIFT", "HELD_MAX", "LEASE_S", "Delegation", "Delegations", "Lease", "Renewal"]
