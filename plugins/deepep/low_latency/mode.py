"""What `Buffer.low_latency_dispatch` and `low_latency_combine` do.

L1  The two halves of the shared memory are used in turns. A call writes into a peer's half only when the peer has
    taken what the last call on that half brought it (a flag that says so), so that neither hooks that are called
    late nor graphs that are replayed can overwrite what is still needed.
L2  Sending does not wait for what others send in this call; receiving, at once or by the hook, does.
L3  On a device nothing is read back by the host and nothing depends on the values of tensors but what kernels do,
    so that a call can be captured in a CUDA graph. A graph must contain an even number of calls, or be replayed an
    even number of times, for the halves to go on alternating: L1 holds in any case.
L4  At most two results are alive: a call is refused while the hook of the last but one was not called.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import BadArgument, BadCall, BadType, refuse
from ...kernels.layers import uses_kernels
from ...kernels.quantize import BLOCK, FP8, align
from ..event import CommunicationStream, EventOverlap
from ..failure import CommunicationError, RanksDisagree
from ..layout import check_numbers
from ..transport.flags import HostFlags, open_flags
from ..transport.interface import Transport
from . import host
from .layout import ALIGNMENT, HALVES, SIZES_BYTES, Layout, sizes_at

READY: Final = 8  # and 9, for the second half: what a rank has sent is there
FREE: Final = 10  # and 11: what was sent has been taken
TOPK_MAX: Final = 32
HIDDEN_MULTIPLE: Final = 8  # 16 bytes of bfloat16
_REFUSED: Final = "refused"
_KINDS: Final = ("bf16", "fp8", "logfmt", _REFUSED)

Hook = Callable[[], None]
Handle = tuple[Tensor, Tensor, int, int, int]
"""Source tokens (e, R · N) int32, ranges (e, R) int64, N, hidden, experts."""


class Dispatched(NamedTuple):
    """Results of `dispatch`, in the original's order."""

    x: Tensor | tuple[Tensor, Tensor]
    counts: Tensor
    handle: Handle
    event: EventOverlap
    hook: Hook | None


class Combined(NamedTuple):
    """Results of `combine`, in the original's order."""

    x: Tensor
    event: EventOverlap
    hook: Hook | None


class LowLatency:
    """Low-latency mode over a part of a transport's regions, from byte `base` on, of `num_bytes`."""

    def __init__(
        self,
        transport: Transport,
        *,
        base: int = 0,
        num_bytes: int,
        shrink: bool = False,
        stream: CommunicationStream | None = None,
    ) -> None:
        self.transport, self.shrink = transport, shrink
        self.base = align(base, ALIGNMENT)
        self.given_bytes, self.num_bytes = num_bytes, num_bytes - (self.base - base)
        self.rank, self.ranks = transport.rank, transport.size
        self.inactive = torch.zeros(self.ranks, dtype=torch.int32, device=transport.device)
        self._half = 0
        self._unreceived = [False] * HALVES
        self._table = transport.addresses() + self.base
        self._outgoing: list[Tensor | None] = [None] * HALVES
        self._flags = open_flags(transport, self.inactive, drop=shrink)
        self._stream = stream or CommunicationStream(transport.device)

    # The original's calls.

    def dispatch(  # noqa: PLR0913 (the original's)
        self,
        x: Tensor,
        topk_idx: Tensor,
        max_tokens: int,
        experts: int,
        *,
        stats: Tensor | None = None,
        wait_costs: Tensor | None = None,
        use_fp8: bool = True,
        round_scale: bool = False,
        use_ue8m0: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
    ) -> Dispatched:
        """See `Buffer.low_latency_dispatch`."""
        with self._telling("low-latency dispatch"):
            layout = self._layout(max_tokens, x.shape[-1], experts)
            _check_tokens(x, topk_idx, layout)
            topk_idx = topk_idx.to(torch.int64)
            _check_casts(layout, fp8=use_fp8, round_scale=round_scale, use_ue8m0=use_ue8m0)
            _check_finish(async_finish=async_finish, return_recv_hook=return_recv_hook)
            _check_counter(stats, "cumulative_local_expert_recv_stats", torch.int32, layout.local)
            _check_counter(wait_costs, "dispatch_wait_recv_cost_stats", torch.int64, self.ranks)
            ops = self._ops(x)
            if ops is host:
                host.require_room(layout, topk_idx)
        half = self._take_turn("low_latency_dispatch")
        shape = (layout.local, layout.rows, layout.hidden)
        rows = torch.empty(shape, dtype=FP8 if use_fp8 else torch.bfloat16, device=x.device)
        scales = None
        if use_fp8:
            width = layout.groups // 4 if use_ue8m0 else layout.groups
            kind = torch.int32 if use_ue8m0 else torch.float32
            scales = torch.empty((layout.local, width, layout.rows), dtype=kind, device=x.device).mT
        counts = torch.empty(layout.local, dtype=torch.int32, device=x.device)
        source_tokens = torch.empty((layout.local, layout.rows), dtype=torch.int32, device=x.device)
        ranges = torch.empty((layout.local, self.ranks), dtype=torch.int64, device=x.device)

        def send() -> None:
            self._wait_free(half, "low-latency dispatch: memory that is still in use")
            inputs = (x, topk_idx)
            options: dict[str, Any] = {"rank": self.rank, "fp8": use_fp8, "round_scale": round_scale}
            ops.dispatch_send(layout, self._places(ops), half, *inputs, **options)
            self._publish(half, layout.sizes, "fp8" if use_fp8 else "bf16")

        def receive() -> None:
            what = "low-latency dispatch: tokens"
            self._take(half, layout, "fp8" if use_fp8 else "bf16", what, wait_costs)
            outputs: dict[str, Any] = {
                "rows": rows, "scales": scales, "source_tokens": source_tokens, "ranges": ranges,
                "recv_counts": counts, "stats": stats,
            }  # fmt: skip
            ops.dispatch_receive(layout, self._places(ops), half, rank=self.rank, **outputs)
            self._release(half)

        handle = (source_tokens, ranges, max_tokens, layout.hidden, experts)
        tensors = (x, topk_idx, rows, scales, counts, source_tokens, ranges, stats, wait_costs)
        event, hook = self._carry_out(send, receive, half, tensors, async_finish, return_recv_hook)
        packed = rows if scales is None else (rows, scales)
        return Dispatched(packed, counts, handle, event, hook)

    def combine(  # noqa: PLR0913 (the original's)
        self,
        x: Tensor,
        topk_idx: Tensor,
        topk_weights: Tensor,
        handle: Handle,
        *,
        use_logfmt: bool = False,
        zero_copy: bool = False,
        async_finish: bool = False,
        return_recv_hook: bool = False,
        out: Tensor | None = None,
        wait_costs: Tensor | None = None,
    ) -> Combined:
        """See `Buffer.low_latency_combine`."""
        with self._telling("low-latency combine"):
            source_tokens, ranges, max_tokens, hidden, experts = handle
            layout = self._layout(max_tokens, hidden, experts)
            _check_answers(x, topk_idx, topk_weights, out, layout)
            topk_idx = topk_idx.to(torch.int64)
            if use_logfmt and (hidden % BLOCK or zero_copy):
                refuse(
                    "use_logfmt", f"with hidden {hidden}, zero_copy {zero_copy}",
                    f"hidden must be a multiple of {BLOCK}, and zero_copy False",
                )  # fmt: skip
            _check_finish(async_finish=async_finish, return_recv_hook=return_recv_hook)
            _check_counter(wait_costs, "combine_wait_recv_cost_stats", torch.int64, self.ranks)
        half = self._take_turn("low_latency_combine")
        given = self._given(layout, half) if zero_copy else x
        result = x.new_empty(topk_idx.shape[0], hidden) if out is None else out
        ops, kind = self._ops(x), "logfmt" if use_logfmt else "bf16"

        def send() -> None:
            self._wait_free(half, "low-latency combine: memory that is still in use")
            options: dict[str, Any] = {
                "ranges": ranges, "source_tokens": source_tokens, "rank": self.rank, "logfmt": use_logfmt
            }  # fmt: skip
            ops.combine_send(layout, self._places(ops), half, given, **options)
            self._publish(half, layout.sizes, kind)

        def receive() -> None:
            self._take(half, layout, kind, "low-latency combine: answers", wait_costs)
            options: dict[str, Any] = {
                "topk": topk_idx, "weights": topk_weights, "out": result, "logfmt": use_logfmt
            }  # fmt: skip
            ops.combine_receive(layout, self._places(ops), half, rank=self.rank, **options)
            self._release(half)

        tensors = (given, topk_idx, topk_weights, source_tokens, ranges, result, wait_costs)
        event, hook = self._carry_out(send, receive, half, tensors, async_finish, return_recv_hook)
        return Combined(result, event, hook)

    def next_combine_buffer(self, handle: Handle) -> Tensor:
        """Where `combine(zero_copy=True)` will take its input from: (e, R · N, H) bfloat16."""
        return self._given(self._layout(*handle[2:]), self._half)

    def clean(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Checks that the sizes fit. Nothing needs to be zeroed: flags are epochs, and this memory is only ours."""
        self._layout(max_tokens, hidden, experts)

    # Ranks that take no part.

    def update_mask(self, rank: int, *, masked: bool) -> None:
        """Excludes a rank from all further calls, or includes it again."""
        self._require_shrink()
        if not 0 <= rank < self.ranks or rank == self.rank:
            refuse("rank_to_mask", rank, f"it must be another rank, 0 to {self.ranks - 1}")
        self.inactive[rank] = int(masked)

    def query_mask(self, into: Tensor) -> None:
        """Fills (ranks,) int32: 1 for ranks that take no part."""
        self._require_shrink()
        _check_counter(into, "mask_status", torch.int32, self.ranks)
        into.copy_(self.inactive)

    def clean_mask(self) -> None:
        """All ranks take part again."""
        self._require_shrink()
        self.inactive.zero_()

    # Turns, flags, memory.

    @contextmanager
    def _telling(self, call: str) -> Iterator[None]:
        """Arguments are looked at inside. If they are refused, the call of the others ends with an error."""
        try:
            yield
        except (ValueError, TypeError, AssertionError):
            half = self._half
            if self._compares and not self._unreceived[half]:
                with suppress(CommunicationError):  # this rank has an error of its own to raise
                    self._take_turn(call)
                    self._wait_free(half, f"{call}: memory that is still in use")
                    self._publish(half, (0, 0, 0), _REFUSED)
                    assert isinstance(self._flags, HostFlags), "it compares"
                    self._flags.skip(READY + half)
                    self._release(half)
            raise

    def _take_turn(self, what: str) -> int:
        half = self._half
        if self._unreceived[half]:
            raise BadCall(
                f"{what}: the hook of the last call but one was not called yet; only two results may be alive"
            )
        self._half = (half + 1) % HALVES
        self._unreceived[half] = True
        return half

    def _wait_free(self, half: int, what: str) -> None:
        self._flags.wait(FREE + half, what, less=1)

    def _publish(self, half: int, call: tuple[int, int, int], kind: str) -> None:
        if self._compares:
            at = self.base + sizes_at(half, self.rank, ranks=self.ranks)
            sizes = torch.tensor([*call, _KINDS.index(kind)])
            for peer in self._active():
                self.transport.buffer(peer)[at : at + SIZES_BYTES] = sizes.view(torch.uint8)
        self._flags.signal(READY + half)

    def _take(self, half: int, layout: Layout, kind: str, what: str, costs: Tensor | None) -> None:
        self._flags.wait(READY + half, what, costs=costs)
        if not self._compares:
            return
        mine, others = (*layout.sizes, kind), {}
        for peer in self._active():
            at = sizes_at(half, peer, ranks=self.ranks)
            *sizes, code = self._memory(self.rank)[at : at + SIZES_BYTES].view(torch.int64).tolist()
            others[peer] = (*sizes, _KINDS[code])
        for peer, theirs in others.items():
            if theirs[-1] == _REFUSED:
                self._release(half)
                raise RanksDisagree(
                    f"rank {peer} has refused its arguments", rank=peer, phase=what, peer=peer
                )
        for peer, theirs in others.items():
            if theirs != mine:
                error = RanksDisagree(
                    f"rank {peer} called with (max tokens, hidden, experts, type) = {theirs}, rank {self.rank} with "
                    f"{mine}; all ranks must give the same", rank=self.rank, phase=what, peer=peer,
                )  # fmt: skip
                self.transport.fail(error)
                raise error

    def _release(self, half: int) -> None:
        self._flags.signal(FREE + half)
        self._unreceived[half] = False

    def _carry_out(  # noqa: PLR0913 (two steps and how they end)
        self,
        send: Hook,
        receive: Hook,
        half: int,
        tensors: tuple[Any, ...],
        async_finish: bool,  # noqa: FBT001
        return_recv_hook: bool,  # noqa: FBT001
    ) -> tuple[EventOverlap, Hook | None]:
        """With a hook, both steps on the caller's stream; else on the buffer's own."""
        self.transport.check()
        if not return_recv_hook:
            with self._stream.call() as call:
                send()
                receive()
                call.keep(tensors)
            return call.ended(asynchronous=async_finish), None
        send()

        def hook() -> None:
            if not self._unreceived[half]:
                raise BadCall("this hook was called already")
            receive()

        return EventOverlap(), hook

    @property
    def _compares(self) -> bool:
        """Whether ranks compare what they are called with: where the host waits, and regions are its memory."""
        return isinstance(self._flags, HostFlags) and self.transport.device.type == "cpu"

    def _memory(self, rank: int) -> Tensor:
        return self.transport.buffer(rank)[self.base : self.base + self.num_bytes]

    def _ops(self, x: Tensor) -> Any:
        """The module that sends and receives: `launch` or `host`."""
        if x.device.type == "cpu" and not uses_kernels(x):
            return host
        from . import launch

        return launch

    def _places(self, ops: Any) -> Any:
        if ops is host:
            memories = [self._memory(rank) for rank in range(self.ranks)]
            return host.Places(memories, self._active())
        return ops.Places(self._table, self.inactive, self.transport.stopped)

    def _given(self, layout: Layout, half: int) -> Tensor:
        """What `next_combine_buffer` returns: memory of this process, one for each half."""
        shape = (layout.local, layout.rows, layout.hidden)
        known = self._outgoing[half]
        if known is None or tuple(known.shape) != shape:
            known = torch.empty(shape, dtype=torch.bfloat16, device=self.transport.device)
            self._outgoing[half] = known
        return known

    def _active(self) -> list[int]:
        return [rank for rank, masked in enumerate(self.inactive.tolist()) if not masked]

    def _layout(self, max_tokens: int, hidden: int, experts: int) -> Layout:
        if max_tokens <= 0 or experts <= 0 or experts % self.ranks:
            refuse(
                "num_max_dispatch_tokens_per_rank, num_experts", (max_tokens, experts),
                f"both must be positive, and experts a multiple of the {self.ranks} ranks",
            )  # fmt: skip
        if hidden <= 0 or hidden % HIDDEN_MULTIPLE:
            refuse("hidden", hidden, f"it must be a multiple of {HIDDEN_MULTIPLE}")
        layout = Layout(max_tokens, hidden, self.ranks, experts, self.num_bytes)
        if layout.total_bytes > self.given_bytes:
            refuse(
                "num_rdma_bytes", self.given_bytes,
                f"{layout.total_bytes} are needed for {max_tokens} tokens of {hidden} and {experts} experts: see "
                "Buffer.get_low_latency_rdma_size_hint",
            )  # fmt: skip
        return layout

    def _require_shrink(self) -> None:
        if not self.shrink:
            raise BadCall("masks of ranks need a Buffer with enable_shrink=True")


def size_hint(max_tokens: int, hidden: int, ranks: int, experts: int) -> int:
    """Bytes that low-latency mode needs of each rank."""
    if min(max_tokens, hidden, ranks, experts) <= 0 or experts % ranks:
        raise BadArgument(
            f"{max_tokens} tokens of {hidden} on {ranks} ranks with {experts} experts: all must be positive, and "
            "experts a multiple of ranks"
        )
    return Layout(max_tokens, hidden, ranks, experts).total_bytes


def _check_tokens(x: Tensor, topk_idx: Tensor, layout: Layout) -> None:
    if x.dtype != torch.bfloat16:
        raise BadType(f"x is {x.dtype}; it must be torch.bfloat16: low-latency mode casts by itself")
    if x.dim() != 2 or not x.is_contiguous():
        refuse(
            "x", f"of shape {tuple(x.shape)}, strides {x.stride()}", "it must be (tokens, hidden), contiguous"
        )
    _check_topk(topk_idx, x.shape[0], layout)


def _check_topk(topk_idx: Tensor, tokens: int, layout: Layout) -> None:
    if topk_idx.dtype not in {torch.int64, torch.int32}:
        raise BadType(f"topk_idx is {topk_idx.dtype}; it must be torch.int64, or torch.int32")
    if topk_idx.dim() != 2 or topk_idx.shape[0] != tokens or not topk_idx.is_contiguous():
        refuse("topk_idx", f"of shape {tuple(topk_idx.shape)}", f"it must be ({tokens}, k), contiguous")
    if not 0 < topk_idx.shape[1] <= TOPK_MAX:
        refuse("k", topk_idx.shape[1], f"it must be 1 to {TOPK_MAX}")
    check_numbers(topk_idx, layout.experts)
    if tokens > layout.max_tokens:
        refuse("x", f"of {tokens} tokens", f"num_max_dispatch_tokens_per_rank is {layout.max_tokens}")


def _check_casts(layout: Layout, *, fp8: bool, round_scale: bool, use_ue8m0: bool) -> None:
    if use_ue8m0 and not round_scale:
        refuse("use_ue8m0", use_ue8m0, "it goes with round_scale=True")
    if not fp8:
        return
    multiple = 4 * BLOCK if use_ue8m0 else BLOCK
    if layout.hidden % multiple:
        refuse(
            "hidden", layout.hidden, f"it must be a multiple of {multiple} here; use_fp8=False takes others"
        )


def _check_answers(
    x: Tensor, topk_idx: Tensor, topk_weights: Tensor, out: Tensor | None, layout: Layout
) -> None:
    if x.dtype != torch.bfloat16:
        raise BadType(f"x is {x.dtype}; it must be torch.bfloat16")
    shape = (layout.local, layout.rows, layout.hidden)
    if tuple(x.shape) != shape or not x.is_contiguous():
        refuse("x", f"of shape {tuple(x.shape)}", f"it must be {shape}, contiguous, as dispatch has made it")
    _check_topk(topk_idx, topk_idx.shape[0], layout)
    if topk_weights.dtype != torch.float32:
        raise BadType(f"topk_weights is {topk_weights.dtype}; it must be torch.float32")
    if topk_weights.shape != topk_idx.shape or not topk_weights.is_contiguous():
        refuse("topk_weights", f"of shape {tuple(topk_weights.shape)}", f"it must be {tuple(topk_idx.shape)}")
    if out is not None and (
        out.dtype != torch.bfloat16
        or tuple(out.shape) != (topk_idx.shape[0], layout.hidden)
        or out.stride(-1) != 1
    ):
        refuse(
            "out", f"{out.dtype} of shape {tuple(out.shape)}",
            f"it must be torch.bfloat16 of {(topk_idx.shape[0], layout.hidden)}",
        )  # fmt: skip


def _check_finish(*, async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise BadCall(
            "async_finish and return_recv_hook exclude each other: a hook receives on the current stream"
        )


def _check_counter(counter: Tensor | None, name: str, dtype: torch.dtype, size: int) -> None:
    if counter is None:
        return
    if counter.dtype != dtype:
        raise BadType(f"{name} is {counter.dtype}; it must be {dtype}")
    if tuple(counter.shape) != (size,) or not counter.is_contiguous():
        refuse(name, f"of shape {tuple(counter.shape)}", f"it must be ({size},), contiguous")


__all__ = ["Combined", "Dispatched", "Handle", "Hook", "LowLatency", "size_hint"]
