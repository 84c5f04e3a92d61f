"""Deltas are as good as snapshots."""

from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.config import MgmtdConfig
from luciola.ids import ChainId, ChainVersion, NodeId, TableId, TargetId
from luciola.mgmtd.model import Model
from luciola.mgmtd.records import ChainRecord, Change, NodeRecord, Records, TableRecord
from luciola.mgmtd.routing import REMOVED_MAX, Publisher
from luciola.mgmtd.transitions import Member
from luciola.states import Public
from luciola.wire import RoutingTable
from luciola.wire.pb import mgmtd_pb2 as pb

nodes = st.integers(1, 4)
changes = st.one_of(
    st.tuples(st.just("node"), nodes, st.integers(1, 9)),
    st.tuples(st.just("chain"), st.integers(1, 3)),
    st.tuples(st.just("table"), st.integers(1, 2)),
    st.tuples(st.just("status"), nodes),
    st.tuples(st.just("remove"), nodes),
    st.tuples(st.just("none")),
)


def to_change(model: Model, kind: tuple) -> Change:
    match kind:
        case ("node", number, pid):
            return Change(nodes=(NodeRecord(NodeId(number), pb.NODE_META, pid=pid),))
        case ("chain", number):
            known = model.records.chains.get(ChainId(number))
            version = ChainVersion(known.version + 1 if known else 1)
            member = Member(TargetId(number), 9, Public.SERVING)
            return Change(chains=(ChainRecord(ChainId(number), version, (member,)),))
        case ("table", number):
            version = 1 + sum(table == number for table, _ in model.records.tables)
            return Change(tables=(TableRecord(TableId(number), version, (ChainId(1),), 1),))
        case ("status", number) if number in model.lives:
            model._set_status(NodeId(number), pb.CONNECTED)
        case ("remove", number) if number in model.records.nodes:
            return Change(removed_nodes=(NodeId(number),))
    return Change()


def content(table: RoutingTable) -> tuple:
    return (
        table.version,
        {number: node.SerializeToString() for number, node in table.nodes.items()},
        {number: chain.SerializeToString() for number, chain in table.chains.items()},
        {number: entry.SerializeToString() for number, entry in table.tables.items()},
    )


@settings(deadline=None)
@given(history=st.lists(changes, max_size=25), readers=st.lists(st.integers(0, 25), max_size=4))
def test_older_snapshot_and_delta_make_the_snapshot(history, readers):
    model = Model(MgmtdConfig(), Records(), now_s=0.0)
    publisher = Publisher(model, cluster_id="c", term=3)
    tables = [RoutingTable() for _ in readers]
    for number, kind in enumerate(history):
        for table, period in zip(tables, readers, strict=True):
            if period and number % period == 0:
                table.apply(publisher.since(table.version, now_s=1.0))
        change = to_change(model, kind)
        before = publisher.version
        model.apply(change)
        assert publisher.publish(change) == (publisher.version > before)
    fresh = RoutingTable()
    fresh.apply(publisher.since(0, now_s=1.0))
    for table in tables:
        table.apply(publisher.since(table.version, now_s=1.0))
        assert content(table) == content(fresh)


def filled(term: int) -> Publisher:
    records = Records(nodes={NodeId(n): NodeRecord(NodeId(n), pb.NODE_META) for n in range(1, 4)})
    return Publisher(Model(MgmtdConfig(), records, now_s=0.0), cluster_id="c", term=term)


def test_a_delta_brings_only_what_changed():
    publisher = filled(1)
    known = publisher.version
    publisher._model._set_status(NodeId(2), pb.CONNECTED)
    publisher.publish(Change())
    delta = publisher.since(known, now_s=0.0)
    assert delta.delta
    assert [node.id for node in delta.nodes] == [2]
    assert not publisher.since(publisher.version, now_s=0.0).nodes


def test_another_term_and_an_unknown_future_get_a_snapshot():
    older, newer = filled(1), filled(2)
    assert newer.version > older.version
    for known in (0, older.version, newer.version + 1):
        snapshot = newer.since(known, now_s=0.0)
        assert not snapshot.delta
        assert len(snapshot.nodes) == 3


def test_who_missed_more_removals_than_are_remembered_gets_a_snapshot():
    publisher = filled(1)
    known = publisher.version
    for _ in range(REMOVED_MAX):
        publisher._model.apply(Change(nodes=(NodeRecord(NodeId(9), pb.NODE_META),)))
        publisher.publish(Change(nodes=(NodeRecord(NodeId(9), pb.NODE_META),)))
        publisher._model.apply(Change(removed_nodes=(NodeId(9),)))
        publisher.publish(Change(removed_nodes=(NodeId(9),)))
    assert not publisher.since(known, now_s=0.0).delta
    assert publisher.since(publisher.version - 1, now_s=0.0).removed_nodes == [9]


def test_who_has_waited_shares_what_others_were_given_and_catches_up_by_a_delta():
    model = Model(MgmtdConfig(), Records(), now_s=0.0)
    publisher = Publisher(model, cluster_id="c", term=3)
    shared = publisher.since(0, now_s=1.0)
    change = to_change(model, ("chain", 1))
    model.apply(change)
    publisher.publish(change)
    assert publisher.since(0, now_s=1.1, asked_s=0.5) is shared, "made after it was asked for"
    assert [chain.id for chain in publisher.since(shared.version, now_s=1.1).chains] == [1]
    fresh = publisher.since(0, now_s=1.1, asked_s=1.05)
    assert [chain.id for chain in fresh.chains] == [1]
    assert publisher.since(0, now_s=1.5) is fresh, "nothing has changed"
    assert publisher.since(0, now_s=9.0) is not fresh, "what nodes report of themselves has"
