"""The window of recent commits against a list that never forgets."""

from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.kv.conflicts import ConflictWindow, KeyRange, WriteSet

keys = st.lists(st.sampled_from(b"ab"), min_size=1, max_size=2).map(bytes)
ranges = st.tuples(keys, keys).map(lambda pair: KeyRange(min(pair), max(pair) + b"\x00"))
writes = st.tuples(st.frozensets(keys, max_size=3), st.lists(ranges, max_size=2))


@settings(deadline=None)
@given(
    commits=st.lists(writes, max_size=12),
    size=st.integers(1, 6),
    read_version=st.integers(0, 12),
    read_keys=st.frozensets(keys, max_size=3),
    read_ranges=st.lists(ranges, max_size=2),
)
def test_window_answers_as_the_whole_history_would(commits, size, read_version, read_keys, read_ranges):
    window = ConflictWindow(version=0, commits_max=size)
    for version, (written, cleared) in enumerate(commits, start=1):
        window.record(WriteSet(version, written, cleared))
    assert window.is_too_old(read_version) == (read_version < len(commits) - size)
    if window.is_too_old(read_version):
        return
    expected = any(
        written & read_keys
        or any(held.holds(key) for held in read_ranges for key in written)
        or any(gone.holds(key) for gone in cleared for key in read_keys)
        or any(gone.meets(held) for gone in cleared for held in read_ranges)
        for written, cleared in commits[read_version:]
    )
    assert window.conflicts(read_version, read_keys, read_ranges) == bool(expected)


def test_memory_is_bounded():
    window = ConflictWindow(version=0, commits_max=10)
    for version in range(1, 1001):
        window.record(WriteSet(version, (b"%d" % version,), (KeyRange(b"a", b"b"),)))
    assert len(window._commits) == len(window._written_at) == len(window._ranges) == 10
    assert window.floor == 990
