"""Frames of the data plane in Python, from docs/protocol.md alone: a second implementation to compare with."""

import struct
from dataclasses import dataclass

MAGIC, VERSION, REPLY = b"LUCF", 3, 0x80
READ, UPDATE, SYNC, PING, REGISTER, OFFER, CONNECT, TRANSMIT = range(1, 9)
HEADER = struct.Struct("<4sBBHIIIIII")
ENTRIES = {
    READ: struct.Struct("<IHHQQIIIIQ"),
    UPDATE: struct.Struct("<IHHQQIIIIQQQQIIQQ"),
    REGISTER: struct.Struct("<H6xQI4xQ"),
    OFFER: struct.Struct("<16sBBHI"),
    CONNECT: struct.Struct("<HHIIHBB16sHBB12x"),
    READ | REPLY: struct.Struct("<HHIQII"),
    UPDATE | REPLY: struct.Struct("<HHIQ"),
    OFFER | REPLY: struct.Struct("<HHIIHBB16sHBB12x"),
    CONNECT | REPLY: struct.Struct("<HHI"),
}
OK, NOT_FOUND, CHECKSUM, INVALID, TIMEOUT = 0, 1, 7, 10, 11
CRC_IS_SET = 1
WRITE = 1
INFINIBAND, ETHERNET = 1, 2


class Malformed(Exception):
    pass


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = CRC_TABLE[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


@dataclass
class Frame:
    kind: int
    id: int
    rows: list[tuple]
    deadline_ms: int = 0
    clock_ms: int = 0
    payload_bytes: int = 0

    def encode(self) -> bytes:
        table = b"".join(ENTRIES[self.kind].pack(*row) for row in self.rows)
        head = HEADER.pack(
            MAGIC,
            VERSION,
            self.kind,
            len(self.rows),
            self.payload_bytes,
            self.deadline_ms,
            self.id,
            self.clock_ms,
            crc32c(table),
            0,
        )[:28]
        return head + struct.pack("<I", crc32c(head)) + table


def table_bytes(head: bytes) -> int:
    """How much follows this header."""
    kind, count = head[5], struct.unpack_from("<H", head, 6)[0]
    return ENTRIES[kind].size * count if kind in ENTRIES else 0


def decode(head: bytes, table: bytes) -> Frame:
    magic, version, kind, _, payload, deadline, number, clock, table_crc, header_crc = HEADER.unpack(head)
    if (magic, version) != (MAGIC, VERSION):
        raise Malformed("magic or version")
    if header_crc != crc32c(head[:28]) or table_crc != crc32c(table):
        raise Malformed("a checksum")
    rows = list(ENTRIES[kind].iter_unpack(table)) if kind in ENTRIES else []
    return Frame(kind, number, rows, deadline, clock, payload)
