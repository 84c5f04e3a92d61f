"""Which schedule is best for a model, a number of devices and their memory.

    for each in compare(costs, ranks=8, chunks=32):
        print(each.name, each.timeline and each.timeline.makespan, each.reason)
    best = best_schedule(costs, ranks=8, chunks=32, memory_max=70.0)

All candidates train the same model on the same devices with the same micro-batches: schedules with two stages a device
cut the model twice as fine. DualPipe holds two copies of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .costs import StageCosts
from .machine import Transport
from .schedules import SCHEDULES
from .simulate import Timeline, simulate

CELLS_MAX: Final = 1 << 17
"""Ranks times micro-batches: more would take minutes, and the best schedule is the same for a tenth of the chunks."""


@dataclass(frozen=True)
class Candidate:
    """One schedule: its timeline, or why there is none."""

    name: str
    timeline: Timeline | None
    reason: str | None = None
    """Why it cannot be used."""

    @property
    def memory(self) -> float:
        """Of the fullest rank: parameters and the peak of activations, in the unit of the costs."""
        assert self.timeline is not None, "a schedule that cannot be has no memory"
        return max(
            held + peak
            for held, peak in zip(self.timeline.parameters, self.timeline.peak_activation, strict=True)
        )


def compare(  # noqa: PLR0913 - the question has this many parts
    costs: StageCosts,
    *,
    ranks: int,
    chunks: int,
    memory_max: float | None = None,
    names: Iterable[str] = tuple(SCHEDULES),
    transport: Transport = Transport.BACKGROUND,
) -> list[Candidate]:
    """Every schedule, simulated; those that do not fit have a reason.

    `chunks` counts all micro-batches of a step. Single numbers in `costs` are of one of `ranks` equal parts of the
    model; lists say by their length how fine the model is cut.
    Raises: ValueError for unknown names, too many micro-batches, and costs of different numbers of stages.
    """
    if ranks * chunks > CELLS_MAX:
        raise ValueError(
            f"{ranks} ranks with {chunks} chunks are too many to simulate: at most {CELLS_MAX // max(ranks, 1)} chunks"
        )
    given = costs.stages or ranks
    found = [_candidate(name, costs, given, (ranks, chunks), transport) for name in names]
    if memory_max is None:
        return found
    return [_limited(each, memory_max) for each in found]


def best_schedule(
    costs: StageCosts, *, ranks: int, chunks: int, memory_max: float | None = None
) -> Candidate:
    """The candidate of `compare` with the shortest step; of equals, the one that needs the least memory.

    Raises: ValueError if none can be used, with all reasons.
    """
    return best_of(compare(costs, ranks=ranks, chunks=chunks, memory_max=memory_max))


def best_of(candidates: Iterable[Candidate]) -> Candidate:
    """As `best_schedule`, of candidates that are there already."""
    candidates = list(candidates)
    usable = [
        (each.timeline.makespan, each.memory, each)
        for each in candidates
        if each.timeline and not each.reason
    ]
    if not usable:
        reasons = "; ".join(f"{each.name}: {each.reason}" for each in candidates)
        raise ValueError(f"no schedule can be used: {reasons}")
    shortest = min(makespan for makespan, _, _ in usable)
    close = [each for each in usable if each[0] <= shortest * (1 + 1e-9)]
    return min(close, key=lambda each: each[1])[2]


def _candidate(
    name: str, costs: StageCosts, given: int, size: tuple[int, int], transport: Transport
) -> Candidate:
    if name not in SCHEDULES:
        raise ValueError(f"no schedule is named {name!r}; there are {', '.join(SCHEDULES)}")
    try:
        schedule = SCHEDULES[name](*size)
        timeline = simulate(schedule, costs.recut(given, schedule.stages), transport=transport)
    except ValueError as error:
        return Candidate(name, None, str(error))
    return Candidate(name, timeline)


def _limited(candidate: Candidate, memory_max: float) -> Candidate:
    if candidate.timeline is None or candidate.memory <= memory_max:
        return candidate
    return Candidate(
        candidate.name,
        candidate.timeline,
        f"needs memory of {candidate.memory:g}, more than {memory_max:g}",
    )


__all__ = ["Candidate", "best_of", "best_schedule", "compare"]
