import asyncio

import pytest

from luciola.storage.engine import Engine
from luciola.storage.leftovers import Leftovers
from luciola.wire import RoutingTable
from luciola.wire.pb.mgmtd_pb2 import OFFLINE, SERVING, SYNCING, Chain, Routing, Target

from .fake_node import FakeNode, record


def node_with_chunks(*chains):
    """A node 1 that has chunks of chain 7, and what it knows of chains: of each, the states by node."""
    table = RoutingTable()
    fake = FakeNode(1, {})
    fake.put(7, record(1, 1), record(1, 2))
    leftovers = Leftovers(Engine(fake), table, node=1)
    publish(fake, table, 1, *chains)
    return fake, table, leftovers


def publish(fake, table, version, *chains):
    routing = Routing(version=version)
    for id_, states in chains:
        targets = [Target(id=100 * id_ + node, node=node, state=state) for node, state in states.items()]
        routing.chains.append(Chain(id=id_, version=version, targets=targets))
    table.apply(routing)
    fake.set_routing(routing.SerializeToString())


async def until_stored(fake, chains):
    async with asyncio.timeout(60):
        while fake.stored_chains() != chains:  # noqa: ASYNC110 (a thread of the engine changes it)
            await asyncio.sleep(0.01)


def test_chunks_of_a_replica_that_was_removed_are_removed():
    fake, _, leftovers = node_with_chunks((7, {2: SERVING, 3: SERVING}), (8, {1: SERVING}))
    fake.put(8, record(2, 1))
    assert asyncio.run(leftovers.remove())
    assert fake.stored_chains() == [8]


@pytest.mark.parametrize(
    "chains",
    [
        [],
        [(7, {})],
        [(7, {1: SERVING, 2: SERVING})],
        [(7, {1: OFFLINE, 2: SERVING})],
        [(7, {2: SERVING, 3: OFFLINE})],
        [(7, {2: SERVING, 3: SYNCING})],
    ],
)
def test_what_the_cluster_may_still_need_stays(chains):
    fake, _, leftovers = node_with_chunks(*chains)
    assert asyncio.run(leftovers.remove())
    assert len(fake.chain(7)) == 2


def test_each_change_of_routing_is_looked_at(monkeypatch):
    monkeypatch.setattr("luciola.storage.leftovers.SPACING_S", 0.0)
    fake, table, leftovers = node_with_chunks((7, {2: SERVING, 3: OFFLINE}))

    async def scenario():
        task = asyncio.create_task(leftovers.run())
        leftovers.routing_changed()
        await asyncio.sleep(0.05)
        assert fake.stored_chains() == [7]
        publish(fake, table, 2, (7, {2: SERVING, 3: SERVING}))
        leftovers.routing_changed()
        await until_stored(fake, [])
        task.cancel()

    asyncio.run(scenario())


def test_a_chain_that_is_busy_keeps_no_other_and_is_tried_again(monkeypatch, caplog):
    monkeypatch.setattr("luciola.storage.leftovers.SPACING_S", 0.0)
    monkeypatch.setattr("luciola.storage.leftovers.RETRY_S", 0.01)
    fake, table, leftovers = node_with_chunks((7, {2: SERVING}), (8, {2: SERVING}))
    fake.put(8, record(2, 1))
    # The data server knows more than the control plane does: this node serves chain 7 again.
    again = Chain(id=7, version=2, targets=[Target(id=701, node=1, state=SERVING)])
    fake.set_routing(Routing(version=2, delta=True, chains=[again]).SerializeToString())

    async def scenario():
        task = asyncio.create_task(leftovers.run())
        leftovers.routing_changed()
        await until_stored(fake, [7])
        assert "chain 7: removing what is left of a former replica failed" in caplog.text
        publish(fake, table, 3, (7, {2: SERVING}))
        await until_stored(fake, [])
        task.cancel()

    asyncio.run(scenario())
