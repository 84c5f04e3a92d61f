"""A new store for mgmtd, in the place of a lost one, of what the storage nodes remember of it (`Marks`).

Each node has, in the highest version that it adopted, every chain that it holds a replica of. A version that no member
adopted was never used to acknowledge anything, so the highest version that any member remembers is safe to go on from,
as long as every member is asked: a node that is missing may be the only one that knows which replicas have fallen.

Not rebuilt: that nodes were disabled, and addresses, which nodes report when they start.
"""

from collections.abc import Mapping

from ..errors import NotFound
from ..ids import ChainId, NodeId
from ..wire.pb import mgmtd_pb2 as pb
from .records import ChainRecord, Change, NodeRecord, StoreMark, TableRecord


def rebuild(marks: Mapping[int, pb.Marks]) -> tuple[Change, int]:
    """The records that the marks of the nodes add up to, and the last term they saw. Raises: NotFound without any."""
    chains: dict[ChainId, ChainRecord] = {}
    for seen in marks.values():
        for chain in map(ChainRecord.from_pb, seen.chains):
            if chain.id not in chains or chain.version > chains[chain.id].version:
                chains[chain.id] = chain
    if not chains:
        raise NotFound("no storage node remembers a chain: there is nothing to rebuild mgmtd's store of")
    tables = {
        (table.id, table.version): table
        for seen in marks.values()
        for table in map(TableRecord.from_pb, seen.tables)
    }
    meta_stores = [
        StoreMark.from_pb(seen.meta_store) for seen in marks.values() if seen.HasField("meta_store")
    ]
    nodes = {member.node for chain in chains.values() for member in chain.members}
    change = Change(
        nodes=tuple(NodeRecord(NodeId(node), pb.NODE_STORAGE) for node in sorted(nodes)),
        chains=tuple(chain.changed(chain.members) for _, chain in sorted(chains.items())),
        tables=tuple(tables[key] for key in sorted(tables)),
        meta_store=max(meta_stores, key=lambda mark: (mark.generation, mark.position), default=None),
    )
    return change, max(seen.term for seen in marks.values())


def missing(change: Change, marks: Mapping[int, pb.Marks]) -> list[int]:
    """Nodes that hold replicas and were not asked."""
    return [node.id for node in change.nodes if node.id not in marks]


__all__ = ["missing", "rebuild"]
