"""The specification: every operator in a few lines of torch, in float32.

For one query row q and the rows k of the tokens that it sees:

    p = softmax(scale * q k^T)      out = p v, v the first 512 numbers of k      lse = ln sum exp(scale * q k^T)

A query that sees nothing has out = 0 and lse = +inf (and max_logits = -inf). An attention sink s takes its share of
the softmax and gives nothing: out becomes out / (1 + exp(s - lse)); lse stays as it is.

What is not visible is never read: neither a page behind a sequence's end nor a slot that no index names.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import torch

from . import layouts

LATENT: Final = 512  # numbers of V
_INF: Final = float("inf")


@dataclass(frozen=True)
class Scope:
    """A set of tokens for sparse attention. Shapes: rows (slots, d); indices (b, s_q, topk); length (b) or None."""

    rows: torch.Tensor
    indices: torch.Tensor
    length: torch.Tensor | None


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


def dense_decode(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    k_cache: torch.Tensor,
    block_table: torch.Tensor,
    cache_seqlens: torch.Tensor,
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Shapes: q (b, s_q, h_q, 576); k_cache (pages, P, h_kv, 576); result (b, s_q, h_q, 512), (b, h_q, s_q)."""
    b, s_q, h_q, _ = q.shape
    page, h_kv = k_cache.shape[1], k_cache.shape[2]
    out = q.new_zeros((b, s_q, h_q, LATENT))
    lse = q.new_empty((b, h_q, s_q), dtype=torch.float32)
    for request, length in enumerate(cache_seqlens.tolist()):
        pages = block_table[request, : -(-length // page)].long()
        rows = k_cache[pages].float().flatten(0, 1)[:length]
        behind = (
            s_q - 1 - torch.arange(s_q, device=q.device) if causal else q.new_zeros(s_q, dtype=torch.long)
        )
        visible = torch.arange(length, device=q.device) < (length - behind).unsqueeze(-1)
        for head in range(h_q):
            k = rows[:, head * h_kv // h_q]
            result, sums, _ = attend(q[request, :, head].float(), k, k[:, :LATENT], scale, visible)
            out[request, :, head] = result.to(q.dtype)
            lse[request, head] = infinite_if_empty(sums).float()
    return out, lse


def sparse_decode(
    q: torch.Tensor,
    scopes: list[Scope],
    *,
    scale: float,
    attn_sink: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention over the tokens that the scopes name. Shapes: q (b, s_q, h, d); as `dense_decode` otherwise."""
    b, s_q, h, _ = q.shape
    out = q.new_empty((b, s_q, h, LATENT))
    lse = q.new_empty((b, h, s_q), dtype=torch.float32)
    for request in range(b):
        for t in range(s_q):
            k = torch.cat([_named(scope, request, t).float() for scope in scopes])
            result, sums, _ = attend(q[request, t].float(), k, k[:, :LATENT], scale)
            out[request, t] = with_sink(result, sums, attn_sink).to(q.dtype)
            lse[request, :, t] = infinite_if_empty(sums).float()
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
    """Shapes: q (s_q, h, d); kv (s_kv, 1, d); indices (s_q, 1, topk); result (s_q, h, 512), (s_q, h), (s_q, h)."""
    scope = Scope(kv[:, 0], indices, topk_length)
    out = q.new_empty((*q.shape[:2], LATENT))
    max_logits, lse = (q.new_empty(q.shape[:2], dtype=torch.float32) for _ in range(2))
    for t in range(q.shape[0]):
        k = _named(scope, t, 0).float()
        result, sums, largest = attend(q[t].float(), k, k[:, :LATENT], scale)
        out[t] = with_sink(result, sums, attn_sink).to(q.dtype)
        max_logits[t], lse[t] = largest.float(), infinite_if_empty(sums).float()
    return out, max_logits, lse


def _named(scope: Scope, request: int, t: int) -> torch.Tensor:
    indices = scope.indices[request, t]
    if scope.length is not None:
        indices = indices[: max(0, int(scope.length[request]))]
    indices = indices[(indices >= 0) & (indices < scope.rows.shape[0])]
    return scope.rows[indices.long()]


def varlen(  # noqa: PLR0913 (the operator's own)
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    starts_q: list[int],
    starts_kv: list[int],
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of sequences laid end to end. Shapes: q (total_q, h, d); k (total, h_kv, d); v (total, h_kv, d_v).

    Result: out (total_q, h, d_v); lse (total_q, h), stored head by head. With `causal`, the last query of a sequence
    sees all its tokens, the one before all but one, and so on.
    """
    h, h_kv = q.shape[1], k.shape[1]
    out = q.new_zeros((q.shape[0], h, v.shape[2]))
    lse = q.new_full((h, q.shape[0]), _INF, dtype=torch.float32)
    for queries, tokens in zip(spans(starts_q), spans(starts_kv), strict=True):
        visible = sight(queries, tokens, causal=causal, device=q.device)
        for head in range(h):
            source = head * h_kv // h
            keys, values = k[tokens, source].float(), v[tokens, source].float()
            result, sums, _ = attend(q[queries, head].float(), keys, values, scale, visible)
            out[queries, head] = result.to(q.dtype)
            lse[head, queries] = infinite_if_empty(sums).float()
    return out, lse.transpose(0, 1)


def varlen_backward(  # noqa: PLR0913 (the operator's own)
    grad: torch.Tensor,
    saved: tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor],
    starts_q: list[int],
    starts_kv: list[int],
    *,
    scale: float,
    causal: bool,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of q, k and v, from that of `out`. `saved` is q, k, v, out, lse."""
    q, k, v, out, lse = saved
    group = q.shape[1] // k.shape[1]
    dq, dk, dv = (torch.zeros_like(each, dtype=torch.float32) for each in (q, k, v))
    for queries, tokens in zip(spans(starts_q), spans(starts_kv), strict=True):
        visible = sight(queries, tokens, causal=causal, device=q.device)
        for head in range(q.shape[1]):
            source = head // group
            q_h, k_h, v_h = q[queries, head].float(), k[tokens, source].float(), v[tokens, source].float()
            grad_h, out_h = grad[queries, head].float(), out[queries, head].float()
            logits = (q_h @ k_h.T * scale).masked_fill(~visible, -_INF)
            weights = torch.exp(logits - lse[queries, head].unsqueeze(-1))
            inner = weights * (grad_h @ v_h.T - (grad_h * out_h).sum(-1, keepdim=True)) * scale
            dv[tokens, source] += weights.T @ grad_h
            dq[queries, head] = inner @ k_h
            dk[tokens, source] += inner.T @ q_h
    return dq.to(q.dtype), dk.to(k.dtype), dv.to(v.dtype)


def spans(starts: list[int]) -> list[slice]:
    """The slice of each sequence."""
    return [slice(start, end) for start, end in pairwise(starts)]


def sight(queries: slice, tokens: slice, *, causal: bool, device: torch.device) -> torch.Tensor:
    """Which query of a sequence sees which token. Shapes: result (queries, tokens)."""
    count_q, count = queries.stop - queries.start, tokens.stop - tokens.start
    visible = torch.ones((count_q, count), dtype=torch.bool, device=device)
    return visible.tril(count - count_q) if causal else visible


def fp8_rows(cache: torch.Tensor) -> torch.Tensor:
    """The rows of an FP8 cache in either layout, pages laid end to end. Shapes: result (pages * P, 576 or 512)."""
    if cache.shape[-1] == layouts.V32_BYTES:
        return layouts.dequantize_v32(cache).flatten(0, 2)
    return layouts.dequantize_model1(cache).flatten(0, 2)


__all__ = [
    "LATENT",
    "Scope",
    "attend",
    "dense_decode",
    "fp8_rows",
    "infinite_if_empty",
    "sight",
    "spans",
    "sparse_decode",
    "sparse_prefill",
    "varlen",
    "varlen_backward",
    "with_sink",
]
