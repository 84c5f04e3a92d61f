"""Proves that a schedule works before anything runs: whatever is wrong with it is found here, and named.

    verify(dualpipe(8, 20), limits=Limits(live_chunks=9))
    find_problems(mine, transports=[Transport.RENDEZVOUS], matching=Matching.TAG)

What is checked:
    C1  actions fit the places: a rank works only on its own stages, and transfers cross the border between the two
        ranks that they name
    C2  each (flow, stage, chunk) has one Forward and one Backward, or one BackwardInput and one BackwardWeight
    C3  nothing happens before what it needs: a Forward before its input, a backward before its Forward or its
        gradient, a BackwardWeight before its BackwardInput or before an older one, a Send before the task
    C4  each Send has its Receive; with Matching.ORDER also at the same place in the order of its link
    C5  nobody waits for ever: played by `machine` with each of the transports
    C6  no rank ever holds more live micro-batches than allowed, if a limit is given
    C7  no rank is idle for longer than allowed with given costs, if a limit is given

C1 to C4 look at one rank or one link at a time; C5 is exact, as ranks are deterministic: the order in which they are
played changes nothing. C5 to C7 are only looked at when the rest is right.
"""

from collections import deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final, NamedTuple

from .costs import StageCosts
from .machine import Deadlock, Transport, run
from .schedule import (
    RANKS_MAX,
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Exchange,
    Forward,
    Overlap,
    Part,
    Payload,
    Schedule,
    Send,
    Transfer,
    label,
)
from .simulate import simulate

PROBLEMS_SHOWN_MAX: Final = 10
"""In the message of an error: one mistake often has many consequences, and the first are the telling ones."""


UNIT_COSTS: Final = StageCosts(forward=1, backward=2, weight=1)


class Matching(StrEnum):
    """How a transport pairs messages between two ranks."""

    ORDER = "order"
    TAG = "tag"


class Problem(NamedTuple):
    """One thing that is wrong; `position` counts the actions of the rank, -1 stands for the rank as a whole."""

    rank: int
    position: int
    action: Action | None
    text: str

    def __str__(self) -> str:
        place = f", action {self.position} {label(self.action)}" if self.action is not None else ""
        return f"rank {self.rank}{place}: {self.text}"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What each rank must keep to."""

    live_chunks: int | None = None
    """Micro-batches between their Forward and their backward."""
    idle: float | None = None
    """Time without a task, in the unit of `costs`."""
    costs: StageCosts = UNIT_COSTS


NO_LIMITS: Final = Limits()


class InvalidSchedule(ValueError):
    """A schedule with problems."""

    def __init__(self, schedule: Schedule, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        shown = "\n  ".join(str(each) for each in problems[:PROBLEMS_SHOWN_MAX])
        rest = len(problems) - PROBLEMS_SHOWN_MAX
        more = f"\n  and {rest} more" if rest > 0 else ""
        super().__init__(f"{schedule.name} on {schedule.ranks} ranks would go wrong:\n  {shown}{more}")


def verify(
    schedule: Schedule,
    *,
    transports: Iterable[Transport] = (Transport.BUFFERED, Transport.RENDEZVOUS),
    matching: Matching = Matching.ORDER,
    limits: Limits = NO_LIMITS,
    inference: bool = False,
) -> None:
    """Accepts a schedule in silence.

    Raises: InvalidSchedule, with every problem found.
    """
    problems = find_problems(
        schedule, transports=transports, matching=matching, limits=limits, inference=inference
    )
    if problems:
        raise InvalidSchedule(schedule, problems)


def find_problems(
    schedule: Schedule,
    *,
    transports: Iterable[Transport] = (Transport.BUFFERED, Transport.RENDEZVOUS),
    matching: Matching = Matching.ORDER,
    limits: Limits = NO_LIMITS,
    inference: bool = False,
) -> list[Problem]:
    """Everything that is wrong with a schedule, by the list above; with `inference`, of one of forwards alone.

    Cost: a few microseconds an action.
    """
    problems = _misplaced(schedule)
    if problems:
        return problems  # the rest would look up what does not exist
    check = _Needs(schedule, inference=inference)
    for rank, actions in enumerate(schedule.actions):
        check.rank(rank, actions, limits.live_chunks)
    problems = check.problems + check.unfinished()
    if not check.paired(matching):
        problems += _unpaired(schedule, matching)
    if problems:
        return problems
    problems = _stuck(schedule, frozenset(transports))
    if problems:
        return problems
    return [] if limits.idle is None else _idle(schedule, limits.costs, limits.idle)


def _misplaced(schedule: Schedule) -> list[Problem]:
    """C1."""
    held = [place for own in schedule.places for place in own]
    wanted = {(flow, stage) for flow in range(schedule.flows) for stage in range(schedule.stages)}
    if len(schedule.actions) != schedule.ranks:
        return [Problem(0, -1, None, f"{len(schedule.actions)} lists of actions for {schedule.ranks} ranks")]
    if len(held) != len(wanted) or {(place.flow, place.stage) for place in held} != wanted:
        return [Problem(0, -1, None, "the places of all ranks must hold each stage of each flow once")]
    return [
        Problem(rank, index, action, text)
        for rank, actions in enumerate(schedule.actions)
        for index, action in enumerate(actions)
        if (text := _misplacement(schedule, rank, action))
    ]


def _misplacement(schedule: Schedule, rank: int, action: Action) -> str | None:
    if isinstance(action, Exchange):
        return next(filter(None, (_wrong_ends(schedule, rank, each) for each in action.transfers)), None)
    if isinstance(action, Overlap):
        if not (isinstance(action.forward, Forward) and isinstance(action.backward, Backward)):
            return "a pair is a Forward and a whole Backward"
        return _wrong_place(schedule, rank, action.forward) or _wrong_place(schedule, rank, action.backward)
    return _wrong_place(schedule, rank, action)


def _wrong_place(schedule: Schedule, rank: int, part: Part) -> str | None:
    places = schedule.places[rank]
    if not 0 <= part.module < len(places):
        return f"the rank has {len(places)} modules"
    place = places[part.module]
    if place.flow != part.flow or place.stage != part.stage:
        return (
            f"works on stage {part.stage} of flow {part.flow}, but module {part.module} of this rank is "
            f"stage {place.stage} of flow {place.flow}"
        )
    if not 0 <= part.chunk < schedule.chunks:
        return f"a flow has {schedule.chunks} micro-batches"
    return None


def _wrong_ends(schedule: Schedule, rank: int, transfer: Transfer) -> str | None:
    ends = _ends(schedule, transfer)
    if ends == ((rank, transfer.peer) if isinstance(transfer, Send) else (transfer.peer, rank)):
        return None
    way = f"goes from rank {ends[0]} to rank {ends[1]}" if ends else "is not part of the step"
    return f"{_named(transfer)}: border {transfer.border} of flow {transfer.flow} {way}"


def _ends(schedule: Schedule, transfer: Transfer) -> tuple[int, int] | None:
    """Which rank sends and which receives; None for what never crosses a border."""
    flow, border, chunk = transfer.flow, transfer.border, transfer.chunk
    known = 0 <= flow < schedule.flows and 0 <= border < schedule.stages - 1
    if not known or not 0 <= chunk < schedule.chunks:
        return None
    below, above = schedule.owner(flow, border), schedule.owner(flow, border + 1)
    return (below, above) if transfer.payload is Payload.ACTIVATION else (above, below)


class _Needs:
    """C2, C3 and C6. What was done is kept by unit, (flow * stages + stage) * chunks + chunk.

    What crosses a border is kept under the unit below it.
    """

    def __init__(self, schedule: Schedule, *, inference: bool) -> None:
        self.inference = inference
        self.schedule, self.chunks, self.last = schedule, schedule.chunks, schedule.stages - 1
        units = schedule.flows * schedule.stages * schedule.chunks
        self.forward, self.backward, self.weight, self.late = (bytearray(units) for _ in range(4))
        self.activations, self.gradients = bytearray(units), bytearray(units)
        self.owners = [
            schedule.owner(flow, stage) for flow in range(schedule.flows) for stage in range(schedule.stages)
        ]
        self.problems: list[Problem] = []
        self.sent: dict[int, list[int]] = {}
        self.received: dict[int, list[int]] = {}

    def rank(self, rank: int, actions: Sequence[Action], live_max: int | None) -> None:
        """Goes through the actions of one rank."""
        live, self.put_off = 0, deque[int]()
        for index, action in enumerate(actions):
            if isinstance(action, Exchange):
                for each in action.transfers:
                    if text := self._transfer(each, rank):
                        self.problems.append(Problem(rank, index, action, text))
                continue
            for part in (action.forward, action.backward) if isinstance(action, Overlap) else (action,):
                if text := self._part(part, rank):
                    self.problems.append(Problem(rank, index, action, text))
                live += 1 if isinstance(part, Forward) else 0 if isinstance(part, BackwardWeight) else -1
                if live_max is not None and live > live_max and not self.inference:
                    self.problems.append(
                        Problem(rank, index, action, f"holds {live} micro-batches, more than {live_max}")
                    )

    def unfinished(self) -> list[Problem]:
        """What no action did."""
        everywhere = range(len(self.forward))
        return [
            *(self._missing(unit, "Forward") for unit in everywhere if not self.forward[unit]),
            *(
                self._missing(unit, "Backward")
                for unit in everywhere
                if not self.backward[unit] and not self.inference
            ),
            *(
                self._missing(unit, "BackwardWeight after its BackwardInput")
                for unit in everywhere
                if self.late[unit] and not self.weight[unit]
            ),
        ]

    def _missing(self, unit: int, what: str) -> Problem:
        place, chunk = divmod(unit, self.chunks)
        flow, stage = divmod(place, self.last + 1)
        return Problem(
            self.owners[place], -1, None, f"no {what} of flow {flow}, stage {stage}, micro-batch {chunk}"
        )

    def paired(self, matching: Matching) -> bool:
        """C4, whether it holds."""
        if matching is Matching.ORDER:
            return self.sent == self.received
        return self._as_set(self.sent) == self._as_set(self.received)

    @staticmethod
    def _as_set(crossed: dict[int, list[int]]) -> dict[int, list[int]]:
        return {link: sorted(keys) for link, keys in crossed.items()}

    def _transfer(self, transfer: Transfer, rank: int) -> str | None:
        unit = (transfer.flow * (self.last + 1) + transfer.border) * self.chunks + transfer.chunk
        upwards = transfer.payload is Payload.ACTIVATION
        key = unit if upwards else ~unit
        if isinstance(transfer, Send):
            self.sent.setdefault(rank * RANKS_MAX + transfer.peer, []).append(key)
            made = self.forward[unit] if upwards else self.backward[unit + self.chunks]
            return None if made else f"{_named(transfer)} before the task that makes it"
        self.received.setdefault(transfer.peer * RANKS_MAX + rank, []).append(key)
        crossed = self.activations if upwards else self.gradients
        crossed[unit] = 1
        return None

    def _part(self, part: Part, rank: int) -> str | None:
        unit = (part.flow * (self.last + 1) + part.stage) * self.chunks + part.chunk
        if isinstance(part, Forward):
            return self._forward(part, rank, unit)
        if self.inference:
            return f"{label(part)} has no place in inference"
        if isinstance(part, BackwardWeight):
            return self._weight(part, unit)
        return self._backward(part, rank, unit)

    def _forward(self, part: Forward, rank: int, unit: int) -> str | None:
        self.forward[unit], again = 1, self.forward[unit]
        if again:
            return f"{label(part)} is done twice"
        if part.stage:
            below = unit - self.chunks
            local = self.owners[part.flow * (self.last + 1) + part.stage - 1] == rank
            if not (self.forward if local else self.activations)[below]:
                source = "no Forward" if local else "no Receive"
                return f"{label(part)} before its input: {source} of it comes earlier"
        return None

    def _backward(self, part: Backward | BackwardInput, rank: int, unit: int) -> str | None:
        self.backward[unit], again = 1, self.backward[unit]
        if isinstance(part, BackwardInput):
            self.late[unit] = 1
            self.put_off.append(unit)
        if again:
            return f"{label(part)}: its gradients are made twice"
        if not self.forward[unit]:
            return f"{label(part)} before its Forward"
        if part.stage < self.last:
            local = self.owners[part.flow * (self.last + 1) + part.stage + 1] == rank
            if not (self.backward[unit + self.chunks] if local else self.gradients[unit]):
                source = "no backward" if local else "no Receive"
                return f"{label(part)} before its gradient: {source} of it comes earlier"
        return None

    def _weight(self, part: BackwardWeight, unit: int) -> str | None:
        self.weight[unit], again = 1, self.weight[unit]
        if again:
            return f"{label(part)} is done twice"
        if not self.late[unit]:
            return f"{label(part)} before its BackwardInput"
        if self.put_off.popleft() != unit:
            return f"{label(part)} is not the oldest that was put off"
        return None


def _unpaired(schedule: Schedule, matching: Matching) -> list[Problem]:
    """C4."""
    sent: dict[tuple[int, int], list[_Crossing]] = {}
    received: dict[tuple[int, int], list[_Crossing]] = {}
    for rank, actions in enumerate(schedule.actions):
        for index, action in enumerate(actions):
            if isinstance(action, Exchange):
                for each in action.transfers:
                    key = (each.payload, each.flow, each.border, each.chunk)
                    if isinstance(each, Send):
                        sent.setdefault((rank, each.peer), []).append(_Crossing(key, index, each))
                    else:
                        received.setdefault((each.peer, rank), []).append(_Crossing(key, index, each))
    found: list[Problem] = []
    for link in sorted(sent.keys() | received.keys()):
        found += _unpaired_on(schedule, link, sent.get(link, []), received.get(link, []), matching)
    return found


def _stuck(schedule: Schedule, transports: frozenset[Transport]) -> list[Problem]:
    """C5. Who gets to the end where Sends wait gets there too where they do not, so one play may be enough."""
    if Transport.RENDEZVOUS in transports:
        transports -= {Transport.BUFFERED}
    for transport in sorted(transports):
        try:
            run(schedule, transport)
        except Deadlock as deadlock:
            return [
                Problem(
                    each.rank,
                    each.position,
                    each.action,
                    f"waits for ever for {_named(each.transfer)}, {transport}",
                )
                for each in deadlock.waits
            ]
    return []


class _Crossing(NamedTuple):
    key: tuple[Payload, int, int, int]
    position: int
    transfer: Transfer


def _unpaired_on(
    schedule: Schedule,
    link: tuple[int, int],
    sent: Sequence[_Crossing],
    received: Sequence[_Crossing],
    matching: Matching,
) -> list[Problem]:
    source, target = link
    problems = []
    ends = ((source, sent, received, "received by", target), (target, received, sent, "sent by", source))
    for rank, own, others, what, other in ends:
        known, seen = {each.key for each in others}, set()
        for each in own:
            if each.key not in known:
                text = f"{_named(each.transfer)} is never {what} rank {other}"
            elif each.key in seen:
                text = f"{_named(each.transfer)} comes twice"
            else:
                seen.add(each.key)
                continue
            problems.append(Problem(rank, each.position, schedule.actions[rank][each.position], text))
    if matching is Matching.ORDER and not problems:
        for here, there in zip(sent, received, strict=True):
            if here.key != there.key:
                text = (
                    f"expects {_named(there.transfer)}, but rank {source} sends {_named(here.transfer)} first, in its "
                    f"action {here.position} {label(schedule.actions[source][here.position])}"
                )
                return [Problem(target, there.position, schedule.actions[target][there.position], text)]
    return problems


def _idle(schedule: Schedule, costs: StageCosts, idle_max: float) -> list[Problem]:
    """C7. A difference that rounding explains does not count."""
    timeline = simulate(schedule, costs)
    allowed = idle_max + 1e-9 * timeline.makespan
    return [
        Problem(rank, -1, None, f"is idle for {idle:g} of {timeline.makespan:g}, more than {idle_max:g}")
        for rank, idle in enumerate(timeline.idle)
        if idle > allowed
    ]


def _named(transfer: Transfer) -> str:
    verb = "Send" if isinstance(transfer, Send) else "Receive"
    preposition = "to" if isinstance(transfer, Send) else "from"
    return (
        f"the {verb} of {transfer.payload.value} {transfer.chunk} of flow {transfer.flow} across border "
        f"{transfer.border} {preposition} rank {transfer.peer}"
    )


__all__ = ["InvalidSchedule", "Limits", "Matching", "Problem", "find_problems", "verify"]
