"""What a data set is, and whether it is whole."""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import numpy as np

from ...errors import CorruptData
from .batch import BatchReader
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
        "record_bytes": {
            "least": int(sizes.min()) if some else 0,
            "median": int(np.median(sizes)) if some else 0,
            "most": int(sizes.max()) if some else 0,
        },
        "files": files,
    }


def verify(records: Records, advance: Callable[[int], None] = lambda _count: None) -> list[Damage]:
    """Reads every record and compares it with its checksum; what is damaged."""
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
