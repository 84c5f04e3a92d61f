"""Loads of experts from files of several kinds, by their suffix.

.safetensors   what `LoadRecorder` saves: an average, and windows
.npy           an array (layers, experts), or (windows, layers, experts)
"""

import io
import os
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from luciola.client import open_location
from luciola.errors import CorruptData, InvalidArgument
from luciola.units import MIB, format_bytes

from .recorder import Loads

FILE_BYTES_MAX: Final = 256 * MIB  # 300 windows of 100 layers of 1024 experts


@dataclass(frozen=True)
class LoadFile:
    """What a file says; float64. average (layers, experts), windows (windows, layers, experts), perhaps none."""

    average: Tensor
    windows: Tensor


def read_loads(location: str) -> LoadFile:
    """The loads in a file at a location. Raises: InvalidArgument, CorruptData, OSError."""
    suffix = os.path.splitext(location)[1].lower()
    if suffix == ".safetensors":
        loads = Loads.load(location)
        return LoadFile(loads.average, loads.windows)
    if suffix != ".npy":
        raise InvalidArgument("loads are in a .safetensors or .npy file", path=location)
    file_system, path = open_location(location)
    size = file_system.stat(path).st_size
    if size > FILE_BYTES_MAX:
        raise InvalidArgument(
            f"{format_bytes(size)} of loads; at most {format_bytes(FILE_BYTES_MAX)} are read", path=path
        )
    try:
        data = io.BytesIO(file_system.read(path))
        return _checked(np.lib.format.read_array(data, allow_pickle=False))  # type: ignore[no-untyped-call]
    except (ValueError, TypeError, LookupError, EOFError, RecursionError, MemoryError) as error:
        raise CorruptData(f"not loads of experts: {error!s:.200}", path=path) from error


def _checked(array: npt.NDArray[Any]) -> LoadFile:
    if array.dtype.kind not in "iuf":
        raise ValueError(f"an array of {array.dtype}, not of numbers")
    if array.ndim not in {2, 3} or 0 in array.shape:
        raise ValueError(f"shape {array.shape}, not (layers, experts) or (windows, layers, experts)")
    array = array.astype(np.float64)
    if not (np.isfinite(array) & (array >= 0)).all():
        raise ValueError("loads are finite numbers from zero on")
    tensor = torch.from_numpy(array)
    return LoadFile(tensor, tensor[None][:0]) if tensor.dim() == 2 else LoadFile(tensor.mean(0), tensor)


__all__ = ["LoadFile", "read_loads"]
