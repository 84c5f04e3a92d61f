"""Page-locks memory for CUDA, so that copies to a device read it in place."""

import os
import weakref

import torch

from .records import Bytes


def pin_array(array: Bytes) -> None:
    """Register the pages of an array as long as it lives. Raises: RuntimeError, with CUDA's reason."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    error = runtime.cudaHostRegister(array.ctypes.data, array.nbytes, 0)
    if int(error) != 0:
        raise RuntimeError(
            f"CUDA cannot lock {array.nbytes} bytes of memory: {error} (pin=False of MapDataset does without)"
        )
    weakref.finalize(array, _unpin, array.ctypes.data, os.getpid()).atexit = False


def _unpin(address: int, process: int) -> None:
    if process == os.getpid():  # a forked process has no CUDA
        torch.cuda.cudart().cudaHostUnregister(address)  # type: ignore[no-untyped-call]


__all__ = ["pin_array"]
