"""What mgmtd keeps of nodes, chains and tables, and their protobuf forms."""

from dataclasses import dataclass, field, replace
from typing import Final

from ..ids import ChainId, ChainVersion, NodeId, TableId, TargetId
from ..states import Public
from ..wire.pb import mgmtd_pb2 as pb
from .transitions import Member

NOWHERE: Final = NodeId(0)


@dataclass(frozen=True, slots=True)
class Labels:
    """Where a storage node stands. Empty: not said."""

    room: str = ""
    rack: str = ""
    host: str = ""

    def to_pb(self) -> pb.Labels:
        return pb.Labels(room=self.room, rack=self.rack, host=self.host)

    @classmethod
    def from_pb(cls, labels: pb.Labels) -> "Labels":
        return cls(labels.room, labels.rack, labels.host)


@dataclass(frozen=True, slots=True)
class NodeRecord:
    """A node as it is stored: who it is and where; not whether it is alive."""

    id: NodeId
    kind: int
    host: str = ""
    pid: int = 0
    incarnation: int = 0
    grpc_address: str = ""
    lane_address: str = ""
    data_address: str = ""
    data_socket: str = ""
    boot_id: str = ""
    release: str = ""
    epoch: int = 0  # of the metadata service: its term as primary
    disabled: bool = False
    unsettled: bool = False  # the process was replaced, and not all of its replicas have fallen yet
    labels: Labels = Labels()
    leaving: int = pb.STAYS  # whether its replicas are moved to other nodes
    successor: NodeId = NOWHERE  # of a drained node: where to, if they can

    def to_pb(self) -> pb.Node:
        """For the store: status DISABLED says `disabled`, FAILED `unsettled`. Publishing sets the real status."""
        status = pb.DISABLED if self.disabled else pb.FAILED if self.unsettled else pb.CONNECTING
        return pb.Node(
            id=self.id,
            kind=pb.NodeKind.Name(self.kind),
            status=status,
            host=self.host,
            pid=self.pid,
            incarnation=self.incarnation,
            grpc_address=self.grpc_address,
            lane_address=self.lane_address,
            data_address=self.data_address,
            data_socket=self.data_socket,
            boot_id=self.boot_id,
            release=self.release,
            epoch=self.epoch,
            labels=self.labels.to_pb() if self.labels != Labels() else None,
            leaving=pb.Leaving.Name(self.leaving),
            successor=self.successor,
        )

    @classmethod
    def from_pb(cls, node: pb.Node) -> "NodeRecord":
        return cls(
            id=NodeId(node.id),
            kind=node.kind,
            host=node.host,
            pid=node.pid,
            incarnation=node.incarnation,
            grpc_address=node.grpc_address,
            lane_address=node.lane_address,
            data_address=node.data_address,
            data_socket=node.data_socket,
            boot_id=node.boot_id,
            release=node.release,
            epoch=node.epoch,
            disabled=node.status == pb.DISABLED,
            unsettled=node.status == pb.FAILED,
            labels=Labels.from_pb(node.labels),
            leaving=node.leaving,
            successor=NodeId(node.successor),
        )


@dataclass(frozen=True, slots=True)
class ChainRecord:
    """A chain as it is stored and published."""

    id: ChainId
    version: ChainVersion
    members: tuple[Member, ...]
    preferred: tuple[TargetId, ...] = ()

    def changed(self, members: tuple[Member, ...]) -> "ChainRecord":
        """Return the next version, with these members."""
        return replace(self, members=members, version=ChainVersion(self.version + 1))

    def state_of(self, target: TargetId) -> Public | None:
        return next((member.state for member in self.members if member.target == target), None)

    @property
    def serving(self) -> tuple[Member, ...]:
        return tuple(member for member in self.members if member.state is Public.SERVING)

    def to_pb(self) -> pb.Chain:
        chain = pb.Chain(id=self.id, version=self.version, preferred_order=self.preferred)
        for member in self.members:
            chain.targets.add(id=member.target, node=member.node, state=pb.PublicState.Name(member.state))
        return chain

    @classmethod
    def from_pb(cls, chain: pb.Chain) -> "ChainRecord":
        return cls(
            id=ChainId(chain.id),
            version=ChainVersion(chain.version),
            members=tuple(
                Member(TargetId(target.id), target.node, Public(target.state)) for target in chain.targets
            ),
            preferred=tuple(TargetId(target) for target in chain.preferred_order),
        )


@dataclass(frozen=True, slots=True)
class TableRecord:
    """One version of a chain table; files pin (id, version), so a version never changes."""

    id: TableId
    version: int
    chains: tuple[ChainId, ...]
    replicas: int
    description: str = ""
    domain: int = pb.DOMAIN_NODE  # what two copies of a chunk do not share while another is free

    def to_pb(self) -> pb.ChainTable:
        return pb.ChainTable(
            id=self.id,
            version=self.version,
            chains=self.chains,
            replicas=self.replicas,
            description=self.description,
            domain=pb.DomainLevel.Name(self.domain),
        )

    @classmethod
    def from_pb(cls, table: pb.ChainTable) -> "TableRecord":
        return cls(
            TableId(table.id),
            table.version,
            tuple(ChainId(chain) for chain in table.chains),
            table.replicas,
            table.description,
            table.domain or pb.DOMAIN_NODE,
        )


@dataclass(frozen=True, slots=True)
class StoreMark:
    """How far the store of the metadata service has come, as far as it survives power loss."""

    store: int
    generation: int
    position: int

    def follows(self, known: "StoreMark | None") -> bool:
        """Return whether this store holds all that one with the mark `known` held, or an operator accepted its loss."""
        if known is None or self.generation > known.generation:
            return True
        same = (self.store, self.generation) == (known.store, known.generation)
        return same and self.position >= known.position

    def to_pb(self) -> pb.StoreMark:
        return pb.StoreMark(store=self.store, generation=self.generation, position=self.position)

    @classmethod
    def from_pb(cls, mark: pb.StoreMark) -> "StoreMark":
        return cls(mark.store, mark.generation, mark.position)


@dataclass(frozen=True, slots=True)
class EngineMark:
    """How far the chunk engine of a storage node has come, in rounds of sync, as far as it survives power loss."""

    identity: str
    round: int

    def to_pb(self) -> pb.EngineMark:
        return pb.EngineMark(identity=self.identity, round=self.round)

    @classmethod
    def from_pb(cls, mark: pb.EngineMark) -> "EngineMark":
        return cls(mark.identity, mark.round)


@dataclass(frozen=True, slots=True)
class Move:
    """A replica that goes to another node. `target` leaves, `node` gets a new one; either may be 0: none.

    `heals`: it was planned because the node of `target` is leaving (`healing`), not by an administrator.
    """

    chain: ChainId
    target: TargetId
    node: NodeId
    heals: bool = False

    def to_pb(self) -> pb.Move:
        return pb.Move(chain=self.chain, target=self.target, node=self.node, heals=self.heals)

    @classmethod
    def from_pb(cls, move: pb.Move) -> "Move":
        return cls(ChainId(move.chain), TargetId(move.target), NodeId(move.node), move.heals)


@dataclass(frozen=True, slots=True)
class Rebalance:
    """How moves are made, and how many of the last plan have been."""

    paused: bool = False  # moves that have begun are completed
    concurrent: int = 4  # that have begun and not ended
    total: int = 0
    done: int = 0

    def to_pb(self) -> pb.Rebalance:
        return pb.Rebalance(paused=self.paused, concurrent=self.concurrent, total=self.total, done=self.done)

    @classmethod
    def from_pb(cls, record: pb.Rebalance) -> "Rebalance":
        return cls(record.paused, record.concurrent, record.total, record.done)


@dataclass(frozen=True, slots=True)
class Change:
    """Records that are to be stored together, and then become true together."""

    nodes: tuple[NodeRecord, ...] = ()
    chains: tuple[ChainRecord, ...] = ()
    tables: tuple[TableRecord, ...] = ()
    removed_nodes: tuple[NodeId, ...] = ()
    meta_store: StoreMark | None = None  # None: as it was
    engines: tuple[tuple[NodeId, EngineMark], ...] = ()
    revoked: tuple[tuple[bytes, int], ...] = ()  # ids of tokens, and when they expire
    forgotten_tokens: tuple[bytes, ...] = ()  # that were revoked, and have expired
    moves: tuple[Move, ...] = ()
    ended_moves: tuple[ChainId, ...] = ()  # chains
    rebalance: Rebalance | None = None  # None: as it was
    minted_before: tuple[tuple[int, int], ...] = ()  # of a key: every token made earlier is void
    configs: tuple[pb.ConfigVersion, ...] = ()
    forgotten_configs: tuple[int, ...] = ()  # versions

    def __bool__(self) -> bool:
        records = (self.nodes, self.chains, self.tables, self.removed_nodes, self.meta_store, self.engines)
        moves = (self.moves, self.ended_moves, self.rebalance is not None)
        return any(records) or any(moves) or self.revokes or any((self.configs, self.forgotten_configs))

    @property
    def revokes(self) -> bool:
        return any((self.revoked, self.forgotten_tokens, self.minted_before))


@dataclass(slots=True)
class Records:
    """All that is stored."""

    nodes: dict[NodeId, NodeRecord] = field(default_factory=dict)
    chains: dict[ChainId, ChainRecord] = field(default_factory=dict)
    tables: dict[tuple[TableId, int], TableRecord] = field(default_factory=dict)
    meta_store: StoreMark | None = None  # the highest that was seen
    engines: dict[NodeId, EngineMark] = field(default_factory=dict)  # the highest of each storage node
    moves: dict[ChainId, Move] = field(default_factory=dict)  # in the order in which they begin
    rebalance: Rebalance = Rebalance()
    revoked: dict[bytes, int] = field(default_factory=dict)  # ids of tokens, and when they expire
    minted_before: dict[int, int] = field(default_factory=dict)  # by key: tokens made earlier are void
    configs: dict[int, pb.ConfigVersion] = field(default_factory=dict)  # by version
    _by_node: dict[int, set[ChainId]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for chain in self.chains.values():
            self._index(chain)

    def apply(self, change: Change) -> None:
        """Make a stored change true in memory."""
        self.nodes.update({node.id: node for node in change.nodes})
        for chain in change.chains:
            before = self.chains.get(chain.id)
            assert before is None or chain.version > before.version, "a changed chain has a newer version"
            for member in before.members if before is not None else ():
                self._by_node[member.node].discard(chain.id)
            self.add_chain(chain)
        self.tables.update({(table.id, table.version): table for table in change.tables})
        for node in change.removed_nodes:
            self.nodes.pop(node, None)
            self.engines.pop(node, None)
        self.meta_store = change.meta_store or self.meta_store
        self.engines.update(change.engines)
        self.revoked.update(change.revoked)
        for chain_id in change.ended_moves:
            self.moves.pop(chain_id, None)
        self.moves.update({move.chain: move for move in change.moves})
        self.rebalance = change.rebalance or self.rebalance
        for token in change.forgotten_tokens:
            self.revoked.pop(token, None)
        self.minted_before.update(change.minted_before)
        for forgotten in change.forgotten_configs:
            self.configs.pop(forgotten, None)
        self.configs.update({config.version: config for config in change.configs})

    def add_chain(self, chain: ChainRecord) -> None:
        """The chain as it is now."""
        self.chains[chain.id] = chain
        self._index(chain)

    def chains_of(self, node: int) -> list[ChainRecord]:
        """Chains with a member on `node`, by id."""
        return [self.chains[chain] for chain in sorted(self._by_node.get(node, ()))]

    def has_chains(self, node: int) -> bool:
        return bool(self._by_node.get(node))

    def _index(self, chain: ChainRecord) -> None:
        for member in chain.members:
            self._by_node.setdefault(member.node, set()).add(chain.id)


__all__ = [
    "ChainRecord",
    "Change",
    "EngineMark",
    "Labels",
    "Move",
    "NodeRecord",
    "Rebalance",
    "Records",
    "StoreMark",
    "TableRecord",
]
