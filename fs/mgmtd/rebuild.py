"""A new store for mgmtd, in the place of a lost one, of what the storage nodes remember of it (`Marks`).

Each node has, in the highest version that it adopted, every chain that it holds a replica of. A version that no member
adopted was never used to acknowledge anything, so it is safe to continue from the highest version that any member
remembers, as long as every member is asked: a missing node may be the only one that knows which replicas have fallen.

What is revoked is all that any node remembers: revocations are only added to, until tokens have expired.

A node that is missing may have adopted higher versions, of chains and of mgmtd's term. The new ones begin beyond any
that it can have (`VERSION_GAP`, `TERM_GAP`): it returns as a replica that was absent.

Not rebuilt: that nodes were disabled, and addresses, which nodes report when they start.
"""

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Final

from ..errors import NotFound
from ..ids import ChainId, ChainVersion, NodeId
from ..states import Public
from ..wire.pb import mgmtd_pb2 as pb
from .records import ChainRecord, Change, NodeRecord, StoreMark, TableRecord
from .revocations import united
from .transitions import Member, ordered

# Each failure and return of a member costs a few versions. Of 64 bits: 2^44 rebuilds.
VERSION_GAP: Final = 1 << 20
CONFIG_GAP: Final = 1 << 10  # versions that other machines can have adopted since: each is set by hand
TERM_GAP: Final = (
    1 << 10
)  # starts of mgmtd that a missing node can have seen and the others not. Of 32 bits: 2^22


def rebuild(marks: Mapping[int, pb.Marks]) -> tuple[Change, int]:
    """The records that the marks of the nodes add up to, and a term that none saw. Raises: NotFound without any."""
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
    change = replace(
        united(seen.revocations for seen in marks.values()),
        nodes=tuple(NodeRecord(NodeId(node), pb.NODE_STORAGE) for node in sorted(nodes)),
        chains=tuple(
            replace(chain, version=ChainVersion(chain.version + VERSION_GAP), members=_members(chain, marks))
            for _, chain in sorted(chains.items())
        ),
        tables=tuple(tables[key] for key in sorted(tables)),
        meta_store=max(meta_stores, key=lambda mark: (mark.generation, mark.position), default=None),
    )
    term = max(seen.term for seen in marks.values()) + TERM_GAP
    assert all(chain.version > chains[chain.id].version for chain in change.chains), (
        "above every version seen"
    )
    assert all(term > seen.term for seen in marks.values()), "above every term seen"
    return change, term


def _members(chain: ChainRecord, asked: Collection[int]) -> tuple[Member, ...]:
    """The members of a chain; one that was not asked does not serve beside one that was: they may have diverged."""
    serves = {member.node for member in chain.members if member.state is Public.SERVING}
    absent = serves.difference(asked) if serves.intersection(asked) else ()
    return ordered(
        [replace(each, state=Public.OFFLINE) if each.node in absent else each for each in chain.members]
    )


def missing(change: Change, marks: Mapping[int, pb.Marks]) -> list[int]:
    """Nodes that hold replicas and were not asked."""
    return [node.id for node in change.nodes if node.id not in marks]


__all__ = ["TERM_GAP", "VERSION_GAP", "missing", "rebuild"]
