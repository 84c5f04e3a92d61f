"""What each stage of a real model costs on this device: the numbers that the planner wants.

    costs = measure_costs(stages, [tokens], criterion=loss, labels=[labels])     # one micro-batch
    best = best_schedule(costs, ranks=4, chunks=32, memory_max=60e9)

Times are in seconds, sizes in bytes. Each task is timed alone, several times, and the least counts: what is measured is
the work, not what else the machine does. Transfers between devices are not measured.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Final

import torch
from torch import Tensor, nn

from .costs import StageCosts
from .play import Criterion, as_list, overlap_hook
from .weight_store import WeightGradStore

TRIES: Final = 7
COPIES: Final = 4
"""Parameters, gradients, and the two moments of Adam."""

Tensors = list[Tensor | None]


def measure_costs(  # noqa: PLR0913 - what one micro-batch of a model consists of
    stages: Sequence[nn.Module],
    inputs: Sequence[Tensor],
    *,
    criterion: Criterion,
    labels: Sequence[Tensor] = (),
    tries: int = TRIES,
    copies: float = COPIES,
) -> StageCosts:
    """Of all stages of a model, by one micro-batch that goes through them; `criterion` belongs to the last.

    `weight` is what the layers put off (`WeightGradStore`), 0 if none does. `overlap` is measured with the stages' hook
    if they are of one type that has it, each beside the backward of the stage before it. `activation` counts what the
    graph keeps of a forward, without parameters. `copies` times the parameters are held, all in all.
    Leaves the stages without gradients. Raises: ValueError for no stages or no tries.
    """
    if not stages or tries < 1:
        raise ValueError(f"measure_costs needs at least one stage and one try, not {len(stages)} and {tries}")
    chain = list(_chain(stages, inputs, criterion, labels))
    for stage in chain:
        stage.kept_bytes = _kept(stage)
    for _ in range(
        tries
    ):  # outside: what disturbs the machine for a while then disturbs one try of all stages
        for index, stage in enumerate(chain):
            _clock_all(stage, chain[index - 1])
    for each in stages:
        each.zero_grad()
    times = [each.least for each in chain]
    return StageCosts(
        forward=[each["forward"] for each in times],
        backward=[max(each["backward"], each["weight"]) for each in times],
        weight=[each["weight"] for each in times],
        overlap=[each["overlap"] for each in times] if all("overlap" in each for each in times) else None,
        activation=[float(each.kept_bytes) for each in chain],
        parameters=[copies * _bytes(each.parameters()) for each in stages],
    )


@dataclass
class _Stage:
    """One stage and what goes into it."""

    module: nn.Module
    inputs: Tensors
    criterion: Criterion | None = None
    labels: Sequence[Tensor] = ()
    least: dict[str, float] = field(default_factory=dict)
    kept_bytes: int = 0

    def fresh_inputs(self) -> Tensors:
        """Leaves of a new graph."""
        return [
            None if each is None else each.detach().requires_grad_(each.requires_grad) for each in self.inputs
        ]

    def forward(self) -> Tensors:
        """Outputs, or the loss."""
        outputs = as_list(self.module(*self.fresh_inputs()), self.module)
        return outputs if self.criterion is None else [self.criterion(*outputs, *self.labels)]

    def clock(self, name: str, run: Callable[[], Any]) -> Any:
        """Runs something and keeps the least time that it took."""
        _synchronize(self.module)
        start = time.perf_counter()
        result = run()
        _synchronize(self.module)
        self.least[name] = min(self.least.get(name, float("inf")), time.perf_counter() - start)
        return result


def _chain(
    stages: Sequence[nn.Module], inputs: Sequence[Tensor], criterion: Criterion, labels: Sequence[Tensor]
) -> Iterator[_Stage]:
    given: Tensors = list(inputs)
    for module in stages[:-1]:
        stage = _Stage(module, given)
        yield stage
        given = [
            None if each is None else each.detach().requires_grad_(each.requires_grad)
            for each in stage.forward()
        ]
    yield _Stage(stages[-1], given, criterion, labels)


def _clock_all(stage: _Stage, other: _Stage) -> None:
    """Each task of a stage once."""
    outputs = stage.clock("forward", stage.forward)
    stage.clock("backward", partial(torch.autograd.backward, *_roots(outputs)))
    outputs = stage.forward()
    WeightGradStore.clear()
    WeightGradStore.enabled = True
    try:
        torch.autograd.backward(*_roots(outputs))
        WeightGradStore.flush()
    finally:
        WeightGradStore.enabled = False
    stage.clock("weight", WeightGradStore.pop)
    hook = overlap_hook([stage.module, other.module])
    if hook is not None:
        stage.clock("overlap", partial(_pair, hook, stage, other, other.forward()))


def _pair(hook: Callable[..., Any], stage: _Stage, other: _Stage, outputs: Tensors) -> None:
    roots, gradients = _roots(outputs)
    is_loss = other.criterion is not None
    hook(
        stage.module,
        stage.fresh_inputs(),
        stage.criterion,
        list(stage.labels),
        other.module,
        roots[0] if is_loss else None,
        [] if is_loss else roots,
        [] if is_loss else gradients,
    )


def _roots(outputs: Tensors) -> tuple[list[Tensor], list[Tensor]]:
    """What a backward starts from."""
    roots = [each for each in outputs if each is not None and each.requires_grad]
    return roots, [torch.ones_like(each) for each in roots]


def _kept(stage: _Stage) -> int:
    """Bytes of all storages that the graph of one forward holds, its parameters left out."""
    held = {each.untyped_storage().data_ptr() for each in stage.module.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in held:
            sizes[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = stage.forward()
    del outputs
    return sum(sizes.values())


def _bytes(tensors: Iterator[Tensor]) -> int:
    return sum(each.numel() * each.element_size() for each in tensors)


def _synchronize(module: nn.Module) -> None:
    first = next(module.parameters(), None)
    if first is not None and first.device.type == "cuda":
        torch.cuda.synchronize(first.device)


__all__ = ["measure_costs"]
