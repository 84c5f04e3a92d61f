"""Plans from what mgmtd publishes."""

import pytest

from luciola.cli.rebalance import plan_moves
from luciola.errors import NotFound
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.storage_pb2 import SpaceReply


def routing(*chains: tuple[int, ...], nodes: int, failed: tuple[int, ...] = ()) -> pb.Routing:
    """Chains as their nodes."""
    found = pb.Routing()
    for node in range(201, 201 + nodes):
        status = pb.FAILED if node in failed else pb.CONNECTED
        found.nodes.add(id=node, kind=pb.NODE_STORAGE, status=status)
    for number, members in enumerate(chains, 1):
        chain = found.chains.add(id=number)
        for node in members:
            chain.targets.add(id=number * 1000 + node, node=node, state=pb.SERVING)
    found.tables.add(id=1, version=1, chains=range(1, len(chains) + 1), replicas=2, domain=pb.DOMAIN_NODE)
    return found


def test_new_node_gets_its_part_and_targets_are_named() -> None:
    whole = routing((201, 202), (202, 201), (201, 202), nodes=3)
    moves, loads = plan_moves(whole, {}, without=(), level=None)
    assert [each["planned"] for each in loads] == [2, 2, 2]
    assert {move.node for move in moves} == {203}
    assert {move.target for move in moves} <= {
        target.id for chain in whole.chains for target in chain.targets
    }


def test_dead_node_is_replaced_when_it_is_named_and_waited_for_when_not() -> None:
    whole = routing((201, 202), (202, 203), nodes=4, failed=(202,))
    moves, _ = plan_moves(whole, {}, without=(202,), level=None)
    assert {(move.chain, move.target) for move in moves} == {(1, 1202), (2, 2202)}
    moves, _ = plan_moves(whole, {}, without=(), level=None)
    assert all(move.target not in (1202, 2202) for move in moves)


def test_full_node_gets_nothing() -> None:
    whole = routing((201, 202), (202, 201), (201, 202), nodes=3)
    full = SpaceReply(capacity_bytes=100, free_bytes=5, used_bytes=1)
    assert plan_moves(whole, {203: full}, without=(), level=None)[0] == []


def test_racks_are_kept_apart_when_asked_for() -> None:
    whole = routing((201, 202), (203, 204), nodes=4)
    for node, rack in zip(whole.nodes, "aabb", strict=True):
        node.labels.rack = rack
    assert plan_moves(whole, {}, without=(), level=None)[0] == []
    moves, _ = plan_moves(whole, {}, without=(), level=pb.DOMAIN_RACK)
    assert {move.chain for move in moves} == {1, 2}


def test_unknown_node_is_named() -> None:
    with pytest.raises(NotFound, match="no storage node 299"):
        plan_moves(routing((201, 202), nodes=2), {}, without=(299,), level=None)
