"""The cluster manager without I/O: what is stored, what nodes report, and what follows from both.

Stored records (`records.Records`) change only through a `Change`: a method here computes one, the service stores it
durably, then `apply` makes it true. Everything else (when a heartbeat of a node came, the local states of its
replicas) is in memory only, and is rebuilt from heartbeats after a restart.

    L1  a node is declared failed only when the lease it may still believe in has expired, or its process has ended
    L2  no lease is granted to a node that may not know yet that one of its replicas does not serve any more
    L3  after a start no node is declared failed until every lease granted before has expired
    L4  a replica whose process has ended passes through OFFLINE or LASTSRV before its next report counts
    L5  a chain that serves, and has a member of which nothing is known yet, does not change
    L6  a replica that was rotated while its node lives takes part in every write until the node has received that, or
        its lease has expired
    L7  after a start no lease is granted, and no metadata service may serve, before every storage node that may have
        seen a newer store than ours has sent a heartbeat, or was given the time of the bootstrap for it
    L8  the directory of a storage node that lacks what was synced under an earlier process serves nothing
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, NamedTuple

from ..config import MgmtdConfig, longest_lease_ms
from ..errors import AlreadyExists, Busy, ConfigError, Conflict, InvalidArgument, NotFound
from ..ids import EMBEDDED_EPOCH, META_NODE, STORAGE_NODE, ChainId, ChainVersion, NodeId, TableId, TargetId
from ..states import Data, Local, Public
from ..wire.pb import mgmtd_pb2 as pb
from .healing import Healing
from .moves import Moves
from .placement import REPLICAS_MAX
from .records import ChainRecord, Change, EngineMark, NodeRecord, Records, StoreMark, TableRecord
from .transitions import COMPLETE, Held, Member, advance, ordered

FALLEN: Final = (Public.OFFLINE, Public.LASTSRV)
NODE_BYTES_MAX: Final = 4096  # of its host, addresses, socket path, release
DESCRIPTION_BYTES_MAX: Final = 1024
TARGETS_MAX: Final = 20_000  # replicas on one node
NODES_MAX: Final = 10_000
FIRST_OF_KIND: Final = {pb.NODE_META: META_NODE, pb.NODE_STORAGE: STORAGE_NODE}
CHAINS_MAX: Final = 100_000  # of all tables; each takes about 2 KiB here, and 70 bytes with every client
CHAIN_MEMBERS_MAX: Final = REPLICAS_MAX
CHAINS_PER_TABLE: Final = 100_000  # room for ids: chain = table * this + index + 1
TARGETS_PER_CHAIN: Final = 1000  # and target = chain * this + n: replicas a chain may ever have had
assert CHAIN_MEMBERS_MAX < TARGETS_PER_CHAIN, "a full chain has ids left"
assert CHAINS_MAX <= CHAINS_PER_TABLE, "one table may have all chains"
NEW_DIRECTORY: Final = 0  # in place of an incarnation: nothing was served from it yet
ENDED_MAX: Final = 16  # incarnations of one node remembered as ended
FREE_PERCENT_MIN: Final = 10  # of a disk that gets chains, as `luciola status` warns
_LOCAL: Final = {int(state): state for state in Local}
_DATA: Final = {int(data): data for data in Data}
MARK_INTERVAL_S: Final = 5.0  # between two times that marks are stored: each is a sync of the disk
assert CHAINS_PER_TABLE < 2**32, "a chain's id has 32 bits"


class Report(NamedTuple):  # made for each replica of each heartbeat
    """What a node says of one replica."""

    chain: ChainId
    local: Local
    chain_version: ChainVersion
    used_bytes: int
    held: Held


_Here = dict[TargetId, tuple[ChainRecord, Member]]  # the replicas of one node


@dataclass(slots=True)
class NodeLife:
    """What is known of a node's process since this manager started."""

    status: int = pb.CONNECTING
    reported_s: float = float("-inf")
    sequence: int = 0
    has_ended: bool = False  # the current incarnation: reaped, left, or silent for longer than its lease
    ended: list[int] = field(default_factory=list)  # incarnations that were reaped, or have left
    reported: set[TargetId] = field(default_factory=set)
    capacity_bytes: int = 0  # of a storage node's disk; 0: not reported
    free_bytes: int = 0  # that clients may still write


@dataclass(slots=True)
class TargetLife:
    """What is known of one replica."""

    local: Local | None = None  # None: nothing yet
    held: Held = COMPLETE  # of the process that sends heartbeats now
    used_bytes: int = 0
    must_fall: bool = False  # L4
    demoted_at: int = 0  # chain version at which it last stopped being SERVING
    serves_until_s: float = float("-inf")  # L6: until then its node may not know that it was rotated


@dataclass(frozen=True, slots=True)
class HeartbeatResult:
    """The outcome of a heartbeat."""

    lease_ms: int


class Model:
    """The manager's knowledge. Every method that reads a clock is handed the time."""

    def __init__(self, config: MgmtdConfig, records: Records, *, now_s: float, granted_ms: int = 0) -> None:
        self.config = config
        self.records = records
        assert granted_ms >= 0, "a lease ends after it was granted"
        self.lives: dict[NodeId, NodeLife] = {node: NodeLife() for node in records.nodes}
        self.targets: dict[TargetId, TargetLife] = {}
        self.newborn_until: dict[ChainId, float] = {}
        self.started_s = now_s
        self.bootstrap_until_s = now_s + max(config.bootstrap_ms, granted_ms) / 1000
        self.granted_until_s = (
            now_s + granted_ms / 1000
        )  # leases of earlier terms, under another configuration
        self.looked_s = now_s
        self.touched: set[NodeId] = set()  # nodes whose status changed since the service last published
        self.marked_s = float("-inf")  # when the mark of meta's store was last stored
        self.engines: dict[NodeId, EngineMark] = {}  # reported, and not stored yet
        self.engines_marked_s = now_s
        self._falling: set[TargetId] = set()
        self.healing = Healing(self)
        self.moves = Moves(self)
        self.dirty: set[ChainId] = set(records.chains)
        for chain in records.chains.values():
            self.newborn_until[chain.id] = self.bootstrap_until_s
            for member in chain.members:
                demoted = 0 if member.state is Public.SERVING else chain.version
                self.targets[member.target] = TargetLife(demoted_at=demoted)
        for node in records.nodes.values():
            if node.disabled:
                self._set_status(node.id, pb.DISABLED)
            for _chain, member in self._members_on(node.id):
                if node.unsettled:
                    self._fell(member)
                elif node.disabled:  # it may still hold a lease, and whether it had to fall is not known
                    self.targets[member.target].must_fall = member.state not in FALLEN

    # Time.

    @property
    def lease_s(self) -> float:
        """How long after hearing a node it may still believe in its lease: its clock may be the slower one."""
        return longest_lease_ms(self.config) / 1000

    def _leased_until_s(self, reported_s: float) -> float:
        """Return until when a node whose heartbeat came then may hold a lease: one of an earlier term may be longer."""
        return max(reported_s + self.lease_s, self.granted_until_s)

    def lease_count(self, now_s: float) -> int:
        """Return how many storage nodes may hold a lease."""
        return sum(
            node.kind == pb.NODE_STORAGE
            and not self.lives[node.id].has_ended
            and now_s < self.lives[node.id].reported_s + self.lease_s
            for node in self.records.nodes.values()
        )

    def is_bootstrapping(self, now_s: float) -> bool:
        return now_s < self.bootstrap_until_s

    def silent_nodes(self, now_s: float) -> list[NodeId]:
        """Storage nodes that may have seen a newer store than ours, and have not said so yet (L7)."""
        if not self.is_bootstrapping(now_s):
            return []
        return [
            node.id
            for node in self.records.nodes.values()
            if node.kind == pb.NODE_STORAGE and not node.disabled and self.records.has_chains(node.id)
            if self.lives[node.id].reported_s < self.started_s and not self.lives[node.id].has_ended
        ]

    # The store of the metadata service.

    def check_meta_store(self, mark: StoreMark) -> None:
        """Raises: ConfigError if that store is older than one that was seen, or not this cluster's."""
        known = self.records.meta_store
        if mark.follows(known):
            return
        assert known is not None, "everything follows nothing"
        if (mark.store, mark.generation) == (known.store, known.generation):
            seen = f"position {mark.position}, but {known.position} was seen"
        elif mark.generation < known.generation:
            seen = f"generation {mark.generation}, but an operator accepted its loss in generation {known.generation}"
        else:
            seen = f"store {mark.store:#x}, but the cluster's is {known.store:#x}"
        raise ConfigError(
            f"meta's store is older than the cluster: {seen}", older="meta", generation=known.generation
        )

    def due_mark(self, request: pb.HeartbeatRequest, *, now_s: float) -> StoreMark | None:
        """The mark that has to be stored because of this heartbeat. Raises: ConfigError as `check_meta_store`."""
        if not request.HasField("meta_store"):
            return None
        mark, known = StoreMark.from_pb(request.meta_store), self.records.meta_store
        if request.node.kind != pb.NODE_META:  # a storage node that has seen more than we hold
            seen = known is None or (mark.generation, mark.position) > (known.generation, known.position)
            return mark if seen else None
        self.check_meta_store(mark)
        is_new = known is None or mark.generation != known.generation
        is_late = request.leaving or now_s - self.marked_s >= MARK_INTERVAL_S
        return mark if is_new or (is_late and mark != known) else None

    # The chunk engines of storage nodes.

    def due_engine(self, request: pb.HeartbeatRequest) -> tuple[tuple[NodeId, EngineMark], ...]:
        """Return the mark that has to be stored because of this heartbeat: the last one of a process."""
        node = NodeId(request.node.id)
        mark = (self._raised_engine(request) or self.engines.get(node)) if request.leaving else None
        return ((node, mark),) if mark else ()

    def _raised_engine(self, request: pb.HeartbeatRequest) -> EngineMark | None:
        """Return the mark of this heartbeat, if it is another one. A new engine replaces the one that was known."""
        if not request.engine.identity:
            return None
        node, mark = NodeId(request.node.id), EngineMark.from_pb(request.engine)
        known = self.engines.get(node) or self.records.engines.get(node)
        is_new = known is None or known.identity != mark.identity or known.round < mark.round
        return mark if is_new else None

    def _due_engines(self, now_s: float) -> tuple[tuple[NodeId, EngineMark], ...]:
        """Return the marks that came since the last were stored: of all nodes together, so that many cost one sync."""
        if not self.engines or now_s - self.engines_marked_s < MARK_INTERVAL_S:
            return ()
        return tuple(self.engines.items())

    # Heartbeats.

    def registration(
        self,
        node: pb.Node,
        directory_incarnations: Collection[int] = (),
        engine: pb.EngineMark | None = None,
    ) -> Change:
        """Return what must be stored before a heartbeat of `node` can be taken in.

        A larger incarnation is a later process, so the one before has ended. A smaller one is a message that was
        long on its way, unless the clock of that machine was set back: it is believed when the other is silent.
        A directory that does not know the stored incarnation is an older copy: it lacks what was acknowledged since.
        Raises: InvalidArgument, Busy; ConfigError for an older copy.
        """
        said = NodeRecord.from_pb(node)
        known = self.records.nodes.get(said.id)
        if said.id == 0 or said.incarnation == 0:
            raise InvalidArgument("a node has an id and an incarnation, neither of which is 0")
        if said.kind not in pb.NodeKind.values() or node.ByteSize() > NODE_BYTES_MAX:
            raise InvalidArgument(
                f"not a node: of no known kind, or described with over {NODE_BYTES_MAX} bytes"
            )
        if said.kind == pb.NODE_META:
            self._check_only_meta(said)
        if known is None:
            if len(self.records.nodes) >= NODES_MAX:
                raise Busy(f"a cluster has at most {NODES_MAX} nodes")
            return Change(
                nodes=(replace(said, disabled=False, unsettled=False, leaving=pb.STAYS, successor=NodeId(0)),)
            )
        if known.kind != said.kind:
            raise InvalidArgument(
                f"node {said.id} is a {pb.NodeKind.Name(known.kind)}, not a {pb.NodeKind.Name(said.kind)}"
            )
        life = self.lives[said.id]
        is_alone = said.kind == pb.NODE_META and EMBEDDED_EPOCH in (said.epoch, known.epoch)
        if is_alone and life.status == pb.CONNECTED and known.incarnation < said.incarnation:
            raise Busy(f"the metadata service runs as process {known.pid} on {known.host}")
        is_replaced = said.incarnation < known.incarnation and not life.has_ended
        if is_replaced or said.incarnation in life.ended:
            raise InvalidArgument(
                f"this process of node {said.id} was replaced or has ended; start it again", node=said.id
            )
        unsettled = known.unsettled
        if known.incarnation != said.incarnation:
            _check_directory(known, directory_incarnations)
            _check_engine(known.id, self.records.engines.get(known.id), engine)
            unsettled = any(member.state not in FALLEN for _chain, member in self._members_on(said.id))
        said = replace(
            said,
            disabled=known.disabled,
            unsettled=unsettled,
            leaving=pb.STAYS if known.leaving == pb.OUT else known.leaving,
            successor=known.successor,
        )
        return Change() if said == known else Change(nodes=(said,))

    def _check_only_meta(self, said: NodeRecord) -> None:
        """Raises: Busy if another node runs the metadata service, unless both follow a log, which has one leader."""
        for other in self.records.nodes.values():
            if (
                other.kind == pb.NODE_META
                and other.id != said.id
                and EMBEDDED_EPOCH in (said.epoch, other.epoch)
                and self.lives[other.id].status == pb.CONNECTED
            ):
                raise Busy(
                    f"node {other.id} runs the metadata service, as process {other.pid} on {other.host}"
                )

    def receive(self, request: pb.HeartbeatRequest, *, now_s: float) -> HeartbeatResult:
        """Take in a heartbeat whose registration is stored; `now_s` is when it was received.

        Raises: Conflict if it is older than the last one; InvalidArgument for a malformed report.
        """
        node = self.records.nodes[NodeId(request.node.id)]
        life = self.lives[node.id]
        assert node.incarnation == request.node.incarnation, "register first"
        if request.sequence <= life.sequence:
            raise Conflict("a newer heartbeat has come already", sequence=life.sequence)
        reports = _reports(request)
        life.sequence = request.sequence
        engine = self._raised_engine(request)
        if engine is not None:
            self.engines[node.id] = engine
        if node.disabled:
            return HeartbeatResult(0)
        if request.leaving:
            self.end(node.id)
            return HeartbeatResult(0)
        life.reported_s = max(life.reported_s, now_s)
        life.has_ended = False
        if request.HasField("disk"):
            life.capacity_bytes, life.free_bytes = request.disk.capacity_bytes, request.disk.free_bytes
        self._set_status(node.id, pb.CONNECTED)
        here = {member.target: (chain, member) for chain, member in self._members_on(node.id)}
        self._take_in(life, reports, here)
        may_lease = self._may_lease(reports, here) and not self.silent_nodes(now_s)
        assert self._falling.isdisjoint(life.reported) or not may_lease, (
            "L2: the node may not know of its fall yet"
        )
        lease_ms = self.config.lease_ms if may_lease else 0
        assert not lease_ms or self._leased_until_s(life.reported_s) > now_s, "L1: the lease granted counts"
        return HeartbeatResult(lease_ms)

    def end(self, node: NodeId) -> None:
        """The process of `node` is known to have ended, or to have stopped serving: its lease is void."""
        life = self.lives[node]
        life.ended = [*life.ended, self.records.nodes[node].incarnation][-ENDED_MAX:]
        assert self.records.nodes[node].incarnation in life.ended, "a process that has ended is remembered"
        self._forget_process(node, life)
        self._set_status(node, pb.FAILED)

    def ended(self, request: pb.ProcessEndedRequest) -> bool:
        """Note that a supervisor has reaped a process. Return whether it was the node's current one."""
        node = self.records.nodes.get(NodeId(request.node))
        if node is None or node.disabled or node.incarnation != request.incarnation:
            return False
        self.end(node.id)
        return True

    def _forget_process(self, node: NodeId, life: NodeLife) -> None:
        life.has_ended = True
        life.sequence = 0
        life.reported = set()
        for chain, member in self._members_on(node):
            self._fell(member)
            self.dirty.add(chain.id)

    def _fell(self, member: Member) -> None:
        target = self.targets[member.target]
        target.local = Local.OFFLINE
        target.held = COMPLETE  # what the next process finds is not known
        target.must_fall = member.state not in FALLEN
        target.serves_until_s = float("-inf")

    def _take_in(self, life: NodeLife, reports: dict[TargetId, Report], here: _Here) -> None:
        missing = life.reported - reports.keys()
        for target_id, report in reports.items():
            chain, _member = here.get(target_id, (None, None))
            if chain is None or chain.id != report.chain:
                continue  # an orphan: it belongs to no chain any more
            target = self.targets[target_id]
            target.used_bytes = report.used_bytes
            if report.chain_version != chain.version or target.must_fall:
                continue
            target.serves_until_s = float("-inf")
            if target.held != report.held:
                target.held = report.held
                self.dirty.add(chain.id)
            self._set_local(chain.id, target_id, report.local)
        for target_id in missing & here.keys():  # replicas that the node had, and does not speak of any more
            self._set_local(here[target_id][0].id, target_id, Local.OFFLINE)
        life.reported = set(reports)

    def _set_local(self, chain: ChainId, target_id: TargetId, local: Local) -> None:
        target = self.targets[target_id]
        if target.local is not local:
            target.local = local
            self.dirty.add(chain)

    def _may_lease(self, reports: dict[TargetId, Report], here: _Here) -> bool:
        """L2. A replica that the node does not report is one it does not serve, but for one that it does not know yet.

        It may receive that chain later, as it was before a change that is being stored, and serve under this lease. So
        it may with one of which nothing is known here, when L5 ends.
        """
        for _chain, member in here.values():
            is_unknown = self.targets[member.target].local is None or member.target in self._falling
            if member.state is Public.SERVING and is_unknown:
                return False
        for target_id, report in reports.items():
            if target_id in self._falling:
                return False
            if target_id not in here:
                # removed from its chain, which a node that serves it has not received yet
                if report.local is Local.UPTODATE:
                    return False
                continue
            target = self.targets[target_id]
            if target.must_fall or report.chain_version < target.demoted_at:
                return False
        return True

    # Where there is room.

    def room_bytes(self, node: NodeId) -> int:
        """Return how much chains may have on a node: what they have, and what is free. 0: not reported."""
        life = self.lives[node]
        if not life.capacity_bytes:
            return 0
        used_bytes = sum(self.targets[each.target].used_bytes for _, each in self._members_on(node))
        return max(1, life.free_bytes + used_bytes)

    def is_full(self, node: NodeId) -> bool:
        """Return whether a node should get no more chains."""
        life = self.lives[node]
        return life.free_bytes < life.capacity_bytes * FREE_PERCENT_MIN / 100

    # Nodes that leave.

    def is_leaving(self, node: int) -> bool:
        known = self.records.nodes.get(NodeId(node))
        return known is not None and known.leaving != pb.STAYS

    def is_out(self, node: int) -> bool:
        known = self.records.nodes.get(NodeId(node))
        return known is not None and known.leaving == pb.OUT

    def away_s(self, node: NodeId, now_s: float) -> float:
        """Return for how long a node is known not to have reported."""
        return now_s - max(self.lives[node].reported_s, self.started_s)

    def domain_level(self, chain: ChainId) -> int:
        """Return the level of the failure domains that copies of a chain's chunks do not share."""
        table = chain // CHAINS_PER_TABLE
        versions = [known for known in self.records.tables if known[0] == table]
        return self.records.tables[max(versions)].domain if versions else pb.DOMAIN_NODE

    # Looking at the clock and the chains.

    def look(self, *, now_s: float) -> Change:
        """Return the nodes that failed since the last look, and what that and the reports change in chains.

        Until `apply` is called with it the change is being stored. There is only one at a time; if it cannot be
        stored, its outcome is unknown, and a new model must be made from the records.
        """
        assert not self._falling, "one change at a time"
        if now_s - self.looked_s > self.lease_s / 2:
            # This process was stopped itself: heartbeats may be waiting unread, so silence means nothing.
            for life in self.lives.values():
                if life.status == pb.CONNECTED:
                    life.reported_s = max(life.reported_s, now_s)
        self.looked_s = now_s
        if self.is_bootstrapping(now_s) and all(
            life.reported_s >= self.started_s or life.has_ended
            for node, life in self.lives.items()
            if self.records.nodes[node].kind != pb.NODE_MGMTD  # which has no lease
        ):
            self.bootstrap_until_s = now_s  # every node that may hold an older lease has sent a heartbeat
        self._find_dead(now_s)
        healed = self.healing.look(now_s)
        moved = Change() if healed.ended_moves else self.moves.advance(now_s)  # none begins that is dropped
        changed = {chain.id for chain in moved.chains}
        advanced = [chain for chain in self._advance_chains(now_s) if chain.id not in changed]
        nodes = {node.id: node for node in self._settled()}
        for node in healed.nodes:
            nodes[node.id] = replace(nodes.get(node.id, node), leaving=node.leaving)
        change = replace(
            moved,
            chains=(*moved.chains, *advanced),
            nodes=tuple(nodes.values()),
            moves=(*moved.moves, *healed.moves),
            ended_moves=(*moved.ended_moves, *healed.ended_moves),
            rebalance=healed.rebalance or moved.rebalance,
            engines=self._due_engines(now_s),
        )
        for chain in change.chains:
            before = self.records.chains[chain.id]
            assert chain.version == before.version + 1, "one look changes a chain once"
            assert all(m.state in FALLEN for m in chain.members if self.targets[m.target].must_fall), (
                "L4: a replica whose process has ended falls first"
            )
            self._falling |= {member.target for member in before.serving} - {m.target for m in chain.serving}
        return change

    def _find_dead(self, now_s: float) -> None:
        for node_id, life in self.lives.items():
            if life.has_ended or life.status == pb.FAILED:
                continue
            alive_until = max(
                self._leased_until_s(life.reported_s),
                self.bootstrap_until_s if life.reported_s < self.started_s else 0,
            )
            if now_s < alive_until:
                continue
            assert now_s >= self.granted_until_s, "L3: every lease granted before this start has expired"
            if life.status != pb.DISABLED:
                self._set_status(node_id, pb.FAILED)
            life.has_ended = True
            for chain, member in self._members_on(node_id):
                self._set_local(chain.id, member.target, Local.OFFLINE)

    def _settled(self) -> Iterable[NodeRecord]:
        """Nodes whose replicas have all fallen since their process was replaced."""
        for node in self.records.nodes.values():
            if node.unsettled and not any(
                self.targets[member.target].must_fall for _chain, member in self._members_on(node.id)
            ):
                yield replace(node, unsettled=False)

    def _members_on(self, node: NodeId) -> list[tuple[ChainRecord, Member]]:
        return [
            (chain, member)
            for chain in self.records.chains_of(node)
            for member in chain.members
            if member.node == node
        ]

    def _advance_chains(self, now_s: float) -> Iterable[ChainRecord]:
        for chain_id in list(self.dirty):
            chain = self.records.chains[chain_id]
            local: dict[TargetId, Local] = {}
            for member in chain.members:
                known = self.targets[member.target].local
                if known is None:
                    if chain.serving and now_s < self.newborn_until.get(chain_id, 0):
                        break  # L5
                    known = Local.OFFLINE
                local[member.target] = known
            else:
                held = {member.target: self.targets[member.target].held for member in chain.members}
                members = advance(chain.members, local, held)
                if members == chain.members:
                    self.dirty.discard(chain_id)
                elif not self._leaves_behind(members, now_s):
                    yield chain.changed(members)

    def _leaves_behind(self, members: Sequence[Member], now_s: float) -> bool:
        """L6: whether a replica that may still serve would be left out of writes."""
        return any(
            member.state not in (Public.SERVING, Public.SYNCING)
            and now_s < self.targets[member.target].serves_until_s
            for member in members
        )

    # Making a stored change true.

    def apply(self, change: Change) -> None:
        """Make `change`, which is stored, true."""
        assert not any(map(self.records.has_chains, change.removed_nodes)), (
            "a node with replicas stays registered"
        )
        for node in change.nodes:
            self._apply_node(node)
        for chain in change.chains:
            self._apply_chain(chain)
        for node_id in change.removed_nodes:
            self.lives.pop(node_id, None)
            self.engines.pop(node_id, None)
        for node_id, stored in change.engines:
            if self.engines.get(node_id) == stored:
                del self.engines[node_id]
            self.engines_marked_s = self.looked_s
        if change.meta_store is not None:
            self.marked_s = self.looked_s
        self.records.apply(change)

    def _apply_node(self, node: NodeRecord) -> None:
        life = self.lives.setdefault(node.id, NodeLife(reported_s=self.looked_s))
        before = self.records.nodes.get(node.id)
        if before is not None and before.incarnation != node.incarnation:
            self._forget_process(node.id, life)
            life.has_ended = False
        if node.disabled:
            self._set_status(node.id, pb.DISABLED)
        elif life.status == pb.DISABLED:
            self._set_status(node.id, pb.CONNECTING)
            life.has_ended = False
            life.reported_s = max(life.reported_s, self.looked_s)  # it has been away from now on

    def _apply_chain(self, chain: ChainRecord) -> None:
        before = self.records.chains.get(chain.id)
        assert 0 < len(chain.members) <= CHAIN_MEMBERS_MAX, "a chain has a bounded number of replicas"
        assert len({m.node for m in chain.members}) == len(chain.members), "a node has one replica of a chain"
        served = {member.target for member in before.serving} if before is not None else set()
        for member in chain.members:
            target = self.targets.setdefault(member.target, TargetLife())
            if member.target in served and member.state is not Public.SERVING:
                target.demoted_at = chain.version
                # Rotated: being up to date was yesterday. That its process has ended, or that nothing is known, stays.
                if member.state is Public.SYNCING and target.local is Local.UPTODATE:
                    target.local = Local.ONLINE
            if member.state in FALLEN:
                target.must_fall = False
        left = {m.target for m in before.members} - {m.target for m in chain.members} if before else set()
        for target_id in left:
            self.targets.pop(target_id, None)
        self.dirty.add(chain.id)
        self._falling.difference_update(served)
        assert all(m.target in self.targets for m in chain.members), "each replica is known"

    # What administrators ask for.

    def check_new_table(self, request: pb.CreateChainTableRequest) -> None:
        """Raises: AlreadyExists, InvalidArgument for what is wrong wherever its chains are placed."""
        _check_description(request.description)
        if not 0 < request.table < 2**32 // CHAINS_PER_TABLE:
            raise InvalidArgument(f"a table's id is between 1 and {2**32 // CHAINS_PER_TABLE - 1}")
        if request.domain not in pb.DomainLevel.values():
            raise InvalidArgument(f"not a level of failure domains: {request.domain}")
        if any(known == request.table for known, _ in self.records.tables):
            raise AlreadyExists(f"chain table {request.table} exists already")

    def new_table(
        self,
        request: pb.CreateChainTableRequest,
        placed: Sequence[Sequence[int]],
        *,
        level: int = pb.DOMAIN_NODE,
        now_s: float,
    ) -> Change:
        """A chain table over chains placed on nodes, and those chains. `level`: of failure domains it was placed for.

        Raises: AlreadyExists, InvalidArgument.
        """
        self.check_new_table(request)
        table = TableId(request.table)
        if len(self.records.chains) + len(placed) > CHAINS_MAX:
            raise InvalidArgument(
                f"a cluster has at most {CHAINS_MAX} chains; it has {len(self.records.chains)}"
            )
        chains = []
        for index, nodes in enumerate(placed):
            chain = ChainId(table * CHAINS_PER_TABLE + index + 1)
            targets = [TargetId(chain * TARGETS_PER_CHAIN + number + 1) for number in range(len(nodes))]
            members = tuple(
                Member(target, node, Public.SERVING) for target, node in zip(targets, nodes, strict=True)
            )
            chains.append(ChainRecord(chain, ChainVersion(1), members, tuple(targets)))
            self.newborn_until[chain] = now_s + self.config.bootstrap_ms / 1000
        record = TableRecord(
            table, 1, tuple(c.id for c in chains), request.replicas, request.description, level
        )
        return Change(chains=tuple(chains), tables=(record,))

    def updated_chain(self, request: pb.UpdateChainRequest, *, now_s: float) -> Change:
        """Return one chain changed as an administrator asks. Raises: NotFound, InvalidArgument, Busy."""
        chain = self.records.chains.get(ChainId(request.chain))
        if chain is None:
            raise NotFound(f"no chain {request.chain}")
        match request.action:
            case pb.UpdateChainRequest.ADD:
                return Change(chains=(self.with_target(chain, NodeId(request.node)),))
            case pb.UpdateChainRequest.REMOVE:
                return Change(chains=(self._without_target(chain, TargetId(request.target)),))
            case pb.UpdateChainRequest.ROTATE_LASTSRV:
                return Change(chains=(self._rotated_last(chain, TargetId(request.target)),))
            case pb.UpdateChainRequest.ROTATE_PREFERRED:
                return Change(chains=self.rotated_as_preferred(chain, now_s=now_s))
        raise InvalidArgument(f"unknown action {request.action}")

    def with_target(self, chain: ChainRecord, node: NodeId) -> ChainRecord:
        known = self.records.nodes.get(node)
        if known is None or known.kind != pb.NODE_STORAGE:
            raise NotFound(f"no storage node {node}")
        if any(member.node == node for member in chain.members):
            raise InvalidArgument(f"node {node} holds a replica of chain {chain.id} already")
        if len(chain.members) >= CHAIN_MEMBERS_MAX:
            raise InvalidArgument(f"a chain has at most {CHAIN_MEMBERS_MAX} replicas")
        used = max((m.target for m in chain.members), default=0)
        used = max((used, *chain.preferred))
        target = TargetId(used + 1)
        if target >= (chain.id + 1) * TARGETS_PER_CHAIN:
            raise InvalidArgument(f"chain {chain.id} has had all the replicas it can have")
        self.targets[target] = TargetLife(local=Local.OFFLINE)
        members = ordered((*chain.members, Member(target, node, Public.OFFLINE)))
        return replace(chain.changed(members), preferred=(*chain.preferred, target))

    def _without_target(self, chain: ChainRecord, target: TargetId) -> ChainRecord:
        state = chain.state_of(target)
        if state is None:
            raise NotFound(f"chain {chain.id} has no replica {target}")
        if state is not Public.OFFLINE:
            raise Busy(f"replica {target} is {state.name}; only an OFFLINE one can be removed")
        members = tuple(member for member in chain.members if member.target != target)
        if not members:
            raise InvalidArgument("the last replica of a chain cannot be removed")
        return chain.changed(members)

    def _rotated_last(self, chain: ChainRecord, target: TargetId) -> ChainRecord:
        """Return the chain without `target` (0: the first absent one, else the first) among those that served last.

        If it was the only one, the next replica takes its role, and serves what it has; one whose data are LOST too
        only where all others are, and then at once: it reports OFFLINE as soon as it is asked for acknowledged data.
        """
        last = [member for member in chain.members if member.state is Public.LASTSRV]
        if not last:
            raise Busy(f"chain {chain.id} does not wait for a replica that served last")
        if target and target not in {member.target for member in last}:
            raise InvalidArgument(f"replica {target} of chain {chain.id} is not one that served last")
        away = [member for member in last if self.targets[member.target].local in (None, Local.OFFLINE)]
        named = [member for member in last if member.target == target]
        given_up = (named or away or last)[0]
        others = [member for member in chain.members if member != given_up]
        if not others:
            raise InvalidArgument(
                f"chain {chain.id} has no other replica: add one first (luciola chain add {chain.id} NODE)"
            )
        if len(last) == 1:
            heir, state = self._heir(others)
            others = [replace(member, state=state) if member == heir else member for member in others]
        return chain.changed(ordered((*others, replace(given_up, state=Public.OFFLINE))))

    def _heir(self, others: Sequence[Member]) -> tuple[Member, Public]:
        """Return which replica takes the role of the last one that served, and in what state."""
        with_data = [each for each in others if self.targets[each.target].held.data is not Data.LOST]
        if with_data:
            return with_data[0], Public.LASTSRV
        present = [each for each in others if self.targets[each.target].local is Local.ONLINE]
        if not present:
            raise Busy(
                "the disks of all replicas were replaced, and no node reports one that can be used; try again"
            )
        return present[0], Public.SERVING

    def rotated_as_preferred(self, chain: ChainRecord, *, now_s: float) -> tuple[ChainRecord, ...]:
        """Move the first replica that is in another's place to the tail, where it is compared.

        It becomes SYNCING, not OFFLINE, so it still has to take part in every write: until its node has received
        the new version no write is acknowledged, and what it serves meanwhile is not old (L6).
        """
        if len(chain.serving) != len(chain.members):
            raise Busy(f"chain {chain.id} is rotated only while all its replicas serve")
        wanted = [target for target in chain.preferred if chain.state_of(target) is not None]
        for member, target in zip(chain.members, wanted, strict=False):
            if member.target != target:
                return (self.demoted(chain, member, now_s=now_s),)
        return ()

    def demoted(self, chain: ChainRecord, member: Member, *, now_s: float) -> ChainRecord:
        """Return the chain with a replica that serves at its tail, SYNCING (L6)."""
        assert member.state is Public.SERVING, "only one that serves is demoted"
        others = tuple(other for other in chain.members if other != member)
        self._falling.add(member.target)
        self.targets[member.target].serves_until_s = self._leased_until_s(now_s)
        return chain.changed((*others, replace(member, state=Public.SYNCING)))

    def disabled_node(self, node_id: NodeId, *, disabled: bool, accept_unavailable: bool = True) -> Change:
        """Raises: NotFound; InvalidArgument for a manager, or if chains would be unavailable unasked."""
        node = self.records.nodes.get(node_id)
        if node is None:
            raise NotFound(f"no node {node_id}; `luciola node list` shows all of them")
        if disabled and node.kind == pb.NODE_MGMTD:
            raise InvalidArgument(f"node {node_id} is a manager, which has no lease that could be taken away")
        if disabled and not node.disabled and not accept_unavailable:
            self._check_others_serve(node_id)
        return Change() if node.disabled == disabled else Change(nodes=(replace(node, disabled=disabled),))

    def _check_others_serve(self, node: NodeId) -> None:
        """Raises: InvalidArgument if no node that stays enabled serves one of the chains that this one serves.

        A node that was disabled a moment ago counts as not serving, though its lease still runs.
        """
        alone = [
            chain.id
            for chain in self.records.chains_of(node)
            if (serving := {member.node for member in chain.serving}) and node in serving
            if all(other == node or self._is_disabled(other) for other in serving)
        ]
        if alone:
            raise InvalidArgument(
                f"node {node} has the only replica that serves of {len(alone)} chains, such as {alone[0]}",
                unavailable=len(alone),
            )

    def _is_disabled(self, node: int) -> bool:
        known = self.records.nodes.get(NodeId(node))
        return known is None or known.disabled

    def reserved(self, kind: pb.NodeKind, host: str) -> NodeRecord:
        """Return a node for a service that will be started on `host`, with the number after the highest of its kind.

        Raises: InvalidArgument; Busy if the cluster cannot have more of them.
        """
        first = FIRST_OF_KIND.get(kind)
        if first is None or not host or len(host.encode()) > DESCRIPTION_BYTES_MAX:
            raise InvalidArgument("a number is for a metadata service or a storage node, and names its host")
        alike = [node.id for node in self.records.nodes.values() if node.kind == kind]
        number = NodeId(max((*alike, first - 1)) + 1)
        others = {each for each in FIRST_OF_KIND.values() if each != first}
        if len(self.records.nodes) >= NODES_MAX or number in self.records.nodes or number in others:
            raise Busy(
                f"the cluster has no number left for another node of this kind; the last is {number - 1}"
            )
        return NodeRecord(number, kind, host=host)

    def unregistered(self, node_id: NodeId) -> Change:
        """Raises: NotFound; Busy if it is alive or has replicas."""
        if node_id not in self.records.nodes:
            raise NotFound(f"no node {node_id}")
        life = self.lives[node_id]
        if not life.has_ended:
            raise Busy(f"node {node_id} may be alive; stop or disable it and wait for its lease to run out")
        holding = self.records.chains_of(node_id)
        if holding:
            raise Busy(
                f"node {node_id} still has {len(holding)} replicas, such as one of chain {holding[0].id}"
            )
        return Change(removed_nodes=(node_id,))

    def _set_status(self, node: NodeId, status: int) -> None:
        if self.lives[node].status != status:
            self.lives[node].status = status
            self.touched.add(node)


def _check_directory(known: NodeRecord, incarnations: Collection[int]) -> None:
    """Raises: ConfigError if the directory of a storage node is not the one that `known` served from."""
    if (
        known.incarnation
        and incarnations
        and not {known.incarnation, NEW_DIRECTORY}.intersection(incarnations)
    ):
        raise ConfigError(
            f"the directory of node {known.id} is an older copy of the one that served last", older="storage"
        )


def _check_engine(node: NodeId, known: EngineMark | None, engine: pb.EngineMark | None) -> None:
    """L8. Raises: ConfigError if the chunks of a storage node had not come as far as `known` when they were opened."""
    if known is None or engine is None or engine.identity != known.identity or engine.opened >= known.round:
        return
    raise ConfigError(
        f"the directory of node {node} is an older copy of the one that served last: its chunks are of round "
        f"{engine.opened}, but round {known.round} was seen",
        older="storage",
    )


def _check_description(text: str) -> None:
    if len(text.encode()) > DESCRIPTION_BYTES_MAX:
        raise InvalidArgument(f"a description has at most {DESCRIPTION_BYTES_MAX} bytes")


def _reports(request: pb.HeartbeatRequest) -> dict[TargetId, Report]:
    """Return the reports by target. Raises: InvalidArgument."""
    if len(request.targets) > TARGETS_MAX:
        raise InvalidArgument(f"a node reports at most {TARGETS_MAX} replicas")
    reports: dict[TargetId, Report] = {}
    for said in request.targets:
        local, data, updates = _LOCAL.get(said.state), _DATA.get(said.data), said.updates
        if local is None or data is None:
            raise InvalidArgument(f"replica {said.id} is reported in no valid state")
        if said.id in reports:
            raise InvalidArgument(f"replica {said.id} is reported twice")
        held = COMPLETE if data is COMPLETE.data and updates == COMPLETE.updates else Held(data, updates)
        reports[TargetId(said.id)] = Report(
            ChainId(said.chain), local, ChainVersion(said.chain_version), said.used_bytes, held
        )
    return reports


__all__ = ["HeartbeatResult", "Model", "NodeLife", "Report", "TargetLife"]
