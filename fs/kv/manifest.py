"""The end of RocksDB's manifest after power loss.

RocksDB appends a record to the manifest for each table that comes or goes, and syncs it before anything relies on
it. If power is lost between the two, a part of the record may be on the disk and another not, and RocksDB refuses
to open. That record may be cut off: nothing had relied on it. A record that is damaged and has a whole one behind
it was not the last: that is damage of something that was synced, and stays.

Source of the format: RocksDB's wiki, "Write Ahead Log File Format". Blocks of 32 KiB hold fragments of records: u32
masked CRC32C of type and bytes, u16 length, u8 type (1 whole, 2 first, 3 middle, 4 last), bytes. Little-endian.
"""

import os
import struct
from pathlib import Path
from typing import Final

BLOCK_BYTES: Final = 32 * 1024
HEADER: Final = struct.Struct("<IHB")
WHOLE, FIRST, MIDDLE, LAST = 1, 2, 3, 4
POLYNOMIAL: Final = 0x82F63B78  # CRC32C, reflected
MASK_DELTA: Final = 0xA282EAD8


def _entry(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ (POLYNOMIAL if byte & 1 else 0)
    return byte


TABLE: Final = tuple(map(_entry, range(256)))


def cut_torn_record(store: Path) -> bool:
    """Cut the last record off the manifest if it is torn; return whether it was. The store must not be open.

    Raises: OSError.
    """
    path = store / (store / "CURRENT").read_text(encoding="ascii").strip()
    content = path.read_bytes()
    begin, end = _whole_records(content)
    if end == len(content) or begin == 0 or _has_whole_fragment(content, end):
        return False
    descriptor = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.ftruncate(descriptor, begin)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return True


def _whole_records(content: bytes) -> tuple[int, int]:
    """Return where the first record begins that is not whole, and its first fragment that is not."""
    begin = place = 0
    while place < len(content):
        left = BLOCK_BYTES - place % BLOCK_BYTES
        if left < HEADER.size:
            place += left
            continue
        kind, length = _fragment(content, place)
        if kind == 0:
            break
        place += HEADER.size + length
        if kind in (WHOLE, LAST):
            begin = place
    return begin, place


def _fragment(content: bytes, place: int) -> tuple[int, int]:
    """Type and length of the fragment at `place`; 0, 0 if it is not whole."""
    if place + HEADER.size > len(content):
        return 0, 0
    sum_, length, kind = HEADER.unpack_from(content, place)
    end = place + HEADER.size + length
    if kind not in (WHOLE, FIRST, MIDDLE, LAST) or end > len(content):
        return 0, 0
    crc = _crc32c(content[place + HEADER.size - 1 : end])
    masked = ((crc >> 15 | crc << 17) + MASK_DELTA) & 0xFFFFFFFF
    return (kind, length) if masked == sum_ else (0, 0)


def _has_whole_fragment(content: bytes, after: int) -> bool:
    """Return whether a whole fragment begins anywhere behind the one at `after`."""
    return any(_fragment(content, place)[0] for place in range(after + 1, len(content)))


def _crc32c(content: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in content:
        crc = TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


__all__ = ["cut_torn_record"]
