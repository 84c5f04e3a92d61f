"""Who has which file open.

`Writers` mirrors the stored write sessions, so that a `stat` need not look for them in the store. `Holds`
counts how often each client has an inode open for reading; it is in memory only: after a restart clients
send `Hold` with all that they have open, and until they could have, nothing is collected.

With several meta processes over one store each inode's rows would have one owner.
"""

from collections import OrderedDict
from collections.abc import Collection, Iterable
from typing import Final

from ..kv import Engine
from . import schema

PAGE: Final = 10_000
# Files that one client, with all programs on its mount, has open for writing: a mount of a busy machine has thousands.
# Each costs this service about 400 bytes of memory, and a record in the store; so many, 26 MiB.
SESSIONS_MAX: Final = 65_536
REMEMBERED_MAX: Final = 1024  # opens of one client that are recognised when they are sent again


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

    def counts(self) -> dict[int, int]:
        """Return for each client that has files open for writing what `count_of` says."""
        return {client: len(sessions) for client, sessions in self._of_clients.items()}

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
    """Files open for reading, by client."""

    def __init__(self) -> None:
        self._counts: dict[int, dict[int, int]] = {}  # client → inode → opens
        self._totals: dict[int, int] = {}  # inode → opens of all clients
        self._seen: dict[int, OrderedDict[int, None]] = {}  # client → sequences

    @property
    def count(self) -> int:
        return sum(self._totals.values())

    @property
    def clients(self) -> Collection[int]:
        return self._counts.keys()

    def count_of(self, client: int) -> int:
        """Return how many inodes the client has open for reading."""
        return len(self._counts.get(client, ()))

    def has(self, inode: int, client: int) -> bool:
        """Return whether `client` has the inode open for reading."""
        return inode in self._counts.get(client, ())

    def acquire(self, client: int, inode: int, sequence: int) -> None:
        """One more open, unless this request has been counted already."""
        if self._is_new(client, sequence):
            self._add(client, inode, +1)

    def release(self, client: int, inodes: Iterable[int], sequence: int) -> None:
        """One open less of each of `inodes`, unless this request has been counted already."""
        if self._is_new(client, sequence):
            for inode in inodes:
                if self._counts.get(client, {}).get(inode):
                    self._add(client, inode, -1)

    def replace(self, client: int, inodes: Iterable[int]) -> None:
        """All that `client` has open; an inode may be named several times."""
        self.forget(client)
        for inode in inodes:
            self._add(client, inode, +1)

    def forget(self, client: int) -> None:
        """The client is gone."""
        for inode, count in list(self._counts.get(client, {}).items()):
            self._add(client, inode, -count)
        self._seen.pop(client, None)

    def __contains__(self, inode: object) -> bool:
        return inode in self._totals

    def _is_new(self, client: int, sequence: int) -> bool:
        if not sequence:
            return True
        seen = self._seen.setdefault(client, OrderedDict())
        if sequence in seen:
            return False
        seen[sequence] = None
        if len(seen) > REMEMBERED_MAX:
            seen.popitem(last=False)
        return True

    def _add(self, client: int, inode: int, change: int) -> None:
        counts = self._counts.setdefault(client, {})
        for table, key in ((counts, inode), (self._totals, inode)):
            count = table.get(key, 0) + change
            assert count >= 0, "a hold is given back once"
            if count:
                table[key] = count
            else:
                table.pop(key, None)
        if not counts:
            del self._counts[client]


__all__ = ["SESSIONS_MAX", "Holds", "Writers"]
