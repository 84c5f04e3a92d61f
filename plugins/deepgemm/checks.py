"""What every product asks of its operands, said once."""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..kernels.checks import check_contiguous, check_same_device, check_tensor
from ..kernels.errors import BadArgument, BadType, refuse
from ..kernels.quantize import FP8
from .scales import TMA_BYTES


def check_operand(x: Tensor, *, name: str, dtype: torch.dtype, dims: int, packed: bool = True) -> None:
    """Check a matrix, or a stack of them, whose rows are contiguous and start at multiples of 16 bytes.

    `packed`: rows do not overlap, and groups follow each other without gaps.
    """
    check_tensor(name, x, (None,) * dims, (dtype,))
    if x.numel() == 0:
        return
    apart = [stride for stride, size in zip(x.stride()[:-1], x.shape[:-1], strict=True) if size > 1]
    if any(each * x.element_size() % TMA_BYTES for each in apart):
        refuse(name, f"of strides {x.stride()}", f"rows must start at multiples of {TMA_BYTES} bytes")
    if packed and x.shape[-2] > 1 and x.stride(-2) < x.shape[-1]:
        refuse(name, f"of row stride {x.stride(-2)}", f"rows of {x.shape[-1]} must not overlap")
    if packed and dims == 3 and x.shape[0] > 1 and x.stride(0) != x.shape[1] * x.stride(1):
        refuse(name, f"of strides {x.stride()}", "groups must follow each other without gaps")
    if x.device.type != "meta" and x.data_ptr() % TMA_BYTES:
        refuse(name, f"at address {x.data_ptr():#x}", f"it must begin at a multiple of {TMA_BYTES} bytes")


def check_output(d: Tensor, shape: Sequence[int], *, dtypes: Sequence[torch.dtype], name: str = "d") -> None:
    """Check where a product is written, or what it is added to: its rows are contiguous and apart."""
    check_tensor(name, d, shape, dtypes)
    apart = [stride for stride, size in zip(d.stride()[:-1], d.shape[:-1], strict=True) if size > 1]
    if d.numel() and any(each < d.shape[-1] for each in apart):
        refuse(name, f"of strides {d.stride()}", f"rows of {d.shape[-1]} must not overlap")


def check_added(c: Tensor, d: Tensor) -> None:
    """Check what a product is added to: like d, and d itself or memory of its own."""
    check_output(c, d.shape, dtypes=[d.dtype], name="c")
    check_same_device(c, d)
    if c is not d and d.numel() and c.data_ptr() == d.data_ptr() and c.stride() != d.stride():
        refuse("c", f"of strides {c.stride()} in d's memory", f"there it must have d's, {d.stride()}")


def check_sizes(ks: Sequence[int]) -> None:
    """Check the sizes of groups, which the host knows."""
    if not isinstance(ks, list | tuple) or any(not isinstance(each, int) for each in ks):
        raise BadType(
            f"ks_cpu is {type(ks).__name__}; it must be a list of ints (their copy on the device is grouped_layout)"
        )
    if not ks:
        raise BadArgument("ks_cpu is empty; SM90 needs the size of every group on the host")


def check_same_k(k_of_a: int, k_of_b: int) -> None:
    if k_of_a != k_of_b:
        raise BadArgument(f"a has k = {k_of_a} and b has k = {k_of_b}; they must be equal")


def check_index(x: Tensor, shape: Sequence[int], *, name: str) -> None:
    check_contiguous(name, x, shape, (torch.int32,))


def check_compiled_dims(dims: str) -> None:
    """Check a subset of "mnk". Triton specialises by itself, so it changes nothing here."""
    if set(dims) - set("mnk"):
        refuse("compiled_dims", repr(dims), 'it holds letters of "mnk"')


def unpack(pair: tuple[Tensor, Tensor], name: str) -> tuple[Tensor, Tensor]:
    """Return the values and scales of an FP8 operand."""
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
    "check_added", "check_compiled_dims", "check_index", "check_operand", "check_output", "check_same_device",
    "check_same_k", "check_sizes", "unpack",
]  # fmt: skip
