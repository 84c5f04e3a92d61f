"""Low-latency mode for ranks that share host memory: what the kernels do, whole calls at a time."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import refuse
from ...kernels.quantize import pack_ue8m0_to_int
from ..normal.layout import by_expert, expert_counts
from ..normal.row_ops import summed
from .layout import HEADER_BYTES, Layout, Received
from .quantize import cast_to_fp8, from_logfmt, to_logfmt

_COUNT_MASK = (1 << 32) - 1
_WORD = torch.int64
_HEADER = HEADER_BYTES // 8


@dataclass(frozen=True)
class HostOps:
    """As `launch.KernelOps`. memories: the shared regions, a flat uint8 tensor for each rank."""

    layout: Layout
    rank: int
    memories: Sequence[Tensor]
    inactive: Tensor

    def dispatch_send(self, half: int, x: Tensor, topk: Tensor, *, fp8: bool, round_scale: bool) -> None:
        """As KernelOps.dispatch_send; the caller has called `require_room`."""
        layout = self.layout
        bodies = _bodies(layout, x, round_scale=round_scale) if fp8 else _words(x, layout.bf16_bytes)
        tokens, counts = by_expert(topk, layout.experts)
        counts = counts.view(layout.ranks, layout.local)
        borders = [0, *counts.sum(1).cumsum(0).tolist()]
        first = self.rank * layout.local * layout.max_tokens
        for peer in self._active():
            begin, end = borders[peer], borders[peer + 1]
            self._counts(peer, half)[self.rank] = counts[peer]
            messages = self._slots(peer, half, layout.message_bytes)[first : first + end - begin]
            messages[:, 0] = tokens[begin:end]
            messages[:, 1:_HEADER] = 0
            messages[:, _HEADER : _HEADER + bodies.shape[1]] = bodies[tokens[begin:end]]

    def dispatch_receive(self, half: int, out: Received, stats: Tensor | None) -> None:
        """As KernelOps.dispatch_receive."""
        layout, active = self.layout, self._active()
        counts = torch.zeros(layout.ranks, layout.local, dtype=torch.int64)
        counts[active] = self._counts(self.rank, half)[active].to(torch.int64)
        counts = counts.T.contiguous()  # (local, ranks)
        begins = counts.cumsum(1) - counts
        out.ranges.copy_((begins << 32) | counts)
        out.counts.copy_(counts.sum(1))
        if stats is not None:
            stats += out.counts
        source, target = _moves(layout, counts, begins)
        arrivals = self._slots(self.rank, half, layout.message_bytes)
        tokens = arrivals[:, 0].index_select(0, source)
        out.source_tokens.view(-1).index_copy_(0, target, (tokens & 0x7FFFFFFF).to(torch.int32))
        messages = arrivals.view(torch.uint8)[:, HEADER_BYTES:]
        width = layout.hidden * out.rows.element_size()
        out.rows.view(torch.uint8).view(-1, width)[target] = messages[source, :width]
        if out.scales is not None:
            scale = messages[source, width : width + 4 * layout.groups].view(torch.float32)
            packed = pack_ue8m0_to_int(scale) if out.scales.dtype == torch.int32 else scale
            out.scales[target // layout.rows, target % layout.rows] = packed

    def combine_send(
        self, half: int, x: Tensor, *, ranges: Tensor, source_tokens: Tensor, logfmt: bool
    ) -> None:
        """As KernelOps.combine_send."""
        layout = self.layout
        counts, begins = ranges & _COUNT_MASK, ranges >> 32
        first = torch.arange(layout.local).view(-1, 1) * layout.rows + begins
        for peer in self._active():
            row = _runs(first[:, peer], counts[:, peer])
            expert = self.rank * layout.local + row // layout.rows
            place = expert * layout.max_tokens + source_tokens.view(-1)[row]
            slots = self._slots(peer, half, layout.bf16_bytes)
            if logfmt:
                codes, steps = to_logfmt(x.view(-1, layout.hidden)[row])
                packed = torch.cat([codes, _bytes(steps, 8 * layout.groups)], 1)
                slots.view(torch.uint8)[place, : layout.logfmt_bytes] = packed
            else:
                slots[place] = _words(x, layout.bf16_bytes)[row]

    def combine_receive(self, half: int, *, topk: Tensor, weights: Tensor, out: Tensor, logfmt: bool) -> None:
        """As KernelOps.combine_receive."""
        layout = self.layout
        slots = self._slots(self.rank, half, layout.bf16_bytes)
        takes_part = torch.cat([self.inactive == 0, torch.tensor([False])])
        known = (topk >= 0) & (topk < layout.experts)
        known &= takes_part[torch.where(known, topk // layout.local, layout.ranks)]
        tokens = torch.arange(topk.shape[0]).unsqueeze(1)
        numbers = torch.where(known, topk * layout.max_tokens + tokens, -1)
        if logfmt:
            out.copy_(_summed_logs(layout, slots.view(torch.uint8), numbers, weights))
        else:
            out.copy_(summed([slots.view(torch.bfloat16)] * topk.shape[1], numbers, weights))

    def _active(self) -> list[int]:
        return [rank for rank, masked in enumerate(self.inactive.tolist()) if not masked]

    def _counts(self, owner: int, half: int) -> Tensor:
        at, size = self.layout.counts_at(half), 4 * self.layout.experts
        words = self.memories[owner][at : at + size].view(torch.int32)
        return words.view(self.layout.ranks, self.layout.local)

    def _slots(self, owner: int, half: int, slot_bytes: int) -> Tensor:
        at, size = self.layout.arrivals_at(half), self.layout.experts * self.layout.max_tokens * slot_bytes
        return self.memories[owner][at : at + size].view(_WORD).view(-1, slot_bytes // 8)


def require_room(layout: Layout, topk: Tensor) -> None:
    """Raises: BadArgument for an expert that gets more than max_tokens of this rank."""
    counts = expert_counts(topk, layout.experts)
    if int(counts.max()) > layout.max_tokens:
        refuse(
            "topk_idx", f"with {int(counts.max())} tokens for expert {int(counts.argmax())}",
            f"it gets at most {layout.max_tokens} of one rank, and a token names an expert once",
        )  # fmt: skip


def _summed_logs(layout: Layout, slots: Tensor, numbers: Tensor, weights: Tensor) -> Tensor:
    """As `summed`, of rows in LogFMT: (T, H) float32."""
    total = torch.zeros(len(numbers), layout.hidden)
    codes = layout.hidden // 4 * 5
    for k in range(numbers.shape[1]):
        tokens = torch.nonzero(numbers[:, k] >= 0).view(-1)
        packed = slots[numbers[tokens, k], : layout.logfmt_bytes]
        ranges = packed[:, codes:].contiguous().view(torch.float32).view(len(tokens), layout.groups, 2)
        total[tokens] += from_logfmt(packed[:, :codes], ranges) * weights[tokens, k].unsqueeze(1)
    return total


def _bodies(layout: Layout, x: Tensor, *, round_scale: bool) -> Tensor:
    """What follows a message's header in FP8: values, scales, and zeros up to a whole word."""
    values, scales = cast_to_fp8(x, round_scale=round_scale)
    body = torch.cat([values.view(torch.uint8), _bytes(scales, 4 * layout.groups)], 1)
    return torch.nn.functional.pad(body, (0, -layout.fp8_bytes % 8)).view(_WORD)


def _moves(layout: Layout, counts: Tensor, begins: Tensor) -> tuple[Tensor, Tensor]:
    """Which slot is copied to which row, for (local, ranks) counts."""
    of_source = counts.cumsum(0) - counts + torch.arange(layout.ranks) * (layout.local * layout.max_tokens)
    of_expert = begins + torch.arange(layout.local).view(-1, 1) * layout.rows
    return _runs(of_source, counts), _runs(of_expert, counts)


def _runs(starts: Tensor, lengths: Tensor) -> Tensor:
    """`lengths` numbers from each start on, one run after the other."""
    lengths = lengths.reshape(-1)
    ends = lengths.cumsum(0)
    before = (starts.reshape(-1) - ends + lengths).repeat_interleave(lengths)
    return before + torch.arange(len(before))


def _words(x: Tensor, row_bytes: int) -> Tensor:
    return x.view(-1).view(torch.uint8).view(_WORD).view(-1, row_bytes // 8)


def _bytes(x: Tensor, row_bytes: int) -> Tensor:
    return x.reshape(-1).view(torch.uint8).view(-1, row_bytes)


__all__ = ["HostOps", "require_room"]
