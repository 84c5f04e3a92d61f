"""What micro-batches cost in the stages of a pipeline: the numbers that the simulator and the planner take."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

Cost = float | Sequence[float]
"""One number for all stages, or one a stage."""


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """What one micro-batch costs in one stage. Times are in any one unit, sizes in any other.

    Raises: ValueError for numbers that are negative, not finite or no numbers, and weight parts above the backward.
    """

    forward: Cost = 1.0
    backward: Cost = 2.0
    """Gradients for inputs and weights."""
    weight: Cost = 1.0
    """The part of `backward` that can be put off."""
    overlap: Cost | None = None
    """A forward together with another micro-batch's backward, by the stage of the forward; the sum if None."""
    communication: Cost = 0.0
    """One transfer across a border, by the stage below it."""
    activation: Cost = 1.0
    """Memory that a forward leaves behind for its backward."""
    kept_for_weight: float = 1.0
    """Share of it that is held until the weight gradients are done."""
    parameters: Cost = 1.0
    """Memory of the parameters, with their gradients and the optimizer's state."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.name == "overlap":
                continue
            for number in value if isinstance(value, Sequence) else (value,):
                if not isinstance(number, int | float) or not 0 <= number < float("inf"):
                    raise ValueError(f"{each.name} must be a finite number from 0 on, not {number!r}")
        if self.kept_for_weight > 1:
            raise ValueError(f"kept_for_weight is a share, from 0 to 1, not {self.kept_for_weight!r}")
        stages = max(
            len(value) if isinstance(value, Sequence) else 1 for value in (self.backward, self.weight)
        )
        columns = zip(self.column("backward", stages), self.column("weight", stages), strict=True)
        for stage, (whole, weight) in enumerate(columns):
            if weight > whole:
                raise ValueError(
                    f"stage {stage}: the weight part {weight:g} is more than the whole backward {whole:g}"
                )

    def column(self, name: str, stages: int) -> list[float]:
        """One of the costs for each of `stages` stages.

        Raises: ValueError if it was given by stage for another number of stages.
        """
        value = getattr(self, name)
        if not isinstance(value, Sequence):
            return [float(value)] * stages
        if len(value) != stages:
            raise ValueError(f"{name} has {len(value)} numbers, one a stage, but there are {stages} stages")
        return [float(each) for each in value]

    @property
    def stages(self) -> int | None:
        """How many stages the lists are for; None if there are only numbers for all stages.

        Raises: ValueError if lists have different lengths.
        """
        lengths = {
            each.name: len(value)
            for each in fields(self)
            if isinstance(value := getattr(self, each.name), Sequence)
        }
        if len(set(lengths.values())) > 1:
            raise ValueError(f"costs by stage must all be for one number of stages, not {lengths}")
        return next(iter(lengths.values()), None)

    def recut(self, given: int, stages: int) -> "StageCosts":
        """Costs of the same model cut into `stages` equal stages, where these are for `given`.

        Stages that are joined cost their sum, and what crosses between them is saved. Stages can only be cut further
        where they all cost the same.
        Raises: ValueError if the cut is not possible.
        """
        if stages < 1 or (given % stages and (stages % given or self.stages is not None)):
            raise ValueError(f"costs of {given} stages do not tell those of {stages}")

        def cut(name: str) -> Any:
            value = getattr(self, name)
            if value is None or not isinstance(value, Sequence):
                return value and value * given / stages
            group = given // stages
            return [sum(value[first : first + group]) for first in range(0, given, group)]

        crossing = self.communication
        if isinstance(crossing, Sequence):
            crossing = crossing[given // stages - 1 :: given // stages]
        names = ("forward", "backward", "weight", "overlap", "activation", "parameters")
        return replace(self, communication=crossing, **{name: cut(name) for name in names})


__all__ = ["Cost", "StageCosts"]
