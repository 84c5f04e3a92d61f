"""Nodes that are drained or stay away lose their replicas to others, and only then (H1 to H4, V5)."""

from collections.abc import Iterable
from dataclasses import replace

import pytest

from luciola.config import MgmtdConfig
from luciola.errors import InvalidArgument, NotFound
from luciola.ids import NodeId
from luciola.mgmtd.model import Model
from luciola.mgmtd.moves import CONCURRENT_DEFAULT
from luciola.mgmtd.records import Change, Records
from luciola.states import Public
from luciola.wire.pb import mgmtd_pb2 as pb

OUT_S = 60
CONFIG = MgmtdConfig(down_out_s=OUT_S)
NODES = (201, 202, 203, 204)


class Cluster:
    """A manager, and nodes that do at once what they are asked. `silent`: those that do not report."""

    def __init__(
        self,
        chains: Iterable[tuple[int, ...]],
        *,
        nodes: Iterable[int] = NODES,
        racks: dict[int, str] | None = None,
    ) -> None:
        self.now_s = 100.0
        self.model = Model(CONFIG, Records(), now_s=self.now_s)
        self.silent: set[int] = set()
        self.full: set[int] = set()
        self.sequence = 0
        self.nodes = list(nodes)
        self.racks = racks or {}
        self.beat()
        level = pb.DOMAIN_RACK if racks else pb.DOMAIN_NODE
        placed = list(chains)
        request = pb.CreateChainTableRequest(table=1, replicas=len(placed[0]))
        self.keep(self.model.new_table(request, placed, level=level, now_s=self.now_s))
        self.run(1)
        assert all(len(each) == len(placed[0]) for each in self.serving.values())

    def keep(self, change: Change) -> None:
        self.model.apply(change)

    def beat(self) -> None:
        for node in self.nodes:
            if node in self.silent:
                continue
            self.sequence += 1
            free_bytes = 0 if node in self.full else 500
            request = pb.HeartbeatRequest(
                node=pb.Node(
                    id=node,
                    kind=pb.NODE_STORAGE,
                    incarnation=1,
                    labels=pb.Labels(rack=self.racks.get(node, "")),
                ),
                sequence=self.sequence,
                disk=pb.DiskSpace(capacity_bytes=1000, free_bytes=free_bytes),
            )
            for chain in self.model.records.chains_of(node):
                member = next(each for each in chain.members if each.node == node)
                may = member.state in (Public.SERVING, Public.SYNCING) and len(chain.serving) > 0
                request.targets.add(
                    id=member.target,
                    chain=chain.id,
                    chain_version=chain.version,
                    state=pb.LOCAL_UPTODATE if may else pb.LOCAL_ONLINE,
                )
            self.keep(self.model.registration(request.node))
            self.model.receive(request, now_s=self.now_s)

    def run(self, duration_s: float) -> None:
        end = self.now_s + duration_s
        while self.now_s < end:
            self.now_s += 0.5
            self.beat()
            self.keep(self.model.look(now_s=self.now_s))

    def drain(self, node: int, *, drained: bool = True, successor: int = 0) -> None:
        request = pb.DrainNodeRequest(node=node, drained=drained, successor=successor)
        self.keep(self.model.healing.drained(request))

    @property
    def members(self) -> list[set[int]]:
        return [{each.node for each in chain.members} for chain in self.model.records.chains.values()]

    @property
    def serving(self) -> dict[int, set[int]]:
        return {
            chain.id: {each.node for each in chain.serving} for chain in self.model.records.chains.values()
        }

    def leaving(self, node: int) -> int:
        return self.model.records.nodes[NodeId(node)].leaving

    def obstacle(self, node: int) -> str:
        (found,) = [each for each in self.model.moves.status().leaving if each.node == node]
        return found.obstacle


def test_drained_node_serves_until_it_is_empty_and_gets_nothing_any_more() -> None:
    cluster = Cluster([(201, 202)] * 6)
    cluster.drain(201)
    for _ in range(200):
        cluster.run(0.5)
        assert all(len(nodes) >= 2 for nodes in cluster.members)
        assert all(nodes for nodes in cluster.serving.values())
    assert not any(201 in nodes for nodes in cluster.members)
    assert [len(nodes) for nodes in cluster.serving.values()] == [2] * 6
    assert sorted(sum(node in nodes for nodes in cluster.members) for node in (203, 204)) == [3, 3]
    assert cluster.model.records.moves == {}
    assert cluster.model.records.rebalance.done == 0, "it was no plan of an administrator"
    plan = pb.StartMovesRequest(
        moves=[pb.Move(chain=100_001, target=next(iter(cluster.model.targets)), node=201)]
    )
    with pytest.raises(InvalidArgument, match="node 201 is leaving"):
        cluster.model.moves.started(plan)


def test_successor_gets_what_it_can() -> None:
    cluster = Cluster([(201, 202), (201, 204)])
    cluster.drain(201, successor=204)
    cluster.run(60)
    assert cluster.members in ([{202, 204}, {204, 203}], [{202, 204}, {204, 202}])


def test_undrained_node_keeps_what_it_has() -> None:
    cluster = Cluster([(201, 202)] * 8)
    cluster.drain(201)
    cluster.run(3)
    left = sum(201 in nodes for nodes in cluster.members)
    assert left > 0
    cluster.drain(201, drained=False)
    cluster.run(60)
    assert sum(201 in nodes for nodes in cluster.members) >= left - CONCURRENT_DEFAULT
    assert cluster.model.records.moves == {}
    assert [len(nodes) for nodes in cluster.serving.values()] == [2] * 8


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"node": 9}, NotFound, "no storage node 9"),
        ({"node": 201, "successor": 9}, NotFound, "no storage node 9"),
        ({"node": 201, "successor": 201}, InvalidArgument, "cannot take replicas"),
    ],
)
def test_impossible_drains_are_refused(
    request_: dict[str, int], error: type[Exception], message: str
) -> None:
    cluster = Cluster([(201, 202)])
    with pytest.raises(error, match=message):
        cluster.model.healing.drained(pb.DrainNodeRequest(**request_, drained=True))


def test_no_node_is_drained_that_the_others_cannot_replace() -> None:
    cluster = Cluster([(201, 202)], nodes=(201, 202, 203))
    cluster.drain(203)
    with pytest.raises(InvalidArgument, match="as many other nodes, and there are 1; add one first"):
        cluster.drain(201)
    cluster.drain(203, drained=False)
    cluster.drain(201)


def test_node_that_stays_away_is_replaced_after_the_time_and_not_before() -> None:
    cluster = Cluster([(201, 202), (202, 203), (203, 201)])
    cluster.silent = {201}
    cluster.run(OUT_S - 2)
    assert cluster.leaving(201) == pb.STAYS
    assert sum(201 in nodes for nodes in cluster.members) == 2
    cluster.run(60)
    assert cluster.leaving(201) == pb.OUT
    assert not any(201 in nodes for nodes in cluster.members)
    assert [len(nodes) for nodes in cluster.serving.values()] == [2, 2, 2]
    cluster.silent = set()
    cluster.run(1)
    assert cluster.leaving(201) == pb.STAYS


def test_two_lost_nodes_of_one_chain_do_not_wait_for_each_other() -> None:
    cluster = Cluster([(201, 202, 203)], nodes=(201, 202, 203, 204, 205, 206))
    cluster.silent = {201, 202}
    cluster.run(OUT_S + 60)
    assert cluster.members[0] > {203}
    assert len(cluster.members[0]) == 3
    assert cluster.members[0].isdisjoint({201, 202})
    assert cluster.serving[100_001] == cluster.members[0]


def test_nothing_is_out_while_half_of_the_nodes_are_away() -> None:
    cluster = Cluster([(201, 202), (203, 204)])
    cluster.silent = {201, 203}
    cluster.run(10 * OUT_S)
    assert cluster.members == [{201, 202}, {203, 204}]
    assert [cluster.leaving(node) for node in NODES] == [pb.STAYS] * 4


def test_disabled_node_is_never_out() -> None:
    cluster = Cluster([(201, 202)])
    cluster.keep(cluster.model.disabled_node(NodeId(201), disabled=True))
    cluster.silent = {201}
    cluster.run(10 * OUT_S)
    assert cluster.leaving(201) == pb.STAYS
    assert cluster.members == [{201, 202}]


def test_chain_that_does_not_serve_waits_and_says_so() -> None:
    cluster = Cluster([(201,), (202,), (203,)])
    cluster.silent = {201}
    cluster.run(OUT_S + 60)
    assert cluster.members == [{201}, {202}, {203}]
    assert cluster.obstacle(201) == "chain 100001 does not serve"


def test_obstacle_is_said_and_ends_with_a_new_node() -> None:
    cluster = Cluster([(201, 202)], nodes=(201, 202, 203))
    cluster.full = {203}
    cluster.silent = {201}
    cluster.nodes.append(204)
    cluster.full.add(204)
    cluster.run(OUT_S + 60)
    assert "add a node" in cluster.obstacle(201)
    cluster.nodes.append(205)
    cluster.run(30)
    assert cluster.members == [{202, 205}]


def test_pause_holds_and_says_so() -> None:
    cluster = Cluster([(201, 202)])
    cluster.keep(cluster.model.moves.controlled(pb.ControlMovesRequest.PAUSE))
    cluster.drain(201)
    cluster.run(30)
    assert cluster.members == [{201, 202}]
    assert "luciola rebalance resume" in cluster.obstacle(201)
    cluster.keep(cluster.model.moves.controlled(pb.ControlMovesRequest.RESUME))
    cluster.run(30)
    assert not any(201 in nodes for nodes in cluster.members)


def test_copy_goes_to_a_domain_without_one_however_full_that_is() -> None:
    racks = {201: "a", 202: "b", 203: "b", 204: "c"}
    cluster = Cluster([(201, 202)] + [(204, 203)] * 5, racks=racks)
    cluster.drain(201)
    cluster.run(60)
    assert cluster.members[0] == {202, 204}


def test_chains_with_the_fewest_copies_come_first() -> None:
    cluster = Cluster([(201, 202)] * 20 + [(201, 203)])
    cluster.silent = {203}
    cluster.run(OUT_S - 5)
    cluster.drain(201)
    records = cluster.model.records
    cluster.keep(replace(cluster.model.healing.look(cluster.now_s), nodes=()))
    assert 100_021 in records.moves, "of which one replica serves"
    assert len(records.moves) < 20, "the others are decided later"


def test_move_whose_new_replica_dies_after_the_old_one_has_left_keeps_the_chain_complete() -> None:
    cluster = Cluster([(201, 202)])
    move = pb.Move(chain=100_001, target=100_001_001, node=203)
    cluster.keep(cluster.model.moves.started(pb.StartMovesRequest(moves=[move])))
    while 201 in cluster.members[0]:
        cluster.run(0.5)
    assert cluster.model.records.moves, "the order of the replicas is not as preferred yet"
    cluster.model.end(NodeId(203))
    cluster.silent = {203}
    cluster.run(1)
    cluster.keep(cluster.model.moves.controlled(pb.ControlMovesRequest.CANCEL))
    cluster.run(5)
    assert len(cluster.members[0]) == 2


def test_move_to_a_node_that_is_lost_is_undone() -> None:
    cluster = Cluster([(201, 202)] * 2, nodes=(201, 202, 203, 204, 205))
    cluster.silent = {203}
    cluster.drain(201, successor=204)
    cluster.run(0.5)
    cluster.silent = {204}
    cluster.run(OUT_S + 60)
    for nodes in cluster.members:
        assert len(nodes) == 2
        assert nodes.isdisjoint({201, 204})


def test_mark_survives_a_restart_of_the_manager() -> None:
    cluster = Cluster([(201, 202)])
    cluster.drain(201, successor=204)
    known = cluster.model.records.nodes[NodeId(201)]
    assert type(known).from_pb(known.to_pb()) == known
    assert cluster.model.records.nodes[NodeId(201)].successor == 204
    cluster.beat()
    assert cluster.leaving(201) == pb.DRAINED, "a heartbeat does not change it"
