"""What every product asks of its operands, said once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.checks import check_contiguous, check_same_device
from ..kernels.errors import BadArgument, BadType, refuse
from ..kernels.quantize import FP8
from .scales import TMA_BYTES


def check_operand(x: Tensor, *, name: str, dtype: torch.dtype, dims: int, transposed: bool = False) -> None:
    """A matrix (or a stack of them, `dims` 3) whose rows are contiguous and start at multiples of 16 bytes."""
    check_is_tensor(x, name=name)
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
    if x.shape[-2] > 1 and x.stride(-2) < x.shape[-1]:
        refuse(name, f"of row stride {x.stride(-2)}", f"rows of {x.shape[-1]} must not overlap")
    if dims == 3 and x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1):
        refuse(name, f"of strides {x.stride()}", "groups must follow each other without gaps")
    if x.device.type != "meta" and x.data_ptr() % TMA_BYTES:
        refuse(name, f"at address {x.data_ptr():#x}", f"it must begin at a multiple of {TMA_BYTES} bytes")


def check_output(d: Tensor, shape: Sequence[int], *, dtypes: Sequence[torch.dtype], name: str = "d") -> None:
    """Where a product is written, or what it is added to: the right shape and dtype, rows contiguous and apart."""
    check_is_tensor(d, name=name)
    if d.dtype not in dtypes:
        raise BadType(f"{name} is {d.dtype}; it must be {' or '.join(str(each) for each in dtypes)}")
    if tuple(d.shape) != tuple(shape):
        refuse(name, f"of shape {tuple(d.shape)}", f"it must be {tuple(shape)}")
    if d.stride(-1) != 1 and d.shape[-1] > 1:
        refuse(name, f"of strides {d.stride()}", "its rows must be contiguous")
    if d.numel() and any(
        size > 1 and stride < d.shape[-1] for size, stride in zip(d.shape[:-1], d.stride()[:-1], strict=True)
    ):
        refuse(name, f"of strides {d.stride()}", f"rows of {d.shape[-1]} must not overlap")


def check_added(c: Tensor, d: Tensor) -> None:
    """What a product is added to: like d, and d itself or memory of its own."""
    check_output(c, d.shape, dtypes=[d.dtype], name="c")
    check_same_device(c, d)
    if c is not d and d.numel() and c.data_ptr() == d.data_ptr() and c.stride() != d.stride():
        refuse("c", f"of strides {c.stride()} in d's memory", f"there it must have d's, {d.stride()}")


def check_is_tensor(x: object, *, name: str) -> None:
    """A tensor, and nothing else."""
    if not isinstance(x, Tensor):
        raise BadType(f"{name} is {type(x).__name__}; it must be a tensor")


def check_sizes(ks: Sequence[int]) -> None:
    """Sizes of groups, known on the host."""
    if not isinstance(ks, list | tuple) or any(not isinstance(each, int) for each in ks):
        raise BadType(
            f"ks_cpu is {type(ks).__name__}; it must be a list of ints (their copy on the device is grouped_layout)"
        )
    if not ks:
        raise BadArgument("ks_cpu is empty; SM90 needs the size of every group on the host")


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
    "check_added",
    "check_compiled_dims",
    "check_index",
    "check_is_tensor",
    "check_operand",
    "check_output",
    "check_same_device",
    "check_same_k",
    "check_sizes",
    "unpack",
]
