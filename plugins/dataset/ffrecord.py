"""FFRecord files (`.ffr`), byte for byte as HFAiLab/ffrecord writes and reads them.

    ┌ 0 ────────┬ 4 ───────┬ 12 ──────────────┬ 12+4N ────────────┬ 12+12N ─────────────────────┐
    │ CRC32     │ N        │ CRC32 of each    │ offset of each    │ the records, back to back,  │
    │ of 4…12N  │ int64    │ record, N × u32  │ record, N × int64 │ to the end of the file      │
    └───────────┴──────────┴──────────────────┴───────────────────┴─────────────────────────────┘

Little endian. CRC32 is zlib's. Offsets count from the start of the file, the first is 12+12N. A first checksum of 0 is
an old file's: its header cannot be checked, which is a warning. A header of zeros is that of a file whose writer was
stopped: their writer fills it in at the end. Ours gives a file its name when it is complete.

    with FFRecordWriter("lu:/data/part.ffr", count=1000) as writer:
        for record in records:
            writer.write(record)
"""

import dataclasses
import os
import struct
import tempfile
import warnings
import zlib
from typing import TYPE_CHECKING, Final

import numpy as np

from ...client.location import AnyFileSystem, Location
from ...errors import CorruptData, InvalidArgument
from .records import Index, Integers, RecordFile, Records, opened, place_of, read_exactly, reopened
from .writing import WRITE_BYTES, NewFile, Writer, as_bytes

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

HEAD: Final = struct.Struct("<Iq")
RECORD_BYTES: Final = 12  # of the header, for each record
FIRST_BYTES: Final = 16 << 10  # read when a file is opened: a page, which storage reads as a whole
COUNT_MAX: Final = 1 << 40  # 12 TiB of header
SPOOL_BYTES: Final = (
    64 << 20
)  # of records whose number is not known yet, in memory; more go to a temporary file


class FFRecords(Records):
    """The records of FFRecord files. Each sample is an array of bytes."""

    format = "ffrecord"
    suffix = ".ffr"

    def examine(self, path: str) -> RecordFile:
        with opened(self.place.file_system, path) as (file, identity):
            if identity.size < HEAD.size:
                raise CorruptData(
                    f"not an FFRecord file: {identity.size} bytes are less than its header", path=path
                )
            first = read_exactly(file, 0, min(FIRST_BYTES, identity.size))
        checksum, count = HEAD.unpack_from(first)
        if checksum == 0 and count == 0:
            raise CorruptData(
                "the file has no header: its writer was stopped before it was complete, or it is not an FFRecord file",
                path=path,
            )
        if not 0 <= count <= (identity.size - HEAD.size) // RECORD_BYTES:
            raise CorruptData(
                f"not an FFRecord file, or a damaged one: a header of {count} records does not fit into "
                f"{identity.size} bytes",
                path=path,
            )
        found = RecordFile(path, count, identity, checksum)
        header_bytes = HEAD.size + RECORD_BYTES * count
        if len(first) < header_bytes:
            return found
        try:
            return dataclasses.replace(found, index=_index_of(found, first[:header_bytes]))
        except CorruptData:
            if count == 0:
                raise  # no record of it is read
            return found  # raised again when a record is read: `verify` names every damaged file

    def read_index(self, file: RecordFile) -> Index:
        with reopened(self.place.file_system, file.path, file.identity) as handle:
            header = read_exactly(handle, 0, HEAD.size + RECORD_BYTES * file.count)
        return _index_of(file, header)


def _index_of(file: RecordFile, header: bytes) -> Index:
    """Return the places that a whole header has. Raises: CorruptData."""
    checksum, count = HEAD.unpack_from(header)
    if checksum == 0:
        warnings.warn(f"{file.path}: an old FFRecord file without a checksum of its header", stacklevel=2)
    elif count != file.count or zlib.crc32(memoryview(header)[4:]) != checksum:
        raise CorruptData("the header does not match its checksum", path=file.path)
    offsets = np.frombuffer(header, "<i8", count, HEAD.size + 4 * count)
    _check_offsets(offsets, file)
    return Index(
        np.append(offsets, file.identity.size).astype(np.int64),
        None,
        np.frombuffer(header, "<u4", count, HEAD.size).astype(np.uint32),
    )


def _check_offsets(offsets: Integers, file: RecordFile) -> None:
    start = HEAD.size + RECORD_BYTES * file.count
    if not len(offsets):
        if file.identity.size > start:
            raise CorruptData(
                f"the header has no records, but {file.identity.size - start} bytes follow it", path=file.path
            )
        return
    if int(offsets[0]) != start:
        raise CorruptData(
            f"record 0 begins at byte {int(offsets[0])}, not behind the header at {start}", path=file.path
        )
    ends = np.append(offsets[1:], file.identity.size)
    wrong = np.flatnonzero(ends < offsets)
    if wrong.size:
        first = int(wrong[0])
        reason = "ends before it begins" if first + 1 < len(offsets) else "begins behind the end of the file"
        raise CorruptData(
            f"record {first} {reason} (bytes {int(offsets[first])} to {int(ends[first])}): the file was cut off or "
            "is damaged",
            path=file.path,
        )


class FFRecordWriter(Writer):
    """Writes one FFRecord file, which takes its name when it is complete and durable.

    `count`: how many records will come. Without it they are kept aside until the number is known. Leaving a `with`
    block by an error leaves no file, and an old one of that name as it was.
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Location,
        count: int | None = None,
        *,
        file_system: AnyFileSystem | None = None,
    ) -> None:
        place, (self.path,) = place_of(location, file_system=file_system)
        if not self.path.endswith(FFRecords.suffix):
            raise InvalidArgument(
                "names of FFRecord files end in .ffr: their readers insist on it", path=self.path
            )
        if count is not None and not 0 <= count <= COUNT_MAX:
            raise InvalidArgument(f"a file has 0 to {COUNT_MAX} records, not {count}", path=self.path)
        self.count = count
        self.bytes_written = 0
        self._file_system = place.file_system
        self._checksums: list[int] = []
        self._lengths: list[int] = []
        self._begun: NewFile | None = None if count is None else self._begin(count)
        self._spool = None if count is not None else tempfile.SpooledTemporaryFile(SPOOL_BYTES)  # noqa: SIM115

    @property
    def written(self) -> int:
        """Records so far."""
        return len(self._lengths)

    def write(self, record: "ReadableBuffer") -> None:
        """Add one record. Raises: ValueError for more than `count`, or after `close`."""
        self._require_open()
        if self.count is not None and self.written >= self.count:
            raise ValueError(f"{self.path}: more records than the {self.count} that were announced")
        data = as_bytes(record)
        if self._begun is not None:
            self._begun.put(data)
        else:
            assert self._spool is not None, "the number of records is not known"
            self._spool.write(data)
        self._checksums.append(zlib.crc32(data))
        self._lengths.append(data.nbytes)
        self.bytes_written += data.nbytes

    def _complete(self) -> None:
        """Write what is left. Raises: ValueError if records are missing; the file does not appear then."""
        if self.count is not None and self.written != self.count:
            error = ValueError(
                f"{self.path}: {self.written} records were written, {self.count} were announced"
            )
            self._abandon(error)
            raise error
        if self._spool is not None:
            with self._spool as spool:
                self._begun = self._begin(self.written)
                spool.seek(0)
                while data := spool.read(WRITE_BYTES):
                    self._begun.put(data)
        assert self._begun is not None, "it was begun, or is now"
        self._begun.complete(header(self._checksums, self._lengths))

    def _abandon(self, error: BaseException) -> None:
        if self._spool is not None:
            self._spool.close()
        if self._begun is not None:
            self._begun.abandon(error)

    def _begin(self, count: int) -> NewFile:
        return NewFile(self._file_system, self.path, start=HEAD.size + RECORD_BYTES * count)


def header(checksums: list[int], lengths: list[int]) -> bytes:
    """Encode the first bytes of a file with these records."""
    count = len(lengths)
    first = HEAD.size + RECORD_BYTES * count
    starts = first + np.concatenate(([0], np.cumsum(lengths[:-1], dtype=np.int64)))[:count]
    rest = struct.pack("<q", count) + np.array(checksums, "<u4").tobytes() + starts.astype("<i8").tobytes()
    return struct.pack("<I", zlib.crc32(rest)) + rest


__all__ = ["FFRecordWriter", "FFRecords", "header"]
