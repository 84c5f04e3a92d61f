"""Families of metrics as plain values: what a source gives, before it is text.

A process that shows no metrics loads no library for them.
"""

import enum
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final, Self, TypeAlias

Labels: TypeAlias = tuple[str, ...]
"""Values of the labels of one sample, in the order of the family's names."""

# From a lookup in memory to a request that waits for a failed node.
BOUNDS_S: Final = (
    *(0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005),
    *(0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0),
)


class Histogram:
    """Durations, by upper bounds. Filled by one thread."""

    __slots__ = ("counts", "sum_s")

    def __init__(self) -> None:
        self.counts = [0] * (len(BOUNDS_S) + 1)
        self.sum_s = 0.0

    @classmethod
    def of(cls, counts: Sequence[int], sum_s: float) -> Self:
        """Return durations that were counted elsewhere, below each bound and above the last one."""
        assert len(counts) == len(BOUNDS_S) + 1, "one for each bound, and those above"
        made = cls()
        made.counts, made.sum_s = list(counts), sum_s
        return made

    def observe(self, duration_s: float) -> None:
        """Count one duration: a fifth of a microsecond."""
        self.counts[bisect_left(BOUNDS_S, duration_s)] += 1
        self.sum_s += duration_s

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.counts)

    def buckets(self) -> list[tuple[str, float]]:
        """Return how many were at most as long as each bound."""
        bounds = (*map(str, BOUNDS_S), "+Inf")
        return list(zip(bounds, map(float, accumulate(self.counts)), strict=True))


class Kind(enum.Enum):
    """What the values of a family are."""

    COUNTER = "counter"  # only grows while the process runs
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True)
class Family:
    """Samples of one name. A counter's ends in `_total`, and every other in its unit, if it has one."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...]
    samples: tuple[tuple[Labels, "float | Histogram"], ...]

    def __post_init__(self) -> None:
        assert self.name.startswith("luciola_"), f"{self.name}: names of ours are found by their beginning"
        assert self.name.endswith("_total") == (self.kind is Kind.COUNTER), f"{self.name}: a counter, or not?"
        assert all(len(labels) == len(self.labels) for labels, _ in self.samples), f"{self.name}: labels"


def counter(name: str, help_text: str, value: float) -> Family:
    """Return a counter without labels."""
    return Family(name, Kind.COUNTER, help_text, (), (((), value),))


def gauge(name: str, help_text: str, value: float) -> Family:
    """Return a gauge without labels."""
    return Family(name, Kind.GAUGE, help_text, (), (((), value),))


def histogram(name: str, help_text: str, value: Histogram) -> Family:
    """Return a histogram without labels."""
    return Family(name, Kind.HISTOGRAM, help_text, (), (((), value),))


def by_label(kind: Kind, name: str, help_text: str, label: str, values: Mapping[str, float]) -> Family:
    """Return a family with one label."""
    return Family(name, kind, help_text, (label,), tuple(((key,), value) for key, value in values.items()))


def states(name: str, help_text: str, label: str, known: Iterable[str], current: str) -> Family:
    """Return a gauge that is 1 for the current one of the known states, and 0 for the others."""
    values = {state: float(state == current) for state in known}
    assert sum(values.values()) == 1, f"{name}: {current!r} is no known state"
    return by_label(Kind.GAUGE, name, help_text, label, values)


__all__ = [
    "BOUNDS_S",
    "Family",
    "Histogram",
    "Kind",
    "Labels",
    "by_label",
    "counter",
    "gauge",
    "histogram",
    "states",
]
