"""How much memory calls want, and how many processors the original would use."""

import math
from typing import Final

from ...kernels.errors import refuse
from ...kernels.quantize import align
from ..arguments import TOPK_MAX
from ..normal.facts import TEXT_BYTES

UNIT_BYTES: Final = 2 << 20
"""Sizes are multiples of it."""
ROW_BYTES: Final = 32
"""Rows of other memory than dispatch's begin at multiples of it."""
SMS_MIN: Final = 4
SMS_MAX: Final = 160
SMS_WITHOUT_OVERLAP: Final = 64
HEADROOM: Final = 1.25
NVLINK_GBS: Final = 450.0
"""Of an H100 in one direction."""
QPS_MAX: Final = 9


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


def sms(  # noqa: PLR0913 (what the estimate is made of)
    ranks: int,
    experts: int,
    topk: int,
    *,
    nvlink_gbs: float,
    read_gbs: float,
    write_gbs: float,
    overlap: bool,
) -> int:
    """Processors that fill a link: each token is read once and written once for each rank that it goes to."""
    if experts < 1 or experts % ranks or not 0 < topk <= experts:
        refuse(
            "num_experts, num_topk",
            (experts, topk),
            f"experts are a multiple of {ranks}, and top-k of them at most",
        )
    others = experts - experts // ranks
    missed = math.comb(others, topk) / math.comb(experts, topk)
    copies = ranks * (1 - missed)
    wanted = (nvlink_gbs or NVLINK_GBS) * HEADROOM * (1 / write_gbs + 1 / (copies * read_gbs))
    found = min(max(align(math.ceil(wanted), 2), SMS_MIN), SMS_MAX)
    return found if overlap else max(found, SMS_WITHOUT_OVERLAP)


__all__ = ["QPS_MAX", "SMS_MAX", "UNIT_BYTES", "buffer_bytes", "least_bytes", "row_bytes", "sms"]
