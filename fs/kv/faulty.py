"""A fault-injecting fake: wrap an engine with it to see whether the operations above survive."""

import enum
import random
from collections.abc import Callable, Iterator, Sequence

from ..errors import Conflict, MaybeCommitted
from .engine import Engine, Pair, Transaction, Unstored, View


class Fault(enum.Enum):
    """What happens to one commit."""

    NONE = "none"
    CONFLICT = "conflict"  # refused, nothing done
    MAYBE_DONE = "maybe_done"  # done, but the caller hears MaybeCommitted
    MAYBE_LOST = "maybe_lost"  # not done, and the caller hears MaybeCommitted


Plan = Callable[[int], Fault]
"""Given the number of the commit, from 0, the fault it meets."""


class FaultyEngine(Engine):
    """`inner`, whose commits with writes meet the faults of `plan`. Read-only transactions are left alone."""

    def __init__(self, inner: Engine, plan: Plan) -> None:
        super().__init__(version=inner.version)
        self.inner = inner
        self.plan = plan
        self.commits = 0  # counted with and without faults
        self.commits_later = inner.commits_later

    def begin(self) -> Transaction:
        return Transaction(self)

    def look(self) -> View:
        return self.inner.look()

    def new_view(self) -> View:
        raise AssertionError("the inner engine makes views")

    def snapshot(self, ranges: Sequence[tuple[bytes, bytes]]) -> tuple[Iterator[Pair], ...]:
        return self.inner.snapshot(ranges)

    def forget_commits(self) -> None:
        self.inner.forget_commits()

    def apply(self, transaction: Transaction) -> int:  # noqa: ARG002
        raise AssertionError("the inner engine applies")

    def commit(self, transaction: Transaction) -> int:
        fault = self.plan(self.commits)
        self.commits += 1
        if fault is Fault.CONFLICT:
            raise Conflict("injected conflict")
        if fault is Fault.MAYBE_LOST:
            raise MaybeCommitted("injected: the commit was lost")
        self.version = self.inner.commit(transaction)
        if fault is Fault.MAYBE_DONE:
            raise MaybeCommitted("injected: the commit was done")
        return self.version

    @property
    def failure(self) -> BaseException | None:
        return self._broken or self.inner.failure

    @property
    def unstored(self) -> Unstored | None:
        return self.inner.unstored

    async def sync(self) -> None:
        await self.inner.sync()

    def close(self) -> None:
        self.inner.close()


def every(fault: Fault, *, period: int = 2, first: int = 0) -> Plan:
    """Commits `first`, `first + period`, … fail. By default every operation fails once and then succeeds."""
    assert period > 1, "an operation that always fails never ends"
    return lambda number: fault if number >= first and (number - first) % period == 0 else Fault.NONE


def at(number: int, fault: Fault) -> Plan:
    """Only commit `number` fails."""
    return lambda count: fault if count == number else Fault.NONE


def randomly(seed: int, *, probability: float = 0.3) -> Plan:
    """Each commit fails with `probability`, with any of the faults; the same seed gives the same faults."""
    source = random.Random(seed)  # noqa: S311, a test's dice
    faults = (Fault.CONFLICT, Fault.MAYBE_DONE, Fault.MAYBE_LOST)
    return lambda _number: source.choice(faults) if source.random() < probability else Fault.NONE


__all__ = ["Fault", "FaultyEngine", "Plan", "at", "every", "randomly"]
