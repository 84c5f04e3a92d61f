"""Sizes and durations as people write them."""

import math
import re
from typing import Final

KIB: Final = 1 << 10
MIB: Final = 1 << 20
GIB: Final = 1 << 30
TIB: Final = 1 << 40

_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmgtp]?)(i?b)?\s*", re.IGNORECASE)
_POWER: Final = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4, "p": 5}


def parse_bytes(text: str) -> int:
    """Return the number of bytes in `text`: "64K", "1.5 GiB", "4096". Units are powers of 1024.

    Raises: ValueError, with what is accepted, for anything else.
    """
    match = _SIZE.fullmatch(text)
    count = math.inf if match is None else float(match[1]) * 1024 ** _POWER[match[2].lower()]
    if count == math.inf:
        raise ValueError(f"not a size: {text!r:.80} (write a number and K, M, G or T, as in 64K or 1.5GiB)")
    return int(count)


def format_bytes(count: float) -> str:
    """`count` bytes for people: "0 B", "1.5 MiB"."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError("unreachable")


__all__ = ["GIB", "KIB", "MIB", "TIB", "format_bytes", "parse_bytes"]
