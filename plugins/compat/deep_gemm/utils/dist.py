"""Ranks of a run."""

from typing import Final

import torch
from torch import Tensor
from torch import distributed as dist

from luciola.plugins.kernels.errors import BadArgument, BadCall, refuse
from luciola.plugins.kernels.ranks import join

_local_rank: Final[list[int]] = []  # of this process, once it has joined


def init_dist(local_rank: int, num_local_ranks: int) -> tuple[int, int, dist.ProcessGroup]:
    """Join the processes of a run: (rank, number of ranks, group of all); see `kernels.ranks.join`."""
    joined = join(local_rank, num_local_ranks)
    _local_rank[:] = [local_rank]
    return joined


def dist_print(s: str = "", once_in_node: bool = False) -> None:  # noqa: FBT001, FBT002 (the original's)
    """Print, on one rank of each host if `once_in_node`; then wait for all ranks.

    Raises: BadCall before `init_dist`.
    """
    if not _local_rank:
        raise BadCall("this process has no rank yet: call init_dist first")
    if not once_in_node or _local_rank[0] == 0:
        print(s, flush=True)  # noqa: T201 (what it is for)
    dist.barrier()


def uneven_all_gather(tensor: Tensor, dim: int = 0, group: dist.ProcessGroup | None = None) -> Tensor:
    """All ranks' tensors, joined along `dim`, in which alone their shapes may differ.

    Every rank must call it, with as many dimensions and the same dtype.
    Raises: BadArgument if the shapes differ elsewhere.
    """
    if not -tensor.dim() <= dim < tensor.dim():
        refuse("dim", dim, f"the tensor has {tensor.dim()} dimensions")
    ranks = dist.get_world_size(group)
    mine = torch.tensor(tensor.shape, dtype=torch.int64, device=tensor.device)
    shapes = [torch.empty_like(mine) for _ in range(ranks)]
    dist.all_gather(shapes, mine, group=group)
    sizes = [each.tolist() for each in shapes]
    lengths = [each.pop(dim) for each in sizes]
    if any(each != sizes[0] for each in sizes):
        raise BadArgument(f"shapes of the ranks but for dimension {dim} are {sizes}; they must be equal")
    # Along dimension 0 and as bytes: not every backend knows every dtype.
    whole = tensor.movedim(dim, 0).contiguous()
    width = torch.Size(sizes[0]).numel() * tensor.element_size()
    if width == 0 or max(lengths) == 0:
        return whole.new_empty((sum(lengths), *sizes[0])).movedim(0, dim)
    padded = torch.zeros((max(lengths), width), dtype=torch.uint8, device=tensor.device)
    if len(whole):
        padded[: len(whole)] = whole.view(len(whole), -1).view(torch.uint8)
    gathered = [torch.empty_like(padded) for _ in range(ranks)]
    dist.all_gather(gathered, padded, group=group)
    rows = torch.cat([each[:length] for each, length in zip(gathered, lengths, strict=True)])
    return rows.view(tensor.dtype).view(sum(lengths), *sizes[0]).movedim(0, dim)


__all__ = ["dist_print", "init_dist", "uneven_all_gather"]
