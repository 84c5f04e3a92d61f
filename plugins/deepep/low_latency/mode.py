"""What `Buffer.low_latency_dispatch` and `low_latency_combine` do.

L1  The two halves of the shared memory are used in turns. A call writes into a peer's half only when the peer has
    taken what the last call on that half brought it (a flag reports it), so that neither hooks that are called late nor
    graphs that are replayed can overwrite what is still needed.
L2  Sending does not wait for what others send in this call; receiving, at once or by the hook, does.
L3  On a device nothing is read back by the host and nothing depends on the values of tensors but what kernels do,
    so that a call can be captured in a CUDA graph. A graph must contain an even number of calls, or be replayed an
    even number of times, for the halves to alternate: L1 holds in any case.
L4  At most two results are alive: a call is refused while the hook of the last but one was not called.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor

from ...kernels.errors import BadArgument, BadCall, refuse
from ...kernels.layers import uses_kernels
from ...kernels.quantize import BLOCK, align
from ..normal.arguments import TOPK_MAX, check_tensor
from ..normal.layout import check_numbers
from ..transport.errors import CommunicationError, RanksDisagree
from ..transport.event import CommunicationStream, EventOverlap
from ..transport.interface import Transport
from .host import HostOps, require_room
from .layout import ALIGNMENT, HALVES, SIZES_BYTES, Layout, Received, sizes_at

READY: Final = 8  # and 9, for the second half: what a rank has sent can be read
FREE: Final = 10  # and 11: what was sent has been taken
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


@dataclass(frozen=True)
class _Call:
    """One call on a half. `waits_for`: what it waits for from the others; `name` of the call and it are for errors."""

    half: int
    layout: Layout
    name: str
    kind: str
    waits_for: str
    costs: Tensor | None
    async_finish: bool
    return_recv_hook: bool


class LowLatency:
    """Low-latency mode over a part of a transport's regions, from byte `base` on, of `num_bytes`."""

    def __init__(
        self, transport: Transport, *, base: int = 0, num_bytes: int, shrink: bool = False,
        stream: CommunicationStream | None = None,
    ) -> None:  # fmt: skip
        assert base + num_bytes <= transport.num_bytes, "a part of each region"
        self.transport, self.shrink = transport, shrink
        self.base = align(base, ALIGNMENT)
        self.given_bytes, self.num_bytes = num_bytes, num_bytes - (self.base - base)
        self.rank, self.ranks = transport.rank, transport.size
        self.inactive = torch.zeros(self.ranks, dtype=torch.int32, device=transport.device)
        self._mask = self.inactive if shrink else None
        self._half = 0
        self._unreceived = [False] * HALVES
        self._table = transport.addresses() + self.base
        self._outgoing: list[Tensor | None] = [None] * HALVES
        self._stream = stream or CommunicationStream(transport.device)

    # The original's calls.

    def dispatch(  # noqa: PLR0913 (the original's)
        self, x: Tensor, topk_idx: Tensor, max_tokens: int, experts: int, *, stats: Tensor | None = None,
        wait_costs: Tensor | None = None, use_fp8: bool = True, round_scale: bool = False, use_ue8m0: bool = False,
        async_finish: bool = False, return_recv_hook: bool = False,
    ) -> Dispatched:  # fmt: skip
        """See `Buffer.low_latency_dispatch`."""
        name = "low-latency dispatch"
        with self._reporting(name):
            layout = self._layout(max_tokens, x.shape[-1], experts)
            check_tensor(x, "x", (torch.bfloat16,), (len(x), layout.hidden))
            _check_topk(topk_idx, len(x), layout)
            topk_idx = topk_idx.to(torch.int64)
            if use_ue8m0 and not round_scale:
                refuse("use_ue8m0", use_ue8m0, "it needs round_scale=True")
            multiple = 4 * BLOCK if use_ue8m0 else BLOCK
            if use_fp8 and layout.hidden % multiple:
                allowed = f"it must be a multiple of {multiple} here; use_fp8=False takes others"
                refuse("hidden", layout.hidden, allowed)
            _check_finish(async_finish=async_finish, return_recv_hook=return_recv_hook)
            check_tensor(stats, "cumulative_local_expert_recv_stats", (torch.int32,), (layout.local,))
            check_tensor(wait_costs, "dispatch_wait_recv_cost_stats", (torch.int64,), (self.ranks,))
            ops = self._ops(layout, x)
            if isinstance(ops, HostOps):
                require_room(layout, topk_idx)
        half = self._take_turn("low_latency_dispatch")
        out = Received.empty(layout, x.device, fp8=use_fp8, use_ue8m0=use_ue8m0)
        event, hook = self._carry_out(
            _Call(half, layout, name, "fp8" if use_fp8 else "bf16", "tokens", wait_costs, async_finish,
                  return_recv_hook),
            send=lambda: ops.dispatch_send(half, x, topk_idx, fp8=use_fp8, round_scale=round_scale),
            receive=lambda: ops.dispatch_receive(half, out, stats),
            tensors=(x, topk_idx, *vars(out).values(), stats, wait_costs),
        )  # fmt: skip
        handle = (out.source_tokens, out.ranges, max_tokens, layout.hidden, experts)
        packed = out.rows if out.scales is None else (out.rows, out.scales)
        return Dispatched(packed, out.counts, handle, event, hook)

    def combine(  # noqa: PLR0913 (the original's)
        self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor, handle: Handle, *, use_logfmt: bool = False,
        zero_copy: bool = False, async_finish: bool = False, return_recv_hook: bool = False,
        out: Tensor | None = None, wait_costs: Tensor | None = None,
    ) -> Combined:  # fmt: skip
        """See `Buffer.low_latency_combine`."""
        name = "low-latency combine"
        with self._reporting(name):
            source_tokens, ranges, max_tokens, hidden, experts = handle
            layout = self._layout(max_tokens, hidden, experts)
            check_tensor(x, "x", (torch.bfloat16,), (layout.local, layout.rows, hidden))
            _check_topk(topk_idx, len(topk_idx), layout)
            check_tensor(topk_weights, "topk_weights", (torch.float32,), tuple(topk_idx.shape))
            check_tensor(out, "out", (torch.bfloat16,), (len(topk_idx), hidden), strided=True)
            topk_idx = topk_idx.to(torch.int64)
            if use_logfmt and (hidden % BLOCK or zero_copy):
                refuse(
                    "use_logfmt", f"with hidden {hidden}, zero_copy {zero_copy}",
                    f"hidden must be a multiple of {BLOCK}, and zero_copy False",
                )  # fmt: skip
            _check_finish(async_finish=async_finish, return_recv_hook=return_recv_hook)
            check_tensor(wait_costs, "combine_wait_recv_cost_stats", (torch.int64,), (self.ranks,))
        half = self._take_turn("low_latency_combine")
        given = self._outgoing_of(layout, half) if zero_copy else x
        result = x.new_empty(len(topk_idx), hidden) if out is None else out
        ops = self._ops(layout, x)
        event, hook = self._carry_out(
            _Call(half, layout, name, "logfmt" if use_logfmt else "bf16", "answers", wait_costs, async_finish,
                  return_recv_hook),
            send=lambda: ops.combine_send(
                half, given, ranges=ranges, source_tokens=source_tokens, logfmt=use_logfmt
            ),
            receive=lambda: ops.combine_receive(
                half, topk=topk_idx, weights=topk_weights, out=result, logfmt=use_logfmt
            ),
            tensors=(given, topk_idx, topk_weights, source_tokens, ranges, result, wait_costs),
        )  # fmt: skip
        return Combined(result, event, hook)

    def next_combine_buffer(self, handle: Handle) -> Tensor:
        """Where `combine(zero_copy=True)` will take its input from: (e, R · N, H) bfloat16."""
        return self._outgoing_of(self._layout(*handle[2:]), self._half)

    def clean(self, max_tokens: int, hidden: int, experts: int) -> None:
        """Check that the sizes fit. Nothing needs to be zeroed: flags are epochs, and only this mode writes here."""
        self._layout(max_tokens, hidden, experts)

    # Ranks that take no part.

    def update_mask(self, rank: int, *, masked: bool) -> None:
        """Exclude a rank from all further calls, or include it again."""
        self._require_shrink()
        if not 0 <= rank < self.ranks or rank == self.rank:
            refuse("rank_to_mask", rank, f"it must be another rank, 0 to {self.ranks - 1}")
        self.inactive[rank] = int(masked)

    def query_mask(self, into: Tensor) -> None:
        """Fill (ranks,) int32: 1 for ranks that take no part."""
        self._require_shrink()
        check_tensor(into, "mask_status", (torch.int32,), (self.ranks,))
        into.copy_(self.inactive)

    def clean_mask(self) -> None:
        """Let all ranks take part again."""
        self._require_shrink()
        self.inactive.zero_()

    # Turns, flags, memory.

    @contextmanager
    def _reporting(self, call: str) -> Iterator[None]:
        """Check arguments inside. If they are refused, the call of the others ends with an error."""
        try:
            yield
        except (ValueError, TypeError, AssertionError):
            half = self._half
            if self.transport.compares and not self._unreceived[half]:
                with suppress(CommunicationError):  # this rank has an error of its own to raise
                    self._take_turn(call)
                    self._wait(FREE + half, f"{call}: memory that is still in use", less=1)
                    self._publish(half, (0, 0, 0), _REFUSED)
                    self.transport.skip_wait(READY + half)
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

    def _carry_out(
        self, call: _Call, *, send: Hook, receive: Hook, tensors: tuple[Any, ...]
    ) -> tuple[EventOverlap, Hook | None]:
        """Send and receive on the buffer's own stream; with a hook, both on the caller's."""
        half = call.half

        def send_all() -> None:
            self._wait(FREE + half, f"{call.name}: memory that is still in use", less=1)
            send()
            self._publish(half, call.layout.sizes, call.kind)

        def receive_all() -> None:
            what = f"{call.name}: {call.waits_for}"
            self._wait(READY + half, what, costs=call.costs)
            if self.transport.compares:
                self._compare(half, (*call.layout.sizes, call.kind), what)
            receive()
            self._release(half)

        def hook() -> None:
            if not self._unreceived[half]:
                raise BadCall("this hook was called already")
            receive_all()

        self.transport.check()
        if call.return_recv_hook:
            send_all()
            return EventOverlap(), hook
        with self._stream.call() as on_stream:
            send_all()
            receive_all()
            on_stream.keep(tensors)
        return on_stream.ended(asynchronous=call.async_finish), None

    def _wait(self, slot: int, what: str, *, less: int = 0, costs: Tensor | None = None) -> None:
        self.transport.wait_all(slot, what, less=less, inactive=self._mask, drop=self.shrink, costs=costs)

    def _publish(self, half: int, call: tuple[int, int, int], kind: str) -> None:
        if self.transport.compares:
            at = self.base + sizes_at(half, self.rank, ranks=self.ranks)
            sizes = torch.tensor([*call, _KINDS.index(kind)])
            for peer in self._active():
                self.transport.buffer(peer)[at : at + SIZES_BYTES] = sizes.view(torch.uint8)
        self.transport.signal_all(READY + half, self._mask)

    def _compare(self, half: int, mine: tuple[int | str, ...], what: str) -> None:
        """Raises: RanksDisagree, where a rank was called with other sizes or has refused its arguments."""
        others: dict[int, tuple[int | str, ...]] = {}
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
        self.transport.signal_all(FREE + half, self._mask)
        self._unreceived[half] = False

    def _memory(self, rank: int) -> Tensor:
        return self.transport.buffer(rank)[self.base : self.base + self.num_bytes]

    def _ops(self, layout: Layout, x: Tensor) -> Any:
        """What sends and receives: HostOps or KernelOps."""
        if x.device.type == "cpu" and not uses_kernels(x):
            memories = [self._memory(rank) for rank in range(self.ranks)]
            return HostOps(layout, self.rank, memories, self.inactive)
        from .launch import KernelOps

        return KernelOps(layout, self.rank, self._table, self.inactive, self.transport.stopped)

    def _outgoing_of(self, layout: Layout, half: int) -> Tensor:
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


def _check_topk(topk_idx: Tensor, tokens: int, layout: Layout) -> None:
    k = topk_idx.shape[-1]
    check_tensor(topk_idx, "topk_idx", (torch.int64, torch.int32), (tokens, k))
    if not 0 < k <= TOPK_MAX:
        refuse("k", k, f"it must be 1 to {TOPK_MAX}")
    check_numbers(topk_idx, layout.experts)
    if tokens > layout.max_tokens:
        refuse("x", f"of {tokens} tokens", f"num_max_dispatch_tokens_per_rank is {layout.max_tokens}")


def _check_finish(*, async_finish: bool, return_recv_hook: bool) -> None:
    if async_finish and return_recv_hook:
        raise BadCall(
            "async_finish and return_recv_hook exclude each other: a hook receives on the current stream"
        )


__all__ = ["Combined", "Dispatched", "Handle", "Hook", "LowLatency", "size_hint"]
