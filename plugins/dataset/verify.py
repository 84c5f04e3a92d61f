"""Information about a data set, and its verification against checksums."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ...errors import CorruptData
from .blocks import BlockRecords
from .reader import BatchReader
from .records import Integers, Records
from .sample_reader import SampleReader

BATCH_BYTES: Final = 16 << 20  # read at a time while verifying
BATCH_RECORDS: Final = 4096


@dataclass(frozen=True)
class Damage:
    """A record, or a whole file (`record` None), that does not match its checksum or cannot be read."""

    file: str
    record: int | None
    reason: str


def info(records: Records) -> dict[str, Any]:
    """Describe a data set. Reads its indexes, not its records."""
    if isinstance(records, BlockRecords):
        return _info_of_blocks(records)
    files = []
    lengths = []
    for number, file in enumerate(records.files):
        sizes = records.locate(records.numbers_in(number)).lengths
        lengths.append(sizes)
        files.append({"path": file.path, "records": file.count, "bytes": file.identity.size})
    sizes = np.concatenate(lengths)
    some = len(sizes) > 0
    return {
        "format": records.format,
        "records": len(records),
        "bytes": int(sizes.sum()),
        "dtype": records.dtype.name,
        "checksums": bool(some and records.locate(np.zeros(1, np.int64)).checksums is not None),
        "record_bytes": _spread(sizes),
        "files": files,
    }


def _info_of_blocks(records: BlockRecords) -> dict[str, Any]:
    """Describe rows, whose lengths are those of their blocks, divided by the rows in them."""
    rows = records.block_sizes()
    bytes_ = np.array([records.block_bytes(block) for block in range(len(rows))], np.int64)
    sizes = np.repeat(bytes_ // np.maximum(rows, 1), rows)
    files = [
        {"path": file.path, "records": file.count, "bytes": file.identity.size} for file in records.files
    ]
    return {
        "format": records.format,
        "records": len(records),
        "bytes": int(bytes_.sum()),
        "dtype": "rows",
        "checksums": False,
        "blocks": len(rows),
        "columns": {field.name: str(field.type) for field in records.schema},
        "record_bytes": _spread(sizes),
        "files": files,
    }


def _spread(sizes: Integers) -> dict[str, int]:
    if not len(sizes):
        return {"least": 0, "median": 0, "most": 0}
    return {"least": int(sizes.min()), "median": int(np.median(sizes)), "most": int(sizes.max())}


def verify(records: Records, advance: Callable[[int], None] = lambda _count: None) -> list[Damage]:
    """Read every record and compare it with its checksum; return what is damaged."""
    if isinstance(records, BlockRecords):
        return _verify_blocks(records, advance)
    damages = []
    reader = BatchReader([records])
    try:
        for number, file in enumerate(records.files):
            try:
                batches = list(_batches(records, number))
            except CorruptData as error:
                damages.append(Damage(file.path, None, error.message))
                continue
            for batch in batches:
                damages += _verify(reader, records, batch)
                advance(int(records.locate(batch).lengths.sum()))
    finally:
        reader.close()
    return damages


def _verify_blocks(records: BlockRecords, advance: Callable[[int], None]) -> list[Damage]:
    damages = []
    reader = SampleReader([records])
    try:
        for block in range(len(records.block_sizes())):
            rows = records.rows_of(block)
            try:
                if rows and records.names:
                    reader.verify(0, block)
            except CorruptData as error:
                file, first = records.in_file(rows.start)
                damages.append(Damage(file.path, first, error.message))
            advance(records.block_bytes(block))
    finally:
        reader.close()
    return damages


def _batches(records: Records, file: int) -> Iterator[Integers]:
    """List the numbers of records of a file that are read together."""
    numbers = records.numbers_in(file)
    ends = np.cumsum(records.locate(numbers).lengths)
    start = 0
    while start < len(numbers):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + BATCH_BYTES, side="right"))
        end = min(max(end, start + 1), start + BATCH_RECORDS)
        yield numbers[start:end]
        start = end


def _verify(reader: BatchReader, records: Records, numbers: Integers) -> list[Damage]:
    """Verify a batch; a damaged one is read again record by record."""
    try:
        reader.read(numbers)
    except CorruptData as error:
        if len(numbers) == 1:
            file, within = records.in_file(int(numbers[0]))
            return [Damage(file.path, within, error.message)]
        return [damage for number in numbers for damage in _verify(reader, records, np.array([number]))]
    return []


__all__ = ["Damage", "info", "verify"]
