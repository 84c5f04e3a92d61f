"""Cut a rank's share of the batch into micro-batches, and join what comes out."""

from collections.abc import Sequence

import torch
from torch import Tensor

Chunk = tuple[Tensor | None, ...]


def cut(tensors: Sequence[Tensor | None], *, chunks: int, dim: int, what: str) -> list[Chunk]:
    """One tuple of pieces for each micro-batch; None stays None.

    Raises: ValueError if a tensor cannot be cut into equal pieces, TypeError if it is none.
    """
    pieces = [_pieces(each, chunks=chunks, dim=dim, what=f"{what} {i}") for i, each in enumerate(tensors)]
    return [tuple(each[chunk] for each in pieces) for chunk in range(chunks)]


def _pieces(tensor: Tensor | None, *, chunks: int, dim: int, what: str) -> Sequence[Tensor | None]:
    if tensor is None:
        return [None] * chunks
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{what} must be a tensor or None, not {type(tensor).__name__}")
    if not -tensor.dim() <= dim < tensor.dim():
        raise ValueError(f"{what} has shape {list(tensor.shape)} and no batch dimension {dim}")
    size = tensor.shape[dim]
    if size == 0 or size % chunks:
        raise ValueError(
            f"{what} has {size} samples along dimension {dim}, which do not make {chunks} equal micro-batches: "
            f"give a positive multiple of {chunks}"
        )
    return tensor.tensor_split(chunks, dim)


def join(chunks: Sequence[Chunk], *, dim: int) -> Tensor | tuple[Tensor | None, ...] | None:
    """The outputs of all micro-batches as one batch: a tensor if the stage gives one, else a tuple."""
    joined = tuple(
        None if pieces[0] is None else torch.cat([each for each in pieces if each is not None], dim)
        for pieces in zip(*chunks, strict=True)
    )
    return joined[0] if len(joined) == 1 else joined


__all__ = ["Chunk", "cut", "join"]
