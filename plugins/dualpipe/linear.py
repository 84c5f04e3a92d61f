"""A linear layer whose weight gradient can be put off."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from .wgrad_store import WeightGradStore


class _Linear(torch.autograd.Function):
    """y = x W^T + b; the backward leaves W's and b's gradients to the store if that is enabled."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.bias = bias
        return nn.functional.linear(x, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, None, None]:
        x, weight = ctx.saved_tensors
        bias = ctx.bias

        def weight_gradient() -> None:
            rows = grad.flatten(0, -2) if grad.dim() > 1 else grad[None]
            if weight.requires_grad:
                _accumulate(weight, rows.T @ (x.flatten(0, -2) if x.dim() > 1 else x[None]))
            if bias is not None and bias.requires_grad:
                _accumulate(bias, rows.sum(0))

        grad_x = grad @ weight if ctx.needs_input_grad[0] else None
        if WeightGradStore.enabled:
            WeightGradStore.put(weight_gradient)
        else:
            weight_gradient()
        return grad_x, None, None


def _accumulate(parameter: Tensor, grad: Tensor) -> None:
    grad = grad.to(parameter.dtype)
    parameter.grad = grad if parameter.grad is None else parameter.grad.add_(grad)


class Linear(nn.Linear):
    """`nn.Linear` that puts its weight gradient off when `WeightGradStore.enabled` says so.

    Limits: gradients go straight to `.grad` of weight and bias, so hooks on these parameters do not run, and neither
    torch.autograd.grad nor double backward sees them.
    """

    def forward(self, x: Tensor) -> Tensor:
        """As nn.Linear."""
        result: Tensor = _Linear.apply(x, self.weight, self.bias)
        return result


__all__ = ["Linear"]
