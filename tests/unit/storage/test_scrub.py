import asyncio

import pytest

from luciola.config import StorageConfig
from luciola.errors import NotFound
from luciola.storage.directory import Directory
from luciola.storage.engine import Engine
from luciola.storage.scrub import BATCH, TOMBSTONE_AGE_S, Scrub
from luciola.wire import RoutingTable
from luciola.wire.pb.mgmtd_pb2 import OFFLINE, SERVING, Chain, Routing, Target

from .fake_node import FakeNode, record


def scrub_of(tmp_path, *states):
    """A node that holds chain 7, whose replicas are in these states."""
    table = RoutingTable()
    targets = [Target(id=100 + n, node=n, state=state) for n, state in enumerate(states, 1)]
    table.apply(Routing(version=1, chains=[Chain(id=7, version=1, targets=targets), Chain(id=8, version=1)]))
    fake = FakeNode(1, {})
    directory = Directory(tmp_path, node=1, cluster_id="test")
    return fake, Scrub(Engine(fake), directory, table, node=1, config=StorageConfig()), directory


def test_every_chunk_is_verified_and_damage_named_and_repaired(tmp_path):
    fake, scrub, directory = scrub_of(tmp_path, SERVING, SERVING)
    fake.put(7, *(record(1, n) for n in range(3 * BATCH + 1)))
    fake.damaged = {(1, 0), (1, 20), (1, 3 * BATCH)}
    reply = asyncio.run(scrub.chain(7, repair=False))
    assert (reply.chunks, reply.bytes, reply.repaired) == (3 * BATCH + 1, 10 * (3 * BATCH + 1), 0)
    assert [(item.chunk.content, item.chunk.index) for item in reply.damaged] == sorted(fake.damaged)
    assert asyncio.run(scrub.chain(7, repair=True)).repaired == 3
    assert not asyncio.run(scrub.chain(7, repair=True)).damaged
    assert scrub.counters.damaged == 6
    directory.close()


def test_chain_that_is_not_here_is_not_found(tmp_path):
    _, scrub, directory = scrub_of(tmp_path, SERVING)
    for chain in (8, 99):
        with pytest.raises(NotFound):
            asyncio.run(scrub.chain(chain, repair=True))
    directory.close()


@pytest.mark.parametrize(("second", "forgotten"), [(SERVING, 1), (OFFLINE, 0)])
def test_tombstones_are_forgotten_only_when_all_replicas_serve(tmp_path, second, forgotten):
    fake, scrub, directory = scrub_of(tmp_path, SERVING, second)
    fake.put(7, record(1, 1, removed=True), record(1, 2))

    async def scenario() -> None:
        await scrub.forget_tombstones(0.0)
        fake.now_round = 6
        await scrub.forget_tombstones(TOMBSTONE_AGE_S - 1)
        assert scrub.counters.tombstones == 0
        await scrub.forget_tombstones(TOMBSTONE_AGE_S)

    fake.staged = {(1, 1): 4, (1, 3): 5}  # the second only after the node had begun
    fake.put(7, record(1, 3, removed=True))
    asyncio.run(scenario())
    assert scrub.counters.tombstones == forgotten
    assert len(fake.chain(7)) == 3 - forgotten
    directory.close()
