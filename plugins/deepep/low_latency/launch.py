"""How the kernels of low-latency mode are started. Arguments have been checked by `mode`.

Nothing here waits for the device or reads a tensor's values, so that every call can be captured in a CUDA graph.
"""

from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from triton import next_power_of_2

from ...kernels.aot import start
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import ceil_div
from . import kernel
from .layout import Layout, Received

GROUPS: Final = 8  # blocks of 128 channels that a program holds: 32 KiB of registers in float32
SLOT_BLOCK: Final = 1024  # (token, k) pairs that are looked at together
# Programs that share the rows of one (expert, source): enough to fill a GPU when there are few of either.
SPLIT: Final = 4
WARPS: Final = 4  # so that a thread moves 16 bytes of bfloat16 at once


@dataclass(frozen=True)
class KernelOps:
    """Sending and receiving of one rank, on its device.

    table (R,) int64: the address of every rank's region as this rank sees it. inactive (R,) int32: marks ranks that
    take no part. stopped (1,) int32: not zero once a wait has run out; kernels then do nothing.
    """

    layout: Layout
    rank: int
    table: Tensor
    inactive: Tensor
    stopped: Tensor

    def dispatch_send(self, half: int, x: Tensor, topk: Tensor, *, fp8: bool, round_scale: bool) -> None:
        """Write messages and counts; messages beyond max_tokens of one expert are left out."""
        layout, places = self.layout, (self.table, self.inactive, self.stopped)
        slots = torch.empty(topk.shape, dtype=torch.int32, device=x.device)
        with on_device(x):
            start(
                kernel.slot_kernel, (layout.experts,),
                topk, slots, *places, layout.counts_at(half), topk.numel(), layout.max_tokens, self.rank,
                LOCAL=layout.local, BLOCK=64 if is_interpreting() else SLOT_BLOCK, num_warps=4,
            )  # fmt: skip
            if not x.shape[0]:
                return
            start(
                kernel.dispatch_send_kernel, (x.shape[0],), x, topk, slots, *places,
                layout.arrivals_at(half), layout.max_tokens, layout.message_bytes, self.rank,
                LOCAL=layout.local, EXPERTS=layout.experts, TOPK=topk.shape[1], HIDDEN=layout.hidden, FP8=fp8,
                ROUND=round_scale, GROUPS=GROUPS, INTERPRET=is_interpreting(), num_warps=WARPS,
            )  # fmt: skip

    def dispatch_receive(self, half: int, out: Received, stats: Tensor | None) -> None:
        """Fill the packed outputs; stats (e,) grow by the counts."""
        layout, scales = self.layout, out.scales
        with on_device(out.rows):
            start(
                kernel.dispatch_receive_kernel, (layout.local * layout.ranks, _split()),
                self.table[self.rank :], self.inactive, self.stopped,
                out.rows if scales is None else out.rows.view(torch.uint8), out.rows if scales is None else scales,
                out.source_tokens, out.ranges, out.counts, out.counts if stats is None else stats,
                layout.counts_at(half), layout.arrivals_at(half), layout.max_tokens, layout.message_bytes,
                RANKS=layout.ranks, RANKS_PADDED=next_power_of_2(layout.ranks), LOCAL=layout.local,
                LOCAL_PADDED=next_power_of_2(layout.local), HIDDEN=layout.hidden, FP8=scales is not None,
                UE8M0=scales is not None and scales.dtype == torch.int32, STATS=stats is not None,
                GROUPS=GROUPS, SPLIT=_split(), num_warps=WARPS,
            )  # fmt: skip

    def combine_send(
        self, half: int, x: Tensor, *, ranges: Tensor, source_tokens: Tensor, logfmt: bool
    ) -> None:
        """Write each row to the slot of its expert and token at its source."""
        layout = self.layout
        with on_device(x):
            start(
                kernel.combine_send_kernel, (layout.local * layout.ranks, _split()), x, ranges, source_tokens,
                self.table, self.inactive, self.stopped, layout.arrivals_at(half), layout.max_tokens, self.rank,
                RANKS=layout.ranks, LOCAL=layout.local, HIDDEN=layout.hidden, LOGFMT=logfmt,
                GROUPS=GROUPS, SPLIT=_split(), num_warps=WARPS,
            )  # fmt: skip

    def combine_receive(self, half: int, *, topk: Tensor, weights: Tensor, out: Tensor, logfmt: bool) -> None:
        """Weighted sums, in float32, of the rows that arrived for each token."""
        layout = self.layout
        if not out.shape[0]:
            return
        with on_device(out):
            start(
                kernel.combine_receive_kernel, (out.shape[0], ceil_div(layout.hidden, 128 * GROUPS)),
                self.table[self.rank :], topk, weights, self.inactive, self.stopped, out,
                layout.arrivals_at(half), layout.max_tokens, out.stride(0), LOCAL=layout.local,
                EXPERTS=layout.experts, TOPK=topk.shape[1], HIDDEN=layout.hidden, LOGFMT=logfmt,
                GROUPS=GROUPS, num_warps=WARPS,
            )  # fmt: skip


def _split() -> int:
    return 1 if is_interpreting() else SPLIT


__all__ = ["KernelOps"]
