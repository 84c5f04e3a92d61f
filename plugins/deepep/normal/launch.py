"""The row operations of normal mode by kernels. Nothing here waits for the device.

`num_sms` programs of 16 warps run in a launch that moves or sums rows, each taking every so many-th row: so many
multiprocessors are busy at most.
"""

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from triton import next_power_of_2

from ...kernels.aot import start
from ...kernels.layers import is_interpreting, on_device
from ...kernels.quantize import ceil_div
from ..transport.interface import Transport
from . import kernel
from .row_ops import RowOps

BLOCK: Final = 1024
"""Numbers of a row that a program moves at once."""
BLOCK_ROWS: Final = 4
INTERPRETED_ROWS: Final = 64  # few operators, each over much
LAYOUT_TOKENS: Final = 128
PLACED_TOKENS: Final = 256
SPLIT: Final = 4
"""Programs that share the tokens of one source."""
WARPS: Final = 16


class RowKernels(RowOps):
    """As `RowOps`, on the current stream. peers (R,) int64: where the regions begin."""

    def __init__(self, transport: Transport, peers: Tensor, num_sms: int) -> None:
        super().__init__(transport)
        self._peers, self._stopped, self._rank = peers, transport.stopped, transport.rank
        self._programs = 1 if is_interpreting() else max(num_sms, 1)

    def heads(self, at: int, width: int) -> Tensor:
        """As RowOps.heads."""
        out = torch.empty(len(self._peers), width, dtype=torch.int32, device=self._peers.device)
        with on_device(out):
            start(
                kernel.heads_kernel, (len(out),), out, self._peers, at, width, BLOCK=_block(width), num_warps=4,
            )  # fmt: skip
        return out

    def publish(self, room: Tensor, source: Tensor, limit: Tensor | None = None) -> None:
        """As RowOps.publish."""
        with on_device(room):
            start(
                kernel.publish_kernel, (self._programs,), room, source, room if limit is None else limit,
                self._stopped, len(source), source.shape[1], source.stride(0),
                LIMITED=limit is not None, BLOCK=_block(source.shape[1]), num_warps=WARPS,
            )  # fmt: skip

    def place(  # noqa: PLR0913 (the kernel's own)
        self, source_rows: Tensor, heads: Tensor, ends: Tensor, numbers_at: int, *, shape: int, problem: int
    ) -> None:
        """As RowOps.place."""
        with on_device(source_rows):
            start(
                kernel.place_kernel, (len(self._peers), SPLIT), source_rows, heads, ends, self._peers, self._stopped,
                numbers_at, heads.shape[1], len(source_rows), shape, problem, self._rank,
                RANKS=len(self._peers), BLOCK=PLACED_TOKENS, SPLIT=SPLIT, num_warps=4,
            )  # fmt: skip

    def fetch(self, out: Tensor, source_rows: Tensor, ends: Tensor, at: int, *, tokens_max: int) -> None:
        """As RowOps.fetch."""
        ranks = len(self._peers)
        with on_device(out):
            start(
                kernel.fetch_kernel, (self._programs,), out, source_rows, ends, self._peers, self._stopped, at,
                len(out), tokens_max, out.shape[1], out.stride(0),
                RANKS=ranks, RANKS_PADDED=next_power_of_2(ranks), BLOCK=_block(out.shape[1]), num_warps=WARPS,
            )  # fmt: skip

    def reduce(  # noqa: PLR0913 (the kernel's own)
        self, out: Tensor, at: int, rows: Tensor, ranks: Tensor | None, bias: Sequence[Tensor], rows_max: int
    ) -> None:
        """As RowOps.reduce."""
        del rows_max
        block_rows = INTERPRETED_ROWS if is_interpreting() else BLOCK_ROWS
        biases = [*bias, out, out]  # out stands for a pointer that is not followed
        with on_device(out):
            start(
                kernel.reduce_kernel, (self._programs,), out, self._peers + at, rows, rows if ranks is None else ranks,
                biases[0], biases[1], self._stopped, len(out), out.shape[1], out.stride(0),
                PLACES=rows.shape[1], NAMED=ranks is not None, BIASES=len(bias), BLOCK_TOKENS=block_rows,
                BLOCK=_block(out.shape[1]), ALIGNMENT=_alignment(out), INTERPRET=is_interpreting(), num_warps=WARPS,
            )  # fmt: skip


def layout(topk_idx: Tensor, num_experts: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens for each rank and for each expert, and is_token_in_rank, of topk_idx (T, K)."""
    tokens, topk = topk_idx.shape
    per_rank, per_expert = (
        torch.zeros(each, dtype=torch.int32, device=topk_idx.device) for each in (ranks, num_experts)
    )
    in_rank = torch.zeros(tokens, ranks, dtype=torch.bool, device=topk_idx.device)
    if topk_idx.numel():
        with on_device(topk_idx):
            start(
                kernel.layout_kernel, (ceil_div(tokens, LAYOUT_TOKENS),),
                topk_idx, per_rank, per_expert, in_rank.view(torch.int8), tokens, num_experts // ranks, num_experts,
                TOPK=topk, RANKS=ranks, RANKS_PADDED=next_power_of_2(ranks), BLOCK=LAYOUT_TOKENS, num_warps=4,
            )  # fmt: skip
    return per_rank, per_expert, in_rank


def _alignment(out: Tensor) -> int:
    """The power of two, up to what one thread loads at once, that divides the bytes of a row in a region."""
    row_bytes = out.shape[1] * out.element_size()
    return min(row_bytes & -row_bytes, 16)


def _block(width: int) -> int:
    return min(int(next_power_of_2(width)), BLOCK)


__all__ = ["RowKernels", "layout"]
