import re
from pathlib import Path
from zlib import crc32

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.errors import CorruptData, InvalidArgument
from luciola.kv import MemoryEngine
from luciola.kv.conflicts import KeyRange
from luciola.kv.engine import KEY_BYTES_MAX, VALUE_BYTES_MAX
from luciola.kv.record import (
    HEAD_BYTES,
    OPERATIONS_MAX,
    RECORD_BYTES_MAX,
    Operation,
    decode_record,
    encode_operation,
    encode_record,
    replay,
    seal_record,
)

PAGE = Path(__file__).parents[3] / "docs" / "formats.md"
KEYS = st.sampled_from([bytes((letter,)) * length for letter in b"abc" for length in (1, 2)])
VALUES = st.none() | st.binary(max_size=8)
RANGES = st.tuples(KEYS, KEYS).filter(lambda pair: pair[0] < pair[1]).map(lambda pair: KeyRange(*pair))
OPERATIONS = st.builds(
    Operation, st.dictionaries(KEYS, VALUES, max_size=4), st.lists(RANGES, max_size=2)
).filter(lambda operation: bool(operation.writes or operation.cleared))
RECORDS = st.lists(OPERATIONS, min_size=1, max_size=6)
EXAMPLE = [Operation({b"k": b"value", b"gone": None}), Operation({}, [KeyRange(b"a", b"b")])]


def pairs(engine: MemoryEngine) -> object:
    return engine.begin().get_range(b"", b"\xff")


def commit(engine: MemoryEngine, operations: list[Operation]) -> None:
    transaction = engine.begin()
    replay(operations, transaction)
    transaction.commit()


@given(RECORDS)
def test_record_gives_back_its_operations_in_their_order(operations):
    found = decode_record(encode_record(operations))
    assert [(dict(one.writes), list(one.cleared)) for one in found] == [
        (dict(one.writes), list(one.cleared)) for one in operations
    ]


@given(RECORDS, st.dictionaries(KEYS, st.binary(max_size=2)))
def test_replayed_record_equals_its_operations_one_by_one(operations, before):
    whole, single = MemoryEngine(), MemoryEngine()
    for engine in (whole, single):
        commit(engine, [Operation({b"first": b"", **before})])
    commit(whole, list(decode_record(encode_record(operations))))
    for operation in operations:
        commit(single, [operation])
    assert pairs(whole) == pairs(single)


def test_every_changed_bit_is_found():
    record = encode_record(EXAMPLE)
    for bit in range(8 * len(record)):
        damaged = bytearray(record)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptData):
            decode_record(bytes(damaged))


def test_record_that_is_cut_or_has_more_is_refused():
    record = encode_record(EXAMPLE)
    for length in range(len(record)):
        with pytest.raises(CorruptData):
            decode_record(record[:length])
    with pytest.raises(CorruptData):
        decode_record(record + b"\x00")


@given(st.binary(max_size=200))
def test_any_bytes_with_a_right_checksum_are_decoded_or_refused(body):
    try:
        operations = decode_record(crc32(body).to_bytes(4, "little") + body)
    except CorruptData:
        return
    assert operations


@pytest.mark.parametrize("cut", range(1, len(encode_record(EXAMPLE)) - HEAD_BYTES))
def test_record_that_ends_too_early_under_its_checksum_is_refused(cut):
    body = encode_record(EXAMPLE)[4:-cut]
    with pytest.raises(CorruptData, match="ends too early"):
        decode_record(crc32(body).to_bytes(4, "little") + body)


def test_record_with_more_under_its_checksum_is_refused():
    body = encode_record(EXAMPLE)[4:] + b"\x00"
    with pytest.raises(CorruptData, match="bytes after"):
        decode_record(crc32(body).to_bytes(4, "little") + body)


def test_record_of_another_format_is_refused():
    body = b"\x02" + encode_record(EXAMPLE)[5:]
    with pytest.raises(CorruptData, match="format 2"):
        decode_record(crc32(body).to_bytes(4, "little") + body)


def test_largest_pair_has_room_and_more_is_refused():
    largest = Operation({b"k" * KEY_BYTES_MAX: b"v" * VALUE_BYTES_MAX})
    assert decode_record(encode_record([largest])) == [(largest.writes, [])]
    many = Operation({b"%d" % number: b"v" * VALUE_BYTES_MAX for number in range(4)})
    with pytest.raises(InvalidArgument, match=str(RECORD_BYTES_MAX)):
        encode_operation(many)


def test_most_operations_have_room_and_more_is_a_mistake_of_the_caller():
    one = encode_operation(Operation({b"k": b""}))
    assert len(decode_record(seal_record([one] * OPERATIONS_MAX))) == OPERATIONS_MAX
    with pytest.raises(AssertionError, match="R3"):
        seal_record([one] * (OPERATIONS_MAX + 1))


def test_record_has_the_bytes_that_the_page_shows():
    section = PAGE.read_text().split("## A record of operations")[1].split("\n## ")[0]
    shown = re.search(r"`((?:[0-9a-f]+ )+[0-9a-f]+)`", section)
    assert shown is not None, "the page shows one record, part by part"
    assert encode_record(EXAMPLE).hex() == shown[1].replace(" ", "")
