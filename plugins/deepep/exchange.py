"""Rows of one set of ranks to another and back, over a transport's memory, in turns.

`deliver` brings each row to the ranks that its membership names; `collect` brings rows back and sums them. Both take as
many turns as the memory asks for: a turn carries the rows of so many tokens of every rank, and all ranks take the same
number of turns.

Where regions are mapped, a rank puts its rows into its own region, once, and each receiver takes what is for it: one
copy to publish and one to take, however many ranks a token goes to. Over messages a rank packs a segment for each
receiver. Either way facts and counts come with the first rows, so that a small call is one round trip.

    half of a region   [ segment of rank 0 | segment of rank 1 | … ]   where regions are mapped, one: the owner's
    segment            [ notes | column 0 | column 1 | … ]             rows of one length; each begins 64-byte aligned

    E1  Turn n writes half n % 2, after every receiver has told that it has read turn n - 2.
    E2  The facts of all ranks are equal, or all of them raise RanksDisagree after one turn, and the next call works.
    E3  Rows arrive ordered by (source, row of the source). Sums are made in float32, in the order of ranks: neither
        depends on the number of turns or on the transport.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Final, TypeAlias

import torch
from torch import Tensor

from ..kernels.errors import BadArgument, refuse
from . import moves
from .failure import REASON_MAX, CommunicationError, RanksDisagree, decode
from .moves import Rows
from .notes import NOTE_BYTES, Fact, Notes
from .results import Results
from .transport.interface import Span, Transport

READY, DONE = 0, 1
SLOTS_EACH: Final = 2
"""That one exchange uses."""
ALIGNMENT: Final = 64
DISAGREEMENT: Final = "disagreement"

Runs: TypeAlias = list[tuple[int, int]]
"""Where rows that come in order belong: first output row and number of rows, piece by piece."""


@dataclass(frozen=True)
class Delivery:
    """What came, ordered by (source, row of the source) unless `runs` said otherwise.

    matrix (n, n): rows from each source (first index) to each rank, on the CPU. columns: as sent, (N, …) each.
    source_rows (N,) int32: the row's number at its source. extras: the extra words of each source.
    """

    matrix: Tensor
    columns: list[Tensor]
    source_rows: Tensor
    extras: list[list[int]]
    tokens: list[int]
    """How many each source had."""


@dataclass(frozen=True)
class _Plan:
    """How a call's columns lie in a segment, and how many tokens of each rank one turn carries."""

    columns: Sequence[Tensor]
    starts: Sequence[int]
    widths: Sequence[int]
    """Bytes of a row of each column."""
    turn_tokens: int

    def turns(self, tokens: int) -> int:
        return -(-tokens // self.turn_tokens)

    def tokens(self, turn: int, tokens: int) -> tuple[int, int]:
        first, last = (min(step * self.turn_tokens, tokens) for step in (turn, turn + 1))
        return first, last


NOTHING: Final = _Plan([], [], [], 1)


class _Places:
    """Hands out the places of rows that come in order."""

    def __init__(self, runs: Runs) -> None:
        self._runs = list(runs)

    def next(self, count: int) -> Iterator[tuple[int, int]]:
        while count:
            start, length = self._runs.pop(0)
            used = min(length, count)
            if used < length:
                self._runs.insert(0, (start + used, length - used))
            count -= used
            if used:
                yield start, used


class Exchange:
    """Moves rows between `ranks` of a transport, through `num_bytes` of each region from `start` on."""

    def __init__(
        self, transport: Transport, ranks: Sequence[int], *, start: int, num_bytes: int, slot: int
    ) -> None:
        self.transport = transport
        self.ranks = list(ranks)
        self.size = len(self.ranks)
        self.me = self.ranks.index(transport.rank)
        self._others = [(self.me + step) % self.size for step in range(1, self.size)]
        self._mapped = all(transport.maps(each) for each in ranks)
        self._start = start
        self._half_bytes = num_bytes // 2 // ALIGNMENT * ALIGNMENT
        self._segment_bytes = self._half_bytes // (1 if self._mapped else self.size) // ALIGNMENT * ALIGNMENT
        self._slot = slot
        self._turn = 0
        self._results = Results()

    def deliver(  # noqa: PLR0913 (most have defaults)
        self,
        facts: Mapping[str, Fact],
        columns: Sequence[Tensor],
        member: Tensor,
        *,
        extra: Sequence[int] = (),
        runs: Callable[[Tensor, list[list[int]]], list[Runs]] | None = None,
        rows: int | None = None,
        phase: str,
    ) -> Delivery:
        """Each row to the ranks that `member` (T, n) names.

        `columns`: contiguous (T, …) tensors, of the same dtypes and row shapes on all ranks. `runs`: where the rows of
        each source go, given the matrix and all extras; by default one source after the other. `rows`: output rows,
        if there shall be more than arrive; what is in the others is undefined.
        """
        tokens = len(member)
        # Who takes from mapped memory sees itself which rows are for it; a packed segment has to say which it holds.
        numbers = torch.arange(tokens, dtype=torch.int32, device=member.device)
        plan = self._plan([*columns, member if self._mapped else numbers], rows_per_token=1)
        totals = member.sum(0).tolist()
        result: Delivery | None = None
        places: list[_Places] = []
        turn, turns = 0, 1
        with self._all_or_nothing(phase):
            while turn < turns:
                first, last = plan.tokens(turn, tokens)
                parts: list[Rows] = [slice(first, last)] * self.size
                if not self._mapped:
                    parts = [torch.nonzero(each).view(-1) + first for each in member[first:last].unbind(1)]
                counts = [moves.length(each) for each in parts]
                notes = Notes(self._turn + 1, tokens, plan.turns(tokens), totals, counts, list(extra), facts)
                seen = self._swap(plan, parts, notes, phase=phase, at=[0] * self.size, once=self._mapped)
                if result is None:
                    turns = max(each.turns for each in seen)
                    result = self._room(seen, columns, numbers, rows)
                    chosen = (runs or self._in_turn)(result.matrix, result.extras)
                    places = [_Places(each) for each in chosen]
                for source in [self.me, *self._others]:
                    self._take(source, seen[source], plan, turn, member, result, places[source])
                self._end_turn()
                turn += 1
        assert result is not None, "there is at least one turn"
        if rows is not None and rows < (count := int(result.matrix[:, self.me].sum())):
            refuse("num_worst_tokens", rows, f"{count} tokens have come to rank {self.transport.rank}")
        return result

    def collect(  # noqa: PLR0913 (most have defaults)
        self,
        facts: Mapping[str, Fact],
        columns: Sequence[Tensor],
        member: Tensor,
        *,
        matrix: Tensor,
        source_rows: Tensor,
        order: Tensor | None = None,
        bias: Sequence[Tensor] = (),
        phase: str,
    ) -> list[Tensor]:
        """Rows that were delivered go back, and are summed for each token that was sent.

        `matrix` and `source_rows` are the delivery's, `member` (T, n) what was given to it. `order`: which row of
        `columns` answers each delivered row; by default they are in its order. `bias`: is added to column 0.
        """
        tokens = len(member)
        plan = self._plan(columns, rows_per_token=self.size if self._mapped else 1)
        lengths = matrix[:, self.me].tolist()
        results = [self._results.empty((tokens, *each.shape[1:]), each) for each in columns]
        turn, turns = 0, 1
        with self._all_or_nothing(phase):
            while turn < turns:
                parts = _answers(
                    source_rows, lengths, order, turn * plan.turn_tokens, (turn + 1) * plan.turn_tokens
                )
                counts = [moves.length(each) for each in parts]
                at = self._one_after_another(counts) if self._mapped else [0] * self.size
                notes = Notes(self._turn + 1, tokens, plan.turns(tokens), at, counts, [], facts)
                seen = self._swap(plan, parts, notes, phase=phase, at=at)
                turns = max(each.turns for each in seen)
                first, last = plan.tokens(turn, tokens)
                for column, result in enumerate(results):
                    rows = [self._answer(each, seen[each], plan, column, parts) for each in range(self.size)]
                    added = [] if column else [each[first:last] for each in bias]
                    moves.reduce(result[first:last], rows, member[first:last], bias=added)
                self._end_turn()
                turn += 1
        return results

    def disagree(self, error: RanksDisagree, *, phase: str) -> None:
        """Tells what was found elsewhere to ranks that wait for this one here. Raises: it, on all of them."""
        self._swap(NOTHING, self._no_rows(), self._dissent(error), phase=phase, at=[0] * self.size)

    def refuse(self, error: RanksDisagree) -> None:
        """Lets the call that the others make here end with this error. It counts as a call of this rank too.

        It waits for the others only where they have not answered the call before the last one. Where a transport needs
        all ranks, nothing is told.
        """
        if not self.transport.signals_alone:
            return
        with suppress(CommunicationError):  # this rank has an error of its own to raise
            self._wait_for_room(error.phase)
            notes = self._dissent(error)
            self._turn += 1
            self._show(NOTHING, self._no_rows(), notes, at=[0] * self.size, once=False)
            self._end_turn()

    # -- a turn --

    def _swap(  # noqa: PLR0913 (what a turn has)
        self,
        plan: _Plan,
        parts: Sequence[Rows],
        notes: Notes,
        *,
        phase: str,
        at: Sequence[int],
        once: bool = False,
    ) -> list[Notes]:
        """Shows each rank its rows, and returns what all ranks have noted.

        `at`: where a rank's rows begin in the columns; `once`: they are the same for all.
        """
        self._wait_for_room(phase)
        self._turn += 1
        self._show(plan, parts, notes, at=at, once=once)
        return self._agree(
            [notes if each == self.me else self._read(each, phase) for each in range(self.size)], phase
        )

    def _wait_for_room(self, phase: str) -> None:
        """For the next turn."""
        for peer in self._others if self._turn >= 2 else ():
            self.transport.wait(
                self.ranks[peer], self._slot + DONE, self._turn - 1, what=f"{phase}: waiting for room"
            )

    def _show(
        self, plan: _Plan, parts: Sequence[Rows], notes: Notes, *, at: Sequence[int], once: bool
    ) -> None:
        data = torch.frombuffer(notes.encode(), dtype=torch.uint8).to(self.transport.device)
        start = self._segment(self.me)
        for number, peer in enumerate(self._others):
            home = self.transport.buffer(self.ranks[self.me if self._mapped else peer])
            if number == 0 or not self._mapped:
                home[start : start + len(data)] = data
            for column, tensor in enumerate(plan.columns if number == 0 or not once else ()):
                room = self._view(home, self.me, plan, column, at[peer], notes.here[peer])
                moves.take(room, tensor, parts[peer])
        for peer in self._others:
            count = notes.here[peer]
            spans: list[Span] = [(start, len(data))]
            spans += [
                (start + begin, count * width) for begin, width in zip(plan.starts, plan.widths, strict=True)
            ]
            self.transport.signal(self.ranks[peer], self._slot + READY, self._turn, spans=spans)

    def _no_rows(self) -> list[Rows]:
        return [slice(0, 0)] * self.size

    def _dissent(self, error: RanksDisagree) -> Notes:
        none, facts = [0] * self.size, {DISAGREEMENT: error.encode().decode()}
        return Notes(self._turn + 1, 0, 0, none, none, [], facts)

    def _end_turn(self) -> None:
        for peer in self._others:
            self.transport.signal(self.ranks[peer], self._slot + DONE, self._turn)

    def _read(self, source: int, phase: str) -> Notes:
        self.transport.wait(
            self.ranks[source], self._slot + READY, self._turn, what=f"{phase}: waiting for tokens"
        )
        start = self._segment(source)
        notes = Notes.decode(
            self._home_of(source)[start : start + NOTE_BYTES].cpu().numpy().data, ranks=self.size
        )
        assert notes.turn == self._turn, "what is read was written in this turn"
        return notes

    def _agree(self, seen: list[Notes], phase: str) -> list[Notes]:
        """Raises: RanksDisagree, on all ranks alike."""
        told = next((each.facts[DISAGREEMENT] for each in seen if DISAGREEMENT in each.facts), None)
        if told is not None:
            self._end_turn()
            raise decode(str(told).encode())
        first = seen[0].facts
        for rank, notes in enumerate(seen):
            for name in {**first, **notes.facts} if notes.facts != first else ():
                mine, other = first.get(name, "nothing"), notes.facts.get(name, "nothing")
                if mine != other:
                    self._end_turn()
                    raise RanksDisagree(
                        f"rank {self.ranks[0]} has {name} = {mine}, rank {self.ranks[rank]} has {other}; "
                        "all ranks must give the same",
                        rank=self.transport.rank, phase=phase, peer=self.ranks[rank],
                    )  # fmt: skip
        return seen

    def _take(  # noqa: PLR0913 (one source's part in a turn)
        self,
        source: int,
        notes: Notes,
        plan: _Plan,
        turn: int,
        member: Tensor,
        result: Delivery,
        places: _Places,
    ) -> None:
        """What one source has for this rank in this turn, to its place."""
        first, last = plan.tokens(turn, notes.tokens)
        home, columns = self._home_of(source), plan.columns
        rows: Rows = slice(0, notes.here[self.me])
        if source != self.me:
            columns = [
                self._view(home, source, plan, each, 0, notes.here[self.me]) for each in range(len(columns))
            ]
        if source == self.me:
            found = torch.nonzero(member[first:last, self.me]).view(-1) + first
            rows, numbers = found, found.int()
        elif self._mapped:
            found = torch.nonzero(columns[-1][:, self.me]).view(-1)
            rows, numbers = found, (found + first).int()
        else:
            numbers = columns[-1]
        at = 0
        for start, count in places.next(moves.length(rows)):
            piece = moves.part(rows, at, count)
            for out, column in zip(result.columns, columns, strict=False):
                moves.take(out[start : start + count], column, piece)
            result.source_rows[start : start + count] = numbers[at : at + count]
            at += count

    def _answer(self, rank: int, notes: Notes, plan: _Plan, column: int, parts: Sequence[Rows]) -> Tensor:
        """What one rank has for the tokens of this rank in this turn."""
        if rank == self.me:
            return plan.columns[column][parts[rank]]
        return self._view(self._home_of(rank), rank, plan, column, notes.totals[self.me], notes.here[self.me])

    # -- places --

    def _plan(self, columns: Sequence[Tensor], *, rows_per_token: int) -> _Plan:
        widths = [_row_bytes(each) for each in columns]
        token_bytes = sum(widths) * rows_per_token
        lost = NOTE_BYTES + ALIGNMENT * len(columns)
        tokens = (self._segment_bytes - lost) // token_bytes
        if tokens < 1:
            least = 2 * (lost + token_bytes + ALIGNMENT) * (1 if self._mapped else self.size)
            raise BadArgument(
                f"the buffer has {2 * self._half_bytes} bytes for this call; one token of it needs {least}"
            )
        starts, at = [], NOTE_BYTES
        for width in widths:
            starts.append(at)
            at += -(-tokens * rows_per_token * width // ALIGNMENT) * ALIGNMENT
        return _Plan(columns, starts, widths, tokens)

    def _segment(self, owner: int) -> int:
        return (
            self._start
            + self._turn % 2 * self._half_bytes
            + (0 if self._mapped else owner * self._segment_bytes)
        )

    def _home_of(self, source: int) -> Tensor:
        """The region in which the rows of a source are read."""
        return self.transport.buffer(self.ranks[source] if self._mapped else self.transport.rank)

    def _view(  # noqa: PLR0913 (a place)
        self, home: Tensor, owner: int, plan: _Plan, column: int, at: int, count: int
    ) -> Tensor:
        like, width = plan.columns[column], plan.widths[column]
        start = self._segment(owner) + plan.starts[column] + at * width
        return home[start : start + count * width].view(like.dtype).view(count, *like.shape[1:])

    def _room(
        self, seen: Sequence[Notes], columns: Sequence[Tensor], numbers: Tensor, rows: int | None
    ) -> Delivery:
        matrix = torch.tensor([each.totals for each in seen], dtype=torch.int64)
        count = max(int(matrix[:, self.me].sum()), rows or 0)
        return Delivery(
            matrix,
            [self._results.empty((count, *each.shape[1:]), each) for each in columns],
            numbers.new_empty(count),
            [each.extra for each in seen],
            [each.tokens for each in seen],
        )

    def _in_turn(self, matrix: Tensor, extras: list[list[int]]) -> list[Runs]:  # noqa: ARG002
        counts = matrix[:, self.me].tolist()
        return [[each] for each in zip(_exclusive(counts), counts, strict=True)]

    def _one_after_another(self, counts: Sequence[int]) -> list[int]:
        return _exclusive([0 if each == self.me else count for each, count in enumerate(counts)])

    @contextmanager
    def _all_or_nothing(self, phase: str) -> Iterator[None]:
        """A rank that leaves a call in its middle cannot take part in another; the others learn why."""
        try:
            yield
        except CommunicationError:
            raise
        except BaseException as error:
            what = f"rank {self.transport.rank} has left the call: {type(error).__name__}: {error}"[
                :REASON_MAX
            ]
            rank = self.transport.rank
            self.transport.fail(CommunicationError(what, rank=rank, phase=phase, peer=rank))
            raise


def _answers(
    source_rows: Tensor, lengths: Sequence[int], order: Tensor | None, first: int, last: int
) -> list[Rows]:
    """Which rows answer the tokens `first` to `last` of each source."""
    tokens, answers = source_rows.cpu().numpy(), list[Rows]()
    for start, length in zip(_exclusive(lengths), lengths, strict=True):
        found = tokens[start : start + length].searchsorted((first, last))
        low, high = (start + each for each in found.tolist())
        answers.append(slice(low, high) if order is None else order[low:high])
    return answers


def _exclusive(counts: Sequence[int]) -> list[int]:
    sums = [0]
    for each in counts:
        sums.append(sums[-1] + each)
    return sums[:-1]


def _row_bytes(x: Tensor) -> int:
    return math.prod(x.shape[1:]) * x.element_size()


__all__ = ["SLOTS_EACH", "Delivery", "Exchange", "Runs"]
