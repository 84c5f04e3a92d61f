"""Whether a history is linearizable: whether each call could have taken effect at one moment between its beginning and
its return, so that a sequential object would have answered as it did.

The search is that of Wing and Gong as Lowe made it ("Testing for linearizability", just-in-time linearization): events
are taken in the order of time, and a set of configurations says what may have happened so far. A configuration is the
state of the object and the calls in flight that have taken effect. When a call returns, every configuration in which it
has not taken effect is continued by calls in flight until it has; where that is impossible the configuration is
dropped, and when none is left the history is refused. It is sound and complete: a history is accepted if and only if
it is linearizable. Histories of different objects are checked one by one, which loses nothing (Herlihy and Wing,
theorem 1).

A call whose outcome is unknown stays in flight indefinitely: it may take effect at any moment after its beginning, or
never. So of two configurations that differ in such calls alone, whatever continues one also continues the one in which
fewer have taken effect. If they differ in reads, which change nothing, it continues the one in which more have. The
other one is dropped, which loses nothing either, and keeps sets of calls in flight from multiplying. And two whose
states differ only in what a later call may choose from become one that may choose from both (`Model.joined`).

A search that has tried `EXPANSIONS_MAX` steps ends without a verdict, which counts as a failure: a number of steps, so
that the verdict is the same on a slow machine.

Source: as Porcupine, but breadth first, since models here may have several next states.
"""

import heapq
import itertools
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import partial
from typing import Final, Protocol

from .histories import Operation

EXPANSIONS_MAX: Final = 1_000_000  # configurations continued for one history: about a minute


class Model(Protocol):
    """A sequential object."""

    initial: Hashable

    def is_read(self, operation: Operation) -> bool:
        """Whether an operation with this result changes nothing, in no state."""

    def may_wait(self, operation: Operation) -> bool:
        """Whether it may as well be the last of what takes effect before its return: that makes nothing impossible."""

    def key(self, state: Hashable) -> Hashable:
        """What two states must have in common to be joined."""

    def joined(self, state: Hashable, other: Hashable) -> Hashable:
        """The state that is followed by what follows one of both, which have the same key, and by nothing else."""

    def step(self, state: Hashable, operation: Operation) -> Iterable[Hashable]:
        """The states in which it may be after the operation; none if it would have answered otherwise.

        The result of an operation with an unknown outcome is not looked at.
        """


class Outcome(Enum):
    """What can be said of a history."""

    VALID = "valid"
    INVALID = "invalid"
    UNDECIDED = "undecided"  # the search did not come to its end


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome, and for a history that is not valid what was seen."""

    outcome: Outcome
    reason: str = ""

    @property
    def is_valid(self) -> bool:
        return self.outcome is Outcome.VALID


class _TooLong(Exception):
    pass


def check(model: Model, history: Sequence[Operation], *, expansions_max: int = EXPANSIONS_MAX) -> Verdict:
    """Whether `history`, of one object, is linearizable."""
    search = _Search(model, history, expansions_max)
    try:
        for moment, is_return, index in events(history):
            if not is_return:
                search.begin(index)
            elif not search.end(index):
                return Verdict(Outcome.INVALID, search.explain(index, moment))
    except _TooLong:
        reason = f"the search was given up after {expansions_max} steps on {len(history)} operations"
        return Verdict(
            Outcome.UNDECIDED, f"{reason}, whatever the speed of this machine: nothing is known of it"
        )
    return Verdict(Outcome.VALID)


def events(history: Sequence[Operation]) -> list[tuple[int, bool, int]]:
    """Beginnings and returns in the order of time; of one moment, beginnings first: the calls overlap."""
    begun = [(operation.invoked_ns, False, index) for index, operation in enumerate(history)]
    returned = [
        (operation.returned_ns, True, index)
        for index, operation in enumerate(history)
        if operation.returned_ns is not None
    ]
    return sorted(begun + returned)


class _Search:
    """Sets of calls are numbers whose bits are their indices."""

    def __init__(self, model: Model, history: Sequence[Operation], expansions_max: int) -> None:
        self._model, self._history = model, history
        self._pending: dict[int, int] = {}  # index of a call in flight to its bit
        unknown = sum(1 << index for index, each in enumerate(history) if each.returned_ns is None)
        reads = sum(1 << index for index, each in enumerate(history) if model.is_read(each))
        self._least = partial(_Least, model, unknown & ~reads, reads)
        self._configurations = self._least()
        self._configurations.add(0, model.initial)
        self._last = self._configurations
        self._twins = _twins(history)
        self._expansions_left = expansions_max

    def begin(self, index: int) -> None:
        operation = self._history[index]
        if operation.returned_ns is None and self._model.is_read(operation):
            return  # it says nothing
        if not self._model.may_wait(operation):
            self._pending[index] = 1 << index

    def end(self, index: int) -> bool:
        """The call has returned, so it has taken effect. False if it cannot have."""
        bit = self._pending[index] = 1 << index
        reached, found = self._least(), self._least()
        waiting: list[tuple[int, int, int, Hashable]] = []  # those first that others are dropped for
        order = itertools.count()

        def reach(done: int, state: Hashable) -> None:
            if (kept := reached.add(done, state)) is not None:
                heapq.heappush(waiting, (reached.burden(done).bit_count(), next(order), done, kept))

        for configuration in self._configurations:
            reach(*configuration)
        while waiting:
            _, _, done, state = heapq.heappop(waiting)
            if reached.at(done, state) != state:
                continue  # it was dropped, or joined: what took its place waits too
            if done & bit:
                found.add(done & ~bit, state)
                continue
            for configuration in self._continue(done, state):
                reach(*configuration)
        del self._pending[index]
        self._last, self._configurations = self._configurations, found
        return bool(found)

    def _continue(self, done: int, state: Hashable) -> list[tuple[int, Hashable]]:
        """The configurations after one more call; only one if that is a read.

        A read that fits takes effect at once: what could follow without it can follow after it. A call of an unknown
        outcome that would change nothing is left in flight.
        """
        if self._expansions_left == 0:
            raise _TooLong
        self._expansions_left -= 1
        following = []
        for index, bit in self._pending.items():
            twin = self._pending.get(self._twins[index], 0)
            if done & bit or twin & ~done:
                continue
            operation = self._history[index]
            states = list(self._model.step(state, operation))
            if states == [state] and self._model.is_read(operation):
                return [(done | bit, state)]
            is_known = operation.returned_ns is not None
            following += [(done | bit, each) for each in states if is_known or each != state]
        return following

    def explain(self, index: int, moment: int) -> str:
        operation = self._history[index]
        under_way = [self._history[each] for each in self._pending]
        states = sorted({repr(state) for _, state in self._last})
        return (
            f"{operation} returned at {moment}, which no order of calls explains; possible states before: "
            f"{', '.join(states[:8])}; in flight: {under_way}"
        )


class _Least:
    """Configurations, without those that another one makes superfluous: one that has a part of their burden, and joined
    with them is still itself.

    The burden of a configuration is the unknown calls that have taken effect, and the reads that have not.
    """

    def __init__(self, model: Model, unknown: int, reads: int) -> None:
        self._model, self._reads, self._either = model, reads, unknown | reads
        # By other calls' effects and the key of the state: by burden, the state.
        self._states: dict[tuple[int, Hashable], dict[int, Hashable]] = {}

    def burden(self, done: int) -> int:
        return (done ^ self._reads) & self._either

    def at(self, done: int, state: Hashable) -> Hashable:
        """The state that is kept in its place, or None."""
        kept = self._states.get((done & ~self._either, self._model.key(state)), {})
        return kept.get(self.burden(done))

    def add(self, done: int, state: Hashable) -> Hashable:
        """The state that is kept, alone or joined with another one; None if it is superfluous."""
        burden, joined = self.burden(done), self._model.joined
        kept = self._states.setdefault((done & ~self._either, self._model.key(state)), {})
        if any(each & burden == each and joined(known, state) == known for each, known in kept.items()):
            return None
        if burden in kept:
            state = joined(kept[burden], state)
        superfluous = [
            each for each, known in kept.items() if each & burden == burden and joined(state, known) == state
        ]
        for each in superfluous:
            del kept[each]
        kept[burden] = state
        return state

    def __iter__(self) -> Iterator[tuple[int, Hashable]]:
        for (done, _), kept in self._states.items():
            for burden, state in kept.items():
                yield done | (burden ^ self._reads), state

    def __bool__(self) -> bool:
        return bool(self._states)


def _twins(history: Sequence[Operation]) -> list[int]:
    """For each operation an earlier one that does the same and ends with it, or -1: that one takes effect first.

    Nothing is lost: where the later one would, the earlier one can in its place, and the later one after it.
    """
    order = sorted(range(len(history)), key=lambda index: history[index].invoked_ns)
    twins = [-1] * len(history)
    last: dict[str, int] = {}
    for index in order:
        each = history[index]
        key = repr((each.kind, each.argument, each.result, each.returned_ns))
        twins[index] = last.get(key, -1)
        last[key] = index
    return twins


__all__ = ["Model", "Outcome", "Verdict", "check", "events"]
