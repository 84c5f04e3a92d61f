"""The checker on histories whose verdict is known: made by hand, by brute force, and by registers that are broken."""

import itertools
import random
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import pytest

from nemesis.checker import Model, Outcome, check
from nemesis.histories import Operation
from nemesis.models import (
    ABSENT,
    EXISTS,
    POWER_LOSS,
    SYNC,
    Durable,
    Log,
    Names,
    Register,
    check_close_to_open,
    split_appends,
    without_unseen_writes,
)


def call(begins: int, returns: int | None, kind: str, argument: Any = None, result: Any = None) -> Operation:
    return Operation("p", "k", kind, argument, None if returns is None else result, begins, returns)


def durable(base: Model, history: list[Operation]) -> Durable:
    return Durable(base, sum(each.kind == POWER_LOSS for each in history))


def write(begins: int, returns: int | None, value: int) -> Operation:
    return call(begins, returns, "write", value)


def read(begins: int, returns: int, value: Any) -> Operation:
    return call(begins, returns, "read", None, value)


def sync(begins: int, returns: int | None) -> Operation:
    return call(begins, returns, SYNC)


def power_loss(begins: int, returns: int) -> Operation:
    return call(begins, returns, POWER_LOSS)


REGISTER = {
    "nothing": (True, []),
    "initial value": (True, [read(0, 1, 0)]),
    "last write": (True, [write(0, 1, 1), read(2, 3, 1)]),
    "stale read": (False, [write(0, 1, 1), read(2, 3, 0)]),
    "value from nowhere": (False, [write(0, 1, 1), read(2, 3, 2)]),
    "value from the future": (False, [read(0, 1, 1), write(2, 3, 1)]),
    "read beside a write sees either": (True, [write(0, 9, 1), read(1, 2, 0), read(3, 4, 1)]),
    "new and then old": (False, [write(0, 9, 1), read(1, 2, 1), read(3, 4, 0)]),
    "new and then old on two clients at once": (True, [write(0, 9, 1), read(1, 4, 1), read(2, 3, 0)]),
    "two writes in one order for all": (
        False,
        [write(0, 9, 1), write(0, 9, 2), read(10, 11, 1), read(12, 13, 2)],
    ),
    "unknown write takes effect late": (True, [write(0, None, 1), read(5, 6, 0), read(7, 8, 1)]),
    "unknown write never takes effect": (True, [write(0, None, 1), read(5, 6, 0)]),
    "unknown write takes effect once": (
        False,
        [write(0, None, 1), read(5, 6, 1), write(7, 8, 2), read(9, 10, 2), read(11, 12, 1)],
    ),
    "unknown write before its call": (False, [read(0, 1, 1), write(2, None, 1)]),
    # Herlihy and Wing 1990, as a register: the second reader cannot see what the first has seen replaced.
    "reads that turn back": (
        False,
        [write(0, 1, 1), write(2, 20, 2), read(3, 10, 2), read(11, 12, 1)],
    ),
    "moments that touch overlap": (True, [write(0, 5, 1), read(5, 6, 0)]),
}


@pytest.mark.parametrize(("is_valid", "history"), REGISTER.values(), ids=REGISTER)
def test_verdict_on_a_register(is_valid: bool, history: list[Operation]) -> None:
    assert check(Register(), history).is_valid is is_valid
    assert check(Register(), without_unseen_writes(history)).is_valid is is_valid


DURABLE = {
    "synced stays": (True, [write(0, 1, 1), sync(2, 3), power_loss(4, 5), read(6, 7, 1)]),
    "synced is lost": (False, [write(0, 1, 1), sync(2, 3), power_loss(4, 5), read(6, 7, 0)]),
    "not synced may go": (True, [write(0, 1, 1), power_loss(4, 5), read(6, 7, 0)]),
    "not synced may stay": (True, [write(0, 1, 1), power_loss(4, 5), read(6, 7, 1)]),
    "goes without a loss of power": (False, [write(0, 1, 1), read(6, 7, 0)]),
    "sync of an unknown outcome promises nothing": (
        True,
        [write(0, 1, 1), sync(2, None), power_loss(4, 5), read(6, 7, 0)],
    ),
    "a write beside the sync may go": (
        True,
        [write(0, 3, 1), sync(2, 4), power_loss(5, 6), read(7, 8, 0)],
    ),
    "a write beside the sync that a reader saw may go": (
        True,
        [write(0, 6, 1), read(1, 2, 1), sync(3, 4), power_loss(7, 8), read(9, 10, 0)],
    ),
    "any state since the sync": (
        True,
        [write(0, 1, 1), sync(2, 3), write(4, 5, 2), write(6, 7, 3), power_loss(8, 9), read(10, 11, 2)],
    ),
    "a state before the sync": (
        False,
        [write(0, 1, 1), write(2, 3, 2), sync(4, 5), write(6, 7, 3), power_loss(8, 9), read(10, 11, 1)],
    ),
    "gone and back": (
        False,
        [write(0, 1, 1), power_loss(2, 3), read(4, 5, 0), power_loss(6, 7), read(8, 9, 1)],
    ),
    "synced beside the loss, which came first": (
        True,
        [write(0, 1, 1), sync(2, 6), power_loss(3, 8), read(9, 10, 0)],
    ),
    "synced beside the loss, which may have come first, and seen after it": (
        False,
        [write(0, 1, 1), sync(2, 6), power_loss(3, 8), read(9, 10, 1), read(11, 12, 0)],
    ),
    "goes at any moment of the loss": (
        True,
        [write(0, 1, 1), power_loss(2, 20), read(3, 4, 1), write(5, 6, 2), read(7, 8, 2), read(21, 22, 1)],
    ),
}


@pytest.mark.parametrize(("is_valid", "history"), DURABLE.values(), ids=DURABLE)
def test_verdict_on_a_register_that_loses_power(is_valid: bool, history: list[Operation]) -> None:
    assert check(durable(Register(), history), history).is_valid is is_valid


def append(begins: int, returns: int | None, value: int) -> Operation:
    return call(begins, returns, "append", value)


LOG = {
    "each once, in order": (True, [append(0, 1, 1), append(2, 3, 2), read(4, 5, [1, 2])]),
    "an append is lost": (False, [append(0, 1, 1), append(2, 3, 2), read(4, 5, [2])]),
    "an append is there twice": (False, [append(0, 1, 1), read(4, 5, [1, 1])]),
    "order of two that do not overlap": (False, [append(0, 1, 1), append(2, 3, 2), read(4, 5, [2, 1])]),
    "two that overlap in either order": (True, [append(0, 3, 1), append(0, 3, 2), read(4, 5, [2, 1])]),
    "two that overlap, one over the other": (True, [append(0, 3, 1), append(0, 3, 2), read(4, 5, [2])]),
    "an old one is written over": (
        False,
        [append(0, 1, 1), append(2, 5, 2), append(2, 5, 3), read(6, 7, [2, 3])],
    ),
    "length of what has returned": (True, [append(0, 1, 1), call(2, 3, "length", result=1)]),
    "length that lags": (False, [append(0, 1, 1), call(2, 3, "length", result=0)]),
    "length that shrinks": (
        False,
        [append(0, 9, 1), call(1, 2, "length", result=1), call(3, 4, "length", result=0)],
    ),
    "unknown append comes late": (True, [append(0, None, 1), append(2, 3, 2), read(4, 5, [2, 1])]),
    "unknown append leaves its place": (True, [append(0, None, 1), append(2, 3, 2), read(4, 5, [2])]),
}


@pytest.mark.parametrize(("is_valid", "history"), LOG.values(), ids=LOG)
def test_verdict_on_a_log(is_valid: bool, history: list[Operation]) -> None:
    assert check(Log(), split_appends(history)).is_valid is is_valid


def create(begins: int, returns: int | None, name: str, result: Any = None) -> Operation:
    return call(begins, returns, "create", name, result)


def stat(begins: int, returns: int, name: str, result: Any) -> Operation:
    return call(begins, returns, "stat", name, result)


def rename(begins: int, returns: int | None, result: Any = None) -> Operation:
    return call(begins, returns, "rename", ["a", "b"], result)


NAMES = {
    "one of two creations wins": (
        True,
        [create(0, 5, "a", 7), create(0, 5, "a", "EEXIST"), stat(6, 7, "a", 7)],
    ),
    "both win": (False, [create(0, 5, "a", 7), create(0, 5, "a", 8)]),
    "none wins": (False, [create(0, 5, "a", "EEXIST"), create(0, 5, "a", "EEXIST")]),
    "the name is gone": (False, [create(0, 1, "a", 7), stat(2, 3, "a", "ENOENT")]),
    "renamed, and at one of two places": (
        True,
        [
            create(0, 1, "a", 7),
            rename(2, 9),
            stat(3, 4, "a", 7),
            stat(5, 6, "b", 7),
            stat(7, 8, "a", "ENOENT"),
        ],
    ),
    "renamed, and at neither": (
        False,
        [create(0, 1, "a", 7), rename(2, 9), stat(3, 4, "a", "ENOENT"), stat(5, 6, "b", "ENOENT")],
    ),
    "renamed, and at both": (
        False,
        [create(0, 1, "a", 7), rename(2, 9), stat(3, 4, "b", 7), stat(5, 6, "a", 7)],
    ),
    "renamed twice": (False, [create(0, 1, "a", 7), rename(2, 3), rename(4, 5)]),
    "rename of an unknown outcome": (True, [create(0, 1, "a", 7), rename(2, None), stat(5, 6, "b", 7)]),
    "a list of all names": (
        True,
        [create(0, 1, "a", 7), create(2, 3, "b", 8), call(4, 5, "list", "", ["a", "b"])],
    ),
    "a list that lacks one": (
        False,
        [create(0, 1, "a", 7), create(2, 3, "b", 8), call(4, 5, "list", "", ["b"])],
    ),
    "unknown creation is one file": (True, [create(0, None, "a"), stat(1, 2, "a", 5), stat(3, 4, "a", 5)]),
    "unknown creation is two files": (False, [create(0, None, "a"), stat(1, 2, "a", 5), stat(3, 4, "a", 6)]),
    "unknown creation that did not happen then": (
        True,
        [create(0, None, "a"), create(1, 2, "a", 5), call(3, 4, "unlink", "a"), stat(5, 6, "a", 9)],
    ),
    "unlinked, and still there": (
        False,
        [create(0, 1, "a", 7), call(2, 3, "unlink", "a"), stat(4, 5, "a", 7)],
    ),
}


@pytest.mark.parametrize(("is_valid", "history"), NAMES.values(), ids=NAMES)
def test_verdict_on_names(is_valid: bool, history: list[Operation]) -> None:
    assert check(Names(), history).is_valid is is_valid


CLOSE_TO_OPEN = {
    "what was closed before the open": (True, [write(0, 1, 1), read(2, 3, 1)]),
    "older than what was closed": (False, [write(0, 1, 1), read(2, 3, 0)]),
    "older of two": (False, [write(0, 1, 1), write(2, 3, 2), read(4, 5, 1)]),
    "either of two that overlap": (True, [write(0, 3, 1), write(1, 4, 2), read(5, 6, 1)]),
    "new and then old, beside the write": (True, [write(0, 9, 1), read(1, 2, 1), read(3, 4, 0)]),
    "a value that was never written": (False, [read(0, 1, 5)]),
    "what is written later": (False, [read(0, 1, 5), write(2, 3, 5)]),
    "unknown write": (True, [write(0, None, 1), write(2, 3, 2), read(4, 5, 1)]),
}


@pytest.mark.parametrize(("is_valid", "history"), CLOSE_TO_OPEN.values(), ids=CLOSE_TO_OPEN)
def test_verdict_on_a_file_that_is_opened_and_closed(is_valid: bool, history: list[Operation]) -> None:
    assert check_close_to_open(history).is_valid is is_valid


def by_brute_force(model: Model, history: Sequence[Operation]) -> bool:
    """The definition: some choice of the unknown calls, in some order, that keeps the order of time."""
    known = [each for each in history if each.returned_ns is not None]
    unknown = [each for each in history if each.returned_ns is None]
    for count in range(len(unknown) + 1):
        for chosen in itertools.combinations(unknown, count):
            for order in itertools.permutations([*known, *chosen]):
                if _keeps_time(order) and _explains(model, order):
                    return True
    return False


def _keeps_time(order: Sequence[Operation]) -> bool:
    return not any(later.precedes(earlier) for earlier, later in itertools.combinations(order, 2))


def _explains(model: Model, order: Iterable[Operation]) -> bool:
    states = {model.initial}
    for operation in order:
        states = {following for state in states for following in model.step(state, operation)}
    return bool(states)


def random_history(choose: random.Random, kinds: str) -> list[Operation]:
    """Few calls that overlap, with answers that may be right."""
    history = []
    for value in range(1, choose.randrange(3, 7)):
        begins = choose.randrange(12)
        returns = begins + choose.randrange(1, 8)
        kind = choose.choice(kinds)
        if kind == "w":
            history.append(write(begins, None if choose.random() < 0.3 else returns, value))
        elif kind == "r":
            history.append(read(begins, returns, choose.randrange(value + 1)))
        elif kind == "s":
            history.append(sync(begins, returns))
        else:
            history.append(power_loss(begins, returns))
    return history


@pytest.mark.parametrize("kinds", ["wwrr", "wwwrrrsp"])
def test_verdict_is_that_of_the_definition(kinds: str) -> None:
    choose = random.Random(1)
    verdicts = {True: 0, False: 0}
    for _ in range(1500):
        history = random_history(choose, kinds)
        model = durable(Register(), history)
        expected = by_brute_force(model, history)
        verdicts[expected] += 1
        assert check(model, history).is_valid is expected, history
        assert check(model, without_unseen_writes(history)).is_valid is expected, history
    assert min(verdicts.values()) > 100, verdicts


def random_names(choose: random.Random, kinds: str) -> list[Operation]:
    """As `random_history`, of two names."""
    history = []
    for value in range(1, choose.randrange(3, 7)):
        begins = choose.randrange(12)
        returns = None if choose.random() < 0.3 else begins + choose.randrange(1, 8)
        name = choose.choice("ab")
        known = begins + choose.randrange(1, 8)
        match choose.choice(kinds):
            case "c":
                history.append(create(begins, returns, name, choose.choice((value, value, EXISTS))))
            case "u":
                history.append(call(begins, returns, "unlink", name, choose.choice((None, ABSENT))))
            case "m":
                history.append(rename(begins, returns, choose.choice((None, ABSENT))))
            case "t":
                history.append(stat(begins, known, name, choose.choice((ABSENT, *range(1, value + 1)))))
            case "l":
                names = [each for each in "ab" if choose.random() < 0.5]
                history.append(call(begins, returns, "list", "", names))
            case "s":
                history.append(sync(begins, returns))
            case "p":
                history.append(power_loss(begins, known))
    return history


@pytest.mark.parametrize("kinds", ["cccumttl", "cccutttlsp"])
def test_verdict_on_names_is_that_of_the_definition(kinds: str) -> None:
    choose = random.Random(1)
    verdicts = {True: 0, False: 0}
    for _ in range(1500):
        history = random_names(choose, kinds)
        model = durable(Names(), history)
        expected = by_brute_force(model, history)
        verdicts[expected] += 1
        assert check(model, history).is_valid is expected, history
    assert min(verdicts.values()) > 100, verdicts


class SimulatedDirectory:
    """Three names that programs change at once, with calls of unknown outcome and losses of power.

    `fault`: what the end of the history shows of a directory that is broken; it shows none otherwise.
    """

    NAMES = ("a", "b", "c")
    END = 1_000_000

    def __init__(self, seed: int, *, calls: int = 300, losses: int = 0, fault: str = "") -> None:
        self.choose = random.Random(seed)
        self.history: list[Operation] = []
        self.names: dict[str, int] = {}
        self.past: list[tuple[int, dict[str, int]]] = []  # since the last sync, by when the call returned
        lost = set(self.choose.sample(range(calls // 4, calls), losses))
        for number in range(calls):
            self._call(100 * number + 10_000, number)
            if number in lost:
                self._lose_power(100 * number + 10_050)
        self._end(fault)

    def _call(self, at: int, number: int) -> None:
        """Calls take effect in order; each begins before and returns after, or its outcome is unknown."""
        choose = self.choose
        begins, returns = at - choose.randrange(300), at + choose.randrange(300)
        unknown = choose.random() < 0.03
        kind = choose.choice(("create", "create", "unlink", "stat", "stat", "list", SYNC))
        argument = choose.choice(self.NAMES)
        before = dict(self.names)
        if kind == "create":
            result: Any = EXISTS if argument in self.names else number
            self.names.setdefault(argument, number)
        elif kind == "unlink":
            result = None if argument in self.names else ABSENT
            self.names.pop(argument, None)
        elif kind == "stat":
            result = self.names.get(argument, ABSENT)
        elif kind == "list":
            result = sorted(self.names)
        else:
            argument = result = None
        if unknown and choose.random() < 0.5:
            self.names = before  # it has had no effect
        self.history.append(call(begins, None if unknown else returns, kind, argument, result))
        if not self.past or self.names != self.past[-1][1]:
            self.past.append((returns, dict(self.names)))
        if kind == SYNC and not unknown:
            kept = [index for index, (returned, _) in enumerate(self.past) if returned <= begins]
            del self.past[: max(kept, default=0)]

    def _lose_power(self, at: int) -> None:
        """Any state since the last sync; calls in flight come to nothing or have had their effect."""
        self.history.append(power_loss(at - 10, at + 10))
        _, names = self.choose.choice(self.past)
        self.names = dict(names)
        self.past = [(0, dict(names))]
        self.history = [
            each
            if each.returned_ns is None or each.returned_ns < at or each.kind == POWER_LOSS
            # What was acknowledged after the loss had its effect before.
            else replace(each, result=None, returned_ns=None)
            for each in self.history
        ]

    def _end(self, fault: str) -> None:
        """A name that no call of unknown outcome can have changed is made, synced, and looked at after a loss."""
        at = self.END
        self.history += [create(at, at + 1, "d", 7), sync(at + 2, at + 3), power_loss(at + 4, at + 5)]
        match fault:
            case "a name that was synced is lost":
                self.history.append(stat(at + 6, at + 7, "d", ABSENT))
            case "another file has the name":
                self.history.append(stat(at + 6, at + 7, "d", 8))
            case "a list lacks it":
                self.history.append(call(at + 6, at + 7, "list", "", []))
            case "two of one name are made":
                self.history.append(create(at + 6, at + 7, "d", 8))
            case _:
                self.history.append(stat(at + 6, at + 7, "d", 7))


@pytest.mark.parametrize("losses", [0, 1, 3])
@pytest.mark.parametrize("seed", range(5))
def test_history_of_a_correct_directory_is_accepted(seed: int, losses: int) -> None:
    history = SimulatedDirectory(seed, losses=losses).history
    assert check(durable(Names(), history), history, expansions_max=20_000).is_valid


@pytest.mark.parametrize(
    "fault",
    [
        "a name that was synced is lost",
        "another file has the name",
        "a list lacks it",
        "two of one name are made",
    ],
)
def test_history_of_a_broken_directory_is_refused(fault: str) -> None:
    for seed in range(3):
        history = SimulatedDirectory(seed, losses=1, fault=fault).history
        assert check(durable(Names(), history), history).outcome is Outcome.INVALID


class SimulatedRegister:
    """A register with a moment of effect in each call, and a fault that the last read shows."""

    def __init__(self, seed: int, calls: int, fault: str) -> None:
        self.choose = random.Random(seed)
        self.fault = fault
        self.history: list[Operation] = []
        self.values = [0]
        self._run(calls)

    def _run(self, calls: int) -> None:
        """Effects happen at even moments in this order; calls begin before theirs and return after it."""
        for number in range(1, calls + 1):
            at = 100 * number
            begins, returns = at - self.choose.randrange(400), at + self.choose.randrange(400)
            if self.choose.random() < 0.5:
                self.history.append(write(begins, returns, number))
                self.values.append(number)
            else:
                self.history.append(read(begins, returns, self.values[-1]))
        end = 100 * calls + 1000
        self.history.append(write(end, end + 1, calls + 1))
        match self.fault:
            case "none":
                self.history.append(read(end + 2, end + 3, calls + 1))
            case "lost write":
                self.history.append(read(end + 2, end + 3, self.values[-1]))
            case "turns back":
                self.history += [
                    write(end + 2, end + 9, calls + 2),
                    read(end + 3, end + 4, calls + 2),
                    read(end + 5, end + 6, calls + 1),
                ]
            case "written twice":
                self.history += [
                    write(end + 2, end + 3, calls + 2),
                    read(end + 4, end + 5, calls + 2),
                    read(end + 6, end + 7, calls + 1),
                ]
            case "two values at once":
                self.history += [
                    write(end + 2, end + 20, calls + 2),
                    write(end + 2, end + 20, calls + 3),
                    read(end + 21, end + 30, calls + 2),
                    read(end + 31, end + 40, calls + 3),
                ]


@pytest.mark.parametrize("seed", range(10))
def test_history_of_a_correct_register_is_accepted(seed: int) -> None:
    history = SimulatedRegister(seed, 200, "none").history
    assert check(Register(), history).is_valid


@pytest.mark.parametrize("fault", ["lost write", "turns back", "written twice", "two values at once"])
def test_history_of_a_broken_register_is_refused(fault: str) -> None:
    for seed in range(10):
        history = SimulatedRegister(seed, 200, fault).history
        verdict = check(Register(), history)
        assert verdict.outcome is Outcome.INVALID
        assert "no order of calls explains" in verdict.reason


def test_orders_of_the_past_do_not_multiply() -> None:
    """Of each two files either may have come first, for all that is known: 4,096 pasts, and one choice for a loss."""
    made = [
        create(10 * pair, 10 * pair + 5, f"{letter}{pair:02}", 2 * pair + number)
        for pair in range(12)
        for number, letter in enumerate("ab")
    ]
    ten_pairs = [each.argument for each in made[:20]]
    for left, is_valid in ((["a10"], True), (["b10"], True), (["a11"], False), (["a10", "a11"], False)):
        names = sorted([*ten_pairs, *left])
        history = [*made, power_loss(200, 201), call(202, 203, "list", "", names)]
        verdict = check(durable(Names(), history), history, expansions_max=300)
        assert verdict.outcome is (Outcome.VALID if is_valid else Outcome.INVALID), left


def test_search_that_is_given_up_has_no_verdict_and_is_not_valid() -> None:
    unknown = [write(0, None, value) for value in range(1, 40)]
    reads = [read(2 * value, 2 * value + 1, value) for value in range(1, 40)]
    history = [*unknown, *reads, read(1000, 1001, 0)]
    verdict = check(durable(Register(), history), history, expansions_max=0)
    assert verdict.outcome is Outcome.UNDECIDED
    assert "given up" in verdict.reason
    assert not verdict.is_valid


def test_unknown_outcome_ends_nothing() -> None:
    """A write that failed long ago may still be seen, however many calls came between."""
    history = [write(0, None, 1000)]
    for value in range(1, 300):
        history += [write(10 * value, 10 * value + 1, value), read(10 * value + 2, 10 * value + 3, value)]
    assert check(Register(), [*history, read(9000, 9001, 1000)]).is_valid
    refused = [*history, read(9000, 9001, 1000), read(9002, 9003, 299)]
    assert not check(Register(), refused).is_valid
    assert not check(Register(), [replace(refused[0], returned_ns=1), *refused[1:]]).is_valid
