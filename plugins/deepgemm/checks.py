"""What every product asks of its operands, said once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.checks import check_contiguous, check_same_device
from ..kernels.errors import BadArgument, BadType, refuse
from .quantize import FP8
from .scales import TMA_BYTES


def check_operand(x: Tensor, *, name: str, dtype: torch.dtype, dims: int, transposed: bool = False) -> None:
    """A matrix (or a stack of them, `dims` 3) whose rows are contiguous and start at multiples of 16 bytes."""
    if x.dtype != dtype:
        raise BadType(f"{name} is {x.dtype}; it must be {dtype}")
    if x.dim() != dims:
        refuse(name, f"of shape {tuple(x.shape)}", f"it must have {dims} dimensions")
    if x.numel() == 0:
        return
    if x.stride(-1) != 1 and x.shape[-1] > 1:
        order = "(k, m) or (k, n)" if transposed else "(m, k) or (n, k)"
        refuse(
            name,
            f"of strides {x.stride()}",
            f"its last dimension must be contiguous: it is stored as {order}",
        )
    if x.shape[-2] > 1 and x.stride(-2) * x.element_size() % TMA_BYTES:
        refuse(name, f"of row stride {x.stride(-2)}", f"rows must start at multiples of {TMA_BYTES} bytes")
    if dims == 3 and x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1):
        refuse(name, f"of strides {x.stride()}", "groups must follow each other without gaps")
    if x.device.type != "meta" and x.data_ptr() % TMA_BYTES:
        refuse(name, f"at address {x.data_ptr():#x}", f"it must begin at a multiple of {TMA_BYTES} bytes")


def check_output(d: Tensor, shape: Sequence[int], *, dtypes: Sequence[torch.dtype]) -> None:
    """Where a product is written: the right shape and dtype, contiguous rows."""
    if d.dtype not in dtypes:
        raise BadType(f"d is {d.dtype}; it must be {' or '.join(str(each) for each in dtypes)}")
    if tuple(d.shape) != tuple(shape):
        refuse("d", f"of shape {tuple(d.shape)}", f"it must be {tuple(shape)}")
    if d.stride(-1) != 1 and d.shape[-1] > 1:
        refuse("d", f"of strides {d.stride()}", "its rows must be contiguous")


def check_same_k(k_of_a: int, k_of_b: int) -> None:
    """Both operands have the same k."""
    if k_of_a != k_of_b:
        raise BadArgument(f"a has k = {k_of_a} and b has k = {k_of_b}; they must be equal")


def check_index(x: Tensor, shape: Sequence[int], *, name: str) -> None:
    """A contiguous int32 tensor of that shape."""
    check_contiguous(name, x, shape, (torch.int32,))


def check_compiled_dims(dims: str) -> None:
    """A subset of "mnk". Triton specialises by itself, so it changes nothing here."""
    if set(dims) - set("mnk"):
        refuse("compiled_dims", repr(dims), 'it holds letters of "mnk"')


def unpack(pair: tuple[Tensor, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Values and scales of an FP8 operand."""
    if not (
        isinstance(pair, tuple | list) and len(pair) == 2 and all(isinstance(each, Tensor) for each in pair)
    ):
        raise BadType(
            f"{name} is {type(pair).__name__}; it must be a pair of tensors (e4m3 values, float32 scales)"
        )
    values, scales = pair
    if values.dtype != FP8:
        raise BadType(f"{name}[0] is {values.dtype}; SM90 kernels take {FP8}")
    return values, scales


__all__ = [
    "check_compiled_dims",
    "check_index",
    "check_operand",
    "check_output",
    "check_same_device",
    "check_same_k",
    "unpack",
]
