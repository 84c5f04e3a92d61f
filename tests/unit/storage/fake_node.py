"""A storage engine in memory with the calls of `luciola_core.StorageNode` that control code uses, and faults.

It keeps records instead of bytes: `crc32c` stands for a chunk's content.
"""

import threading
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

from luciola.errors import Busy, StaleRouting, Unavailable
from luciola.storage.compare import Name, Record
from luciola.wire import RoutingTable
from luciola.wire.pb.mgmtd_pb2 import SERVING, SYNCING, Routing


def record(content: int, index: int, **fields) -> Record:
    """A committed chunk."""
    base = Record(
        content, index, 1, 1, 10, 100 * content + index, pending=False, removed=False, pending_version=0
    )
    return replace(base, **fields)


def unreadable(content: int, index: int) -> Record:
    """A chunk whose index record cannot be read."""
    return record(content, index, version=0, chain_version=0, length=0, crc32c=0, pending=True)


def _stamp(item: Record | None) -> tuple[int, int]:
    return (0, 0) if item is None else (item.chain_version, item.version)


class FakeNode:
    """One node. `peers` finds the others, as routing does for the real one."""

    def __init__(self, number: int, peers: dict[int, "FakeNode"]) -> None:
        self.number = number
        self.peers = peers
        peers[number] = self
        self.chains: dict[int, dict[Name, Record]] = {}
        self.table = RoutingTable()
        self.lock = threading.Lock()
        self.wiped: list[int] = []
        self.quarantined: list[tuple[int, Record]] = []
        self.updates = 0
        self.calls: list[tuple[int, int, tuple[Name, ...]]] = []
        self.listed: list[Name | None] = []  # where each listing began
        self.refuse: dict[Name, str] = {}  # chunks that cannot be sent, until the test says otherwise
        self.before_sync: Callable[[], None] = lambda: None
        self.on_flush: Callable[[], None] = lambda: None
        self.flushed: dict[int, dict[Name, Record]] = {}  # what the last `sync` made durable
        self.lease_until_s = 0.0
        self.access_s = 0.0
        self.on_space: Callable[[], object] = lambda: None
        self.gave_up = False
        self.damaged: set[Name] = set()
        self.now_round = 5
        self.opened_round = 4
        self.is_confirmed = False
        self.stuck: dict[str, float] = {}  # chunks that something holds, and for how many seconds
        self.staged: dict[Name, int] = {}  # the round in which a chunk was staged; 0 if not named

    def chain(self, number: int) -> dict[Name, Record]:
        return self.chains.setdefault(number, {})

    def put(self, number: int, *records: Record) -> None:
        self.chain(number).update({item.name: item for item in records})

    def _state(self, chain: int) -> int:
        """What routing says of this node's replica; 0 without one."""
        members = self.table.chains.get(chain)
        targets = members.targets if members else ()
        return next((target.state for target in targets if target.node == self.number), 0)

    # The native interface.

    def set_routing(self, routing: bytes) -> int:
        self.table.apply(Routing.FromString(routing))
        return self.table.version

    def slow_ops(self, seconds: float) -> list[str]:
        return [line for line, held_s in self.stuck.items() if held_s >= seconds]

    def set_lease(self, until_s: float, routing_version: int) -> None:
        self.lease_until_s = until_s

    def drop_lease(self) -> None:
        self.lease_until_s = 0.0

    def oldest_access_s(self) -> float:
        return self.access_s

    def give_up_disk(self) -> None:
        self.drop_lease()
        self.gave_up = True

    def lease_left_s(self) -> float:
        return self.lease_until_s

    def targets(self):
        return [
            (target.id, chain.id, chain.version, len(self.chain(chain.id)), 0, self.updates, False)
            for chain in self.table.chains.values()
            for target in chain.targets
            if target.node == self.number
        ]

    def space(self):
        self.on_space()
        return 1000, 500, 500

    def counters(self):
        return {"reads": 0}

    def list_chunks(self, chain: int, after: Name | None, limit: int, since: int = 0):
        with self.lock:
            self.listed.append(after)
            names = sorted(name for name in self.chain(chain) if after is None or name > after)
            return [astuple(self.chain(chain)[name]) for name in names[:limit]]

    def quarantine(self, chain: int, version: int, chunk: Name, stamp: tuple[int, int], folder: Path) -> bool:
        if self.table.chains[chain].version != version:
            raise StaleRouting("the chain has changed")
        if self._state(chain) != SYNCING:
            raise Unavailable("the replica is not being synced")
        with self.lock:
            found = self.chain(chain).get(chunk)
            if stamp == (0, 0):
                if found is None or not found.version:
                    self.chain(chain)[chunk] = unreadable(*chunk)
                return found is None or not found.version
            if _stamp(found) != stamp:
                return False
            self.quarantined.append((chain, self.chain(chain).pop(chunk)))
            return True

    def stored_chains(self) -> list[int]:
        with self.lock:
            return sorted(chain for chain, records in self.chains.items() if records)

    def wipe_chain(self, chain: int) -> None:
        if self._state(chain) == SERVING:
            raise Busy(f"chain {chain} is served by this node")
        with self.lock:
            self.wiped.append(chain)
            self.chain(chain).clear()

    def sync_chunks(self, chain: int, chain_version: int, chunks):
        self.before_sync()
        self.calls.append((chain, chain_version, tuple(chunks)))
        members = self.table.chains[chain]
        if members.version != chain_version:
            raise StaleRouting("the chain has changed")
        assert [target for target in members.targets if target.state == SERVING][-1].node == self.number
        successor = next(target for target in members.targets if target.state == SYNCING)
        peer = self.peers[successor.node]
        failures = []
        for name in chunks:
            status = self.refuse.get(name) or self._send(peer, chain, name)
            if status:
                failures.append((*name, status))
        return len(chunks) - len(failures), failures

    def _send(self, peer: "FakeNode", chain: int, name: Name) -> str:
        """As the chain machine does: what is newer stays and is compared again, as is content that is missing here."""
        with peer.lock:
            ours = self.chain(chain).get(name)
            theirs = peer.chain(chain).get(name)
            if ours is not None and ours.is_unreadable:
                return "Checksum"
            if ours is None or not ours.version:
                if theirs is not None and theirs.version and not theirs.removed:
                    return "Stale"
                if theirs is not None and theirs.pending:
                    del peer.chain(chain)[name]
            elif _stamp(theirs) > _stamp(ours):
                return "Stale"
            else:
                peer.chain(chain)[name] = replace(ours, pending=False, pending_version=0)
        return ""

    def scrub(self, chain: int, after: Name | None, limit: int, repair: int):
        names = sorted(name for name in self.chain(chain) if after is None or name > after)[:limit]
        found = [(*name, self.chain(chain)[name].version) for name in names if name in self.damaged]
        if repair:
            self.damaged -= set(names)
        last = names[-1] if len(names) == limit else None
        return len(names), 10 * len(names), found, len(found) if repair else 0, last

    def sync(self) -> None:
        self.on_flush()
        with self.lock:
            self.flushed = {chain: dict(records) for chain, records in self.chains.items()}

    def round(self) -> int:
        return self.now_round

    def rounds(self) -> tuple[int, int]:
        return self.opened_round, self.now_round

    def confirm(self) -> None:
        self.is_confirmed = True

    def purge_tombstones(
        self, chain: int, after: Name | None, round_: int, limit: int
    ) -> tuple[int, Name | None]:
        names = sorted(name for name in self.chain(chain) if after is None or name > after)[:limit]
        dead = [n for n in names if self.chain(chain)[n].removed and self.staged.get(n, 0) < round_]
        for name in dead:
            del self.chain(chain)[name]
        return len(dead), names[-1] if len(names) == limit else None

    def stop(self) -> None:
        pass
