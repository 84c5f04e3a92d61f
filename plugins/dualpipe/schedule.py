"""What each rank of a pipeline does in one training step, as data.

A `Schedule` holds one tuple of actions for each rank. There are two sorts of actions:

    tasks      Forward, Backward, BackwardInput, BackwardWeight, Overlap: work on one micro-batch
    exchanges  Exchange: Sends and Receives that start together and are all waited for

A rank does its actions one after the other. `dualpipe` and `dualpipev` make the two schedules of DualPipe
(DeepSeek, 2025); any other schedule can be written in the same words (`Builder` keeps the books).

Words:
    stage   a part of the model, numbered from the input on
    module  a stage as one rank holds it: its index in that rank's list of modules
    flow    a stream of micro-batches with its own copy of the stages. DualPipe has two: flow 0 enters at rank
            0, flow 1 at the last rank. Other schedules have one
    chunk   a micro-batch, counted from 0 in its flow. (flow, chunk) names it in the whole step
    boundary  the line between stage `boundary` and stage `boundary + 1`. Activations of a chunk cross it upwards,
            gradients downwards

Invariants, which `tests/plugins/dualpipe/test_schedule.py` checks and every schedule made here has:
    I1  each (flow, stage, chunk) has one Forward and either one Backward, or one BackwardInput and then one
        BackwardWeight
    I2  the Sends of one rank to another are, in their order, the Receives of that other rank from it. So a
        transport that only matches by order cannot swap two messages
    I3  BackwardWeight takes the oldest put-off chunk of its rank, whichever module it belongs to
    I4  a task comes after the Receive of all it needs from another rank, and a Send after the task that made it

Nothing here imports torch or does I/O.
"""

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from enum import StrEnum
from functools import cached_property, lru_cache
from typing import Final, TypeVar

RANKS_MAX: Final = 4096
"""More is surely a mistake in an argument, and would build millions of objects."""

CHUNKS_MAX: Final = 65536
"""As RANKS_MAX."""


class Payload(StrEnum):
    """What crosses a boundary."""

    ACTIVATION = "activation"
    GRADIENT = "gradient"


@dataclass(frozen=True, slots=True)
class _Part:
    module: int
    flow: int
    stage: int
    chunk: int


class Forward(_Part):
    """Run one stage on one micro-batch, and the criterion after it if it is the last stage."""

    __slots__ = ()


class Backward(_Part):
    """Gradients of one stage for one micro-batch, for inputs and weights."""

    __slots__ = ()


class BackwardInput(_Part):
    """Gradients for the inputs only; those for the weights are put off until the BackwardWeight."""

    __slots__ = ()


class BackwardWeight(_Part):
    """The weight gradients that a BackwardInput put off."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Overlap:
    """A Forward and the Backward of another micro-batch whose computing and communication may interleave."""

    forward: Forward
    backward: Backward


@dataclass(frozen=True, slots=True)
class _Transfer:
    payload: Payload
    flow: int
    boundary: int
    chunk: int
    peer: int


class Send(_Transfer):
    """Hand what crosses `boundary` to rank `peer`."""

    __slots__ = ()


class Receive(_Transfer):
    """Take what crosses `boundary` from rank `peer`."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Exchange:
    """Start all transfers at once, in this order, then wait until all have ended."""

    transfers: tuple[Send | Receive, ...]


Part = Forward | Backward | BackwardInput | BackwardWeight
"""A task that is not a pair."""
Task = Part | Overlap
Transfer = Send | Receive
Action = Task | Exchange


@dataclass(frozen=True, slots=True)
class Place:
    """What one module of a rank is: a stage in one flow."""

    flow: int
    stage: int


@dataclass(frozen=True)
class Schedule:
    """The actions of all ranks in one step."""

    name: str
    stages: int
    """Stages of the model; each flow passes all of them."""
    flows: int
    chunks: int
    """Micro-batches of each flow."""
    places: tuple[tuple[Place, ...], ...]
    """places[rank][module]"""
    actions: tuple[tuple[Action, ...], ...]
    """actions[rank]"""

    @property
    def ranks(self) -> int:
        """The number of processes."""
        return len(self.places)

    @property
    def micro_batches(self) -> int:
        """Micro-batches of the whole step, all flows together: the `num_chunks` of `step`."""
        return self.flows * self.chunks

    @cached_property
    def owners(self) -> dict[tuple[int, int], int]:
        """The rank that holds each (flow, stage)."""
        return _owners(self.places)

    def owner(self, flow: int, stage: int) -> int:
        """The rank that holds a stage of a flow."""
        return self.owners[flow, stage]

    def forward_only(self) -> "Schedule":
        """The same schedule without any gradient: what inference runs."""
        return replace(
            self,
            name=f"{self.name} (forward only)",
            actions=tuple(tuple(_forward_actions(each)) for each in self.actions),
        )


@lru_cache(maxsize=64)
def _owners(places: tuple[tuple[Place, ...], ...]) -> dict[tuple[int, int], int]:
    return {(place.flow, place.stage): rank for rank, held in enumerate(places) for place in held}


def parts(action: Action) -> tuple[Part, ...]:
    """The tasks inside an action: two for an Overlap, none for an Exchange."""
    match action:
        case Exchange():
            return ()
        case Overlap(forward, backward):
            return (forward, backward)
        case _:
            return (action,)


def transfers(actions: Iterable[Action]) -> Iterator[Transfer]:
    """All Sends and Receives of one rank in their order."""
    for action in actions:
        if isinstance(action, Exchange):
            yield from action.transfers


LETTERS: Final = {Forward: "F", Backward: "B", BackwardInput: "I", BackwardWeight: "W"}


def label(action: Action) -> str:
    """A short name: `F0:3` is the Forward of module 0 on chunk 3, `F0:3|B1:2` an Overlap.

    I and W stand for BackwardInput and BackwardWeight; `>1 a0:3` sends the activation of flow 0, chunk 3 to rank
    1 and `<1 g0:3` receives a gradient from it.
    """
    match action:
        case Overlap(forward, backward):
            return f"{label(forward)}|{label(backward)}"
        case Exchange(group):
            return "[" + ", ".join(_transfer_label(each) for each in group) + "]"
        case _:
            return f"{LETTERS[type(action)]}{action.module}:{action.chunk}"


def _transfer_label(transfer: Transfer) -> str:
    arrow = ">" if isinstance(transfer, Send) else "<"
    return f"{arrow}{transfer.peer} {transfer.payload.value[0]}{transfer.flow}:{transfer.chunk}"


Item = TypeVar("Item")
Made = TypeVar("Made", bound=Hashable)


def run_ranks(
    programs: Sequence[Sequence[Item]],
    *,
    needs: Callable[[Item], Iterable[Made]],
    makes: Callable[[Item], Iterable[Made]],
    run: Callable[[int, Item], None] = lambda _rank, _item: None,
) -> dict[int, tuple[int, Made]]:
    """Take each rank through its program as far as what it needs has been made, calling `run` for each item.

    Returns for each rank that does not come to its end where it stands and what it waits for. Ranks are deterministic:
    the order in which they are tried changes nothing.
    """
    made: set[Made] = set()
    at = [0] * len(programs)
    waiting: dict[Made, list[int]] = {}
    ready = list(range(len(programs)))
    while ready:
        rank = ready.pop()
        for item in programs[rank][at[rank] :]:
            missing = next((each for each in needs(item) if each not in made), None)
            if missing is not None:
                waiting.setdefault(missing, []).append(rank)
                break
            at[rank] += 1
            run(rank, item)
            for each in makes(item):
                made.add(each)
                ready += waiting.pop(each, [])
    return {rank: (at[rank], each) for each, ranks in waiting.items() for rank in ranks}


_Counted = TypeVar("_Counted", Forward, Backward, BackwardInput)


@dataclass
class Builder:
    """Collects the actions of one rank, with the transfers that its tasks need.

    Transfers wait in a queue; the next task (or `finish`) puts all of them before itself as one Exchange. Chunks
    are taken in the order of their numbers in each module.
    """

    places: tuple[tuple[Place, ...], ...]
    rank: int
    stages: int
    actions: list[Action] = field(default_factory=list)
    _queue: list[Transfer] = field(default_factory=list)
    _counts: dict[tuple[object, int], int] = field(default_factory=dict)
    _put_off: deque[BackwardInput] = field(default_factory=deque)
    _owner: dict[tuple[int, int], int] = field(init=False)

    def __post_init__(self) -> None:
        self._owner = _owners(
            self.places
        )  # once: hashing all places for each transfer would be most of the cost

    def forward(self, module: int, *, receive: bool = True, send: bool = True) -> None:
        """One Forward; `receive` and `send` say if its transfers are queued here or by the caller."""
        if receive:
            self.receive_activation(module)
        self._flush()
        self.actions.append(self._task(Forward, module))
        if send:
            self.send_activation(module)

    def backward(self, module: int, *, put_off: bool = False, send: bool = True) -> None:
        """One Backward, or a BackwardInput whose weight gradients are put off."""
        self.receive_gradient(module)
        self._flush()
        if put_off:
            self._put_off.append(self._task(BackwardInput, module))
            self.actions.append(self._put_off[-1])
        else:
            self.actions.append(self._task(Backward, module))
        if send:
            self.send_gradient(module)

    def weight(self) -> None:
        """The oldest weight gradient that was put off."""
        assert self._put_off, "a BackwardWeight without a BackwardInput before it"
        self._flush()
        oldest = self._put_off.popleft()
        self.actions.append(BackwardWeight(oldest.module, oldest.flow, oldest.stage, oldest.chunk))

    def overlap(self, forward: int, backward: int, *, receive_forward: bool = True) -> None:
        """A Forward of one module with the Backward of another."""
        if receive_forward:
            self.receive_activation(forward)
        self.receive_gradient(backward)
        self._flush()
        self.actions.append(Overlap(self._task(Forward, forward), self._task(Backward, backward)))
        self.send_activation(forward)
        self.send_gradient(backward)

    def receive_activation(self, module: int) -> None:
        """Queue the next Receive of a module's input, if another rank makes it."""
        self._transfer(Receive, Payload.ACTIVATION, module, other=-1)

    def receive_gradient(self, module: int) -> None:
        """Queue the next Receive of a gradient of a module's output, if another rank makes it."""
        self._transfer(Receive, Payload.GRADIENT, module, other=1)

    def send_activation(self, module: int) -> None:
        """Queue the next Send of a module's output, if another rank needs it."""
        self._transfer(Send, Payload.ACTIVATION, module, other=1)

    def send_gradient(self, module: int) -> None:
        """Queue the next Send of a gradient of a module's input, if another rank needs it."""
        self._transfer(Send, Payload.GRADIENT, module, other=-1)

    def finish(self) -> tuple[Action, ...]:
        """The actions, with the last transfers."""
        assert not self._put_off, "weight gradients were put off and never done"
        self._flush()
        return tuple(self.actions)

    def _flush(self) -> None:
        if self._queue:
            self.actions.append(Exchange(tuple(self._queue)))
            self._queue.clear()

    def _task(self, kind: type[_Counted], module: int) -> _Counted:
        place = self.places[self.rank][module]
        count = self._next("forward" if kind is Forward else "backward", module)
        return kind(module, place.flow, place.stage, count)

    def _transfer(self, kind: type[Send | Receive], payload: Payload, module: int, *, other: int) -> None:
        """Queue a transfer with the stage above (other = 1) or below (-1), if another rank has it."""
        place = self.places[self.rank][module]
        peer = self._owner.get((place.flow, place.stage + other), self.rank)
        if peer != self.rank:
            boundary = min(place.stage, place.stage + other)
            chunk = self._next((kind, payload), module)
            self._queue.append(kind(payload, place.flow, boundary, chunk, peer))

    def _next(self, what: object, module: int) -> int:
        count = self._counts.get((what, module), 0)
        self._counts[what, module] = count + 1
        return count


def dualpipe(ranks: int, chunks: int) -> Schedule:
    """The bidirectional schedule: two copies of each stage, fed from both ends.

    `chunks` counts the micro-batches of both flows together. Rank r holds stage r in flow 0 (module 0) and
    stage ranks-1-r in flow 1 (module 1).
    Raises: ValueError if ranks is odd or not positive, or chunks is odd or less than twice the ranks.
    Source: DeepSeek-V3 technical report, section 3.2.1.
    """
    _check_sizes("dualpipe", ranks, chunks)
    if ranks % 2:
        raise ValueError(f"dualpipe needs an even number of ranks, not {ranks}; dualpipev takes any number")
    if chunks % 2:
        raise ValueError(
            f"dualpipe needs an even number of chunks, half of them for each direction, not {chunks}"
        )
    places = tuple((Place(0, rank), Place(1, ranks - 1 - rank)) for rank in range(ranks))

    def build(rank: int) -> tuple[Action, ...]:
        builder = Builder(places, rank, stages=ranks)
        upper = rank >= ranks // 2
        half = _Half(
            builder,
            depth=min(rank, ranks - 1 - rank),
            half=ranks // 2,
            first=int(upper),
            second=int(not upper),
        )
        return half.build(chunks // 2)

    return Schedule("dualpipe", ranks, 2, chunks // 2, places, tuple(build(rank) for rank in range(ranks)))


def dualpipev(ranks: int, chunks: int) -> Schedule:
    """The V-shaped schedule, DualPipe cut in half: one copy of each stage, two stages a rank.

    Rank r holds stage r (module 0) and stage 2*ranks-1-r (module 1); the last rank hands the output of its first
    module to its second inside the process.
    Raises: ValueError if ranks is not positive or chunks is less than twice the ranks.
    Source: Sea AI Lab, "Cut-in-half" (2025).
    """
    _check_sizes("dualpipev", ranks, chunks)
    places = tuple((Place(0, rank), Place(0, 2 * ranks - 1 - rank)) for rank in range(ranks))

    def build(rank: int) -> tuple[Action, ...]:
        builder = Builder(places, rank, stages=2 * ranks)
        return _Half(builder, depth=rank, half=ranks, first=0, second=1).build(chunks)

    return Schedule("dualpipev", 2 * ranks, 1, chunks, places, tuple(build(rank) for rank in range(ranks)))


def _check_sizes(name: str, ranks: int, chunks: int) -> None:
    """Raises: TypeError or ValueError for numbers that no schedule has."""
    for what, value, limit in (("ranks", ranks, RANKS_MAX), ("chunks", chunks, CHUNKS_MAX)):
        if isinstance(value, bool) or not isinstance(value, int):
            raise TypeError(f"{name}: {what} must be an int, not {value!r}")
        if not 1 <= value <= limit:
            raise ValueError(f"{name}: {what} must be from 1 to {limit}, not {value}")
    if chunks < 2 * ranks:
        raise ValueError(
            f"{name} on {ranks} ranks needs at least {2 * ranks} chunks (twice the ranks), not {chunks}"
        )


@dataclass(frozen=True)
class _Half:
    """One rank of the half pipeline that DualPipe and DualPipeV share.

    `depth` counts ranks from the end where chunks of module `first` enter; the rank at depth `half - 1` is in
    the middle, where DualPipe's halves (or V's legs) meet.
    """

    builder: Builder
    depth: int
    half: int
    first: int
    second: int

    @property
    def inner(self) -> int:
        """The number of ranks between this one and the middle."""
        return self.half - 1 - self.depth

    @property
    def middle(self) -> bool:
        return self.inner == 0

    def build(self, chunks: int) -> tuple[Action, ...]:
        """All actions for `chunks` micro-batches in each module."""
        self._fill()
        self._both_forward()
        self._early_backward()
        self._steady(chunks - 2 * self.half + self.depth + 1)
        self._last_pairs()
        self._drain()
        self._weights()
        return self.builder.finish()

    def _fill(self) -> None:
        for _ in range(2 * self.inner):
            self.builder.forward(self.first)

    def _both_forward(self) -> None:
        """Forwards of both modules. The Receive of the next chunk goes before the Send of this one.

        A middle rank sends at once, for its neighbour waits for just this, and keeps its last Send until the first
        task of the steady part.
        """
        builder, turns = self.builder, self.depth + 1
        builder.receive_activation(self.first)
        for turn in range(turns):
            builder.forward(self.first, receive=False, send=self.middle)
            builder.receive_activation(self.first)
            builder.forward(self.second, send=not self.middle or turn < turns - 1)
            if not self.middle:
                builder.send_activation(self.first)

    def _early_backward(self) -> None:
        builder = self.builder
        for _ in range(self.inner):
            builder.backward(self.second, put_off=True)
            builder.receive_activation(self.second)
            builder.weight()
            builder.forward(self.second, receive=False)

    def _steady(self, turns: int) -> None:
        for turn in range(turns):
            if turn == 0 and self.middle:
                self._first_pair_apart()
            else:
                self.builder.overlap(self.first, self.second, receive_forward=turn > 0)
            self.builder.overlap(self.second, self.first)

    def _first_pair_apart(self) -> None:
        """The first pair of a middle rank, one after the other: its neighbour gets the activation earlier."""
        builder = self.builder
        builder.forward(self.first, receive=False, send=False)
        builder.send_activation(self.second)
        builder.backward(self.second, send=False)
        builder.send_activation(self.first)
        builder.send_gradient(self.second)

    def _last_pairs(self) -> None:
        for _ in range(self.inner):
            self.builder.backward(self.second)
            self.builder.overlap(self.second, self.first)

    def _drain(self) -> None:
        """Backwards of both modules; weight gradients of the later half of them are put off."""
        turns = self.depth + 1
        for index in range(2 * turns):
            module = self.first if index % 2 else self.second
            self.builder.backward(module, put_off=index >= turns)

    def _weights(self) -> None:
        for _ in range(self.inner):
            self.builder.weight()
            self.builder.backward(self.first, put_off=True)
        for _ in range(self.depth + 1):
            self.builder.weight()


def _forward_actions(actions: Iterable[Action]) -> Iterator[Action]:
    for action in actions:
        match action:
            case Exchange(group):
                kept = tuple(each for each in group if each.payload is Payload.ACTIVATION)
                if kept:
                    yield Exchange(kept)
            case Forward():
                yield action
            case Overlap(forward, _):
                yield forward
            case _:
                pass


MAKERS: Final[dict[str, Callable[[int, int], Schedule]]] = {"dualpipe": dualpipe, "dualpipev": dualpipev}
"""The schedules that the runtime executes, by name."""

__all__ = [
    "CHUNKS_MAX", "LETTERS", "MAKERS", "RANKS_MAX", "Action", "Backward", "BackwardInput", "BackwardWeight",
    "Builder", "Exchange", "Forward", "Overlap", "Part", "Payload", "Place", "Receive", "Schedule", "Send", "Task",
    "Transfer", "dualpipe", "dualpipev", "label", "parts", "run_ranks", "transfers",
]  # fmt: skip
