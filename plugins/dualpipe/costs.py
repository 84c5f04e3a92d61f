"""What a micro-batch costs in a stage of a pipeline: the numbers that the simulator takes."""

from dataclasses import dataclass, fields, replace


@dataclass(frozen=True, kw_only=True)
class StageCosts:
    """What one micro-batch costs in one stage. Times are in any one unit, sizes in any other.

    Raises: ValueError for numbers that are negative, not finite or no numbers, and a weight part above the backward.
    """

    forward: float = 1.0
    backward: float = 2.0
    """Gradients for inputs and weights."""
    weight: float = 1.0
    """The part of `backward` that can be put off."""
    overlap: float | None = None
    """A forward together with another micro-batch's backward; the sum if None."""
    communication: float = 0.0
    """One transfer across a boundary."""
    activation: float = 1.0
    """Memory that a forward leaves behind, until the weight gradients are done."""
    parameters: float = 1.0
    """Memory of the parameters, with their gradients and the optimizer's state."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if value is None and each.name == "overlap":
                continue
            if not isinstance(value, int | float) or not 0 <= value < float("inf"):
                raise ValueError(f"{each.name} must be a finite number from 0 on, not {value!r}")
        if self.weight > self.backward:
            raise ValueError(
                f"the weight part {self.weight:g} is more than the whole backward {self.backward:g}"
            )

    def cut(self, pieces: float) -> "StageCosts":
        """Costs of each of so many equal pieces of a stage; what crosses a boundary is as large as before."""
        names = ("forward", "backward", "weight", "activation", "parameters")
        overlap = None if self.overlap is None else self.overlap / pieces
        return replace(self, overlap=overlap, **{name: getattr(self, name) / pieces for name in names})


__all__ = ["StageCosts"]
