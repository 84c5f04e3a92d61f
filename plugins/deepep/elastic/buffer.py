"""`ElasticBuffer`: dispatch and combine of all sizes, with the original's names, arguments and results.

Here arguments are checked and results are put together; `experts` and `tensors` do the work. Kinds of calls that use
the memory differently are kept apart by a barrier.
"""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.errors import BadCall, BadType, refuse
from ...kernels.quantize import align
from .. import layout
from ..arguments import check_biases, check_rows, take_tokens
from ..buffer import EXPERTS_PER_RANK_MAX, Buffer
from ..event import Event, EventHandle, EventOverlap, wait_for
from ..normal.mode import Mapped
from ..normal.tokens import Fact
from ..transport import choose
from . import experts, routing, sizes
from .experts import Call
from .handle import EPHandle
from .tensors import PLACE_BYTES, Engram, Ring, Sessions

GPU_TIMEOUT_S: Final = 100
QPS_ALLOCATED: Final = 17
QPS_MAX: Final = 9
SMS_MAX: Final = 160
EXPERTS_CALLS, SESSIONS, RING = "dispatch and combine", "AGRS sessions", "pp_send and pp_recv"


class ElasticBuffer:
    """Memory through which the ranks of a group exchange tokens, and other tensors.

    `num_bytes`: by default what `get_buffer_size_hint` says of `num_max_tokens_per_rank`, `hidden` and `num_topk`; any
    size with room for the routes and 16 bytes a row works. `num_cpu_bytes`: for Engram. `allow_multiple_reduction`:
    whether rows of one token are summed, and rounded, before they travel in combine; False for expanded rows that are
    summed once. What these do not know of the machine is said as for `Buffer`: `transport`, `timeout_s` (by default
    `num_gpu_timeout_secs`, if that is not the original's 100), `device`. Results are always deterministic; other
    arguments of the original change nothing.

    All ranks make one together and call its methods in the same order. Raises: RanksDisagree, on all ranks.
    """

    def __init__(  # noqa: PLR0913 (the original's)
        self,
        group: dist.ProcessGroup,
        num_bytes: int | None = None,
        num_cpu_bytes: int = 0,
        num_max_tokens_per_rank: int = 0,
        hidden: int = 0,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,  # noqa: FBT001, FBT002
        deterministic: bool = False,  # noqa: FBT001, FBT002, ARG002
        allow_hybrid_mode: bool = True,  # noqa: FBT001, FBT002, ARG002
        allow_multiple_reduction: bool = True,  # noqa: FBT001, FBT002
        prefer_overlap_with_compute: bool = True,  # noqa: FBT001, FBT002, ARG002
        sl_idx: int = 3,  # noqa: ARG002
        num_allocated_qps: int = 0,
        num_cpu_timeout_secs: int = 300,  # noqa: ARG002
        num_gpu_timeout_secs: int = GPU_TIMEOUT_S,
        explicitly_destroy: bool = False,  # noqa: FBT001, FBT002
        *,
        transport: str | None = None,
        timeout_s: float | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if num_bytes is None:
            num_bytes = self.get_buffer_size_hint(
                group, num_max_tokens_per_rank, hidden, num_topk, use_fp8_dispatch,
            ) if num_max_tokens_per_rank or hidden else 0  # fmt: skip
        if num_bytes < 0 or num_cpu_bytes < 0 or num_bytes + num_cpu_bytes == 0:
            refuse("num_bytes, num_cpu_bytes", (num_bytes, num_cpu_bytes),
                   "give bytes, or num_max_tokens_per_rank and hidden")  # fmt: skip
        if timeout_s is None:
            timeout_s = choose.timeout_s() if num_gpu_timeout_secs == GPU_TIMEOUT_S else num_gpu_timeout_secs
        self.group, self.explicitly_destroy = group, explicitly_destroy
        self.num_bytes = max(align(num_bytes, 64), sizes.least_bytes(group.size()))
        self.num_cpu_bytes = num_cpu_bytes
        self.num_max_tokens_per_rank, self.hidden, self.num_topk = num_max_tokens_per_rank, hidden, num_topk
        self.allow_multiple_reduction = allow_multiple_reduction
        self.num_allocated_qps = num_allocated_qps or QPS_ALLOCATED
        self._memory = Buffer(
            group, self.num_bytes + align(num_cpu_bytes, 64), explicitly_destroy=True, transport=transport,
            timeout_s=timeout_s, device=device,
        )  # fmt: skip
        normal = self._memory.normal_mode()
        if not isinstance(normal, Mapped):
            link = self._memory.transport
            self._memory.destroy()
            raise BadCall(f"ElasticBuffer needs the memory of all ranks, those of one node; this is {link}")
        self._normal, self.transport = normal, normal.transport
        self.rank_idx, self.num_ranks = self._memory.rank, self._memory.group_size
        self._sessions = Sessions(self.transport, self.num_bytes)
        self._ring = Ring(self.transport, self.num_bytes)
        self._engram = Engram(self.transport, start=self.num_bytes, num_bytes=num_cpu_bytes)
        self._use = EXPERTS_CALLS
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
        self,
        use_comm_stream: bool = True,  # noqa: FBT001, FBT002, ARG002
        with_cpu_sync: bool = False,  # noqa: FBT001, FBT002
        sequential: bool = True,  # noqa: FBT001, FBT002, ARG002
    ) -> None:
        """All ranks have come here, and what they wrote before is there."""
        if with_cpu_sync:
            self._synchronize()
        self.transport.barrier()
        if with_cpu_sync:
            self._synchronize()

    @staticmethod
    def get_buffer_size_hint(  # noqa: PLR0913 (the original's)
        group: dist.ProcessGroup,
        num_max_tokens_per_rank: int,
        hidden: int,
        num_topk: int = 0,
        use_fp8_dispatch: bool = False,  # noqa: FBT001, FBT002
        allow_hybrid_mode: bool = True,  # noqa: FBT001, FBT002, ARG004
        allow_multiple_reduction: bool = True,  # noqa: FBT001, FBT002, ARG004
    ) -> int:
        """Bytes for calls that take one turn."""
        return sizes.buffer_bytes(
            group.size(), num_max_tokens_per_rank, hidden, topk=num_topk, fp8=use_fp8_dispatch
        )

    def get_theoretical_num_sms(  # noqa: PLR0913 (the original's)
        self,
        num_experts: int,
        num_topk: int,
        num_scaleout_topk: int = 0,  # noqa: ARG002
        rdma_gbs: float = 0,  # noqa: ARG002
        nvlink_gbs: float = 0,  # noqa: ARG002
        sm_read_gbs: float = 200,  # noqa: ARG002
        sm_write_gbs: float = 50,  # noqa: ARG002
    ) -> int:
        """How many processors a call gets whose caller does not say: `Buffer.num_sms`, whatever the links."""
        layout.check_experts(num_experts, self.num_ranks)
        if not 0 < num_topk <= num_experts:
            refuse("num_topk", num_topk, f"a token has 1 to {num_experts} experts")
        return Buffer.num_sms

    def get_theoretical_num_qps(self, num_sms: int) -> int:
        """How many queue pairs the original would use; nothing here depends on it."""
        return min(num_sms, QPS_MAX, self.num_allocated_qps)

    # -- dispatch and combine --

    def dispatch(  # noqa: PLR0913 (the original's)
        self,
        x: Tensor | tuple[Tensor, Tensor],
        topk_idx: Tensor | None = None,
        topk_weights: Tensor | None = None,
        cumulative_local_expert_recv_stats: Tensor | None = None,
        num_experts: int | None = None,
        num_max_tokens_per_rank: int | None = None,
        expert_alignment: int | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Event = None,
        previous_event_before_epilogue: Event = None,
        async_with_compute_stream: bool = False,  # noqa: FBT001, FBT002
        allocate_on_comm_stream: bool = False,  # noqa: FBT001, FBT002, ARG002
        handle: EPHandle | None = None,
        do_handle_copy: bool = True,  # noqa: FBT001, FBT002
        do_cpu_sync: bool | None = None,  # noqa: FBT001
        do_expand: bool = False,  # noqa: FBT001, FBT002
        do_zero_padding: bool = False,  # noqa: FBT001, FBT002
        use_tma_aligned_col_major_sf: bool = False,  # noqa: FBT001, FBT002
    ) -> tuple[Tensor | tuple[Tensor, Tensor], Tensor | None, Tensor | None, EPHandle, EventOverlap]:
        """Send each token once to every rank that has one of its experts.

        x (T, H) bfloat16, or (e4m3 (T, H), scales (T, …) float32 or int32); topk_idx (T, K), -1 for none; topk_weights
        (T, K) float32. Returns recv_x like x, rows ordered by (source rank, token); recv_topk_idx (N, K), local expert
        numbers or -1; recv_topk_weights (N, K), 0 there, or None; handle; event. With `do_expand` there is a row for
        each (token, local expert) instead, those of an expert together and ordered likewise, each expert beginning at
        a multiple of `expert_alignment`: recv_topk_idx is None, recv_topk_weights (rows,); what is between experts is
        undefined, or zero with `do_zero_padding`. Without `do_cpu_sync` results have as many rows as could come. With
        `handle`, tokens go where those of the dispatch that made it went.
        """
        self._turn_to(EXPERTS_CALLS)
        number = next(self._numbers)  # also of calls that are refused, as the other ranks count them
        with self._memory.communication.call(previous_event) as on_stream:
            with self._memory.reporting("dispatch"):
                self._check_sms(num_sms, num_qps)
                if handle is None:
                    if topk_idx is None or num_experts is None:
                        raise BadCall("without a handle, give topk_idx and num_experts")
                    call = self._new_call(
                        x, topk_idx, topk_weights,
                        num_experts=num_experts, num_max_tokens=num_max_tokens_per_rank, alignment=expert_alignment,
                        num_sms=num_sms, number=number, do_expand=do_expand, do_zero_padding=do_zero_padding,
                        col_major_scales=use_tma_aligned_col_major_sf, copy=do_handle_copy,
                        sync=do_cpu_sync is not False,
                    )  # fmt: skip
                else:
                    if topk_idx is not None or do_cpu_sync:
                        raise BadCall(
                            "a handle has the routing and the sizes: give no topk_idx, and no do_cpu_sync"
                        )
                    given = {"num_experts": num_experts, "num_max_tokens_per_rank": num_max_tokens_per_rank,
                             "expert_alignment": expert_alignment, "do_expand": do_expand}  # fmt: skip
                    _check_handle(handle, given)
                    call = self._cached_call(
                        x, topk_weights, handle,
                        do_zero_padding=do_zero_padding, col_major_scales=use_tma_aligned_col_major_sf,
                    )  # fmt: skip
                stats = cumulative_local_expert_recv_stats
                if stats is not None:
                    _check_stats(stats, call.num_experts // self.num_ranks)
            came, made = experts.dispatch(
                self._normal, call, lambda: wait_for(previous_event_before_epilogue)
            )
            if stats is not None:
                stats += made.num_unaligned_recv_tokens_per_expert.to(stats.device)
            home = call.topk_idx.device
            columns = (came.x, came.scales, came.topk_idx, came.topk_weights)
            rows, scales, idx, weights = (None if each is None else each.to(home) for each in columns)
            assert rows is not None, "there are rows"
            on_stream.keep(call.tokens.columns(), rows, scales, idx, weights, vars(made).values(), made.rows)
        event = on_stream.ended(asynchronous=async_with_compute_stream)
        return (
            rows if scales is None else (rows, scales),
            idx,
            weights,
            made if handle is None else handle,
            event,
        )

    def combine(  # noqa: PLR0913 (the original's)
        self,
        x: Tensor,
        handle: EPHandle,
        topk_weights: Tensor | None = None,
        bias: Tensor | tuple[Tensor, Tensor] | None = None,
        num_sms: int = 0,
        num_qps: int = 0,
        previous_event: Event = None,
        previous_event_before_epilogue: Event = None,
        async_with_compute_stream: bool = False,  # noqa: FBT001, FBT002
        allocate_on_comm_stream: bool = False,  # noqa: FBT001, FBT002, ARG002
    ) -> tuple[Tensor, Tensor | None, EventOverlap]:
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
                check_rows(x, "x", (torch.bfloat16,))
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

    # -- all-gather --

    @staticmethod
    def get_agrs_num_max_session_bytes(
        group: dist.ProcessGroup, shapes: Sequence[Sequence[int]], dtype: torch.dtype
    ) -> int:
        """Of a session that gathers tensors of these shapes."""
        bytes_each = (torch.Size(each).numel() * dtype.itemsize * group.size() for each in shapes)
        return sum(align(each, sizes.ROW_BYTES) for each in bytes_each)

    @staticmethod
    def get_agrs_buffer_size_hint(group: dist.ProcessGroup, num_max_session_bytes: int) -> int:  # noqa: ARG004
        """Bytes for such sessions."""
        return align(num_max_session_bytes, sizes.UNIT_BYTES)

    def agrs_set_config(self, num_max_session_bytes: int, num_max_all_gathers_per_session: int) -> None:
        """Limits of sessions. All ranks give the same."""
        self._turn_to(EXPERTS_CALLS)
        with self._memory.reporting("agrs_set_config"):
            self._sessions.configure(num_max_session_bytes, num_max_all_gathers_per_session)
        limits: dict[str, Fact] = {
            "bytes": num_max_session_bytes,
            "all-gathers": num_max_all_gathers_per_session,
        }
        self._normal.agree(limits, "agrs_set_config")

    def create_agrs_session(self) -> None:
        """All-gathers may follow, until `destroy_agrs_session`."""
        self._sessions.begin()
        self._turn_to(SESSIONS)

    def destroy_agrs_session(self) -> None:
        """What was gathered is not read any more: the next session writes over it."""
        self._sessions.end()

    @contextmanager
    def agrs_new_session(self, enabled: bool = True) -> Iterator[None]:  # noqa: FBT001, FBT002
        """A session around a block, if `enabled`."""
        if not enabled:
            yield
            return
        self.create_agrs_session()
        try:
            yield
        finally:
            self.destroy_agrs_session()

    def agrs_get_inplace_tensor(self, shapes: Any, dtype: torch.dtype) -> Any:
        """Where this rank's tensor of the next all-gather lies: filled there, it is not copied.

        A shape gives a tensor, several give a tuple, for one all-gather of all of them.
        """
        if shapes and isinstance(shapes[0], int):
            return self._sessions.own_parts([shapes], dtype)[0]
        return tuple(self._sessions.own_parts(list(shapes), dtype))

    def all_gather(self, t: Any) -> tuple[Any, ...]:
        """Tensors of all ranks, (R, …), and what waits until they are there: one of `t`, or of each of several."""
        self._sessions_only()
        results, wait = self._sessions.gather([t] if isinstance(t, Tensor) else list(t))
        return (*results, wait)

    # -- a ring --

    @staticmethod
    def get_pp_buffer_size_hint(num_max_tensor_bytes: int, num_max_inflight_tensors: int) -> int:
        """Bytes for so many tensors on their way to and from each neighbour."""
        return align(
            2 * num_max_inflight_tensors * align(num_max_tensor_bytes, PLACE_BYTES), sizes.UNIT_BYTES
        )

    def pp_set_config(self, num_max_tensor_bytes: int, num_max_inflight_tensors: int) -> None:
        """Before the first of a row of sends and receives. All ranks give the same, and have received what was sent."""
        self._turn_to(EXPERTS_CALLS)
        with self._memory.reporting("pp_set_config"):
            self._ring.configure(num_max_tensor_bytes, num_max_inflight_tensors)
        limits: dict[str, Fact] = {"bytes": num_max_tensor_bytes, "tensors": num_max_inflight_tensors}
        self._normal.agree(limits, "pp_set_config")
        self._turn_to(RING)

    def pp_send(self, t: Tensor, dst_rank_idx: int, num_sms: int = 0) -> None:  # noqa: ARG002
        """To the previous or the next rank. Waits only while as many tensors as may be are on their way."""
        self._ring_only()
        self._ring.send(t, dst_rank_idx)

    def pp_recv(self, t: Tensor, src_rank_idx: int, num_sms: int = 0) -> None:  # noqa: ARG002
        """Into `t`, from the previous or the next rank, in its order, as many bytes as it has sent."""
        self._ring_only()
        self._ring.receive(t, src_rank_idx)

    # -- Engram --

    @staticmethod
    def get_engram_storage_size_hint(
        num_entries: int, hidden: int, num_max_tokens_per_rank: int, dtype: torch.dtype = torch.bfloat16
    ) -> tuple[int, int]:
        """num_bytes and num_cpu_bytes for entries of each rank; fetched rows need no memory of the buffer here."""
        entry = sizes.row_bytes(hidden, dtype.itemsize)
        return align(num_max_tokens_per_rank * entry, sizes.UNIT_BYTES), align(
            num_entries * entry, sizes.UNIT_BYTES
        )

    def engram_write(self, storage: Tensor, sf: Tensor | None = None) -> None:
        """Publish this rank's entries (entries, hidden), bfloat16 or FP8, as many on all ranks. All call it.

        sf (entries of all ranks, packs): scales of FP8 entries, the same on all ranks.
        """
        self._turn_to(EXPERTS_CALLS)
        with self._memory.reporting("engram_write"):
            self._engram.check(storage, sf)
        facts: dict[str, Fact] = {"shape of storage": str(tuple(storage.shape)), "dtype": str(storage.dtype)}
        self._normal.agree(facts, "engram_write")
        self._engram.write(storage, sf)
        self.transport.barrier()

    def engram_fetch(
        self,
        indices: Tensor,
        num_qps: int = 0,  # noqa: ARG002
        use_tma_aligned_col_major_sf: bool = False,  # noqa: FBT001, FBT002
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """Entries by number, of all ranks: call the result for (rows (numbers in all, hidden), scales or None).

        Rank r has numbers r · entries to (r + 1) · entries - 1. No other rank takes part.
        """
        fetched = self._engram.fetch(indices, column_scales=use_tma_aligned_col_major_sf)
        return lambda: fetched

    # -- parts --

    def _new_call(  # noqa: PLR0913 (what a dispatch is told)
        self, x: Any, topk_idx: Tensor, topk_weights: Tensor | None, *, num_experts: int, num_max_tokens: int | None,
        alignment: int | None, copy: bool, sync: bool, num_sms: int, number: int, **options: bool,
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
        alignment = 1 if alignment is None else alignment
        if alignment < 1:
            refuse("expert_alignment", alignment, "it must be positive")
        topk = topk_idx.shape[1]
        if topk < 1:
            refuse("topk_idx", f"of shape {tuple(topk_idx.shape)}", "a token has one expert or more, or -1")
        expanded = routing.expanded_rows_max(most * self.num_ranks, topk, local, alignment)
        return Call(
            tokens=tokens,
            topk_idx=topk_idx.clone() if copy else topk_idx,
            num_experts=num_experts,
            num_max_tokens=most,
            alignment=alignment,
            num_sms=num_sms or Buffer.num_sms,
            number=number,
            sizes=None if sync else (most * self.num_ranks, expanded),
            **options,
        )

    def _cached_call(self, x: Any, topk_weights: Tensor | None, handle: EPHandle, **options: bool) -> Call:
        tokens = take_tokens(x, handle.topk_idx, topk_weights, device=self.transport.device)
        return Call(
            tokens=tokens,
            topk_idx=handle.topk_idx,
            num_experts=handle.num_experts,
            num_max_tokens=handle.num_max_tokens_per_rank,
            alignment=handle.expert_alignment,
            num_sms=handle.num_sms,
            number=handle.number,
            do_expand=handle.do_expand,
            sizes=(handle.num_recv_tokens, handle.num_expanded_tokens),
            is_cached=True,
            **options,
        )

    def _check_sms(self, num_sms: int, num_qps: int) -> None:
        if not 0 <= num_sms <= SMS_MAX:
            refuse("num_sms", num_sms, f"it must be 0 to {SMS_MAX}")
        if not 0 <= num_qps <= self.num_allocated_qps:
            refuse("num_qps", num_qps, f"{self.num_allocated_qps} are allocated")

    def _turn_to(self, use: str) -> None:
        """All ranks have done with what they used the memory for before."""
        if self._sessions.is_open and use != SESSIONS:
            raise BadCall("a session is open: end it first")
        if use != self._use:
            self.transport.barrier(what=f"from {self._use} to {use}")
            self._use = use

    def _sessions_only(self) -> None:
        if not self._sessions.is_open:
            raise BadCall("there is no session: use `with buffer.agrs_new_session():`")

    def _ring_only(self) -> None:
        if self._use != RING:
            raise BadCall(f"the buffer is used for {self._use}: call pp_set_config on all ranks first")

    def _synchronize(self) -> None:
        if self.transport.device.type == "cuda":
            torch.cuda.synchronize(self.transport.device)


def _check_handle(handle: EPHandle, given: Mapping[str, Any]) -> None:
    if not isinstance(handle, EPHandle):
        raise BadCall(
            f"the handle is {type(handle).__name__}; it must be the EPHandle that dispatch returned"
        )
    for name, value in given.items():
        if value is not None and value != getattr(handle, name):
            raise BadCall(f"{name} is {value}; the handle is of a dispatch with {getattr(handle, name)}")


def _check_stats(stats: Tensor, experts: int) -> None:
    if stats.dtype != torch.int32 or tuple(stats.shape) != (experts,):
        refuse("cumulative_local_expert_recv_stats", f"{stats.dtype} of shape {tuple(stats.shape)}",
               f"it must be torch.int32 of shape {(experts,)}")  # fmt: skip


def _check_answers(x: Tensor, topk_weights: Tensor | None, handle: EPHandle) -> None:
    ends = handle.psum_num_recv_tokens_per_expert if handle.do_expand else None
    counts = handle.psum_num_recv_tokens_per_scaleup_rank if ends is None else ends
    needed = int(counts[-1])
    if len(x) < needed:
        refuse("x", f"of {len(x)} rows", f"the dispatch of this handle has filled {needed}")
    if topk_weights is None:
        return
    if topk_weights.dtype != torch.float32:
        raise BadType(f"topk_weights are {topk_weights.dtype}; they must be torch.float32")
    shape = tuple(topk_weights.shape)
    wanted = (
        (shape[0] if shape else 0,)
        if handle.do_expand
        else (shape[0] if shape else 0, handle.topk_idx.shape[1])
    )
    if shape != wanted or len(topk_weights) < needed:
        refuse("topk_weights", f"of shape {shape}", "it must be as dispatch has returned it")


__all__ = ["ElasticBuffer"]
