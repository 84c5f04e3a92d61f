"""Event simulation: the actions of all ranks against one another, with times but without tensors.

`run` is the one model of waiting that the verifier and the simulator share. Each rank does its actions in order. What
a transfer makes a rank wait for is the `Transport`:

    BACKGROUND   transfers need no Exchange: they start when the data exist, and a task waits only for its own input
    BUFFERED     as scheduled; an Exchange waits for what it receives
    RENDEZVOUS   as scheduled; an Exchange also waits until its Sends are received, and a Send starts only then

Messages are matched by what they carry. On each directed link between two ranks one transfer follows another; links do
not slow one another down, and transfers do not slow tasks down. If ranks can never go on, `Deadlock` names them.
"""

from collections.abc import Callable, Iterator, Sequence
from enum import StrEnum
from typing import Final, NamedTuple

from .schedule import (
    Action,
    BackwardWeight,
    Exchange,
    Forward,
    Payload,
    Receive,
    Schedule,
    Send,
    Task,
    Transfer,
    label,
    parts,
)

WAITS_SHOWN_MAX: Final = 8
"""Ranks named in the message of a Deadlock: more would not be read."""


class Transport(StrEnum):
    """What transfers make a rank wait for."""

    BACKGROUND = "background"
    BUFFERED = "buffered"
    RENDEZVOUS = "rendezvous"


class Wait(NamedTuple):
    """A rank that cannot go on: its action waits for a transfer that never ends."""

    rank: int
    position: int
    action: Action
    transfer: Transfer

    def __str__(self) -> str:
        what = label(Exchange((self.transfer,)))
        return f"rank {self.rank} waits in action {self.position} {label(self.action)} for {what}"


class Deadlock(ValueError):
    """Ranks of a schedule wait for one another, or for what is never sent or received."""

    def __init__(self, schedule: Schedule, waits: Sequence[Wait]) -> None:
        self.waits = tuple(waits)
        circle = _circle(self.waits)
        shown = circle or self.waits
        chain = ", ".join(str(each) for each in shown[:WAITS_SHOWN_MAX])
        rest = f" and {len(shown) - WAITS_SHOWN_MAX} more" if len(shown) > WAITS_SHOWN_MAX else ""
        super().__init__(f"{schedule.name} stops{' in a circle' if circle else ''}: {chain}{rest}")


def run(
    schedule: Schedule,
    transport: Transport,
    *,
    duration: Callable[[Task], float] = lambda _: 0.0,
    crossing: Sequence[float] = (),
) -> list[list[tuple[float, Task]]]:
    """When each task of each rank starts.

    `duration` tells how long a task takes, `crossing[boundary]` a transfer (nothing if empty).
    Raises: Deadlock.
    """
    program = _background(schedule) if transport is Transport.BACKGROUND else _as_scheduled(schedule)
    simulation = _EventSim(schedule, program, crossing or [0.0] * schedule.stages, duration)
    simulation.rendezvous = transport is Transport.RENDEZVOUS
    simulation.run()
    waits = simulation.waits()
    if waits:
        raise Deadlock(schedule, waits)
    return simulation.starts


_Crossings = Sequence[tuple[int, int]]
"""Transfers as (key, link): what crosses, and between which ranks."""

_Step = tuple[int, Task | None, _Crossings, _Crossings]
"""The place of the action in its rank, and a task, or what is sent and received."""


def _key(schedule: Schedule, payload: Payload, flow: int, boundary: int, chunk: int) -> int:
    """A number for what crosses a boundary, dense from 0."""
    kind = flow if payload is Payload.ACTIVATION else schedule.flows + flow
    return (kind * schedule.stages + boundary) * schedule.chunks + chunk


def _as_scheduled(schedule: Schedule) -> list[list[_Step]]:
    ranks, flows, stages, chunks = schedule.ranks, schedule.flows, schedule.stages, schedule.chunks
    activation, program = Payload.ACTIVATION, []
    for rank, actions in enumerate(schedule.actions):
        steps: list[_Step] = []
        for index, action in enumerate(actions):
            if not isinstance(action, Exchange):
                steps.append((index, action, (), ()))
                continue
            sends: list[tuple[int, int]] = []
            receives: list[tuple[int, int]] = []
            for each in action.transfers:
                kind = each.flow if each.payload is activation else flows + each.flow
                key = (kind * stages + each.boundary) * chunks + each.chunk  # _key, for speed
                if isinstance(each, Send):
                    sends.append((key, rank * ranks + each.peer))
                else:
                    receives.append((key, each.peer * ranks + rank))
            steps.append((index, None, sends, receives))
        program.append(steps)
    return program


def _background(schedule: Schedule) -> list[list[_Step]]:
    """Tasks alone, each between what it waits for and what it lets go."""
    return [
        [
            step
            for index, action in enumerate(actions)
            if not isinstance(action, Exchange)
            for step in _surrounded(schedule, rank, index, action)
        ]
        for rank, actions in enumerate(schedule.actions)
    ]


def _surrounded(schedule: Schedule, rank: int, index: int, task: Task) -> Iterator[_Step]:
    sends: list[tuple[int, int]] = []
    receives: list[tuple[int, int]] = []
    for part in parts(task):
        if isinstance(part, BackwardWeight):
            continue
        upwards = isinstance(part, Forward)
        payload = Payload.ACTIVATION if upwards else Payload.GRADIENT
        source, target = (-1, 1) if upwards else (1, -1)
        for offset, found in ((source, receives), (target, sends)):
            stage = part.stage + offset
            peer = schedule.owner(part.flow, stage) if 0 <= stage < schedule.stages else rank
            if peer != rank:
                key = _key(schedule, payload, part.flow, min(stage, part.stage), part.chunk)
                first, second = (peer, rank) if found is receives else (rank, peer)
                found.append((key, first * schedule.ranks + second))
    if receives:
        yield index, None, (), receives
    yield index, task, (), ()
    if sends:
        yield index, None, sends, ()


class _EventSim:
    """All ranks, and what is on its way between them."""

    rendezvous = False

    def __init__(
        self,
        schedule: Schedule,
        program: list[list[_Step]],
        crossing: Sequence[float],
        duration: Callable[[Task], float],
    ) -> None:
        self.schedule, self.program, self.duration = schedule, program, duration
        count = 2 * schedule.flows * schedule.stages * schedule.chunks
        self.crossing = [crossing[key // schedule.chunks % schedule.stages] for key in range(count)]
        self.sent: list[float | None] = [None] * count
        self.taken: list[float | None] = [None] * count
        self.arrived: list[float | None] = [None] * count
        self.free = [0.0] * schedule.ranks**2
        self.clocks = [0.0] * schedule.ranks
        self.places = [0] * schedule.ranks
        self.posted = [-1] * schedule.ranks
        self.sleepers: dict[int, int] = {}
        self.starts: list[list[tuple[float, Task]]] = [[] for _ in program]

    def run(self) -> None:
        """Goes on until nobody can."""
        self.ready = list(range(len(self.program)))
        while self.ready:
            self._go_on(self.ready.pop())

    def waits(self) -> list[Wait]:
        """Who has not ended, and what for."""
        found = []
        for key, rank in self.sleepers.items():
            step = self.program[rank][self.places[rank]]
            index = step[0]
            found.append(Wait(rank, index, self.schedule.actions[rank][index], self._transfer(step, key)))
        return sorted(found, key=lambda wait: wait.rank)

    def _go_on(self, rank: int) -> None:
        steps, starts, now, place = (
            self.program[rank],
            self.starts[rank],
            self.clocks[rank],
            self.places[rank],
        )
        while place < len(steps):
            _, task, sends, receives = steps[place]
            if task is not None:
                starts.append((now, task))
                now += self.duration(task)
            else:
                if self.posted[rank] != place:
                    self.posted[rank] = place
                    self._post(now, sends, receives)
                end = self._end(rank, now, sends, receives)
                if end is None:
                    break
                now = end
            place += 1
        self.clocks[rank], self.places[rank] = now, place

    def _post(self, now: float, sends: _Crossings, receives: _Crossings) -> None:
        sent, taken, rendezvous = self.sent, self.taken, self.rendezvous
        for key, link in sends:
            sent[key] = now
            if not rendezvous or taken[key] is not None:
                self._transmit(key, link, max(now, taken[key] or now))
        if rendezvous:
            for key, link in receives:
                taken[key] = now
                if sent[key] is not None:
                    self._transmit(key, link, max(now, sent[key] or now))

    def _transmit(self, key: int, link: int, start: float) -> None:
        end = max(start, self.free[link]) + self.crossing[key]
        self.free[link] = self.arrived[key] = end
        sleeper = self.sleepers.pop(key, None)
        if sleeper is not None:
            self.ready.append(sleeper)

    def _end(self, rank: int, now: float, sends: _Crossings, receives: _Crossings) -> float | None:
        """When the transfers have ended; None if that is not known yet, and the rank is woken when more is."""
        arrived, end = self.arrived, now
        for group in (receives, sends) if self.rendezvous else (receives,):
            for key, _ in group:
                at = arrived[key]
                if at is None:
                    self.sleepers[key] = rank
                    return None
                end = max(end, at)
        return end

    def _transfer(self, step: _Step, key: int) -> Transfer:
        ranks, schedule = self.schedule.ranks, self.schedule
        rest, chunk = divmod(key, schedule.chunks)
        kind, boundary = divmod(rest, schedule.stages)
        payload = Payload.ACTIVATION if kind < schedule.flows else Payload.GRADIENT
        _, _, sends, receives = step
        for each, link in receives:
            if each == key:
                return Receive(payload, kind % schedule.flows, boundary, chunk, link // ranks)
        for each, link in sends:
            if each == key:
                return Send(payload, kind % schedule.flows, boundary, chunk, link % ranks)
        raise AssertionError("a rank waits for a transfer that is not in its step")


def _circle(waits: Sequence[Wait]) -> list[Wait]:
    """Ranks that wait for one another, from the lowest on; empty if somebody waits for a rank that has ended."""
    by_rank = {each.rank: each for each in waits}
    path: list[Wait] = []
    current = waits[0] if waits else None
    while current is not None and current not in path:
        path.append(current)
        current = by_rank.get(current.transfer.peer)
    if current is None:
        return []
    found = path[path.index(current) :]
    lowest = min(range(len(found)), key=lambda index: found[index].rank)
    return found[lowest:] + found[:lowest]


__all__ = ["Deadlock", "Transport", "Wait", "run"]
