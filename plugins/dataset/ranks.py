"""This process's part of each global batch: from a process group, a device mesh, or a launcher's environment.

R1  A number of ranks above 1 with an unknown rank is an error, never a guess.
R2  A rank that was found before torch.distributed was initialized is compared with it afterwards; a difference is an
    error.

Under tensor, pipeline, context or expert parallelism the ranks of one replica read the same samples: give `Loader` the
mesh, or the process group, of the dimensions along which data differ.
"""

import os
from collections.abc import Mapping
from typing import Any, Final, NamedTuple

LAUNCHERS: Final = (
    ("torchrun", "RANK", "WORLD_SIZE"),
    ("SLURM (srun)", "SLURM_PROCID", "SLURM_STEP_NUM_TASKS"),
    ("Open MPI", "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),
    ("PMI (MPICH, Intel MPI)", "PMI_RANK", "PMI_SIZE"),
    ("MVAPICH", "MV2_COMM_WORLD_RANK", "MV2_COMM_WORLD_SIZE"),
)
"""(launcher, its variable for the rank, that for the number of ranks), the first that is complete counts."""


class Rank(NamedTuple):
    """Rank `rank` of `ranks`."""

    rank: int
    ranks: int


def rank_of_environment(environment: Mapping[str, str]) -> Rank | None:
    """Read what a launcher has set; None without a launcher. Raises: RuntimeError for an unknown rank."""
    for launcher, rank_name, ranks_name in LAUNCHERS:
        if rank_name in environment and ranks_name in environment:
            found = Rank(_number(environment, rank_name), _number(environment, ranks_name))
            if not 0 <= found.rank < found.ranks:
                raise RuntimeError(
                    f"{launcher}: {rank_name}={found.rank} is not below {ranks_name}={found.ranks}"
                )
            return found
    if _number(environment, "WORLD_SIZE", "1") > 1:
        raise RuntimeError(
            f"WORLD_SIZE is {environment['WORLD_SIZE']} and RANK is not set: this process's part of the data is not "
            "known. Begin to iterate after torch.distributed.init_process_group, or give Loader rank= and ranks="
        )
    return None


def _number(environment: Mapping[str, str], name: str, default: str = "") -> int:
    text = environment.get(name, default)
    try:
        return int(text)
    except ValueError as error:
        raise RuntimeError(f"{name}={text!r} of the environment is not a number") from error


def distributed_rank() -> Rank:
    """Find the rank of torch.distributed, of a launcher, or 0 of 1. Raises: RuntimeError for an unknown rank."""
    return _of_group(None) or rank_of_environment(os.environ) or Rank(0, 1)


def _of_group(group: Any) -> Rank | None:
    import torch.distributed as dist

    if not (dist.is_available() and dist.is_initialized()):
        return None
    return Rank(dist.get_rank(group), dist.get_world_size(group))


def _of_mesh(mesh: Any) -> Rank:
    place = mesh.get_coordinate()
    if place is None:
        raise ValueError(f"this process is not in the mesh {mesh}")
    rank, ranks = 0, 1
    for dimension, coordinate in enumerate(place):
        rank = rank * mesh.size(dimension) + coordinate
        ranks *= mesh.size(dimension)
    return Rank(rank, ranks)


class RankSource:
    """The source of a loader's rank. Raises: ValueError for more than one source."""

    def __init__(self, rank: int | None, ranks: int | None, mesh: Any, process_group: Any) -> None:
        if (rank is None) != (ranks is None):
            raise ValueError("give rank and ranks, or neither")
        if sum(each is not None for each in (rank, mesh, process_group)) > 1:
            raise ValueError("give rank and ranks, or mesh, or process_group: one of them")
        self._given = None if rank is None or ranks is None else Rank(rank, ranks)
        self._mesh, self._group = mesh, process_group
        self._found: Rank | None = None

    @property
    def given(self) -> Rank | None:
        """The rank that arguments of the loader determine."""
        if self._mesh is not None:
            return _of_mesh(self._mesh)
        return self._given

    def find(self) -> Rank:
        """Find the rank. Raises: RuntimeError if it is unknown, or differs from the one that was found before."""
        found = self.given or _of_group(self._group)
        if found is None:
            if self._group is not None:
                raise RuntimeError("process_group= was given, and torch.distributed is not initialized")
            found = distributed_rank()
        if self._found not in {None, found}:
            raise RuntimeError(
                f"this loader has read as rank {self._found.rank} of {self._found.ranks}, and torch.distributed says "
                f"{found.rank} of {found.ranks}: begin to iterate after init_process_group"
            )
        self._found = found
        return found


__all__ = ["Rank", "RankSource", "distributed_rank", "rank_of_environment"]
