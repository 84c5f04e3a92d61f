"""Domains of nodes, and the level that a table gets."""

import pytest

from luciola.errors import InvalidArgument
from luciola.ids import NodeId
from luciola.mgmtd.domains import domain_of, parse_level, shares_domain, widest_level
from luciola.mgmtd.records import Labels, NodeRecord
from luciola.wire.pb import mgmtd_pb2 as pb

LEVELS = (pb.DOMAIN_NODE, pb.DOMAIN_HOST, pb.DOMAIN_RACK, pb.DOMAIN_ROOM)


def node(number: int, room: str = "", rack: str = "", host: str = "", *, name: str = "") -> NodeRecord:
    return NodeRecord(NodeId(number), pb.NODE_STORAGE, host=name, labels=Labels(room, rack, host))


def test_racks_of_the_same_name_in_two_rooms_are_two():
    one, other, beside = node(1, "a", "1"), node(2, "b", "1"), node(3, "a", "1")
    assert [shares_domain((one, other), level) for level in LEVELS] == [False] * 4
    assert [shares_domain((one, beside), level) for level in LEVELS] == [False, False, True, True]


def test_node_without_the_label_is_a_domain_of_its_own():
    nodes = [node(1), node(2), node(3, rack="1")]
    for level in LEVELS:
        assert len({domain_of(each, level) for each in nodes}) == 3


def test_name_of_the_host_is_its_label_unless_another_is_given():
    assert shares_domain((node(1, name="m"), node(2, name="m")), pb.DOMAIN_HOST)
    assert not shares_domain((node(1, name="m"), node(2, host="x", name="m")), pb.DOMAIN_HOST)


@pytest.mark.parametrize(
    ("nodes", "replicas", "level"),
    [
        ([node(1, name="m"), node(2, name="m"), node(3, name="m")], 2, pb.DOMAIN_NODE),
        ([node(1, name="m"), node(2, name="n")], 2, pb.DOMAIN_HOST),
        ([node(1, rack="1", name="m"), node(2, rack="2", name="m")], 2, pb.DOMAIN_RACK),
        (
            [node(1, rack="1", name="m"), node(2, rack="2", name="n"), node(3, rack="2", name="o")],
            3,
            pb.DOMAIN_HOST,
        ),
        ([node(1, "a", "1", "m"), node(2, "b", "1", "n")], 2, pb.DOMAIN_ROOM),
        ([node(1, rack="1", name="m"), node(2, name="n")], 2, pb.DOMAIN_HOST),
        ([], 2, pb.DOMAIN_NODE),
    ],
)
def test_level_is_the_widest_at_which_every_copy_finds_a_domain(nodes, replicas, level):
    assert widest_level(nodes, domains=replicas) == level


def test_unknown_level_is_refused_with_those_there_are():
    assert parse_level("rack") == pb.DOMAIN_RACK
    with pytest.raises(InvalidArgument, match="one of node, host, rack, room, not 'row'"):
        parse_level("row")
