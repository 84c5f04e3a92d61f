"""The schedules that DualPipe is measured against, in the same words.

    one_f_one_b   one forward, one backward; stages in a row (PipeDream-Flush, 2019)
    interleaved   the same with several stages a rank, in turns round the ranks (Megatron-LM, 2021)
    zb1p          weight gradients put off until the other ranks need no more from this one (ZB-H1, 2023); with several
                  stages a rank too
    zbv           two stages a rank in a V; no idle time but at both ends where F = I = W (ZB-V, 2024)

All put weight gradients off in the order they came (invariant I3 of `schedule`).
"""

from collections.abc import Callable
from functools import partial
from typing import Final

from .schedule import CHUNKS_MAX, MAKERS, RANKS_MAX, Action, Builder, Place, Schedule

STAGES_MAX: Final = 64
"""Of one rank; more is surely a mistake in an argument."""


def one_f_one_b(ranks: int, chunks: int) -> Schedule:
    """Rank r holds stage r, and has at most ranks-r micro-batches in it."""
    return _turns("1f1b", ranks, chunks, modules=1, put_off=False)


def zb1p(ranks: int, chunks: int, *, modules: int = 1) -> Schedule:
    """As 1F1B, with the weight gradients of rank r done r backwards late, in what was idle time.

    Raises: ValueError if, with several modules, chunks do not go into rounds of equal size (see `interleaved`).
    """
    return _turns(
        "zb1p" if modules == 1 else f"zb1p-{modules}x", ranks, chunks, modules=modules, put_off=True
    )


def interleaved(ranks: int, chunks: int, *, modules: int = 2) -> Schedule:
    """1F1B with `modules` stages a rank: rank r holds stages r, r + ranks, ...

    Micro-batches go in rounds of about as many as there are ranks, each round through all modules.
    Raises: ValueError if chunks is not a multiple of the rounds, chunks // ranks.
    """
    return _turns(f"1f1b-{modules}x", ranks, chunks, modules=modules, put_off=False)


def zbv(ranks: int, chunks: int) -> Schedule:
    """Rank r holds stage r and stage 2*ranks-1-r. Micro-batches go down one leg of the V and up the other."""
    _check("zbv", ranks, chunks)
    places = tuple((Place(0, rank), Place(0, 2 * ranks - 1 - rank)) for rank in range(ranks))
    actions = tuple(
        _Leg(Builder(places, rank, 2 * ranks), rank, ranks, chunks).build() for rank in range(ranks)
    )
    return Schedule("zbv", 2 * ranks, 1, chunks, places, actions)


SCHEDULES: Final[dict[str, Callable[[int, int], Schedule]]] = {
    "1f1b": one_f_one_b,
    "1f1b-2x": partial(interleaved, modules=2),
    "zb1p": zb1p,
    "zb1p-2x": partial(zb1p, modules=2),
    "zbv": zbv,
    **MAKERS,
}
"""Everything that can be compared, by name: ranks and micro-batches of the step to a schedule, or ValueError."""


def _turns(name: str, ranks: int, chunks: int, *, modules: int, put_off: bool) -> Schedule:
    _check(name, ranks, chunks)
    if not 1 <= modules <= STAGES_MAX:
        raise ValueError(f"{name}: modules must be from 1 to {STAGES_MAX}, not {modules}")
    rounds = max(1, chunks // ranks)
    if modules > 1 and chunks % rounds:
        raise ValueError(f"{name} on {ranks} ranks needs a multiple of {rounds} chunks, not {chunks}")
    stages = modules * ranks
    places = tuple(tuple(Place(0, stage) for stage in range(rank, stages, ranks)) for rank in range(ranks))

    def build(rank: int) -> tuple[Action, ...]:
        builder, turn = Builder(places, rank, stages), chunks // rounds
        distance = ranks - 1 - rank  # forwards until the next rank's first backward can come back
        ahead = (modules - 1) * turn + distance * (1 if modules == 1 or put_off else 2)
        total = modules * chunks
        for step in range(total + min(ahead, total)):
            if step < total:
                builder.forward(step // turn % modules)
            if (back := step - min(ahead, total)) >= 0:
                builder.backward(modules - 1 - back // turn % modules, put_off=put_off)
                if put_off and back >= rank:
                    builder.weight()
        for _ in range(min(rank, total) if put_off else 0):
            builder.weight()
        return builder.finish()

    return Schedule(name, stages, 1, chunks, places, tuple(build(rank) for rank in range(ranks)))


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


def _check(name: str, ranks: int, chunks: int) -> None:
    for what, value, limit in (("ranks", ranks, RANKS_MAX), ("chunks", chunks, CHUNKS_MAX)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: {what} must be an int, not {value!r}")
        if not 1 <= value <= limit:
            raise ValueError(f"{name}: {what} must be from 1 to {limit}, not {value}")


__all__ = ["SCHEDULES", "interleaved", "one_f_one_b", "zb1p", "zbv"]
