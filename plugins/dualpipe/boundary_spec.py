"""What the tensors that cross a boundary look like.

Both ends of a boundary must agree before the first message, for a receiver makes its buffers from it and a message of
another size would be read as something else. Either the user says it on all ranks (`set_p2p_tensor_shapes`), or the
rank below a boundary publishes it for the one above after its first Forward. The sender compares each tensor with it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Shapes = Sequence[Sequence[int]]


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a boundary."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    gradient: bool
    """A gradient comes back for it."""

    @property
    def dtype_name(self) -> str:
        return str(self.dtype).removeprefix("torch.")

    def __str__(self) -> str:
        return f"{self.dtype_name}{list(self.shape)}"

    def empty(self, device: torch.device) -> Tensor:
        """Make a buffer for it."""
        return torch.empty(self.shape, dtype=self.dtype, device=device)


Boundary = tuple[TensorSpec | None, ...]
"""The specs of a boundary's tensors in their order; None where the stage below gives None."""


def describe(boundary: Boundary) -> str:
    """A boundary in words: `float32[3, 256], None`."""
    return ", ".join("None" if spec is None else str(spec) for spec in boundary) or "nothing"


def boundary_of(tensors: Iterable[Tensor | None]) -> Boundary:
    """Describe the outputs of a stage."""
    return tuple(
        None if each is None else TensorSpec(tuple(each.shape), each.dtype, each.requires_grad)
        for each in tensors
    )


def encode(boundary: Boundary) -> bytes:
    """For the store."""
    found = [None if spec is None else (spec.shape, spec.dtype_name, spec.gradient) for spec in boundary]
    return json.dumps(found).encode()


def decode(data: bytes) -> Boundary:
    """From the store."""
    return tuple(
        None if each is None else TensorSpec(tuple(each[0]), getattr(torch, each[1]), each[2])
        for each in json.loads(data)
    )


def same_tensors(one: Boundary, other: Boundary) -> bool:
    """Return whether both are equal but for the gradients, which a user's shapes do not say."""
    return len(one) == len(other) and all(
        (a is None) == (b is None) and (a is None or b is None or (a.shape, a.dtype) == (b.shape, b.dtype))
        for a, b in zip(one, other, strict=True)
    )


@dataclass(frozen=True, slots=True)
class Declared:
    """What the user said of all boundaries."""

    shapes: tuple[tuple[int, ...], ...] | None = None
    dtype: torch.dtype | None = None

    def boundary(self) -> Boundary | None:
        """The tensors of a boundary, or None if the pipeline shall find out.

        Raises: ValueError if there are shapes without a dtype.
        """
        if self.shapes is None:
            return None
        if self.dtype is None:
            raise ValueError("set_p2p_tensor_shapes was called without set_p2p_tensor_dtype: call both")
        differentiable = self.dtype.is_floating_point or self.dtype.is_complex
        return tuple(TensorSpec(shape, self.dtype, differentiable) for shape in self.shapes)

    def summary(self) -> dict[str, Any]:
        """For the comparison between ranks."""
        return {"p2p shapes": repr(self.shapes), "p2p dtype": str(self.dtype)}


_declared = Declared()


def declared() -> Declared:
    """Return what the user has declared in this process."""
    return _declared


def set_p2p_tensor_shapes(shapes: Shapes | None) -> None:
    """Say the shapes of the tensors that cross each stage boundary, on all ranks alike.

    None, the default: they are found out in each step, and may differ from boundary to boundary.
    """
    global _declared  # noqa: PLW0603 - the original's interface is one setting for the process
    _declared = Declared(None if shapes is None else _tuples(shapes), _declared.dtype)


def set_p2p_tensor_dtype(dtype: torch.dtype | None) -> None:
    """Say the dtype that goes with `set_p2p_tensor_shapes`, on all ranks alike."""
    global _declared  # noqa: PLW0603 - as above
    if dtype is not None and not isinstance(dtype, torch.dtype):
        raise TypeError(f"set_p2p_tensor_dtype takes a torch.dtype, not {dtype!r}")
    _declared = Declared(_declared.shapes, dtype)


def _tuples(shapes: Shapes) -> tuple[tuple[int, ...], ...]:
    result = []
    for shape in shapes:
        if isinstance(shape, int) or not all(isinstance(size, int) and size >= 0 for size in shape):
            raise ValueError(
                f"set_p2p_tensor_shapes takes a list of shapes like [(3, 256, 512)], not {shapes!r}"
            )
        result.append(tuple(shape))
    return tuple(result)


__all__ = [
    "Boundary", "Declared", "TensorSpec", "boundary_of", "declared", "decode", "describe", "encode", "same_tensors",
    "set_p2p_tensor_dtype", "set_p2p_tensor_shapes",
]  # fmt: skip
