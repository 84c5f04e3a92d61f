"""The specification: every operator in a few lines of torch, in float32.

For one query row q and the rows k of the tokens that it sees:

    p = softmax(scale * q k^T)      out = p v, v the first 512 numbers of k      lse = ln sum exp(scale * q k^T)

A query that sees nothing has out = 0 and lse = +inf (and max_logits = -inf). An attention sink s takes its share of
the softmax and gives nothing: out becomes out / (1 + exp(s - lse)); lse stays as it is.

What is not visible is never read: neither a page behind a sequence's end nor a slot that no index names.
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Final

import torch

from ..kernels.errors import BadArgument, refuse
from ..kernels.layers import multiprocessors
from . import layouts
from .call import LATENT, DenseDecode, SparseDecode, SparsePrefill, Varlen
from .schedule import make_schedule

_INF: Final = float("inf")


def attend(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, scale: float, visible: torch.Tensor | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """One softmax. Shapes: q (r, d); k (n, d); v (n, d_v); visible (r, n) or None; result (r, d_v), (r), (r).

    The second result is the natural log-sum-exp, -inf where nothing is visible; the third the largest logit.
    """
    logits = q @ k.transpose(0, 1) * scale
    if visible is not None:
        logits = logits.masked_fill(~visible, -_INF)
    if logits.shape[1] == 0:
        logits = logits.new_full((q.shape[0], 1), -_INF)
        v = v.new_zeros((1, v.shape[1]))
    lse = torch.logsumexp(logits, dim=-1)
    weights = torch.exp(logits - lse.masked_fill(lse == -_INF, 0.0).unsqueeze(-1))
    return weights @ v, lse, logits.amax(dim=-1)


def with_sink(out: torch.Tensor, lse: torch.Tensor, sink: torch.Tensor | None) -> torch.Tensor:
    """`out` after the sink has had its share. Shapes: out (…, h, d); lse (…, h), -inf where empty; sink (h)."""
    if sink is None:
        return out
    share = 1.0 / (1.0 + torch.exp(sink.to(lse.dtype) - lse))
    return out * share.masked_fill(lse == -_INF, 0.0).unsqueeze(-1)


def infinite_if_empty(lse: torch.Tensor) -> torch.Tensor:
    """The log-sum-exp as callers get it: +inf where nothing is visible."""
    return lse.masked_fill(lse == -_INF, _INF)


def dense_decode(call: DenseDecode) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to paged caches. Raises: BadArgument for a length or page that is not there."""
    q, table = call.q, call.table
    k_cache = layouts.dequantize_v32(call.cache) if call.cache.element_size() == 1 else call.cache
    _check_lengths(call)
    _fill(call)
    b, s_q, h_q, _ = q.shape
    page, h_kv = k_cache.shape[1], k_cache.shape[2]
    out = q.new_zeros((b, s_q, h_q, LATENT))
    lse = q.new_empty((b, h_q, s_q), dtype=torch.float32)
    for request, length in enumerate(call.lengths.tolist()):
        rows = k_cache[table[request, : -(-length // page)].long()].float().flatten(0, 1)[:length]
        visible = _visible(s_q, length, causal=call.causal, device=q.device)
        for head in range(h_q):
            k = rows[:, head * h_kv // h_q]
            result, sums, _ = attend(q[request, :, head].float(), k, k[:, :LATENT], call.scale, visible)
            out[request, :, head] = result.to(q.dtype)
            lse[request, head] = infinite_if_empty(sums).float()
    return out, lse


def sparse_decode(call: SparseDecode) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to the tokens that the scopes name."""
    _fill(call)
    q = call.q
    b, s_q, h, _ = q.shape
    out = q.new_empty((b, s_q, h, LATENT))
    lse = q.new_empty((b, h, s_q), dtype=torch.float32)
    rows = [fp8_rows(scope.cache) for scope in call.scopes]
    for request in range(b):
        for t in range(s_q):
            found = zip(rows, call.scopes, strict=True)
            k = torch.cat([_named(each, scope.names, scope.length, (request, t)) for each, scope in found])
            result, sums, _ = attend(q[request, t].float(), k, k[:, :LATENT], call.scale)
            out[request, t] = with_sink(result, sums, call.sink).to(q.dtype)
            lse[request, :, t] = infinite_if_empty(sums).float()
    return out, lse


def sparse_prefill(call: SparsePrefill) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Attend to the tokens that each query's list names."""
    q = call.q
    out = q.new_empty((*q.shape[:2], LATENT))
    max_logits, lse = (q.new_empty(q.shape[:2], dtype=torch.float32) for _ in range(2))
    for t in range(q.shape[0]):
        k = _named(call.kv[:, 0], call.indices, call.length, (t, 0))
        result, sums, largest = attend(q[t].float(), k, k[:, :LATENT], call.scale)
        out[t] = with_sink(result, sums, call.sink).to(q.dtype)
        max_logits[t], lse[t] = largest.float(), infinite_if_empty(sums).float()
    return out, max_logits, lse


def varlen(call: Varlen) -> tuple[torch.Tensor, torch.Tensor]:
    """Attend to sequences laid end to end. Raises: BadArgument for sequences that do not fit the rows."""
    q, h, h_kv = call.q, call.q.shape[1], call.k.shape[1]
    _check_starts("cu_seqlens_qo", call.starts_q, len(q), call.longest[0])
    _check_starts("cu_seqlens_kv", call.starts_kv, len(call.k), call.longest[1])
    out = q.new_zeros((q.shape[0], h, call.v.shape[2]))
    lse = q.new_full((h, q.shape[0]), _INF, dtype=torch.float32)
    for queries, tokens, visible in _sequences(call):
        for head in range(h):
            source = head * h_kv // h
            keys, values = call.k[tokens, source].float(), call.v[tokens, source].float()
            result, sums, _ = attend(q[queries, head].float(), keys, values, call.scale, visible)
            out[queries, head] = result.to(q.dtype)
            lse[head, queries] = infinite_if_empty(sums).float()
    return out, lse.transpose(0, 1)


def varlen_backward(
    call: Varlen, grad: torch.Tensor, out: torch.Tensor, lse: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the gradients of q, k and v from that of `out`."""
    q, k, v = call.q, call.k, call.v
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros_like(each, dtype=torch.float32) for each in (q, k, v))
    for queries, tokens, visible in _sequences(call):
        for head in range(q.shape[1]):
            source = head // group
            q_h, k_h, v_h = q[queries, head].float(), k[tokens, source].float(), v[tokens, source].float()
            grad_h, out_h = grad[queries, head].float(), out[queries, head].float()
            logits = (q_h @ k_h.T * call.scale).masked_fill(~visible, -_INF)
            weights = torch.exp(logits - lse[queries, head].unsqueeze(-1))
            inner = weights * (grad_h @ v_h.T - (grad_h * out_h).sum(-1, keepdim=True)) * call.scale
            dv[tokens, source] += weights.T @ grad_h
            dq[queries, head] = inner @ k_h
            dk[tokens, source] += inner.T @ q_h
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def _sequences(call: Varlen) -> Iterator[tuple[slice, slice, torch.Tensor]]:
    """Yield the queries and tokens of each sequence, and which query sees which token."""
    bounds = zip(pairwise(call.starts_q.tolist()), pairwise(call.starts_kv.tolist()), strict=True)
    for (first_q, end_q), (first, end) in bounds:
        visible = _visible(end_q - first_q, end - first, causal=call.causal, device=call.q.device)
        yield slice(first_q, end_q), slice(first, end), visible


def _visible(queries: int, tokens: int, *, causal: bool, device: torch.device) -> torch.Tensor:
    """Which query of a sequence sees which token: the last sees all, if causal the one before all but one, …"""
    visible = torch.ones((queries, tokens), dtype=torch.bool, device=device)
    return visible.tril(tokens - queries) if causal else visible


def _named(
    rows: torch.Tensor, names: torch.Tensor, length: torch.Tensor | None, query: tuple[int, int]
) -> torch.Tensor:
    """The rows that a query's list names. Shapes: rows (slots, d); names (b, s_q, topk); length (b) or None."""
    indices = names[query]
    if length is not None:
        indices = indices[: max(0, int(length[query[0]]))]
    return rows[indices[(indices >= 0) & (indices < rows.shape[0])].long()].float()


def _fill(call: DenseDecode | SparseDecode) -> None:
    """Make the schedule, which nothing here needs, for callers who look at it."""
    schedule = call.schedule
    if schedule.tile_scheduler_metadata is None:
        parts = call.parts(multiprocessors(call.q.device))
        schedule.tile_scheduler_metadata, schedule.num_splits = make_schedule(call.lengths, parts)


def _check_lengths(call: DenseDecode) -> None:
    """Check values, which only the reference can read without waiting for a device."""
    (pages, page), (_, width) = call.cache.shape[:2], call.table.shape
    for request, length in enumerate(call.lengths.tolist()):
        if not 0 <= length <= width * page:
            what = f"block_table has room for 0 to {width * page} tokens of a sequence"
            refuse(f"cache_seqlens[{request}]", length, what)
        used = call.table[request, : -(-length // page)]
        for bad in used[(used < 0) | (used >= pages)].tolist():
            refuse(f"block_table[{request}]", bad, f"for {length} tokens it must name pages 0 to {pages - 1}")


def _check_starts(name: str, starts: torch.Tensor, total: int, longest: int) -> None:
    found: list[int] = starts.tolist()
    lengths = [after - before for before, after in pairwise(found)]
    if found[0] != 0 or found[-1] > total or any(each < 0 for each in lengths):
        raise BadArgument(f"{name} is {found}; it must rise from 0 to at most {total}")
    if max(lengths, default=0) > longest:
        refuse(f"max length of {name}", longest, f"the longest sequence has {max(lengths)}")


def fp8_rows(cache: torch.Tensor) -> torch.Tensor:
    """The rows of an FP8 cache in either layout, pages laid end to end. Shapes: result (pages * P, 576 or 512)."""
    if cache.shape[-1] == layouts.V32_BYTES:
        return layouts.dequantize_v32(cache).flatten(0, 2)
    return layouts.dequantize_model1(cache).flatten(0, 2)


__all__ = ["dense_decode", "sparse_decode", "sparse_prefill", "varlen", "varlen_backward"]
