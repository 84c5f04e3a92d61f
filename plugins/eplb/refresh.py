"""Experts that follow the live loads while a model runs: planned and loaded beside it, changed at an agreed step.

    refresher = ExpertRefresher(recorder, checkpoint, slots, placement, names=names, gpu=rank, num_gpus=ranks)
    for batch in batches:
        ...  # forward passes; recorder.record in each layer
        recorder.step()
        if refresher.step():  # every rank, after each step
            router.update(refresher.placement)

Every `every_steps` steps the ranks add up their loads, and on each a thread plans and reads the experts that its GPU
lacks into memory of their own. `lead_steps` later `step` waits for the thread if it must, and the ranks compare what
they have; if all have the same plan, they put it into the slots, else none does.

R1  All ranks change at one step, or none does: each compares the digests, or failures, of all.
R2  All ranks report a failure of one rank, wherever it happens, at the agreed step. No rank waits for one that failed.
R3  The slots are touched within `step` alone.
R4  Staged experts live from the read to the agreed step, also where that fails.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, Protocol

import torch
from torch import Tensor

from luciola.plugins.weights import Checkpoint

from .loader import ExpertNames, ExpertReport, Slots, StagedExperts, stage_experts
from .rebalance import align, rebalance_experts, rebalance_incrementally
from .recorder import LoadRecorder

EVERY_STEPS: Final = 3000  # decode steps of some 30 ms: a plan every minute and a half
FAILED: Final = "failed "  # before a reason; a digest has no blank
LEAD_STEPS: Final = 1000  # half a minute to plan and to read in

Planner = Callable[[Tensor, Tensor], Tensor]
"""(loads (layers, experts), current physical_to_logical_map) -> the next one; equal for equal arguments."""


class RefreshFailed(RuntimeError):
    """A change of placement was given up, on all ranks; the old one is in the slots. The next round tries again."""


class Ranks(Protocol):
    """What the ranks do together."""

    def add(self, values: Tensor) -> Tensor:
        """Return the sum over all ranks, the same bits on each."""

    def gather(self, mine: str) -> list[str]:
        """Return what each rank has given, in their order."""


class TorchRanks:
    """The ranks of a process group; without torch.distributed, this process alone."""

    def __init__(self, device: torch.device, group: "torch.distributed.ProcessGroup | None" = None) -> None:
        self._device, self._group = device, group
        self._alone = not (torch.distributed.is_available() and torch.distributed.is_initialized())

    def add(self, values: Tensor) -> Tensor:
        """As Ranks."""
        if self._alone:
            return values
        values = values.to(self._device)
        torch.distributed.all_reduce(values, group=self._group)
        return values.cpu()

    def gather(self, mine: str) -> list[str]:
        """As Ranks."""
        if self._alone:
            return [mine]
        everyone: list[Any] = [None] * torch.distributed.get_world_size(self._group)
        torch.distributed.all_gather_object(everyone, mine, group=self._group)
        return everyone


@dataclass
class _Round:
    """One change, from the sum of loads to the agreed step. The thread writes, and `step` reads after joining it."""

    thread: threading.Thread | None = None
    placement: Tensor | None = None
    digest: str = ""
    staged: StagedExperts | None = None
    error: BaseException | None = None


class ExpertRefresher:
    """Keeps the experts in the slots of one GPU where the live loads want them. One for each rank.

    `slots`, `names`, `gpu`, `num_gpus`: as `load_experts`. `placement`: the physical_to_logical_map in the slots.
    `planner`: by default `optimal` with GPUs renumbered so that most experts stay, or with `budget` the best placement
    within so many moves, all layers together. `staging_bytes_max` limits the memory of one round on this GPU.
    Raises: ValueError for numbers that do not fit one another.
    """

    def __init__(  # noqa: PLR0913 (a loader, a plan and a rhythm)
        self,
        recorder: LoadRecorder,
        checkpoint: Checkpoint,
        slots: Sequence[Slots],
        placement: Tensor,
        *,
        names: ExpertNames,
        gpu: int,
        num_gpus: int,
        num_groups: int = 1,
        num_nodes: int = 1,
        budget: int | None = None,
        planner: Planner | None = None,
        every_steps: int = EVERY_STEPS,
        lead_steps: int = LEAD_STEPS,
        staging_bytes_max: int | None = None,
        convert: bool = False,
        ranks: Ranks | None = None,
    ) -> None:
        if not 1 <= lead_steps < every_steps:
            raise ValueError(
                f"lead_steps must be at least 1 and below every_steps ({every_steps}), not {lead_steps}"
            )
        if planner is not None and budget is not None:
            raise ValueError("give a planner or a budget, not both")
        self.placement = placement
        self.every_steps, self.lead_steps = every_steps, lead_steps
        self.steps = 0
        self.report: ExpertReport | None = None  # of the last change
        self._recorder = recorder
        self._ranks = ranks or TorchRanks(recorder.device)
        self._planner = planner or _default_planner(
            num_groups=num_groups, num_nodes=num_nodes, num_gpus=num_gpus, budget=budget
        )
        self._known = True  # the slots hold `placement`
        self._round: _Round | None = None
        self._stage = partial(
            stage_experts,
            checkpoint,
            slots,
            names=names,
            gpu=gpu,
            num_gpus=num_gpus,
            convert=convert,
            bytes_max=staging_bytes_max,
        )

    def step(self) -> bool:
        """Count a step; all ranks call it after each of theirs. Says whether another placement is in the slots now.

        Raises: RefreshFailed on all ranks, naming those that failed and why; on a rank whose thread was ended by a
        SystemExit or KeyboardInterrupt, that, after the other ranks know.
        """
        self.steps += 1
        if self.steps % self.every_steps == 0:
            self._begin()
        elif self._round is not None and self.steps % self.every_steps == self.lead_steps:
            return self._finish(self._round)
        return False

    def close(self) -> None:
        """Wait for the thread, and give up what it has read."""
        if self._round is not None and self._round.thread is not None:
            self._round.thread.join()
        self._round = None

    def _begin(self) -> None:
        self._round = turn = _Round()
        layers, experts = self._recorder.num_layers, self._recorder.num_experts
        mine = torch.zeros(layers * experts + 1, dtype=torch.float64)  # loads, and how many ranks have none
        try:
            mine[:-1] = self._recorder.loads().average.flatten()
        except Exception as error:  # noqa: BLE001 (R2)
            turn.error = error
            mine[-1] = 1
        together = self._ranks.add(mine)
        if together[-1] == 0:
            loads = together[:-1].view(layers, experts)
            turn.thread = threading.Thread(target=self._prepare, args=(turn, loads), name="eplb", daemon=True)
            turn.thread.start()

    def _prepare(self, turn: _Round, loads: Tensor) -> None:
        """The thread."""
        try:
            turn.placement = self._planner(loads, self.placement)
            turn.digest = hashlib.sha256(turn.placement.contiguous().numpy().tobytes()).hexdigest()
            turn.staged = self._stage(turn.placement, current=self.placement if self._known else None)
        except BaseException as error:  # noqa: BLE001 (R2: `step` raises it)
            turn.error = error

    def _finish(self, turn: _Round) -> bool:
        if turn.thread is not None:
            turn.thread.join()
        self._round = None
        staged, turn.staged = turn.staged, None
        error = turn.error
        everyone = self._ranks.gather(
            turn.digest if error is None else f"{FAILED}{type(error).__name__}: {error}"
        )
        problems = _problems(everyone)
        if problems:
            del staged  # an error that is kept would keep this frame, and with it the memory
            if error is not None and not isinstance(error, Exception):
                raise error
            raise RefreshFailed("the placement stays as it is: " + "; ".join(problems)) from error
        assert staged is not None and turn.placement is not None, "a round without error has both"  # noqa: PT018
        self._known = False  # an error in between leaves slots of both placements
        self.report = staged.apply()
        self.placement, self._known = turn.placement, True
        return True


def _problems(everyone: list[str]) -> list[str]:
    """Which ranks failed or differ, of what each has given."""
    failed = [(rank, each) for rank, each in enumerate(everyone) if each.startswith(FAILED)]
    if failed:
        return [f"rank {rank}: {each.removeprefix(FAILED)}" for rank, each in failed]
    others = [rank for rank, each in enumerate(everyone) if each != everyone[0]]
    return [f"rank {rank} has another plan than rank 0" for rank in others]


def _default_planner(*, num_groups: int, num_nodes: int, num_gpus: int, budget: int | None) -> Planner:
    bound = num_nodes if num_groups % num_nodes == 0 else 1

    def plan(loads: Tensor, current: Tensor) -> Tensor:
        if budget is not None:
            return rebalance_incrementally(loads, current, num_gpus, budget=budget, num_nodes=bound)[0][0]
        slots = current.shape[1]
        target = rebalance_experts(loads, slots, num_groups, num_nodes, num_gpus, policy="optimal")[0]
        return align(current, target, num_gpus, num_nodes=bound)

    return plan


__all__ = ["EVERY_STEPS", "LEAD_STEPS", "ExpertRefresher", "Planner", "Ranks", "RefreshFailed", "TorchRanks"]
