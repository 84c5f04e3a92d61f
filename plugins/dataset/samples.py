"""`Samples`: what a `MapDataset` gives for a batch, and `collate` takes."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from .reader import Batch
from .records import Integers


class Samples(list[Any]):
    """The samples of one batch, in a list. `tensor` is all of them in one, if they are plain and of one length."""

    tensor: Tensor | None = None
    is_uniform: bool | None = None
    """Whether all samples of the data set have one length; None where that is not known."""
    indices: Integers
    batch: Batch | None = None
    """The memory that they were read into, in this process only."""

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name != "batch"}

    def changed(self, change: Callable[[Any], Any]) -> "Samples":
        """Return a copy with each sample, and `tensor`, replaced."""
        other = Samples(change(each) for each in self)
        other.tensor, other.indices = change(self.tensor), self.indices
        other.is_uniform = self.is_uniform
        return other


__all__ = ["Samples"]
