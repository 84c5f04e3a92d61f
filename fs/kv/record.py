"""Many operations' writes as one record: what a group commit stores, and what replicas of a store exchange.

An operation is one transaction's writes, or a part of them (`Transaction.end_operation`), which has the others of its
transaction in the same record. A record holds operations in the order in which they were committed, and is applied
whole or not at all: `replay` puts all of them into one transaction. The bytes are drawn in docs/formats.md. A record
does not contain its own position; its log does.

    R1  replaying a record gives the store that committing its operations one by one gives
    R2  a record of which any byte is changed, missing or too much is refused
    R3  a record has at most `RECORD_BYTES_MAX` bytes and `OPERATIONS_MAX` operations
"""

from collections.abc import Mapping, Sequence
from struct import Struct
from typing import Final, NamedTuple
from zlib import crc32

from ..errors import CorruptData, InvalidArgument
from ..units import MIB
from .conflicts import KeyRange
from .engine import KEY_BYTES_MAX, VALUE_BYTES_MAX, Transaction

RECORD_BYTES_MAX: Final = 1 * MIB  # etcd refuses requests beyond 1.5 MiB
OPERATIONS_MAX: Final = 4096  # about 50 ms to carry out, as `TRANSACTION_BYTES_MAX`
FORMAT: Final = 1

_HEAD: Final = Struct("<IBI")  # CRC-32 of all that follows it, format, operations
_CHECKSUM: Final = Struct("<I")
_OPERATION: Final = Struct("<II")  # cleared ranges, writes
_RANGE: Final = Struct("<HH")  # bytes of begin and end
_WRITE: Final = Struct("<HI")  # bytes of key and value
_REMOVED: Final = 0xFFFF_FFFF  # in place of the length of a value: the key is removed
HEAD_BYTES: Final = _HEAD.size
assert KEY_BYTES_MAX < 1 << 16, "the length of a key fits its field"
assert VALUE_BYTES_MAX < _REMOVED, "no length of a value means a removal"
assert HEAD_BYTES + _OPERATION.size + _WRITE.size + KEY_BYTES_MAX + VALUE_BYTES_MAX <= RECORD_BYTES_MAX, (
    "any one pair fits a record"
)


class Operation(NamedTuple):
    """The writes of one transaction, or a part of them: `cleared` first, then the last write of a key; None removes."""

    writes: Mapping[bytes, bytes | None]
    cleared: Sequence[KeyRange] = ()


def encode_operation(operation: Operation) -> bytes:
    """Return the part of a record that holds the operation. Raises: InvalidArgument if no record has room for it."""
    parts = [_OPERATION.pack(len(operation.cleared), len(operation.writes))]
    for begin, end in operation.cleared:
        parts += (_RANGE.pack(len(begin), len(end)), begin, end)
    for key, value in operation.writes.items():
        if value is None:
            parts += (_WRITE.pack(len(key), _REMOVED), key)
        else:
            parts += (_WRITE.pack(len(key), len(value)), key, value)
    encoded = b"".join(parts)
    if HEAD_BYTES + len(encoded) > RECORD_BYTES_MAX:
        raise InvalidArgument(f"a transaction has at most {RECORD_BYTES_MAX} bytes here, not {len(encoded)}")
    return encoded


def seal_record(operations: Sequence[bytes]) -> bytes:
    """Return the record of these encoded operations, in their order; the caller has added up lengths."""
    assert 0 < len(operations) <= OPERATIONS_MAX, "R3: the number of operations is bounded"
    body = b"".join((_HEAD.pack(0, FORMAT, len(operations))[_CHECKSUM.size :], *operations))
    assert _CHECKSUM.size + len(body) <= RECORD_BYTES_MAX, "R3: the size of a record is bounded"
    return _CHECKSUM.pack(crc32(body)) + body


def encode_record(operations: Sequence[Operation]) -> bytes:
    """Return the record of these operations. Raises: InvalidArgument if one has no room in any record."""
    return seal_record([encode_operation(operation) for operation in operations])


def decode_record(record: bytes) -> Sequence[Operation]:
    """Return the operations of a record, in their order. Raises: CorruptData (R2)."""
    if not HEAD_BYTES <= len(record) <= RECORD_BYTES_MAX:
        raise CorruptData(f"a record of operations has {len(record)} bytes")
    checksum, found, count = _HEAD.unpack_from(record)
    if crc32(memoryview(record)[_CHECKSUM.size :]) != checksum:
        raise CorruptData("a record of operations does not match its checksum")
    if found != FORMAT:
        raise CorruptData(
            f"a record of operations has format {found}, and this release reads format {FORMAT}"
        )
    if not 0 < count <= OPERATIONS_MAX:
        raise CorruptData(f"a record has {count} operations")
    operations = []
    place = HEAD_BYTES
    try:
        for _ in range(count):
            operation, place = _decode_operation(record, place)
            operations.append(operation)
    except ValueError as error:
        raise CorruptData("a record of operations ends too early") from error
    if place != len(record):
        raise CorruptData("a record of operations has bytes after its last one")
    return operations


def replay(operations: Sequence[Operation], transaction: Transaction) -> None:
    """Put the operations, in their order, into one transaction (R1). What it has written before stays below."""
    for operation in operations:
        for begin, end in operation.cleared:
            transaction.delete_range(begin, end)
        for key, value in operation.writes.items():
            if value is None:
                transaction.delete(key)
            else:
                transaction.put(key, value)


def _decode_operation(record: bytes, place: int) -> tuple[Operation, int]:
    """Return one operation and where it ends. Raises: ValueError if the record ends before."""
    ranges, writes = _unpack(_OPERATION, record, place)
    place += _OPERATION.size
    cleared = []
    for _ in range(ranges):
        begin_bytes, end_bytes = _unpack(_RANGE, record, place)
        place += _RANGE.size
        begin, end = _cut(record, place, begin_bytes), _cut(record, place + begin_bytes, end_bytes)
        place += begin_bytes + end_bytes
        cleared.append(KeyRange(begin, end))
    written: dict[bytes, bytes | None] = {}
    for _ in range(writes):
        key_bytes, value_bytes = _unpack(_WRITE, record, place)
        place += _WRITE.size
        key = _cut(record, place, key_bytes)
        place += key_bytes
        if value_bytes == _REMOVED:
            written[key] = None
        else:
            written[key] = _cut(record, place, value_bytes)
            place += value_bytes
    return Operation(written, cleared), place


def _unpack(layout: Struct, record: bytes, place: int) -> tuple[int, int]:
    if place + layout.size > len(record):
        raise ValueError(place)
    first, second = layout.unpack_from(record, place)
    return first, second


def _cut(record: bytes, place: int, length: int) -> bytes:
    if place + length > len(record):
        raise ValueError(place)
    return record[place : place + length]


__all__ = [
    "HEAD_BYTES",
    "OPERATIONS_MAX",
    "RECORD_BYTES_MAX",
    "Operation",
    "decode_record",
    "encode_operation",
    "encode_record",
    "replay",
    "seal_record",
]
