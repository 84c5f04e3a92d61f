"""mgmtd's store made again of what the storage nodes remember."""

import asyncio

import pytest

from luciola.errors import NotFound
from luciola.kv import MemoryEngine
from luciola.mgmtd.rebuild import TERM_GAP, VERSION_GAP, missing, rebuild
from luciola.mgmtd.records import StoreMark
from luciola.mgmtd.store import Lease, Store
from luciola.states import Public
from luciola.wire.pb.mgmtd_pb2 import (
    OFFLINE,
    SERVING,
    Chain,
    ChainTable,
    Marks,
    MintedBefore,
    Revocations,
    RevokedToken,
    Target,
)
from luciola.wire.pb.mgmtd_pb2 import StoreMark as Mark

TABLE = ChainTable(id=1, version=1, chains=[1, 2], replicas=2)


def chain(number: int, version: int, **states: int) -> Chain:
    targets = [
        Target(id=int(node[1:]) * 10, node=int(node[1:]), state=state) for node, state in states.items()
    ]
    return Chain(id=number, version=version, targets=targets)


def marks(term: int, *chains: Chain, position: int = 0) -> Marks:
    seen = Marks(format=1, term=term, manager=9, chains=chains, tables=[TABLE])
    if position:
        seen.meta_store.CopyFrom(Mark(store=3, generation=1, position=position))
    return seen


def test_highest_version_of_each_chain_counts_and_is_raised():
    stale = chain(1, 5, n1=SERVING, n2=SERVING)
    fresh = chain(1, 6, n1=SERVING, n2=OFFLINE)
    other = chain(2, 1, n2=SERVING, n3=SERVING)
    seen = {1: marks(7, fresh, position=20), 2: marks(6, stale, other, position=30), 3: marks(7, other)}
    change, term = rebuild(seen)
    assert term == 7 + TERM_GAP
    versions = [(each.id, each.version) for each in change.chains]
    assert versions == [(1, 6 + VERSION_GAP), (2, 1 + VERSION_GAP)]
    assert [member.state for member in change.chains[0].members] == [Public.SERVING, Public.OFFLINE]
    assert [node.id for node in change.nodes] == [1, 2, 3]
    assert change.tables[0].chains == (1, 2)
    assert change.meta_store == StoreMark(3, 1, 30)
    assert not missing(change, seen)
    del seen[1]
    assert missing(change, seen) == [1]


def test_all_that_any_node_knows_to_be_revoked_is_revoked():
    first, second = marks(7, chain(1, 5, n1=SERVING)), marks(7, chain(1, 5, n1=SERVING))
    first.revocations.CopyFrom(revocations({b"a": 0, b"b": 50}, {0: 20, 1: 10}))
    second.revocations.CopyFrom(revocations({b"a": 90, b"b": 60, b"c": 70}, {0: 30}))
    for seen in ({1: first, 2: second, 3: marks(7)}, {1: second, 2: first}):
        change, _ = rebuild(seen)
        assert dict(change.revoked) == {b"a": 0, b"b": 60, b"c": 70}
        assert dict(change.minted_before) == {0: 30, 1: 10}


def revocations(tokens: dict[bytes, int], minted_before: dict[int, int]) -> Revocations:
    return Revocations(
        tokens=(RevokedToken(id=token, expires_unix_s=end) for token, end in tokens.items()),
        minted_before=(MintedBefore(key_id=key, minted_unix_s=time) for key, time in minted_before.items()),
    )


def test_missing_node_cannot_have_seen_what_follows_a_rebuild():
    missed = marks(7 + 5, chain(1, 60, n1=OFFLINE, n2=SERVING))  # node 2 served alone, through some restarts
    change, term = rebuild({1: marks(7, chain(1, 50, n1=SERVING, n2=SERVING))})
    assert term + 1 > missed.term
    assert change.chains[0].version > missed.chains[0].version
    assert term + 1 < 1 << 32, "the upper half of a routing version"
    states = [(member.node, member.state) for member in change.chains[0].members]
    assert states == [(1, Public.SERVING), (2, Public.OFFLINE)], "it is brought up to date when it returns"


def test_missing_node_that_alone_served_is_waited_for():
    change, _ = rebuild({1: marks(7, chain(1, 50, n1=OFFLINE, n2=SERVING))})
    assert {m.node: m.state for m in change.chains[0].members} == {1: Public.OFFLINE, 2: Public.SERVING}


def test_nothing_to_rebuild_of_is_refused():
    with pytest.raises(NotFound, match="no storage node remembers a chain"):
        rebuild({1: marks(3)})


def test_rebuilt_store_continues_above_every_term_that_was_seen():
    seen = marks(7, chain(1, 5, n1=SERVING), position=20)
    seen.revocations.CopyFrom(revocations({b"a": 0}, {0: 30}))
    change, term = rebuild({1: seen})

    async def story() -> None:
        engine = MemoryEngine()
        await Store(engine, cluster_id="c").rebuild(change, term)
        store = Store(engine, cluster_id="c", create=False)
        found = await store.lease()
        assert (await store.take(found, Lease(holder=5, term=0))).term == 8 + TERM_GAP
        records = await store.load()
        assert records.chains[1].version == 5 + VERSION_GAP
        assert records.meta_store == StoreMark(3, 1, 20)
        assert (records.revoked, records.minted_before) == ({b"a": 0}, {0: 30})

    asyncio.run(story())
