"""The ranks that open a transport together, and how they talk before there is one."""

import os
from collections.abc import Mapping
from typing import Any, Protocol

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed hides them from type checkers

from ..failure import RanksDisagree


class Members(Protocol):
    """Ranks 0 to size - 1, of which this process is one."""

    rank: int
    """Of this process."""
    size: int
    """How many there are."""
    host: tuple[object, ...]
    """Equal for ranks that can find one another's processes, and may share memory."""

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, in order of ranks. All call it."""

    def backend(self, device: str) -> str:
        """What carries tensors of a device between them, as torch names it; nothing if there is nothing."""

    def store(self, name: str) -> Store | None:
        """A place for notes that all reach, under a name that all know; None if there is none."""


class GroupMembers:
    """Those of a `torch.distributed` process group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank = group.rank()
        self.size = group.size()
        self.host: tuple[object, ...] = _host()

    def gather(self, value: Any) -> list[Any]:
        """As Members.gather."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def backend(self, device: str) -> str:
        """As Members.backend."""
        pairs = (each.split(":", 1) for each in dist.get_backend_config(self.group).split(","))
        return dict(pairs).get(device, "")

    def store(self, name: str) -> Store | None:
        """The store that the group was made with."""
        known = dist.distributed_c10d._world.pg_map.get(self.group)  # noqa: SLF001 (there is no public way)
        return None if known is None else PrefixStore(name, known[1])


class CommMembers:
    """Those of a communicator as mpi4py has it."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank = int(comm.Get_rank())
        self.size = int(comm.Get_size())
        self.host: tuple[object, ...] = _host()

    def gather(self, value: Any) -> list[Any]:
        """As Members.gather."""
        return list(self._comm.allgather(value))

    def backend(self, device: str) -> str:  # noqa: ARG002 (the protocol's)
        """MPI carries no tensors for us."""
        return ""

    def store(self, name: str) -> Store | None:  # noqa: ARG002 (the protocol's)
        """MPI has none."""
        return None


def _host() -> tuple[str, int]:
    """Processes find one another by number within one running kernel and one name space of processes."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip(), os.stat("/proc/self/ns/pid").st_ino


def agree(members: Members, facts: Mapping[str, object], *, phase: str) -> None:
    """All ranks compare what they were called with.

    Raises: RanksDisagree on every rank, naming the first fact that differs and two ranks that differ in it.
    """
    rows = members.gather(dict(facts))
    for name in facts:
        for rank, row in enumerate(rows):
            if row.get(name) != rows[0].get(name):
                raise RanksDisagree(
                    f"rank 0 has {name} = {rows[0].get(name)!r}, rank {rank} has {row.get(name)!r}; "
                    "all ranks must give the same",
                    rank=members.rank, phase=phase, peer=rank,
                )  # fmt: skip


__all__ = ["CommMembers", "GroupMembers", "Members", "agree"]
