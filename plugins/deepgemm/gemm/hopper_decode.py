"""The fast path for few rows on Hopper, in Gluon: what decoding asks of FP8 and bfloat16 products, dense and masked.

The product is computed transposed: 128 rows of weights fill both warpgroups' instructions, 64 each, and the tokens are
their columns, TOKENS of them: as many as there are, rounded up to a power of two, of FP8 at most 64. A dense product
whose tiles leave multiprocessors idle is cut along k into SPLITS parts (`parts` float32), which
`kernel.split_sum_kernel` adds in order.

One warp loads, as in `hopper_products`, whose invariants hold with the weights as A and the tokens as B.
"""

from typing import Any

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ...kernels.quantize import BLOCK
from .call import MASKED, NAME_PREFIXES
from .hopper_products import add_blocks, add_steps
from .tile_scheduler import CONSUMER_WARPS, WAVE_ROWS, claim, share_of, slot_barriers, tma_load

WEIGHTS = 2 * WAVE_ROWS  # rows of a tile: as many as have one scale

_K: gl.constexpr = gl.constexpr(BLOCK)
_MASKED: gl.constexpr = gl.constexpr(MASKED)
_WARPS: gl.constexpr = gl.constexpr(CONSUMER_WARPS)
_ROWS: gl.constexpr = gl.constexpr(WAVE_ROWS)
_WEIGHTS: gl.constexpr = gl.constexpr(WEIGHTS)


@gluon.jit
def _item(tile, rows_end, tiles_n, steps, SPLITS: gl.constexpr, TOKENS: gl.constexpr):
    """Of a piece of work: its first token and row of weights, its part of k, and where the steps of that begin and end.

    Tiles of tokens that meet the same weights follow one another, so that the L2 cache has them.
    """
    token_tiles = gl.cdiv(rows_end, TOKENS)
    each = gl.cdiv(steps, SPLITS)
    number = tile // token_tiles
    split = number // tiles_n
    begin = gl.minimum(split * each, steps)
    end = gl.minimum(begin + each, steps)
    return tile % token_tiles * TOKENS, number % tiles_n * _WEIGHTS, split, begin, end


@gluon.jit
def _load(
    weights, tokens, slots, masked_m, sizes,
    MODE: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr, TOKENS: gl.constexpr, STEP: gl.constexpr,
    SPLITS: gl.constexpr,
):  # fmt: skip
    BYTES: gl.constexpr = 2 * weights.block_type.nbytes + tokens.block_type.nbytes
    weight_slots, token_slots, filled, free = slots
    m, n, k, groups = sizes
    tiles_n = gl.cdiv(n, _WEIGHTS)
    step = 0
    dealt = 0
    for group in range(groups):
        rows_end, tiles, first_tile = share_of(
            masked_m, group, m, tiles_n * SPLITS, dealt, MODE, TOKENS, PROGRAMS
        )
        dealt += tiles
        for tile in range(first_tile, tiles, PROGRAMS):
            token, row, _, begin, end = _item(tile, rows_end, tiles_n, gl.cdiv(k, STEP), SPLITS, TOKENS)
            for block in range(begin, end):
                slot, barrier = claim(filled, free, step, BYTES, STAGES)
                for half in gl.static_range(2):
                    place = weight_slots.index(2 * slot + half)
                    tma_load(weights, [group * n + row + half * _ROWS, block * STEP], barrier, place)
                tma_load(tokens, [group * m + token, block * STEP], barrier, token_slots.index(slot))
                step += 1


@gluon.jit
def _multiply(
    slots, d, parts, scales, masked_m, sizes, strides,
    MODE: gl.constexpr, FP8: gl.constexpr, ACCUMULATE: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    TOKENS: gl.constexpr, STEP: gl.constexpr, SPLITS: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """One of two warpgroups: 64 rows of weights of every tile."""
    SUMS: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [_WARPS, 1], [16, TOKENS, 32 if FP8 else 16])
    sfa, sfb = scales
    m, n, k, groups = sizes
    d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k = strides
    tiles_n = gl.cdiv(n, _WEIGHTS)
    step = 0
    dealt = 0
    for group in range(groups):
        rows_end, tiles, first_tile = share_of(
            masked_m, group, m, tiles_n * SPLITS, dealt, MODE, TOKENS, PROGRAMS
        )
        dealt += tiles
        wide = gl.to_tensor(group).to(gl.int64)
        for tile in range(first_tile, tiles, PROGRAMS):
            token, row, split, begin, end = _item(tile, rows_end, tiles_n, gl.cdiv(k, STEP), SPLITS, TOKENS)
            rows = row + HALF * _ROWS + gl.arange(0, _ROWS, layout=gl.SliceLayout(1, SUMS))
            tokens = token + gl.arange(0, TOKENS, layout=gl.SliceLayout(0, SUMS))
            mask = (gl.expand_dims(rows, 1) < n) & (gl.expand_dims(tokens, 0) < rows_end)
            places = gl.expand_dims(tokens.to(gl.int64), 0) * d_m + gl.expand_dims(rows, 1)
            if ACCUMULATE:
                total = gl.load(d + places, mask=mask & (split == 0), other=0.0).to(gl.float32)
            else:
                total = gl.zeros((_ROWS, TOKENS), gl.float32, SUMS)
            if FP8:
                # A tile of weights has one scale for a step; each token has its own.
                of_rows = sfb + (wide * sfb_g + begin * sfb_k) + (rows // _K).to(gl.int64) * sfb_n
                of_tokens = sfa + (wide * sfa_g + begin * sfa_k) + tokens.to(gl.int64) * sfa_m
                total, _, step = add_blocks(
                    total, total, slots, step, end - begin, (of_rows, of_tokens), (sfb_n, sfb_k, sfa_k),
                    (rows, n, tokens < rows_end), STAGES, _WEIGHTS, TOKENS, _ROWS, TOKENS, True, HALF, SUMS,
                )  # fmt: skip
            else:
                total, step = add_steps(total, slots, step, end - begin, STAGES, False, False, HALF)
            if SPLITS > 1:
                own = gl.expand_dims((split * m + tokens).to(gl.int64), 0) * n + gl.expand_dims(rows, 1)
                gl.store(parts + own, total, mask=mask)
            else:
                gl.store(d + wide * d_g + places, total.to(d.dtype.element_ty), mask=mask)


def _name(specialization: Any) -> str:
    constants = specialization.constants
    kind = "fp8_gemm_1d2d" if constants["FP8"] else "bf16_gemm"
    return f"{NAME_PREFIXES[constants['MODE']]}{kind}_decode_ws_kernel"


@gluon.jit(repr=_name, do_not_specialize=["m", "groups", "d_g", "sfa_g", "sfa_k"])
def decode_gemm_kernel(
    weights, tokens, d, parts, sfa, sfb, masked_m, m, n, k, groups, d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k,
    MODE: gl.constexpr, FP8: gl.constexpr, ACCUMULATE: gl.constexpr, TOKENS: gl.constexpr, STEP: gl.constexpr,
    SPLITS: gl.constexpr, STAGES: gl.constexpr, PROGRAMS: gl.constexpr,
    CONSUMER_REGISTERS: gl.constexpr, LOADER_REGISTERS: gl.constexpr,
):  # fmt: skip
    """Persistent: PROGRAMS programs share tiles and parts of k. m: tokens, or for how many a group has room."""
    weight_slots = gl.allocate_shared_memory(weights.dtype, [2 * STAGES, _ROWS, STEP], weights.layout)
    token_slots = gl.allocate_shared_memory(tokens.dtype, [STAGES, TOKENS, STEP], tokens.layout)
    filled, free = slot_barriers(STAGES)
    slots = (weight_slots, token_slots, filled, free)
    scales = (sfa, sfb)
    sizes = (m, n, k, groups)
    strides = (d_g, d_m, sfa_g, sfa_m, sfa_k, sfb_g, sfb_n, sfb_k)
    gl.warp_specialize(
        [
            (
                _multiply,
                (slots, d, parts, scales, masked_m, sizes, strides, MODE, FP8, ACCUMULATE, STAGES, PROGRAMS, TOKENS,
                 STEP, SPLITS, 0),
            ),
            (
                _multiply,
                (slots, d, parts, scales, masked_m, sizes, strides, MODE, FP8, ACCUMULATE, STAGES, PROGRAMS, TOKENS,
                 STEP, SPLITS, 1),
            ),
            (_load, (weights, tokens, slots, masked_m, sizes, MODE, STAGES, PROGRAMS, TOKENS, STEP, SPLITS)),
        ],
        [_WARPS, 1],
        [CONSUMER_REGISTERS, LOADER_REGISTERS],
    )  # fmt: skip


__all__ = ["WEIGHTS", "decode_gemm_kernel"]
