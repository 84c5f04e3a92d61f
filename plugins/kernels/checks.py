"""What operators ask of a tensor: its dtype, its shape, that it is contiguous, where it is."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .errors import BadArgument, BadType, refuse

Sizes = Sequence[int | tuple[int, ...] | None]  # of a shape: None for any, a tuple for a choice


def check_tensor(
    name: str, tensor: Tensor, shape: Sizes, dtypes: Sequence[torch.dtype], *, like: Tensor | None = None
) -> None:
    """Check a tensor's shape and dtype, that its last dimension is contiguous, and its device: that of `like`."""
    if not isinstance(tensor, Tensor):
        raise BadType(f"{name} is a {type(tensor).__name__}; it must be a tensor")
    if tensor.dtype not in dtypes:
        raise BadType(f"{name} has dtype {tensor.dtype}; it must be {' or '.join(map(str, dtypes))}")
    fits = tensor.dim() == len(shape) and all(
        want is None or size in (want if isinstance(want, tuple) else (want,))
        for size, want in zip(tensor.shape, shape, strict=True)
    )
    if not fits:
        refuse(f"{name}.shape", tuple(tensor.shape), f"it must be {_text(shape)}")
    if tensor.numel() and tensor.shape[-1] > 1 and tensor.stride(-1) != 1:
        refuse(f"{name}.stride()", tensor.stride(), "the last dimension must be contiguous")
    if like is not None and tensor.device != like.device:
        refuse(f"{name}.device", tensor.device, f"it must be {like.device}, as the others are")


def check_contiguous(
    name: str, tensor: Tensor, shape: Sizes, dtypes: Sequence[torch.dtype], *, like: Tensor | None = None
) -> None:
    """Check as `check_tensor`, and that nothing is between its numbers."""
    check_tensor(name, tensor, shape, dtypes, like=like)
    if not tensor.is_contiguous():
        refuse(f"{name}.stride()", tensor.stride(), "it must be contiguous")


def check_vector(name: str, vector: Tensor | None, size: int, dtype: torch.dtype, like: Tensor) -> None:
    """Check that it is None, or `size` contiguous numbers on the device of `like`."""
    if vector is not None:
        check_tensor(name, vector, (size,), (dtype,), like=like)


def check_same_device(*tensors: Tensor) -> None:
    """Check that all are on one device."""
    devices = {each.device for each in tensors}
    if len(devices) > 1:
        raise BadArgument(
            f"tensors are on {', '.join(sorted(map(str, devices)))}; they must be on one device"
        )


def _text(shape: Sizes) -> str:
    sizes = [
        "any" if each is None else " or ".join(map(str, each)) if isinstance(each, tuple) else str(each)
        for each in shape
    ]
    return f"({', '.join(sizes)}{',' if len(sizes) == 1 else ''})"


__all__ = ["check_contiguous", "check_same_device", "check_tensor", "check_vector"]
