"""What the objects of the workloads may answer: sequential models, and one rule for files that are opened and closed.

| object | operations | model |
|---|---|---|
| a block of a file, direct | write, read, sync | `Register`, `Durable` |
| a log that is appended to, direct | append, read, length | `Log` |
| names in a directory | create, rename, unlink, stat, list, sync | `Names`, `Durable` |
| a file that is opened, used and closed | write, read | `check_close_to_open` |
"""

from collections.abc import Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from .checker import Model, Outcome, Verdict
from .histories import Operation

POWER_LOSS: Final = "power loss"
SYNC: Final = "sync"
ZERO: Final = 0  # what a block holds that was never written

EXISTS, ABSENT = "EEXIST", "ENOENT"
UNKNOWN: Final = "created by a call of unknown outcome"  # in place of an inode


class Plain:
    """A model whose states are all different."""

    def may_wait(self, operation: Operation) -> bool:
        return False

    def key(self, state: Hashable) -> Hashable:
        return state

    def joined(self, state: Hashable, other: Hashable) -> Hashable:
        assert state == other
        return state


class Register(Plain):
    """A block that is written and read as a whole; every value is written once."""

    initial = ZERO

    def is_read(self, operation: Operation) -> bool:
        return operation.kind == "read"

    def step(self, state: Hashable, operation: Operation) -> Iterator[Hashable]:
        if operation.kind == "write":
            yield operation.argument
        elif operation.returned_ns is None or operation.result == state:
            yield state


class Log(Plain):
    """A file of records that several programs append to.

    An append is two steps between its beginning and its return: it takes the end of the file as it is, and its record
    is there. Nothing reserves bytes, so of two appends that overlap one may write over the other; one that has returned
    is never written over. `split` makes two operations of an append.
    """

    initial: Hashable = ((), frozenset())  # records; which append has taken which end

    def is_read(self, operation: Operation) -> bool:
        return operation.kind in ("read", "length")

    def step(self, state: Hashable, operation: Operation) -> Iterator[Hashable]:
        records, taken = state  # type: ignore[misc]
        match operation.kind:
            case "append begins":
                yield records, taken | {(operation.argument, len(records))}
            case "append ends":
                for value, end in taken:
                    if value == operation.argument:
                        padded = (*records, *[ZERO] * (end - len(records)))
                        yield (*padded[:end], value, *padded[end + 1 :]), taken - {(value, end)}
            case "read":
                if operation.returned_ns is None or tuple(operation.result) == records:
                    yield state
            case "length":
                if operation.returned_ns is None or operation.result == len(records):
                    yield state


def split_appends(history: Sequence[Operation]) -> list[Operation]:
    """Each append as its two steps, with the same beginning and return."""
    parts: list[Operation] = []
    for operation in history:
        if operation.kind == "append":
            parts += [replace(operation, kind=f"append {part}") for part in ("begins", "ends")]
        else:
            parts.append(operation)
    return parts


class Names(Plain):
    """Names of a directory, each with the number of its inode.

    A file whose creation has an unknown outcome has an unknown inode, until a read shows it.
    """

    initial: Hashable = ()  # sorted pairs of name and inode

    def is_read(self, operation: Operation) -> bool:
        return operation.kind in ("stat", "list") or operation.result in (EXISTS, ABSENT)

    def step(self, state: Hashable, operation: Operation) -> Iterator[Hashable]:
        names: dict[str, int | str] = dict(state)  # type: ignore[call-overload]
        match operation.kind, operation.argument:
            case "create", name:
                yield from _create(names, name, operation)
            case "unlink", name:
                yield from _move(names, name, None, operation)
            case "rename", [name, new_name]:
                yield from _move(names, name, new_name, operation)
            case "stat", name:
                yield from _look_up(names, name, operation)
            case "list", _:
                if operation.returned_ns is None or sorted(operation.result) == sorted(names):
                    yield state


def _create(names: dict[str, int | str], name: str, operation: Operation) -> Iterator[Hashable]:
    unknown = operation.returned_ns is None
    if name in names:
        if unknown or operation.result == EXISTS:
            yield _state(names)
    elif unknown:
        yield _state(names | {name: UNKNOWN})
    elif operation.result != EXISTS:
        yield _state(names | {name: operation.result})


def _move(
    names: dict[str, int | str], name: str, new_name: str | None, operation: Operation
) -> Iterator[Hashable]:
    unknown = operation.returned_ns is None
    if name not in names:
        if unknown or operation.result == ABSENT:
            yield _state(names)
    elif unknown or operation.result != ABSENT:
        inode = names.pop(name)
        yield _state(names if new_name is None else names | {new_name: inode})


def _look_up(names: dict[str, int | str], name: str, operation: Operation) -> Iterator[Hashable]:
    known = names.get(name, ABSENT)
    if operation.returned_ns is None or known == operation.result:
        yield _state(names)
    elif name in names and known == UNKNOWN and operation.result not in (ABSENT, *names.values()):
        yield _state(names | {name: operation.result})


def _state(names: dict[str, int | str]) -> Hashable:
    return tuple(sorted(names.items()))


@dataclass(frozen=True)
class Durable:
    """An object on machines that lose power: what was synced stays. `losses`: how many losses the history has.

    A sync keeps what had been acknowledged when it began. A loss of power brings back any state that the object had
    since then, and nothing else: what came later goes, never what came earlier alone. So the state is how many losses
    are left, the state of the object, and its past: the states before that a loss may bring back, each with the moment
    at which a call had returned that led on from it, or one from what came after it. A sync that begins then or later
    drops it. Once no loss is left there is no past.
    """

    base: Model
    losses: int

    @property
    def initial(self) -> Hashable:
        return self.losses, self.base.initial, frozenset()

    def is_read(self, operation: Operation) -> bool:
        return operation.kind not in (SYNC, POWER_LOSS) and self.base.is_read(operation)

    def may_wait(self, operation: Operation) -> bool:
        """A sync only takes away what a loss may bring back, the same at any moment between two losses."""
        return operation.kind == SYNC

    def key(self, state: Hashable) -> Hashable:
        left, now, _ = state  # type: ignore[misc]
        return left, now

    def joined(self, state: Hashable, other: Hashable) -> Hashable:
        """A loss chooses one state of the past, independent of the others: each stays for as long as in one of both."""
        left, now, past = state  # type: ignore[misc]
        _, _, other_past = other  # type: ignore[misc]
        if other_past <= past:
            return state
        until = dict(past)
        for each, moment in other_past:
            until[each] = max(moment, until.get(each, moment))
        return left, now, frozenset(until.items())

    def step(self, state: Hashable, operation: Operation) -> Iterator[Hashable]:
        left, now, past = state  # type: ignore[misc]
        if operation.kind == SYNC:
            if operation.returned_ns is not None:
                past = frozenset(each for each in past if each[1] > operation.invoked_ns)
            yield left, now, past
        elif operation.kind == POWER_LOSS:
            for each in {now, *dict(past)}:
                yield left - 1, each, frozenset()
        else:
            at = float("inf") if operation.returned_ns is None else operation.returned_ns
            for following in self.base.step(now, operation):
                if following == now or not left:
                    yield left, following, past
                else:
                    until = {each: min(moment, at) for each, moment in past} | {now: at}
                    until.pop(following, None)
                    yield left, following, frozenset(until.items())


def without_unseen_writes(history: Sequence[Operation]) -> list[Operation]:
    """The history without writes of an unknown outcome whose value was never read: it is valid just if this one is.

    For registers and logs: such a write may have had no effect, and what is explained with its effect is explained
    without.
    """
    seen: set[object] = set()
    for operation in history:
        if operation.returned_ns is not None and operation.kind == "read":
            seen.update(operation.result if isinstance(operation.result, list) else [operation.result])
    return [
        each
        for each in history
        if not (
            each.returned_ns is None and (each.kind not in ("write", "append") or each.argument not in seen)
        )
    ]


def check_close_to_open(history: Sequence[Operation]) -> Verdict:
    """Whether every read, an open with its close, saw a write that is not older than allowed.

    It may see any write that overlaps it, and the last one before it: one that had been closed when the file was
    opened, unless another was begun after that and closed before the file was opened, too. So a read never misses what
    was closed before its open; in between it may be older than another read (a multi-writer regular register).
    """
    writes = {each.argument: each for each in history if each.kind == "write"}
    for read in history:
        if read.kind != "read" or read.returned_ns is None:
            continue
        source = writes.get(read.result)
        if source is None and read.result not in (ZERO, ABSENT):
            return Verdict(Outcome.INVALID, f"{read} saw a value that was never written")
        if source is not None and read.precedes(source):
            return Verdict(Outcome.INVALID, f"{read} saw {source}, which began later")
        for other in writes.values():
            if other.precedes(read) and (source is None or source.precedes(other)):
                return Verdict(Outcome.INVALID, f"{read} saw {source}, but {other} came between them")
    return Verdict(Outcome.VALID)
