"""Where things are in the memory that low-latency mode shares between ranks: a pure function of the call's sizes.

First, 32 bytes for each half and source: the sizes that it was called with. Then two halves, used in turns, one for
each call. Where a half begins depends on the memory alone and not on the call: a flag speaks of a half, whatever sizes
the call before had. A half of rank r, for E experts, e of them on r, and N tokens a rank:

    counts     R · e int32      how many messages source s has sent to each local expert
    arrivals   E · N slots      dispatch: the messages of source s, by local expert, begin at slot s · e · N
                                combine: what global expert j made of token t is slot j · N + t

    message    16 bytes (source token, int32), then H e4m3 and H / 128 float32, or H bfloat16
    slot       H bfloat16, or in LogFMT H + H / 4 bytes of codes and H / 128 pairs of float32
"""

from dataclasses import dataclass
from typing import Final

from ...kernels.quantize import BLOCK, align

HEADER_BYTES: Final = 16
ALIGNMENT: Final = 128  # of every part: a line of the cache that devices exchange
HALVES: Final = 2
SIZES_BYTES: Final = 32


@dataclass(frozen=True)
class Layout:
    """Sizes of a call, all ranks' alike, and the places that follow in memory of `num_bytes`."""

    max_tokens: int
    hidden: int
    ranks: int
    experts: int
    num_bytes: int = 0
    """From an aligned place on: at least `total_bytes` less the alignment; 0: as many."""

    @property
    def local(self) -> int:
        """Experts of a rank."""
        return self.experts // self.ranks

    @property
    def rows(self) -> int:
        """The most tokens that one expert gets."""
        return self.ranks * self.max_tokens

    @property
    def groups(self) -> int:
        """Scales of a row."""
        return self.hidden // BLOCK

    @property
    def bf16_bytes(self) -> int:
        return 2 * self.hidden

    @property
    def fp8_bytes(self) -> int:
        return self.hidden + 4 * self.groups

    @property
    def logfmt_bytes(self) -> int:
        return self.hidden // 4 * 5 + 8 * self.groups

    @property
    def message_bytes(self) -> int:
        """Distance between messages, of either kind."""
        return align(HEADER_BYTES + max(self.bf16_bytes, self.fp8_bytes), HEADER_BYTES)

    @property
    def counts_bytes(self) -> int:
        return align(4 * self.ranks * self.local, ALIGNMENT)

    @property
    def arrivals_bytes(self) -> int:
        return align(self.experts * self.max_tokens * self.message_bytes, ALIGNMENT)

    @property
    def half_bytes(self) -> int:
        return self.counts_bytes + self.arrivals_bytes

    @property
    def total_bytes(self) -> int:
        return self.head_bytes + HALVES * self.half_bytes + ALIGNMENT  # wherever the memory begins

    @property
    def head_bytes(self) -> int:
        return align(HALVES * self.ranks * SIZES_BYTES, ALIGNMENT)

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What all ranks must agree on."""
        return self.max_tokens, self.hidden, self.experts

    def counts_at(self, half: int) -> int:
        free = (self.num_bytes or self.total_bytes - ALIGNMENT) - self.head_bytes
        return self.head_bytes + half * (free // HALVES // ALIGNMENT * ALIGNMENT)

    def arrivals_at(self, half: int) -> int:
        return self.counts_at(half) + self.counts_bytes


def sizes_at(half: int, source: int, *, ranks: int) -> int:
    """Where a source says what it was called with."""
    return (half * ranks + source) * SIZES_BYTES


__all__ = ["ALIGNMENT", "HALVES", "HEADER_BYTES", "SIZES_BYTES", "Layout", "sizes_at"]
