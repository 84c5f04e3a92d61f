"""Proves that a schedule works before anything runs: whatever is wrong with it is found here, and named.

    assert not find_problems(dualpipe(8, 20), live_chunks_max=9)

What is checked:
    C1  actions fit the places: a rank works only on its own stages, and transfers cross the boundary between the two
        ranks that they name
    C2  each (flow, stage, chunk) has one Forward and one Backward, or one BackwardInput and one BackwardWeight
    C3  nothing happens before what it needs: a Forward before its input, a backward before its Forward or its
        gradient, a BackwardWeight before its BackwardInput or before an older one, a Send before the task
    C4  each Send has its Receive, at the same place in the order of its link
    C5  no rank waits indefinitely, even where a Send waits for its Receive, as gloo and NCCL may with large messages
    C6  no rank ever holds more live micro-batches than allowed, if a limit is given

C1 to C4 look at one rank or one link at a time; C5 is exact, as ranks are deterministic: the order in which they are
tried changes nothing. It is only looked at when the rest is right.
"""

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from .schedule import (
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
    parts,
)


class Problem(NamedTuple):
    """One thing that is wrong; `position` counts the actions of the rank, -1 stands for the rank as a whole."""

    rank: int
    position: int
    action: Action | None
    text: str

    def __str__(self) -> str:
        place = f", action {self.position} {label(self.action)}" if self.action is not None else ""
        return f"rank {self.rank}{place}: {self.text}"


def find_problems(
    schedule: Schedule, *, live_chunks_max: int | None = None, inference: bool = False
) -> list[Problem]:
    """Everything that is wrong with a schedule, by the list above; with `inference`, of one of forwards alone.

    `live_chunks_max`: micro-batches of a rank between their Forward and their backward.
    Cost: a few microseconds an action.
    """
    problems = _misplaced(schedule)
    if problems:
        return problems  # the rest would look up what does not exist
    problems = list(_Walk(schedule, inference=inference).problems(live_chunks_max))
    problems += _unpaired(schedule)
    return problems or waiting_for_ever(schedule)


def _misplaced(schedule: Schedule) -> list[Problem]:
    """C1."""
    held = [(place.flow, place.stage) for own in schedule.places for place in own]
    wanted = [(flow, stage) for flow in range(schedule.flows) for stage in range(schedule.stages)]
    if len(schedule.actions) != schedule.ranks:
        return [Problem(0, -1, None, f"{len(schedule.actions)} lists of actions for {schedule.ranks} ranks")]
    if sorted(held) != wanted:
        return [Problem(0, -1, None, "the places of all ranks must hold each stage of each flow once")]
    return [
        Problem(rank, index, action, text)
        for rank, actions in enumerate(schedule.actions)
        for index, action in enumerate(actions)
        for text in _misplacements(schedule, rank, action)
    ]


def _misplacements(schedule: Schedule, rank: int, action: Action) -> Iterator[str]:
    if isinstance(action, Overlap) and not (
        isinstance(action.forward, Forward) and isinstance(action.backward, Backward)
    ):
        yield "a pair is a Forward and a whole Backward"
        return
    for part in parts(action):
        if text := _wrong_place(schedule, rank, part):
            yield text
    for transfer in action.transfers if isinstance(action, Exchange) else ():
        if text := _wrong_ends(schedule, rank, transfer):
            yield text


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
    return f"{_named(transfer)}: boundary {transfer.boundary} of flow {transfer.flow} {way}"


def _ends(schedule: Schedule, transfer: Transfer) -> tuple[int, int] | None:
    """Which rank sends and which receives; None for what never crosses a boundary."""
    flow, boundary, chunk = transfer.flow, transfer.boundary, transfer.chunk
    known = 0 <= flow < schedule.flows and 0 <= boundary < schedule.stages - 1
    if not known or not 0 <= chunk < schedule.chunks:
        return None
    below, above = schedule.owner(flow, boundary), schedule.owner(flow, boundary + 1)
    return (below, above) if transfer.payload is Payload.ACTIVATION else (above, below)


Unit = tuple[int, int, int]
"""(flow, stage, chunk)"""


class _Walk:
    """C2, C3 and C6: goes through the actions of all ranks, and knows what has been done and received before each."""

    def __init__(self, schedule: Schedule, *, inference: bool) -> None:
        self.schedule, self.inference = schedule, inference
        self.forward, self.backward, self.put_off, self.weight = (set[Unit]() for _ in range(4))
        self.received = {Payload.ACTIVATION: set[Unit](), Payload.GRADIENT: set[Unit]()}  # below the boundary
        self.waiting: deque[Unit] = deque()

    def problems(self, live_max: int | None) -> Iterator[Problem]:
        """What comes before what it needs, and ranks that hold too much; then what no rank does."""
        for rank, actions in enumerate(self.schedule.actions):
            live = 0
            self.waiting.clear()
            for index, action in enumerate(actions):
                for transfer in action.transfers if isinstance(action, Exchange) else ():
                    if text := self._transfer(transfer):
                        yield Problem(rank, index, action, text)
                for part in parts(action):
                    if text := self._part(part, rank):
                        yield Problem(rank, index, action, text)
                    live += 1 if isinstance(part, Forward) else 0 if isinstance(part, BackwardWeight) else -1
                    if live_max is not None and live > live_max and not self.inference:
                        text = f"holds {live} micro-batches, more than {live_max}"
                        yield Problem(rank, index, action, text)
        yield from self._unfinished()

    def _unfinished(self) -> Iterator[Problem]:
        schedule = self.schedule
        for unit in product(range(schedule.flows), range(schedule.stages), range(schedule.chunks)):
            flow, stage, chunk = unit
            missing = [
                *(["Forward"] if unit not in self.forward else []),
                *(["Backward"] if unit not in self.backward and not self.inference else []),
                *(
                    ["BackwardWeight after its BackwardInput"]
                    if unit in self.put_off and unit not in self.weight
                    else []
                ),
            ]
            for what in missing:
                text = f"no {what} of flow {flow}, stage {stage}, micro-batch {chunk}"
                yield Problem(schedule.owner(flow, stage), -1, None, text)

    def _transfer(self, transfer: Transfer) -> str | None:
        below = (transfer.flow, transfer.boundary, transfer.chunk)
        if not isinstance(transfer, Send):
            self.received[transfer.payload].add(below)
            return None
        above = (transfer.flow, transfer.boundary + 1, transfer.chunk)
        made = below in self.forward if transfer.payload is Payload.ACTIVATION else above in self.backward
        return None if made else f"{_named(transfer)} before the task that makes it"

    def _part(self, part: Part, rank: int) -> str | None:
        unit = (part.flow, part.stage, part.chunk)
        if isinstance(part, Forward):
            return self._forward(part, rank, unit)
        if self.inference:
            return f"{label(part)} has no place in inference"
        if isinstance(part, BackwardWeight):
            return self._weight(part, unit)
        return self._backward(part, rank, unit)

    def _forward(self, part: Forward, rank: int, unit: Unit) -> str | None:
        if unit in self.forward:
            return f"{label(part)} is done twice"
        self.forward.add(unit)
        if part.stage:
            below = (part.flow, part.stage - 1, part.chunk)
            local = self.schedule.owner(part.flow, part.stage - 1) == rank
            if below not in (self.forward if local else self.received[Payload.ACTIVATION]):
                source = "no Forward" if local else "no Receive"
                return f"{label(part)} before its input: {source} of it comes earlier"
        return None

    def _backward(self, part: Backward | BackwardInput, rank: int, unit: Unit) -> str | None:
        again = unit in self.backward
        self.backward.add(unit)
        if isinstance(part, BackwardInput):
            self.put_off.add(unit)
            self.waiting.append(unit)
        if again:
            return f"{label(part)}: its gradients are made twice"
        if unit not in self.forward:
            return f"{label(part)} before its Forward"
        if part.stage < self.schedule.stages - 1:
            local = self.schedule.owner(part.flow, part.stage + 1) == rank
            above = (part.flow, part.stage + 1, part.chunk)
            if not (above in self.backward if local else unit in self.received[Payload.GRADIENT]):
                source = "no backward" if local else "no Receive"
                return f"{label(part)} before its gradient: {source} of it comes earlier"
        return None

    def _weight(self, part: BackwardWeight, unit: Unit) -> str | None:
        again = unit in self.weight
        self.weight.add(unit)
        if again:
            return f"{label(part)} is done twice"
        if unit not in self.put_off:
            return f"{label(part)} before its BackwardInput"
        if self.waiting.popleft() != unit:
            return f"{label(part)} is not the oldest that was put off"
        return None


class _Crossing(NamedTuple):
    key: tuple[Payload, int, int, int]
    position: int
    transfer: Transfer


def _unpaired(schedule: Schedule) -> list[Problem]:
    """C4."""
    links: dict[tuple[int, int], tuple[list[_Crossing], list[_Crossing]]] = {}
    for rank, actions in enumerate(schedule.actions):
        for index, action in enumerate(actions):
            for each in action.transfers if isinstance(action, Exchange) else ():
                sends = isinstance(each, Send)
                ends = links.setdefault((rank, each.peer) if sends else (each.peer, rank), ([], []))
                key = (each.payload, each.flow, each.boundary, each.chunk)
                ends[0 if sends else 1].append(_Crossing(key, index, each))
    return [
        problem
        for link, (sent, received) in sorted(links.items())
        for problem in _unpaired_on(schedule, link, sent, received)
    ]


def _unpaired_on(
    schedule: Schedule,
    link: tuple[int, int],
    sent: Sequence[_Crossing],
    received: Sequence[_Crossing],
) -> list[Problem]:
    source, target = link
    if [each.key for each in sent] == [each.key for each in received]:
        keys = {each.key for each in sent}
        if len(keys) == len(sent):
            return []
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
    if problems:
        return problems
    here, there = next((a, b) for a, b in zip(sent, received, strict=True) if a.key != b.key)
    text = (
        f"expects {_named(there.transfer)}, but rank {source} sends {_named(here.transfer)} first, in its "
        f"action {here.position} {label(schedule.actions[source][here.position])}"
    )
    return [Problem(target, there.position, schedule.actions[target][there.position], text)]


def waiting_for_ever(schedule: Schedule) -> list[Problem]:
    """C5: ranks that never leave an Exchange, if each of its transfers ends when both ends have begun it.

    A rank that finishes under this rule also finishes where Sends do not wait.
    """
    exchanges = [
        [(index, action) for index, action in enumerate(actions) if isinstance(action, Exchange)]
        for actions in schedule.actions
    ]
    at = [0] * schedule.ranks
    begun: set[_End] = set()
    waiting: dict[_End, list[tuple[int, Transfer]]] = {}
    ready = list(range(schedule.ranks))
    while ready:
        rank = ready.pop()
        while at[rank] < len(exchanges[rank]):
            _, exchange = exchanges[rank][at[rank]]
            ends = {_end(each) for each in exchange.transfers}
            begun |= ends
            ready += [rank for end in ends & waiting.keys() for rank, _ in waiting.pop(end)]
            missing = next((each for each in exchange.transfers if _other_end(each) not in begun), None)
            if missing is not None:
                waiting.setdefault(_other_end(missing), []).append((rank, missing))
                break
            at[rank] += 1
    return [
        Problem(rank, *exchanges[rank][at[rank]], f"waits for ever for {_named(transfer)}")
        for rank, transfer in sorted(itertools.chain(*waiting.values()), key=lambda each: each[0])
    ]


_End = tuple[bool, Payload, int, int, int]
"""One end of a transfer: whether the Send, and what crosses."""


def _end(transfer: Transfer) -> _End:
    sends = isinstance(transfer, Send)
    return sends, transfer.payload, transfer.flow, transfer.boundary, transfer.chunk


def _other_end(transfer: Transfer) -> _End:
    sends, payload, flow, boundary, chunk = _end(transfer)
    return not sends, payload, flow, boundary, chunk


def _named(transfer: Transfer) -> str:
    verb = "Send" if isinstance(transfer, Send) else "Receive"
    preposition = "to" if isinstance(transfer, Send) else "from"
    return (
        f"the {verb} of {transfer.payload.value} {transfer.chunk} of flow {transfer.flow} across boundary "
        f"{transfer.boundary} {preposition} rank {transfer.peer}"
    )


__all__ = ["Problem", "find_problems", "waiting_for_ever"]
