"""The public functions: check the arguments, choose a layer, run it.

Names, arguments and results are FlashMLA's. What more is allowed here: any page size and an FP8 cache in dense
decoding, any number of heads and any `topk` in sparse calls, and everything on a CPU.
"""

from itertools import pairwise
from typing import Any, Final

import torch

from ..kernels.checks import check_tensor, check_vector
from ..kernels.errors import BadArgument, BadCall, BadType, refuse
from ..kernels.layers import layer_for, multiprocessors
from . import layouts, reference
from .schedule import Config, FlashMLASchedMeta, make_schedule, part_count, sparse_lengths

CHANNELS: Final = 576
LATENT: Final = 512

_ROWS = (torch.bfloat16, torch.float16)


def get_mla_metadata(*_: Any, **__: Any) -> tuple[FlashMLASchedMeta, None]:
    """An empty schedule for one decoding step, and None.

    All arguments are ignored: older callers pass the sequence lengths and get the number of splits. The schedule is
    made by the first `flash_mla_with_kvcache` that gets it. Make a new one for every step.
    """
    return FlashMLASchedMeta(), None


def flash_mla_with_kvcache(  # noqa: PLR0913 (the original's)
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    head_dim_v: int,
    tile_scheduler_metadata: FlashMLASchedMeta,
    num_splits: None = None,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 (the original's)
    is_fp8_kvcache: bool = False,  # noqa: FBT001, FBT002
    indices: torch.Tensor | None = None,
    attn_sink: torch.Tensor | None = None,
    extra_k_cache: torch.Tensor | None = None,
    extra_indices_in_kvcache: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
    extra_topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Decode: attention of a few new tokens of each sequence over its paged KV cache.

    Dense, without `indices`. Shapes: q (b, s_q, h_q, 576) bfloat16 or float16; k_cache (pages, P, h_kv, 576) of q's
    dtype, or (pages, P, 1, 656) with `is_fp8_kvcache`; block_table (b, pages of a sequence) int32; cache_seqlens
    (b) int32. Token n of sequence i is `k_cache[block_table[i, n // P], n % P]`; the new tokens are in the cache
    already. With `causal`, the last query sees all its tokens, the one before all but one, and so on.

    Sparse, with `indices` (b, s_q, topk) int32 of slots `page * P + offset`; others, such as -1, name nothing.
    Shapes: q (b, s_q, h_q, 576) bfloat16 with k_cache (pages, P, 1, 656), or 512 with 584. `topk_length` (b) int32:
    only so many indices of a sequence count. `attn_sink` (h_q) float32 takes its share of the softmax. With 584
    bytes a second cache and its indices may be given.

    Result: out (b, s_q, h_q, 512) of q's dtype; natural log-sum-exp (b, h_q, s_q) float32, without the sink. A query
    that sees nothing gets zeros and +inf. Slots that are not visible are not read.
    Raises: BadArgument (ValueError, RuntimeError), BadType (TypeError, RuntimeError), BadCall (ValueError,
    AssertionError).
    """
    schedule = tile_scheduler_metadata
    if not isinstance(schedule, FlashMLASchedMeta):
        raise BadType(
            f"tile_scheduler_metadata is a {type(schedule).__name__}; pass what get_mla_metadata() returned first"
        )
    if num_splits is not None:
        raise BadCall("num_splits must be None: the schedule knows the splits")
    if head_dim_v != LATENT:
        refuse("head_dim_v", head_dim_v, "it must be 512")
    _check_q(q)
    _check_cache("k_cache", k_cache, q, is_fp8=is_fp8_kvcache)
    scale = float(q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    _check_config(
        schedule,
        _config(q, k_cache, causal, is_fp8_kvcache, indices, extra_k_cache, extra_indices_in_kvcache),
    )
    if indices is None:
        optional = (attn_sink, extra_k_cache, extra_indices_in_kvcache, topk_length, extra_topk_length)
        if any(each is not None for each in optional):
            raise BadCall(
                "attn_sink, topk_length and the extra cache belong to sparse calls: pass indices as well"
            )
        return _dense(
            q, k_cache, block_table, cache_seqlens, schedule, scale=scale, causal=causal and q.shape[1] > 1
        )
    if causal:
        raise BadCall("causal must be False with indices: they say what is visible")
    if not is_fp8_kvcache:
        raise BadCall(
            "sparse decoding takes an FP8 cache: pass is_fp8_kvcache=True and quantize_v32's result"
        )
    scope = (k_cache, indices, topk_length)
    extra = (extra_k_cache, extra_indices_in_kvcache, extra_topk_length)
    return _sparse(q, scope, extra, schedule, scale=scale, attn_sink=attn_sink)


def flash_mla_sparse_fwd(  # noqa: PLR0913 (the original's)
    q: torch.Tensor,
    kv: torch.Tensor,
    indices: torch.Tensor,
    sm_scale: float,
    d_v: int = 512,
    attn_sink: torch.Tensor | None = None,
    topk_length: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sparse prefill: each query looks at the tokens that its indices name.

    Shapes: q (s_q, h_q, 576 or 512) bfloat16; kv (s_kv, 1, as q); indices (s_q, 1, topk) int32, those below 0 or
    from s_kv on name nothing; attn_sink (h_q) float32; topk_length (s_q) int32: only so many indices count.
    Result: out (s_q, h_q, 512), largest logit and natural log-sum-exp (s_q, h_q) float32; a query that sees nothing
    gets zeros, -inf and +inf. For a batch, lay the sequences end to end and add where each begins to its indices.
    Raises: BadArgument, BadType.
    """
    if d_v != LATENT:
        refuse("d_v", d_v, "it must be 512")
    check_tensor("q", q, (None, None, (CHANNELS, LATENT)), (torch.bfloat16,))
    check_tensor("kv", kv, (None, 1, q.shape[2]), (torch.bfloat16,), like=q)
    check_tensor("indices", indices, (q.shape[0], 1, None), (torch.int32,), like=q)
    check_vector("attn_sink", attn_sink, q.shape[1], torch.float32, q)
    check_vector("topk_length", topk_length, q.shape[0], torch.int32, q)
    run: Any = reference.sparse_prefill
    if _is_compiled(q):
        from . import launch

        run = launch.sparse_prefill
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = run(
        q, kv, indices, scale=float(sm_scale), attn_sink=attn_sink, topk_length=topk_length
    )
    return result


def flash_attn_varlen_func(  # noqa: PLR0913 (the original's)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 (the original's)
    deterministic: bool = False,  # noqa: FBT001, FBT002
    is_varlen: bool = True,  # noqa: FBT001, FBT002
) -> tuple[torch.Tensor, torch.Tensor]:
    """Prefill without absorption: plain attention of sequences laid end to end, differentiable.

    Shapes: q (total_q, h, 128 or 192); k (total_kv, h_kv, as q); v (total_kv, h_kv, 128), bfloat16 or float16;
    cu_seqlens (sequences + 1) int32: where each begins, and the end. `causal` as in `flash_mla_with_kvcache`.
    Result: out (total_q, h, 128); natural log-sum-exp (total_q, h) float32, stored head by head, without gradient.
    `is_varlen` changes nothing here. Gradients are the same every time.
    Raises: BadArgument, BadType; BadCall for dropout or `deterministic`.
    """
    del is_varlen
    if dropout_p != 0.0:
        raise BadCall(f"dropout_p is {dropout_p}; there is no dropout, pass 0.0")
    if deterministic:
        raise BadCall("deterministic must be False (results are the same every time all the same)")
    check_tensor("q", q, (None, None, (128, 192)), _ROWS)
    check_tensor("k", k, (None, None, q.shape[2]), (q.dtype,), like=q)
    check_tensor("v", v, (k.shape[0], k.shape[1], 128), (q.dtype,), like=q)
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        refuse("heads of q", q.shape[1], f"they must be a multiple of k's {k.shape[1]}")
    for name, starts in (("cu_seqlens_qo", cu_seqlens_qo), ("cu_seqlens_kv", cu_seqlens_kv)):
        check_tensor(name, starts, (None,), (torch.int32,), like=q)
    if len(cu_seqlens_qo) != len(cu_seqlens_kv) or len(cu_seqlens_qo) == 0:
        refuse(
            "len(cu_seqlens_kv)",
            len(cu_seqlens_kv),
            f"as cu_seqlens_qo it must be {max(1, len(cu_seqlens_qo))}",
        )
    scale = float(q.shape[2] ** -0.5 if softmax_scale is None else softmax_scale)
    result: tuple[torch.Tensor, torch.Tensor] = _Varlen.apply(
        q, k, v, cu_seqlens_qo, cu_seqlens_kv, (max_seqlen_qo, max_seqlen_kv), scale, causal
    )
    return result


def flash_attn_varlen_qkvpacked_func(  # noqa: PLR0913 (the original's)
    qkv: torch.Tensor,
    cu_seqlens: torch.Tensor,
    max_seqlen: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 (the original's)
    deterministic: bool = False,  # noqa: FBT001, FBT002
    is_varlen: bool = True,  # noqa: FBT001, FBT002
) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_varlen_func` of q, k and v side by side. Shapes: qkv (total, h, 2 * head_dim_qk + 128)."""
    q, k, v = qkv.tensor_split((head_dim_qk, 2 * head_dim_qk), dim=2)
    lengths = (cu_seqlens, cu_seqlens, max_seqlen, max_seqlen)
    return flash_attn_varlen_func(
        q, k, v, *lengths, dropout_p, softmax_scale, causal, deterministic, is_varlen
    )


def flash_attn_varlen_kvpacked_func(  # noqa: PLR0913 (the original's)
    q: torch.Tensor,
    kv: torch.Tensor,
    cu_seqlens_qo: torch.Tensor,
    cu_seqlens_kv: torch.Tensor,
    max_seqlen_qo: int,
    max_seqlen_kv: int,
    head_dim_qk: int,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,  # noqa: FBT001, FBT002 (the original's)
    deterministic: bool = False,  # noqa: FBT001, FBT002
    is_varlen: bool = True,  # noqa: FBT001, FBT002
) -> tuple[torch.Tensor, torch.Tensor]:
    """`flash_attn_varlen_func` of k and v side by side. Shapes: kv (total_kv, h_kv, head_dim_qk + 128)."""
    k, v = kv.tensor_split((head_dim_qk,), dim=2)
    lengths = (cu_seqlens_qo, cu_seqlens_kv, max_seqlen_qo, max_seqlen_kv)
    return flash_attn_varlen_func(
        q, k, v, *lengths, dropout_p, softmax_scale, causal, deterministic, is_varlen
    )


class _Varlen(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *given: Any) -> tuple[torch.Tensor, torch.Tensor]:
        q, k, v, starts_q, starts_kv, (max_q, max_kv), scale, causal = given
        if not _is_compiled(q):
            bounds = (
                _starts("cu_seqlens_qo", starts_q, len(q), max_q),
                _starts("cu_seqlens_kv", starts_kv, len(k), max_kv),
            )
            out, lse = reference.varlen(q, k, v, *bounds, scale=scale, causal=causal)
        else:
            from . import launch

            out, lse = launch.varlen(q, k, v, starts_q, starts_kv, max_q, scale=scale, causal=causal)
        ctx.save_for_backward(q, k, v, out, lse, starts_q, starts_kv)
        ctx.longest, ctx.scale, ctx.causal = (max_q, max_kv), scale, causal
        ctx.compiled = _is_compiled(q)  # autograd's threads may see another choice of layer
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *saved, starts_q, starts_kv = ctx.saved_tensors
        named = {"scale": ctx.scale, "causal": ctx.causal}
        if ctx.compiled:
            from . import launch

            found = launch.varlen_backward(grads[0], tuple(saved), starts_q, starts_kv, ctx.longest, **named)
        else:
            bounds = starts_q.tolist(), starts_kv.tolist()
            found = reference.varlen_backward(grads[0], tuple(saved), *bounds, **named)
        return (*found, None, None, None, None, None)


def _dense(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor | None,
    cache_seqlens: torch.Tensor | None,
    schedule: FlashMLASchedMeta,
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    if block_table is None or cache_seqlens is None:
        raise BadCall(
            "block_table and cache_seqlens must be given: dense decoding (without indices) needs both"
        )
    b, h_kv = q.shape[0], k_cache.shape[2]
    if k_cache.shape[-1] not in {CHANNELS, layouts.V32_BYTES} or q.shape[-1] != CHANNELS:
        refuse("q.shape[3]", q.shape[3], "dense decoding takes rows of 576 numbers (656 bytes in FP8)")
    if k_cache.element_size() == 1 and q.dtype != torch.bfloat16:
        raise BadType(f"q has dtype {q.dtype}; over an FP8 cache it must be bfloat16")
    if h_kv == 0 or q.shape[2] % h_kv:
        refuse("heads of q", q.shape[2], f"they must be a multiple of k_cache's {h_kv}")
    check_tensor("block_table", block_table, (b, None), (torch.int32,), like=q)
    check_vector("cache_seqlens", cache_seqlens, b, torch.int32, q)
    if _is_compiled(q):
        from . import launch

        return launch.dense_decode(
            q, k_cache, block_table, cache_seqlens, schedule, scale=scale, causal=causal
        )
    _check_lengths(cache_seqlens, block_table, k_cache)
    parts = part_count(multiprocessors(q.device), kv_heads=h_kv, rows=q.shape[1] * (q.shape[2] // h_kv))
    _fill(schedule, cache_seqlens, parts)
    cache = layouts.dequantize_v32(k_cache) if k_cache.element_size() == 1 else k_cache
    return reference.dense_decode(q, cache, block_table, cache_seqlens, scale=scale, causal=causal)


def _sparse(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    scope: tuple[torch.Tensor, torch.Tensor, torch.Tensor | None],
    extra: tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None],
    schedule: FlashMLASchedMeta,
    *,
    scale: float,
    attn_sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    k_cache, indices, topk_length = scope
    extra_cache, extra_indices, extra_length = extra
    model1 = k_cache.shape[-1] == layouts.MODEL1_BYTES
    if q.dtype != torch.bfloat16:
        raise BadType(f"q has dtype {q.dtype}; sparse decoding takes bfloat16")
    b, s_q, h_q, d = q.shape
    expected = LATENT if model1 else CHANNELS
    if d != expected:
        refuse("q.shape[3]", d, f"with {k_cache.shape[-1]} bytes a token it must be {expected}")
    if not model1 and any(each is not None for each in (topk_length, *extra)):
        raise BadCall("topk_length and the extra cache belong to the layout of 584 bytes a token")
    if (extra_cache is None) != (extra_indices is None):
        raise BadCall("extra_k_cache and extra_indices_in_kvcache must be given together")
    if extra_length is not None and extra_cache is None:
        raise BadCall("extra_topk_length needs extra_k_cache and extra_indices_in_kvcache")
    check_tensor("indices", indices, (b, s_q, None), (torch.int32,), like=q)
    check_vector("attn_sink", attn_sink, h_q, torch.float32, q)
    check_vector("topk_length", topk_length, b, torch.int32, q)
    check_vector("extra_topk_length", extra_length, b, torch.int32, q)
    scopes = [(k_cache, indices, topk_length)]
    if extra_cache is not None and extra_indices is not None:
        _check_cache("extra_k_cache", extra_cache, q, is_fp8=True)
        if extra_cache.shape[-1] != k_cache.shape[-1]:
            refuse(
                "extra_k_cache.shape[3]",
                extra_cache.shape[-1],
                f"as k_cache's it must be {k_cache.shape[-1]}",
            )
        check_tensor("extra_indices_in_kvcache", extra_indices, (b, s_q, None), (torch.int32,), like=q)
        scopes.append((extra_cache, extra_indices, extra_length))
    if _is_compiled(q):
        from . import launch

        more = launch.Extra(*scopes[1]) if len(scopes) > 1 else None
        return launch.sparse_decode(
            q,
            k_cache,
            indices,
            schedule,
            scale=scale,
            attn_sink=attn_sink,
            topk_length=topk_length,
            extra=more,
        )
    extra_topk = None if extra_indices is None else extra_indices.shape[2]
    lengths = sparse_lengths(b, indices.shape[2], topk_length, extra_topk, extra_length, device=q.device)
    _fill(schedule, lengths, part_count(multiprocessors(q.device) // max(s_q, 1), kv_heads=1, rows=h_q))
    parsed = [reference.Scope(reference.fp8_rows(cache), listed, length) for cache, listed, length in scopes]
    return reference.sparse_decode(q, parsed, scale=scale, attn_sink=attn_sink)


def _is_compiled(q: torch.Tensor) -> bool:
    """Whether a call with these queries runs in a kernel."""
    return layer_for(q) != "reference"


def _fill(schedule: FlashMLASchedMeta, lengths: torch.Tensor, parts: int) -> None:
    if schedule.tile_scheduler_metadata is None:
        schedule.tile_scheduler_metadata, schedule.num_splits = make_schedule(lengths, parts)


def _config(  # noqa: PLR0913 (what a schedule is made for)
    q: torch.Tensor,
    k_cache: torch.Tensor,
    causal: bool,  # noqa: FBT001
    is_fp8: bool,  # noqa: FBT001
    indices: torch.Tensor | None,
    extra_cache: torch.Tensor | None,
    extra_indices: torch.Tensor | None,
) -> Config:
    return Config(
        b=q.shape[0],
        s_q=q.shape[1],
        h_q=q.shape[2],
        page_block_size=k_cache.shape[1],
        h_k=k_cache.shape[2],
        causal=causal,
        is_fp8_kvcache=is_fp8,
        topk=None if indices is None else indices.shape[-1],
        extra_page_block_size=None if extra_cache is None else extra_cache.shape[1],
        extra_topk=None if extra_indices is None else extra_indices.shape[-1],
    )


def _check_config(schedule: FlashMLASchedMeta, config: Config) -> None:
    """The first call of a step sets what the others must agree with."""
    if not schedule.have_initialized or schedule.config is None:
        schedule.have_initialized, schedule.config = True, config
        return
    wrong = [
        f"{name} was {then} and is {now}"
        for name, then in vars(schedule.config).items()
        for now in (getattr(config, name),)
        if then != now
    ]
    if wrong:
        raise BadCall(
            f"this schedule was made for another call ({', '.join(wrong)}): "
            "make a new one with get_mla_metadata() for each decoding step and kind of call"
        )


def _check_q(q: torch.Tensor) -> None:
    check_tensor("q", q, (None, None, None, (CHANNELS, LATENT)), _ROWS)


def _check_cache(name: str, cache: torch.Tensor, q: torch.Tensor, *, is_fp8: bool) -> None:
    if not isinstance(cache, torch.Tensor):
        raise BadType(f"{name} is a {type(cache).__name__}; it must be a tensor")
    if cache.dim() == 4 and cache.shape[1] == 0:
        refuse(f"{name}.shape", tuple(cache.shape), "a page must have at least one token")
    if is_fp8:
        model1 = cache.dim() == 4 and cache.shape[3] == layouts.MODEL1_BYTES
        layouts.check_fp8_cache(name, cache, layouts.MODEL1_BYTES if model1 else layouts.V32_BYTES)
        if cache.device != q.device:
            refuse(f"{name}.device", cache.device, f"it must be q's, {q.device}")
    else:
        check_tensor(name, cache, (None, None, None, q.shape[3]), (q.dtype,), like=q)


def _check_lengths(cache_seqlens: torch.Tensor, block_table: torch.Tensor, k_cache: torch.Tensor) -> None:
    """Values, which only the reference can look at without waiting for a device."""
    pages, page = k_cache.shape[:2]
    for request, length in enumerate(cache_seqlens.tolist()):
        if not 0 <= length <= block_table.shape[1] * page:
            refuse(
                f"cache_seqlens[{request}]",
                length,
                f"block_table has room for 0 to {block_table.shape[1] * page} tokens of a sequence",
            )
        used = block_table[request, : -(-length // page)]
        bad = used[(used < 0) | (used >= pages)].tolist()
        if bad:
            refuse(
                f"block_table[{request}]", bad[0], f"for {length} tokens it must name pages 0 to {pages - 1}"
            )


def _starts(name: str, starts: torch.Tensor, total: int, longest: int) -> list[int]:
    """Where sequences begin. Raises: BadArgument if they do not cover the rows in order."""
    found: list[int] = starts.tolist()
    lengths = [after - before for before, after in pairwise(found)]
    if found[0] != 0 or found[-1] > total or any(each < 0 for each in lengths):
        raise BadArgument(f"{name} is {found}; it must rise from 0 to at most {total}")
    if max(lengths, default=0) > longest:
        refuse(f"max length of {name}", longest, f"the longest sequence has {max(lengths)}")
    return found


__all__ = [
    "flash_attn_varlen_func",
    "flash_attn_varlen_kvpacked_func",
    "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd",
    "flash_mla_with_kvcache",
    "get_mla_metadata",
]
