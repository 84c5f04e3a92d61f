"""The public functions: check the arguments, choose a layer, run it.

Names, arguments and results are FlashMLA's. What more is allowed here: any page size and an FP8 cache in dense
decoding, any number of heads and any `topk` in sparse calls, and everything on a CPU.
"""

from collections.abc import Sequence
from typing import Any, Final

import torch

from ..kernels.checks import check_tensor, check_vector
from ..kernels.errors import BadCall, BadType, refuse
from ..kernels.layers import layer_for
from . import layouts, reference
from .call import LATENT, DenseDecode, Scope, SparseDecode, SparsePrefill, Varlen
from .schedule import Config, FlashMLASchedMeta

CHANNELS: Final = 576

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
    check_tensor("q", q, (None, None, None, (CHANNELS, LATENT)), _ROWS)
    _check_cache("k_cache", k_cache, q, is_fp8=is_fp8_kvcache)
    scale = float(q.shape[-1] ** -0.5 if softmax_scale is None else softmax_scale)
    (b, s_q, h_q, _), (_, page, h_kv, _) = q.shape, k_cache.shape
    config = Config(
        b, s_q, h_q, page, h_kv, causal, is_fp8_kvcache,
        _size(indices, -1), _size(extra_k_cache, 1), _size(extra_indices_in_kvcache, -1),
    )  # fmt: skip
    _check_config(schedule, config)
    extra = (extra_k_cache, extra_indices_in_kvcache, extra_topk_length)
    if indices is None:
        if any(each is not None for each in (attn_sink, topk_length, *extra)):
            raise BadCall(
                "attn_sink, topk_length and the extra cache belong to sparse calls: pass indices as well"
            )
        if block_table is None or cache_seqlens is None:
            raise BadCall(
                "block_table and cache_seqlens must be given: dense decoding (without indices) needs both"
            )
        causal = causal and q.shape[1] > 1
        return _dense(DenseDecode(q, k_cache, block_table, cache_seqlens, schedule, scale, causal))
    if causal:
        raise BadCall("causal must be False with indices: they say what is visible")
    if not is_fp8_kvcache:
        raise BadCall(
            "sparse decoding takes an FP8 cache: pass is_fp8_kvcache=True and quantize_v32's result"
        )
    scopes = _scopes(k_cache, indices, topk_length, extra)
    return _sparse(SparseDecode(q, scopes, schedule, scale, attn_sink))


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
    call = SparsePrefill(q, kv, indices, topk_length, float(sm_scale), attn_sink)
    result: tuple[torch.Tensor, torch.Tensor, torch.Tensor] = _layer(q).sparse_prefill(call)
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
        call = Varlen(*given)
        ctx.layer = _layer(call.q)  # autograd's threads may see another choice
        out, lse = ctx.layer.varlen(call)
        ctx.save_for_backward(*given[:5], out, lse)
        ctx.others = given[5:]
        ctx.mark_non_differentiable(lse)
        return out, lse

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Any, ...]:
        *tensors, out, lse = ctx.saved_tensors
        found = ctx.layer.varlen_backward(Varlen(*tensors, *ctx.others), grads[0], out, lse)
        return (*found, None, None, None, None, None)


def _layer(q: torch.Tensor) -> Any:
    """Return the module that runs a call with these queries: the specification, or what starts kernels."""
    if layer_for(q) == "reference":
        return reference
    from . import launch

    return launch


def _dense(call: DenseDecode) -> tuple[torch.Tensor, torch.Tensor]:
    q, cache = call.q, call.cache
    b, h_kv = q.shape[0], cache.shape[2]
    if cache.shape[-1] not in {CHANNELS, layouts.V32_BYTES} or q.shape[-1] != CHANNELS:
        refuse("q.shape[3]", q.shape[3], "dense decoding takes rows of 576 numbers (656 bytes in FP8)")
    if cache.element_size() == 1 and q.dtype != torch.bfloat16:
        raise BadType(f"q has dtype {q.dtype}; over an FP8 cache it must be bfloat16")
    if h_kv == 0 or q.shape[2] % h_kv:
        refuse("heads of q", q.shape[2], f"they must be a multiple of k_cache's {h_kv}")
    check_tensor("block_table", call.table, (b, None), (torch.int32,), like=q)
    check_vector("cache_seqlens", call.lengths, b, torch.int32, q)
    result: tuple[torch.Tensor, torch.Tensor] = _layer(q).dense_decode(call)
    return result


def _scopes(
    cache: torch.Tensor, indices: torch.Tensor, length: torch.Tensor | None, extra: Sequence[Any]
) -> tuple[Scope, ...]:
    """Return one scope, or two. `extra`: cache, indices and lengths of the second."""
    if cache.shape[-1] != layouts.MODEL1_BYTES and any(each is not None for each in (length, *extra)):
        raise BadCall("topk_length and the extra cache belong to the layout of 584 bytes a token")
    given = [each is not None for each in extra]
    if given[0] != given[1]:
        raise BadCall("extra_k_cache and extra_indices_in_kvcache must be given together")
    if given[2] and not given[0]:
        raise BadCall("extra_topk_length needs extra_k_cache and extra_indices_in_kvcache")
    first = Scope(cache, indices, length)
    return (first, Scope(*extra)) if given[0] else (first,)


def _sparse(call: SparseDecode) -> tuple[torch.Tensor, torch.Tensor]:
    q = call.q
    b, s_q, h_q, d = q.shape
    width = call.scopes[0].cache.shape[-1]
    if q.dtype != torch.bfloat16:
        raise BadType(f"q has dtype {q.dtype}; sparse decoding takes bfloat16")
    expected = LATENT if width == layouts.MODEL1_BYTES else CHANNELS
    if d != expected:
        refuse("q.shape[3]", d, f"with {width} bytes a token it must be {expected}")
    check_vector("attn_sink", call.sink, h_q, torch.float32, q)
    names = (("indices", "topk_length"), ("extra_indices_in_kvcache", "extra_topk_length"))
    for (indices, length), scope in zip(names, call.scopes, strict=False):
        check_tensor(indices, scope.names, (b, s_q, None), (torch.int32,), like=q)
        check_vector(length, scope.length, b, torch.int32, q)
    for scope in call.scopes[1:]:
        _check_cache("extra_k_cache", scope.cache, q, is_fp8=True)
        if scope.cache.shape[-1] != width:
            refuse("extra_k_cache.shape[3]", scope.cache.shape[-1], f"as k_cache's it must be {width}")
    result: tuple[torch.Tensor, torch.Tensor] = _layer(q).sparse_decode(call)
    return result


def _size(tensor: torch.Tensor | None, dim: int) -> int | None:
    return None if tensor is None else tensor.shape[dim]


def _check_config(schedule: FlashMLASchedMeta, config: Config) -> None:
    """The first call of a step sets what the others must agree with."""
    if not schedule.have_initialized or schedule.config is None:
        schedule.have_initialized, schedule.config = True, config
        return
    pairs = zip(vars(schedule.config).items(), vars(config).values(), strict=True)
    wrong = [f"{name} was {then} and is {now}" for (name, then), now in pairs if then != now]
    if wrong:
        raise BadCall(
            f"this schedule was made for another call ({', '.join(wrong)}): "
            "make a new one with get_mla_metadata() for each decoding step and kind of call"
        )


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


__all__ = [
    "flash_attn_varlen_func", "flash_attn_varlen_kvpacked_func", "flash_attn_varlen_qkvpacked_func",
    "flash_mla_sparse_fwd", "flash_mla_with_kvcache", "get_mla_metadata",
]  # fmt: skip
