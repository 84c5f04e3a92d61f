"""Which program works on which blocks of which sequence.

A call has a fixed number of parts, about one a multiprocessor, and every part gets the same amount of work: blocks of
64 tokens, plus a fixed cost for each sequence that it touches. Sequences are laid out one after another and cut where
a part is full; the pieces of a sequence are put together afterwards (split-KV).

    I1  the pieces of a sequence follow one another and cover each of its blocks exactly once
    I2  a sequence has at least one block, so that an empty one has a piece that writes its result
    I3  parts are used in order; a part without work begins behind the last sequence

A row of the table is eight int32: first sequence, last sequence, first block of the first one, end of the last one's
blocks, number of the first piece within its sequence, whether the first and the last sequence are split, and nothing.
The values and the constant 5 are those of FlashMLA; `schedule_kernel` of `kernel.py` computes the same on the device.
"""

from dataclasses import dataclass
from typing import Final

import torch

BLOCK_TOKENS: Final = 64
FIXED_COST_BLOCKS: Final = 5  # what one sequence's set-up and result cost a part, in blocks
ROW_INTS: Final = 8
ROW_TILE: Final = 64  # packed query rows that one part works on at a time


@dataclass(frozen=True)
class Config:
    """What a schedule was made for. A schedule serves all calls of one decoding step that agree in this."""

    b: int
    s_q: int
    h_q: int
    page_block_size: int
    h_k: int
    causal: bool
    is_fp8_kvcache: bool
    topk: int | None
    extra_page_block_size: int | None
    extra_topk: int | None


@dataclass
class FlashMLASchedMeta:
    """The schedule of one decoding step: empty until its first call, then used again by every layer of the model.

    Make a new one for each step: a call checks the shapes, never the values of `cache_seqlens` or `topk_length`.
    """

    have_initialized: bool = False
    config: Config | None = None
    tile_scheduler_metadata: torch.Tensor | None = None
    num_splits: torch.Tensor | None = None


def part_count(multiprocessors: int, *, kv_heads: int, rows: int) -> int:
    """Return the parts of a call whose `rows` packed query rows a KV head are worked on in tiles of 64."""
    return max(multiprocessors // kv_heads // max(-(-rows // ROW_TILE), 1), 1)


def make_schedule(lengths: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make the table (parts, 8) and the number of pieces before each sequence (b + 1), both int32 on the CPU."""
    blocks = [max(-(-length // BLOCK_TOKENS), 1) for length in lengths.tolist()]
    b = len(blocks)
    payload = -(-sum(each + FIXED_COST_BLOCKS for each in blocks) // parts) + FIXED_COST_BLOCKS
    table = torch.zeros((parts, ROW_INTS), dtype=torch.int32)
    splits = [0]
    request, block, piece = 0, 0, 0
    for part in range(parts):
        first = (request, block, piece)
        left, end = payload, 0
        while request < b:
            remaining = blocks[request] - block
            if left >= remaining + FIXED_COST_BLOCKS:
                left -= remaining + FIXED_COST_BLOCKS
                end = blocks[request]
                splits.append(splits[-1] + piece + 1)
                request, block, piece = request + 1, 0, 0
            else:
                if left > FIXED_COST_BLOCKS:
                    block += left - FIXED_COST_BLOCKS
                    piece += 1
                    end = block
                break
        table[part] = torch.tensor(_row(first, (request, block), end, b), dtype=torch.int32)
    assert request == b, "the payload of a part is large enough for all the work"
    return table, torch.tensor(splits, dtype=torch.int32)


def _row(first: tuple[int, int, int], after: tuple[int, int], end: int, b: int) -> list[int]:
    request, block, piece = first
    last = after[0] if after[1] > 0 else after[0] - 1
    if last < request:
        return [b, b - 1, 0, 0, 0, 0, 0, 0]
    alone = last == request
    starts_inside, ends_inside = block > 0, after[1] > 0
    first_split = starts_inside or (alone and ends_inside)
    last_split = ends_inside or (alone and starts_inside)
    return [request, last, block, end, piece, int(first_split), int(last_split), 0]


__all__ = [
    "BLOCK_TOKENS", "FIXED_COST_BLOCKS", "ROW_INTS", "ROW_TILE", "Config", "FlashMLASchedMeta", "make_schedule",
    "part_count",
]  # fmt: skip
