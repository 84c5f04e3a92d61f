"""Token files as Megatron-LM has them: `NAME.bin`, tokens back to back, and `NAME.idx`, the places of its sequences.

    ┌ 0 ─────────────┬ 9 ───────┬ 17 ──────┬ 18 ──────┬ 26 ──────┬ 34 ───────────┬───────────────┬───────────────┐
    │ "MMIDIDX\\0\\0"  │ version  │ type     │ N        │ D        │ lengths       │ byte offsets  │ documents     │
    │                │ 1, u64   │ u8       │ u64      │ u64      │ N × int32     │ N × int64     │ D × int64     │
    └────────────────┴──────────┴──────────┴──────────┴──────────┴───────────────┴───────────────┴───────────────┘

Little endian. A document is the sequences from one entry of `documents` to the next, the first entry is 0. An index of
several kinds of tokens has one more byte a sequence behind it, which is not used here.

A sample is a sequence, or, with `window=S`, S+1 tokens of the whole file, of which the next sample repeats the last:
the inputs and the labels of a language model, across the borders of documents.

    records = open_records("lu:/text/train.idx", window=2048)
    with TokenWriter("lu:/text/train", dtype="uint16") as writer:
        writer.write(tokens)
"""

import os
import struct
import zlib
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from ...client.location import AnyFileSystem, Location, replacing
from ...errors import CorruptData, InvalidArgument
from .records import (
    Extents,
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

MAGIC: Final = b"MMIDIDX\0\0"
VERSION: Final = 1
HEAD: Final = struct.Struct("<9sQBQQ")
ENTRY_BYTES: Final = 12  # of the index, for each sequence
DIGEST_BYTES: Final = 64 << 10  # of an index, for the digest: its head, and the first lengths
DTYPES: Final = {1: "u1", 2: "i1", 3: "i2", 4: "i4", 5: "i8", 6: "f8", 7: "f4", 8: "u2"}
"""The format's numbers for element types, as numpy's names without the byte order."""


class TokenRecords(Records):
    """The sequences, or windows, of token files. Each sample is an array of tokens."""

    format = "tokens"
    suffix = ".idx"
    also = (".bin",)

    def __init__(self, place: Place, paths: list[str], *, window: int | None = None) -> None:
        if window is not None and window < 1:
            raise InvalidArgument(f"a window has at least one token, not {window}")
        self.window = window
        self._heads: dict[str, tuple[Identity, int, int, int]] = {}
        super().__init__(place, paths)
        types = {head[1] for head in self._heads.values()}
        if len(types) > 1:
            names = ", ".join(sorted(DTYPES[each] for each in types))
            raise InvalidArgument(f"the files have tokens of several types: {names}", path=paths[-1])
        self.dtype = np.dtype("<" + DTYPES[types.pop()])

    def examine(self, path: str) -> RecordFile:
        path = path.removesuffix(".bin").removesuffix(self.suffix)
        with opened(self.place.file_system, path + self.suffix) as (file, index_identity):
            head = _read_head(file, index_identity.size)
            checksum = zlib.crc32(read_exactly(file, 0, min(index_identity.size, DIGEST_BYTES)))
        with opened(self.place.file_system, path + ".bin") as (_, identity):
            pass
        code, sequences, documents = head
        self._heads[path + ".bin"] = (index_identity, code, sequences, documents)
        tokens = identity.size // np.dtype(DTYPES[code]).itemsize
        count = sequences if self.window is None else max(0, tokens - 1) // self.window
        found = RecordFile(path + ".bin", count, identity, checksum)
        if self.window is not None or not count:
            self.read_index(found)  # checked now: it is not read later
        return found

    def read_index(self, file: RecordFile) -> Index:
        known, code, sequences, documents = self._heads[file.path]
        path = file.path.removesuffix(".bin") + self.suffix
        with reopened(self.place.file_system, path, known) as handle:
            data = read_exactly(handle, HEAD.size, ENTRY_BYTES * sequences + 8 * documents)
        itemsize = np.dtype(DTYPES[code]).itemsize
        lengths = np.frombuffer(data, "<i4", sequences).astype(np.int64) * itemsize
        offsets = np.frombuffer(data, "<i8", sequences, 4 * sequences).astype(np.int64)
        starts = np.frombuffer(data, "<i8", documents, ENTRY_BYTES * sequences)
        _check(path, file.identity.size, offsets, lengths, itemsize=itemsize)
        _check_documents(path, starts, sequences)
        return Index(offsets, lengths, None)

    def locate(self, numbers: Integers) -> Extents:
        if self.window is None:
            return super().locate(numbers)
        files, within = self.split(numbers)
        itemsize = self.dtype.itemsize
        lengths = np.full_like(within, (self.window + 1) * itemsize)
        return Extents(files, within * self.window * itemsize, lengths, None)

    def lengths(self) -> set[int]:
        if self.window is None:
            return super().lengths()
        return {(self.window + 1) * self.dtype.itemsize}

    def index_key(self) -> str:
        return " ".join([super().index_key(), *(str(self._heads[file.path]) for file in self.files)])

    def digest(self) -> str:
        return super().digest() if self.window is None else f"{super().digest()} by {self.window}"

    def name(self, number: int) -> str:
        return super().name(number).replace("record", "sequence" if self.window is None else "window")


def _read_head(file: Any, size: int) -> tuple[int, int, int]:
    """Read (type, sequences, documents) of an index."""
    path = str(file.name)
    if size < HEAD.size:
        raise CorruptData(f"not an index of tokens: {size} bytes are less than its header", path=path)
    magic, version, code, sequences, documents = HEAD.unpack(read_exactly(file, 0, HEAD.size))
    if magic != MAGIC:
        raise CorruptData("not an index of tokens: it does not begin with MMIDIDX", path=path)
    if version != VERSION:
        raise CorruptData(f"an index of version {version}: only {VERSION} is known", path=path)
    if code not in DTYPES:
        raise CorruptData(f"tokens of type {code}: types are {', '.join(map(str, DTYPES))}", path=path)
    wanted = HEAD.size + ENTRY_BYTES * sequences + 8 * documents
    if size not in {wanted, wanted + sequences}:
        raise CorruptData(
            f"the index was cut off or is damaged: {sequences} sequences and {documents} documents take {wanted} "
            f"bytes, it has {size}",
            path=path,
        )
    return code, sequences, documents


def _check(path: str, size: int, offsets: Integers, lengths: Integers, *, itemsize: int) -> None:
    """Require that sequences are within the tokens, and cover them. Raises: CorruptData."""
    wrong = np.flatnonzero(
        (lengths < 0)
        | (offsets < 0)
        | (offsets > size)
        | (offsets > size - lengths)
        | (offsets % itemsize != 0)
    )
    if wrong.size:
        first = int(wrong[0])
        raise CorruptData(
            f"sequence {first} is at bytes {int(offsets[first])} to {int(offsets[first]) + int(lengths[first])}, but "
            f"the tokens are {size} bytes: one of the two files was cut off, or is of another data set",
            path=path,
        )
    end = int((offsets + lengths).max()) if len(offsets) else 0
    if end != size:
        raise CorruptData(
            f"the last sequence ends at byte {end}, but there are {size} bytes of tokens: the two files are not of one "
            "data set",
            path=path,
        )


def _check_documents(path: str, starts: Integers, sequences: int) -> None:
    fits = not len(starts) or (
        int(starts[0]) == 0 and int(starts[-1]) <= sequences and bool((starts[1:] >= starts[:-1]).all())
    )
    if not fits:
        raise CorruptData(f"the documents do not grow from 0 to {sequences} sequences", path=path)


class TokenWriter(Writer):
    """Writes NAME.bin and NAME.idx. The index, without which the other cannot be opened, appears last.

    `dtype`: "uint8", "int8", "int16", "uint16", "int32", "int64", "float32" or "float64".
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Location,
        *,
        dtype: npt.DTypeLike = "int32",
        file_system: AnyFileSystem | None = None,
    ) -> None:
        place, (path,) = place_of(location, file_system=file_system)
        self.path = path.removesuffix(".bin").removesuffix(".idx")
        self.dtype = np.dtype(dtype).newbyteorder("<")
        codes = {np.dtype(name).newbyteorder("<"): code for code, name in DTYPES.items()}
        if self.dtype not in codes:
            raise InvalidArgument(f"the format has no tokens of {np.dtype(dtype)}", path=path)
        self._code = codes[self.dtype]
        self._file_system = place.file_system
        self._lengths: list[int] = []
        self._documents = [0]
        self._file = NewFile(self._file_system, self.path + ".bin")

    @property
    def written(self) -> int:
        """Sequences so far."""
        return len(self._lengths)

    @property
    def bytes_written(self) -> int:
        """Of tokens."""
        return sum(self._lengths) * self.dtype.itemsize

    def write(self, tokens: npt.ArrayLike, *, ends_document: bool = True) -> None:
        """Add a sequence. Raises: ValueError for tokens that the type cannot hold, or of several dimensions."""
        self._require_open()
        given = np.asarray(tokens)
        if given.ndim != 1:
            raise ValueError(f"a sequence has one dimension, not {given.ndim}")
        if len(given) >= 1 << 31:
            raise ValueError(f"a sequence has less than 2**31 tokens, not {len(given)}: write it in pieces")
        with np.errstate(invalid="ignore"):  # values outside the type are found by comparison
            made = given.astype(self.dtype)
        if given.size and not np.array_equal(made, given):
            raise ValueError(f"tokens of {given.min()} to {given.max()} do not fit into {self.dtype.name}")
        self._file.put(as_bytes(made.data))
        self._lengths.append(len(made))
        if ends_document:
            self._documents.append(len(self._lengths))

    def _complete(self) -> None:
        if self._documents[-1] != len(self._lengths):
            self._documents.append(len(self._lengths))
        if self._file_system.exists(self.path + ".idx"):
            self._file_system.remove(self.path + ".idx")  # it would describe other tokens
        self._file.complete()
        with replacing(self._file_system, self.path + ".idx") as index:
            index.write(self._index())

    def _index(self) -> bytes:
        lengths = np.array(self._lengths, "<i4")
        sizes = lengths.astype(np.int64) * self.dtype.itemsize
        offsets = (np.cumsum(sizes) - sizes).astype("<i8")
        head = HEAD.pack(MAGIC, VERSION, self._code, len(lengths), len(self._documents))
        return head + lengths.tobytes() + offsets.tobytes() + np.array(self._documents, "<i8").tobytes()


__all__ = ["DTYPES", "TokenRecords", "TokenWriter"]
