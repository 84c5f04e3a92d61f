"""Records that come back, and leases that keep strangers out."""

import asyncio
from itertools import pairwise

import pytest

from luciola.errors import ConfigError, CorruptData, Unavailable
from luciola.ids import ChainId, ChainVersion, NodeId, TableId, TargetId
from luciola.kv import MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine, every
from luciola.mgmtd.records import ChainRecord, Change, EngineMark, Move, NodeRecord, Rebalance, TableRecord
from luciola.mgmtd.store import FORMAT, LEASE, Lease, Store
from luciola.mgmtd.transitions import Member
from luciola.states import Public
from luciola.wire.pb import mgmtd_pb2 as pb

MINE = Lease(holder=5, term=0, grpc_address="here:1")


def change() -> Change:
    members = (Member(TargetId(1), 1, Public.SERVING), Member(TargetId(2), 2, Public.LASTSRV))
    return Change(
        nodes=(
            NodeRecord(NodeId(1), pb.NODE_STORAGE, "h", 2, 3, "a", "b", "c", "d", "e", "f", unsettled=True),
            NodeRecord(NodeId(2), pb.NODE_META, disabled=True),
        ),
        chains=(ChainRecord(ChainId(1), ChainVersion(9), members, (TargetId(2), TargetId(1))),),
        tables=(
            TableRecord(TableId(1), 1, (ChainId(1),), 2, "x"),
            TableRecord(TableId(1), 2, (ChainId(1),), 2),
        ),
        engines=((NodeId(1), EngineMark("e", 7)),),
    )


@pytest.mark.parametrize("fault", [Fault.NONE, Fault.CONFLICT, Fault.MAYBE_DONE, Fault.MAYBE_LOST])
def test_everything_comes_back_as_it_was_saved(fault):
    async def scenario() -> None:
        store = Store(FaultyEngine(MemoryEngine(), every(fault)), cluster_id="c")
        lease = await store.take(None, MINE)
        await store.save(change(), lease)
        records = await store.load()
        expected = change()
        assert tuple(records.nodes.values()) == expected.nodes
        assert tuple(records.chains.values()) == expected.chains
        assert tuple(records.tables.values()) == expected.tables
        assert tuple(records.engines.items()) == expected.engines
        await store.save(Change(removed_nodes=(NodeId(1),)), lease)
        left = await store.load()
        assert (list(left.nodes), left.engines) == ([2], {})

    asyncio.run(scenario())


def test_lease_is_taken_only_from_the_state_that_was_seen():
    async def scenario() -> None:
        store = Store(MemoryEngine(), cluster_id="c")
        first = await store.take(None, MINE)
        assert first.term == 1
        other = Lease(holder=6, term=0)
        assert await store.take(None, other) is None
        renewed = await store.renew(first)
        assert await store.take(first, other) is None, "it was renewed since"
        second = await store.take(renewed, other)
        assert (second.holder, second.term) == (6, 2)

    asyncio.run(scenario())


def test_who_lost_the_lease_can_neither_write_nor_renew():
    async def scenario() -> None:
        store = Store(MemoryEngine(), cluster_id="c")
        first = await store.take(None, MINE)
        await store.take(first, Lease(holder=6, term=0, grpc_address="there:1"))
        for attempt in (store.save(change(), first), store.renew(first)):
            with pytest.raises(Unavailable) as caught:
                await attempt
            assert caught.value.fields["primary"] == "there:1"
        assert not (await store.load()).nodes

    asyncio.run(scenario())


def test_write_that_races_with_an_election_is_fenced():
    """The lease is read in the transaction of the write, so one of the two conflicts."""

    async def scenario() -> None:
        engine = MemoryEngine()
        store = Store(engine, cluster_id="c")
        first = await store.take(None, MINE)
        transaction = engine.begin()
        transaction.get(LEASE)  # as `save` does
        transaction.put(b"mgmtd/node/x", b"")
        await store.take(first, Lease(holder=6, term=0))
        with pytest.raises(OSError, match="changed what this one read"):
            transaction.commit()

    asyncio.run(scenario())


def test_records_of_another_cluster_are_refused():
    async def scenario() -> None:
        engine = MemoryEngine()
        lease = await Store(engine, cluster_id="one").take(None, MINE)
        with pytest.raises(ConfigError, match="belong to cluster 'one'"):
            await Store(engine, cluster_id="two").take(lease, MINE)

    asyncio.run(scenario())


def test_records_of_another_format_are_named_and_refused():
    async def scenario() -> None:
        engine = MemoryEngine()
        lease = await Store(engine, cluster_id="one").take(None, MINE)
        transaction = engine.begin()
        assert transaction.get(FORMAT) == b"2"
        transaction.put(FORMAT, b"7")
        transaction.commit()
        with pytest.raises(
            ConfigError, match="have format 7, and this release reads format 2: run the release"
        ):
            await Store(engine, cluster_id="one").take(lease, MINE)

    asyncio.run(scenario())


def test_unreadable_lease_is_reported():
    engine = MemoryEngine()
    transaction = engine.begin()
    transaction.put(LEASE, b"{]")
    transaction.commit()
    with pytest.raises(CorruptData):
        asyncio.run(Store(engine, cluster_id="c").lease())


def test_terms_only_grow():
    async def scenario() -> None:
        store = Store(MemoryEngine(), cluster_id="c")
        seen, terms = None, []
        for holder in (1, 2, 1, 3):
            seen = await store.take(seen, Lease(holder=holder, term=0))
            terms.append(seen.term)
        assert all(one < other for one, other in pairwise(terms))

    asyncio.run(scenario())


def test_moves_come_back_until_they_have_ended():
    async def scenario() -> None:
        store = Store(MemoryEngine(), cluster_id="c")
        lease = await store.take(None, MINE)
        moves = tuple(Move(ChainId(chain), TargetId(chain * 10), NodeId(3)) for chain in (1, 2))
        await store.save(Change(moves=moves, rebalance=Rebalance(concurrent=2, total=2)), lease)
        await store.save(Change(ended_moves=(ChainId(1),), rebalance=Rebalance(True, 2, 2, 1)), lease)
        records = await store.load()
        assert records.moves == {2: moves[1]}
        assert records.rebalance == Rebalance(paused=True, concurrent=2, total=2, done=1)

    asyncio.run(scenario())
