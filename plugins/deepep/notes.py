"""What a rank writes in front of its rows: the call's facts, and how many rows are for whom."""

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final, TypeAlias

Fact: TypeAlias = int | str

NOTE_BYTES: Final = 32_768
"""Two counts for each of 160 ranks, one for each of 2048 experts, and the facts, take less than 22,000."""
_HEAD: Final = struct.Struct("<qqqqq")


@dataclass(frozen=True)
class Notes:
    """Of one rank and turn.

    tokens, turns: of the call. totals: rows for each rank in the whole call, or where they begin in this turn's column.
    here: rows for each rank in this turn. extra: what the call wants to tell. facts: what must be equal on all ranks.
    """

    turn: int
    tokens: int
    turns: int
    totals: Sequence[int]
    here: Sequence[int]
    extra: list[int]
    facts: Mapping[str, Fact]

    def encode(self) -> bytearray:
        """To bytes."""
        words = [*self.totals, *self.here, *self.extra]
        text = json.dumps(dict(self.facts)).encode()
        head = _HEAD.pack(self.turn, self.tokens, self.turns, len(self.extra), len(text))
        data = bytearray(head + struct.pack(f"<{len(words)}q", *words) + text)
        assert len(data) <= NOTE_BYTES, "ranks and experts are limited"
        return data

    @classmethod
    def decode(cls, data: memoryview, *, ranks: int) -> "Notes":
        """From the beginning of a segment."""
        turn, tokens, turns, extra, length = _HEAD.unpack_from(data)
        words = struct.unpack_from(f"<{2 * ranks + extra}q", data, _HEAD.size)
        text = _HEAD.size + 8 * len(words)
        return cls(
            turn, tokens, turns, words[:ranks], words[ranks : 2 * ranks], list(words[2 * ranks :]),
            json.loads(bytes(data[text : text + length])),
        )  # fmt: skip


__all__ = ["NOTE_BYTES", "Fact", "Notes"]
