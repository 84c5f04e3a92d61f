"""Tar shards with names as WebDataset has them, read at random.

`images/0001.jpg` and `images/0001.cls` are the parts "jpg" and "cls" of the sample "images/0001": the key is the path
up to the first point of the file's name, and the parts of a sample follow one another. A sample is
`{"__key__": "images/0001", "jpg": bytes, "cls": bytes}`, its bytes as arrays or tensors, read at once.

A tar has no table of contents, so an index is made by reading it once, with a checksum of each sample, and is kept
beside it as `NAME.tar.luidx` (in memory if the directory cannot be written). It takes its name complete, and is made
again when the tar is no longer the file that it describes: by size, date, first header and end.

    ┌ 0 ──────────┬ 8 ──────┬ 12 ────────┬ 20 ─────────┬ 28 ────────┬ 32 ───────┬ 36 ─────┬ 44 ─────┬ 52 ────────┐
    │ "LUTARIX1"  │ CRC32   │ tar: size  │ mtime_ns    │ CRC32 of   │ CRC32 of  │ samples │ members │ bytes of   │
    │             │ of 12…  │ u64        │ int64       │ its head   │ its end   │ N, u64  │ M, u64  │ names, u64 │
    ├ 60 ─────────┴─────────┼────────────┴─────────────┼────────────┴───────────┼─────────┴─────────┼────────────┤
    │ first member of each  │ offset of each member,   │ size of each member,   │ end of each name, │ CRC32 of   │
    │ sample, and M: N+1    │ M × int64                │ M × int64              │ M × int64         │ samples,   │
    │ × int64               │                          │                        │                   │ N × u32    │
    └───────────────────────┴──────────────────────────┴────────────────────────┴───────────────────┴────────────┘
    and then the names, in UTF-8, back to back. Little endian. A sample's checksum is of the bytes from its first
    member's to the end of its last one's, headers between them included.
"""

import contextlib
import errno
import itertools
import os
import re
import struct
import tarfile
import time
import zlib
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from ...client.location import AnyFileSystem, Location, replacing
from ...errors import CorruptData, InvalidArgument
from .records import (
    Bytes,
    Checksums,
    Identity,
    Index,
    Integers,
    Place,
    RecordFile,
    Records,
    opened,
    place_of,
    read_exactly,
    reopened,
)
from .writing import NewFile, Writer, as_bytes

MAGIC: Final = b"LUTARIX1"
HEAD: Final = struct.Struct("<8sIQqIIQQQ")
SUFFIX: Final = ".luidx"
BLOCK: Final = 512
READ_BYTES: Final = 4 << 20
NAME_BYTES_MAX: Final = 1 << 20  # of one extended header: its name, its attributes
NAME: Final = re.compile(r"((?:.*/)?[^./]+)\.([^/]*)", re.DOTALL)
SKIPPED: Final = re.compile(r"__[^/]*__(?:/.*)?", re.DOTALL)  # what WebDataset writes about a shard
TURN_S: Final = 60.0  # a holder updates the time of its file ten times as often
POLL_S: Final = 0.2
READ_ONLY: Final = (
    errno.EROFS,
    errno.ENOSPC,
    errno.EDQUOT,
)  # without room for an index the tar is read all the same

Progress = Callable[[int], None]
"""Called with the count of bytes that have been read."""


def key_and_part(name: str) -> tuple[str, str] | None:
    """Split "images/0001.seg.PNG" into ("images/0001", "seg.png"); None for names that are no part of a sample."""
    found = NAME.fullmatch(name)
    if found is None or SKIPPED.fullmatch(name):
        return None
    return found[1], found[2].lower()


class Table(NamedTuple):
    """The contents of an index."""

    firsts: Integers
    offsets: Integers
    sizes: Integers
    names: list[str]
    checksums: Checksums

    def to_index(self) -> Index:
        """Convert to places of samples: from the first member to the end of the last."""
        lasts = self.firsts[1:] - 1
        starts = self.offsets[self.firsts[:-1]]
        return Index(starts, self.offsets[lasts] + self.sizes[lasts] - starts, self.checksums)


class ScannedRecords(Records):
    """Records whose places are found by reading a file once, and stored beside it. `progress` is called meanwhile."""

    def __init__(self, place: Place, paths: list[str], *, progress: Progress | None = None) -> None:
        self._progress = progress
        self._unsaved: dict[str, Table] = {}  # of files whose directories cannot be written
        super().__init__(place, paths)
        self._progress = None

    @abstractmethod
    def scan(self, file: Any, size: int, progress: Progress | None) -> Table:
        """Make the index of a file, by reading all of it."""

    def marks(self, file: Any, size: int) -> tuple[int, int]:
        """Compute checksums of the first bytes and of the last."""
        return _marks(file, size)

    def examine(self, path: str) -> RecordFile:
        with opened(self.place.file_system, path) as (file, identity):
            marks = self.marks(file, identity.size)
            table = self._saved(path, identity, marks)
            if table is None:
                with self._turn(path) as progress:
                    table = self._saved(path, identity, marks)  # another process may have made it meanwhile
                    if table is None:
                        table = self.scan(file, identity.size, progress)
                        self._save(path, table, identity, marks)
        return RecordFile(path, len(table.firsts) - 1, identity, zlib.crc32(table.checksums.tobytes()))

    @contextlib.contextmanager
    def _turn(self, path: str) -> Iterator[Progress | None]:
        """Let one process of a job make the index of a tar, while the others wait.

        The turn is a hidden file. It ends with its holder, or when the file has not been updated for TURN_S.
        """
        file_system = self.place.file_system
        name = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}{SUFFIX}.turn")
        while True:
            try:
                file_system.open(name, "xb").close()
                break
            except FileExistsError:
                with contextlib.suppress(FileNotFoundError):
                    if time.time() - file_system.stat(name).st_mtime > TURN_S:
                        file_system.unlink(name)
                time.sleep(POLL_S)
            except OSError as error:
                if not isinstance(error, PermissionError) and error.errno not in READ_ONLY:
                    raise
                yield self._progress  # each process makes its own, in memory
                return
        report = self._progress
        updated = time.monotonic()

        def progress(count: int) -> None:
            nonlocal updated
            if report is not None:
                report(count)
            if time.monotonic() - updated > TURN_S / 10:
                updated = time.monotonic()
                with contextlib.suppress(FileNotFoundError):
                    file_system.utime(name)

        try:
            yield progress
        finally:
            with contextlib.suppress(FileNotFoundError):
                file_system.unlink(name)

    def read_index(self, file: RecordFile) -> Index:
        return self.read_table(file).to_index()

    def read_table(self, file: RecordFile) -> Table:
        """Read the index of a file; make it again where none is beside the file."""
        table = self._unsaved.get(file.path)
        if table is None:
            identity = file.identity
            with reopened(self.place.file_system, file.path, identity) as handle:
                marks = self.marks(handle, identity.size)
                table = self._saved(file.path, identity, marks) or self.scan(handle, identity.size, None)
        return table

    def _saved(self, path: str, identity: Identity, marks: tuple[int, int]) -> Table | None:
        file_system = self.place.file_system
        try:
            data = file_system.read(path + SUFFIX)
        except (FileNotFoundError, PermissionError):
            return None
        return unpack(data, identity, marks)

    def _save(self, path: str, table: Table, identity: Identity, marks: tuple[int, int]) -> None:
        try:
            with replacing(self.place.file_system, path + SUFFIX) as file:
                file.write(pack(table, identity, marks))
        except PermissionError:
            self._unsaved[path] = table
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            self._unsaved[path] = table


class TarRecords(ScannedRecords):
    """The samples of tar shards. `progress` is called while an index is made."""

    format = "tar"
    suffix = ".tar"
    is_plain = False

    def __init__(self, place: Place, paths: list[str], *, progress: Progress | None = None) -> None:
        self._tables: dict[str, Table] = {}  # names and places of members
        super().__init__(place, paths, progress=progress)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_tables": {}}

    def read_table(self, file: RecordFile) -> Table:
        table = self._tables[file.path] = super().read_table(file)
        return table

    def _table(self, file: int) -> Table:
        known = self.files[file]
        return self._tables.get(known.path) or self.read_table(known)

    def marks(self, file: Any, size: int) -> tuple[int, int]:
        if size < BLOCK:
            raise CorruptData(f"not a tar: {size} bytes", path=str(file.name))
        return super().marks(file, size)

    def scan(self, file: Any, size: int, progress: Progress | None) -> Table:
        return scan(file, size, progress)

    def samples(self, numbers: Integers, arrays: list[Bytes]) -> list[Any]:
        files, within = self.split(numbers)
        return [
            self._sample(int(file), int(number), array)
            for file, number, array in zip(files, within, arrays, strict=True)
        ]

    def _sample(self, file: int, number: int, array: Bytes) -> dict[str, Any]:
        table = self._table(file)
        first, last = int(table.firsts[number]), int(table.firsts[number + 1])
        start = int(table.offsets[first])
        sample: dict[str, Any] = {}
        for member in range(first, last):
            named = key_and_part(table.names[member])
            if named is None:
                raise CorruptData(
                    f"the index {SUFFIX} beside it names {table.names[member]!r}: remove the index to make it again",
                    path=self.files[file].path,
                )
            begin = int(table.offsets[member]) - start
            sample.setdefault("__key__", named[0])
            sample[named[1]] = array[begin : begin + int(table.sizes[member])]
        return sample

    def name(self, number: int) -> str:
        files, within = self.split(np.array([number]))
        table = self._table(int(files[0]))
        member = table.names[int(table.firsts[int(within[0])])]
        return f"sample {int(within[0])} ({member!r} and what follows)"


def _marks(file: Any, size: int) -> tuple[int, int]:
    """Compute checksums of the first header and of the end."""
    head = zlib.crc32(read_exactly(file, 0, min(BLOCK, size)))
    start = max(0, size - 2 * BLOCK)
    return head, zlib.crc32(read_exactly(file, start, size - start))


def pack(table: Table, identity: Identity, marks: tuple[int, int]) -> bytes:
    """Encode an index."""
    names = [name.encode("utf-8", "surrogateescape") for name in table.names]
    ends = np.cumsum([len(name) for name in names], dtype=np.int64)
    arrays = (table.firsts, table.offsets, table.sizes, ends)
    rest: bytes = b"".join(array.astype("<i8").tobytes() for array in arrays)
    rest += table.checksums.astype("<u4").tobytes() + b"".join(names)
    counts = (len(table.firsts) - 1, len(names), sum(len(name) for name in names))
    head = HEAD.pack(MAGIC, 0, *identity, *marks, *counts)[12:]
    return MAGIC + struct.pack("<I", zlib.crc32(head + rest)) + head + rest


def unpack(data: bytes, identity: Identity, marks: tuple[int, int]) -> Table | None:
    """Decode an index; None if it is of another state of the tar, or damaged: then it is made again."""
    if len(data) < HEAD.size:
        return None
    magic, checksum, size, mtime_ns, head, end, samples, members, name_bytes = HEAD.unpack_from(data)
    if magic != MAGIC or zlib.crc32(memoryview(data)[12:]) != checksum:
        return None
    if (size, mtime_ns) != identity or (head, end) != marks:
        return None
    if len(data) != HEAD.size + 8 * (samples + 1 + 3 * members) + 4 * samples + name_bytes:
        return None
    numbers = np.frombuffer(data, "<i8", samples + 1 + 3 * members, HEAD.size).astype(np.int64)
    firsts, offsets, sizes, ends = np.split(numbers, np.cumsum([samples + 1, members, members]))
    at = HEAD.size + numbers.nbytes
    checksums = np.frombuffer(data, "<u4", samples, at).astype(np.uint32)
    text = data[at + 4 * samples :]
    if not _is_whole(firsts, offsets, sizes, ends, size, name_bytes):
        return None
    starts = [0, *ends.tolist()]
    names = [text[one:two].decode("utf-8", "surrogateescape") for one, two in itertools.pairwise(starts)]
    return Table(firsts, offsets, sizes, names, checksums)


def _is_whole(  # noqa: PLR0913 (the arrays of an index)
    firsts: Integers, offsets: Integers, sizes: Integers, ends: Integers, size: int, name_bytes: int
) -> bool:
    """Return whether all places of an index are within the tar and itself: it may have been forged."""
    return bool(
        len(firsts) > 0
        and firsts[0] == 0
        and firsts[-1] == len(offsets)
        and (np.diff(firsts) > 0).all()
        and (sizes >= 0).all()
        and (offsets >= 0).all()
        and (offsets <= size - sizes).all()
        and (offsets[1:] >= offsets[:-1] + sizes[:-1]).all()
        and (np.diff(ends, prepend=0) >= 0).all()
        and (not len(ends) or ends[-1] == name_bytes)
    )


# ---- reading a tar once


class Stream:
    """The bytes of a file in order, with a running checksum."""

    def __init__(self, file: Any, size: int, progress: Progress | None) -> None:
        self._file, self.size, self._progress = file, size, progress
        self.path = str(file.name)
        self.position = 0
        self.checksum = 0
        self._block = memoryview(b"")

    def pieces(self, length: int) -> Iterator[memoryview]:
        """Read the next bytes. Raises: CorruptData if there are not so many."""
        if self.position + length > self.size:
            raise CorruptData(
                f"the tar was cut off: it ends at byte {self.size}, within what begins at {self.position}",
                path=self.path,
            )
        while length:
            if not self._block:
                want = min(READ_BYTES, self.size - self.position)
                self._block = memoryview(read_exactly(self._file, self.position, want))
                if self._progress is not None:
                    self._progress(want)
            piece, self._block = self._block[:length], self._block[length:]
            self.position += len(piece)
            length -= len(piece)
            self.checksum = zlib.crc32(piece, self.checksum)
            yield piece

    def read(self, length: int) -> bytes:
        return b"".join(self.pieces(length))

    def skip(self, length: int) -> None:
        for _ in self.pieces(length):
            pass


@dataclass
class _Samples:
    """Samples while they are found."""

    path: str
    firsts: list[int] = field(default_factory=list)
    offsets: list[int] = field(default_factory=list)
    sizes: list[int] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    checksums: list[int] = field(default_factory=list)
    key: str | None = None
    parts: set[str] = field(default_factory=set)

    def begins(self, key: str, part: str) -> bool:
        """Return whether the member is the first of a sample."""
        if key != self.key:
            self.key, self.parts = key, {part}
            return True
        if part in self.parts:
            raise CorruptData(f"the sample {key!r} has two parts named {part!r}", path=self.path)
        self.parts.add(part)
        return False

    def table(self) -> Table:
        numbers = [
            np.array(each, np.int64) for each in ([*self.firsts, len(self.names)], self.offsets, self.sizes)
        ]
        return Table(numbers[0], numbers[1], numbers[2], self.names, np.array(self.checksums, np.uint32))


def scan(file: Any, size: int, progress: Progress | None) -> Table:
    """Make the index of a tar, by reading all of it. Raises: CorruptData for other, cut off or damaged files."""
    stream = Stream(file, size, progress)
    found = _Samples(stream.path)
    for name, length in _members(stream):
        named = key_and_part(name)
        if named is None:
            stream.skip(length)
        else:
            if found.begins(*named):
                found.firsts.append(len(found.names))
                found.checksums.append(0)
                stream.checksum = 0
            found.offsets.append(stream.position)
            found.sizes.append(length)
            found.names.append(name)
            stream.skip(length)
            found.checksums[-1] = stream.checksum
        stream.skip(-length % BLOCK)
    return found.table()


def _members(stream: Stream) -> Iterator[tuple[str, int]]:
    """List (name, bytes) of each file. The caller reads its bytes, rounded up to blocks, before the next."""
    common: dict[str, str] = {}
    extended: dict[str, str] = {}
    while True:
        at = stream.position
        block = stream.read(BLOCK)
        if block.count(0) == BLOCK:
            _require_end(stream)
            return
        try:
            info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
        except tarfile.TarError as error:
            kind = "not a tar" if at == 0 else "the tar is damaged"
            hint = " (compressed tars cannot be read at random: decompress it)" if at == 0 else ""
            raise CorruptData(f"{kind}: {error} at byte {at}{hint}", path=stream.path) from error
        if info.type in {tarfile.XHDTYPE, tarfile.XGLTYPE, b"X"}:
            into = common if info.type == tarfile.XGLTYPE else extended
            into.update(_pax(_extension(stream, info, at), stream.path, at))
        elif info.type == tarfile.GNUTYPE_LONGNAME:
            extended["path"] = _extension(stream, info, at).rstrip(b"\0").decode("utf-8", "surrogateescape")
        elif info.type == tarfile.GNUTYPE_LONGLINK:
            _extension(stream, info, at)
        else:
            known = {**common, **extended}
            extended = {}
            if info.issparse() or any(name.startswith("GNU.sparse") for name in known):
                raise CorruptData(f"{info.name!r} is a sparse file, which samples are not", path=stream.path)
            length = _length(known.get("size"), info.size, stream.path, at)
            if info.isreg():
                yield known.get("path", info.name), length
            elif info.type not in tarfile.SUPPORTED_TYPES:
                stream.skip(-(-length // BLOCK) * BLOCK)


def _length(extended: str | None, plain: int, path: str, at: int) -> int:
    length = plain if extended is None else int(extended) if extended.isdecimal() else -1
    if length < 0:
        raise CorruptData(f"the tar is damaged: a size that is no size at byte {at}", path=path)
    return length


def _extension(stream: Stream, info: tarfile.TarInfo, at: int) -> bytes:
    if not 0 <= info.size <= NAME_BYTES_MAX:
        raise CorruptData(
            f"the tar is damaged: an extended header of {info.size} bytes at {at}", path=stream.path
        )
    data = stream.read(info.size)
    stream.skip(-info.size % BLOCK)
    return data


def _pax(data: bytes, path: str, at: int) -> dict[str, str]:
    """Parse records "LENGTH KEY=VALUE\\n"."""
    result = {}
    while data.strip(b"\0"):
        digits, space, _ = data.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        record = data[len(digits) + 1 : length]
        name, equals, value = record.partition(b"=")
        if not (space and equals and record.endswith(b"\n")) or length > len(data):
            raise CorruptData(f"the tar is damaged: an extended header at byte {at}", path=path)
        result[name.decode("utf-8", "replace")] = value[:-1].decode("utf-8", "surrogateescape")
        data = data[length:]
    return result


def _require_end(stream: Stream) -> None:
    """Require that only zeros follow the first block of zeros. Raises: CorruptData."""
    while stream.position < stream.size:
        for piece in stream.pieces(min(READ_BYTES, stream.size - stream.position)):
            if bytes(piece).count(0) != len(piece):
                raise CorruptData(
                    "bytes follow the end of the tar: it is damaged, or several tars joined: keep them apart",
                    path=stream.path,
                )


class TarWriter(Writer):
    """Writes one tar shard, which takes its name when it is complete and durable.

    with TarWriter("lu:/data/train-000.tar") as writer:
        writer.write({"__key__": "0001", "jpg": data, "cls": b"7"})
    """

    def __init__(
        self, location: str | os.PathLike[str] | Location, *, file_system: AnyFileSystem | None = None
    ) -> None:
        place, (self.path,) = place_of(location, file_system=file_system)
        if not self.path.endswith(TarRecords.suffix):
            raise InvalidArgument("names of tar shards end in .tar", path=self.path)
        self.written = self.bytes_written = 0
        self._file = NewFile(place.file_system, self.path)

    def write(self, sample: Mapping[str, Any]) -> None:
        """Add a sample: its "__key__", and the bytes of its parts by their endings. Raises: ValueError."""
        self._require_open()
        key = sample.get("__key__")
        parts = {part: as_bytes(data) for part, data in sample.items() if part != "__key__"}
        if not isinstance(key, str) or not parts:
            raise ValueError('a sample has a text as "__key__" and at least one part')
        for part in parts:
            if key_and_part(f"{key}.{part}") != (key, part):
                raise ValueError(
                    f"{key!r} and {part!r} do not name a part of a sample: keys have no point behind the last slash, "
                    "parts are in lower case and have no slash"
                )
        for part, data in parts.items():
            self._member(f"{key}.{part}", data)
        self.written += 1

    def _member(self, name: str, data: memoryview) -> None:
        info = tarfile.TarInfo(name)
        info.size = data.nbytes
        info.mode = 0o444
        self._file.put(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self._file.put(data)
        self._file.put(bytes(-data.nbytes % BLOCK))
        self.bytes_written += data.nbytes

    def _complete(self) -> None:
        self._file.put(bytes(2 * BLOCK))
        self._file.complete()


__all__ = ["SUFFIX", "TarRecords", "TarWriter", "key_and_part"]
