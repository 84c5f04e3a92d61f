"""Dispatch and combine through regions that all ranks map.

A rank publishes its rows in its own region, and each receiver takes those that are for it: one copy out and one in,
however many ranks a token goes to. Where the region does not hold all rows, their columns are cut into pieces, and a
call takes a turn for each: sums stay whole, and the number of turns depends on nothing that only one rank knows.

    region in a turn    [ facts | heads | numbers of tokens ]   in the first turn of a dispatch
                        [ piece of column 0 | piece of column 1 | … ]   rows_max rows each, 64-byte aligned

    N1  A turn writes the region when all others have taken the rows of the turn before.
    N2  Rows arrive ordered by (source, token). Sums are made in float32, in the order of ranks, or in the caller's.
    N3  A dispatch with `rows`, and what follows by its handle, reads no tensor on the host where kernels wait: a CUDA
        graph can capture it, and all ranks replay it alike. Other dispatches read the counts of all ranks once.
    N4  On a CPU the facts of a call are equal on all ranks, or all of them raise RanksDisagree and the next call works.
        On a device this holds for dispatches that read counts; for others a difference, and more tokens than rows, is
        an error of the next call.

The steps of a call are generators, which pause where a rank would wait for others.
"""

import json
import zlib
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Concatenate, Final, ParamSpec, TypeVar

import torch
from torch import Tensor

from ...kernels.errors import BadArgument, refuse
from ...kernels.layers import layer_for
from ...kernels.quantize import align
from ..transport import segment_header
from ..transport.errors import REASON_MAX, CommunicationError, RanksDisagree
from ..transport.interface import Transport
from ..transport.segment_header import HEADER_BYTES, Fact
from . import layout
from .row_ops import RowOps, words_of
from .tokens import Handle, Received, Tokens

READY: Final = 0
DONE: Final = 1
HEAD: Final = 2
"""Words before the counts: tokens, and the call's shape."""
WORD: Final = 4
"""Bytes of a count."""
ALIGNMENT: Final = 64

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")
Steps = Generator[None, None, Result]


@dataclass(frozen=True)
class Piece:
    """A part of a column's rows: `length` bytes from `first` on, and where the region has them."""

    column: int
    first: int
    length: int
    at: int


def finish(steps: Steps[Result]) -> Result:
    """Run to the end, through every pause: flags wait."""
    while True:
        try:
            next(steps)
        except StopIteration as end:
            result: Result = end.value
            return result


def _whole(
    call: str, steps: Callable[Concatenate["MappedDispatcher", Arguments], Steps[Result]]
) -> Callable[Concatenate["MappedDispatcher", Arguments], Result]:
    """The method that runs all steps of a call."""

    def run(self: "MappedDispatcher", /, *args: Arguments.args, **options: Arguments.kwargs) -> Result:
        with self._all_or_nothing(call):
            return finish(steps(self, *args, **options))

    return run


class MappedDispatcher:
    """Dispatch and combine among all ranks of a transport, through the first `num_bytes` of each region.

    `facts` of a call: more that must be equal on all ranks.
    """

    def __init__(self, transport: Transport, *, num_bytes: int) -> None:
        assert 0 < num_bytes <= transport.num_bytes, "a part of each region"
        self.transport = transport
        self.me, self.ranks = transport.rank, transport.size
        self._num_bytes = num_bytes
        self._header_bytes = HEADER_BYTES if transport.compares else 0
        self._row_ops = RowOps(transport)
        self._peers = transport.addresses()
        self._problem = torch.zeros(1, dtype=torch.int64, pin_memory=transport.device.type == "cuda")

    def agree(self, facts: Mapping[str, Fact], call: str) -> None:
        """On a CPU, all ranks have come here with equal facts; a device compares nothing. Raises: RanksDisagree."""
        with self._all_or_nothing(call):
            finish(self._compare({"call": call, **facts}, call))

    def rows_of(self, handle: Handle) -> int:
        """How many rows must be given to combine; where the host does not know it, how many its results have."""
        if self.transport.device.type == "cpu":
            return int(handle.rank_prefix_matrix[-1, self.me])
        return len(handle.recv_src_idx)

    def refuse(self, error: Exception, call: str) -> None:
        """Report to the ranks that wait for this one that it has refused its arguments; not on a device."""
        if not self.transport.compares:
            return
        with suppress(CommunicationError):  # this rank has an error of its own to raise
            self._wait_for_room(call)
            self._write_facts(segment_header.refusal(error, rank=self.me, call=call))
            self._write_words(self._words([0, -1]))
            self.transport.signal_all(READY)
            self.transport.skip_wait(READY)
            self.transport.signal_all(DONE)

    def check(self) -> None:
        """Raise what a dispatch without counts has found: BadArgument, RanksDisagree; or PeerTimeout."""
        self.transport.check()
        found = int(self._problem[0])
        if found < 0:
            self._problem.zero_()
            raise RanksDisagree(
                f"rank {-1 - found} has called it with other sizes; all ranks must give the same hidden size, types, "
                "top-k, experts, num_worst_tokens and num_sms", rank=self.me, phase="dispatch", peer=-1 - found,
            )  # fmt: skip
        if found:
            self._problem.zero_()
            raise BadArgument(
                f"{found} tokens arrived at rank {self.me} by a dispatch before this call, more than its "
                "num_worst_tokens: those beyond are lost"
            )

    # Calls.

    def dispatch_steps(  # noqa: PLR0913, PLR0915 (what a dispatch has, one step after another)
        self, tokens: Tokens, member: Tensor, per_expert: Tensor, *, channels: int, num_sms: int,
        rows: int | None = None, reads_counts: bool | None = None, facts: Mapping[str, Fact] | None = None,
    ) -> Steps[Received]:  # fmt: skip
        """Send tokens to the ranks that member (T, R) names. per_expert (E,) int32: how many each expert has.

        `rows`: of the result, however many arrive; where kernels wait, the host then reads nothing, unless it
        `reads_counts`.
        """
        self.check()
        reads = rows is None or self.transport.compares if reads_counts is None else reads_counts
        assert reads or rows is not None, "the caller says how many rows there are, or the counts do"
        columns, count = tokens.columns(), len(member)
        facts = {"call": "dispatch", **(facts or {}), **tokens.facts(), "num_experts": len(per_expert),
                 "channels": channels}  # fmt: skip
        if not reads:
            facts["num_worst_tokens"] = str(rows)
        ops = self._ops(tokens.x, num_sms)
        numbers, own_channels = layout.heads(member, channels)
        words = self._words(
            [count, _shape(facts)], own_channels[:, -1], own_channels.flatten(), per_expert.to(member.device)
        )
        numbers_at = self._header_bytes + align(len(words) * WORD, ALIGNMENT)
        needed = numbers_at + count * self.ranks * WORD
        if needed > self._num_bytes:
            error = BadArgument(
                f"the buffer has {self._num_bytes} bytes; routes of {count} tokens need {needed}"
            )
            self.refuse(error, "dispatch")
            raise error
        turns: list[list[Piece]] = []
        if rows is not None and not reads:
            if count > rows:
                raise BadArgument(
                    f"num_worst_tokens is {rows}, and this rank has {count} tokens: it must be what any rank may "
                    "have, sent or received"
                )
            turns = self._pieces(columns, rows, start=numbers_at + align(rows * self.ranks * WORD, ALIGNMENT))
        self._wait_for_room("dispatch")
        self._write_facts(facts)
        self._write_words(words)
        self._own(numbers_at, numbers.numel(), torch.int32).copy_(numbers.flatten())
        if turns:
            self._publish(ops, columns, turns[0])
        yield from self._others_have_published("dispatch")
        heads = ops.heads(self._header_bytes, len(words))
        expert_counts: list[int] = []
        pairs = torch.empty(0)
        rows_max, arrived, room = rows or 0, -1, rows or 0
        if reads:
            known = heads.cpu()
            self.transport.check()  # before anything is computed from it
            yield from self._agree(known, facts, "dispatch")
            matrix = known[:, HEAD : HEAD + self.ranks].long()
            rows_max = max(int(known[:, 0].max()), int(matrix.sum(0).max()), 1)
            arrived = int(matrix[:, self.me].sum())
            room = max(arrived, room)
            experts = known[:, HEAD + self.ranks * (1 + channels) :].long().view(self.ranks, self.ranks, -1)
            expert_counts, pairs = experts[:, self.me].sum(0).tolist(), experts.sum(2)
        prefix = heads[:, HEAD : HEAD + self.ranks].cumsum(0, dtype=torch.int32)
        ends = prefix[:, self.me].contiguous()
        source_rows = torch.full((room,), -1, dtype=torch.int32, device=member.device)
        ops.place(source_rows, heads, ends, numbers_at, shape=_shape(facts), problem=self._problem.data_ptr())
        out = [each.new_empty(room, *each.shape[1:]) for each in columns]
        if turns:
            self._fetch(ops, out, source_rows, ends, turns[0], rows_max)
        yield from self._done()
        for pieces in turns[1:] or (self._pieces(columns, rows_max, start=0) if reads else ()):
            yield from self._bring(ops, columns, out, source_rows, ends, pieces, rows_max, "dispatch")
        channel_ends = heads[:, HEAD + self.ranks : HEAD + self.ranks * (1 + channels)]
        channel_ends = channel_ends.view(self.ranks, self.ranks, channels)[:, self.me]
        starts = torch.cat([torch.zeros_like(channel_ends[:, :1]), channel_ends[:, :-1]], 1)
        fields = (prefix, own_channels, starts, source_rows, member, numbers)
        found = self._finished(tokens.like(out), ends, arrived, len(per_expert) // self.ranks)
        if rows is not None and arrived > rows:
            refuse("num_worst_tokens", rows, f"{arrived} tokens arrived at rank {self.me}")
        return Received(found, expert_counts, Handle.of(fields, rows_max=rows_max, pairs=pairs))

    def cached_dispatch_steps(self, tokens: Tokens, handle: Handle, *, num_sms: int) -> Steps[Tokens]:
        """Send tokens where those of an earlier dispatch went."""
        self.check()
        columns, rows, call = tokens.columns(), handle.rows_max, "cached dispatch"
        ops = self._ops(tokens.x, num_sms)
        turns = self._pieces(columns, rows, start=0)
        yield from self._compare({"call": call, **tokens.facts()}, call)
        out = [each.new_empty(len(handle.recv_src_idx), *each.shape[1:]) for each in columns]
        ends = handle.rank_prefix_matrix[:, self.me].contiguous()
        for pieces in turns:
            yield from self._bring(ops, columns, out, handle.recv_src_idx, ends, pieces, rows, call)
        return tokens.like(out)

    def combine_steps(  # noqa: PLR0913 (most have defaults)
        self, columns: Sequence[Tensor], handle: Handle, bias: Sequence[Tensor], *, num_sms: int,
        order: tuple[Tensor, Tensor] | None = None, rows_max: int | None = None,
        facts: Mapping[str, Fact] | None = None,
    ) -> Steps[list[Tensor]]:  # fmt: skip
        """Sum rows, and weights if there are two columns, at the sources of their tokens, in the order of ranks.

        `order`: ranks and rows (T, P) of what is summed, -1 for nothing, if not all in turn. `rows_max`: the most rows
        that any rank gives, if these are not those of the dispatch.
        """
        self.check()
        prefix, numbers = handle.rank_prefix_matrix, handle.send_head
        limit = None
        if rows_max is None:
            rows_max, limit = handle.rows_max, prefix[-1, self.me].clone()
        columns = [each[:rows_max] for each in columns]
        ops = self._ops(columns[0], num_sms)
        turns = self._pieces(columns, rows_max, start=0)
        facts = {"call": "combine", **(facts or {}), "hidden size": columns[0].shape[1]}
        if len(columns) > 1:
            facts["topk_weights"] = f"of shape (tokens, {columns[1].shape[1]})"
        yield from self._compare(facts, "combine")
        if order is None:
            begins = prefix[self.me - 1] if self.me else torch.zeros_like(prefix[0])
            places = numbers + begins
            ranks, places = None, torch.where((numbers >= 0) & (places < rows_max), places, -1).int()
        else:
            ranks, places = order
        out = [each.new_empty(len(numbers), *each.shape[1:]) for each in columns]
        for pieces in turns:
            self._wait_for_room("combine")
            self._publish(ops, columns, pieces, limit=limit)
            yield from self._others_have_published("combine")
            for piece in pieces if len(places) else ():
                whole, begin, end = out[piece.column], piece.first, piece.first + piece.length
                part = slice(begin // whole.element_size(), end // whole.element_size())
                added = [] if piece.column else [each[:, part] for each in bias]
                ops.reduce(whole[:, part], piece.at, places, ranks, added, rows_max)
            yield from self._done()
        return out

    dispatch = _whole("dispatch", dispatch_steps)
    cached_dispatch = _whole("cached dispatch", cached_dispatch_steps)
    combine = _whole("combine", combine_steps)

    # A turn.

    def _bring(  # noqa: PLR0913 (one turn of a dispatch)
        self, ops: RowOps, columns: Sequence[Tensor], out: Sequence[Tensor], source_rows: Tensor, ends: Tensor,
        pieces: Sequence[Piece], rows_max: int, call: str,
    ) -> Steps[None]:  # fmt: skip
        self._wait_for_room(call)
        self._publish(ops, columns, pieces)
        yield from self._others_have_published(call)
        self._fetch(ops, out, source_rows, ends, pieces, rows_max)
        yield from self._done()

    def _wait_for_room(self, call: str) -> None:
        self.transport.wait_all(DONE, f"{call}: memory that is still in use", less=1)

    def _others_have_published(self, call: str) -> Steps[None]:
        self.transport.signal_all(READY)
        yield
        self.transport.wait_all(READY, f"{call}: tokens")

    def _done(self) -> Steps[None]:
        self.transport.signal_all(DONE)
        yield

    def _publish(
        self, ops: RowOps, columns: Sequence[Tensor], pieces: Sequence[Piece], limit: Tensor | None = None
    ) -> None:
        for piece in pieces:
            source = _part(columns[piece.column], piece)
            if source.numel():
                room = self._own(piece.at, source.numel(), source.dtype)
                ops.publish(room.view(source.shape), source, limit)

    def _fetch(  # noqa: PLR0913 (what a turn has)
        self, ops: RowOps, out: Sequence[Tensor], source_rows: Tensor, ends: Tensor, pieces: Sequence[Piece], most: int
    ) -> None:  # fmt: skip
        for piece in pieces if len(source_rows) else ():
            ops.fetch(_part(out[piece.column], piece), source_rows, ends, piece.at, tokens_max=most)

    # Facts.

    def _compare(self, facts: Mapping[str, Fact], call: str) -> Steps[None]:
        """A turn of its own, on a CPU. Raises: RanksDisagree, on all ranks alike."""
        if not self.transport.compares:
            return
        self._wait_for_room(call)
        self._write_facts(facts)
        self._write_words(self._words([0, _shape(facts)]))
        yield from self._others_have_published(call)
        yield from self._agree(self._row_ops.heads(self._header_bytes, HEAD), facts, call)
        yield from self._done()

    def _agree(self, heads: Tensor, facts: Mapping[str, Fact], call: str) -> Steps[None]:
        """Raises: RanksDisagree, after the turn has ended."""
        shapes = heads[:, 1].tolist()
        if shapes == [_shape(facts)] * self.ranks:
            return
        facts_of = {}
        if self.transport.compares:  # before the turn ends: then sources write the next one
            headers = (self.transport.buffer(rank)[:HEADER_BYTES] for rank in range(self.ranks))
            facts_of = {rank: segment_header.unpack(each) for rank, each in enumerate(headers)}
        yield from self._done()
        if facts_of:
            segment_header.compare(facts_of, rank=self.me, call=call)
        peer = next(rank for rank, each in enumerate(shapes) if each != shapes[0])
        raise RanksDisagree(
            f"ranks 0 and {peer} have called it with other sizes; all ranks must give the same hidden size, types, "
            "top-k, experts and num_sms", rank=self.me, phase=call, peer=peer,
        )  # fmt: skip

    def _write_facts(self, facts: Mapping[str, Fact]) -> None:
        if self.transport.compares:
            self._own(0, HEADER_BYTES, torch.uint8).copy_(segment_header.pack(facts))

    def _words(self, first: Sequence[int], *counts: Tensor) -> Tensor:
        device = self.transport.device
        words = [torch.full((1,), each, dtype=torch.int32, device=device) for each in first]
        return torch.cat([*words, *(each.int() for each in counts)])

    def _write_words(self, words: Tensor) -> None:
        self._own(self._header_bytes, len(words), torch.int32).copy_(words)

    # Parts.

    def _finished(self, tokens: Tokens, ends: Tensor, arrived: int, local: int) -> Tokens:
        """Expert numbers as this rank counts them, weights of its own alone; rows without a token have -1 and 0."""
        idx, weights = tokens.topk_idx, tokens.topk_weights
        if idx is None:
            return tokens
        if arrived >= 0:
            idx[arrived:] = -1
        else:
            is_real = torch.arange(len(idx), device=idx.device) < ends[-1]
            idx = torch.where(is_real.unsqueeze(1), idx, -1)
        idx, weights = layout.own_experts(idx, weights, rank=self.me, experts_per_rank=local)
        return Tokens(tokens.x, tokens.scales, idx, weights)

    def _ops(self, x: Tensor, num_sms: int) -> RowOps:
        if layer_for(x) == "reference" and x.device.type == "cpu":
            return self._row_ops
        from .launch import RowKernels

        return RowKernels(self.transport, self._peers, num_sms)

    def _own(self, at: int, count: int, dtype: torch.dtype) -> Tensor:
        return self.transport.buffer(self.me)[at : at + count * dtype.itemsize].view(dtype)

    def _pieces(self, columns: Sequence[Tensor], rows: int, *, start: int) -> list[list[Piece]]:
        widths = tuple(each.shape[1] * each.element_size() for each in columns)
        return _cut(widths, rows, start, self._num_bytes)

    @contextmanager
    def _all_or_nothing(self, call: str) -> Iterator[None]:
        """A rank that leaves a call in its middle cannot take part in another; the others receive the reason."""
        try:
            yield
        except (CommunicationError, BadArgument):
            raise
        except BaseException as error:
            what = f"rank {self.me} has left the call: {type(error).__name__}: {error}"[:REASON_MAX]
            self.transport.fail(CommunicationError(what, rank=self.me, phase=call, peer=self.me))
            raise


@lru_cache(maxsize=256)
def _cut(widths: tuple[int, ...], rows: int, start: int, num_bytes: int) -> list[list[Piece]]:
    """Columns of so many bytes a row, in as few turns as the region allows. Every turn has all of `start` free."""
    units = [width & -width if width % 16 else 16 for width in widths]
    most = max(width // unit for width, unit in zip(widths, units, strict=True))
    for turns in range(1, most + 1):
        lengths = [-(-width // unit // turns) * unit for width, unit in zip(widths, units, strict=True)]
        if start + sum(align(rows * each, ALIGNMENT) for each in lengths) <= num_bytes:
            return [_pieces_of_turn(turn, widths, lengths, rows, start) for turn in range(turns)]
    least = start + sum(align(rows * each, ALIGNMENT) for each in units)
    raise BadArgument(f"the buffer has {num_bytes} bytes; {rows} rows of this call need {least}")


def _pieces_of_turn(
    turn: int, widths: Sequence[int], lengths: Sequence[int], rows: int, start: int
) -> list[Piece]:
    pieces, at = [], start
    for column, (width, length) in enumerate(zip(widths, lengths, strict=True)):
        first = turn * length
        if first < width:
            pieces.append(Piece(column, first, min(length, width - first), at))
            at += align(rows * length, ALIGNMENT)
    return pieces


def _shape(facts: Mapping[str, Fact]) -> int:
    """A number that differs between calls that do not belong together."""
    return zlib.crc32(json.dumps(dict(facts)).encode()) & 0x7FFFFFFF


def _part(column: Tensor, piece: Piece) -> Tensor:
    words = words_of(column)
    size = words.element_size()
    return words[:, piece.first // size : (piece.first + piece.length) // size]


__all__ = ["MappedDispatcher", "finish"]
