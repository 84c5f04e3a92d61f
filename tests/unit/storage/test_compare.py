"""The difference of two replicas: single decisions, and equality after any plan was carried out."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.storage.compare import Record, compare

SAME = Record(
    content=1,
    index=0,
    version=4,
    chain_version=2,
    length=100,
    crc32c=77,
    pending=False,
    removed=False,
    pending_version=0,
)


def test_equal_chunks_stay():
    plan = compare([SAME], [SAME])
    assert (plan.removes, plan.transfers, plan.conflicts, plan.equal_count) == ([], [], [], 1)


def test_what_only_the_successor_has_is_removed_if_it_was_never_decided():
    half = replace(SAME, version=0, chain_version=0, length=0, crc32c=0, pending=True, pending_version=1)
    tombstone = replace(SAME, index=1, removed=True)
    plan = compare([], [half, tombstone])
    assert (plan.removes, plan.conflicts) == ([(1, 0), (1, 1)], [])


def test_chunk_that_only_the_successor_has_is_set_aside():
    plan = compare([], [SAME])
    assert (plan.removes, plan.transfers) == ([], [])
    assert [(conflict.record, conflict.reason) for conflict in plan.conflicts] == [
        (SAME, "its predecessor has no such chunk")
    ]


def test_lengths_of_what_is_sent_are_known():
    assert compare([SAME, replace(SAME, index=1, length=7)], [SAME]).lengths == {(1, 1): 7}


def test_chunk_that_only_we_have_is_sent():
    assert compare([SAME], []).transfers == [(1, 0)]


def test_what_is_pending_at_the_predecessor_is_sent():
    """It may have been decided before the successor joined, and only be on its way to our own disk."""
    first = replace(SAME, version=0, chain_version=0, length=0, crc32c=0, pending=True, pending_version=1)
    assert compare([first], []).transfers == [(1, 0)]
    later = replace(SAME, pending=True, pending_version=5)
    assert compare([later], [SAME]).transfers == [(1, 0)]


@pytest.mark.parametrize(
    "theirs",
    [
        replace(SAME, version=3),
        replace(SAME, chain_version=1),
        replace(SAME, pending=True, pending_version=5),
        replace(SAME, removed=True, length=0, crc32c=0, version=3),
        replace(SAME, version=0, chain_version=0, length=0, crc32c=0, pending=True, pending_version=1),
    ],
)
def test_older_and_undecided_states_are_replaced_silently(theirs):
    plan = compare([SAME], [theirs])
    assert plan.transfers == [(1, 0)]
    assert plan.conflicts == []


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        (replace(SAME, crc32c=78), "two contents"),
        (replace(SAME, length=101), "two contents"),
        (replace(SAME, removed=True), "two contents"),
        (replace(SAME, version=5), "ahead"),
        (replace(SAME, chain_version=3), "ahead"),
        (replace(SAME, chain_version=3, version=1), "ahead"),
    ],
)
def test_states_that_should_not_exist_are_named_and_replaced(theirs, reason):
    plan = compare([SAME], [theirs])
    assert plan.transfers == [(1, 0)]
    assert [conflict.record.name for conflict in plan.conflicts] == [(1, 0)]
    assert reason in plan.conflicts[0].reason


def test_successor_may_be_ahead_by_the_write_in_flight_only():
    ours = replace(SAME, pending=True, pending_version=5)
    for version, is_explained in ((5, True), (6, False)):
        plan = compare([ours], [replace(SAME, version=version)])
        assert plan.transfers == [(1, 0)]
        assert (plan.conflicts == []) is is_explained


def test_tombstones_are_equal_for_any_content():
    ours = replace(SAME, removed=True, length=0, crc32c=0)
    assert compare([ours], [replace(ours, length=9, crc32c=9)]).equal_count == 1


UNREADABLE = replace(SAME, version=0, chain_version=0, length=0, crc32c=0, pending=True)


def test_unreadable_record_of_the_successor_is_replaced_or_removed():
    plan = compare([SAME], [UNREADABLE, replace(UNREADABLE, index=1)])
    assert (plan.transfers, plan.removes) == ([(1, 0)], [(1, 1)])
    assert (plan.conflicts, plan.kept, plan.lost) == ([], [], [])


@pytest.mark.parametrize(
    "theirs", [SAME, replace(SAME, removed=True), replace(SAME, pending=True, pending_version=5)]
)
def test_unreadable_record_of_the_predecessor_leaves_what_the_successor_has(theirs):
    plan = compare([UNREADABLE], [theirs])
    assert plan.kept == [(1, 0)]
    assert (plan.transfers, plan.removes, plan.conflicts, plan.lost) == ([], [], [], [])


@pytest.mark.parametrize("theirs", [[], [replace(UNREADABLE, pending_version=1)]])
def test_unreadable_chunk_of_which_the_successor_has_nothing_is_lost(theirs):
    plan = compare([UNREADABLE], theirs)
    assert plan.lost == [UNREADABLE]
    assert (plan.transfers, plan.removes, plan.conflicts, plan.kept) == ([], [], [], [])


def test_chunk_that_neither_replica_can_read_needs_nothing():
    plan = compare([UNREADABLE], [UNREADABLE])
    assert (plan.transfers, plan.removes, plan.conflicts, plan.kept, plan.lost) == ([], [], [], [], [])


names = st.tuples(st.integers(1, 3), st.integers(0, 3))
states = st.builds(
    Record,
    content=st.just(0),
    index=st.just(0),
    version=st.integers(0, 3),
    chain_version=st.integers(1, 3),
    length=st.integers(0, 2),
    crc32c=st.integers(0, 2),
    pending=st.booleans(),
    removed=st.booleans(),
    pending_version=st.integers(0, 4),
)
replicas = st.dictionaries(names, states)


def replica(chunks):
    return [replace(state, content=name[0], index=name[1]) for name, state in sorted(chunks.items())]


def visible(record):
    """What a reader or a later resync can see of a committed state."""
    content = None if record.removed else (record.length, record.crc32c)
    return record.chain_version, record.version, content


@settings(max_examples=150, deadline=None)
@given(replicas, replicas)
def test_replicas_are_equal_after_any_plan(ours, theirs):
    local, remote = replica(ours), replica(theirs)
    plan = compare(local, remote)
    mine = {record.name: record for record in local}
    result = {record.name: record for record in remote}
    for conflict in plan.conflicts:
        assert result.pop(conflict.record.name).version, "only what was committed is kept"
    for name in plan.removes:
        assert name not in mine
        assert not result[name].version or result[name].removed, (
            "content is not removed without being set aside"
        )
        del result[name]
    for name in plan.transfers:
        result[name] = replace(mine[name], pending=False, pending_version=0)
    committed = {name: visible(record) for name, record in mine.items() if record.version}
    assert {name: visible(record) for name, record in result.items() if name in committed} == committed
    assert not any(result[name].pending for name in committed)
    assert all(mine[name].version == 0 for name in result.keys() - committed.keys())


@settings(max_examples=60, deadline=None)
@given(replicas, replicas)
def test_nothing_is_decided_twice_and_order_is_kept(ours, theirs):
    plan = compare(replica(ours), replica(theirs))
    decided = plan.removes + plan.transfers
    assert len(decided) == len(set(decided))
    assert plan.removes == sorted(plan.removes)
    assert plan.transfers == sorted(plan.transfers)


@settings(max_examples=60, deadline=None)
@given(replicas)
def test_replica_compared_with_itself_at_rest_needs_nothing(chunks):
    still = [replace(record, pending=False, pending_version=0) for record in replica(chunks)]
    plan = compare(still, still)
    assert (plan.removes, plan.transfers, plan.equal_count) == ([], [], len(still))
