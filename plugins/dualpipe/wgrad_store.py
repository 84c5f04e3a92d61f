"""Weight gradients that are put off, so that a stage can hand on the gradient of its input first.

A layer whose backward honours the store does this:

    if WeightGradStore.enabled:
        WeightGradStore.put(compute_and_accumulate_the_weight_gradient)
    else:
        compute_and_accumulate_the_weight_gradient()

The pipeline turns `enabled` on for each BackwardInput, flushes after it, and pops at the BackwardWeight. The store is
one for the process; entries leave in the order they came. `linear.Linear` is a layer that honours it.
"""

from collections.abc import Callable
from queue import SimpleQueue
from typing import ClassVar


class WeightGradStore:
    """Functions that compute weight gradients, first in, first out."""

    enabled: ClassVar[bool] = False
    """True while a backward should put its weight gradients off."""
    cache: ClassVar[list[Callable[[], None]]] = []
    """What the running backward has put so far."""
    funcs_queue: ClassVar["SimpleQueue[list[Callable[[], None]]]"] = SimpleQueue()
    """One list for each flush."""

    @classmethod
    def put(cls, func: Callable[[], None]) -> None:
        """Put one function off, until the `pop` that belongs to the next `flush`."""
        cls.cache.append(func)

    @classmethod
    def flush(cls) -> None:
        """Close one entry: all that was put since the last flush, be it nothing."""
        cls.funcs_queue.put(cls.cache)
        cls.cache = []

    @classmethod
    def pop(cls) -> None:
        """Run the oldest entry.

        Raises: RuntimeError if there is none.
        """
        if cls.funcs_queue.empty():
            raise RuntimeError(
                "WeightGradStore.pop without an entry: call flush after each backward that put"
            )
        for func in cls.funcs_queue.get():
            func()

    @classmethod
    def clear(cls) -> None:
        """Forget all entries."""
        cls.cache = []
        cls.funcs_queue = SimpleQueue()


__all__ = ["WeightGradStore"]
