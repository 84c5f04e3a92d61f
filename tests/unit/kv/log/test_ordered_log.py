"""The stored forms of records and positions."""

import struct
from pathlib import Path

import pytest

from luciola.errors import CorruptData
from luciola.kv.log import START, Position, Record


def test_record_is_decoded_as_it_was_encoded():
    first = Record.create(b"one", after=START, epoch=7)
    second = Record.create(b"", after=first.position, epoch=2**40)
    for record in (first, second):
        assert Record.decode(record.encode()) == record
        assert Position.decode(record.position.encode()) == record.position


def test_record_with_a_changed_byte_is_refused():
    value = Record.create(b"one", after=START, epoch=7).encode()
    for offset in range(len(value)):
        changed = bytearray(value)
        changed[offset] ^= 1
        with pytest.raises(CorruptData):
            Record.decode(bytes(changed))


@pytest.mark.parametrize("length", [0, 1, 47])
def test_record_shorter_than_its_header_is_refused(length):
    with pytest.raises(CorruptData):
        Record.decode(Record.create(b"", after=START, epoch=7).encode()[:length])


def test_position_of_another_length_is_refused():
    with pytest.raises(CorruptData):
        Position.decode(START.encode() + b"x")


def test_digest_depends_on_all_that_was_before():
    one = Record.create(b"1", after=START, epoch=1)
    assert one.position != Record.create(b"1", after=START, epoch=2).position
    assert one.position != Record.create(b"2", after=START, epoch=1).position
    other = Record.create(b"x", after=START, epoch=1)
    two = Record.create(b"2", after=one.position, epoch=1)
    assert two.position != Record.create(b"2", after=other.position, epoch=1).position


def test_page_shows_the_stored_forms():
    page = (Path(__file__).parents[4] / "docs" / "formats.md").read_text()
    record = Record.create(b"x", after=START, epoch=7)
    assert f"`{record.encode().hex()}`" in page
    assert f"`{record.position.encode().hex()}`" in page
    fields = (record.index, record.epoch, record.after.digest, record.position.digest, record.payload)
    assert struct.unpack("<QQ16s16s1s", record.encode()) == fields
