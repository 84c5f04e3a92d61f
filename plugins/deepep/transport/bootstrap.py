"""The ranks that open a link together, and what they exchange before there is one."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch.distributed as dist
from torch._C._distributed_c10d import PrefixStore, Store  # torch.distributed hides them from type checkers

from . import segment_header
from .segment_header import Fact


class NotUsable(Exception):
    """This backend cannot connect these ranks. All of them get it together."""


class Bootstrap(ABC):
    """Ranks 0 to size - 1, of which this process is `rank`."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.size = rank, size
        with open("/proc/sys/kernel/random/boot_id") as file:
            self.host: tuple[object, ...] = (file.read().strip(), os.stat("/proc/self/ns/pid").st_ino)
        """Equal for ranks that can find one another's processes, and may share memory: one running kernel, and one name
        space of processes."""

    @abstractmethod
    def gather(self, value: Any) -> list[Any]:
        """The values of all ranks, in their order. All call it."""

    def backend(self, device: str) -> str:  # noqa: ARG002 (of groups)
        """What carries tensors of a device between them, as torch names it; "" if there is none."""
        return ""

    def store(self, name: str) -> Store | None:  # noqa: ARG002 (of groups)
        """A key-value store that all ranks reach, under a name that all know; None if there is none."""
        return None


class GroupBootstrap(Bootstrap):
    """The ranks of a `torch.distributed` process group."""

    def __init__(self, group: dist.ProcessGroup) -> None:
        super().__init__(group.rank(), group.size())
        self.group = group

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


class CommBootstrap(Bootstrap):
    """The ranks of a communicator as mpi4py has it."""

    def __init__(self, comm: Any) -> None:
        super().__init__(int(comm.Get_rank()), int(comm.Get_size()))
        self._comm = comm

    def gather(self, value: Any) -> list[Any]:
        """As Bootstrap.gather."""
        return list(self._comm.allgather(value))


def agree(ranks: Bootstrap, facts: Mapping[str, Fact], *, phase: str) -> None:
    """Compare what all ranks were called with.

    Raises: RanksDisagree on every rank, naming the first fact that differs and two ranks that differ in it.
    """
    segment_header.compare(dict(enumerate(ranks.gather(dict(facts)))), rank=ranks.rank, call=phase)


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
    "Bootstrap", "CommBootstrap", "GroupBootstrap", "NotUsable", "agree", "all_or_none", "require_one_host",
]  # fmt: skip
