"""Arrow files (`.arrow`, `.feather`, `.ipc`), read at random by record batches: the IPC file format, which is Feather
version 2, and the IPC stream format, which Hugging Face `datasets` keep.

Both are messages one after the other: a schema, dictionaries, record batches.

    ┌ 0 ─────────┬ 4 ────────┬ 8 ─────────────────────┬ 8+n ─────────────────┐
    │ 0xFFFFFFFF │ n, int32  │ metadata (flatbuffers, │ the body: buffers of │   each beginning at a multiple of 8
    │            │           │ n bytes with padding)  │ the columns          │
    └────────────┴───────────┴────────────────────────┴──────────────────────┘

A file has "ARROW1" before and behind them, and a footer with the places of dictionaries and batches; the messages of a
stream are walked once, when it is opened, without their bodies. The rows of a batch are in its metadata. A batch that
is not compressed is used in place, without a copy. All columns of a batch are read, also those that `columns` leaves
out.

Flatbuffers (Google, "FlatBuffers internals"): a table begins with the distance to its list of fields, which has the
distance of each field from the table. Only the few that are needed are read here; pyarrow verifies the rest.
"""

import io
import os
import struct
import zlib
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import numpy as np

from ...client.location import AnyFileSystem, Location
from ...errors import CorruptData, InvalidArgument
from .blocks import BlockRecords, Layout, Run, require_pyarrow
from .records import Place, RecordFile, opened, place_of, read_exactly
from .writing import NewFile, Writer, as_bytes

MAGIC: Final = b"ARROW1"
FEATHER_1: Final = b"FEA1"
CONTINUATION: Final = 0xFFFFFFFF
END: Final = struct.pack("<II", CONTINUATION, 0)
SCHEMA, DICTIONARY, BATCH = 1, 2, 3  # kinds of messages
HEAD_BYTES: Final = 4096  # read of each message at first: most metadata is shorter
END_BYTES_MAX: Final = 64  # between the last message and the footer: the end of a stream, and padding
METADATA_BYTES_MAX: Final = 256 << 20
PLACE: Final = struct.Struct("<qi4xq")  # of a message in the footer: offset, metadata, body


class _Message(NamedTuple):
    """`rows`: of a record batch."""

    kind: int
    offset: int
    length: int
    rows: int


class _Head(NamedTuple):
    """What decoding a batch needs beside it: the schema, its message, and (offset, message) of each dictionary.

    Those of a file apply to all of its batches; a stream may replace one later.
    """

    schema: Any
    message: bytes
    dictionaries: list[tuple[int, bytes]]
    is_file: bool


class ArrowRecords(BlockRecords):
    """The rows of Arrow files."""

    format = "arrow"
    suffix = ".arrow"
    also = (".feather", ".ipc")
    in_directories = (".arrow", ".feather", ".ipc")
    block_noun = "record batch"

    def __init__(self, place: Place, paths: list[str], **options: Any) -> None:
        self._shared_messages: dict[
            str, list[_Message]
        ] = {}  # schema and dictionaries, found by one process for all
        super().__init__(place, paths, **options)

    def examine(self, path: str) -> RecordFile:
        with opened(self.place.file_system, path) as (file, identity):
            messages = _messages(file, identity.size)
            schema = _schema(_whole(file, messages[0]), path)
        batches = [each for each in messages if each.kind == BATCH]
        self._shared_messages[path] = [each for each in messages if each.kind in {SCHEMA, DICTIONARY}]
        chosen = self._chosen(path, schema)
        runs = [[(each.offset, each.length)] if len(chosen) else [] for each in batches]
        self._layouts[path] = Layout.of([each.rows for each in batches], runs)
        self._schemas[path] = chosen
        places = np.array([each[1:] for each in messages], "<i8")
        return RecordFile(path, sum(each.rows for each in batches), identity, zlib.crc32(places.tobytes()))

    def decode(self, block: int, runs: list[Run]) -> Any:
        import pyarrow as pa

        (run,) = runs
        number, _ = self.file_of(block)
        with self.decoding(block) as path:
            head = self.head(number, lambda: self._head(number))
            if head.dictionaries:
                before = [
                    message for offset, message in head.dictionaries if head.is_file or offset < run.offset
                ]
                stream = b"".join([head.message, *before, run.data.tobytes(), END])
                batch = pa.ipc.open_stream(pa.BufferReader(stream)).read_next_batch()
            else:
                batch = pa.ipc.read_record_batch(pa.py_buffer(run.data), head.schema)
            batch.validate(full=True)  # offsets that lead out of a buffer would end the process
            if batch.num_rows != len(self.rows_of(block)):
                raise CorruptData(
                    f"{self.block_name(block)} has other rows than its metadata says", path=path
                )
            return pa.Table.from_batches([batch]).select(self.names)

    def _head(self, number: int) -> _Head:
        path = self.files[number].path
        schema, *others = self._shared_messages[path]
        with self.open(number) as file:
            first = _whole(file, schema)
            dictionaries = [(each.offset, _whole(file, each)) for each in others]
        return _Head(_schema(first, path), first, dictionaries, is_file=schema.offset > 0)


def _whole(file: Any, message: _Message) -> bytes:
    return read_exactly(file, message.offset, message.length)


def _schema(message: bytes, path: str) -> Any:
    import pyarrow as pa

    try:
        return pa.ipc.read_schema(pa.py_buffer(message))
    except (pa.ArrowException, OSError, ValueError) as error:
        raise CorruptData(f"the schema cannot be read: {error}", path=path) from error


def _messages(file: Any, size: int) -> list[_Message]:
    """List the messages of a file or a stream, the schema first. Raises: CorruptData for a damaged or other file."""
    path = str(file.name)
    try:
        start = read_exactly(file, 0, min(8, size))
        if start[:6] == MAGIC:
            schema = _read(file, size, 8)
            found = [schema, *_of_footer(file, size, schema.offset + schema.length)]
        elif start[:4] == END[:4]:
            found = list(_of_stream(file, size))
        else:
            raise CorruptData(_unknown(start), path=path)
    except struct.error as error:
        raise CorruptData(f"the metadata of Arrow is damaged: {error}", path=path) from error
    if not found or found[0].kind != SCHEMA:
        raise CorruptData("the file does not begin with a schema", path=path)
    return found


def _unknown(start: bytes) -> str:
    if start[:4] == FEATHER_1:
        return (
            "Feather version 1, which is read as a whole only: write it again with pyarrow.feather, version 2"
        )
    return "not an Arrow file: it begins neither with ARROW1 nor with a message of a stream (of Arrow 0.15 or later)"


def _of_stream(file: Any, size: int) -> Iterator[_Message]:
    at = 0
    while at < size:
        message = _read(file, size, at)
        if message.length == len(END):
            return
        yield message
        at += message.length


def _of_footer(file: Any, size: int, end: int) -> Iterator[_Message]:
    path = str(file.name)
    tail = read_exactly(file, max(0, size - 10), min(10, size))
    if size < 18 or tail[-6:] != MAGIC:
        raise CorruptData(
            "the file was cut off: it does not end with ARROW1 (its writer may have been stopped before the footer)",
            path=path,
        )
    (length,) = struct.unpack("<i", tail[:4])
    if not 0 < length <= min(size - 18, METADATA_BYTES_MAX):
        raise CorruptData(f"a footer of {length} bytes does not fit into {size} bytes of the file", path=path)
    footer = read_exactly(file, size - 10 - length, length)
    for field in (2, 3):  # dictionaries, record batches
        for offset, metadata, body in _places(footer, field):
            message = _read(file, size - 10 - length, offset)
            if message.length != metadata + body or message.kind != (DICTIONARY, BATCH)[field - 2]:
                raise CorruptData(f"the footer and the message at byte {offset} differ", path=path)
            end = max(end, offset + message.length)
            yield message
    if end + END_BYTES_MAX < size - 10 - length:
        raise CorruptData(f"the footer names no message behind byte {end}: it is damaged", path=path)


def _read(file: Any, size: int, at: int) -> _Message:
    """Read the message at a place. `size`: where the last message must end."""
    path = str(file.name)
    if not 0 <= at <= size - 8:
        raise CorruptData(f"the file was cut off: a message begins at byte {at} of {size}", path=path)
    head = read_exactly(file, at, min(HEAD_BYTES, size - at))
    mark, length = struct.unpack_from("<Ii", head)
    if mark != CONTINUATION:
        raise CorruptData(
            f"no message at byte {at}: the file is damaged, or older than Arrow 0.15", path=path
        )
    if length == 0:
        return _Message(0, at, 8, 0)
    if not 0 < length <= min(size - at - 8, METADATA_BYTES_MAX):
        raise CorruptData(
            f"the message at byte {at} is cut off or damaged: {length} bytes of metadata", path=path
        )
    metadata = head[8 : 8 + length] if len(head) >= 8 + length else read_exactly(file, at + 8, length)
    table = _root(metadata)
    (kind,) = _value(metadata, table, 1, "<B")
    (body,) = _value(metadata, table, 3, "<q")
    if body < 0 or at + 8 + length + body > size:
        raise CorruptData(
            f"the file was cut off: the message at byte {at} ends at {at + 8 + length + body}, the file at {size}",
            path=path,
        )
    rows = 0
    if kind == BATCH:
        (rows,) = _value(metadata, _inner(metadata, table, 2), 0, "<q")
        if rows < 0:
            raise CorruptData(f"the record batch at byte {at} has {rows} rows", path=path)
    return _Message(kind, at, 8 + length + body, rows)


# ---- flatbuffers


def _root(data: bytes) -> int:
    return int(struct.unpack_from("<I", data)[0])


def _field(data: bytes, table: int, number: int) -> int:
    """Find a field of a table; 0 for one that has its default."""
    fields = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, fields)[0] if fields >= 0 else 0
    if size < 4:
        raise struct.error(f"no list of fields at byte {fields}")
    if 4 + 2 * number >= size:
        return 0
    distance = struct.unpack_from("<H", data, fields + 4 + 2 * number)[0]
    return table + int(distance) if distance else 0


def _value(data: bytes, table: int, number: int, kind: str) -> tuple[int]:
    at = _field(data, table, number)
    found: tuple[int] = struct.unpack_from(kind, data, at) if at else (0,)
    return found


def _inner(data: bytes, table: int, number: int) -> int:
    """Find the table or vector that a field refers to."""
    at = _field(data, table, number)
    if not at:
        raise struct.error(f"field {number} is missing")
    return at + int(struct.unpack_from("<I", data, at)[0])


def _places(data: bytes, number: int) -> Iterator[tuple[int, int, int]]:
    """List (offset, bytes of metadata, bytes of body) of the messages in a footer."""
    table = _root(data)
    if not _field(data, table, number):
        return
    at = _inner(data, table, number)
    (count,) = struct.unpack_from("<I", data, at)
    if count * PLACE.size > len(data):
        raise struct.error(f"{count} messages")
    for each in range(count):
        yield PLACE.unpack_from(data, at + 4 + each * PLACE.size)


class ArrowWriter(Writer):
    """Writes one Arrow file, which takes its name when it is complete and durable.

    with ArrowWriter("lu:/data/000.arrow") as writer:
        writer.write(pyarrow.table({"text": ["one", "two"]}))   # a record batch: what is read for one row of it
    """

    def __init__(
        self, location: str | os.PathLike[str] | Location, *, file_system: AnyFileSystem | None = None
    ) -> None:
        require_pyarrow(ArrowRecords.format)
        place, (self.path,) = place_of(location, file_system=file_system)
        if not self.path.endswith(ArrowRecords.in_directories):
            raise InvalidArgument("names of Arrow files end in .arrow", path=self.path)
        self.written = self.bytes_written = 0
        self._file = NewFile(place.file_system, self.path)
        self._writer: Any = None

    def write(self, table: Any) -> None:
        """Add the rows of a table, or record batch, of pyarrow as one batch. Raises: ValueError for other columns."""
        import pyarrow as pa

        self._require_open()
        if isinstance(table, pa.RecordBatch):
            table = pa.Table.from_batches([table])
        if self._writer is None:
            self._writer = pa.ipc.new_file(pa.PythonFile(_Sink(self._file), mode="w"), table.schema)
        self._writer.write_table(table.combine_chunks())
        self.written += table.num_rows
        self.bytes_written += table.nbytes

    def _complete(self) -> None:
        """Write the footer. Raises: ValueError if nothing was written: the columns are not known."""
        if self._writer is None:
            error = ValueError(f"{self.path}: nothing was written, so there are no columns")
            self._abandon(error)
            raise error
        self._writer.close()
        self._file.complete()


class _Sink(io.RawIOBase):
    """A new file, with the methods that pyarrow calls."""

    def __init__(self, file: NewFile) -> None:
        self._file, self._at = file, 0

    def writable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def write(self, data: Any, /) -> int:
        view = as_bytes(data)
        self._file.put(view)
        self._at += view.nbytes
        return view.nbytes


__all__ = ["ArrowRecords", "ArrowWriter"]
