"""How much memory calls want."""

from typing import Final

from ...kernels.errors import refuse
from ...kernels.quantize import align
from ..arguments import TOPK_MAX
from ..normal.tokens import TEXT_BYTES

UNIT_BYTES: Final = 2 << 20
"""Sizes are multiples of it."""
ROW_BYTES: Final = 32
"""Rows of other memory than dispatch's begin at multiples of it."""


def buffer_bytes(ranks: int, tokens: int, hidden: int, *, topk: int = 0, fp8: bool = False) -> int:
    """So that calls of `tokens` a rank take one turn, if experts are chosen evenly. Smaller buffers take more turns."""
    if tokens < 1 or hidden < 1:
        refuse("num_max_tokens_per_rank, hidden", (tokens, hidden), "they must be positive")
    ks = topk or TOPK_MAX
    sent = ks * 12 + (hidden + hidden // 32 if fp8 else hidden * 2)
    back = hidden * 2 + ks * 4
    rows = tokens * min(ranks, ks)
    return align(rows * max(sent, back) + tokens * ranks * 4 + least_bytes(ranks), UNIT_BYTES)


def least_bytes(ranks: int) -> int:
    """For what ranks tell one another in each call: facts, and counts of 2048 experts."""
    return TEXT_BYTES + 4 * (64 + 2 * ranks + 2048) + 16 * 64


def row_bytes(hidden: int, item_bytes: int) -> int:
    """Of an entry that is fetched."""
    return align(hidden * item_bytes, ROW_BYTES)


__all__ = ["ROW_BYTES", "UNIT_BYTES", "buffer_bytes", "least_bytes", "row_bytes"]
