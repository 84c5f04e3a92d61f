"""Who has which file open.

`Writers` mirrors the stored write sessions, so that a `stat` need not look for them in the store. `Holds`
knows what each client has open for reading; it is in memory only: after a restart clients
send `Hold` with all that they have open, and until they could have, nothing is collected.

With several meta processes over one store each inode's rows would have one owner.
"""

from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final

from ..kv import Engine
from . import schema

PAGE: Final = 10_000
# Files that one client, with all programs on its mount, has open for writing: a mount of a busy machine has thousands.
# Each costs this service about 400 bytes of memory, and a record in the store; so many, 26 MiB.
SESSIONS_MAX: Final = 65_536
REMEMBERED_MAX: Final = 1024  # ended holds of one client, whose opens may still be carried out late


class Writers:
    """Write sessions by inode, as in the store."""

    def __init__(self) -> None:
        self._clients: dict[int, dict[int, int]] = {}  # inode → session → client
        self._of_clients: dict[int, set[tuple[int, int]]] = {}  # client → (inode, session)
        self._abandoned: set[tuple[int, int]] = set()
        self.count = 0

    def load(self, engine: Engine) -> None:
        """Read all sessions from the store."""
        self._clients.clear()
        self._of_clients.clear()
        self.count = 0
        begin, end = schema.kind_range(b"S")
        while True:
            pairs = engine.begin().snapshot_range(begin, end, limit=PAGE)
            for key, value in pairs:
                inode, session = schema.split_two(key)
                self.add(inode, session, schema.decode_session(value).client)
            if len(pairs) < PAGE:
                return
            begin = pairs[-1][0] + b"\x00"

    def reload(self, engine: Engine, inode: int) -> None:
        """Read the sessions of one inode again, after a commit with an unknown outcome."""
        for session in list(self._clients.get(inode, ())):
            self.remove(inode, session)
        for key, value in engine.begin().snapshot_range(*schema.session_range(inode)):
            self.add(inode, schema.split_two(key)[1], schema.decode_session(value).client)

    def add(self, inode: int, session: int, client: int) -> None:
        assert session, "0 is no session"
        sessions = self._clients.setdefault(inode, {})
        if session not in sessions:
            self.count += 1
            self._of_clients.setdefault(client, set()).add((inode, session))
        assert sessions.get(session, client) == client, "a session has one client"
        sessions[session] = client

    def remove(self, inode: int, session: int) -> None:
        self._abandoned.discard((inode, session))
        sessions = self._clients.get(inode)
        if sessions is None:
            return
        assert sessions, "an inode without sessions is not in the table"
        client = sessions.pop(session, None)
        if client is not None:
            self.count -= 1
            assert self.count >= 0, "a session is counted once"
            self._of_clients[client].discard((inode, session))
            if not self._of_clients[client]:
                del self._of_clients[client]
        if not sessions:
            del self._clients[inode]

    def count_of(self, client: int) -> int:
        """Return how many files the client has open for writing; one that it has open twice counts twice."""
        return len(self._of_clients.get(client, ()))

    def of_client(self, client: int) -> set[tuple[int, int]]:
        """Return (inode, session) of what the client has open for writing."""
        return set(self._of_clients.get(client, ()))

    def abandon(self, inode: int, session: int) -> None:
        """Leave the session to the collector, which ends it when the chains have been asked for the length."""
        self._abandoned.add((inode, session))

    @property
    def abandoned(self) -> list[tuple[int, int]]:
        """(inode, session) of sessions that the collector is to end."""
        return list(self._abandoned)

    def has(self, inode: int, client: int) -> bool:
        """Return whether `client` has the inode open for writing."""
        sessions = self._clients.get(inode)
        return sessions is not None and client in sessions.values()

    def has_other(self, inode: int, client: int) -> bool:
        """Return whether a client other than `client` has the inode open for writing."""
        sessions = self._clients.get(inode)
        return sessions is not None and any(owner != client for owner in sessions.values())

    def __contains__(self, inode: object) -> bool:
        return inode in self._clients

    def have_other(self, inodes: Collection[int], client: int) -> bool:
        """Return whether a client other than `client` has one of the inodes open for writing."""
        if self._clients.keys().isdisjoint(inodes):
            return False
        return any(self.has_other(inode, client) for inode in inodes)

    def of_clients_outside(self, known: Collection[int]) -> list[tuple[int, int, int]]:
        """(inode, session, client) of clients that are not in `known`."""
        return [
            (inode, session, client)
            for inode, sessions in self._clients.items()
            for session, client in sessions.items()
            if client not in known
        ]


class Holds:
    """Files open for reading, by client. A hold has the number of the request that opened the file.

    H1  A hold ends with the close that names it, or when its client does not report it any more: never with the close
        of another handle, and never because its open and a report crossed on their way.
    H2  An open that is carried out twice, or late, holds its file once, and not after its close.

    A close without a number, or a report without numbers, is of a client that does not know of them.
    """

    def __init__(self) -> None:
        self._held: dict[int, dict[int, tuple[int, ...]]] = {}  # client → inode → numbers of opens
        self._totals: dict[int, int] = {}  # inode → opens of all clients
        # client → opens whose holds have ended, and closes that named none (as negative numbers)
        self._ended: dict[int, OrderedDict[int, None]] = {}
        # client → what was opened by an earlier request is held already, or never
        self._below: dict[int, int] = {}
        self._unnamed = 0  # the number given last to an open that has none

    @property
    def count(self) -> int:
        return sum(self._totals.values())

    @property
    def clients(self) -> Collection[int]:
        return self._held.keys()

    def count_of(self, client: int) -> int:
        """Return how many inodes the client has open for reading."""
        return len(self._held.get(client, ()))

    def has(self, inode: int, client: int) -> bool:
        """Return whether `client` has the inode open for reading."""
        return inode in self._held.get(client, ())

    def acquire(self, client: int, inode: int, number: int) -> None:
        """Hold the inode for the open of that number; 0: it has none."""
        if not number:
            self._add(client, inode, self._new_number())
        elif number >= self._below.get(client, 0) and number not in self._ended.get(client, ()):
            self._add(client, inode, number)

    def release(self, client: int, closes: Sequence[tuple[int, int]], sequence: int) -> None:
        """End the hold of each (inode, number of the open); 0: any one, unless the request was counted already."""
        unnamed = [inode for inode, number in closes if not number]
        for inode, number in closes:
            if number:
                self._remember(client, number)
                self._remove(client, inode, number)
        if unnamed and (not sequence or self._remember(client, -sequence)):
            for inode in unnamed:
                held = self._held.get(client, {}).get(inode)
                if held:
                    self._remove(client, inode, held[0])

    def replace(
        self, client: int, inodes: Sequence[int], numbers: Sequence[int] | None, *, below: int
    ) -> None:
        """All that the client has open, and the numbers of the opens; of those from `below` on, more than it reports.

        Without numbers an inode may be named several times, and nothing else is open.
        """
        late = [
            (inode, number)
            for inode, held in self._held.get(client, {}).items()
            for number in held
            if numbers is not None and number >= below
        ]
        for inode, held in list(self._held.get(client, {}).items()):
            for number in held:
                self._remove(client, inode, number)
        if numbers is not None:
            self._below[client] = max(below, self._below.get(client, 0))
            ended: Collection[int] = self._ended.get(client, ())
            late += [
                (inode, number) for inode, number in zip(inodes, numbers, strict=True) if number not in ended
            ]
        else:
            late = [(inode, self._new_number()) for inode in inodes]
        for inode, number in late:
            self._add(client, inode, number)

    def forget(self, client: int) -> None:
        """The client is gone."""
        for inode, held in list(self._held.get(client, {}).items()):
            for number in held:
                self._remove(client, inode, number)
        self._ended.pop(client, None)
        self._below.pop(client, None)

    def __contains__(self, inode: object) -> bool:
        return inode in self._totals

    def _new_number(self) -> int:
        self._unnamed -= 1
        return self._unnamed

    def _remember(self, client: int, number: int) -> bool:
        """Return whether this is new."""
        ended = self._ended.setdefault(client, OrderedDict())
        if number in ended:
            return False
        ended[number] = None
        if len(ended) > REMEMBERED_MAX:
            ended.popitem(last=False)
        return True

    def _add(self, client: int, inode: int, number: int) -> None:
        table = self._held.setdefault(client, {})
        held = table.get(inode, ())
        if number not in held:
            table[inode] = (*held, number)
            self._totals[inode] = self._totals.get(inode, 0) + 1

    def _remove(self, client: int, inode: int, number: int) -> None:
        table = self._held.get(client, {})
        held = table.get(inode, ())
        if number not in held:
            return
        left = tuple(each for each in held if each != number)
        if left:
            table[inode] = left
        else:
            del table[inode]
            if not table:
                del self._held[client]
        self._totals[inode] -= 1
        assert self._totals[inode] >= 0, "a hold is given back once"
        if not self._totals[inode]:
            del self._totals[inode]


__all__ = ["SESSIONS_MAX", "Holds", "Writers"]
