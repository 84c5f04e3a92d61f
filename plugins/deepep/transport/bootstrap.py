"""The ranks that open a link together, and what they exchange before there is one."""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Protocol

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed hides them from type checkers

from .errors import RanksDisagree


class NotUsable(Exception):
    """This backend cannot connect these ranks. All of them get it together."""


class Bootstrap(Protocol):
    """Ranks 0 to size - 1, of which this process is `rank`."""

    rank: int
    size: int
    host: tuple[object, ...]
    """Equal for ranks that can find one another's processes, and may share memory."""

    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order. All call it."""

    def backend(self, device: str) -> str:
        """What carries tensors of a device between them, as torch names it; "" if there is none."""

    def store(self, name: str) -> Store | None:
        """A key-value store that all ranks reach, under a name that all know; None if there is none."""


class GroupBootstrap:
    """The ranks of a `torch.distributed` process group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        self.group = group
        self.rank, self.size, self.host = group.rank(), group.size(), _host()

    def gather(self, value: Any) -> list[Any]:
        """As Bootstrap.gather."""
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self.group)
        return values

    def backend(self, device: str) -> str:
        """As Bootstrap.backend."""
        pairs = (each.split(":", 1) for each in dist.get_backend_config(self.group).split(","))
        return dict(pairs).get(device, "")

    def store(self, name: str) -> Store | None:
        """The store that the group was made with."""
        known = dist.distributed_c10d._world.pg_map.get(self.group)  # noqa: SLF001 (there is no public way)
        return None if known is None else PrefixStore(name, known[1])


class CommBootstrap:
    """The ranks of a communicator as mpi4py has it, which has no backend for tensors and no store."""

    def __init__(self, comm: Any) -> None:
        self._comm = comm
        self.rank, self.size, self.host = int(comm.Get_rank()), int(comm.Get_size()), _host()

    def gather(self, value: Any) -> list[Any]:
        """As Bootstrap.gather."""
        return list(self._comm.allgather(value))

    def backend(self, device: str) -> str:  # noqa: ARG002 (the protocol's)
        """As Bootstrap.backend."""
        return ""

    def store(self, name: str) -> Store | None:  # noqa: ARG002 (the protocol's)
        """As Bootstrap.store."""
        return None


def _host() -> tuple[object, ...]:
    """Processes find one another by number within one running kernel and one name space of processes."""
    with open("/proc/sys/kernel/random/boot_id") as file:
        return file.read().strip(), os.stat("/proc/self/ns/pid").st_ino


def agree(ranks: Bootstrap, facts: Mapping[str, object], *, phase: str) -> None:
    """Compare what all ranks were called with.

    Raises: RanksDisagree on every rank, naming the first fact that differs and two ranks that differ in it.
    """
    rows = ranks.gather(dict(facts))
    for name in facts:
        for rank, row in enumerate(rows):
            if row.get(name) != rows[0].get(name):
                raise RanksDisagree(
                    f"rank 0 has {name} = {rows[0].get(name)!r}, rank {rank} has {row.get(name)!r}; "
                    "all ranks must give the same",
                    rank=ranks.rank, phase=phase, peer=rank,
                )  # fmt: skip


@contextmanager
def all_or_none(ranks: Bootstrap) -> Iterator[None]:
    """Turn an operating error of one rank inside into NotUsable on all."""
    problem = ""
    try:
        yield
    except (ImportError, OSError, RuntimeError, LookupError, TypeError, AttributeError, ValueError) as error:
        problem = f"rank {ranks.rank}: {error!s:.200}"
    problems = [each for each in ranks.gather(problem) if each]
    if problems:
        raise NotUsable(problems[0])


def require_one_host(ranks: Bootstrap) -> None:
    """Raises: NotUsable on all ranks, if they are on several hosts."""
    hosts = len(set(ranks.gather(ranks.host)))
    if hosts > 1:
        raise NotUsable(f"ranks are on {hosts} hosts, or in several containers")


__all__ = [
    "Bootstrap",
    "CommBootstrap",
    "GroupBootstrap",
    "NotUsable",
    "agree",
    "all_or_none",
    "require_one_host",
]
