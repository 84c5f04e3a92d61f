"""Power loss at every change that the cluster manager makes to its disk: terms, chains, nodes.

What was stored when a call returned is there, and the term and the versions of chains never go back behind it.
"""

import asyncio
from pathlib import Path

import pytest

from luciola.ids import ChainId, ChainVersion, NodeId, TableId, TargetId
from luciola.kv.rocksdb import RocksEngine
from luciola.mgmtd.records import ChainRecord, Change, EngineMark, NodeRecord, TableRecord
from luciola.mgmtd.store import Lease, Store
from luciola.mgmtd.transitions import Member
from luciola.states import Public
from luciola.wire.pb import mgmtd_pb2 as pb
from power_disk import PowerDisk, can_mount, every_state
from power_store import RecordedStore

pytestmark = [
    pytest.mark.mount,
    pytest.mark.crate("build", "--example", "power_disk"),
    pytest.mark.skipif(not can_mount(), reason="needs root and /dev/fuse"),
]
CUTS_MIN = 150  # of the recorded workload; fewer: a part of it is not tested any more
CHAINS = tuple(map(ChainId, range(1, 5)))


def change(version: int) -> Change:
    """Every chain takes a new version, in one transaction."""
    state = Public.SERVING if version % 2 else Public.LASTSRV
    members = (Member(TargetId(1), 1, Public.SERVING), Member(TargetId(2), 2, state))
    chains = tuple(ChainRecord(chain, ChainVersion(version), members, (TargetId(1),)) for chain in CHAINS)
    nodes = (NodeRecord(NodeId(1), pb.NODE_STORAGE, "h", version, 3, "a", "b", "c", "d", "e", "f"),)
    return Change(nodes=nodes, chains=chains, engines=((NodeId(1), EngineMark("e", version)),))


async def live(store: Store, recorded: RecordedStore, versions: range) -> None:
    """One term: take the lease, renew it, store changes."""
    lease = await store.take(await store.lease(), Lease(holder=5, term=0))
    assert lease is not None
    recorded.acknowledge()
    for version in versions:
        await store.save(change(version), lease)
        recorded.acknowledge()
        if version % 3 == 0:
            lease = await store.renew(lease)
            recorded.acknowledge()
    await store.save(Change(tables=(TableRecord(TableId(1), versions.stop, CHAINS, 2),)), lease)
    recorded.acknowledge()


async def versions(store: Store) -> set[int]:
    """Of all chains."""
    return {chain.version for chain in (await store.load()).chains.values()}


def test_stored_terms_and_versions_are_there_whenever_power_is_lost(tmp_path):
    with PowerDisk(tmp_path / "disk") as disk:
        directory = disk.record("mgmtd") / "store"
        recorded = RecordedStore(disk, "mgmtd", directory)
        asyncio.run(live(Store(recorded, cluster_id="c"), recorded, range(1, 8)))
        recorded.close()
        recorded = RecordedStore(disk, "mgmtd", directory, before=recorded)
        asyncio.run(live(Store(recorded, cluster_id="c"), recorded, range(8, 12)))
        recorded.close()

        def check(path: Path, cut: int) -> None:
            recorded.check(path / "store", cut)
            engine = RocksEngine(path / "store")
            found = asyncio.run(versions(Store(engine, cluster_id="c")))
            assert len(found) <= 1, "one change is whole or not there"
            engine.close()

        report = every_state(disk, "mgmtd", check, promises=recorded.promises)
        print(report)
        assert report.cuts >= CUTS_MIN, report
