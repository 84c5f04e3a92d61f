"""Logits of the lightning indexer: how much each query wants each token, summed over heads.

logits[i, j] = sum over h of relu(q[i, h] · kv[j]) · weights[i, h] · sf[j]        for start[i] <= j < end[i]
"""

from collections.abc import Callable
from functools import wraps
from typing import Concatenate, Final, ParamSpec

import torch
from torch import Tensor

from ...kernels.checks import check_contiguous, check_tensor
from ...kernels.errors import BadArgument, BadType, refuse
from ...kernels.quantize import FP8, align
from .. import checks
from .call import PAGE_TOKENS, PIECE_TOKENS, Logits, PagedLogits, run

HEADS: Final = (32, 64)
DIMENSIONS: Final = (32, 64, 128)
ROW_BYTES: Final = 1024  # to which rows of logits are padded
LOGITS_DTYPES: Final = (torch.float32, torch.bfloat16)

_Others = ParamSpec("_Others")


def fp8_mqa_logits(  # noqa: PLR0913 (the original's)
    q: Tensor,
    kv: tuple[Tensor, Tensor],
    weights: Tensor,
    cu_seq_len_k_start: Tensor,
    cu_seq_len_k_end: Tensor,
    clean_logits: bool = True,  # noqa: FBT001, FBT002
    max_seqlen_k: int = 0,
    logits_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Logits of queries against the tokens of one sequence.

    Shapes: q (s, heads, d) e4m3; kv (tokens, d) e4m3 and (tokens,) float32; weights (s, heads) float32; starts and ends
    (s,) int32; result (s, tokens), a view with padded rows, -inf where `clean_logits` and not visible. With
    max_seqlen_k > 0: (s, max_seqlen_k), column j - start; `clean_logits` must be False.
    Limits: heads 32 or 64, d 32, 64 or 128.
    Source: DeepGEMM `fp8_mqa_logits`.
    """
    keys, sf = checks.unpack(kv, "kv")
    s, heads, d = _check_queries(q, dims=3)
    check_tensor("kv[0]", keys, (None, d), (FP8,))
    check_contiguous("kv[1]", sf, (keys.shape[0],), (torch.float32,))
    check_contiguous("weights", weights, (s, heads), (torch.float32,))
    checks.check_index(cu_seq_len_k_start, (s,), name="cu_seq_len_k_start")
    checks.check_index(cu_seq_len_k_end, (s,), name="cu_seq_len_k_end")
    checks.check_same_device(q, keys, sf, weights, cu_seq_len_k_start, cu_seq_len_k_end)
    if max_seqlen_k < 0:
        refuse("max_seqlen_k", max_seqlen_k, "it must not be negative")
    if max_seqlen_k and clean_logits:
        raise BadArgument("compressed logits (max_seqlen_k > 0) are not cleaned: pass clean_logits=False")
    logits = _empty_logits(s, max_seqlen_k or keys.shape[0], logits_dtype, q.device)
    if logits.numel() and len(keys):
        starts, ends, compressed = cu_seq_len_k_start, cu_seq_len_k_end, max_seqlen_k > 0
        run("mqa_logits", q, Logits(q, keys, sf, weights, starts, ends, logits, compressed, clean_logits))
    return logits


def get_paged_mqa_logits_metadata(
    context_lens: Tensor, block_kv: int, num_sms: int, indices: Tensor | None = None
) -> Tensor:
    """Where each of num_sms programs begins in the pieces of 256 tokens of all requests.

    Shapes: context_lens (b,) or (b, next_n) int32 (the last column counts); result (num_sms + 1, 2) int32: request and
    piece; its last row is the end.
    """
    _refuse_indices(indices)
    if block_kv != PAGE_TOKENS:
        refuse("block_kv", block_kv, f"it must be {PAGE_TOKENS}")
    if num_sms <= 0:
        refuse("num_sms", num_sms, "it must be positive")
    last = _lengths(context_lens)[:, -1]
    schedule = torch.empty((num_sms + 1, 2), dtype=torch.int32, device=context_lens.device)
    run("paged_metadata", context_lens, last, schedule)
    return schedule


def fp8_paged_mqa_logits(  # noqa: PLR0913 (the original's)
    q: Tensor,
    kv_cache: Tensor,
    weights: Tensor,
    context_lens: Tensor,
    block_table: Tensor,
    schedule_meta: Tensor,
    max_context_len: int,
    clean_logits: bool = False,  # noqa: FBT001, FBT002
    logits_dtype: torch.dtype = torch.float32,
    indices: Tensor | None = None,
) -> Tensor:
    """Logits of the newest tokens of many requests against their paged caches.

    Shapes: q (b, next_n, heads, d) e4m3; kv_cache (blocks, 64, 1, d + 4) uint8, of each block first 64 · d values, then
    64 float32 scales; weights (b · next_n, heads) float32; context_lens (b,) or (b, next_n) int32; block_table
    (b, blocks of a request) int32; schedule_meta from `get_paged_mqa_logits_metadata`; result
    (b · next_n, max_context_len). Columns from a query's context length on are -inf if `clean_logits`, else undefined.
    Limits: next_n 1 or 2; heads 32 or 64; d 32, 64 or 128.
    """
    _refuse_indices(indices)
    b, next_n = _check_paged(q, kv_cache, weights)
    lengths = _lengths(context_lens)
    if lengths.shape[0] != b or lengths.shape[1] not in {1, next_n}:
        refuse(
            "context_lens", f"of shape {tuple(context_lens.shape)}", f"it must be ({b},) or ({b}, {next_n})"
        )
    if clean_logits and context_lens.dim() != 1 and next_n > 1:
        raise BadArgument(
            "logits can be cleaned only with one context length a request: pass clean_logits=False"
        )
    check_tensor("block_table", block_table, (b, None), (torch.int32,))
    check_contiguous("schedule_meta", schedule_meta, (None, 2), (torch.int32,))
    if schedule_meta.shape[0] < 2:
        raise BadArgument("schedule_meta does not come from get_paged_mqa_logits_metadata: it has no program")
    checks.check_same_device(q, kv_cache, weights, context_lens, block_table, schedule_meta)
    if max_context_len < 0:
        refuse("max_context_len", max_context_len, "it must not be negative")
    logits = _empty_logits(b * next_n, max_context_len, logits_dtype, q.device)
    if clean_logits:
        logits.fill_(float("-inf"))
    if logits.numel():
        lengths = lengths.expand(b, next_n)
        call = PagedLogits(q, kv_cache, weights, lengths, block_table, schedule_meta, logits)
        run("paged_mqa_logits", q, call)
    return logits


def _with_values(logits: Callable[Concatenate[Tensor, _Others], Tensor]) -> Callable[..., Tensor]:
    """The same with q as (values, None): FP4 operands are for later GPUs."""

    @wraps(logits)
    def call(q: tuple[Tensor, None], *others: _Others.args, **named: _Others.kwargs) -> Tensor:
        if not isinstance(q, tuple) or len(q) != 2 or q[1] is not None:
            raise BadType("q must be (e4m3 values, None): FP4 queries are for later GPUs")
        return logits(q[0], *others, **named)

    call.__name__ = call.__qualname__ = f"fp8_fp4{logits.__name__.removeprefix('fp8')}"
    call.__doc__ = f"`{logits.__name__}` with q as (values, None): FP4 operands are for later GPUs."
    return call


fp8_fp4_mqa_logits = _with_values(fp8_mqa_logits)
fp8_fp4_paged_mqa_logits = _with_values(fp8_paged_mqa_logits)


def _empty_logits(rows: int, columns: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    if dtype not in LOGITS_DTYPES:
        raise BadType(f"logits_dtype is {dtype}; it must be float32 or bfloat16")
    width = align(columns, ROW_BYTES // dtype.itemsize)
    return torch.empty((rows, width), dtype=dtype, device=device)[:, :columns]


def _check_queries(q: Tensor, *, dims: int) -> tuple[int, int, int]:
    leading = (None,) * (dims - 2)
    check_contiguous("q", q, (*leading, HEADS, DIMENSIONS), (FP8,))
    rows, heads, d = q.shape[-3:]
    return rows, heads, d


def _check_paged(q: Tensor, cache: Tensor, weights: Tensor) -> tuple[int, int]:
    next_n, heads, d = _check_queries(q, dims=4)
    b = q.shape[0]
    if next_n not in {1, 2}:
        refuse("next_n", next_n, "it must be 1 or 2")
    check_tensor("kv_cache", cache, (None, PAGE_TOKENS, 1, d + 4), (torch.uint8,))
    if cache.stride(1) != d + 4 or cache.stride(0) % 16:
        refuse(
            "kv_cache",
            f"of strides {cache.stride()}",
            "blocks must be contiguous and start at multiples of 16 bytes",
        )
    check_contiguous("weights", weights, (b * next_n, heads), (torch.float32,))
    return b, next_n


def _lengths(context_lens: Tensor) -> Tensor:
    single = isinstance(context_lens, Tensor) and context_lens.dim() == 1
    check_tensor("context_lens", context_lens, (None,) if single else (None, None), (torch.int32,))
    return context_lens.unsqueeze(1) if single else context_lens


def _refuse_indices(indices: Tensor | None) -> None:
    if indices is not None:
        raise BadArgument("indices is not for SM90: leave it out")


__all__ = [
    "PIECE_TOKENS", "fp8_fp4_mqa_logits", "fp8_fp4_paged_mqa_logits", "fp8_mqa_logits", "fp8_paged_mqa_logits",
    "get_paged_mqa_logits_metadata",
]  # fmt: skip
