"""Prove that a schedule works before anything runs, or name the rank and action where it goes wrong.

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

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import product
from typing import NamedTuple

from .schedule import (
    LETTERS,
    Action,
    Backward,
    BackwardInput,
    BackwardWeight,
    Exchange,
    Forward,
    Overlap,
    Part,
    Payload,
    Receive,
    Schedule,
    Send,
    Transfer,
    label,
    parts,
    run_ranks,
    transfers,
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
    problems = list(_out_of_order(schedule, live_max=live_chunks_max, inference=inference))
    problems += _unpaired(schedule)
    return problems or find_deadlocks(schedule)


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
    for transfer in transfers([action]):
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


Fact = tuple[str, int, int, int]
"""(what, flow, stage or boundary, chunk): what is a letter of `LETTERS`, or a payload that was received."""


def _makes(each: Part | Transfer) -> tuple[Fact, ...]:
    """Return the facts that a task or a transfer makes; both kinds of backward make the gradient of the input."""
    match each:
        case Send():
            return ()
        case Receive(payload, flow, boundary, chunk):
            return ((payload.value, flow, boundary, chunk),)
        case BackwardInput(_, flow, stage, chunk):
            return (("B", flow, stage, chunk), ("I", flow, stage, chunk))
        case _:
            return ((LETTERS[type(each)], each.flow, each.stage, each.chunk),)


def _needs(schedule: Schedule, rank: int, each: Part | Transfer) -> Iterator[tuple[Fact, str]]:
    """Yield the facts that must hold before it, and their names in a message."""
    flow, chunk = each.flow, each.chunk

    def made(stage: int, task: str, what: str, boundary: int, payload: Payload) -> tuple[Fact, str]:
        if schedule.owner(flow, stage) == rank:
            name = "Forward" if task == "F" else "backward"
            return (task, flow, stage, chunk), f"{what}: no {name} of it comes earlier"
        return (payload.value, flow, boundary, chunk), f"{what}: no Receive of it comes earlier"

    match each:
        case Send(payload, _, boundary):
            task = ("F", flow, boundary) if payload is Payload.ACTIVATION else ("B", flow, boundary + 1)
            yield (*task, chunk), "the task that makes it"
        case Forward(_, _, stage) if stage:
            yield made(stage - 1, "F", "its input", stage - 1, Payload.ACTIVATION)
        case Backward(_, _, stage) | BackwardInput(_, _, stage):
            yield ("F", flow, stage, chunk), "its Forward"
            if stage < schedule.stages - 1:
                yield made(stage + 1, "B", "its gradient", stage, Payload.GRADIENT)
        case BackwardWeight(_, _, stage):
            yield ("I", flow, stage, chunk), "its BackwardInput"


def _out_of_order(schedule: Schedule, *, live_max: int | None, inference: bool) -> Iterator[Problem]:
    """C2, C3 and C6."""
    known: set[Fact] = set()
    for rank, actions in enumerate(schedule.actions):
        put_off: deque[Fact] = deque()
        live = 0
        for index, action in enumerate(actions):
            for each in (*transfers([action]), *parts(action)):
                if text := _problem(schedule, rank, each, known, put_off, inference=inference):
                    yield Problem(rank, index, action, text)
                known.update(_makes(each))
            for part in parts(action):
                live += 1 if isinstance(part, Forward) else 0 if isinstance(part, BackwardWeight) else -1
                if live_max is not None and live > live_max and not inference:
                    yield Problem(rank, index, action, f"holds {live} micro-batches, more than {live_max}")
    for flow, stage, chunk in product(range(schedule.flows), range(schedule.stages), range(schedule.chunks)):
        done = {what for what in "FBIW" if (what, flow, stage, chunk) in known}
        missing = {"F": "Forward"} if inference else {"F": "Forward", "B": "Backward"}
        if "I" in done:
            missing["W"] = "BackwardWeight after its BackwardInput"
        for what in missing.keys() - done:
            text = f"no {missing[what]} of flow {flow}, stage {stage}, micro-batch {chunk}"
            yield Problem(schedule.owner(flow, stage), -1, None, text)


def _problem(  # noqa: PLR0913 (a step, and what is known before it)
    schedule: Schedule,
    rank: int,
    each: Part | Transfer,
    known: set[Fact],
    put_off: deque[Fact],
    *,
    inference: bool,
) -> str | None:
    """Return what is wrong with one task or transfer, after all before it."""
    if isinstance(each, BackwardInput):
        put_off.append(_makes(each)[1])
    if isinstance(each, Send | Receive):
        name = _named(each)
    else:
        name = label(each)
        if inference and not isinstance(each, Forward):
            return f"{name} has no place in inference"
        if _makes(each)[0] in known:
            return f"{name} is done twice"
    for fact, words in _needs(schedule, rank, each):
        if fact not in known:
            return f"{name} before {words}"
    if isinstance(each, BackwardWeight) and put_off.popleft()[1:] != _makes(each)[0][1:]:
        return f"{name} is not the oldest that was put off"
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
            for each in transfers([action]):
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
    schedule: Schedule, link: tuple[int, int], sent: Sequence[_Crossing], received: Sequence[_Crossing]
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


def find_deadlocks(schedule: Schedule) -> list[Problem]:
    """C5: ranks that never leave an Exchange, if each of its transfers ends when both ends have begun it.

    A rank that finishes under this rule also finishes where Sends do not wait.
    """
    programs = [
        [(index, action, begins) for index, action in enumerate(actions) for begins in (True, False)]
        for actions in schedule.actions
    ]

    def ends(step: tuple[int, Action, bool], *, others: bool) -> Iterator[_End]:
        for each in transfers([step[1]]):
            yield isinstance(each, Send) != others, each.payload, each.flow, each.boundary, each.chunk

    stuck = run_ranks(
        programs,
        needs=lambda step: () if step[2] else ends(step, others=True),
        makes=lambda step: ends(step, others=False) if step[2] else (),
    )
    problems = []
    for rank, (position, missing) in sorted(stuck.items()):
        index, action, _ = programs[rank][position]
        waits = next(
            each
            for each in transfers([action])
            if missing in ends((index, Exchange((each,)), True), others=True)
        )
        problems.append(Problem(rank, index, action, f"deadlock: waits for {_named(waits)}"))
    return problems


_End = tuple[bool, Payload, int, int, int]
"""One end of a transfer: whether the Send, and what crosses."""


def _named(transfer: Transfer) -> str:
    verb = "Send" if isinstance(transfer, Send) else "Receive"
    preposition = "to" if isinstance(transfer, Send) else "from"
    return (
        f"the {verb} of {transfer.payload.value} {transfer.chunk} of flow {transfer.flow} across boundary "
        f"{transfer.boundary} {preposition} rank {transfer.peer}"
    )


__all__ = ["Problem", "find_deadlocks", "find_problems"]
