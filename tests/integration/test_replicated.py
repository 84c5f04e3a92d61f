"""One process's replica over a real etcd: it is made, its directory is lost, and it is opened again."""

import asyncio
import shutil

import pytest

from luciola.config import MetadataConfig
from luciola.errors import InvalidArgument, NotFound
from luciola.kv import Durability, Transaction, run
from luciola.kv.checkpoint.catalog import Catalog
from luciola.kv.checkpoint.fetch import Source
from luciola.kv.checkpoint.keeper import Member, Policy
from luciola.kv.replica import PrimaryEngine
from luciola.kv.replica_service import ReplicaService
from luciola.kv.replicated import ReplicaSettings, checkpoints_of, open_replica
from luciola.wire.etcd import EtcdOptions

LEASE_S = 100.0  # longer than etcd needs for an election of its own, on the busiest machine
PREFIX = "luciola/test_replicated/mgmtd/"


def no_source(address: str) -> Source:
    raise AssertionError(f"{address} need not be asked")


class Found(Exception):
    """What the store had under the key."""


async def swap(
    endpoints, data, value: bytes, *, cluster_id="test", prefix=PREFIX, create=False
) -> bytes | None:
    """Lead the log for one transaction: put `value`, and return what was there before."""

    def operation(transaction: Transaction) -> bytes | None:
        found = transaction.get(b"key")
        transaction.put(b"key", value)
        return found

    async def serve(engine: PrimaryEngine) -> None:
        raise Found(await run(engine, operation, durability=Durability.SYNC))

    settings = ReplicaSettings(
        EtcdOptions(endpoints),
        prefix=prefix,
        cluster_id=cluster_id,
        data=data,
        service=ReplicaService(Catalog(checkpoints_of(data))),
        owner="test",
        member=Member("test", "127.0.0.1:1"),
        policy=Policy.of(MetadataConfig()),
        source=no_source,
        create=create,
        lease_s=LEASE_S,
    )
    async with open_replica(settings) as replica:
        try:
            await replica.run(serve)
        except Found as found:
            return found.args[0]


@pytest.mark.timeout(900)
def test_replica_whose_directory_was_lost_takes_everything_from_the_log(etcd_members, tmp_path):
    data = tmp_path / "store"
    endpoints = etcd_members.endpoints
    with pytest.raises(NotFound, match="no log"):
        asyncio.run(swap(endpoints, data, b"0"))
    assert asyncio.run(swap(endpoints, data, b"1", create=True)) is None
    assert asyncio.run(swap(endpoints, data, b"2")) == b"1"
    shutil.rmtree(data)
    assert asyncio.run(swap(endpoints, data, b"3")) == b"2"
    with pytest.raises(InvalidArgument, match="of cluster test"):
        asyncio.run(swap(endpoints, tmp_path / "other", b"4", cluster_id="other"))
