"""The contract of an engine, one behaviour a test."""

import pytest

from luciola.errors import Conflict, InvalidArgument, Unavailable
from luciola.kv import Engine, MemoryEngine, Transaction, prefix_end
from luciola.kv.engine import KEY_BYTES_MAX, RANGE_LIMIT_MAX, TRANSACTION_BYTES_MAX, VALUE_BYTES_MAX
from luciola.kv.faulty import FaultyEngine

WINDOW = 64  # as in conftest


def put(engine: Engine, **pairs: bytes) -> int:
    transaction = engine.begin()
    for key, value in pairs.items():
        transaction.put(key.encode(), value)
    return transaction.commit()


def get(engine: Engine, key: bytes) -> bytes | None:
    return engine.begin().get(key)


def begun(engine: Engine) -> Transaction:
    """A transaction whose picture of the store is fixed now."""
    transaction = engine.begin()
    assert transaction.read_version >= 0
    return transaction


def test_committed_write_is_read_by_the_next_transaction(engine):
    put(engine, a=b"1")
    assert get(engine, b"a") == b"1"
    assert get(engine, b"b") is None


def test_empty_value_is_not_a_missing_one(engine):
    put(engine, a=b"")
    assert get(engine, b"a") == b""


def test_uncommitted_write_is_invisible_to_other_transactions(engine):
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    assert get(engine, b"a") is None
    transaction.cancel()
    assert get(engine, b"a") is None


def test_own_writes_are_read_before_commit(engine):
    put(engine, a=b"old", b=b"old", c=b"old")
    transaction = engine.begin()
    transaction.put(b"a", b"new")
    transaction.delete(b"b")
    assert [transaction.get(key) for key in (b"a", b"b", b"c")] == [b"new", None, b"old"]
    assert transaction.snapshot_get(b"a") == b"new"


def test_many_keys_are_read_as_one_by_one_at_the_same_version(engine):
    put(engine, a=b"1", c=b"3")
    keys = (b"c", b"b", b"a", b"c")
    reader = begun(engine)
    put(engine, a=b"other", b=b"2")
    assert list(reader.snapshot_get_many(keys)) == [b"3", None, b"1", b"3"]
    writer = engine.begin()
    writer.put(b"c", b"own")
    writer.delete(b"a")
    assert list(writer.snapshot_get_many(keys)) == [b"own", b"2", None, b"own"]
    assert list(engine.begin().snapshot_get_many(())) == []


def test_versions_grow_with_every_commit_that_changes_something(engine):
    versions = [put(engine, a=b"1"), put(engine, a=b"1"), put(engine, b=b"2")]
    assert versions == sorted(set(versions))
    assert engine.version == versions[-1]


def test_read_only_commit_returns_the_version_it_read(engine):
    version = put(engine, a=b"1")
    transaction = engine.begin()
    transaction.get(b"a")
    put(engine, a=b"2")
    assert transaction.commit() == version


# Ranges.


def test_range_is_ordered_and_half_open(engine):
    put(engine, a=b"1", b=b"2", c=b"3", d=b"4")
    transaction = engine.begin()
    assert list(transaction.get_range(b"b", b"d")) == [(b"b", b"2"), (b"c", b"3")]
    assert list(transaction.get_range(b"", b"\xff", limit=2)) == [(b"a", b"1"), (b"b", b"2")]
    assert list(transaction.get_range(b"c", b"c")) == []
    assert list(transaction.get_range(b"d", b"b")) == []
    assert list(transaction.get_range(b"x", b"z")) == []


def test_range_merges_own_writes(engine):
    put(engine, a=b"1", c=b"3", e=b"5", g=b"7")
    transaction = engine.begin()
    transaction.put(b"b", b"mine")
    transaction.put(b"c", b"mine")
    transaction.delete(b"e")
    transaction.put(b"h", b"mine")
    everything = [(b"a", b"1"), (b"b", b"mine"), (b"c", b"mine"), (b"g", b"7"), (b"h", b"mine")]
    assert list(transaction.get_range(b"", b"\xff")) == everything
    assert list(transaction.get_range(b"", b"\xff", limit=4)) == everything[:4]
    assert list(transaction.get_range(b"b", b"h")) == everything[1:4]


def test_delete_range_hides_what_is_stored_and_what_was_written(engine):
    put(engine, a=b"1", b=b"2", c=b"3")
    transaction = engine.begin()
    transaction.put(b"ab", b"mine")
    transaction.delete_range(b"a", b"c")
    transaction.put(b"b", b"again")
    assert transaction.get(b"a") is None
    assert transaction.get(b"ab") is None
    assert list(transaction.get_range(b"", b"\xff")) == [(b"b", b"again"), (b"c", b"3")]
    transaction.commit()
    assert list(engine.begin().get_range(b"", b"\xff")) == [(b"b", b"again"), (b"c", b"3")]


def test_delete_range_removes_keys_that_appeared_after_it_was_called(engine):
    transaction = engine.begin()
    transaction.delete_range(b"a", b"c")
    put(engine, b=b"late")
    transaction.commit()
    assert get(engine, b"b") is None


def test_large_range_is_removed_with_exact_bounds(engine):
    fill = engine.begin()
    for number in range(1000):
        fill.put(b"k%04d" % number, b"v")
    fill.commit()
    clear = engine.begin()
    clear.delete_range(b"k0100", b"k0900")
    clear.commit()
    left = [key for key, _ in engine.begin().get_range(b"", b"\xff")]
    assert left == [b"k%04d" % number for number in (*range(100), *range(900, 1000))]


def test_empty_delete_range_changes_nothing(engine):
    version = put(engine, a=b"1")
    transaction = engine.begin()
    transaction.delete_range(b"b", b"b")
    transaction.delete_range(b"c", b"a")
    transaction.commit()
    assert engine.version == version


def test_prefix_end_bounds_all_keys_of_a_prefix(engine):
    transaction = engine.begin()
    for key in (b"a", b"a\x00", b"a\xff\xff", b"b"):
        transaction.put(key, b"")
    transaction.commit()
    found = engine.begin().get_range(b"a", prefix_end(b"a"))
    assert [key for key, _ in found] == [b"a", b"a\x00", b"a\xff\xff"]
    assert prefix_end(b"a\xff") == b"b"


# Conflicts.


def test_point_read_conflicts_with_a_later_write(engine):
    put(engine, a=b"1")
    transaction = engine.begin()
    transaction.get(b"a")
    transaction.put(b"b", b"1")
    put(engine, a=b"2")
    with pytest.raises(Conflict):
        transaction.commit()
    assert get(engine, b"b") is None


def test_read_of_a_missing_key_conflicts_with_its_creation(engine):
    transaction = engine.begin()
    assert transaction.get(b"a") is None
    transaction.put(b"b", b"1")
    put(engine, a=b"2")
    with pytest.raises(Conflict):
        transaction.commit()


def test_point_read_conflicts_with_a_deletion_and_a_range_deletion(engine):
    for remove in (lambda other: other.delete(b"a"), lambda other: other.delete_range(b"a", b"b")):
        put(engine, a=b"1")
        transaction = engine.begin()
        transaction.get(b"a")
        transaction.put(b"b", b"1")
        other = engine.begin()
        remove(other)
        other.commit()
        with pytest.raises(Conflict):
            transaction.commit()


def test_phantom_in_a_range_conflicts(engine):
    put(engine, a=b"1", c=b"3")
    transaction = engine.begin()
    transaction.get_range(b"a", b"d")
    transaction.put(b"x", b"1")
    put(engine, b=b"phantom")
    with pytest.raises(Conflict):
        transaction.commit()


def test_emptiness_of_a_range_is_a_conflict_when_it_changes(engine):
    transaction = engine.begin()
    assert not transaction.get_range(b"d/", b"d0", limit=1)
    transaction.delete(b"d")
    put(engine, **{"d/file": b""})
    with pytest.raises(Conflict):
        transaction.commit()


def test_range_conflicts_with_range_deletion_that_only_touches_it(engine):
    put(engine, a=b"1", b=b"2")
    transaction = engine.begin()
    transaction.get_range(b"b", b"d")
    transaction.put(b"x", b"1")
    other = engine.begin()
    other.delete_range(b"a", b"b\x00")
    other.commit()
    with pytest.raises(Conflict):
        transaction.commit()


def test_range_with_limit_guards_only_what_was_looked_at(engine):
    put(engine, b=b"2", c=b"3")
    transaction = engine.begin()
    assert len(transaction.get_range(b"a", b"e", limit=1)) == 1
    transaction.put(b"x", b"1")
    put(engine, d=b"not looked at")
    transaction.commit()
    assert get(engine, b"x") == b"1"


def test_range_with_limit_guards_what_was_looked_at(engine):
    put(engine, b=b"2", c=b"3")
    transaction = engine.begin()
    assert len(transaction.get_range(b"a", b"e", limit=1)) == 1
    transaction.put(b"x", b"1")
    put(engine, a=b"phantom")
    with pytest.raises(Conflict):
        transaction.commit()


def test_writes_outside_what_was_read_do_not_conflict(engine):
    transaction = engine.begin()
    transaction.get(b"a")
    transaction.get_range(b"c", b"e")
    transaction.put(b"z", b"1")
    put(engine, b=b"1", e=b"2")
    transaction.commit()


def test_snapshot_reads_do_not_conflict(engine):
    put(engine, a=b"1")
    transaction = engine.begin()
    transaction.snapshot_get(b"a")
    transaction.snapshot_range(b"a", b"c")
    transaction.put(b"z", b"1")
    put(engine, a=b"2", b=b"3")
    transaction.commit()
    assert get(engine, b"z") == b"1"


def test_blind_writes_do_not_conflict_and_the_later_commit_wins(engine):
    first, second = engine.begin(), engine.begin()
    first.put(b"a", b"first")
    second.put(b"a", b"second")
    second.commit()
    first.commit()
    assert get(engine, b"a") == b"first"


def test_own_write_makes_a_read_of_it_harmless(engine):
    transaction = begun(engine)
    transaction.put(b"a", b"mine")
    transaction.get(b"a")
    put(engine, a=b"other")
    transaction.commit()
    assert get(engine, b"a") == b"mine"


def test_added_read_conflict_is_checked(engine):
    transaction = engine.begin()
    transaction.add_read_conflict(b"a")
    transaction.put(b"z", b"1")
    put(engine, a=b"2")
    with pytest.raises(Conflict):
        transaction.commit()


def test_a_failed_commit_is_not_a_conflict_for_others(engine):
    put(engine, a=b"1")
    loser = engine.begin()
    loser.get(b"a")
    loser.put(b"b", b"loser")
    put(engine, a=b"2")
    reader = engine.begin()
    reader.get(b"b")
    reader.put(b"c", b"1")
    with pytest.raises(Conflict):
        loser.commit()
    reader.commit()


def test_write_skew_is_refused(engine):
    put(engine, a=b"1", b=b"1")
    first, second = begun(engine), begun(engine)
    for transaction, write in ((first, b"a"), (second, b"b")):
        assert transaction.get(b"a") == transaction.get(b"b") == b"1"
        transaction.put(write, b"0")
    first.commit()
    with pytest.raises(Conflict):
        second.commit()


# One picture.


def test_reads_stay_at_one_version_while_others_commit(engine):
    put(engine, a=b"1", b=b"1")
    transaction = engine.begin()
    assert transaction.get(b"a") == b"1"
    put(engine, a=b"2", b=b"2", c=b"2")
    assert transaction.get(b"b") == b"1"
    assert transaction.get(b"c") is None
    assert list(transaction.get_range(b"", b"\xff")) == [(b"a", b"1"), (b"b", b"1")]
    transaction.commit()  # read-only: it has seen one moment


def test_range_being_merged_is_not_disturbed_by_commits(engine):
    put(engine, a=b"1", c=b"1")
    transaction = begun(engine)
    transaction.put(b"b", b"mine")
    put(engine, a=b"2", d=b"2")
    assert list(transaction.snapshot_range(b"", b"\xff")) == [(b"a", b"1"), (b"b", b"mine"), (b"c", b"1")]


def test_picture_is_taken_at_the_first_read_not_at_begin(engine):
    transaction = engine.begin()
    put(engine, a=b"1")
    assert transaction.get(b"a") == b"1"


def test_transaction_older_than_the_window_is_a_conflict(engine):
    put(engine, a=b"1")
    writer = engine.begin()
    writer.get(b"a")
    writer.put(b"z", b"1")
    reader = begun(engine)
    for _ in range(WINDOW):
        put(engine, other=b"x")
    assert reader.get(b"a") == b"1"  # just inside
    put(engine, other=b"x")
    put(engine, other=b"x")
    with pytest.raises(Conflict, match="too old"):
        writer.commit()
    with pytest.raises(Conflict, match="too old"):
        reader.get(b"a")
    with pytest.raises(Conflict, match="too old"):
        reader.get_range(b"a", b"b")
    assert get(engine, b"z") is None


def test_old_versions_are_forgotten_not_the_newest(engine):
    put(engine, keep=b"1", gone=b"1")
    remove = engine.begin()
    remove.delete(b"gone")
    remove.commit()
    for number in range(3 * WINDOW):
        put(engine, other=b"%d" % number)
    found = list(engine.begin().get_range(b"", b"\xff"))
    assert found == [(b"keep", b"1"), (b"other", b"%d" % (3 * WINDOW - 1))]


# Limits.


def test_limits_are_refused_with_clear_errors(engine):
    transaction = engine.begin()
    with pytest.raises(InvalidArgument, match="a key has 1 to"):
        transaction.put(b"", b"")
    with pytest.raises(InvalidArgument, match="a key has 1 to"):
        transaction.put(b"k" * (KEY_BYTES_MAX + 1), b"")
    with pytest.raises(InvalidArgument, match="a key has 1 to"):
        transaction.delete(b"k" * (KEY_BYTES_MAX + 1))
    with pytest.raises(InvalidArgument, match="belong to the engine"):
        transaction.put(b"\xffx", b"")
    with pytest.raises(InvalidArgument, match="a value has at most"):
        transaction.put(b"k", b"v" * (VALUE_BYTES_MAX + 1))
    for limit in (0, -1, RANGE_LIMIT_MAX + 1):
        with pytest.raises(InvalidArgument, match="limit"):
            transaction.get_range(b"a", b"b", limit=limit)
    transaction.put(b"k" * KEY_BYTES_MAX, b"v" * VALUE_BYTES_MAX)
    transaction.commit()
    assert get(engine, b"k" * KEY_BYTES_MAX) == b"v" * VALUE_BYTES_MAX


def test_transaction_that_writes_too_much_is_refused(engine):
    transaction = engine.begin()
    value = b"v" * (VALUE_BYTES_MAX - 2)
    for number in range(TRANSACTION_BYTES_MAX // VALUE_BYTES_MAX):
        transaction.put(b"%02d" % number, value)
    with pytest.raises(InvalidArgument, match="a transaction writes at most"):
        transaction.put(b"z", b"")


def test_ended_transaction_cannot_be_used(engine):
    transaction = engine.begin()
    transaction.put(b"a", b"1")
    transaction.commit()
    with pytest.raises(AssertionError):
        transaction.commit()
    with pytest.raises(AssertionError):
        transaction.put(b"b", b"1")


# Snapshots.


def test_snapshot_shows_one_moment_however_much_is_written_since(engine):
    put(engine, a1=b"old", a2=b"gone", b1=b"old")
    first, second = engine.snapshot([(b"a", b"b"), (b"b", b"c")])
    assert next(first) == (b"a1", b"old")
    remove = engine.begin()
    remove.delete(b"a2")
    remove.commit()
    for number in range(3 * WINDOW):
        put(engine, a1=b"new", a3=b"new", b1=b"%d" % number)
    assert list(first) == [(b"a2", b"gone")]
    assert list(second) == [(b"b1", b"old")]
    assert [key for key, _ in next(iter(engine.snapshot([(b"a", b"b")])))] == [b"a1", b"a3"]


def test_snapshot_ends_before_its_end(engine):
    put(engine, a=b"1", b=b"2", c=b"3")
    (found,) = engine.snapshot([(b"a", b"c")])
    assert list(found) == [(b"a", b"1"), (b"b", b"2")]
    assert [list(pairs) for pairs in engine.snapshot([(b"x", b"y"), (b"b", b"b")])] == [[], []]


def test_forgotten_commits_make_begun_transactions_too_old_and_no_later_ones(engine):
    put(engine, a=b"1")
    begun_before = begun(engine)
    begun_before.get(b"a")
    put(engine, a=b"2")
    engine.forget_commits()
    begun_before.put(b"b", b"1")
    with pytest.raises(Conflict, match="too old"):
        begun_before.commit()
    later = engine.begin()
    assert later.get(b"a") == b"2"
    later.put(b"b", b"2")
    later.commit()
    assert get(engine, b"b") == b"2"


# What is remembered.


def inner(engine: Engine) -> Engine:
    return engine.inner if isinstance(engine, FaultyEngine) else engine


def test_commits_are_remembered_only_while_a_transaction_is_open_that_they_overtake(engine):
    put(engine, a=b"1")
    assert not inner(engine).window
    reader = begun(engine)
    put(engine, a=b"2")
    put(engine, b=b"1")
    assert inner(engine).window
    assert reader.get(b"a") == b"1"
    reader.cancel()
    put(engine, c=b"1")
    assert not inner(engine).window


def test_transaction_that_is_dropped_without_an_end_is_not_remembered_for(engine):
    put(engine, a=b"1")
    reader = begun(engine)
    put(engine, a=b"2")
    del reader
    put(engine, a=b"3")
    assert not inner(engine).window


def test_commit_of_one_transaction_overtakes_those_that_began_with_it(engine):
    put(engine, a=b"1")
    first, second, third = (begun(engine) for _ in range(3))
    for transaction in (first, second, third):
        assert transaction.get(b"a") == b"1"
        transaction.put(b"a", b"mine")
    first.commit()
    third.cancel()
    put(engine, b=b"1")
    with pytest.raises(Conflict):
        second.commit()


def test_failed_commit_leaves_others_their_picture(engine):
    put(engine, a=b"1")
    reader, loser = begun(engine), begun(engine)
    loser.get(b"a")
    put(engine, a=b"2")
    loser.put(b"b", b"1")
    with pytest.raises(Conflict):
        loser.commit()
    put(engine, a=b"3")
    assert reader.get(b"a") == b"1"


class Forgetful(MemoryEngine):
    """Does not get to remembering what it has written."""

    def skipped(self, transaction: Transaction) -> None:
        raise AssertionError("a mistake, on purpose")


def test_after_a_commit_that_memory_does_not_follow_nothing_is_written():
    engine = Forgetful()
    with pytest.raises(AssertionError):
        put(engine, a=b"1")
    assert isinstance(engine.failure, AssertionError)
    with pytest.raises(Unavailable, match="on purpose"):
        put(engine, a=b"2")
    assert get(engine, b"a") == b"1"
