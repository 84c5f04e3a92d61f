"""How a call becomes kernel launches: tiles, grids, scratch memory. Arguments have been checked by `interface`.

Nothing here waits for the device or reads a tensor's values, so that every call can be captured in a CUDA graph.
"""

import math
from dataclasses import dataclass, replace
from typing import Final

import torch
from torch import Tensor

from ..kernels.aot import start
from ..kernels.errors import BadCall
from ..kernels.layers import layer_for, multiprocessors, on_device
from . import backward, hopper, hopper_fp8, hopper_prefill, kernel, layouts
from .call import LATENT, DenseDecode, Results, Scope, SparseDecode, SparsePrefill, Varlen, or_none
from .schedule import ROW_INTS

COMBINE_ROWS: Final = 4
INTERPRETED_COMBINE_ROWS: Final = 64  # a program of the interpreter costs more than its rows
INTERPRETED_MULTIPROCESSORS: Final = 4  # few enough for a quick test, enough to split sequences


@dataclass(frozen=True)
class Tile:
    """One configuration of a kernel: rows and tokens of a step, steps in flight, warps."""

    block_m: int
    block_n: int
    stages: int
    warps: int


# By the query rows (or heads) that share the loaded tokens: with few, memory is the limit, and rows are padding. Eight
# warps hold the output of 64 rows in half of their registers; rows that are scaled on their way go through the others.
DENSE_TILES: Final = {16: Tile(16, 64, 2, 8), 64: Tile(64, 32, 2, 8)}
DENSE_FP8_TILES: Final = {16: Tile(16, 32, 2, 8)}
SPARSE_TILES: Final = {16: Tile(16, 32, 1, 8), 32: Tile(32, 32, 1, 8)}
MODEL1_TILES: Final = {16: Tile(16, 32, 1, 8)}
PREFILL_TILES: Final = {16: Tile(16, 32, 1, 8), 32: Tile(32, 32, 1, 8), 64: Tile(64, 32, 2, 8)}
VARLEN_TILE: Final = Tile(128, 64, 2, 8)
INTERPRETED_VARLEN_TILE: Final = Tile(16, 16, 1, 4)
# Of the gradients: rows that stay hold two or three sums in registers, rows that pass are few.
QUERIES_TILE: Final = Tile(128, 64, 2, 8)
TOKENS_TILE: Final = Tile(32, 128, 2, 8)
SUMS_ROWS: Final = 64


def tile_for(rows: int, tiles: dict[int, Tile]) -> Tile:
    """Return the smallest tile that holds the rows, or the largest there is."""
    return next((tiles[size] for size in sorted(tiles) if size >= rows), tiles[max(tiles)])


def dense_decode(call: DenseDecode) -> tuple[Tensor, Tensor]:
    """See `reference.dense_decode`."""
    q, s_q, h_kv = call.q, call.q.shape[1], call.cache.shape[2]
    fp8 = call.cache.element_size() == 1
    cache = call.cache.view(torch.uint8) if fp8 else call.cache
    with on_device(q):
        plan, results = _begin(call)
        fast = layer_for(q) == "hopper"
        if fast and fp8 and hopper_fp8.takes(q, call.rows, cache):
            scope = Scope(cache, call.table, call.lengths)
            hopper_fp8.decode(q, (scope,), plan, results, scale_log2=call.scale_log2, causal=call.causal)
        elif fast and hopper.takes(call):
            hopper.dense_decode(call, plan, results)
        else:
            tile = tile_for(call.rows, DENSE_FP8_TILES if fp8 else DENSE_TILES)
            start(
                kernel.flash_fwd_splitkv_mla_kernel, (-(-call.rows // tile.block_m), h_kv, len(plan[0])),
                q, cache, call.table, call.lengths, *plan, *results,
                *q.stride()[:3], *cache.stride()[:3], call.table.stride(0),
                cache.shape[0], call.table.shape[1], s_q, call.group, h_kv, call.scale_log2,
                PAGE=cache.shape[1], FORMAT=kernel.FP8_V32 if fp8 else kernel.PLAIN_576, CAUSAL=call.causal,
                **_constants(tile),
            )  # fmt: skip
        _combine(results, plan[1], None, group=call.group, h_kv=h_kv)
    return results[:2]


def sparse_decode(call: SparseDecode) -> tuple[Tensor, Tensor]:
    """See `reference.sparse_decode`."""
    q, sink = call.q, call.sink
    _, s_q, h_q, _ = q.shape
    scopes = tuple(replace(each, cache=each.cache.view(torch.uint8)) for each in call.scopes)
    first, more = scopes[0], scopes[-1]
    model1 = first.cache.shape[-1] == layouts.MODEL1_BYTES
    with on_device(q):
        plan, results = _begin(call)
        if layer_for(q) == "hopper" and hopper_fp8.takes(q, h_q, *(each.cache for each in scopes)):
            hopper_fp8.decode(q, scopes, plan, results, sink=sink, scale_log2=call.scale_log2)
        else:
            tile = tile_for(h_q, MODEL1_TILES if model1 else SPARSE_TILES)
            none = results[1]  # stands for a pointer that the kernel does not follow
            start(
                kernel.flash_fwd_splitkv_mla_fp8_sparse_kernel, (-(-h_q // tile.block_m) * s_q, len(plan[0])),
                q, first.cache, first.names, or_none(first.length, none),
                more.cache, more.names, or_none(more.length, none), or_none(sink, none), *plan, *results,
                *q.stride()[:3], first.cache.stride(0),
                layouts.MODEL1_ROW_BYTES if model1 else layouts.V32_BYTES, *first.names.stride()[:2],
                more.cache.stride(0), *more.names.stride()[:2],
                first.cache.shape[0], more.cache.shape[0], first.names.shape[2], more.names.shape[2],
                s_q, h_q, call.scale_log2,
                PAGE=first.cache.shape[1], EXTRA_PAGE=more.cache.shape[1],
                FORMAT=kernel.FP8_MODEL1 if model1 else kernel.FP8_V32, HAS_LENGTH=first.length is not None,
                HAS_EXTRA=len(scopes) > 1, HAS_EXTRA_LENGTH=len(scopes) > 1 and more.length is not None,
                HAS_SINK=sink is not None,
                **_constants(tile),
            )  # fmt: skip
        _combine(results, plan[1], sink, group=h_q, h_kv=1)
    return results[:2]


def sparse_prefill(call: SparsePrefill) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.sparse_prefill`."""
    q, kv, indices = call.q, call.kv, call.indices
    s_q, h_q, d = q.shape
    out = torch.empty((s_q, h_q, LATENT), dtype=q.dtype, device=q.device)
    max_logits, lse = (torch.empty((s_q, h_q), dtype=torch.float32, device=q.device) for _ in range(2))
    results = out, max_logits, lse
    with on_device(q):
        if layer_for(q) == "hopper" and hopper_prefill.takes(call):
            hopper_prefill.sparse_prefill(call, results)
            return results
        tile = tile_for(h_q, PREFILL_TILES)
        start(
            kernel.sparse_attn_fwd, (-(-h_q // tile.block_m) * s_q,),
            q, kv, indices, or_none(call.length, lse), or_none(call.sink, lse), *results,
            q.stride(0), q.stride(1), kv.stride(0), indices.stride(0),
            kv.shape[0], indices.shape[2], h_q, call.scale_log2,
            FORMAT=kernel.PLAIN_576 if d > LATENT else kernel.PLAIN_512,
            HAS_LENGTH=call.length is not None, HAS_SINK=call.sink is not None,
            **_constants(tile),
        )  # fmt: skip
    return results


def varlen(call: Varlen) -> tuple[Tensor, Tensor]:
    """See `reference.varlen`."""
    q, k, v = call.q, call.k, call.v
    total, h_q, d = q.shape
    # Rows that are in no sequence are zeros, and +inf.
    out = torch.zeros((total, h_q, v.shape[2]), dtype=q.dtype, device=q.device)
    lse = torch.full((h_q, total), math.inf, dtype=torch.float32, device=q.device)
    tile = INTERPRETED_VARLEN_TILE if kernel.INTERPRETED else VARLEN_TILE
    tiles = -(-call.longest[0] // tile.block_m)
    with on_device(q):
        start(
            kernel.flash_fwd_varlen_kernel, (tiles * (len(call.starts_q) - 1), h_q),
            q, k, v, call.starts_q, call.starts_kv, out, lse,
            *q.stride()[:2], *k.stride()[:2], *v.stride()[:2],
            total, h_q, h_q // k.shape[1], tiles, call.scale_log2,
            HAS_ROPE=d > v.shape[2], CAUSAL=call.causal, **_constants(tile),
        )  # fmt: skip
    return out, lse.transpose(0, 1)


def varlen_backward(call: Varlen, grad: Tensor, out: Tensor, lse: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """See `reference.varlen_backward`."""
    q, k, v = call.q, call.k, call.v
    total, h_q, d = q.shape
    h_kv, sequences = k.shape[1], len(call.starts_q) - 1
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    sums = torch.empty((h_q, total), dtype=torch.float32, device=q.device)
    dq, dk, dv = (torch.zeros(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
    given = (q, k, v, grad, lse.transpose(0, 1), sums, call.starts_q, call.starts_kv)
    strides = [each.stride(dim) for each in (q, k, v, grad) for dim in (0, 1)]
    kinds = {"HAS_ROPE": d > v.shape[2], "CAUSAL": call.causal}
    rows, tokens = QUERIES_TILE, TOKENS_TILE
    if kernel.INTERPRETED:
        rows = tokens = INTERPRETED_VARLEN_TILE
    tiles_q, tiles_kv = -(-call.longest[0] // rows.block_m), -(-call.longest[1] // tokens.block_n)
    with on_device(q):
        start(
            backward.attention_sums_kernel, (-(-total // SUMS_ROWS), h_q),
            grad, out, sums, grad.stride(0), grad.stride(1), total, h_q, BLOCK_M=SUMS_ROWS, num_warps=4,
        )  # fmt: skip
        start(
            backward.flash_bwd_varlen_queries_kernel, (tiles_q * sequences, h_q),
            *given, dq, *strides, total, h_q, h_q // h_kv, tiles_q, call.scale, **kinds, **_constants(rows),
        )  # fmt: skip
        start(
            backward.flash_bwd_varlen_tokens_kernel, (tiles_kv * sequences, h_kv),
            *given, dk, dv, *strides, total, h_kv, h_q // h_kv, tiles_kv, call.scale, **kinds, **_constants(tokens),
        )  # fmt: skip
    return dq, dk, dv


def _begin(call: DenseDecode | SparseDecode) -> tuple[tuple[Tensor, Tensor], Results]:
    """Return the schedule, made on the device by the first call of a step, and memory for the results."""
    q, lengths, schedule = call.q, call.lengths, call.schedule
    b, s_q, h_q, _ = q.shape
    table, splits = schedule.tile_scheduler_metadata, schedule.num_splits
    if table is None or splits is None:
        parts = call.parts(
            INTERPRETED_MULTIPROCESSORS if q.device.type == "cpu" else multiprocessors(q.device)
        )
        table = torch.empty((parts, ROW_INTS), dtype=torch.int32, device=q.device)
        splits = torch.empty((b + 1,), dtype=torch.int32, device=q.device)
        start(kernel.schedule_kernel, (1,), lengths, table, splits, b, parts, num_warps=1)
        schedule.tile_scheduler_metadata, schedule.num_splits = table, splits
    if table.device != q.device:
        raise BadCall(
            f"this schedule is on {table.device}, the tensors are on {q.device}: "
            "make one with get_mla_metadata() for each device"
        )
    out = torch.empty((b, s_q, h_q, LATENT), dtype=q.dtype, device=q.device)
    pieces = b + len(table)
    shapes = (b, h_q, s_q), (pieces, s_q * h_q, LATENT), (pieces, s_q * h_q)
    lse, piece_out, piece_lse = (torch.empty(each, dtype=torch.float32, device=q.device) for each in shapes)
    return (table, splits), (out, lse, piece_out, piece_lse)


def _combine(results: Results, splits: Tensor, sink: Tensor | None, *, group: int, h_kv: int) -> None:
    """Join the pieces of sequences."""
    out, lse, piece_out, piece_lse = results
    b, s_q = out.shape[:2]
    block = INTERPRETED_COMBINE_ROWS if kernel.INTERPRETED else COMBINE_ROWS
    grid = (-(-s_q * group * h_kv // block) * b,)
    start(
        kernel.flash_fwd_mla_combine_kernel, grid,
        piece_out, piece_lse, splits, out, lse, or_none(sink, lse), s_q, group, h_kv,
        HAS_SINK=sink is not None, BLOCK_R=block, num_warps=4,
    )  # fmt: skip


def _constants(tile: Tile) -> dict[str, int]:
    return {"BLOCK_M": tile.block_m, "BLOCK_N": tile.block_n, "STAGES": tile.stages, "num_warps": tile.warps}


__all__ = [
    "DENSE_FP8_TILES", "DENSE_TILES", "MODEL1_TILES", "PREFILL_TILES", "QUERIES_TILE", "SPARSE_TILES",
    "TOKENS_TILE", "VARLEN_TILE", "Tile", "dense_decode", "sparse_decode", "sparse_prefill", "tile_for", "varlen",
    "varlen_backward",
]  # fmt: skip
