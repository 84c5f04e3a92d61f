"""Checks of what dispatch and combine are given, the same for all modes."""

from typing import Any, Final

import torch
from torch import Tensor

from ...kernels.checks import check_contiguous
from ...kernels.errors import BadType, refuse
from ...kernels.quantize import FP8
from .layout import check_indices
from .tokens import Tokens

ROW_ALIGNMENT: Final = 16
"""The original moves rows in pieces of so many bytes."""
TOPK_MAX: Final = 32
EXPERTS_PER_RANK_MAX: Final = 1024


def take_tokens(
    x: Any, topk_idx: Tensor | None, topk_weights: Tensor | None, *, device: torch.device
) -> Tokens:
    """What is dispatched, checked and brought to a device."""
    values, scales = x if isinstance(x, tuple | list) else (x, None)
    check_rows(values, "x", torch.bfloat16 if scales is None else FP8)
    if scales is not None:
        if scales.dtype not in {torch.float32, torch.int32}:
            raise BadType(f"scales are {scales.dtype}; they must be torch.float32 or torch.int32")
        if scales.dim() not in {1, 2} or len(scales) != len(values):
            refuse("scales", f"of shape {tuple(scales.shape)}", f"x has {len(values)} rows")
        scales = scales.view(len(scales), -1) if scales.dim() == 1 else scales
    if topk_weights is not None:
        check_rows(topk_weights, "topk_weights", torch.float32, alignment=4)
    if topk_idx is not None:
        shape = None if topk_weights is None else tuple(topk_weights.shape)
        if len(values) != len(topk_idx) or shape not in {None, tuple(topk_idx.shape)}:
            refuse("topk_idx, topk_weights", (tuple(topk_idx.shape), shape),
                   f"they must have one shape, with x's {len(values)} rows")  # fmt: skip
        if topk_idx.dim() == 2 and topk_idx.shape[1] > TOPK_MAX:
            refuse("topk_idx", f"of shape {tuple(topk_idx.shape)}", f"a token has at most {TOPK_MAX} experts")
    given = (values, None if scales is None else scales.contiguous(), topk_idx, topk_weights)
    return Tokens(*(None if each is None else each.to(device) for each in given))  # type: ignore[arg-type]


def check_rows(x: Tensor, name: str, dtype: torch.dtype, *, alignment: int = ROW_ALIGNMENT) -> None:
    """Contiguous rows of a type, in whole pieces of `alignment` bytes."""
    check_contiguous(name, x, (None, None), (dtype,))
    if x.shape[1] == 0 or x.shape[1] * x.element_size() % alignment:
        refuse(name, f"of {x.shape[1]} columns", f"a row must be a multiple of {alignment} bytes")


def check_topk(topk_idx: Tensor, tokens: int, num_experts: int) -> None:
    """Expert numbers or -1, (tokens, k), of which k is not too large."""
    check_indices(topk_idx, num_experts, tokens=tokens)
    if not 0 < topk_idx.shape[1] <= TOPK_MAX:
        refuse("k", topk_idx.shape[1], f"it must be 1 to {TOPK_MAX}")


def check_biases(bias: Tensor | tuple[Tensor, ...] | None, shape: tuple[int, int]) -> list[Tensor]:
    """None, one or two."""
    given = [] if bias is None else list(bias) if isinstance(bias, tuple | list) else [bias]
    if len(given) > 2:
        refuse("bias", f"of {len(given)} tensors", "give one or two")
    for each in given:
        check_rows(each, "bias", torch.bfloat16)
        if tuple(each.shape) != shape:
            refuse("bias", f"of shape {tuple(each.shape)}", f"it must be {shape}")
    return given


__all__ = [
    "EXPERTS_PER_RANK_MAX", "ROW_ALIGNMENT", "TOPK_MAX", "check_biases", "check_rows", "check_topk", "take_tokens",
]  # fmt: skip
