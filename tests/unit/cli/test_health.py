"""What is missing is named with its cause and the command that helps."""

import pytest

from luciola.cli.health import (
    awaited,
    describe_domains,
    describe_progress,
    describe_space,
    describe_trouble,
    find_clock_skew,
    find_disk_errors,
    find_incomplete,
    find_leaving,
    find_services,
)
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.storage_pb2 import SpaceReply, StorageStatus

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


def test_degraded_chains_and_syncing_chains_have_codes_of_their_own() -> None:
    found = find_incomplete(
        routing(
            BOTH,
            {201: "serving", 202: "serving"},
            {201: "serving", 202: "offline"},
            {201: "serving", 202: "syncing"},
            {201: "lastsrv", 202: "offline"},
        )
    )
    assert [(each.code, each.where) for each in found] == [
        ("CHAIN_SYNCING", "chain 3"),
        ("CHAIN_DEGRADED", "chain 2"),
    ]


def services(*metas: tuple[int, int], releases: tuple[str, ...] = ("1", "1")) -> pb.Routing:
    """`metas`: (status, epoch) of metadata services. `releases`: of two storage nodes."""
    reply = pb.Routing()
    for number, (status, epoch) in enumerate(metas, 101):
        reply.nodes.add(id=number, kind=pb.NODE_META, status=status, epoch=epoch)
    for number, release in enumerate(releases, 201):
        reply.nodes.add(id=number, kind=pb.NODE_STORAGE, status=pb.CONNECTED, release=release)
    return reply


@pytest.mark.parametrize(
    ("found", "codes"),
    [
        (services((pb.CONNECTED, 1)), []),
        (services(), ["META_DOWN"]),
        (services((pb.FAILED, 5)), ["META_DOWN"]),
        (services((pb.CONNECTED, 0)), ["META_DOWN"]),
        (services((pb.CONNECTED, 5), (pb.CONNECTED, 0)), []),
        (services((pb.CONNECTED, 5), (pb.FAILED, 0)), ["META_NO_STANDBY"]),
        (services((pb.CONNECTED, 1), releases=("1", "2")), ["RELEASES_DIFFER"]),
    ],
)
def test_services_that_are_missing_or_of_another_release_are_found(
    found: pb.Routing, codes: list[str]
) -> None:
    assert [each.code for each in find_services(found)] == codes


def test_counted_errors_of_disks_are_found() -> None:
    status = StorageStatus(counters={"io_errors": 1, "repairs_failed": 2}, directory="/data/storage-201")
    found = find_disk_errors(
        {201: status, 202: StorageStatus(counters={"io_errors": 0, "repairs_failed": 0})}
    )
    assert [each.code for each in found] == ["DISK_ERRORS", "CHUNK_DAMAGED"]
    assert "/data/storage-201" in found[0].where


def test_clock_that_differs_from_most_is_named() -> None:
    (found,) = find_clock_skew({"node 201": 0.1, "node 202": -3.0, "this machine": 0.0})
    assert (found.where, found.what) == ("node 202", "the clock of node 202 is 3.0 s behind the others")
    assert find_clock_skew({"node 201": 0.9, "this machine": 0.0}) == []
    assert find_clock_skew({}) == []


def test_node_that_is_out_and_what_keeps_its_replicas_are_named() -> None:
    published = routing({201: pb.CONNECTED, 202: pb.FAILED, 203: pb.FAILED})
    for node in published.nodes:
        node.leaving = pb.OUT if node.id != 201 else pb.DRAINED
    waits = pb.LeavingNode(node=202, replicas=3, obstacle="the reason")
    moves = pb.MovesStatus(leaving=[waits, pb.LeavingNode(node=201, replicas=2)])
    found = [(each.code, each.where, each.what, each.line) for each in find_leaving(published, moves)]
    assert [each[:2] for each in found] == [
        ("NODE_OUT", "node 202"),
        ("HEALING_WAITS", "node 202"),
        ("NODE_OUT", "node 203"),
    ]
    assert "3 replicas" in found[0][2]
    assert found[1][2].endswith("the reason")
    assert found[2][3].endswith("luciola node forget 203")
