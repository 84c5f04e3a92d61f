"""What is published, and since when.

Every change gets the next routing version; every record remembers the version of its last change, in the order of
change, so a delta costs as much as it brings. Versions begin with the term of the primary, so those of a new
primary are larger than all that any earlier one has published, without being stored.

    P1  versions only grow, over restarts and elections too
    P2  snapshot = any older snapshot plus the delta since then
"""

from typing import Final, Literal, cast

from ..ids import ChainId, NodeId, RoutingVersion, TableId, TargetId
from ..wire.pb import mgmtd_pb2 as pb
from .model import Model
from .records import Change
from .revocations import all_revoked

TERM_SHIFT: Final = 32  # four billion changes in one term
# For so long a snapshot is handed out again, though what nodes say of their replicas (bytes used) may have changed. To
# make one of 10,000 chains takes 0.1 s, and after a restart every client asks for one: it must not keep heartbeats out.
SNAPSHOT_FRESH_S: Final = 1.0
REMOVED_MAX: Final = 1000  # removed nodes remembered for deltas; who knows less gets a snapshot

Kind = Literal["node", "chain", "table"]
Record = tuple[Kind, int, int]


class Publisher:
    """The published face of a `Model`."""

    def __init__(self, model: Model, *, cluster_id: str, term: int, manager: int = 0) -> None:
        self._model = model
        self._cluster_id = cluster_id
        self._manager = manager
        assert term > 0, "P1: terms are counted from one"
        self._first = RoutingVersion(term << TERM_SHIFT)
        self.version = RoutingVersion(self._first + 1)
        self._changed_at: dict[Record, int] = {}  # the latest change last
        self._removed: list[tuple[int, int]] = []
        self._snapshot: tuple[float, pb.Routing] | None = None
        self._revoked_at: int = self.version
        records = model.records
        for node in records.nodes:
            self._changed_at["node", node, 0] = self.version
        for chain in records.chains:
            self._changed_at["chain", chain, 0] = self.version
        for table, version in records.tables:
            self._changed_at["table", table, version] = self.version

    def publish(self, change: Change) -> bool:
        """`change` and the nodes that the model has touched get the next version. False: nothing is new."""
        touched: list[Record] = [("node", node.id, 0) for node in change.nodes]
        touched += [("node", node, 0) for node in self._model.touched if node in self._model.records.nodes]
        touched += [("chain", chain.id, 0) for chain in change.chains]
        touched += [("table", table.id, table.version) for table in change.tables]
        self._model.touched.clear()
        if not touched and not change.removed_nodes and not change.revokes:
            return False
        self.bump()
        if change.revokes:
            self._revoked_at = self.version
        for record in touched:
            self._changed_at.pop(record, None)
            self._changed_at[record] = self.version
        for node in change.removed_nodes:
            self._changed_at.pop(("node", node, 0), None)
            self._removed.append((self.version, node))
        self._removed = self._removed[-REMOVED_MAX:]
        return True

    def bump(self) -> None:
        """A new version: also for what is no record, as the end of the bootstrap."""
        self.version = RoutingVersion(self.version + 1)
        assert self.version < self._first + (1 << TERM_SHIFT), (
            "P1: the versions of a term are below those of the next"
        )

    def has_delta(self, known: int) -> bool:
        """Return whether a caller that knows version `known` gets a delta, not everything."""
        oldest = self._removed[0][0] if len(self._removed) == REMOVED_MAX else 0
        return self._first < known <= self.version and known >= oldest

    def since(self, known: int, *, now_s: float, asked_s: float | None = None) -> pb.Routing:
        """Return all that changed after version `known`; everything if that is 0, or from another term or another life.

        The reply may be given to several callers, and must not be changed. A call that came at `asked_s`, and has
        waited since, may get what others got meanwhile, though there is a newer version now.
        """
        assert asked_s is None or asked_s <= now_s, "a caller that has waited asked before"
        if not self.has_delta(known):
            return self._everything(now_s, now_s if asked_s is None else asked_s)
        routing = self._blank(now_s, delta=True)
        for record, changed_at in reversed(self._changed_at.items()):
            if changed_at <= known:
                break
            self._add(routing, record, changed_at)
        gone = {node for version, node in self._removed if version > known}
        routing.removed_nodes.extend(sorted(gone - self._model.records.nodes.keys()))
        return routing

    def for_service(self, routing: pb.Routing, *, known: int) -> pb.Routing:
        """Return `routing`, for a service that knows version `known`, with all revoked tokens if they are news to it.

        Clients do not get them: they may be many, and are of no use there.
        """
        if routing.delta and known >= self._revoked_at:
            return routing
        whole = pb.Routing()
        whole.CopyFrom(routing)
        whole.revocations.CopyFrom(all_revoked(self._model.records))
        return whole

    def _everything(self, now_s: float, asked_s: float) -> pb.Routing:
        blank = self._blank(now_s, delta=False)
        if self._snapshot is not None:
            made_s, known = self._snapshot
            same = (known.version, known.bootstrapping) == (blank.version, blank.bootstrapping)
            if made_s > asked_s or (same and now_s - made_s < SNAPSHOT_FRESH_S):
                return known
        for record, changed_at in reversed(self._changed_at.items()):
            self._add(blank, record, changed_at)
        self._snapshot = (now_s, blank)
        return blank

    def _blank(self, now_s: float, *, delta: bool) -> pb.Routing:
        return pb.Routing(
            version=self.version,
            bootstrapping=self._model.is_bootstrapping(now_s),
            cluster_id=self._cluster_id,
            delta=delta,
            manager=self._manager,
        )

    def _add(self, routing: pb.Routing, record: Record, changed_at: int) -> None:
        kind, number, version = record
        if kind == "node":
            routing.nodes.append(self.node(number, changed_at))
        elif kind == "chain":
            routing.chains.append(self.chain(number, changed_at))
        else:
            table = self._model.records.tables[TableId(number), version].to_pb()
            table.changed_at = changed_at
            routing.tables.append(table)

    def node(self, number: int, changed_at: int = 0) -> pb.Node:
        """Return a node as it is published."""
        record = self._model.records.nodes[NodeId(number)]
        node = record.to_pb()
        life = self._model.lives[record.id]
        node.status = cast("pb.NodeStatus", life.status)
        node.changed_at = changed_at
        return node

    def chain(self, number: int, changed_at: int = 0) -> pb.Chain:
        """Return a chain as it is published."""
        chain = self._model.records.chains[ChainId(number)].to_pb()
        chain.changed_at = changed_at
        for target in chain.targets:
            life = self._model.targets[TargetId(target.id)]
            target.used_bytes = life.used_bytes
            if life.local is not None:
                target.local = cast("pb.LocalState", int(life.local))
        return chain


__all__ = ["Publisher"]
