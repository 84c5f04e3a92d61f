"""What is missing is named with its cause and the command that helps."""

import pytest

from luciola.cli.health import awaited, describe_domains, describe_progress, describe_space, describe_trouble
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.storage_pb2 import SpaceReply

NODES = (201, 202)
STATES = {
    "serving": pb.SERVING,
    "lastsrv": pb.LASTSRV,
    "offline": pb.OFFLINE,
    "syncing": pb.SYNCING,
    "waiting": pb.WAITING,
}


def routing(
    statuses: dict[int, int], *chains: dict[int, str], lost: tuple[int, ...] = (), bootstrapping: bool = False
) -> pb.Routing:
    """Nodes with their statuses; chains as node → state. `lost`: nodes that report their replicas offline."""
    reply = pb.Routing(bootstrapping=bootstrapping)
    for node, status in statuses.items():
        reply.nodes.add(id=node, kind=pb.NODE_STORAGE, status=status)
    for number, members in enumerate(chains, 1):
        chain = reply.chains.add(id=number)
        for node, state in members.items():
            local = pb.LOCAL_OFFLINE if node in lost else pb.LOCAL_UPTODATE
            chain.targets.add(id=number * 1000 + node, node=node, state=STATES[state], local=local)
    return reply


BOTH = {201: pb.CONNECTED, 202: pb.CONNECTED}


def test_complete_cluster_waits_for_nothing_and_has_no_trouble() -> None:
    whole = routing(BOTH, {201: "serving", 202: "serving"})
    assert awaited(whole, NODES) == set()
    assert describe_trouble(whole, NODES) == []


def test_chains_are_not_judged_before_all_nodes_have_reported() -> None:
    assert awaited(routing(BOTH, {201: "serving"}, bootstrapping=True), NODES)


@pytest.mark.parametrize(
    ("found", "waits", "lines"),
    [
        (
            routing({201: pb.CONNECTED, 202: pb.DISABLED}, {201: "serving", 202: "offline"}),
            set(),
            ["node 202 is disabled; to let it take part: luciola node enable 202"],
        ),
        (
            routing({201: pb.CONNECTED, 202: pb.DISABLED}, {202: "lastsrv", 201: "offline"}, lost=(201,)),
            set(),
            ["node 202 is disabled", "node 201: 1 replicas are offline", "luciola node enable 202"],
        ),
        (
            routing({201: pb.CONNECTED}, {201: "serving", 202: "offline"}),
            {"node 202"},
            ["node 202 does not report"],
        ),
        (
            routing({201: pb.CONNECTED, 202: pb.FAILED}, {202: "lastsrv", 201: "waiting"}),
            {"node 202", "chain 1"},
            ["node 202 does not report", "chain 1: cannot be read or written, waiting for node 202"],
        ),
        (
            routing(BOTH, {201: "lastsrv", 202: "offline"}, lost=(201,)),
            set(),
            ["luciola chain rotate 1 --last-serving"],
        ),
        (
            routing(BOTH, {201: "lastsrv", 202: "lastsrv"}, lost=(201,)),
            {"chain 1"},
            ["waiting for node 201 or node 202"],
        ),
        (
            routing({201: pb.CONNECTED, 202: pb.FAILED}, {201: "lastsrv", 202: "lastsrv"}),
            {"node 202", "chain 1"},
            ["node 202 does not report", "waits for node 202; if it never returns: luciola chain rotate 1"],
        ),
        (routing(BOTH, {201: "lastsrv"}, lost=(201,)), set(), ["luciola chain add CHAIN NODE"]),
        (routing(BOTH, {201: "serving", 202: "offline"}), set(), []),
        (routing(BOTH, {201: "serving", 202: "offline"}, lost=(202,)), set(), ["node 202: 1 replicas"]),
    ],
)
def test_each_cause_is_named_with_its_remedy(found: pb.Routing, waits: set[str], lines: list[str]) -> None:
    assert awaited(found, NODES) == waits
    said = describe_trouble(found, NODES)
    assert len(said) == len(lines), said
    for line in lines:
        assert any(line in each for each in said), (line, said)


def test_replica_that_is_brought_up_to_date_is_progress() -> None:
    found = routing(BOTH, {201: "serving", 202: "syncing"})
    assert describe_trouble(found, NODES) == []
    assert describe_progress(found) == ["chain 1: a replica is being brought up to date"]


def test_chain_of_a_node_that_is_not_expected_is_not_waited_for() -> None:
    found = routing({201: pb.CONNECTED, 202: pb.FAILED}, {202: "lastsrv", 201: "offline"})
    assert awaited(found, {201}) == set()


def test_many_chains_make_one_line() -> None:
    members = {201: "lastsrv", 202: "offline"}
    said = describe_trouble(routing({201: pb.DISABLED, 202: pb.CONNECTED}, *[members] * 9), NODES)
    assert sum("chains 1, 2, 3, 4, 5, ...: cannot be read" in line for line in said) == 1


@pytest.mark.parametrize(
    ("space", "said"),
    [
        (SpaceReply(capacity_bytes=1000, free_bytes=101), ""),
        (SpaceReply(capacity_bytes=1000, free_bytes=99), "disk 90% full, 99 B free"),
        (SpaceReply(capacity_bytes=1000, free_bytes=1, full=True), "fail with ENOSPC"),
    ],
)
def test_disk_is_named_before_and_when_it_is_full(space: SpaceReply, said: str) -> None:
    lines = describe_space({201: space})
    assert len(lines) == bool(said)
    assert not lines or said in lines[0]


def test_chains_whose_copies_share_a_domain_are_counted() -> None:
    whole = routing(BOTH, {201: "serving", 202: "serving"}, {201: "serving"})
    table = whole.tables.add(id=1, version=1, chains=[1, 2], domain=pb.DOMAIN_RACK)
    assert describe_domains(whole) == []
    for node in whole.nodes:
        node.labels.rack = "a"
    assert describe_domains(whole) == [
        "table 1: 1 of 2 chains have copies that share a rack, and may be lost with it"
    ]
    table.domain = pb.DOMAIN_NODE
    assert describe_domains(whole) == []
