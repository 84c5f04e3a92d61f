"""How long a schedule takes and what memory it needs: event simulation with given costs, no processes, no tensors.

    costs = StageCosts(forward=1, backward=2, weight=1, overlap=2.4)
    timeline = simulate(dualpipe(8, 20), costs)
    timeline.makespan, timeline.idle, timeline.bubble, timeline.peak_chunks

`event_sim` says what is modelled of transfers and what is not.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from .costs import StageCosts
from .event_sim import Transport, run
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
    """Simulate a schedule whose stages all cost the same.

    Raises: Deadlock if ranks can never go on.
    """
    crossing = [costs.communication] * schedule.stages

    def duration(task: Task) -> float:
        return _duration(costs, task)

    starts = run(schedule, transport, duration=duration, crossing=crossing)
    peaks = [_peaks(own) for own in schedule.actions]
    return Timeline(
        schedule,
        spans=tuple(
            tuple(Span(start, start + duration(task), task) for start, task in own) for own in starts
        ),
        peak_chunks=tuple(live for live, _ in peaks),
        peak_activation=tuple(held * costs.activation for _, held in peaks),
        parameters=tuple(costs.parameters * len(held) for held in schedule.places),
    )


def _duration(costs: StageCosts, task: Task) -> float:
    match task:
        case Forward():
            return costs.forward
        case Backward():
            return costs.backward
        case BackwardInput():
            return costs.backward - costs.weight
        case BackwardWeight():
            return costs.weight
        case Overlap():
            return costs.forward + costs.backward if costs.overlap is None else costs.overlap


def _peaks(actions: Sequence[Action]) -> tuple[int, int]:
    """Most live micro-batches of one rank, and most whose activations it holds. A pair holds both of its own."""
    live, most_live, held, most_held = 0, 0, 0, 0
    for action in actions:
        for part in parts(action):
            match part:
                case Forward():
                    live, held = live + 1, held + 1
                case Backward():
                    live, held = live - 1, held - 1
                case BackwardInput():
                    live -= 1
                case BackwardWeight():
                    held -= 1
            most_live, most_held = max(most_live, live), max(most_held, held)
    return most_live, most_held


__all__ = ["Span", "Timeline", "simulate"]
