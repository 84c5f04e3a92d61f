"""What a data set is, and whether it is whole."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ...errors import CorruptData
from .batch import BatchReader
from .blocks import BlockRecords
from .reading import SampleReader
from .records import Integers, Records

BATCH_BYTES: Final = 16 << 20  # read at a time while verifying
BATCH_RECORDS: Final = 4096


@dataclass(frozen=True)
class Damage:
    """A record, or a file as a whole (`record` None), that is not what it should be."""

    file: str
    record: int | None
    reason: str


def info(records: Records) -> dict[str, Any]:
    """What a data set is; its indexes are read, its records are not."""
    if isinstance(records, BlockRecords):
        return _info_of_blocks(records)
    files = []
    lengths = []
    for number, file in enumerate(records.files):
        numbers = np.arange(file.count) + records.first(number)
        sizes = records.locate(numbers).lengths
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
    """A row has no length of its own: that of its block, divided by its rows."""
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
    """Reads every record and compares it with its checksum; what is damaged."""
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
                damages += _verify(reader, records, file.path, batch)
                advance(int(records.locate(batch).lengths.sum()))
    finally:
        reader.close()
    return damages


def _verify_blocks(records: BlockRecords, advance: Callable[[int], None]) -> list[Damage]:
    damages = []
    reader = SampleReader([records])
    ends = np.cumsum(records.block_sizes())
    try:
        for block, rows in enumerate(records.block_sizes().tolist()):
            file, _ = records.file_of(block)
            try:
                if rows and records.names:
                    reader.verify(0, block)
            except CorruptData as error:
                first = int(ends[block]) - rows - records.first(file)
                damages.append(Damage(records.files[file].path, first, error.message))
            advance(records.block_bytes(block))
    finally:
        reader.close()
    return damages


def _batches(records: Records, file: int) -> Iterator[Integers]:
    """Numbers of records that are read together."""
    numbers = np.arange(records.files[file].count) + records.first(file)
    ends = np.cumsum(records.locate(numbers).lengths)
    start = 0
    while start < len(numbers):
        before = int(ends[start - 1]) if start else 0
        end = int(np.searchsorted(ends, before + BATCH_BYTES, side="right"))
        end = min(max(end, start + 1), start + BATCH_RECORDS)
        yield numbers[start:end]
        start = end


def _verify(reader: BatchReader, records: Records, path: str, numbers: Integers) -> list[Damage]:
    """Of a batch; one that has damage is read again record by record."""
    try:
        reader.read(numbers)
    except CorruptData as error:
        if len(numbers) == 1:
            within = int(numbers[0] - records.first(int(records.split(numbers)[0][0])))
            return [Damage(path, within, error.message)]
        return [damage for number in numbers for damage in _verify(reader, records, path, np.array([number]))]
    return []


def as_dict(damage: Damage) -> dict[str, Any]:
    """For JSON."""
    return asdict(damage)


__all__ = ["Damage", "as_dict", "info", "verify"]
