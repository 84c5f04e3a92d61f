"""How the kernels of low-latency mode are started. Arguments have been checked by `mode`.

Nothing here waits for the device or reads a tensor's values, so that every call can be captured in a CUDA graph.

"""

from typing import Final, NamedTuple

import torch
from torch import Tensor
from triton import next_power_of_2

from ...kernels.aot import start
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import ceil_div
from . import kernel
from .layout import Layout

GROUPS: Final = 8  # blocks of 128 channels that a program holds: 32 KiB of registers in float32
SLOT_BLOCK: Final = 1024  # (token, k) pairs that are looked at together
# Programs that share the rows of one (expert, source): enough to fill a GPU when there are few of either.
SPLIT: Final = 4
WARPS: Final = 4  # so that a thread moves 16 bytes of bfloat16 at once


class Places(NamedTuple):
    """Of all ranks, on the device.

    table (ranks,) int64: the address of every rank's region as this rank sees it. inactive (ranks,) int32: marks ranks
    that take no part. stopped (1,) int32: not zero once a wait has run out; kernels then do nothing.
    """

    table: Tensor
    inactive: Tensor
    stopped: Tensor


def dispatch_send(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    places: Places,
    half: int,
    x: Tensor,
    topk: Tensor,
    *,
    rank: int,
    fp8: bool,
    round_scale: bool,
) -> None:
    """Writes messages and counts; messages beyond max_tokens of one expert are left out."""
    slots = torch.empty(topk.shape, dtype=torch.int32, device=x.device)
    with on_device(x):
        start(
            kernel.slot_kernel, (layout.experts,),
            topk, slots, *places, layout.counts_at(half), topk.numel(), layout.max_tokens, rank,
            LOCAL=layout.local, BLOCK=64 if is_interpreting() else SLOT_BLOCK, num_warps=4,
        )  # fmt: skip
        if not x.shape[0]:
            return
        start(
            kernel.dispatch_send_kernel, (x.shape[0],),
            x, topk, slots, *places, layout.arrivals_at(half), layout.max_tokens, layout.message_bytes, rank,
            LOCAL=layout.local, EXPERTS=layout.experts, TOPK=topk.shape[1],
            HIDDEN=layout.hidden, FP8=fp8, ROUND=round_scale, GROUPS=GROUPS, INTERPRET=is_interpreting(),
            num_warps=WARPS,
        )  # fmt: skip


def dispatch_receive(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    places: Places,
    half: int,
    *,
    rank: int,
    rows: Tensor,
    scales: Tensor | None,
    source_tokens: Tensor,
    ranges: Tensor,
    recv_counts: Tensor,
    stats: Tensor | None,
) -> None:
    """Fills the packed outputs; scales (e, R · N, …) lie with the rows of an expert next to each other."""
    fp8 = scales is not None
    with on_device(rows):
        start(
            kernel.dispatch_receive_kernel, (layout.local * layout.ranks, _split()),
            places.table[rank:], places.inactive, places.stopped, rows.view(torch.uint8) if fp8 else rows,
            rows if scales is None else scales,
            source_tokens, ranges, recv_counts, recv_counts if stats is None else stats,
            layout.counts_at(half), layout.arrivals_at(half), layout.max_tokens, layout.message_bytes,
            RANKS=layout.ranks, RANKS_PADDED=next_power_of_2(layout.ranks), LOCAL=layout.local,
            LOCAL_PADDED=next_power_of_2(layout.local), HIDDEN=layout.hidden, FP8=fp8,
            UE8M0=scales is not None and scales.dtype == torch.int32, STATS=stats is not None,
            GROUPS=GROUPS, SPLIT=_split(), num_warps=WARPS,
        )  # fmt: skip


def combine_send(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    places: Places,
    half: int,
    x: Tensor,
    *,
    ranges: Tensor,
    source_tokens: Tensor,
    rank: int,
    logfmt: bool,
) -> None:
    """Writes each row to the slot of its expert and token at its source."""
    with on_device(x):
        start(
            kernel.combine_send_kernel, (layout.local * layout.ranks, _split()),
            x, ranges, source_tokens, *places, layout.arrivals_at(half), layout.max_tokens, rank,
            RANKS=layout.ranks, LOCAL=layout.local, HIDDEN=layout.hidden, LOGFMT=logfmt,
            GROUPS=GROUPS, SPLIT=_split(), num_warps=WARPS,
        )  # fmt: skip


def combine_receive(  # noqa: PLR0913 (the kernels' own)
    layout: Layout,
    places: Places,
    half: int,
    *,
    rank: int,
    topk: Tensor,
    weights: Tensor,
    out: Tensor,
    logfmt: bool,
) -> None:
    """Weighted sums, in float32, of what came for each token."""
    if not out.shape[0]:
        return
    with on_device(out):
        start(
            kernel.combine_receive_kernel, (out.shape[0], ceil_div(layout.hidden, 128 * GROUPS)),
            places.table[rank:], topk, weights, places.inactive, places.stopped, out, layout.arrivals_at(half),
            layout.max_tokens, out.stride(0),
            LOCAL=layout.local, EXPERTS=layout.experts, TOPK=topk.shape[1], HIDDEN=layout.hidden, LOGFMT=logfmt,
            GROUPS=GROUPS, num_warps=WARPS,
        )  # fmt: skip


def _split() -> int:
    return 1 if is_interpreting() else SPLIT


__all__ = ["Places", "combine_receive", "combine_send", "dispatch_receive", "dispatch_send"]
