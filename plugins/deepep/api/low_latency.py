"""The methods of `Buffer` for low-latency mode, with the original's names, arguments, results and assertions."""

from torch import Tensor

from ...kernels.errors import BadCall
from ..low_latency.mode import Combined, Dispatched, Handle, LowLatency, size_hint
from ..transport.event import CommunicationStream
from ..transport.interface import Link, Transport


class LowLatencyMethods:
    """What `Buffer` inherits; it has the attributes below."""

    transport: Link
    num_nvl_bytes: int
    num_rdma_bytes: int
    low_latency_mode: bool
    enable_shrink: bool
    communication: CommunicationStream
    _mode: LowLatency | None = None

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
        return self._low_latency().dispatch(
            x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, stats=cumulative_local_expert_recv_stats,
            wait_costs=dispatch_wait_recv_cost_stats, use_fp8=use_fp8, round_scale=round_scale, use_ue8m0=use_ue8m0,
            async_finish=async_finish, return_recv_hook=return_recv_hook,
        )  # fmt: skip

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
        return self._low_latency().combine(
            x, topk_idx, topk_weights, handle, use_logfmt=use_logfmt, zero_copy=zero_copy, async_finish=async_finish,
            return_recv_hook=return_recv_hook, out=out, wait_costs=combine_wait_recv_cost_stats,
        )  # fmt: skip

    def clean_low_latency_buffer(
        self, num_max_dispatch_tokens_per_rank: int, hidden: int, num_experts: int
    ) -> None:
        """As the original asks for it after calls in normal mode. Here only sizes are checked: nothing needs zeroes."""
        self._low_latency().clean(num_max_dispatch_tokens_per_rank, hidden, num_experts)

    def get_next_low_latency_combine_buffer(self, handle: Handle) -> Tensor:
        """Where the next `low_latency_combine(zero_copy=True)` takes x from: (e, R · N, H) bfloat16."""
        return self._low_latency().next_combine_buffer(handle)

    def low_latency_update_mask_buffer(self, rank_to_mask: int, mask: bool = False) -> None:
        """Exclude a rank from this rank's calls (mask=True), or include it again."""
        self._low_latency().update_mask(rank_to_mask, masked=mask)

    def low_latency_query_mask_buffer(self, mask_status: Tensor) -> None:
        """Fill mask_status (R,) int32: 1 for ranks that are left out, because they were masked or did not come."""
        self._low_latency().query_mask(mask_status)

    def low_latency_clean_mask_buffer(self) -> None:
        """Let all ranks take part again."""
        self._low_latency().clean_mask()

    def _low_latency(self) -> LowLatency:
        if self._mode is None:
            assert self.low_latency_mode, "make the Buffer with low_latency_mode=True"
            if not self.num_rdma_bytes:
                raise BadCall("this buffer has no memory for low-latency mode: give num_rdma_bytes")
            if not isinstance(self.transport, Transport):
                raise BadCall(
                    f"low-latency mode needs the memory of all ranks, those of one node; this is {self.transport}"
                )
            self._mode = LowLatency(
                self.transport, stream=self.communication, base=self.num_nvl_bytes, num_bytes=self.num_rdma_bytes,
                shrink=self.enable_shrink,
            )  # fmt: skip
        return self._mode


__all__ = ["LowLatencyMethods"]
