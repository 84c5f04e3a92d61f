"""The two copies of a stage that DualPipe keeps: their gradients belong together.

Stage s is module 0 of rank s and module 1 of the mirror rank, ranks-1-s. Each copy has seen one flow. The sum of both
copies' gradients is the gradient of the stage.
"""

import json
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch import Tensor, nn

from .session import Session

WINDOW_BYTES: Final = 64 * 1024 * 1024
"""Gradients on their way at one time: as many bytes of buffers are needed."""

Named = list[tuple[str, nn.Parameter]]


def parameters_of(modules: Sequence[nn.Module]) -> Named:
    """All parameters of the modules in their order, each once, though both may share it."""
    seen: set[int] = set()
    result: Named = []
    for module in modules:
        for name, parameter in module.named_parameters():
            if id(parameter) not in seen:
                seen.add(id(parameter))
                result.append((name, parameter))
    return result


def sum_gradients(modules: Sequence[nn.Module], session: Session) -> None:
    """Add the mirror rank's gradients to this rank's, for both modules. Both copies then have equal bits.

    Raises: ValueError if the copies have different parameters, or sparse gradients.
    """
    peer = session.ranks - 1 - session.rank
    # Both ranks of a pair list stage by stage in one order: the lower rank's module 0 is the upper rank's module 1.
    ordered = list(modules) if session.rank < peer else list(reversed(modules))
    named = parameters_of(ordered)
    session.calls += 1
    facts = [_facts(name, parameter) for name, parameter in named]
    theirs = json.loads(session.agree(peer, f"parameters/{session.calls}", json.dumps(facts).encode()))
    _compare(facts, theirs, session.rank, peer)
    wanted = [
        parameter
        for (_, parameter), mine, other in zip(named, facts, theirs, strict=True)
        if mine[3] or other[3]
    ]
    for window in _windows(wanted):
        _sum_window(window, session, peer)


def _facts(name: str, parameter: nn.Parameter) -> list[Any]:
    grad = parameter.grad
    if grad is not None and grad.is_sparse:
        raise ValueError(
            f"parameter {name} has a sparse gradient, which cannot be summed with its mirror copy"
        )
    return [name, list(parameter.shape), str(parameter.dtype), grad is not None]


def _compare(mine: list[list[Any]], theirs: list[list[Any]], rank: int, peer: int) -> None:
    for index in range(max(len(mine), len(theirs))):
        own, other = (each[index][:3] if index < len(each) else None for each in (mine, theirs))
        if own != other:
            raise ValueError(
                f"the copies of a stage differ: parameter {index} is {own} on rank {rank} and {other} on rank {peer}; "
                "module 0 of a rank and module 1 of its mirror rank must be built alike"
            )


def _windows(parameters: list[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    window: list[nn.Parameter] = []
    size = 0
    for parameter in parameters:
        window.append(parameter)
        size += parameter.numel() * parameter.element_size()
        if size >= WINDOW_BYTES:
            yield window
            window, size = [], 0
    if window:
        yield window


def _sum_window(window: list[nn.Parameter], session: Session, peer: int) -> None:
    own = [_grad(parameter) for parameter in window]
    room = [torch.empty_like(each) for each in own]
    session.swap(peer, own, room, what="mirror gradients")
    for parameter, mine, other in zip(window, own, room, strict=True):
        if parameter.grad is None:
            parameter.grad = other
        else:
            parameter.grad.copy_(mine + other)


def _grad(parameter: nn.Parameter) -> Tensor:
    if parameter.grad is None:
        return torch.zeros_like(parameter, memory_format=torch.contiguous_format).detach()
    return parameter.grad.detach().contiguous()


__all__ = ["parameters_of", "sum_gradients"]
