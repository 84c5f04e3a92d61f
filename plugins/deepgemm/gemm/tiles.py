"""Which tile a product is cut into: a pure choice by shape and number of multiprocessors.

Order: the least time by a model of the chip, then the fullest last wave, then the least traffic. Few rows are computed
transposed, with the weights in the rows of the tensor core's instruction.

The model: a step of a tile takes the longer of multiplying it and of bringing its operands from the L2 cache, and every
wave over the multiprocessors takes as long as one tile.
"""

from dataclasses import dataclass
from typing import Final

from ...kernels.quantize import ceil_div

SHARED_BYTES: Final = 227 * 1024
SWAP_ROWS_MAX: Final = 64  # rows up to which the transposed tile is used
STAGES_MAX: Final = 4  # steps of K in flight
# Of steps in flight on the fast path, beside 32 KiB in which results leave.
SPECIALISED_BYTES: Final = 192 * 1024
DECODE_ROWS_MAX: Final = 128
FP8_DECODE_TOKENS: Final = 64
DECODE_WEIGHTS: Final = 128  # columns of D of a tile
DECODE_STEPS_MIN: Final = 4  # of a part of K: about the time in which a part's sums are written and read
# 128 KiB of weights in flight: more than bandwidth times latency of a multiprocessor.
DECODE_STAGES_MAX: Final = 8
FP8_STEP: Final = 128  # columns of K
BF16_STEP: Final = 64
# Of a step of 128 bytes of K of either type: results a cycle finishes, and cycles a row takes from the L2 cache.
RESULTS_PER_CYCLE: Final = 32
CYCLES_PER_ROW: Final = 3.2  # 40 bytes a cycle for each multiprocessor


@dataclass(frozen=True)
class Tile:
    """Rows, columns and depth of a step; steps in flight; warps; whether it is computed transposed."""

    block_m: int
    block_n: int
    k_step: int
    stages: int
    warps: int
    swap: bool = False


def choose(  # noqa: PLR0913 (what a product is made of)
    rows: int,
    n: int,
    *,
    fp8: bool,
    groups: int,
    programs: int,
    alignment: int,
    multiple_of: tuple[int, int] = (1, 1),
) -> Tile:
    """The tile for `groups` products of about `rows` rows and n columns.

    `alignment` bounds the rows of a tile: 128, or the rows to which groups are aligned.
    """
    k_step = FP8_STEP if fp8 else BF16_STEP
    if rows <= SWAP_ROWS_MAX:
        size = max(16, 1 << (rows - 1).bit_length() if rows > 1 else 16, multiple_of[0])
        return _staged(min(size, alignment), 128, k_step, warps=4, fp8=fp8, swap=True)
    candidates = [
        (m, columns)
        for m in (64, 128)
        for columns in (64, 128, 256)
        if m <= alignment
        and m % multiple_of[0] == 0
        and columns % multiple_of[1] == 0
        # Two accumulators of 128 x 256 float32, one for the step and one for the sum, do not fit the registers.
        and m * columns <= (128 * 128 if fp8 else 128 * 256)
    ] or [(min(64, alignment), 128)]

    m, columns = _cheapest(candidates, rows, n, groups=groups, programs=programs)
    return _staged(m, columns, k_step, warps=8 if m * columns >= 128 * 128 else 4, fp8=fp8)


def choose_specialised(  # noqa: PLR0913 (what a product is made of)
    rows: int,
    n: int,
    *,
    fp8: bool,
    groups: int,
    programs: int,
    row_scales: bool,
    tall: bool,
    multiple_of: tuple[int, int] = (1, 1),
) -> Tile:
    """The tile of the fast path, two warpgroups wide. `tall`: more than 128 rows may have one tile.

    `row_scales`: B has a scale for each row, so many that only 64 rows a warpgroup fit the registers.
    """
    candidates = [(128, 128)]
    if not row_scales:
        candidates.append((128, 256))
    if fp8 and tall and not row_scales:
        candidates.append((256, 128))
    fitting = [
        (m, columns) for m, columns in candidates if m % multiple_of[0] == columns % multiple_of[1] == 0
    ]
    m, columns = _cheapest(fitting or candidates[:1], rows, n, groups=groups, programs=programs)
    step = FP8_STEP if fp8 else BF16_STEP
    step_bytes = (m + columns) * step * (1 if fp8 else 2)
    return Tile(m, columns, step, SPECIALISED_BYTES // step_bytes, 8)


@dataclass(frozen=True)
class Decode:
    """A product of few rows: tokens of a tile, columns of K of a step, parts that K is cut into, steps in flight, and
    pieces of work, if it is dense.
    """

    tokens: int
    k_step: int
    splits: int
    stages: int
    items: int


def choose_decode(  # noqa: PLR0913 (what a product is made of)
    rows: int,
    n: int,
    k: int,
    *,
    fp8: bool,
    programs: int,
    can_split: bool,
    multiple_of: tuple[int, int] = (1, 1),
) -> Decode:
    """How a product of up to 128 rows is computed, with 128 columns of D in the rows of the instruction.

    Weights are read once whatever is chosen, so what counts is how many multiprocessors read: K is cut while tiles
    leave some of them idle, but not into parts of fewer than DECODE_STEPS_MIN steps, whose sums cost more than they
    gain. An FP8 tile has two sums of its tokens in registers, and scales of each: 64 tokens fit.
    """
    most = FP8_DECODE_TOKENS if fp8 else DECODE_ROWS_MAX
    tokens = min(max(16, multiple_of[0], 1 << max(rows - 1, 1).bit_length()), max(most, multiple_of[0]))
    k_step = FP8_STEP if fp8 else BF16_STEP
    steps, tiles = ceil_div(k, k_step), ceil_div(n, DECODE_WEIGHTS) * ceil_div(rows, tokens)
    splits = max(1, min(programs // tiles, steps // DECODE_STEPS_MIN)) if can_split else 1
    splits = ceil_div(steps, ceil_div(steps, splits))  # no empty parts
    step_bytes = (DECODE_WEIGHTS + tokens) * k_step * (1 if fp8 else 2)
    stages = min(SPECIALISED_BYTES // step_bytes, DECODE_STAGES_MAX)
    return Decode(tokens, k_step, splits, stages, tiles * splits)


def _cheapest(
    candidates: list[tuple[int, int]], rows: int, n: int, *, groups: int, programs: int
) -> tuple[int, int]:
    def cost(size: tuple[int, int]) -> tuple[float, int, int]:
        m, columns = size
        tiles = groups * ceil_div(rows, m) * ceil_div(n, columns)
        waves = ceil_div(tiles, programs)
        idle = waves * programs - tiles
        step = max(m * columns / RESULTS_PER_CYCLE, (m + columns) * CYCLES_PER_ROW)
        return waves * step, idle * m * columns, (m + columns) * tiles

    return min(candidates, key=cost)


def _staged(  # noqa: PLR0913 (what a tile is made of)
    m: int, n: int, k_step: int, *, warps: int, fp8: bool, swap: bool = False
) -> Tile:
    step_bytes = (m + n) * k_step * (1 if fp8 else 2)
    stages = max(2, min(STAGES_MAX, SHARED_BYTES // step_bytes - 1))
    return Tile(m, n, k_step, stages, warps, swap)


__all__ = [
    "BF16_STEP", "DECODE_ROWS_MAX", "FP8_STEP", "Decode", "Tile", "choose", "choose_decode", "choose_specialised",
]  # fmt: skip
