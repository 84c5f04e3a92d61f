"""Where things are in the memory that low-latency mode shares between ranks: a pure function of the call's sizes.

First, for each half, the facts of the call of its rank (`segment_header`). Then two halves, used in turns, one for each
call. Where a half begins depends on the memory alone and not on the call: a flag is about a half, whatever sizes
the call before had. A half of rank r, for E experts, e of them on r, and N tokens a rank:

    counts     R · e int32      how many messages source s has sent to each local expert
    arrivals   E · N slots      dispatch: the messages of source s, by local expert, begin at slot s · e · N
                                combine: what global expert j made of token t is slot j · N + t

    message    16 bytes (source token, int32), then H e4m3 and H / 128 float32, or H bfloat16
    slot       H bfloat16, or in LogFMT H + H / 4 bytes of codes and H / 128 pairs of float32
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...kernels.quantize import BLOCK, FP8, align
from ..transport import segment_header

HEADER_BYTES: Final = 16
ALIGNMENT: Final = 128  # of every part: a line of the cache that devices exchange
HALVES: Final = 2


@dataclass(frozen=True)
class Layout:
    """Sizes of a call, all ranks' alike, and the places that follow in memory of `num_bytes`."""

    max_tokens: int
    hidden: int
    ranks: int
    experts: int
    num_bytes: int = 0
    """From an aligned place on: at least `total_bytes` less the alignment; 0: as many."""

    def __post_init__(self) -> None:
        assert self.experts % self.ranks == 0, "each rank owns the same number of experts"

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
        return align(4 * self.experts, ALIGNMENT)

    @property
    def head_bytes(self) -> int:
        return align(HALVES * segment_header.HEADER_BYTES, ALIGNMENT)

    @property
    def half_bytes(self) -> int:
        return self.counts_bytes + align(self.experts * self.max_tokens * self.message_bytes, ALIGNMENT)

    @property
    def total_bytes(self) -> int:
        return self.head_bytes + HALVES * self.half_bytes + ALIGNMENT  # wherever the memory begins

    @property
    def sizes(self) -> tuple[int, int, int]:
        """What all ranks must agree on."""
        return self.max_tokens, self.hidden, self.experts

    def counts_at(self, half: int) -> int:
        free = (self.num_bytes or self.total_bytes - ALIGNMENT) - self.head_bytes
        step = free // HALVES // ALIGNMENT * ALIGNMENT
        assert step >= self.half_bytes, "both halves fit"
        return self.head_bytes + half * step

    def arrivals_at(self, half: int) -> int:
        return self.counts_at(half) + self.counts_bytes


@dataclass(frozen=True)
class Received:
    """What one rank gets, e local experts of it; rows beyond the counts hold anything.

    rows (e, R · N, H) bfloat16 or e4m3; scales of e4m3 (e, R · N, H / 128) float32, or (e, R · N, H / 512) int32 of
    packed exponents, with the rows of an expert next to each other; counts (e,) int32; source_tokens (e, R · N) int32;
    ranges (e, R) int64: begin << 32 | count of each source's rows.
    """

    rows: Tensor
    scales: Tensor | None
    counts: Tensor
    source_tokens: Tensor
    ranges: Tensor

    @classmethod
    def empty(
        cls, layout: Layout, device: torch.device | str, *, fp8: bool, use_ue8m0: bool = False
    ) -> "Received":
        """To be filled."""
        local, scales = layout.local, None
        if fp8:
            width, kind = (layout.groups // 4, torch.int32) if use_ue8m0 else (layout.groups, torch.float32)
            scales = torch.empty((local, width, layout.rows), dtype=kind, device=device).mT
        shape = (local, layout.rows, layout.hidden)
        return cls(
            rows=torch.empty(shape, dtype=FP8 if fp8 else torch.bfloat16, device=device),
            scales=scales,
            counts=torch.empty(local, dtype=torch.int32, device=device),
            source_tokens=torch.empty(shape[:2], dtype=torch.int32, device=device),
            ranges=torch.empty((local, layout.ranks), dtype=torch.int64, device=device),
        )


__all__ = ["ALIGNMENT", "HALVES", "HEADER_BYTES", "Layout", "Received"]
