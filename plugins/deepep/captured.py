"""Normal mode of which the host counts nothing, so that it can be captured in a CUDA graph: where kernels wait.

    dispatch with `num_worst_tokens`    rows are as many as that says, whatever comes
    cached dispatch, and combine        by a handle that says how many rows any rank has at most

A rank publishes its rows in its own region, where those take them that they are for; what is whose is counted by
kernels, from what the sources have written. Where the region does not hold all rows, their columns are cut into pieces,
and a call takes a turn for each: sums stay whole, and the number of turns depends on nothing that only one rank knows.

    region in a turn    [ heads | numbers of tokens ]   in a dispatch's first turn
                        [ piece of column 0 | piece of column 1 | … ]   rows_max rows each, 64-byte aligned

    G1  A turn writes the region when all others have taken what the turn before has brought. Counts of signals are kept
        on the device, so a graph may be replayed as often as one likes, by all ranks alike.
    G2  Nothing here reads a tensor's values on the host.
    G3  Calls that the host counts use the same memory, and are kept apart from these.
    G4  More tokens than rows, and ranks that dispatch with other sizes, are an error: the next call raises it.

The steps of a call are generators, which pause where a rank would wait for others.
"""

import zlib
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, TypeVar

import torch
from torch import Tensor

from ..kernels.errors import BadArgument
from . import moves
from .exchange import ALIGNMENT
from .failure import RanksDisagree
from .layout import local_experts
from .normal import Received, SizedHandle, Tokens
from .transport.device import DeviceTransport

READY: Final = 16
DONE: Final = 17
FENCE: Final = 18
HEAD: Final = 2
"""Words before the counts: tokens, and the call's shape."""
WORD: Final = 4
"""Bytes of a count."""

Result = TypeVar("Result")
Steps = Generator[None, None, Result]


@dataclass(frozen=True)
class Piece:
    """A part of a column's rows: `length` bytes from `first` on, and where the region has them."""

    column: int
    first: int
    length: int
    at: int


class Captured:
    """Dispatch and combine among all ranks of a transport, through the first `num_bytes` of each region."""

    def __init__(self, transport: DeviceTransport, *, num_bytes: int) -> None:
        assert transport.spins, "kernels wait, the host does not"
        self.transport = transport
        self.me, self.ranks = transport.rank, transport.size
        self._num_bytes = num_bytes
        self._peers = transport.addresses()
        self._nobody = torch.zeros(self.ranks, dtype=torch.int32, device=transport.device)
        self._problem = torch.zeros(1, dtype=torch.int64, pin_memory=transport.device.type == "cuda")
        self._is_used = False

    def dispatch(
        self, tokens: Tokens, member: Tensor, *, num_experts: int, channels: int, rows: int
    ) -> Received:
        """As `normal.dispatch`. expert_counts are of nobody."""
        self.begin()
        return finish(
            self.dispatch_steps(tokens, member, num_experts=num_experts, channels=channels, rows=rows)
        )

    def cached_dispatch(self, tokens: Tokens, handle: SizedHandle) -> Tokens:
        """As `normal.cached_dispatch`."""
        self.begin()
        return finish(self.cached_dispatch_steps(tokens, handle))

    def combine(self, columns: Sequence[Tensor], handle: SizedHandle, bias: Sequence[Tensor]) -> list[Tensor]:
        """As `normal.combine`; columns have at least the rows that the handle's dispatch has made."""
        self.begin()
        return finish(self.combine_steps(columns, handle, bias))

    def holds(self, columns: Sequence[Tensor], rows: int, *, channels: int = 0) -> bool:
        """Whether the memory is enough for these columns of so many rows; `channels`: of a dispatch."""
        try:
            self._pieces(columns, rows, start=self._heads_bytes(rows, channels) if channels else 0)
        except BadArgument:
            return False
        return True

    def begin(self) -> None:
        """Before one of these calls. Raises, for one before: PeerTimeout, RanksDisagree, BadArgument."""
        self.transport.check()
        self.check()
        if not self._is_used:
            self._is_used = True
            finish(self.fence_steps())

    @contextmanager
    def apart(self) -> Iterator[None]:
        """A call that the host counts is inside."""
        if self._is_used:
            finish(self.fence_steps())
        yield
        if self._is_used:
            finish(self.fence_steps())

    # Steps.

    def dispatch_steps(
        self, tokens: Tokens, member: Tensor, *, num_experts: int, channels: int, rows: int
    ) -> Steps[Received]:
        """See `dispatch`."""
        from . import launch

        count, columns = len(member), tokens.columns()
        if count > rows:
            raise BadArgument(
                f"num_worst_tokens is {rows}, and this rank has {count} tokens: it must be what any rank may have, "
                "sent or received"
            )
        width = self._head_width(channels)
        numbers_at = _aligned(width * WORD)
        turns = self._pieces(columns, rows, start=self._heads_bytes(rows, channels))
        before = member.cumsum(0, dtype=torch.int32)
        numbers = torch.where(member, before - 1, -1)
        out = [each.new_empty((rows, *each.shape[1:])) for each in columns]
        source_rows = torch.full((rows,), -1, dtype=torch.int32, device=member.device)
        shape = _shape(columns, rows, channels)
        sent, own_channels = _heads(before, count, channels, shape)
        for turn, pieces in enumerate(turns):
            self._wait_for_room("dispatch")
            if turn == 0:
                self._own(0, width, torch.int32).copy_(sent)
                self._own(numbers_at, numbers.numel(), torch.int32).copy_(numbers.flatten())
            self._publish(columns, pieces)
            yield from self._others_have_published("dispatch")
            if turn == 0:
                heads = launch.heads(self._peers, 0, width)
                prefix = heads[:, HEAD : HEAD + self.ranks].cumsum(0, dtype=torch.int32)
                ends = prefix[:, self.me].contiguous()
                problem = {"shape": shape, "problem": self._problem.data_ptr()}
                launch.place(source_rows, heads, ends, self._peers, numbers_at, **problem, rank=self.me)
            self._fetch(out, source_rows, ends, pieces, rows)
            yield from self._done()
        channel_ends = heads[:, HEAD + self.ranks :].view(self.ranks, self.ranks, channels)[:, self.me]
        starts = torch.cat([torch.zeros_like(channel_ends[:, :1]), channel_ends[:, :-1]], 1)
        handle = SizedHandle(prefix, own_channels, starts, source_rows, member, numbers)
        handle.rows_max = rows
        found = self._finished(tokens.like(out), ends, num_experts // self.ranks)
        return Received(found, [], handle)

    def cached_dispatch_steps(self, tokens: Tokens, handle: SizedHandle) -> Steps[Tokens]:
        """See `cached_dispatch`."""
        columns, rows = tokens.columns(), handle.rows_max
        out = [each.new_empty((len(handle.recv_src_idx), *each.shape[1:])) for each in columns]
        ends = handle.rank_prefix_matrix[:, self.me].contiguous()
        for pieces in self._pieces(columns, rows, start=0):
            self._wait_for_room("cached dispatch")
            self._publish(columns, pieces)
            yield from self._others_have_published("cached dispatch")
            self._fetch(out, handle.recv_src_idx, ends, pieces, rows)
            yield from self._done()
        return tokens.like(out)

    def combine_steps(
        self, columns: Sequence[Tensor], handle: SizedHandle, bias: Sequence[Tensor]
    ) -> Steps[list[Tensor]]:
        """See `combine`."""
        rows = handle.rows_max
        columns = [each[:rows] for each in columns]
        prefix, numbers = handle.rank_prefix_matrix, handle.send_head
        begins = prefix[self.me - 1] if self.me else torch.zeros_like(prefix[0])
        places = numbers + begins
        places = torch.where((numbers >= 0) & (places < rows), places, -1).int()
        count = prefix[-1, self.me].clone()
        out = [each.new_empty((len(numbers), *each.shape[1:])) for each in columns]
        for pieces in self._pieces(columns, rows, start=0):
            self._wait_for_room("combine")
            self._publish(columns, pieces, limit=count)
            yield from self._others_have_published("combine")
            self._reduce(out, places, pieces, bias)
            yield from self._done()
        return out

    def fence_steps(self) -> Steps[None]:
        """All ranks have ended, on their streams, what they were told before."""
        self.transport.signal_all(FENCE, self._nobody)
        yield
        self.transport.wait_all(FENCE, self._nobody, what="calls before this one", less=0, drop=False)

    def check(self) -> None:
        """Raises: BadArgument, if a dispatch before had more tokens than rows; RanksDisagree."""
        found = int(self._problem[0])
        if found < 0:
            error = RanksDisagree(
                f"rank {-1 - found} has called it with other sizes; all ranks must give the same hidden size, types, "
                "top-k, num_worst_tokens and num_sms", rank=self.me, phase="dispatch", peer=-1 - found,
            )  # fmt: skip
            self.transport.fail(error)
            raise error
        if found:
            self._problem.zero_()
            raise BadArgument(
                f"{found} tokens have come to rank {self.me} by a dispatch before this call, more than its "
                "num_worst_tokens: those beyond are lost"
            )

    # A turn.

    def _wait_for_room(self, call: str) -> None:
        what = f"{call}: memory that is still in use"
        self.transport.wait_all(DONE, self._nobody, what=what, less=1, drop=False)

    def _others_have_published(self, call: str) -> Steps[None]:
        self.transport.signal_all(READY, self._nobody)
        yield
        self.transport.wait_all(READY, self._nobody, what=f"{call}: tokens", less=0, drop=False)

    def _done(self) -> Steps[None]:
        self.transport.signal_all(DONE, self._nobody)
        yield

    def _publish(
        self, columns: Sequence[Tensor], pieces: Sequence[Piece], limit: Tensor | None = None
    ) -> None:
        from . import launch

        for piece in pieces if len(columns[0]) else ():
            source = _part(columns[piece.column], piece)
            room = self._own(piece.at, source.numel(), source.dtype)
            launch.publish(room.view(source.shape), source, limit)

    def _fetch(
        self, out: Sequence[Tensor], source_rows: Tensor, ends: Tensor, pieces: Sequence[Piece], rows_max: int
    ) -> None:
        from . import launch

        for piece in pieces if len(source_rows) else ():
            into = _part(out[piece.column], piece)
            launch.fetch(into, source_rows, ends, self._peers, piece.at, tokens_max=rows_max)

    def _reduce(
        self, out: Sequence[Tensor], places: Tensor, pieces: Sequence[Piece], bias: Sequence[Tensor]
    ) -> None:
        from . import launch

        for piece in pieces if len(places) else ():
            whole = out[piece.column]
            size = whole.element_size()
            part = slice(piece.first // size, (piece.first + piece.length) // size)
            added = [] if piece.column else [each[:, part] for each in bias]
            launch.reduce_at(whole[:, part], self._peers + piece.at, places, added)

    def _finished(self, tokens: Tokens, ends: Tensor, local: int) -> Tokens:
        """Expert numbers as this rank counts them, weights of its own alone; rows without a token have -1 and 0."""
        idx, weights = tokens.topk_idx, tokens.topk_weights
        if idx is None or weights is None:
            return tokens
        is_there = torch.arange(len(idx), device=idx.device) < ends[-1]
        idx = local_experts(torch.where(is_there.unsqueeze(1), idx, -1), self.me, local)
        return Tokens(tokens.x, tokens.scales, idx, torch.where(idx >= 0, weights, 0.0))

    def _head_width(self, channels: int) -> int:
        return HEAD + self.ranks * (1 + channels)

    def _heads_bytes(self, rows: int, channels: int) -> int:
        """Of heads, and of the numbers of `rows` tokens."""
        return _aligned(self._head_width(channels) * WORD) + _aligned(rows * self.ranks * WORD)

    def _own(self, at: int, count: int, dtype: torch.dtype) -> Tensor:
        region = self.transport.buffer(self.me)
        return region[at : at + count * dtype.itemsize].view(dtype)

    def _pieces(self, columns: Sequence[Tensor], rows: int, *, start: int) -> list[list[Piece]]:
        widths = tuple(each.shape[1] * each.element_size() for each in columns)
        return _cut(widths, rows, start, self._num_bytes)


@lru_cache(maxsize=256)
def _cut(widths: tuple[int, ...], rows: int, start: int, num_bytes: int) -> list[list[Piece]]:
    """Columns of so many bytes a row, in as few turns as the region allows. Every turn has all of `start` free."""
    units = [width & -width if width % 16 else 16 for width in widths]
    most = max(width // unit for width, unit in zip(widths, units, strict=True))
    for turns in range(1, most + 1):
        lengths = [-(-width // unit // turns) * unit for width, unit in zip(widths, units, strict=True)]
        if start + sum(_aligned(rows * each) for each in lengths) <= num_bytes:
            return [_pieces_of_turn(turn, widths, lengths, rows, start) for turn in range(turns)]
    least = start + sum(_aligned(rows * each) for each in units)
    raise BadArgument(f"the buffer has {num_bytes} bytes; {rows} rows of this call need {least}")


def _pieces_of_turn(
    turn: int, widths: Sequence[int], lengths: Sequence[int], rows: int, start: int
) -> list[Piece]:
    pieces, at = [], start
    for column, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        first = turn * length
        if first < width:
            pieces.append(Piece(column, first, min(length, width - first), at))
            at += _aligned(rows * length)
    return pieces


def _heads(before: Tensor, tokens: int, channels: int, shape: int) -> tuple[Tensor, Tensor]:
    """What a source tells: tokens, the call's shape, tokens for each rank, those up to each channel's end (R, C)."""
    device, none = before.device, before.new_zeros(1, before.shape[1])
    ends = torch.arange(1, channels + 1, device=device) * -(-tokens // channels)
    sums = torch.cat([none, before])
    by_channel = sums[ends.clamp(max=tokens)].T.contiguous()
    words = [torch.full((1,), each, dtype=torch.int32, device=device) for each in (tokens, shape)]
    return torch.cat([*words, sums[-1], by_channel.flatten()]), by_channel


def _shape(columns: Sequence[Tensor], rows: int, channels: int) -> int:
    """A number that differs between calls that cannot go together."""
    facts = ([(str(each.dtype), each.shape[1]) for each in columns], rows, channels)
    return zlib.crc32(repr(facts).encode()) & 0x7FFFFFFF


def _part(column: Tensor, piece: Piece) -> Tensor:
    words = moves.words(column)
    size = words.element_size()
    return words[:, piece.first // size : (piece.first + piece.length) // size]


def _aligned(count: int) -> int:
    return -(-count // ALIGNMENT) * ALIGNMENT


def finish(steps: Steps[Result]) -> Result:
    """Goes on wherever a call pauses: kernels wait, not the host."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


__all__ = ["Captured", "finish"]
