"""The samples of a data set that make up another one: ranges and random parts in constant memory, or numbers."""

import hashlib
import itertools
import math
import operator
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ...errors import InvalidArgument
from .permutation import permute
from .records import Integers, Numbering, require_within


class Choice(Protocol):
    """Some of the samples of a data set, in an order of their own."""

    def __len__(self) -> int: ...

    def places(self, numbers: Integers) -> Integers:
        """Map numbers of these samples to those of the whole."""

    def digest(self) -> str:
        """Name the choice."""

    def counts(self, ends: Integers) -> Integers:
        """Count these samples in each stretch of the whole; `ends` are those of consecutive stretches.

        Raises: InvalidArgument if the samples are not in the order of the whole.
        """


@dataclass(frozen=True)
class RangeChoice:
    """A range."""

    chosen: range

    def __len__(self) -> int:
        return len(self.chosen)

    def places(self, numbers: Integers) -> Integers:
        result: Integers = self.chosen.start + numbers * self.chosen.step
        return result

    def digest(self) -> str:
        return str(self.chosen)

    def counts(self, ends: Integers) -> Integers:
        if self.chosen.step < 0:
            raise _not_in_order()
        before = -(-(ends - self.chosen.start) // self.chosen.step)
        return np.diff(np.clip(before, 0, len(self.chosen)), prepend=0)


@dataclass(frozen=True)
class RandomChoice:
    """A range of the places of a permutation."""

    chosen: range
    size: int
    seed: int

    def __len__(self) -> int:
        return len(self.chosen)

    def places(self, numbers: Integers) -> Integers:
        return permute(self.chosen.start + numbers, self.size, f"split {self.seed}".encode())

    def digest(self) -> str:
        return f"{self.chosen} of {self.size} by {self.seed}"

    def counts(self, ends: Integers) -> Integers:  # noqa: ARG002 (of a Choice)
        raise _not_in_order()


@dataclass(frozen=True, eq=False)
class ListChoice:
    """Numbers."""

    chosen: Integers

    def __len__(self) -> int:
        return len(self.chosen)

    def places(self, numbers: Integers) -> Integers:
        return self.chosen[numbers]

    def digest(self) -> str:
        return hashlib.sha256(self.chosen.astype("<i8").tobytes()).hexdigest()

    def counts(self, ends: Integers) -> Integers:
        if (np.diff(self.chosen) < 0).any():
            raise _not_in_order()
        return np.diff(np.searchsorted(self.chosen, ends, side="left"), prepend=0)


def _not_in_order() -> InvalidArgument:
    return InvalidArgument(
        'shuffle="blocks" needs parts of a data set in the order of its blocks, and these are at random: take parts as '
        "ranges (subset(range(…))) or sorted numbers (subset(sorted(…)), filter)"
    )


def choice_of(chosen: range | slice | Sequence[int] | npt.NDArray[np.integer[Any]], size: int) -> Choice:
    """Make a choice. Raises: IndexError for numbers outside, TypeError for other objects, ValueError for none."""
    if isinstance(chosen, slice):
        chosen = range(*chosen.indices(size))
    if isinstance(chosen, range):
        numbers = np.array([chosen[0], chosen[-1]] if chosen else [], np.int64)
    else:
        numbers = np.asarray(chosen)
        if numbers.size and numbers.dtype.kind not in "iu":
            raise TypeError(f"a subset is chosen by numbers, not by {numbers.dtype}")
        numbers = numbers.astype(np.int64).reshape(-1)
    if not len(numbers):
        raise ValueError("a subset has at least one sample")
    require_within(numbers, size, "samples")
    return RangeChoice(chosen) if isinstance(chosen, range) else ListChoice(numbers)


def choices_of(shares: Sequence[float], size: int, seed: int) -> list[Choice]:
    """Make random choices. Raises: ValueError for shares below 0, above 1 in total, or too small for a sample."""
    given = [float(share) for share in shares]
    total = math.fsum(given)
    if not given or min(given) <= 0 or total > 1 + 1e-9:
        raise ValueError(f"shares are positive and at most 1 together, not {given}")
    bounds = [round(size * min(1.0, math.fsum(given[:count]))) for count in range(len(given) + 1)]
    ranges = [range(one, two) for one, two in itertools.pairwise(bounds)]
    if not all(ranges):
        raise ValueError(f"shares {given} of {size} samples leave a part without one")
    return [RandomChoice(each, size, operator.index(seed)) for each in ranges]


@dataclass(frozen=True)
class Group:
    """Samples that `Order` takes for one data set: all of a range of places, or a choice of the groups in `whole`."""

    start: int
    size: int
    choice: Choice | None
    whole: tuple["Group", ...] = ()

    def over(self, groups: Sequence["Group"]) -> "Group":
        """Apply the choice to these groups."""
        assert self.choice is not None, "there is one"
        return Group(0, len(self.choice), self.choice, tuple(groups))

    def moved(self, start: int) -> "Group":
        """Return the same of parts that begin `start` later."""
        if self.choice is None:
            return Group(self.start + start, self.size, None)
        return Group(0, self.size, self.choice, tuple(group.moved(start) for group in self.whole))

    def places(self, numbers: Integers) -> Integers:
        """Map samples of this group to the numbering of all parts."""
        if self.choice is None:
            return self.start + numbers
        return places_in(self.whole, self.choice.places(numbers))

    def block_sizes(self, ends: Integers) -> Integers:
        """Count the samples of this group in each block; `ends` of blocks are in the numbering of all parts.

        Raises: InvalidArgument for samples that are not in the order of blocks.
        """
        if self.choice is None:
            return np.diff(np.clip(ends - self.start, 0, self.size), prepend=0)
        whole = np.concatenate([group.block_sizes(ends) for group in self.whole])
        return self.choice.counts(np.cumsum(whole[whole > 0]))

    def digest(self) -> str:
        if self.choice is None:
            return f"{self.start}+{self.size}"
        return f"({self.choice.digest()} of {' '.join(group.digest() for group in self.whole)})"


def places_in(groups: Sequence[Group], numbers: Integers) -> Integers:
    """Map samples of consecutive groups to the numbering of all parts. Raises: IndexError."""
    result = np.empty_like(numbers)
    for group, mine, within in Numbering.of("samples", [group.size for group in groups]).shares(numbers):
        result[mine] = groups[group].places(within)
    return result


__all__ = ["Choice", "Group", "choice_of", "choices_of", "places_in"]
