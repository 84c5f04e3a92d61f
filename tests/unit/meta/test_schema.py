from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.errors import CorruptData
from luciola.meta import schema
from luciola.wire.pb.meta_pb2 import Dentry, Inode

IDS = st.integers(0, 2**63 - 1)
NAMES = st.binary(min_size=1, max_size=255)


@given(IDS, IDS)
def test_keys_sort_as_their_numbers(one, other):
    assert (schema.inode_key(one) < schema.inode_key(other)) == (one < other)
    assert (schema.orphan_key(one, 5) < schema.orphan_key(other, 4)) == (one < other)


@given(IDS, NAMES, NAMES)
def test_entry_range_holds_exactly_the_names_after(directory, name, after):
    begin, end = schema.entry_range(directory, after=after)
    assert (begin <= schema.entry_key(directory, name) < end) == (name > after)
    begin, end = schema.entry_range(directory)
    assert begin <= schema.entry_key(directory, name) < end
    assert not begin <= schema.entry_key(directory + 1, name) < end
    assert schema.split_one(schema.entry_key(directory, name)) == (directory, name)


@given(IDS, IDS, IDS)
def test_cookie_range_holds_exactly_the_entries_after(directory, cookie, after):
    begin, end = schema.cookie_range(directory, after=after)
    assert (begin <= schema.cookie_key(directory, cookie) < end) == (cookie > after)
    begin, end = schema.cookie_range(directory, after=0)
    assert not begin <= schema.cookie_key(directory + 1, cookie) < end
    assert schema.split_two(schema.cookie_key(directory, cookie)) == (directory, cookie)


@given(IDS, IDS)
def test_sessions_lie_in_their_inodes_range(inode, session):
    begin, end = schema.session_range(inode)
    assert begin <= schema.session_key(inode, session) < end
    assert schema.split_two(schema.session_key(inode, session)) == (inode, session)


@given(IDS, st.integers(0, 8))
def test_values_come_back(number, kind):
    for cookie in (number, 20):
        entry = schema.encode_entry(schema.Entry(number, kind, cookie), b"name")
        assert schema.decode_entry(entry) == (number, kind, cookie)
        assert schema.unpack_found(entry) == (number, kind)
        shown = Dentry.FromString(entry[schema.ENTRY_BYTES :])
        assert (shown.name, shown.inode, shown.type) == (b"name", number, kind)
        assert (shown.cookie or shown.inode) == cookie
    assert schema.decode_session(schema.encode_session(number, 7)) == (number, 7)
    assert schema.decode_time(schema.encode_time(-number)) == -number
    assert schema.decode_next(schema.encode_next(number)) == number
    assert schema.decode_intent(schema.encode_intent(number, 3)) == (number, 3)
    assert schema.decode_record(schema.encode_record(number, kind, b"reply")) == (number, kind, b"reply")
    assert schema.decode_count(schema.encode_count(kind)) == kind
    assert schema.decode_count(None) == 0


def test_garbage_names_the_content_and_its_layout():
    inode = Inode(id=20, content=30, length=40)
    inode.layout.stripe = 5
    record = schema.decode_garbage(schema.encode_garbage(inode, 60, length=40))
    assert (record.inode, record.content, record.length, record.layout.stripe) == (20, 30, 40, 5)
    assert record.removed_unix_ms == 60


def test_damaged_values_are_named():
    with pytest.raises(CorruptData):
        schema.decode_inode(b"\xff\xff\xff")
    with pytest.raises(CorruptData):
        schema.decode_garbage(b"\xff\xff\xff")


def test_format_page_draws_every_kind_of_key():
    page = (Path(__file__).parents[3] / "docs" / "formats.md").read_text()
    drawn = {
        "I": schema.inode_key(0x0102),
        "D": schema.entry_key(0x0102, b"name"),
        "C": schema.cookie_key(0x0102, 0x0304),
        "T": schema.time_key(0x0102),
        "N": schema.subdirectories_key(0x0102),
        "S": schema.session_key(0x0102, 0x0304),
        "R": schema.record_key(0x0102, 0x0304),
        "O": schema.orphan_key(0x0102, 0x0304),
        "G": schema.garbage_key(0x0102, 0x0304),
        "P": schema.intent_key(0x0102),
        "X": schema.attribute_key(0x0102, b"user.a"),
        "A": schema.allocator_key(b"i"),
    }
    for kind, key in drawn.items():
        assert key.startswith(kind.encode())
        assert f"`{key.hex()}`" in page, f"docs/formats.md should show {kind} as {key.hex()}"
