"""Parquet files (`.parquet`), read at random by row groups.

The footer has the places of the chunks of each column. Those of the wanted columns that are near one another are one
run of bytes, and runs are read by the ring; pyarrow decodes them from memory. Only the wanted columns are read.

Columns are chosen by their numbers in the file, not by pyarrow's dotted paths: a column may have a point in its name.
"""

import bisect
import io
import struct
import zlib
from typing import Any, Final

from ...errors import CorruptData, InvalidArgument
from .blocks import BlockRecords, Layout, Run
from .records import RecordFile, opened, read_exactly

MAGIC: Final = b"PAR1"
ENCRYPTED: Final = b"PARE"
TAIL_BYTES: Final = 64 << 10  # read first: most footers are shorter
GAP_BYTES: Final = 64 << 10  # between chunks of two columns, read over rather than read twice
FOOTER_BYTES_MAX: Final = 1 << 30


class ParquetRecords(BlockRecords):
    """The rows of Parquet files."""

    format = "parquet"
    suffix = ".parquet"
    block_noun = "row group"

    def examine(self, path: str) -> RecordFile:
        with opened(self.place.file_system, path) as (file, identity):
            footer = _footer(file, identity.size)
        metadata = _parsed(footer, path)
        schema = _arrow_schema(metadata, path)
        chosen = self._chosen(path, schema)
        leaves = _leaves(schema, chosen.names, metadata.num_columns, path)
        end = identity.size - len(footer) - 8
        groups = [metadata.row_group(number) for number in range(metadata.num_row_groups)]
        rows = [group.num_rows for group in groups]
        if min(rows, default=0) < 0 or sum(rows) != metadata.num_rows:
            raise CorruptData("the footer's row groups do not have the rows that it says", path=path)
        runs = [_runs(group, number, leaves, end, path) for number, group in enumerate(groups)]
        self._layouts[path] = Layout.of(rows, runs)
        self._schemas[path] = chosen
        return RecordFile(path, metadata.num_rows, identity, zlib.crc32(footer))

    def decode(self, block: int, runs: list[Run]) -> Any:
        import pyarrow as pa
        import pyarrow.parquet as pq

        number, group = self.file_of(block)
        with self.decoding(block) as path:
            metadata, leaves = self.head(number, lambda: self._metadata(number))
            source = pa.PythonFile(_Sparse(self, number, runs), mode="r")
            file = pq.ParquetFile(source, metadata=metadata, page_checksum_verification=True)
            table = file.reader.read_row_group(group, column_indices=leaves, use_threads=False)
            if table.num_rows != len(self.rows_of(block)):
                raise CorruptData(f"{self.block_name(block)} has other rows than the footer says", path=path)
            return table.select(self.names)

    def _metadata(self, number: int) -> tuple[Any, list[int]]:
        path = self.files[number].path
        with self.open(number) as file:
            footer = _footer(file, self.files[number].identity.size)
        if zlib.crc32(footer) != self.files[number].checksum:
            raise CorruptData("the footer was changed after the data set was opened", path=path)
        metadata = _parsed(footer, path)
        schema = _arrow_schema(metadata, path)
        return metadata, _leaves(schema, self.names, metadata.num_columns, path)


def _footer(file: Any, size: int) -> bytes:
    """Read the footer. Raises: CorruptData for a file that is not Parquet or was cut off."""
    path = str(file.name)
    if size < 12:
        raise CorruptData(f"not a Parquet file: {size} bytes are less than its marks", path=path)
    tail = read_exactly(file, max(0, size - TAIL_BYTES), min(size, TAIL_BYTES))
    if tail[-4:] == ENCRYPTED:
        raise InvalidArgument("the footer is encrypted, which is not read here", path=path)
    if tail[-4:] != MAGIC:
        raise CorruptData(
            "not a Parquet file, or one that was cut off: it does not end with PAR1 (its writer may have been stopped "
            "before the footer)",
            path=path,
        )
    (length,) = struct.unpack("<I", tail[-8:-4])
    if not 0 < length <= min(size - 12, FOOTER_BYTES_MAX):
        raise CorruptData(f"a footer of {length} bytes does not fit into {size} bytes of the file", path=path)
    if length + 8 > len(tail):
        return read_exactly(file, size - 8 - length, length)
    return tail[-8 - length : -8]


def _parsed(footer: bytes, path: str) -> Any:
    import pyarrow as pa
    import pyarrow.parquet as pq

    whole = MAGIC + footer + struct.pack("<I", len(footer)) + MAGIC
    try:
        return pq.read_metadata(pa.BufferReader(whole))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptData(f"the footer cannot be read: {error}", path=path) from error


def _arrow_schema(metadata: Any, path: str) -> Any:
    import pyarrow as pa

    try:
        return metadata.schema.to_arrow_schema()
    except pa.ArrowNotImplementedError as error:
        raise InvalidArgument(f"columns of a type that pyarrow does not read: {error}", path=path) from error
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptData(f"the schema in the footer cannot be read: {error}", path=path) from error


def _leaves(schema: Any, names: list[str], count: int, path: str) -> list[int]:
    """List the numbers of the stored columns that make up the fields of these names."""
    spans: dict[str, range] = {}
    start = 0
    for field in schema:
        end = start + _leaf_count(field.type)
        spans[field.name] = range(start, end)
        start = end
    if start != count:
        raise CorruptData(f"the footer has {count} columns, its schema {start}", path=path)
    return sorted(leaf for name in names for leaf in spans[name])


def _leaf_count(kind: Any) -> int:
    """Count the columns that Parquet stores for a type."""
    from pyarrow import types

    if hasattr(kind, "storage_type"):
        return _leaf_count(kind.storage_type)
    if types.is_map(kind):
        return _leaf_count(kind.key_type) + _leaf_count(kind.item_type)
    if types.is_struct(kind):
        return sum(_leaf_count(kind.field(number).type) for number in range(kind.num_fields))
    return 1 if types.is_dictionary(kind) or not hasattr(kind, "value_type") else _leaf_count(kind.value_type)


def _runs(group: Any, number: int, leaves: list[int], end: int, path: str) -> list[tuple[int, int]]:
    """List (offset, bytes) of the wanted chunks of a row group; those that are near are one."""
    runs: list[tuple[int, int]] = []
    if not group.num_rows:
        return runs
    for start, length in sorted(_chunk(group.column(leaf)) for leaf in leaves):
        if start < len(MAGIC) or length < 0 or start + length > end:
            raise CorruptData(
                f"row group {number} has a column at bytes {start} to {start + length}, but data end at {end}: the "
                "file was cut off or is damaged",
                path=path,
            )
        if runs and start <= runs[-1][0] + runs[-1][1] + GAP_BYTES:
            first = runs[-1][0]
            runs[-1] = (first, max(runs[-1][1], start + length - first))
        else:
            runs.append((start, length))
    return runs


def _chunk(column: Any) -> tuple[int, int]:
    if column.file_path:
        raise InvalidArgument(f"a column is stored in another file, {column.file_path!r}, which is not read")
    start, dictionary = column.data_page_offset, column.dictionary_page_offset
    return (min(start, dictionary) if dictionary else start), column.total_compressed_size


class _Sparse(io.RawIOBase):
    """A file of which some runs are in memory, for pyarrow. Other bytes are read from the file."""

    def __init__(self, records: ParquetRecords, number: int, runs: list[Run]) -> None:
        self._records, self._number = records, number
        self._runs = sorted(runs, key=lambda run: run.offset)
        self._starts = [run.offset for run in self._runs]
        self._size = records.files[number].identity.size
        self._at = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def read(self, size: int = -1, /) -> Any:
        end = self._size if size < 0 else min(self._size, self._at + size)
        start, self._at = self._at, max(self._at, end)
        place = bisect.bisect_right(self._starts, start) - 1
        if place >= 0:
            run = self._runs[place]
            if end <= run.offset + run.data.nbytes:
                return run.data.data[start - run.offset : end - run.offset]
        with self._records.open(
            self._number
        ) as file:  # old writers' chunks are longer than their metadata says
            return read_exactly(file, start, max(0, end - start))


__all__ = ["ParquetRecords"]
