"""The header of a safetensors file: read as if an enemy had written it.

    8 bytes      N, length of the header, little-endian
    N bytes      JSON: name -> {dtype, shape, data_offsets: [begin, end]}, "__metadata__" -> {text: text};
                 spaces may follow
    the rest     the tensors' bytes, row-major, little-endian; offsets count from here

H1  The tensors cover the rest of the file exactly: no hole, no overlap, nothing behind the last.
H2  A tensor has as many bytes as its type and shape say.
H3  No name occurs twice. H4  Nothing is allocated or read on the word of a length that the file does not have.

Source: the format's description in huggingface/safetensors; checked against that library in the tests.
"""

import json
import math
from dataclasses import dataclass, field
from typing import Any, Final, NoReturn

from luciola.errors import CorruptData

from .dtypes import DTYPES

LENGTH_BYTES: Final = 8
HEADER_BYTES_MAX: Final = 100_000_000  # the format's own limit
DIMENSIONS_MAX: Final = 64  # torch's own limit
METADATA: Final = "__metadata__"
SIZE_MAX: Final = 1 << 62  # of a dimension, also of one of an empty tensor: torch counts in 64 bits


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One tensor of a checkpoint: what it is and where its bytes are."""

    name: str
    dtype: str  # as the file writes it: "BF16"
    shape: tuple[int, ...]
    file: str  # path on the checkpoint's file system
    offset: int  # of its first byte in that file
    nbytes: int

    @property
    def torch_shape(self) -> tuple[int, ...]:
        """The shape in torch, where a packed type has a shorter last dimension."""
        packed = DTYPES[self.dtype].packed
        return self.shape if packed == 1 else (*self.shape[:-1], self.shape[-1] // packed)

    def shard(self, rank: int, ranks: int, *, dimension: int = 0) -> tuple[slice, ...]:
        """The index of one rank's equal part along a dimension, for `Slice`. Raises: ValueError if there is none."""
        shape = self.torch_shape
        if not 0 <= rank < ranks:
            raise ValueError(f"rank must be 0 to {ranks - 1}, not {rank}")
        if not 0 <= dimension < len(shape):
            raise ValueError(
                f"{self.name!r} has {len(shape)} dimensions: dimension must be below, not {dimension}"
            )
        if shape[dimension] % ranks:
            raise ValueError(
                f"dimension {dimension} of {self.name!r} ({shape[dimension]}) must be a multiple of ranks ({ranks})"
            )
        part = shape[dimension] // ranks
        return (*[slice(None)] * dimension, slice(rank * part, (rank + 1) * part))


@dataclass(frozen=True)
class Header:
    """What one file holds."""

    file: str
    file_bytes: int
    data_offset: int
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)


def header_length(first: bytes, file_bytes: int, file: str) -> int:
    """Return the length of the header, by the first bytes of the file. Raises: CorruptData."""
    if len(first) < LENGTH_BYTES:
        _refuse(file, f"the file has {len(first)} bytes, too few for a header")
    length = int.from_bytes(first[:LENGTH_BYTES], "little")
    if length > HEADER_BYTES_MAX:
        _refuse(file, f"a header of {length} bytes; at most {HEADER_BYTES_MAX} are allowed")
    if LENGTH_BYTES + length > file_bytes:
        _refuse(file, f"a header of {length} bytes in a file of {file_bytes}: it was cut off")
    return length


def parse_header(text: bytes, file_bytes: int, file: str) -> Header:
    """Parse and check a header. Raises: CorruptData, which names file, tensor and what is wrong."""
    table = _parse_json(text, file)
    header = Header(file, file_bytes, LENGTH_BYTES + len(text))
    data_bytes = file_bytes - header.data_offset
    for name, entry in table.items():
        if name == METADATA:
            header.metadata.update(_metadata(entry, file))
        else:
            header.tensors[name] = _tensor(name, entry, header, data_bytes)
    _require_cover(header, data_bytes)
    return header


def _parse_json(text: bytes, file: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        _refuse(file, "its header does not begin with '{'")
    try:
        table = json.loads(text.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise CorruptData(f"not a safetensors file: its header is not JSON: {error}", path=file) from error
    assert isinstance(table, dict), "it begins with a brace"
    return table


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    table = dict(pairs)
    if len(table) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise ValueError(f"{twice!r} occurs twice")
    return table


def _no_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _metadata(entry: Any, file: str) -> dict[str, str]:
    if not isinstance(entry, dict) or not all(isinstance(value, str) for value in entry.values()):
        _refuse(file, f"{METADATA} is not a table of texts")
    return entry


def _tensor(name: str, entry: Any, header: Header, data_bytes: int) -> TensorInfo:
    def refuse(what: str) -> NoReturn:
        _refuse(header.file, f"tensor {name!r}: {what}")

    if any("\ud800" <= letter <= "\udfff" for letter in name):
        refuse("its name is not Unicode")
    if not isinstance(entry, dict) or not {"dtype", "shape", "data_offsets"} <= entry.keys():
        refuse("needs dtype, shape and data_offsets")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in DTYPES:
        refuse(f"unknown dtype {dtype!r}")
    if not _are_sizes(shape) or len(shape) > DIMENSIONS_MAX:
        refuse(f"not a shape: {shape!r:.80}")
    if not _are_sizes(offsets) or len(offsets) != 2:
        refuse(f"not a pair of offsets: {offsets!r:.80}")
    begin, end = offsets
    if not begin <= end <= data_bytes:
        refuse(f"bytes {begin} to {end} are not within the {data_bytes} bytes of data")
    bits = math.prod(shape) * DTYPES[dtype].bits
    if bits != 8 * (end - begin):
        refuse(f"{dtype} {list(shape)} has {bits / 8:.15g} bytes, its offsets say {end - begin}")
    if DTYPES[dtype].packed > 1 and (not shape or shape[-1] % DTYPES[dtype].packed):
        refuse(
            f"the last dimension of {dtype} is a multiple of {DTYPES[dtype].packed}, not of shape {list(shape)}"
        )
    return TensorInfo(name, dtype, tuple(shape), header.file, header.data_offset + begin, end - begin)


def _are_sizes(value: Any) -> bool:
    return isinstance(value, list) and all(type(each) is int and 0 <= each <= SIZE_MAX for each in value)


def _require_cover(header: Header, data_bytes: int) -> None:
    end, before = header.data_offset, "the header"
    for info in sorted(header.tensors.values(), key=lambda info: (info.offset, info.nbytes)):
        if info.offset != end:
            what = "overlaps" if info.offset < end else "leaves a gap behind"
            _refuse(header.file, f"tensor {info.name!r} {what} {before}")
        end, before = info.offset + info.nbytes, f"tensor {info.name!r}"
    if end != header.data_offset + data_bytes:
        _refuse(
            header.file, f"{header.data_offset + data_bytes - end} bytes behind {before} belong to no tensor"
        )


def _refuse(file: str, what: str) -> NoReturn:
    raise CorruptData(f"not a safetensors file: {what}", path=file)


def encode_header(
    entries: dict[str, tuple[str, tuple[int, ...], int]], metadata: dict[str, str], *, room: int = 0
) -> bytes:
    """Length and header of tensors (dtype, shape, bytes) that follow in this order; a multiple of 8 bytes long.

    `room`: it is at least that long, filled up with spaces, for one who has to know where the tensors begin before he
    knows all of them.
    """
    table: dict[str, Any] = {METADATA: metadata} if metadata else {}
    begin = 0
    for name, (dtype, shape, nbytes) in entries.items():
        if name == METADATA:
            raise ValueError(f"{METADATA!r} is not a name for a tensor")
        table[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, begin + nbytes]}
        begin += nbytes
    text = json.dumps(table, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * max(-len(text) % 8, room - LENGTH_BYTES - len(text))
    if len(text) > HEADER_BYTES_MAX:
        raise ValueError(
            f"a header of {len(text)} bytes; at most {HEADER_BYTES_MAX} are allowed: save in shards"
        )
    return len(text).to_bytes(LENGTH_BYTES, "little") + text


__all__ = ["Header", "TensorInfo", "encode_header", "header_length", "parse_header"]
