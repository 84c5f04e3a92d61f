"""The schedules that DualPipe is measured against, in the same words.

    one_f_one_b   one forward, one backward; stages in a row (PipeDream-Flush, 2019)
    zb1p          weight gradients put off until the other ranks need no more from this one (ZB-H1, 2023)
    zbv           two stages a rank in a V; no idle time but at both ends where F = I = W (ZB-V, 2024)

All put weight gradients off in the order they came (invariant I3 of `schedule`).
"""

from collections.abc import Callable
from typing import Final

from .schedule import MAKERS, Action, Builder, Place, Schedule, check_sizes


def one_f_one_b(ranks: int, chunks: int) -> Schedule:
    """Rank r holds stage r, and has at most ranks-r micro-batches in it."""
    return _in_a_row("1f1b", ranks, chunks, put_off=False)


def zb1p(ranks: int, chunks: int) -> Schedule:
    """As 1F1B, with the weight gradients of rank r done r backwards late, in what was idle time."""
    return _in_a_row("zb1p", ranks, chunks, put_off=True)


def zbv(ranks: int, chunks: int) -> Schedule:
    """Rank r holds stage r and stage 2*ranks-1-r. Micro-batches go down one leg of the V and up the other."""
    check_sizes("zbv", ranks, chunks)
    places = tuple((Place(0, rank), Place(0, 2 * ranks - 1 - rank)) for rank in range(ranks))
    actions = tuple(
        _Leg(Builder(places, rank, 2 * ranks), rank, ranks, chunks).build() for rank in range(ranks)
    )
    return Schedule("zbv", 2 * ranks, 1, chunks, places, actions)


SCHEDULES: Final[dict[str, Callable[[int, int], Schedule]]] = {
    "1f1b": one_f_one_b,
    "zb1p": zb1p,
    "zbv": zbv,
    **MAKERS,
}
"""Everything that can be compared, by name: ranks and micro-batches of the step to a schedule, or ValueError."""


def _in_a_row(name: str, ranks: int, chunks: int, *, put_off: bool) -> Schedule:
    check_sizes(name, ranks, chunks)
    places = tuple((Place(0, rank),) for rank in range(ranks))

    def build(rank: int) -> tuple[Action, ...]:
        builder = Builder(places, rank, ranks)
        ahead = min(ranks - 1 - rank, chunks)  # forwards until the next rank's first backward can come back
        for step in range(chunks + ahead):
            if step < chunks:
                builder.forward(0)
            if (back := step - ahead) >= 0:
                builder.backward(0, put_off=put_off)
                if put_off and back >= rank:
                    builder.weight()
        for _ in range(min(rank, chunks) if put_off else 0):
            builder.weight()
        return builder.finish()

    return Schedule(name, ranks, 1, chunks, places, tuple(build(rank) for rank in range(ranks)))


class _Leg:
    """One rank of the V.

    The order is that of at least 2*ranks-1 micro-batches; those that the step does not have are left out.
    """

    def __init__(self, builder: Builder, rank: int, ranks: int, chunks: int) -> None:
        self.builder, self.rank, self.ranks, self.chunks = builder, rank, ranks, chunks
        self.full = max(2 * ranks - 1, chunks)
        self.forwards, self.backwards, self.weights = [0, 0], [0, 0], 0

    def build(self) -> tuple[Action, ...]:
        for _ in range(2 * (self.ranks - self.rank) - 1):
            self._forward(0)
        for _ in range(self.rank):
            self._forward(1)
            self._forward(0)
        for _ in range(self.ranks - self.rank):
            self._forward(1)
            self._backward(1, at_once=True)
        while self.forwards[1] < self.full:
            if self.forwards[0] < self.full:
                self._forward(0)
            self._backward(0, at_once=True)
            self._forward(1)
            self._backward(1, at_once=True)
        for _ in range(self.rank):
            self._backward(0)
            self._backward(1)
        for _ in range(self.ranks - self.rank):
            self._backward(0)
            self._weight()
        while self.weights:
            self._weight()
        return self.builder.finish()

    def _forward(self, module: int) -> None:
        if self.forwards[module] < self.chunks:
            self.builder.forward(module)
        self.forwards[module] += 1

    def _backward(self, module: int, *, at_once: bool = False) -> None:
        if self.backwards[module] < self.chunks:
            self.builder.backward(module, put_off=True)
            self.weights += 1
            if at_once:
                self._weight()
        self.backwards[module] += 1

    def _weight(self) -> None:
        if self.weights:
            self.builder.weight()
            self.weights -= 1


__all__ = ["SCHEDULES", "one_f_one_b", "zb1p", "zbv"]
