"""What stages use: weight gradients that are put off, and backward in a hook for pairs."""

from collections.abc import Sequence

import torch
from torch import Tensor

from luciola.plugins.dualpipe import WeightGradStore


def run_backward(tensors: Sequence[Tensor], grad_tensors: Sequence[Tensor]) -> None:
    """Add up the gradients of all leaves below `tensors`, from the gradients of `tensors`.

    Tensors that need no gradient are passed over, as those that a pair's hook gets may be.
    """
    pairs = [
        (tensor, grad) for tensor, grad in zip(tensors, grad_tensors, strict=True) if tensor.requires_grad
    ]
    if pairs:
        torch.autograd.backward([tensor for tensor, _ in pairs], [grad for _, grad in pairs])


__all__ = ["WeightGradStore", "run_backward"]
