"""The schedules side by side: the same model on the same devices with the same micro-batches.

Schedules with two stages a device cut the model twice as fine. DualPipe holds two copies of it.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Final

from .costs import StageCosts
from .event_sim import Transport
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


def compare(
    costs: StageCosts,
    *,
    ranks: int,
    chunks: int,
    names: Iterable[str] = tuple(SCHEDULES),
    transport: Transport = Transport.BACKGROUND,
) -> list[Candidate]:
    """Every schedule, simulated, the fastest first; those that cannot be have a reason.

    `chunks` counts all micro-batches of a step; `costs` are of one of `ranks` equal parts of the model.
    Raises: ValueError for unknown names and too many micro-batches.
    """
    if ranks * chunks > CELLS_MAX:
        raise ValueError(
            f"{ranks} ranks with {chunks} chunks are too many to simulate: at most {CELLS_MAX // max(ranks, 1)} chunks"
        )
    found = []
    for name in names:
        if name not in SCHEDULES:
            raise ValueError(f"no schedule is named {name!r}; there are {', '.join(SCHEDULES)}")
        try:
            schedule = SCHEDULES[name](ranks, chunks)
            timeline = simulate(schedule, costs.cut(schedule.stages / ranks), transport=transport)
        except ValueError as error:
            found.append(Candidate(name, None, str(error)))
        else:
            found.append(Candidate(name, timeline))
    return sorted(found, key=lambda each: each.timeline.makespan if each.timeline else float("inf"))


__all__ = ["Candidate", "compare"]
