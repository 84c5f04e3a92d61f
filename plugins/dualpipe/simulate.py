"""How long a schedule takes and what memory it needs: event simulation with given costs, no processes, no tensors.

    costs = StageCosts(forward=1, backward=2, weight=1, overlap=2.4)
    timeline = simulate(dualpipe(8, 20), costs)
    timeline.makespan, timeline.idle, timeline.bubble, timeline.peak_chunks

`machine` says what is modelled of transfers and what is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .costs import StageCosts
from .machine import Transport, run
from .schedule import (
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Forward,
    Overlap,
    Schedule,
    Task,
    parts,
)


@dataclass(frozen=True, slots=True)
class Span:
    """One task and when it ran."""

    start: float
    end: float
    task: Task


@dataclass(frozen=True)
class Timeline:
    """What `simulate` found."""

    schedule: Schedule
    spans: tuple[tuple[Span, ...], ...]
    """spans[rank], in order of time"""
    peak_chunks: tuple[int, ...]
    """For each rank the most micro-batches, all modules together, with a forward and without their backward."""
    peak_activation: tuple[float, ...]
    """For each rank the most memory of activations, in the unit of the costs."""
    parameters: tuple[float, ...]
    """For each rank the memory of its modules, in the unit of the costs."""

    @cached_property
    def makespan(self) -> float:
        """When the last rank is done."""
        return max((own[-1].end for own in self.spans if own), default=0.0)

    @cached_property
    def idle(self) -> tuple[float, ...]:
        """How long each rank does no task until the last rank is done."""
        return tuple(self.makespan - sum(span.end - span.start for span in own) for own in self.spans)

    @property
    def bubble(self) -> float:
        """Idle share of all ranks' time, from 0 to 1."""
        whole = self.makespan * len(self.spans)
        return sum(self.idle) / whole if whole else 0.0


def simulate(
    schedule: Schedule, costs: StageCosts, *, transport: Transport = Transport.BACKGROUND
) -> Timeline:
    """Plays a schedule.

    Raises: Deadlock if ranks can never go on; ValueError if costs are given for another number of stages.
    """
    stages = schedule.stages
    duration = _Durations(costs, stages)
    starts = run(schedule, transport, duration=duration, crossing=costs.column("communication", stages))
    spans = tuple(tuple(Span(start, start + duration(task), task) for start, task in own) for own in starts)
    activation, parameters = costs.column("activation", stages), costs.column("parameters", stages)
    peaks = [_peaks(own, activation, costs.kept_for_weight) for own in schedule.actions]
    return Timeline(
        schedule,
        spans,
        peak_chunks=tuple(chunks for chunks, _ in peaks),
        peak_activation=tuple(memory for _, memory in peaks),
        parameters=tuple(sum(parameters[place.stage] for place in held) for held in schedule.places),
    )


class _Durations:
    """How long each task takes."""

    def __init__(self, costs: StageCosts, stages: int) -> None:
        self.forward = costs.column("forward", stages)
        self.backward = costs.column("backward", stages)
        self.weight = costs.column("weight", stages)
        self.overlap = None if costs.overlap is None else costs.column("overlap", stages)

    def __call__(self, task: Task) -> float:
        match task:
            case Forward():
                return self.forward[task.stage]
            case Backward():
                return self.backward[task.stage]
            case BackwardInput():
                return self.backward[task.stage] - self.weight[task.stage]
            case BackwardWeight():
                return self.weight[task.stage]
            case Overlap(forward, backward) if self.overlap is None:
                return self.forward[forward.stage] + self.backward[backward.stage]
            case Overlap(forward):
                return self.overlap[forward.stage]


def _peaks(actions: Sequence[Action], held: Sequence[float], kept: float) -> tuple[int, float]:
    """Most live micro-batches and most memory of one rank. A pair holds both of its micro-batches at first."""
    live, most, memory, most_memory = 0, 0, 0.0, 0.0
    for action in actions:
        for part in parts(action):
            size = held[part.stage]
            match part:
                case Forward():
                    live, memory = live + 1, memory + size
                    most, most_memory = max(most, live), max(most_memory, memory)
                case Backward():
                    live, memory = live - 1, memory - size
                case BackwardInput():
                    live, memory = live - 1, memory - size * (1 - kept)
                case BackwardWeight():
                    memory -= size * kept
    return most, most_memory


__all__ = ["Span", "Timeline", "simulate"]
