"""Dispatch and combine as autograd functions: each is the other's gradient, over the same handle.

Every rank of the group runs both, forward and backward, in the same order, also with no tokens.
"""

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from luciola.plugins.deepep import Buffer


@dataclass
class Exchange:
    """One layer's way there and back: what dispatch leaves for combine and for both gradients."""

    buffer: Buffer
    topk_idx: Tensor
    experts: int
    handle: Any = None
    local_idx: Tensor = field(default_factory=lambda: torch.empty(0))
    counts: list[int] = field(default_factory=list)

    def dispatch(self, x: Tensor, weights: Tensor) -> tuple[Tensor, Tensor]:
        """Rows (N, H) that chose this rank's experts and their weights (N, K), zero for others' experts."""
        rows, local_weights = _Dispatch.apply(x, weights, self)
        return rows, local_weights

    def combine(self, rows: Tensor) -> Tensor:
        """For each token of this rank the sum (T, H) of what the ranks made of it."""
        result: Tensor = _Combine.apply(rows, self)
        return result


class _Dispatch(Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Tensor, exchange: Exchange) -> tuple[Tensor, Tensor]:
        buffer, topk_idx = exchange.buffer, exchange.topk_idx
        per_rank, per_rdma_rank, per_expert, in_rank, _ = buffer.get_dispatch_layout(
            topk_idx, exchange.experts
        )
        rows, local_idx, local_weights, counts, handle, _ = buffer.dispatch(
            x,
            num_tokens_per_rank=per_rank,
            num_tokens_per_rdma_rank=per_rdma_rank,
            is_token_in_rank=in_rank,
            num_tokens_per_expert=per_expert,
            topk_idx=topk_idx,
            topk_weights=weights,
        )
        assert isinstance(rows, Tensor) and handle is not None and counts is not None, "not FP8, not cached"  # noqa: PT018
        assert local_idx is not None and local_weights is not None, "routes were given"  # noqa: PT018
        exchange.handle, exchange.local_idx, exchange.counts = handle, local_idx, counts
        ctx.exchange = exchange
        return rows, local_weights

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exchange: Exchange = ctx.exchange
        grad, weight_grad, _ = exchange.buffer.combine(
            grads[0].contiguous(), exchange.handle, topk_weights=grads[1].contiguous()
        )
        return grad, weight_grad, None


class _Combine(Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, exchange: Exchange) -> Tensor:
        ctx.exchange = exchange
        combined, _, _ = exchange.buffer.combine(rows.contiguous(), exchange.handle)
        return combined

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        exchange: Exchange = ctx.exchange
        rows, *_ = exchange.buffer.dispatch(grads[0].contiguous(), handle=exchange.handle)
        assert isinstance(rows, Tensor), "not FP8"
        return rows, None


__all__ = ["Exchange"]
