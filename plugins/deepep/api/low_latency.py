"""The methods of `Buffer` for low-latency mode, with the original's names, arguments, results and assertions."""

from typing import NamedTuple

import torch
from torch import Tensor

from ...kernels.checks import check_contiguous, check_tensor, check_vector
from ...kernels.errors import BadCall, refuse
from ...kernels.quantize import BLOCK
from ..low_latency.host import HostOps, require_room
from ..low_latency.layout import Received
from ..low_latency.mode import Hook, LowLatencyMode, Turn, size_hint
from ..normal.arguments import check_topk
from ..transport.event import CommunicationStream, EventOverlap
from ..transport.interface import Link, Transport

Handle = tuple[Tensor, Tensor, int, int, int]
"""Source tokens (e, R · N) int32, ranges (e, R) int64, N, hidden, experts."""


class Dispatched(NamedTuple):
    """Results of `low_latency_dispatch`, in the original's order."""

    x: Tensor | tuple[Tensor, Tensor]
    counts: Tensor
    handle: Handle
    event: EventOverlap
    hook: Hook | None


class Combined(NamedTuple):
    """Results of `low_latency_combine`, in the original's order."""

    x: Tensor
    event: EventOverlap
    hook: Hook | None


class LowLatencyMethods:
    """What `Buffer` inherits; it has the attributes below."""

    transport: Link
    num_nvl_bytes: int
    num_rdma_bytes: int
    low_latency_mode: bool
    enable_shrink: bool
    communication: CommunicationStream
    _mode: LowLatencyMode | None = None

    @staticmethod
    def get_low_latency_rdma_size_hint(
        num_max_dispatch_tokens_per_rank: int, hidden: int, num_ranks: int, num_experts: int
    ) -> int:
        """Bytes for `num_rdma_bytes`, so that calls of these sizes fit."""
        return size_hint(num_max_dispatch_tokens_per_rank, hidden, num_ranks, num_experts)

    def low_latency_dispatch(
        self, x: Tensor, topk_idx: Tensor, num_max_dispatch_tokens_per_rank: int, num_experts: int,
        cumulative_local_expert_recv_stats: Tensor | None = None,
        dispatch_wait_recv_cost_stats: Tensor | None = None, use_fp8: bool = True, round_scale: bool = False,
        use_ue8m0: bool = False, async_finish: bool = False, return_recv_hook: bool = False,
    ) -> Dispatched:  # fmt: skip
        """Send each token to each of its experts.

        x (T, H) bfloat16, T at most N = num_max_dispatch_tokens_per_rank; topk_idx (T, K) int64, -1 for no expert.
        Returns (recv_x, recv_count, handle, event, hook) for the e experts of this rank and R ranks:
        recv_x (e, R · N, H) bfloat16, or e4m3 and scales (e, R · N, H / 128) float32 (int32, (…, H / 512), with
        use_ue8m0) whose rows are next to each other, as DeepGEMM wants them; rows beyond recv_count (e,) int32 hold
        anything. handle: source tokens (e, R · N) int32, ranges (e, R) int64 of begin << 32 | count, N, H, experts.
        `cumulative_local_expert_recv_stats` (e,) int32 grows by recv_count, `dispatch_wait_recv_cost_stats` (R,) int64
        by the nanoseconds that each rank was waited for. With `return_recv_hook`, only sends; hook() receives.
        At most two results of this mode may be alive.
        """
        mode = self._low_latency()
        stats, costs = cumulative_local_expert_recv_stats, dispatch_wait_recv_cost_stats
        with mode.reporting("low-latency dispatch"):
            tokens = len(x)
            layout = mode.layout(num_max_dispatch_tokens_per_rank, x.shape[-1], num_experts)
            check_contiguous("x", x, (tokens, layout.hidden), (torch.bfloat16,))
            check_topk(topk_idx, tokens, num_experts)
            if tokens > layout.max_tokens:
                refuse("x", f"of {tokens} tokens", f"num_max_dispatch_tokens_per_rank is {layout.max_tokens}")
            topk_idx = topk_idx.to(torch.int64)
            if use_ue8m0 and not round_scale:
                refuse("use_ue8m0", use_ue8m0, "it needs round_scale=True")
            multiple = 4 * BLOCK if use_ue8m0 else BLOCK
            if use_fp8 and layout.hidden % multiple:
                allowed = f"it must be a multiple of {multiple} here; use_fp8=False takes others"
                refuse("hidden", layout.hidden, allowed)
            _check_finish(async_finish=async_finish, return_recv_hook=return_recv_hook)
            check_vector("cumulative_local_expert_recv_stats", stats, layout.local, torch.int32, x)
            check_vector("dispatch_wait_recv_cost_stats", costs, mode.ranks, torch.int64, x)
            ops = mode.ops(layout, x)
            if isinstance(ops, HostOps):
                require_room(layout, topk_idx)
        half = mode.take_turn("low_latency_dispatch")
        out = Received.empty(layout, x.device, fp8=use_fp8, use_ue8m0=use_ue8m0)
        event, hook = mode.carry_out(
            Turn(half, layout, "low-latency dispatch", "fp8" if use_fp8 else "bf16", "tokens", costs),
            send=lambda: ops.dispatch_send(half, x, topk_idx, fp8=use_fp8, round_scale=round_scale),
            receive=lambda: ops.dispatch_receive(half, out, stats),
            tensors=(x, topk_idx, *vars(out).values(), stats, costs),
            async_finish=async_finish,
            return_recv_hook=return_recv_hook,
        )
        handle = (out.source_tokens, out.ranges, layout.max_tokens, layout.hidden, num_experts)
        packed = out.rows if out.scales is None else (out.rows, out.scales)
        return Dispatched(packed, out.counts, handle, event, hook)

    def low_latency_combine(
        self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor, handle: Handle, use_logfmt: bool = False,
        zero_copy: bool = False, async_finish: bool = False, return_recv_hook: bool = False,
        out: Tensor | None = None, combine_wait_recv_cost_stats: Tensor | None = None,
    ) -> Combined:  # fmt: skip
        """Bring the experts' answers back and sum them up, times the weights.

        x (e, R · N, H) bfloat16, rows as dispatched; topk_idx (T, K) int64 and topk_weights (T, K) float32 of this
        rank's tokens. Returns (combined_x (T, H) bfloat16, in `out` if it is given; event; hook). `zero_copy`: x is in
        what get_next_low_latency_combine_buffer returned; it saves nothing, as no call copies x on its way to peers.
        `use_logfmt`: ten bits a channel travel.
        """
        mode, costs = self._low_latency(), combine_wait_recv_cost_stats
        with mode.reporting("low-latency combine"):
            tokens = len(topk_idx)
            source_tokens, ranges, max_tokens, hidden, experts = handle
            layout = mode.layout(max_tokens, hidden, experts)
            check_contiguous("x", x, (layout.local, layout.rows, hidden), (torch.bfloat16,))
            check_topk(topk_idx, tokens, experts)
            check_contiguous("topk_weights", topk_weights, topk_idx.shape, (torch.float32,))
            if out is not None:
                check_tensor("out", out, (tokens, hidden), (torch.bfloat16,))
            if tokens > max_tokens:
                refuse("topk_idx", f"of {tokens} tokens", f"the handle is of at most {max_tokens}")
            topk_idx = topk_idx.to(torch.int64)
            if use_logfmt and (hidden % BLOCK or zero_copy):
                given = f"with hidden {hidden}, zero_copy {zero_copy}"
                refuse("use_logfmt", given, f"hidden must be a multiple of {BLOCK}, and zero_copy False")
            _check_finish(async_finish=async_finish, return_recv_hook=return_recv_hook)
            check_vector("combine_wait_recv_cost_stats", costs, mode.ranks, torch.int64, x)
        half = mode.take_turn("low_latency_combine")
        given_x = mode.outgoing(layout, half) if zero_copy else x
        result = x.new_empty(tokens, hidden) if out is None else out
        ops = mode.ops(layout, x)
        event, hook = mode.carry_out(
            Turn(half, layout, "low-latency combine", "logfmt" if use_logfmt else "bf16", "answers", costs),
            send=lambda: ops.combine_send(
                half, given_x, ranges=ranges, source_tokens=source_tokens, logfmt=use_logfmt
            ),
            receive=lambda: ops.combine_receive(
                half, topk=topk_idx, weights=topk_weights, out=result, logfmt=use_logfmt
            ),
            tensors=(given_x, topk_idx, topk_weights, source_tokens, ranges, result, costs),
            async_finish=async_finish,
            return_recv_hook=return_recv_hook,
        )
        return Combined(result, event, hook)

    def clean_low_latency_buffer(
        self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int
    ) -> None:
        """As the original asks for it after calls in normal mode. Only sizes are checked: flags are epochs, and nothing
        else writes this memory.
        """
        self._low_latency().layout(num_max_dispatch_tokens_per_rank, hidden, num_experts)

    def get_next_low_latency_combine_buffer(self, handle: Handle) -> Tensor:
        """Where the next `low_latency_combine(zero_copy=True)` takes x from: (e, R · N, H) bfloat16."""
        mode = self._low_latency()
        return mode.outgoing(mode.layout(*handle[2:]), mode.half)

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Exclude a rank from this rank's calls (mask=True), or include it again."""
        mode = self._low_latency()
        masks = mode.mask()
        if not 0 <= rank_to_mask < mode.ranks or rank_to_mask == mode.rank:
            refuse("rank_to_mask", rank_to_mask, f"it must be another rank, 0 to {mode.ranks - 1}")
        masks[rank_to_mask] = int(mask)

    def low_latency_query_mask_buffer(self, mask_status: Tensor) -> None:
        """Fill mask_status (R,) int32: 1 for ranks that are left out, because they were masked or did not come."""
        mask = self._low_latency().mask()
        check_tensor("mask_status", mask_status, mask.shape, (torch.int32,))
        mask_status.copy_(mask)

    def low_latency_clean_mask_buffer(self) -> None:
        """Let all ranks take part again."""
        self._low_latency().mask().zero_()

    def _low_latency(self) -> LowLatencyMode:
        if self._mode is None:
            assert self.low_latency_mode, "make the Buffer with low_latency_mode=True"
            if not self.num_rdma_bytes:
                raise BadCall("this buffer has no memory for low-latency mode: give num_rdma_bytes")
            if not isinstance(self.transport, Transport):
                raise BadCall(
                    f"low-latency mode needs the memory of all ranks, those of one node; this is {self.transport}"
                )
            self._mode = LowLatencyMode(
                self.transport, stream=self.communication, base=self.num_nvl_bytes, num_bytes=self.num_rdma_bytes,
                shrink=self.enable_shrink,
            )  # fmt: skip
        return self._mode


def _check_finish(*, async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise BadCall(
            "async_finish and return_recv_hook exclude each other: a hook receives on the current stream"
        )


__all__ = ["Combined", "Dispatched", "Handle", "LowLatencyMethods"]
