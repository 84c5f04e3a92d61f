"""How moves of rows become kernel launches. Nothing here waits for the device."""

import math
from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor
from triton import next_power_of_2

from ..kernels.ahead import start
from ..kernels.layers import is_interpreting, on_device
from ..kernels.quantize import ceil_div
from . import kernel
from .moves import Rows, length

BLOCK: Final = 1024
"""Numbers of a row that one program moves: each thread has some that lie together."""
BLOCK_ROWS: Final = 4
INTERPRETED_ROWS: Final = 64  # few programs, which run one after another
LAYOUT_TOKENS: Final = 128
PLACED_TOKENS: Final = 256
SPLIT: Final = 4
"""Programs that share the tokens of one source."""
WIDEST_BYTES: Final = 16
"""That one instruction loads."""


def layout(topk_idx: Tensor, num_experts: int, ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Tokens for each rank and for each expert, and is_token_in_rank, of topk_idx (T, K)."""
    tokens, topk = topk_idx.shape
    per_rank, per_expert = (
        torch.zeros(each, dtype=torch.int32, device=topk_idx.device) for each in (ranks, num_experts)
    )
    in_rank = torch.empty(tokens, ranks, dtype=torch.bool, device=topk_idx.device)
    if topk_idx.numel():
        with on_device(topk_idx):
            start(
                kernel.layout_kernel, (ceil_div(tokens, LAYOUT_TOKENS),),
                topk_idx, per_rank, per_expert, in_rank.view(torch.int8), tokens, num_experts // ranks,
                TOPK=topk, RANKS=ranks, RANKS_PADDED=next_power_of_2(ranks), BLOCK=LAYOUT_TOKENS, num_warps=4,
            )  # fmt: skip
    else:
        in_rank.zero_()
    return per_rank, per_expert, in_rank


def take(out: Tensor, source: Tensor, rows: Rows) -> None:
    """out[i] = source[rows[i]], of integers (…, width)."""
    count, width = length(rows), out.shape[1]
    block, block_rows = _blocks(width)
    indexed = not isinstance(rows, slice)
    with on_device(out):
        start(
            kernel.take_kernel, (ceil_div(count, block_rows), ceil_div(width, block)),
            out, source, rows if isinstance(rows, Tensor) else out, 0 if isinstance(rows, Tensor) else rows.start,
            count, width, source.stride(0),
            INDEXED=indexed, BLOCK_ROWS=block_rows, BLOCK=block, num_warps=4,
        )  # fmt: skip


def reduce(out: Tensor, parts: Sequence[Tensor], member: Tensor, bias: Sequence[Tensor]) -> None:
    """As `moves.reduce`."""
    rows = torch.where(member, member.cumsum(0, dtype=torch.int32) - 1, -1).int()
    addresses = [each.data_ptr() for each in parts]
    starts = torch.tensor(addresses, dtype=torch.int64, device=out.device)
    reduce_at(out, starts, rows, bias, alignment=_alignment(addresses))


def reduce_at(
    out: Tensor, starts: Tensor, rows: Tensor, bias: Sequence[Tensor], *, alignment: int = WIDEST_BYTES
) -> None:
    """out[t] = bias[t] + Σ over ranks r of row rows[t, r], or none at -1, of those that begin at the address starts[r].

    Shapes: out (T, H) and bias (T, H) with rows as far apart as each other's; starts (R,) int64; rows (T, R) int32.
    """
    block, block_rows = _blocks(out.shape[1])
    biases = [*bias, out, out]  # out stands for a pointer that is not followed
    with on_device(out):
        start(
            kernel.reduce_kernel, (ceil_div(len(out), block_rows), ceil_div(out.shape[1], block)),
            out, starts, rows, biases[0], biases[1], len(out), out.shape[1], out.stride(0),
            RANKS=len(starts), BIASES=len(bias), BLOCK_TOKENS=block_rows, BLOCK=block, ALIGNMENT=alignment,
            INTERPRET=is_interpreting(), num_warps=4,
        )  # fmt: skip


def publish(out: Tensor, source: Tensor, limit: Tensor | None = None) -> None:
    """out[i] = source[i], of integers (T, width), for the first rows; `limit` (1,) int32 says how many."""
    if not source.numel():
        return
    with on_device(out):
        start(
            kernel.publish_kernel, (len(source),), out, source, out if limit is None else limit, len(source),
            source.shape[1], source.stride(0),
            LIMITED=limit is not None, BLOCK=_blocks(source.shape[1])[0], num_warps=4,
        )  # fmt: skip


def heads(peers: Tensor, at: int, width: int) -> Tensor:
    """The int32 words that each rank has `at` bytes after where its region begins: (R, width)."""
    out = torch.empty(len(peers), width, dtype=torch.int32, device=peers.device)
    with on_device(out):
        start(kernel.heads_kernel, (len(peers),), out, peers, at, width, BLOCK=_blocks(width)[0], num_warps=4)
    return out


def place(  # noqa: PLR0913 (the kernel's own)
    source_rows: Tensor, found: Tensor, ends: Tensor, peers: Tensor, numbers_at: int, *, shape: int, problem: int,
    rank: int,
) -> None:  # fmt: skip
    """source_rows (N,) int32: which token of its source each row is, by the numbers that each source has written.

    `found` (R, …): heads, which begin with the source's tokens and the shape of its call. `ends` (R,): where each
    source's rows end. `problem`: address of an int64, see `kernel.place_kernel`.
    """
    ranks = len(peers)
    with on_device(source_rows):
        start(
            kernel.place_kernel, (ranks, SPLIT), source_rows, found, ends, peers, numbers_at, found.shape[1],
            len(source_rows), shape, problem,
            RANK=rank, RANKS=ranks, BLOCK=PLACED_TOKENS, SPLIT=SPLIT, num_warps=4,
        )  # fmt: skip


def fetch(  # noqa: PLR0913 (the kernel's own)
    out: Tensor, source_rows: Tensor, ends: Tensor, peers: Tensor, at: int, *, tokens_max: int
) -> None:
    """out[i] = row source_rows[i] of its source, of integers (N, width), `at` bytes after where its region begins."""
    ranks = len(peers)
    with on_device(out):
        start(
            kernel.fetch_kernel, (len(out),), out, source_rows, ends, peers, at, len(out), tokens_max, out.shape[1],
            out.stride(0),
            RANKS=ranks, RANKS_PADDED=next_power_of_2(ranks), BLOCK=_blocks(out.shape[1])[0], num_warps=4,
        )  # fmt: skip


def _alignment(addresses: Sequence[int]) -> int:
    """The power of two, up to what one thread loads at once, that divides all addresses."""
    return math.gcd(WIDEST_BYTES, *addresses)


def _blocks(width: int) -> tuple[int, int]:
    """Columns and rows of one program."""
    return min(next_power_of_2(width), BLOCK), INTERPRETED_ROWS if is_interpreting() else BLOCK_ROWS


__all__ = ["fetch", "heads", "layout", "place", "publish", "reduce", "reduce_at", "take"]
