"""Checksums beside a file: FILE.crc32c holds the CRC32C of its header and of each BLOCK_BYTES of each tensor.

    {"format": "luciola-weights-crc32c", "version": 1, "file_bytes": N, "block_bytes": 1048576,
     "header": "8 hexadecimal digits", "tensors": {name: "8 digits for each block, the last one may be shorter"}}

Storage nodes verify every read by checksums of their own; these go with the file, wherever it is copied, and are
verified where the bytes arrive. Blocks count from the tensor's first byte, so a row shard is verified too, but for the
blocks that it has only in part.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any, Final

from luciola.client import replacing
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData

from .header import Header
from .plan import BLOCK_BYTES

SUFFIX: Final = ".crc32c"
FORMAT: Final = "luciola-weights-crc32c"
VERSION: Final = 1
DIGITS: Final = 8


@dataclass
class Checksums:
    """The checksums of one file."""

    file_bytes: int
    header: int
    tensors: dict[str, list[int]] = field(default_factory=dict)

    def encode(self) -> bytes:
        """The bytes of FILE.crc32c."""
        return json.dumps(
            {
                "format": FORMAT,
                "version": VERSION,
                "file_bytes": self.file_bytes,
                "block_bytes": BLOCK_BYTES,
                "header": f"{self.header:08x}",
                "tensors": {
                    name: "".join(f"{crc:08x}" for crc in crcs) for name, crcs in self.tensors.items()
                },
            },
            indent=1,
            ensure_ascii=False,
        ).encode()

    def require_match(self, header: Header, header_crc: int, path: str) -> None:
        """Raises: CorruptData if these are the checksums of another file, or the header is damaged."""
        if self.file_bytes != header.file_bytes or self.header != header_crc:
            raise CorruptData(
                f"its header or length is not what {path!r} says: the file is damaged, or was changed since (then run "
                "`luciola weights checksum` again)",
                path=header.file,
            )
        counts = {name: -(-info.nbytes // BLOCK_BYTES) for name, info in header.tensors.items()}
        if counts != {name: len(crcs) for name, crcs in self.tensors.items()}:
            raise CorruptData("not the checksums of the tensors of its file", path=path)


def parse_checksums(text: bytes, path: str) -> Checksums:
    """Parse the text of FILE.crc32c. Raises: CorruptData."""
    try:
        return _checksums(json.loads(text))
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        raise CorruptData(f"not a file of checksums: {error!s:.200}", path=path) from error


def _checksums(table: Any) -> Checksums:
    if not isinstance(table, dict) or (table["format"], table["version"]) != (FORMAT, VERSION):
        raise ValueError(f"its format is not {FORMAT!r}, version {VERSION}")
    if table["block_bytes"] != BLOCK_BYTES:
        raise ValueError(f"its blocks are {table['block_bytes']} bytes, not {BLOCK_BYTES}")
    (header,) = _crcs(table["header"])
    return Checksums(
        table["file_bytes"], header, {name: _crcs(digits) for name, digits in table["tensors"].items()}
    )


def write_checksums(file_system: AnyFileSystem, path: str, sums: Checksums) -> None:
    """Put checksums beside the file `path`."""
    with replacing(file_system, path + SUFFIX) as writer:
        writer.write(sums.encode())


def _crcs(digits: str) -> list[int]:
    if not re.fullmatch(r"(?:[0-9a-f]{8})*", digits):
        raise ValueError("checksums are groups of eight hexadecimal digits")
    return [int(digits[at : at + DIGITS], 16) for at in range(0, len(digits), DIGITS)]


__all__ = ["SUFFIX", "Checksums", "parse_checksums", "write_checksums"]
