"""Page-locks memory for CUDA, so that copies to a device read it in place."""

import torch

from .records import Bytes


def pin_array(array: Bytes) -> None:
    """Registers the pages of an array until the process ends. Raises: RuntimeError, with CUDA's reason."""
    error = torch.cuda.cudart().cudaHostRegister(array.ctypes.data, array.nbytes, 0)  # type: ignore[no-untyped-call]
    if int(error) != 0:
        raise RuntimeError(
            f"CUDA cannot lock {array.nbytes} bytes of memory: {error} (pin=False of MapDataset does without)"
        )


__all__ = ["pin_array"]
