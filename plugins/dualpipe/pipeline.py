"""`DualPipe` and `DualPipeV`: pipelines that execute their schedule on real processes.

They take the arguments of the originals and give their results; everything else is a keyword with a default that
changes nothing.
"""

import contextlib
import hashlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import ClassVar, Final, Literal

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import HashStore, PrefixStore, Store  # as in rendezvous

from . import batch, boundary_spec, grad_mirror, schedule
from .executor import Boundaries, Criterion, Executor, Job, Result
from .failure import PipelineError
from .rendezvous import Rendezvous
from .session import Session

TIMEOUT_S: Final = 300.0
"""A rank waits so long for another one. Longer than any sane task of a stage, the first with its compiling too. The
end of a process is noticed at once, not by this."""

PLANS_KEPT: Final = 8
"""Schedules that are kept from step to step: training and inference with a few numbers of chunks."""

ARGUMENTS: Final = "its arguments"


class _Pipeline(nn.Module):
    """What both pipelines share."""

    name: ClassVar[str]
    even: ClassVar[bool] = False
    """The number of ranks must be even."""
    in_group: ClassVar[bool | None] = None
    """Whether messages travel in the process group; None means on a GPU only."""

    def __init__(  # noqa: PLR0913 - the original's arguments, and keywords
        self,
        modules: Sequence[nn.Module],
        batch_dim: int = 0,
        process_group: dist.ProcessGroup | None = None,
        rank_mapping: Sequence[int] | None = None,
        *,
        timeout_s: float = TIMEOUT_S,
        gradient_scale: float | Literal["mean"] = 1.0,
    ) -> None:
        super().__init__()
        if len(modules) != 2:
            raise ValueError(f"{type(self).__name__} needs a pair of modules, not {len(modules)}")
        if gradient_scale != "mean" and not (
            isinstance(gradient_scale, int | float) and 0 < gradient_scale < float("inf")
        ):
            raise ValueError(f"gradient_scale must be a positive number or 'mean', not {gradient_scale!r}")
        if not timeout_s > 0:
            raise ValueError(f"timeout_s must be positive, not {timeout_s!r}")
        self.module = nn.ModuleList(modules)
        self.batch_dim = batch_dim
        self.gradient_scale = gradient_scale
        self.timeout_s = float(timeout_s)
        self._device = _device_of(modules)
        self._group = _group(process_group, self._device)
        self.num_ranks = 1 if self._group is None else self._group.size()
        if self.even and self.num_ranks % 2:
            raise ValueError(
                f"DualPipe needs an even number of ranks, not {self.num_ranks}; DualPipeV takes any"
            )
        self.rank, self._global_ranks = _pipeline_rank(self._group, rank_mapping)
        self.is_first_rank, self.is_last_rank = self.rank == 0, self.rank == self.num_ranks - 1
        self._store = _named_store(self._group, self.name, self.rank)
        self._generation = 0
        self._session: Session | None = None
        self.peak_chunks = 0
        """Most micro-batches that waited for their backward at one time, in the last step."""

    def step(
        self,
        *inputs: Tensor | None,
        num_chunks: int = 0,
        criterion: Criterion | None = None,
        labels: Sequence[Tensor | None] = (),
        return_outputs: bool = False,
    ) -> Result:
        """Run one step: forward and backward of `num_chunks` micro-batches, or forward only under torch.no_grad().

        Inputs are needed on ranks with the first stage, labels and criterion on ranks with the last one. Returns the
        losses of the micro-batches and, if asked for, the outputs, on ranks with the last stage; None elsewhere.
        Gradients add up in `.grad`.
        Raises: ValueError or TypeError for bad arguments of this rank; PipelineError on all other ranks then, and on
        all ranks for a failure later in the step.
        """
        with self._guarded(ARGUMENTS) as (session, at):
            plan, job = self._prepare(
                inputs, num_chunks=num_chunks, criterion=criterion, labels=labels, keep_outputs=return_outputs
            )
            neighbours = sorted({each.peer for each in schedule.transfers(plan.actions[self.rank])})
            with session.supervise(neighbours):
                at("comparing the steps of neighbours")
                session.compare(neighbours, self._facts(num_chunks))
                at("connecting")
                transport = session.transport() if self.num_ranks > 1 else None
                executor = Executor(
                    plan,
                    self.rank,
                    list(self.module),
                    job,
                    Boundaries(boundary_spec.declared(), session.rendezvous, step=session.steps),
                    transport,
                    self._device,
                )
                at(lambda: executor.where)
                result = executor.run()
                self.peak_chunks = executor.peak_chunks
                session.end_step(executor.boundaries.keys)
        return result

    def _prepare(
        self,
        inputs: Sequence[Tensor | None],
        *,
        num_chunks: int,
        criterion: Criterion | None,
        labels: Sequence[Tensor | None],
        keep_outputs: bool,
    ) -> tuple[schedule.Schedule, Job]:
        gradients = torch.is_grad_enabled()
        plan, _ = _plan(self.name, self.num_ranks, num_chunks, gradients=gradients)
        places = plan.places[self.rank]
        first = [module for module, place in enumerate(places) if place.stage == 0]
        last = [module for module, place in enumerate(places) if place.stage == plan.stages - 1]
        if first and not inputs:
            raise ValueError(f"rank {self.rank} holds the first stage: step needs its share of the batch")
        if last and gradients and criterion is None:
            raise ValueError(
                f"rank {self.rank} holds the last stage: step needs a criterion, or torch.no_grad() around it"
            )
        if not isinstance(labels, Sequence):
            raise TypeError(f"labels must be a list or tuple of tensors, not {type(labels).__name__}")

        def cut(tensors: Sequence[Tensor | None], what: str) -> list[batch.Chunk]:
            return batch.cut(tensors, chunks=plan.chunks, dim=self.batch_dim, what=what)

        return plan, Job(
            inputs={module: cut(inputs, "input") for module in first},
            labels={module: cut(labels, "label") if labels else [] for module in last},
            criterion=criterion,
            gradients=gradients,
            scale=1 / num_chunks if self.gradient_scale == "mean" else float(self.gradient_scale),
            keep_outputs=keep_outputs,
            batch_dim=self.batch_dim,
        )

    def _facts(self, num_chunks: int) -> dict[str, str]:
        plan, digest = _plan(self.name, self.num_ranks, num_chunks, gradients=torch.is_grad_enabled())
        return {
            "num_chunks": str(num_chunks),
            "the schedule": plan.name,
            "the digest of the schedule": digest,
            "device": self._device.type,
            "gradient_scale": str(self.gradient_scale),
            **{name: str(value) for name, value in boundary_spec.declared().summary().items()},
        }

    @contextlib.contextmanager
    def _guarded(self, where: str) -> Iterator[tuple[Session, Callable[[str | Callable[[], str]], None]]]:
        """Report every failure inside to all ranks, and end the session."""
        place: list[str | Callable[[], str]] = [where]

        def at(new: str | Callable[[], str]) -> None:
            place[0] = new

        session = self._current()
        try:
            session.rendezvous.check()
            yield session, at
        except BaseException as error:
            here = place[0]
            early = here == ARGUMENTS and isinstance(error, ValueError | TypeError)
            cause = session.failed(error, where=here if isinstance(here, str) else here(), moving=not early)
            self._session = None
            self._generation += 1
            if early or not isinstance(error, Exception):
                raise
            raise PipelineError(cause) from error

    def _current(self) -> Session:
        if self._session is None:
            store = PrefixStore(str(self._generation), self._store)
            in_group = self._device.type == "cuda" if self.in_group is None else self.in_group
            self._session = Session(
                Rendezvous(store, rank=self.rank, timeout_s=self.timeout_s),
                ranks=self.num_ranks,
                device=self._device,
                group=self._group if in_group else None,
                global_ranks=self._global_ranks,
            )
        return self._session


class DualPipe(_Pipeline):
    """The bidirectional pipeline on an even number of ranks.

    `modules` of pipeline rank r are stage r and stage ranks-1-r of the model. Rank 0 puts in the first half of the
    batch and the last rank the second half. The labels of each half are given to, and its losses and outputs come out
    at, the other end.

    Each stage exists twice and each copy gets the gradients of one half: `reduce_mirror_gradients()` adds the other's.
    """

    name = "dualpipe"
    even = True

    @property
    def mirror_rank(self) -> int:
        """The pipeline rank that holds the other copies of this rank's stages."""
        return self.num_ranks - 1 - self.rank

    def reduce_mirror_gradients(self) -> None:
        """Add the gradients of the other copies of this rank's stages to its own. All ranks must call.

        Once for each optimizer step, after its last `step`: a second call would add what is already added.
        """
        with self._guarded("sum of mirror gradients") as (session, _), session.supervise([self.mirror_rank]):
            session.transport()
            grad_mirror.sum_gradients(list(self.module), session)


class DualPipeV(_Pipeline):
    """The V-shaped pipeline on any number of ranks.

    `modules` of pipeline rank r are stage r and stage 2*ranks-1-r of the model. Rank 0 puts in the batch, has the
    labels, and gets losses and outputs. Each stage exists once.
    """

    name = "dualpipev"


@lru_cache(maxsize=PLANS_KEPT)
def _plan(name: str, ranks: int, chunks: int, *, gradients: bool) -> tuple[schedule.Schedule, str]:
    """A schedule, and a digest by which it differs from one that another version of this package makes."""
    plan = schedule.MAKERS[name](ranks, chunks)
    plan = plan if gradients else plan.forward_only()
    return plan, hashlib.sha256(repr(plan.actions).encode()).hexdigest()[:16]


def _device_of(modules: Sequence[nn.Module]) -> torch.device:
    device = next((each.device for module in modules for each in module.parameters()), torch.device("cpu"))
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"pipelines run on cpu and cuda devices, not on {device}")
    if device.type == "cuda" and device.index != torch.cuda.current_device():
        raise ValueError(
            f"the modules are on {device} but the current device is cuda:{torch.cuda.current_device()}: "
            "call torch.cuda.set_device first"
        )
    return device


def _group(group: dist.ProcessGroup | None, device: torch.device) -> dist.ProcessGroup | None:
    """The pipeline's processes, or None for a pipeline of this process alone."""
    if group is None and dist.is_available() and dist.is_initialized():
        group = dist.group.WORLD
    if group is not None and device.type == "cuda" and "nccl" not in str(dist.get_backend_config(group)):
        raise ValueError("modules on a GPU need a process group with the nccl backend")
    return group


def _pipeline_rank(group: dist.ProcessGroup | None, mapping: Sequence[int] | None) -> tuple[int, list[int]]:
    """Return this process's pipeline rank, and the global rank of each pipeline rank."""
    size = 1 if group is None else group.size()
    mapping = list(range(size)) if mapping is None else list(mapping)
    if sorted(mapping) != list(range(size)):
        raise ValueError(
            f"rank_mapping must give each of the {size} processes another pipeline rank from 0 to {size - 1}, "
            f"not {mapping}"
        )
    if group is None:
        return 0, [0]
    globals_ = [0] * size
    for index, rank in enumerate(mapping):
        globals_[rank] = dist.get_global_rank(group, index)
    return mapping[group.rank()], globals_


def _named_store(group: dist.ProcessGroup | None, name: str, rank: int) -> Store:
    """A part of the job's store for this pipeline alone. All ranks must make their pipelines in one order."""
    if group is None:
        return HashStore()
    base = PrefixStore(
        f"luciola/{name}/{group.group_name}",
        dist.distributed_c10d._get_default_store(),  # noqa: SLF001
    )
    return PrefixStore(str(base.add(f"pipelines/{rank}", 1)), base)


__all__ = ["DualPipe", "DualPipeV"]
