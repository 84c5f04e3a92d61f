"""`ElasticBuffer`: dispatch and combine of all sizes, with the original's names, arguments and results.

Arguments are checked and results are put together; `experts` does the work, and `tensors` has the other calls.
"""

import itertools
from collections.abc import Mapping
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.checks import check_contiguous
from ...kernels.errors import BadCall, refuse
from ...kernels.quantize import align
from ..api.buffer import Buffer
from ..normal import layout
from ..normal.arguments import EXPERTS_PER_RANK_MAX, TOPK_MAX, check_biases, check_rows, take_tokens
from ..normal.dispatcher import MappedDispatcher
from ..transport import choose
from ..transport.event import Event, EventHandle, EventOverlap, wait_for
from ..transport.segment_header import HEADER_BYTES, Fact
from . import experts
from .experts import Call, EPHandle
from .tensors import EXPERTS_CALLS, UNIT_BYTES, TensorCalls

QPS_ALLOCATED: Final = 17
QPS_MAX: Final = 9
SMS_MAX: Final = 160


class ElasticBuffer(TensorCalls):
    """Memory through which the ranks of a group exchange tokens, and other tensors.

    `num_bytes`: by default what `get_buffer_size_hint` returns for `num_max_tokens_per_rank`, `hidden` and `num_topk`;
    any size with room for the routes and 16 bytes a row works. `num_cpu_bytes`: for Engram. `allow_multiple_reduction`:
    whether rows of one token are summed, and rounded, before they travel in combine; False for expanded rows that are
    summed once. Not in the original, as for `Buffer`: `transport`, `timeout_s` (by default `num_gpu_timeout_secs`, if
    that is not the original's 100), `device`. Results are always deterministic; other arguments of the original change
    nothing.

    All ranks make one together and call its methods in the same order. Raises: RanksDisagree, on all ranks.
    """

    def __init__(
        self, group: dist.ProcessGroup, num_bytes: int | None = None, num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0, hidden: int = 0, num_topk: int = 0, use_fp8_dispatch: bool = False,
        deterministic: bool = False, allow_hybrid_mode: bool = True, allow_multiple_reduction: bool = True,
        prefer_overlap_with_compute: bool = True, sl_idx: int = 3, num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300, num_gpu_timeout_secs: int = int(choose.TIMEOUT_S),
        explicitly_destroy: bool = False, *, transport: str | None = None, timeout_s: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:  # fmt: skip
        super().__init__()
        if num_bytes is None:
            num_bytes = 0
            if num_max_tokens_per_rank or hidden:
                sizes = (num_max_tokens_per_rank, hidden, num_topk)
                num_bytes = self.get_buffer_size_hint(group, *sizes, use_fp8_dispatch)
        if num_bytes < 0 or num_cpu_bytes < 0 or num_bytes + num_cpu_bytes == 0:
            refuse("num_bytes, num_cpu_bytes", (num_bytes, num_cpu_bytes),
                   "give bytes, or num_max_tokens_per_rank and hidden")  # fmt: skip
        if timeout_s is None:
            is_default = num_gpu_timeout_secs == choose.TIMEOUT_S
            timeout_s = choose.timeout_s() if is_default else num_gpu_timeout_secs
        self.group, self.explicitly_destroy = group, explicitly_destroy
        self.num_bytes = max(align(num_bytes, 64), least_bytes(group.size()))
        self.num_cpu_bytes = num_cpu_bytes
        self.num_max_tokens_per_rank = num_max_tokens_per_rank
        self.allow_multiple_reduction = allow_multiple_reduction
        self.num_allocated_qps = num_allocated_qps or QPS_ALLOCATED
        self._memory = Buffer(
            group, self.num_bytes + align(num_cpu_bytes, 64), explicitly_destroy=True, transport=transport,
            timeout_s=timeout_s, device=device,
        )  # fmt: skip
        normal = self._memory.normal_mode()
        if not isinstance(normal, MappedDispatcher):
            link = self._memory.transport
            self._memory.destroy()
            raise BadCall(f"ElasticBuffer needs the memory of all ranks, those of one node; this is {link}")
        self._normal, self.transport = normal, normal.transport
        self.rank_idx, self.num_ranks = self._memory.rank, self._memory.group_size
        self._numbers = itertools.count(1)
        facts: dict[str, Fact] = {"allow_multiple_reduction": str(allow_multiple_reduction),
                                  "num_bytes": self.num_bytes, "num_cpu_bytes": num_cpu_bytes}  # fmt: skip
        self._normal.agree(facts, "making an ElasticBuffer")

    # -- the original's small methods --

    def destroy(self) -> None:
        """Leave. Only for buffers that were made with `explicitly_destroy`; others leave when they are collected."""
        assert self.explicitly_destroy, "`explicitly_destroy` flag must be set"
        self._memory.destroy()

    @staticmethod
    def capture() -> EventHandle:
        """An event of the current stream."""
        return EventHandle()

    def get_comm_stream(self) -> Any:
        """The stream on which dispatch and combine run: the buffer's own; on a CPU, the current one."""
        return self._memory.get_comm_stream()

    def get_physical_domain_size(self) -> tuple[int, int]:
        """Nodes, and ranks of each: all ranks are on one."""
        return 1, self.num_ranks

    def get_logical_domain_size(self) -> tuple[int, int]:
        """Groups between which rows take two hops, and ranks of each: one, as all rows go directly."""
        return 1, self.num_ranks

    def barrier(
        self, use_comm_stream: bool = True, with_cpu_sync: bool = False, sequential: bool = True
    ) -> None:
        """Wait until all ranks have come here, and what they wrote before can be read."""
        if with_cpu_sync:
            self._synchronize()
        self.transport.barrier()
        if with_cpu_sync:
            self._synchronize()

    @staticmethod
    def get_buffer_size_hint(
        group: dist.ProcessGroup, num_max_tokens_per_rank: int, hidden: int, num_topk: int = 0,
        use_fp8_dispatch: bool = False, allow_hybrid_mode: bool = True, allow_multiple_reduction: bool = True,
    ) -> int:  # fmt: skip
        """Bytes for calls that take one turn, if experts are chosen evenly. Smaller buffers take more turns."""
        tokens, ranks = num_max_tokens_per_rank, group.size()
        if tokens < 1 or hidden < 1:
            refuse("num_max_tokens_per_rank, hidden", (tokens, hidden), "they must be positive")
        ks = num_topk or TOPK_MAX
        sent = ks * 12 + (hidden + hidden // 32 if use_fp8_dispatch else hidden * 2)
        rows = tokens * min(ranks, ks)
        room = rows * max(sent, hidden * 2 + ks * 4) + tokens * ranks * 4
        return align(room + least_bytes(ranks), UNIT_BYTES)

    def get_theoretical_num_sms(
        self, num_experts: int, num_topk: int, num_scaleout_topk: int = 0, rdma_gbs: float = 0,
        nvlink_gbs: float = 0, sm_read_gbs: float = 200, sm_write_gbs: float = 50,
    ) -> int:  # fmt: skip
        """How many processors a call gets by default: `Buffer.num_sms`, for any links."""
        layout.check_experts(num_experts, self.num_ranks)
        if not 0 < num_topk <= num_experts:
            refuse("num_topk", num_topk, f"a token has 1 to {num_experts} experts")
        return Buffer.num_sms

    def get_theoretical_num_qps(self, num_sms: int) -> int:
        """How many queue pairs the original would use; nothing depends on it."""
        return min(num_sms, QPS_MAX, self.num_allocated_qps)

    # -- dispatch and combine --

    def dispatch(
        self, x: Tensor | tuple[Tensor, Tensor], topk_idx: Tensor | None = None, topk_weights: Tensor | None = None,
        cumulative_local_expert_recv_stats: Tensor | None = None, num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None, expert_alignment: int | None = None, num_sms: int = 0,
        num_qps: int = 0, previous_event: Event = None, previous_event_before_epilogue: Event = None,
        async_with_compute_stream: bool = False, allocate_on_comm_stream: bool = False,
        handle: EPHandle | None = None, do_handle_copy: bool = True, do_cpu_sync: bool | None = None,
        do_expand: bool = False, do_zero_padding: bool = False, use_tma_aligned_col_major_sf: bool = False,
    ) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | None, Tensor | None, EPHandle, EventOverlap]:  # fmt: skip
        """Send each token once to every rank that has one of its experts.

        x (T, H) bfloat16, or (e4m3 (T, H), scales (T, …) float32 or int32); topk_idx (T, K), -1 for none; topk_weights
        (T, K) float32. Returns recv_x like x, rows ordered by (source rank, token); recv_topk_idx (N, K), local expert
        numbers or -1; recv_topk_weights (N, K), 0 there, or None; handle; event. With `do_expand` there is a row for
        each (token, local expert) instead, those of an expert together and ordered likewise, each expert beginning at
        a multiple of `expert_alignment`: recv_topk_idx is None, recv_topk_weights (rows,); what is between experts is
        undefined, or zero with `do_zero_padding`. Without `do_cpu_sync` results have as many rows as could arrive. With
        `handle`, tokens go where those of the dispatch that made it went.
        """
        self._turn_to(EXPERTS_CALLS)
        number = next(self._numbers)  # also of calls that are refused, as the other ranks count them
        options = {"do_zero_padding": do_zero_padding, "col_major_scales": use_tma_aligned_col_major_sf}
        with self._memory.communication.call(previous_event) as on_stream:
            with self._memory.reporting("dispatch"):
                self._check_sms(num_sms, num_qps)
                if handle is None:
                    if topk_idx is None or num_experts is None:
                        raise BadCall("without a handle, give topk_idx and num_experts")
                    call = self._new_call(
                        x, topk_idx, topk_weights, num_experts=num_experts, num_max_tokens=num_max_tokens_per_rank,
                        alignment=1 if expert_alignment is None else expert_alignment, num_sms=num_sms, number=number,
                        copy=do_handle_copy, sync=do_cpu_sync is not False, do_expand=do_expand, **options,
                    )  # fmt: skip
                else:
                    if topk_idx is not None or do_cpu_sync:
                        raise BadCall(
                            "a handle has the routing and the sizes: give no topk_idx, and no do_cpu_sync"
                        )
                    given = {"num_experts": num_experts, "num_max_tokens_per_rank": num_max_tokens_per_rank,
                             "expert_alignment": expert_alignment, "do_expand": do_expand}  # fmt: skip
                    _check_handle(handle, given)
                    call = self._cached_call(x, topk_weights, handle, **options)
                stats = cumulative_local_expert_recv_stats
                local = call.num_experts // self.num_ranks
                if stats is not None:
                    check_contiguous("cumulative_local_expert_recv_stats", stats, (local,), (torch.int32,))
            came, made = experts.dispatch(
                self._normal, call, lambda: wait_for(previous_event_before_epilogue)
            )
            if stats is not None:
                stats += made.num_unaligned_recv_tokens_per_expert.to(stats.device)
            home = call.topk_idx.device
            columns = (came.x, came.scales, came.topk_idx, came.topk_weights)
            rows, scales, idx, weights = (None if each is None else each.to(home) for each in columns)
            assert rows is not None, "x is never absent"
            on_stream.keep(call.tokens.columns(), rows, scales, idx, weights, vars(made).values(), made.rows)
        event = on_stream.ended(asynchronous=async_with_compute_stream)
        packed = rows if scales is None else (rows, scales)
        return packed, idx, weights, made if handle is None else handle, event

    def combine(
        self, x: Tensor, handle: EPHandle, topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None, num_sms: int = 0, num_qps: int = 0,
        previous_event: Event = None, previous_event_before_epilogue: Event = None,
        async_with_compute_stream: bool = False, allocate_on_comm_stream: bool = False,
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:  # fmt: skip
        """Sum each token's rows over the ranks that received it; no weights are applied.

        x (rows of the dispatch, H) bfloat16. topk_weights (rows, K) float32, or (rows,) of expanded rows, come back as
        (T, K): each k's from the rank of its expert. bias (T, H), one or two, is added first. Sums are float32, in the
        order of the last k that is of each rank. Expanded rows of a token are summed in the order of k before they
        travel, and rounded; with `allow_multiple_reduction=False` all are summed at once. Returns combined_x (T, H)
        bfloat16, combined_topk_weights or None, event.
        """
        self._turn_to(EXPERTS_CALLS)
        with self._memory.communication.call(previous_event) as on_stream:
            with self._memory.reporting("combine"):
                self._check_sms(num_sms, num_qps)
                _check_handle(handle, {})
                check_rows(x, "x", torch.bfloat16)
                _check_answers(x, topk_weights, handle)
                if handle.do_expand and topk_weights is not None and not self.allow_multiple_reduction:
                    raise BadCall("expanded topk_weights need a buffer with allow_multiple_reduction=True")
                biases = check_biases(bias, (len(handle.topk_idx), x.shape[1]))
            wait_for(previous_event_before_epilogue)
            device = self.transport.device
            combined, weights = experts.combine(
                self._normal, x.to(device), None if topk_weights is None else topk_weights.to(device), handle,
                [each.to(device) for each in biases], num_sms=num_sms or handle.num_sms,
                reduce_first=self.allow_multiple_reduction,
            )  # fmt: skip
            combined, weights = combined.to(x.device), None if weights is None else weights.to(x.device)
            on_stream.keep(x, topk_weights, biases, combined, weights)
        return combined, weights, on_stream.ended(asynchronous=async_with_compute_stream)

    # -- parts --

    def _new_call(
        self, x: Any, topk_idx: Tensor, topk_weights: Tensor | None, *, num_experts: int, num_max_tokens: int | None,
        alignment: int, copy: bool, sync: bool, num_sms: int, number: int, **options: bool,
    ) -> Call:  # fmt: skip
        layout.check_experts(num_experts, self.num_ranks)
        local = num_experts // self.num_ranks
        if local > EXPERTS_PER_RANK_MAX:
            refuse("num_experts", num_experts, f"a rank has at most {EXPERTS_PER_RANK_MAX}")
        layout.check_indices(topk_idx, num_experts)
        tokens = take_tokens(x, topk_idx, topk_weights, device=self.transport.device)
        most = self.num_max_tokens_per_rank if num_max_tokens is None else num_max_tokens
        if not len(tokens.x) <= most or most < 1:
            refuse("num_max_tokens_per_rank", most, f"it must be positive, and x has {len(tokens.x)} tokens")
        if alignment < 1:
            refuse("expert_alignment", alignment, "it must be positive")
        topk = topk_idx.shape[1]
        if topk < 1:
            refuse("topk_idx", f"of shape {tuple(topk_idx.shape)}", "a token has one expert or more, or -1")
        arriving = most * self.num_ranks
        sizes = (arriving, experts.expanded_rows_max(arriving, topk, local, alignment))
        return Call(
            tokens, topk_idx.clone() if copy else topk_idx, num_experts, num_max_tokens=most, alignment=alignment,
            num_sms=num_sms or Buffer.num_sms, number=number, sizes=None if sync else sizes, **options,
        )  # fmt: skip

    def _cached_call(self, x: Any, topk_weights: Tensor | None, handle: EPHandle, **options: bool) -> Call:
        tokens = take_tokens(x, handle.topk_idx, topk_weights, device=self.transport.device)
        return Call(
            tokens, handle.topk_idx, handle.num_experts, num_max_tokens=handle.num_max_tokens_per_rank,
            alignment=handle.expert_alignment, num_sms=handle.num_sms, number=handle.number,
            do_expand=handle.do_expand, sizes=(handle.num_recv_tokens, handle.num_expanded_tokens), is_cached=True,
            **options,
        )  # fmt: skip

    def _check_sms(self, num_sms: int, num_qps: int) -> None:
        if not 0 <= num_sms <= SMS_MAX:
            refuse("num_sms", num_sms, f"it must be 0 to {SMS_MAX}")
        if not 0 <= num_qps <= self.num_allocated_qps:
            refuse("num_qps", num_qps, f"{self.num_allocated_qps} are allocated")

    def _synchronize(self) -> None:
        if self.transport.device.type == "cuda":
            torch.cuda.synchronize(self.transport.device)


def least_bytes(ranks: int) -> int:
    """For what ranks compare in each call: facts, and counts of 2048 experts."""
    return HEADER_BYTES + 4 * (64 + 2 * ranks + 2048) + 16 * 64


def _check_handle(handle: EPHandle, given: Mapping[str, Any]) -> None:
    if not isinstance(handle, EPHandle):
        raise BadCall(
            f"the handle is {type(handle).__name__}; it must be the EPHandle that dispatch returned"
        )
    for name, value in given.items():
        if value is not None and value != getattr(handle, name):
            raise BadCall(f"{name} is {value}; the handle is of a dispatch with {getattr(handle, name)}")


def _check_answers(x: Tensor, topk_weights: Tensor | None, handle: EPHandle) -> None:
    ends = handle.psum_num_recv_tokens_per_expert if handle.do_expand else None
    needed = int((handle.psum_num_recv_tokens_per_scaleup_rank if ends is None else ends)[-1])
    if len(x) < needed:
        refuse("x", f"of {len(x)} rows", f"the dispatch of this handle has filled {needed}")
    if topk_weights is not None:
        rows = max(len(topk_weights), needed) if topk_weights.dim() else needed
        shape = (rows,) if handle.do_expand else (rows, handle.topk_idx.shape[1])
        check_contiguous("topk_weights", topk_weights.contiguous(), shape, (torch.float32,))


__all__ = ["ElasticBuffer"]
