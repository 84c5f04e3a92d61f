"""The element types of safetensors files, and the torch types that hold them.

A torch type is named, not imported, so that listing a checkpoint does not need torch. F4 counts two elements a byte in
the file's shape and is one byte in torch's: its last dimension is half as long there. F6 has no torch type.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DType:
    """One element type."""

    name: str  # as files write it
    bits: int
    torch_name: str | None
    packed: int = 1  # elements of the file's shape in one of torch's


DTYPES: Final = {
    dtype.name: dtype
    for dtype in (
        DType("BOOL", 8, "bool"),
        DType("U8", 8, "uint8"),
        DType("I8", 8, "int8"),
        DType("U16", 16, "uint16"),
        DType("I16", 16, "int16"),
        DType("U32", 32, "uint32"),
        DType("I32", 32, "int32"),
        DType("U64", 64, "uint64"),
        DType("I64", 64, "int64"),
        DType("F4", 4, "float4_e2m1fn_x2", packed=2),
        DType("F6_E2M3", 6, None),
        DType("F6_E3M2", 6, None),
        DType("F8_E4M3", 8, "float8_e4m3fn"),
        DType("F8_E4M3FNUZ", 8, "float8_e4m3fnuz"),
        DType("F8_E5M2", 8, "float8_e5m2"),
        DType("F8_E5M2FNUZ", 8, "float8_e5m2fnuz"),
        DType("F8_E8M0", 8, "float8_e8m0fnu"),
        DType("F16", 16, "float16"),
        DType("BF16", 16, "bfloat16"),
        DType("F32", 32, "float32"),
        DType("F64", 64, "float64"),
        DType("C64", 64, "complex64"),
    )
}


def torch_dtype(name: str) -> "torch.dtype":
    """The torch type of a file's type. Raises: TypeError if there is none."""
    import torch

    dtype = DTYPES[name]
    found = None if dtype.torch_name is None else getattr(torch, dtype.torch_name, None)
    if found is None:
        raise TypeError(
            f"torch {torch.__version__} has no type for {name}: its bytes can be listed and verified only"
        )
    assert isinstance(found, torch.dtype), "the table names types"
    return found


def file_dtype(dtype: "torch.dtype") -> DType:
    """The file's type of a torch type. Raises: TypeError if the format has none."""
    name = str(dtype).removeprefix("torch.")
    for each in DTYPES.values():
        if each.torch_name == name:
            return each
    raise TypeError(f"safetensors files have no type for {dtype}: convert the tensor first")


__all__ = ["DTYPES", "DType", "file_dtype", "torch_dtype"]
