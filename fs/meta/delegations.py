"""Which client may answer opens of which file by itself: a table without clock, messages or waits (see `recalls`).

A client that opens a file for reading again and again asks for a *delegation*: it answers further read-only opens
of the file from what the last reply said. All its delegations hold as long as its *lease*, which each of its polls
extends. Whatever is about to change the inode, or to open it for writing, has them returned first.

    D1  While a client may answer opens of an inode by itself, the inode does not change and no client has it open for
        writing: not even that client, which returns its own delegation like any other.
    D2  A lease is counted here from the arrival of the poll, and lengthened by the drift; its client counts from the
        sending, and shortens it. So a client whose lease has ended here has answered no open since.
    D3  From the recall to the end of the change nothing of the inode is granted: `close`, `reopen`.
    D4  A grant has the number of the request that asked for it, which its client uses once. A client has one of an
        inode; it is returned before there is another, by that number, so that a late message ends no later one.
    D5  What an earlier process has granted counts until each client that had a lease then has said that it has nothing
        of it, or until these leases have ended. Inodes that were made since are not concerned.
    D6  A poll of a client that has something to return extends nothing, there neither: so a change waits for one lease
        at most, whichever messages are lost.
"""

from collections.abc import Collection, Iterable
from typing import Final

DRIFT: Final = 0.05  # by which clocks differ at most
GRANTS_MAX: Final = 16_384  # of one client, which keeps fewer: 4 MiB of memory
LEASES_MAX: Final = 1 << 16


class Delegations:
    """Grants, recalls and leases. Moments are seconds of one clock, which the caller reads."""

    def __init__(self, *, lease_s: float) -> None:
        self.lease_s = lease_s  # as in replies; 0: nothing is granted
        self.recalls = 0
        self.expired = 0  # recalls that ended with a lease
        self._leases: dict[int, float] = {}  # client → until when
        self._grants: dict[int, dict[int, int]] = {}  # inode → client → grant
        self._of_clients: dict[int, dict[int, int]] = {}  # client → inode → grant
        self._recalled: dict[int, dict[int, None]] = {}  # client → inodes
        self._closed: dict[int, int] = {}  # inode → changes in progress
        self._inherited: dict[int, float] = {}  # client of an earlier process → until when
        self._inherited_below = 0

    @property
    def is_possible(self) -> bool:
        """Whether anything may be delegated now or later, or was by an earlier process."""
        return bool(self.lease_s or self._inherited)

    @property
    def is_active(self) -> bool:
        """Whether anything may be delegated: if not, no change needs to look."""
        return bool(self._grants or self._inherited)

    @property
    def count(self) -> int:
        return sum(map(len, self._of_clients.values()))

    # Leases.

    def inherit(self, leases: Iterable[tuple[int, float]], *, below: int, now_s: float) -> None:
        """Wait for clients that had a lease of so many seconds of an earlier process, which made inodes below that."""
        self._inherited = {client: now_s + lease_s / (1 - DRIFT) for client, lease_s in leases}
        self._inherited_below = below

    def has_lease(self, client: int, now_s: float) -> bool:
        until_s = self._leases.get(client)
        return until_s is not None and now_s < until_s

    def knows(self, client: int, now_s: float) -> bool:
        """Return whether the client has a lease of this process, or may have one of an earlier one."""
        return client in self._inherited or self.has_lease(client, now_s)

    def extend(self, client: int, returned: Iterable[tuple[int, int]], *, now_s: float) -> bool:
        """A poll of the client has arrived, which returns (inode, grant). False: there are too many clients."""
        if not self.has_lease(client, now_s):
            self.end(client)
            if len(self._leases) >= LEASES_MAX:
                return False
        self._inherited.pop(client, None)
        grants = self._of_clients.get(client, {})
        for inode, grant in returned:
            if grants.get(inode) == grant:  # D4
                self._drop(client, inode)
        if client not in self._recalled:  # D6
            self._leases[client] = now_s + self.lease_s / (1 - DRIFT)
        return True

    def end(self, client: int) -> None:
        """The client has nothing any more: its lease has ended, or it says so."""
        for inode in list(self._of_clients.get(client, ())):
            self._drop(client, inode)
        self._leases.pop(client, None)

    def leave(self, client: int) -> None:
        """The client has nothing, of no process."""
        self.end(client)
        self._inherited.pop(client, None)

    def expire(self, now_s: float) -> Collection[int]:
        """End leases that have run out, and return whose."""
        over = [client for client, until_s in self._leases.items() if until_s <= now_s]
        for client in over:
            self._end_expired(client)
        late = [client for client, until_s in self._inherited.items() if until_s <= now_s]
        for client in late:
            del self._inherited[client]
        return [*over, *late]

    # Grants.

    def grant(self, client: int, inode: int, request: int, *, now_s: float) -> bool:
        """Delegate the inode to the client, whose request this is, if that can be.

        The caller knows that no client writes.
        """
        if inode in self._closed or not self.has_lease(client, now_s):
            return False
        of_client = self._of_clients.get(client, {})
        known = of_client.get(inode)
        if known is not None or len(of_client) >= GRANTS_MAX:
            return known == request
        assert inode not in self._recalled.get(client, ()), "D3: what is recalled is not granted"
        self._of_clients.setdefault(client, of_client)[inode] = request
        self._grants.setdefault(inode, {})[client] = request
        return True

    def close(self, inode: int) -> None:
        """Grant nothing of the inode until `reopen`."""
        self._closed[inode] = self._closed.get(inode, 0) + 1

    def reopen(self, inode: int) -> None:
        """One change of the inode has ended."""
        count = self._closed[inode] - 1
        assert count >= 0, "what is opened was closed"
        if count:
            self._closed[inode] = count
        else:
            del self._closed[inode]

    # Recalls.

    def blocks(self, inode: int, now_s: float) -> bool:
        """Return whether the inode must not change yet."""
        return self.blocked_until(inode, now_s) > now_s

    def blocked_until(self, inode: int, now_s: float) -> float:
        """Return until when the inode must not change, if no client answers; `now_s`: it may."""
        until_s = now_s
        if self._inherited and inode < self._inherited_below:
            until_s = max(until_s, *self._inherited.values())
        for client in list(self._grants.get(inode, ())):
            lease_s = self._leases[client]
            if lease_s <= now_s:
                self._end_expired(client)
            until_s = max(until_s, lease_s)
        return until_s

    def recall(self, inode: int) -> Collection[int]:
        """Have all delegations of the inode returned. Return the clients that have to be sent a recall now."""
        recalled = [
            client for client in self._grants.get(inode, ()) if inode not in self._recalled.get(client, ())
        ]
        for client in recalled:
            self._recalled.setdefault(client, {})[inode] = None
        self.recalls += len(recalled)
        return recalled

    def to_return(self, client: int) -> list[tuple[int, int]]:
        """(inode, grant) of what the client has to return. It is named again until it is returned."""
        grants = self._of_clients.get(client, {})
        return [(inode, grants[inode]) for inode in self._recalled.get(client, ())]

    # Inside.

    def _end_expired(self, client: int) -> None:
        self.expired += len(self._recalled.get(client, ()))
        self.end(client)

    def _drop(self, client: int, inode: int) -> None:
        """The client answers no open of the inode by itself any more."""
        for table, key, entry in (
            (self._of_clients, client, inode),
            (self._grants, inode, client),
            (self._recalled, client, inode),
        ):
            entries = table.get(key)
            if entries is not None:
                entries.pop(entry, None)
                if not entries:
                    del table[key]


__all__ = ["DRIFT", "GRANTS_MAX", "LEASES_MAX", "Delegations"]
