"""Weights: safetensors checkpoints on a location, read by many range reads in flight, whole or in shards.

    checkpoint   what users open: names, shapes, reading, verifying
    writing      `save`: files that appear complete, with checksums beside them
    header       the file's header, checked
    plan         boxes of tensors to blocks of bytes (no torch, no I/O)
    targets      tensors as targets
    transfer     blocks through a ring
    checksums    FILE.crc32c
    dtypes       the format's element types and torch's

    checkpoint = Checkpoint.open("lu:/models/m")
    checkpoint.read_slices([Slice("mlp.up.weight", mine, index=slice(first, last))])

Importing this package imports neither torch nor the client until one of its names is used. Other plugins use it.
"""

from typing import TYPE_CHECKING

from ..lazy import lazy

if TYPE_CHECKING:
    from .checkpoint import Checkpoint, Damage, ReadReport, Slice
    from .header import TensorInfo
    from .writing import save

__all__ = ["Checkpoint", "Damage", "ReadReport", "Slice", "TensorInfo", "describe", "save"]


def describe() -> dict[str, str]:
    """What `luciola plugins` shows."""
    return {"state": "ready: any location, targets in host memory or on a GPU"}


_HOMES = {".checkpoint": "Checkpoint Damage ReadReport Slice", ".header": "TensorInfo", ".writing": "save"}
__getattr__ = lazy(__name__, _HOMES)
