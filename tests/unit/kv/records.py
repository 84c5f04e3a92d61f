"""Records of an ordered log, for tests of what carries them out."""

from luciola.kv.log import START, Position, Record
from luciola.kv.record import Operation, encode_record


def record(*operations: Operation, after: Position = START, epoch: int = 1) -> Record:
    """One record that follows `after`."""
    return Record.create(encode_record(operations), after=after, epoch=epoch)


def puts(after: Position = START, *, epoch: int = 1, **pairs: bytes) -> Record:
    """A record of one operation that sets some keys."""
    return record(Operation({key.encode(): value for key, value in pairs.items()}), after=after, epoch=epoch)


def chain(count: int, *, after: Position = START, epoch: int = 1, tag: bytes = b"") -> list[Record]:
    """Records one behind another; the n-th sets the key `key` to n and a key of its own."""
    records = []
    for _ in range(count):
        index = after.index + 1
        made = puts(after, epoch=epoch, **{"key": b"%d" % index, f"own{index:04d}": tag})
        records.append(made)
        after = made.position
    return records
