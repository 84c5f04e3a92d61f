"""How long a schedule takes: simulated with given costs, no processes, no tensors; and printed.

    timeline = simulate(dualpipe(8, 20), StageCosts(forward=1, backward=2, weight=1, overlap=2.4))
    timeline.makespan, timeline.idle, timeline.bubble
    print(as_text(timeline))

Each rank does its tasks in order, and waits for what other ranks make; transfers take no time. Not modelled: transfers
that slow one another or the tasks down (put that into the costs), stages of different cost.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Final

from .schedule import (
    LETTERS,
    Backward,
    BackwardInput,
    BackwardWeight,
    Exchange,
    Forward,
    Overlap,
    Part,
    Schedule,
    Task,
    parts,
    run_ranks,
)

COLUMNS_MAX: Final = 400
"""Wider lines are wrapped by every terminal, and then cannot be read."""


@dataclass(frozen=True)
class StageCosts:
    """Times of one micro-batch in one stage, in any one unit.

    Raises: ValueError for numbers that are negative, not finite or no numbers, and a weight part above the backward.
    """

    forward: float = 1.0
    backward: float = 2.0
    """Gradients for inputs and weights."""
    weight: float = 1.0
    """The part of `backward` that can be put off."""
    overlap: float | None = None
    """A forward together with another micro-batch's backward; the sum if None."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            is_number = isinstance(value, int | float) and 0 <= value < float("inf")
            if not is_number and not (value is None and each.name == "overlap"):
                raise ValueError(f"{each.name} must be a finite number from 0 on, not {value!r}")
        if self.weight > self.backward:
            raise ValueError(
                f"the weight part {self.weight:g} is more than the whole backward {self.backward:g}"
            )

    def of(self, task: Task) -> float:
        """Return the time of a task."""
        match task:
            case Forward():
                return self.forward
            case Backward():
                return self.backward
            case BackwardInput():
                return self.backward - self.weight
            case BackwardWeight():
                return self.weight
            case Overlap():
                return self.forward + self.backward if self.overlap is None else self.overlap


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

    @cached_property
    def makespan(self) -> float:
        """When the last rank is done."""
        return max((own[-1].end for own in self.spans if own), default=0.0)

    @cached_property
    def idle(self) -> tuple[float, ...]:
        """Time in which each rank does no task until the last rank is done."""
        return tuple(self.makespan - sum(span.end - span.start for span in own) for own in self.spans)

    @property
    def bubble(self) -> float:
        """Idle share of all ranks' time, from 0 to 1."""
        whole = self.makespan * len(self.spans)
        return sum(self.idle) / whole if whole else 0.0


_Made = tuple[bool, int, int, int]
"""What a task makes: (whether an activation, flow, stage, chunk)"""


def simulate(schedule: Schedule, costs: StageCosts) -> Timeline:
    """Simulate a schedule whose stages all cost the same.

    Raises: ValueError if ranks wait indefinitely: `verify.find_problems` names the reason.
    """
    programs = [[action for action in own if not isinstance(action, Exchange)] for own in schedule.actions]
    spans: list[list[Span]] = [[] for _ in programs]
    ends: dict[_Made, float] = {}

    def run(rank: int, task: Task) -> None:
        own = spans[rank]
        start = max([own[-1].end if own else 0.0, *(ends[each] for each in _needs(schedule, task))])
        own.append(Span(start, start + costs.of(task), task))
        ends.update(dict.fromkeys(_makes(task), own[-1].end))

    stuck = run_ranks(programs, needs=lambda task: _needs(schedule, task), makes=_makes, run=run)
    if stuck:
        raise ValueError(f"{schedule.name}: ranks {sorted(stuck)} wait for what no rank makes")
    return Timeline(schedule, tuple(tuple(own) for own in spans))


def _needs(schedule: Schedule, task: Task) -> Iterator[_Made]:
    for part in parts(task):
        if isinstance(part, Forward) and part.stage:
            yield True, part.flow, part.stage - 1, part.chunk
        if isinstance(part, Backward | BackwardInput) and part.stage < schedule.stages - 1:
            yield False, part.flow, part.stage + 1, part.chunk


def _makes(task: Task) -> Iterator[_Made]:
    for part in parts(task):
        if not isinstance(part, BackwardWeight):
            yield isinstance(part, Forward), part.flow, part.stage, part.chunk


def as_text(timeline: Timeline) -> str:
    """A title, and a line for each rank. Small letters are tasks of the second module, dots are idle time.

    Raises: ValueError if the lines would be too wide.
    """
    schedule = timeline.schedule
    tasks = [span for spans in timeline.spans for span in spans if span.end > span.start]
    scale = max(((len(_label(span)) + 1) / (span.end - span.start) for span in tasks), default=1.0)
    if timeline.makespan * scale > COLUMNS_MAX:
        raise ValueError(
            f"as text this needs {timeline.makespan * scale:.0f} columns, more than {COLUMNS_MAX}: show less"
        )
    sizes = f"{schedule.ranks} ranks, {schedule.stages} stages, {schedule.micro_batches} micro-batches"
    lines = [f"{schedule.name}: {sizes}; makespan {timeline.makespan:.4g}, idle {timeline.bubble:.1%}"]
    for rank, spans in enumerate(timeline.spans):
        line = ["·"] * round(timeline.makespan * scale)
        for span in spans:
            first, last = round(span.start * scale), round(span.end * scale)
            if last > first:
                line[first:last] = _label(span).ljust(last - first - 1)[: last - first - 1] + "|"
        lines.append(f"rank {rank:<3}|{''.join(line)}")
    return "\n".join(lines)


def _label(span: Span) -> str:
    def letter(part: Part) -> str:
        found = LETTERS[type(part)]
        return found.lower() if part.module % 2 else found

    return "".join(f"{letter(part)}{part.chunk}" for part in parts(span.task))


__all__ = ["Span", "StageCosts", "Timeline", "as_text", "simulate"]
