"""How a call becomes kernel launches: tiles, grids, scratch memory. Arguments have been checked by `interface`.

Nothing here waits for the device or reads a tensor's values, so that every call can be captured in a CUDA graph.
"""

import math
from dataclasses import dataclass
from typing import Final

import torch

from ..kernels.aot import start
from ..kernels.errors import BadCall
from ..kernels.layers import layer_for, multiprocessors, on_device
from . import backward, hopper, hopper_fp8, hopper_prefill, kernel, layouts
from .schedule import ROW_INTS, FlashMLASchedMeta, part_count, sparse_lengths

LATENT: Final = 512
COMBINE_ROWS: Final = 4
INTERPRETED_COMBINE_ROWS: Final = 64  # a program of the interpreter costs more than its rows
INTERPRETED_MULTIPROCESSORS: Final = 4  # few enough for a quick test, enough to split sequences
_LOG2E: Final = math.log2(math.e)


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


@dataclass(frozen=True)
class Extra:
    """The second cache of a sparse call, and what to look at in it."""

    cache: torch.Tensor
    indices: torch.Tensor
    length: torch.Tensor | None


def tile_for(rows: int, tiles: dict[int, Tile]) -> Tile:
    """The smallest tile that holds the rows, or the largest there is."""
    return next((tiles[size] for size in sorted(tiles) if size >= rows), tiles[max(tiles)])


def dense_decode(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    schedule: FlashMLASchedMeta,
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.dense_decode`; the cache may also be FP8 in V3.2 layout."""
    _, s_q, h_q, _ = q.shape
    fp8 = k_cache.element_size() == 1
    cache = k_cache.view(torch.uint8) if fp8 else k_cache
    h_kv = cache.shape[2]
    group = h_q // h_kv
    rows = s_q * group
    with on_device(q):
        parts = part_count(_multiprocessors(q.device), kv_heads=h_kv, rows=rows)
        table, splits = _schedule(schedule, cache_seqlens, parts)
        out, lse, piece_out, piece_lse = _results(q, len(table))
        results, scale_log2 = (out, lse, piece_out, piece_lse), scale * _LOG2E
        fast = layer_for(q) == "hopper"
        if fast and fp8 and hopper_fp8.takes(q, rows, cache):
            named = hopper_fp8.Names(cache, block_table, cache_seqlens)
            hopper_fp8.decode(
                q, named, None, (table, splits), results, sink=None, scale_log2=scale_log2, causal=causal
            )
        elif fast and hopper.takes(q, cache):
            hopper.dense_decode(
                q,
                cache,
                block_table,
                cache_seqlens,
                (table, splits),
                results,
                scale_log2=scale_log2,
                causal=causal,
            )
        else:
            tile = tile_for(rows, DENSE_FP8_TILES if fp8 else DENSE_TILES)
            start(
                kernel.flash_fwd_splitkv_mla_kernel, (-(-rows // tile.block_m), h_kv, len(table)),
                q, cache, block_table, cache_seqlens, table, splits, *results,
                q.stride(0), q.stride(1), q.stride(2), cache.stride(0), cache.stride(1), cache.stride(2),
                block_table.stride(0), cache.shape[0], block_table.shape[1], s_q, group, h_kv, scale_log2,
                PAGE=cache.shape[1], FORMAT=kernel.FP8_V32 if fp8 else kernel.PLAIN_576, CAUSAL=causal,
                **_constants(tile),
            )  # fmt: skip
        _combine(results, splits, None, group=group, h_kv=h_kv)
    return out, lse


def sparse_decode(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    k_cache: torch.Tensor,
    indices: torch.Tensor,
    schedule: FlashMLASchedMeta,
    *,
    scale: float,
    attn_sink: torch.Tensor | None,
    topk_length: torch.Tensor | None,
    extra: Extra | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.sparse_decode`."""
    b, s_q, h_q, _ = q.shape
    model1 = k_cache.shape[-1] == layouts.MODEL1_BYTES
    cache = k_cache.view(torch.uint8)
    more = extra or Extra(cache, indices, None)
    more_cache = more.cache.view(torch.uint8)
    extra_topk = more.indices.shape[2] if extra else None
    with on_device(q):
        lengths = sparse_lengths(b, indices.shape[2], topk_length, extra_topk, more.length, device=q.device)
        parts = part_count(_multiprocessors(q.device) // max(s_q, 1), kv_heads=1, rows=h_q)
        table, splits = _schedule(schedule, lengths, parts)
        out, lse, piece_out, piece_lse = _results(q, len(table))
        results, scale_log2 = (out, lse, piece_out, piece_lse), scale * _LOG2E
        if layer_for(q) == "hopper" and hopper_fp8.takes(q, h_q, cache, more_cache):
            first = hopper_fp8.Names(cache, indices, topk_length)
            second = hopper_fp8.Names(more_cache, more.indices, more.length) if extra else None
            hopper_fp8.decode(
                q,
                first,
                second,
                (table, splits),
                results,
                sink=attn_sink,
                scale_log2=scale_log2,
                causal=False,
            )
        else:
            tile = tile_for(h_q, MODEL1_TILES if model1 else SPARSE_TILES)
            none = lse  # stands for a pointer that the kernel does not follow
            start(
                kernel.flash_fwd_splitkv_mla_fp8_sparse_kernel, (-(-h_q // tile.block_m) * s_q, len(table)),
                q, cache, indices, _or(topk_length, none), more_cache, more.indices, _or(more.length, none),
                _or(attn_sink, none), table, splits, *results,
                q.stride(0), q.stride(1), q.stride(2), cache.stride(0),
                layouts.MODEL1_ROW_BYTES if model1 else layouts.V32_BYTES,
                indices.stride(0), indices.stride(1),
                more_cache.stride(0), more.indices.stride(0), more.indices.stride(1),
                cache.shape[0], more_cache.shape[0], indices.shape[2], more.indices.shape[2], s_q, h_q, scale_log2,
                PAGE=cache.shape[1], EXTRA_PAGE=more_cache.shape[1],
                FORMAT=kernel.FP8_MODEL1 if model1 else kernel.FP8_V32, HAS_LENGTH=topk_length is not None,
                HAS_EXTRA=extra is not None, HAS_EXTRA_LENGTH=more.length is not None, HAS_SINK=attn_sink is not None,
                **_constants(tile),
            )  # fmt: skip
        _combine(results, splits, attn_sink, group=h_q, h_kv=1)
    return out, lse


def sparse_prefill(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    *,
    scale: float,
    attn_sink: torch.Tensor | None,
    topk_length: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.sparse_prefill`."""
    s_q, h_q, d = q.shape
    out = torch.empty((s_q, h_q, LATENT), dtype=q.dtype, device=q.device)
    max_logits, lse = (torch.empty((s_q, h_q), dtype=torch.float32, device=q.device) for _ in range(2))
    tile = tile_for(h_q, PREFILL_TILES)
    with on_device(q):
        if layer_for(q) == "hopper" and hopper_prefill.takes(q, kv):
            hopper_prefill.sparse_prefill(
                q, kv, (indices, topk_length), attn_sink, (out, max_logits, lse), scale_log2=scale * _LOG2E
            )
            return out, max_logits, lse
        start(
            kernel.sparse_attn_fwd, (-(-h_q // tile.block_m) * s_q,),
            q, kv, indices, _or(topk_length, lse), _or(attn_sink, lse), out, max_logits, lse,
            q.stride(0), q.stride(1), kv.stride(0), indices.stride(0),
            kv.shape[0], indices.shape[2], h_q, scale * _LOG2E,
            FORMAT=kernel.PLAIN_576 if d > LATENT else kernel.PLAIN_512,
            HAS_LENGTH=topk_length is not None, HAS_SINK=attn_sink is not None,
            **_constants(tile),
        )  # fmt: skip
    return out, max_logits, lse


def varlen(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts_q: torch.Tensor,
    starts_kv: torch.Tensor,
    max_queries: int,
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """See `reference.varlen`."""
    total, h_q, d = q.shape
    # Rows that are in no sequence are zeros, and +inf.
    out = torch.zeros((total, h_q, v.shape[2]), dtype=q.dtype, device=q.device)
    lse = torch.full((h_q, total), math.inf, dtype=torch.float32, device=q.device)
    tile = INTERPRETED_VARLEN_TILE if kernel.INTERPRETED else VARLEN_TILE
    tiles = -(-max_queries // tile.block_m)
    with on_device(q):
        start(
            kernel.flash_fwd_varlen_kernel, (tiles * (len(starts_q) - 1), h_q),
            q, k, v, starts_q, starts_kv, out, lse,
            q.stride(0), q.stride(1), k.stride(0), k.stride(1), v.stride(0), v.stride(1),
            total, h_q, h_q // k.shape[1], tiles, scale * _LOG2E,
            HAS_ROPE=d > v.shape[2], CAUSAL=causal,
            **_constants(tile),
        )  # fmt: skip
    return out, lse.transpose(0, 1)


def varlen_backward(  # noqa: PLR0913 (the operator's own)
    grad: torch.Tensor,
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    starts_q: torch.Tensor,
    starts_kv: torch.Tensor,
    longest: tuple[int, int],
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """See `reference.varlen_backward`."""
    q, k, v, out, lse = saved
    total, h_q, d = q.shape
    h_kv, sequences = k.shape[1], len(starts_q) - 1
    grad = grad if grad.stride(2) == 1 else grad.contiguous()
    sums = torch.empty((h_q, total), dtype=torch.float32, device=q.device)
    dq, dk, dv = (torch.zeros(each.shape, dtype=each.dtype, device=each.device) for each in (q, k, v))
    given = (q, k, v, grad, lse.transpose(0, 1), sums, starts_q, starts_kv)
    strides = [each.stride(dim) for each in (q, k, v, grad) for dim in (0, 1)]
    kinds = {"HAS_ROPE": d > v.shape[2], "CAUSAL": causal}
    rows, tokens = QUERIES_TILE, TOKENS_TILE
    if kernel.INTERPRETED:
        rows = tokens = INTERPRETED_VARLEN_TILE
    tiles_q, tiles_kv = -(-longest[0] // rows.block_m), -(-longest[1] // tokens.block_n)
    with on_device(q):
        start(
            backward.attention_sums_kernel, (-(-total // SUMS_ROWS), h_q),
            grad, out, sums, grad.stride(0), grad.stride(1), total, h_q, BLOCK_M=SUMS_ROWS, num_warps=4,
        )  # fmt: skip
        start(
            backward.flash_bwd_varlen_queries_kernel, (tiles_q * sequences, h_q),
            *given, dq, *strides, total, h_q, h_q // h_kv, tiles_q, scale, **kinds, **_constants(rows),
        )  # fmt: skip
        start(
            backward.flash_bwd_varlen_tokens_kernel, (tiles_kv * sequences, h_kv),
            *given, dk, dv, *strides, total, h_kv, h_q // h_kv, tiles_kv, scale, **kinds, **_constants(tokens),
        )  # fmt: skip
    return dq, dk, dv


def _schedule(
    schedule: FlashMLASchedMeta, lengths: torch.Tensor, parts: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The table and the split counts, made on the device by the first call of a step."""
    if schedule.tile_scheduler_metadata is None or schedule.num_splits is None:
        table = torch.empty((parts, ROW_INTS), dtype=torch.int32, device=lengths.device)
        splits = torch.empty((len(lengths) + 1,), dtype=torch.int32, device=lengths.device)
        start(kernel.schedule_kernel, (1,), lengths, table, splits, len(lengths), parts, num_warps=1)
        schedule.tile_scheduler_metadata, schedule.num_splits = table, splits
    if schedule.tile_scheduler_metadata.device != lengths.device:
        raise BadCall(
            f"this schedule is on {schedule.tile_scheduler_metadata.device}, the tensors are on {lengths.device}: "
            "make one with get_mla_metadata() for each device"
        )
    return schedule.tile_scheduler_metadata, schedule.num_splits


def _results(q: torch.Tensor, parts: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    b, s_q, h_q, _ = q.shape
    out = torch.empty((b, s_q, h_q, LATENT), dtype=q.dtype, device=q.device)
    lse = torch.empty((b, h_q, s_q), dtype=torch.float32, device=q.device)
    pieces = b + parts
    piece_out = torch.empty((pieces, s_q * h_q, LATENT), dtype=torch.float32, device=q.device)
    piece_lse = torch.empty((pieces, s_q * h_q), dtype=torch.float32, device=q.device)
    return out, lse, piece_out, piece_lse


def _combine(
    results: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    splits: torch.Tensor,
    sink: torch.Tensor | None,
    *,
    group: int,
    h_kv: int,
) -> None:
    """Joins pieces of sequences. `results`: output, log-sum-exp, and those of the pieces."""
    out, lse, piece_out, piece_lse = results
    b, s_q = out.shape[:2]
    block = INTERPRETED_COMBINE_ROWS if kernel.INTERPRETED else COMBINE_ROWS
    grid = (-(-s_q * group * h_kv // block) * b,)
    start(
        kernel.flash_fwd_mla_combine_kernel, grid,
        piece_out, piece_lse, splits, out, lse, _or(sink, lse), s_q, group, h_kv,
        HAS_SINK=sink is not None, BLOCK_R=block, num_warps=4,
    )  # fmt: skip


def _constants(tile: Tile) -> dict[str, int]:
    return {
        "BLOCK_M": tile.block_m,
        "BLOCK_N": tile.block_n,
        "STAGES": tile.stages,
        "num_warps": tile.warps,
    }


def _multiprocessors(device: torch.device) -> int:
    return INTERPRETED_MULTIPROCESSORS if device.type == "cpu" else multiprocessors(device)


def _or(tensor: torch.Tensor | None, stand_in: torch.Tensor) -> torch.Tensor:
    return stand_in if tensor is None else tensor


__all__ = [
    "DENSE_FP8_TILES",
    "DENSE_TILES",
    "MODEL1_TILES",
    "PREFILL_TILES",
    "QUERIES_TILE",
    "SPARSE_TILES",
    "TOKENS_TILE",
    "VARLEN_TILE",
    "Extra",
    "Tile",
    "dense_decode",
    "sparse_decode",
    "sparse_prefill",
    "tile_for",
    "varlen",
    "varlen_backward",
]
