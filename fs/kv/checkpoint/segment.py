"""Records of a log in a file: what a log may forget, and a state of before is made of.

    records   of each the length as u32 little-endian, then its bytes as the log stores them
    end       a JSON object in one line, the SHA-256 of that line, the length of both lines as u32, `MAGIC`

    S1  a file that has its name is complete and durable
    S2  every record matches its digest and follows the one before, or reading it ends with CorruptData

Moments are of the wall clock, in milliseconds since 1970: the author of the records wrote them into a key of the store.
"""

import hashlib
import json
import os
import struct
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import BufferedReader, BufferedWriter
from pathlib import Path
from typing import Final, cast

from ...errors import CorruptData
from ..log import RECORD_BYTES_MAX, Position, Record
from ..record import decode_record
from ..rocksdb import read_values
from .catalog import PART, in_thread, sync_directory

SUFFIX: Final = ".segment"
FORMAT: Final = 1
MAGIC: Final = b"LSEG"
HEADER_BYTES_MAX: Final = 256  # of a record, before its payload
END_BYTES_MAX: Final = 4096
_LENGTH: Final = struct.Struct("<I")
_TAIL: Final = struct.Struct("<I4s")
_MOMENT: Final = struct.Struct("<Q")


@dataclass(frozen=True, slots=True)
class MomentKey:
    """The key under which the store has the moment up to which it has come."""

    key: bytes

    def of_record(self, payload: bytes) -> int | None:
        """Return the moment that a record stores, if it stores one. Raises: CorruptData."""
        if self.key not in payload:
            return None
        found = None
        for operation in decode_record(payload):
            value = operation.writes.get(self.key)
            found = found if value is None else _decode_moment(value)
        return found

    def of_store(self, directory: Path) -> int:
        """Return the moment of a store that no process has open; 0 if it has none. Raises: CorruptData."""
        (value,) = read_values(directory, (self.key,))
        return 0 if value is None else _decode_moment(value)


@dataclass(frozen=True, slots=True)
class Segment:
    """A file with the records after `after` up to `last`; `unix_ms`: the moment of its end."""

    path: Path
    log_id: bytes
    after: Position
    last: Position
    unix_ms: int

    def records(self) -> Iterator[Record]:
        """Yield the records, each checked (S2). Raises: CorruptData."""
        position = self.after
        try:
            with self.path.open("rb") as file:
                while position.index < self.last.index:
                    record = _read_record(file)
                    if record.after != position:
                        raise CorruptData(f"record {record.index} does not follow record {position.index}")
                    position = record.position
                    yield record
        except (OSError, struct.error) as error:
            if isinstance(error, CorruptData):
                raise CorruptData(error.message, path=str(self.path)) from error
            raise CorruptData(f"cannot be read: {error}", path=str(self.path)) from error
        if position != self.last:
            raise CorruptData(f"ends with another record {position.index}", path=str(self.path))


def read_segment(path: Path) -> Segment:
    """Return what the end of a file says. Raises: CorruptData."""
    try:
        return _from_fields(path, _read_end(path))
    except (OSError, KeyError, TypeError, ValueError, OverflowError, RecursionError, struct.error) as error:
        raise CorruptData(f"not a whole file of records: {error}", path=str(path)) from error


async def write_segment(  # noqa: PLR0913, what its end says
    directory: Path,
    records: AsyncIterator[Record],
    *,
    log_id: bytes,
    after: Position,
    unix_ms: int,
    moment: MomentKey,
) -> Segment | None:
    """Write `records`, which follow `after`, where the moment was `unix_ms`; None if there are none.

    Raises: NoSpace; Unavailable; what `records` raises. Nothing is left then.
    """
    part = directory / f"new{SUFFIX}{PART}"
    last = after
    try:
        with await in_thread(lambda _check: part.open("wb")) as file:
            async for record in records:
                assert record.after == last, "S2: each follows the one before"
                found = moment.of_record(record.payload)
                unix_ms = unix_ms if found is None else found
                encoded = record.encode()
                await in_thread(partial(_append, file, encoded))
                last = record.position
            if last == after:
                return None
            await in_thread(lambda _check: _end(file, log_id, after, last, unix_ms))
        path = directory / f"{after.index + 1:020d}-{last.index:020d}{SUFFIX}"
        part.rename(path)
        await in_thread(lambda _check: sync_directory(directory))
        return Segment(path, log_id, after, last, unix_ms)
    finally:
        with suppress(FileNotFoundError):
            part.unlink()


def _read_end(path: Path) -> Mapping[str, object]:
    """Raises: OSError, ValueError, struct.error."""
    with path.open("rb") as file:
        file.seek(-_TAIL.size, os.SEEK_END)
        length, magic = _TAIL.unpack(file.read(_TAIL.size))
        if magic != MAGIC or length > END_BYTES_MAX:
            raise ValueError("it has no end")
        file.seek(-_TAIL.size - length, os.SEEK_END)
        lines = file.read(length).split(b"\n")
    if len(lines) != 3 or hashlib.sha256(lines[0]).hexdigest().encode() != lines[1]:
        raise ValueError("its end does not match its checksum")
    return cast("Mapping[str, object]", json.loads(lines[0]))


def _from_fields(path: Path, fields: Mapping[str, object]) -> Segment:
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, and this release reads format {FORMAT}")
    return Segment(
        path,
        bytes.fromhex(str(fields["log"])),
        Position.decode(bytes.fromhex(str(fields["after"]))),
        Position.decode(bytes.fromhex(str(fields["last"]))),
        int(cast("int", fields["unix_ms"])),
    )


def _append(file: BufferedWriter, encoded: bytes, _check: Callable[[], None]) -> None:
    file.write(_LENGTH.pack(len(encoded)))
    file.write(encoded)


def _end(file: BufferedWriter, log_id: bytes, after: Position, last: Position, unix_ms: int) -> None:
    line = json.dumps(
        {
            "format": FORMAT,
            "log": log_id.hex(),
            "after": after.encode().hex(),
            "last": last.encode().hex(),
            "unix_ms": unix_ms,
        }
    ).encode()
    end = line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"
    file.write(end + _TAIL.pack(len(end), MAGIC))
    file.flush()
    os.fsync(file.fileno())


def _read_record(file: BufferedReader) -> Record:
    (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
    if length > RECORD_BYTES_MAX + HEADER_BYTES_MAX:
        raise CorruptData(f"a record of {length} bytes")
    return Record.decode(file.read(length))


def _decode_moment(value: bytes) -> int:
    if len(value) != _MOMENT.size:
        raise CorruptData(f"a moment has {_MOMENT.size} bytes, not {len(value)}")
    (unix_ms,) = _MOMENT.unpack(value)
    return int(unix_ms)


__all__ = ["SUFFIX", "MomentKey", "Segment", "read_segment", "write_segment"]
