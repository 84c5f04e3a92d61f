"""The bytes of a file of KV pages, drawn in docs/formats.md. Pure: no files, no tensors.

F1  a page's record begins at a multiple of 4096 bytes, and each of its layers at a multiple of 512
F2  an entry is within one sector of 512 bytes, or begins at one, and carries its own checksum: one that was
    written by half is no entry
F3  the order of a save makes entries true: the old entry is gone from the disk before its record is overwritten,
    and the new one is written when the record is on it
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from luciola_core import crc32c

from ...errors import CorruptData, InvalidArgument

MAGIC: Final = b"luciola kv pages"
FORMAT: Final = 1
BLOCK_BYTES: Final = 4096  # what direct I/O and disks are aligned to
SECTOR_BYTES: Final = 512
KEY_BYTES: Final = 32
CAPACITY_MAX: Final = 1 << 26  # pages: a table of 8 GiB at 128 bytes an entry

_HEADER: Final = struct.Struct("<16sIIIIQQQQ32s16s")
_ENTRY: Final = struct.Struct("<IIQ32s32sII")
_CRC: Final = struct.Struct("<I")
_USED: Final = 1

# Element size and width of a row by kind; a row of several KV heads is that many rows.
KINDS: Final = {"bf16": (2, 576), "fp16": (2, 576), "fp8-v32": (1, 656), "fp8-model1": (1, 584)}


@dataclass(frozen=True)
class PageLayout:
    """What one page is in memory and in the file: `layers` parts, one behind the other.

    `kind`: "bf16" or "fp16", rows of 576 numbers; "fp8-v32", rows of 656 bytes; "fp8-model1", 584 bytes a token.
    """

    layers: int
    kind: str = "bf16"
    page_tokens: int = 64
    kv_heads: int = 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidArgument(f"kind is {self.kind!r}; it must be one of {', '.join(KINDS)}")
        if self.kind.startswith("fp8") and self.kv_heads != 1:
            raise InvalidArgument(f"kv_heads is {self.kv_heads}; an FP8 cache has 1")
        for name, most in (("layers", 4096), ("page_tokens", 4096), ("kv_heads", 1024)):
            if not 1 <= getattr(self, name) <= most:
                raise InvalidArgument(f"{name} is {getattr(self, name)}; it must be 1 to {most}")

    @cached_property
    def layer_bytes(self) -> int:
        """Bytes of one layer of a page."""
        size, width = KINDS[self.kind]
        plain = self.page_tokens * self.kv_heads * width * size
        return round_up(plain, 576) if self.kind == "fp8-model1" else plain

    @cached_property
    def layer_stride(self) -> int:
        """From the beginning of one layer to the next."""
        return round_up(self.layer_bytes, SECTOR_BYTES)

    @cached_property
    def record_bytes(self) -> int:
        """Bytes of a page, all layers."""
        return round_up(self.layers * self.layer_stride, BLOCK_BYTES)

    @cached_property
    def entry_bytes(self) -> int:
        """Bytes of a page's entry in the table."""
        least = _ENTRY.size + _CRC.size * (self.layers + 1)
        if least <= SECTOR_BYTES:
            return max(128, 1 << (least - 1).bit_length())
        return round_up(least, SECTOR_BYTES)


@dataclass(frozen=True)
class Header:
    """The first block of a file."""

    layout: PageLayout
    capacity: int
    model: bytes  # 32 bytes: whose cache this is

    def __post_init__(self) -> None:
        if not 1 <= self.capacity <= CAPACITY_MAX:
            raise InvalidArgument(f"capacity is {self.capacity}; it must be 1 to {CAPACITY_MAX} pages")
        assert len(self.model) == KEY_BYTES, "a fingerprint is a BLAKE2b digest of 32 bytes"

    @property
    def clocks_offset(self) -> int:
        return BLOCK_BYTES

    @property
    def entries_offset(self) -> int:
        return self.clocks_offset + round_up(8 * self.capacity, BLOCK_BYTES)

    @property
    def records_offset(self) -> int:
        return self.entries_offset + round_up(self.layout.entry_bytes * self.capacity, BLOCK_BYTES)

    @property
    def file_bytes(self) -> int:
        return self.records_offset + self.layout.record_bytes * self.capacity

    def entry_offset(self, slot: int) -> int:
        return self.entries_offset + slot * self.layout.entry_bytes

    def record_offset(self, slot: int) -> int:
        return self.records_offset + slot * self.layout.record_bytes


@dataclass(frozen=True)
class PageName:
    """One page of a text: `tokens` of them, page number `depth`."""

    key: bytes
    parent: bytes
    depth: int
    tokens: int


@dataclass(frozen=True)
class Entry(PageName):
    """What the table says of one page."""

    generation: int  # of saves, rising: two entries of one slot differ in it
    checksums: tuple[int, ...]  # CRC32C of each layer


def fingerprint(model: str, layout: PageLayout) -> bytes:
    """Return whose cache it is: caches of other models, or of another layout, share no key with it."""
    what = f"{model}\0{layout.kind}\0{layout.layers}\0{layout.page_tokens}\0{layout.kv_heads}"
    return hashlib.blake2b(what.encode(), digest_size=KEY_BYTES, person=b"luciola kv model").digest()


def encode_header(header: Header) -> bytes:
    """Encode the first block of a file."""
    layout = header.layout
    packed = _HEADER.pack(
        MAGIC,
        FORMAT,
        layout.layers,
        layout.page_tokens,
        layout.kv_heads,
        layout.layer_stride,
        layout.record_bytes,
        header.capacity,
        layout.entry_bytes,
        header.model,
        layout.kind.encode().ljust(16, b"\0"),
    )
    body = packed.ljust(BLOCK_BYTES - _CRC.size, b"\0")
    return body + _CRC.pack(crc32c(body))


def decode_header(block: bytes, path: str) -> Header:
    """Decode the first block. Raises: InvalidArgument for another kind of file or a newer format; CorruptData."""
    if block[: len(MAGIC)] != MAGIC:
        raise InvalidArgument("not a file of KV pages: make one with PagedKVFile.create", path=path)
    if len(block) < BLOCK_BYTES or _CRC.unpack_from(block, BLOCK_BYTES - 4)[0] != crc32c(
        block[: BLOCK_BYTES - 4]
    ):
        raise CorruptData("the header does not match its checksum: the file is damaged, remove it", path=path)
    _, number, layers, tokens, heads, stride, record, capacity, entry, model, kind = _HEADER.unpack_from(
        block
    )
    if number != FORMAT:
        raise InvalidArgument(f"format {number} is not known here; this version reads {FORMAT}", path=path)
    layout = PageLayout(layers, kind.rstrip(b"\0").decode(), tokens, heads)
    if (stride, record, entry) != (layout.layer_stride, layout.record_bytes, layout.entry_bytes):
        raise CorruptData("the header contradicts itself", path=path)
    return Header(layout, capacity, model)


def encode_entry(entry: Entry, layout: PageLayout) -> bytes:
    """Encode an entry, `layout.entry_bytes` long."""
    assert len(entry.checksums) == layout.layers, "one checksum a layer"
    packed = _ENTRY.pack(
        _USED, entry.tokens, entry.generation, entry.key, entry.parent, entry.depth, layout.layers
    ) + struct.pack(f"<{layout.layers}I", *entry.checksums)
    body = packed.ljust(layout.entry_bytes - _CRC.size, b"\0")
    return body + _CRC.pack(crc32c(body))


def decode_entry(data: bytes | memoryview, layout: PageLayout) -> Entry | None:
    """Decode an entry; None for a free slot, and for one that was not completely written (F2)."""
    body = data[: layout.entry_bytes - _CRC.size]
    used, tokens, generation, key, parent, depth, layers = _ENTRY.unpack_from(data)
    if used != _USED or _CRC.unpack_from(data, len(body))[0] != crc32c(body):
        return None
    if layers != layout.layers or not 1 <= tokens <= layout.page_tokens:
        return None
    checksums = struct.unpack_from(f"<{layers}I", data, _ENTRY.size)
    return Entry(key, parent, depth, tokens, generation, checksums)


def round_up(number: int, multiple: int) -> int:
    return -(-number // multiple) * multiple


__all__ = [
    "BLOCK_BYTES", "KEY_BYTES", "KINDS", "Entry", "Header", "PageLayout", "PageName", "decode_entry", "decode_header",
    "encode_entry", "encode_header", "fingerprint", "round_up",
]  # fmt: skip
