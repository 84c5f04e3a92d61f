"""Turns of low-latency mode: which half of the shared memory a call uses, and what it waits for.

L1  The two halves of the shared memory are used in turns. A call writes into a peer's half only when the peer has
    taken what the last call on that half brought it (a flag reports it), so that neither hooks that are called late nor
    graphs that are replayed can overwrite what is still needed.
L2  Sending does not wait for what others send in this call; receiving, at once or by the hook, does.
L3  On a device nothing is read back by the host and nothing depends on the values of tensors but what kernels do,
    so that a call can be captured in a CUDA graph. A graph must contain an even number of calls, or be replayed an
    even number of times, for the halves to alternate: L1 holds in any case.
L4  At most two results are alive: a call is refused while the hook of the last but one was not called.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Final

import torch
from torch import Tensor

from ...kernels.errors import BadCall, refuse
from ...kernels.layers import uses_kernels
from ...kernels.quantize import align
from ..transport import segment_header
from ..transport.errors import CommunicationError, RanksDisagree
from ..transport.event import CommunicationStream, EventOverlap
from ..transport.interface import Transport
from ..transport.segment_header import HEADER_BYTES, Fact
from .host import HostOps
from .layout import ALIGNMENT, HALVES, Layout

READY: Final = 8  # and 9, for the second half: what a rank has sent can be read
FREE: Final = 10  # and 11: what was sent has been taken
HIDDEN_MULTIPLE: Final = 8  # 16 bytes of bfloat16

Hook = Callable[[], None]


@dataclass(frozen=True)
class Turn:
    """One call on a half. `name` of the call and `waits_for`, what it waits for from the others, are for errors.

    costs (ranks,) int64 grow by the nanoseconds that each rank was waited for.
    """

    half: int
    layout: Layout
    name: str
    kind: str
    waits_for: str
    costs: Tensor | None

    @property
    def facts(self) -> dict[str, Fact]:
        """What must be equal on all ranks."""
        sizes = zip(("max tokens", "hidden size", "experts"), self.layout.sizes, strict=True)
        return {"call": self.name, "type": self.kind, **dict(sizes)}


class LowLatencyMode:
    """Low-latency mode over a part of a transport's regions, from byte `base` on, of `num_bytes`."""

    def __init__(
        self, transport: Transport, *, base: int = 0, num_bytes: int, shrink: bool = False,
        stream: CommunicationStream,
    ) -> None:  # fmt: skip
        assert base + num_bytes <= transport.num_bytes, "a part of each region"
        self.rank, self.ranks, self.half = transport.rank, transport.size, 0
        self._transport, self._shrink, self._stream = transport, shrink, stream
        self._base = align(base, ALIGNMENT)
        self._given_bytes, self._num_bytes = num_bytes, num_bytes - (self._base - base)
        self._inactive = torch.zeros(self.ranks, dtype=torch.int32, device=transport.device)
        self._mask = self._inactive if shrink else None
        self._unreceived = [False] * HALVES
        self._table = transport.addresses() + self._base
        self._outgoing: list[Tensor | None] = [None] * HALVES

    def layout(self, max_tokens: int, hidden: int, experts: int) -> Layout:
        """Where things are for calls of these sizes. Raises: BadArgument if they do not fit."""
        layout = _checked(max_tokens, hidden, self.ranks, experts, self._num_bytes)
        if layout.total_bytes > self._given_bytes:
            refuse(
                "num_rdma_bytes", self._given_bytes,
                f"{layout.total_bytes} are needed for {max_tokens} tokens of {hidden} and {experts} experts: see "
                "Buffer.get_low_latency_rdma_size_hint",
            )  # fmt: skip
        return layout

    def ops(self, layout: Layout, x: Tensor) -> Any:
        """What sends and receives: HostOps or KernelOps."""
        if x.device.type == "cpu" and not uses_kernels(x):
            memories = [self._memory(rank) for rank in range(self.ranks)]
            return HostOps(layout, self.rank, memories, self._inactive)
        from .launch import KernelOps

        return KernelOps(layout, self.rank, self._table, self._inactive, self._transport.stopped)

    def outgoing(self, layout: Layout, half: int) -> Tensor:
        """Memory of this process for a half, from which a combine without copy takes its rows: (e, R · N, H)."""
        shape = (layout.local, layout.rows, layout.hidden)
        known = self._outgoing[half]
        if known is None or tuple(known.shape) != shape:
            known = torch.empty(shape, dtype=torch.bfloat16, device=self._transport.device)
            self._outgoing[half] = known
        return known

    def mask(self) -> Tensor:
        """(ranks,) int32: 1 for ranks that take no part in calls of this rank."""
        if self._mask is None:
            raise BadCall("masks of ranks need a Buffer with enable_shrink=True")
        return self._mask

    @contextmanager
    def reporting(self, call: str) -> Iterator[None]:
        """Check arguments inside. If they are refused, the call of the others ends with an error."""
        try:
            yield
        except (ValueError, TypeError, AssertionError) as error:
            half = self.half
            if self._transport.compares and not self._unreceived[half]:
                with suppress(CommunicationError):  # this rank has an error of its own to raise
                    self.take_turn(call)
                    self._wait(FREE + half, f"{call}: memory that is still in use", less=1)
                    self._publish(half, segment_header.refusal(error, rank=self.rank, call=call))
                    self._transport.skip_wait(READY + half)
                    self._release(half)
            raise

    def take_turn(self, call: str) -> int:
        """The half of a call. Raises: BadCall, L4."""
        half = self.half
        if self._unreceived[half]:
            raise BadCall(
                f"{call}: the hook of the last call but one was not called yet; only two results may be alive"
            )
        self.half = (half + 1) % HALVES
        self._unreceived[half] = True
        return half

    def carry_out(  # noqa: PLR0913 (two steps and how they end)
        self, turn: Turn, *, send: Hook, receive: Hook, tensors: tuple[Any, ...], async_finish: bool,
        return_recv_hook: bool,
    ) -> tuple[EventOverlap, Hook | None]:  # fmt: skip
        """Send and receive on the buffer's own stream; with a hook, both on the caller's."""
        half = turn.half

        def send_all() -> None:
            self._wait(FREE + half, f"{turn.name}: memory that is still in use", less=1)
            send()
            self._publish(half, turn.facts)

        def receive_all() -> None:
            what = f"{turn.name}: {turn.waits_for}"
            self._wait(READY + half, what, costs=turn.costs)
            self._compare(half, what)
            receive()
            self._release(half)

        def hook() -> None:
            if not self._unreceived[half]:
                raise BadCall("this hook was called already")
            receive_all()

        self._transport.check()
        if return_recv_hook:
            send_all()
            return EventOverlap(), hook
        with self._stream.call() as on_stream:
            send_all()
            receive_all()
            on_stream.keep(tensors)
        return on_stream.ended(asynchronous=async_finish), None

    def _wait(self, slot: int, what: str, *, less: int = 0, costs: Tensor | None = None) -> None:
        self._transport.wait_all(slot, what, less=less, inactive=self._mask, drop=self._shrink, costs=costs)

    def _publish(self, half: int, facts: Mapping[str, Fact]) -> None:
        if self._transport.compares:
            self._header(self.rank, half).copy_(segment_header.pack(facts))
        self._transport.signal_all(READY + half, self._mask)

    def _compare(self, half: int, what: str) -> None:
        """On a CPU, compare what all ranks were called with. Raises: RanksDisagree; unless a rank has refused its
        arguments, the buffer can only be destroyed then.
        """
        if not self._transport.compares:
            return
        active = [rank for rank, masked in enumerate(self._inactive.tolist()) if not masked]
        facts = {rank: segment_header.unpack(self._header(rank, half)) for rank in active}
        try:
            segment_header.compare(facts, rank=self.rank, call=what)
        except RanksDisagree as error:
            if any(segment_header.is_refusal(each) for each in facts.values()):
                self._release(half)
            else:
                self._transport.fail(error)
            raise

    def _release(self, half: int) -> None:
        self._transport.signal_all(FREE + half, self._mask)
        self._unreceived[half] = False

    def _memory(self, rank: int) -> Tensor:
        return self._transport.buffer(rank)[self._base : self._base + self._num_bytes]

    def _header(self, rank: int, half: int) -> Tensor:
        return self._memory(rank)[half * HEADER_BYTES : (half + 1) * HEADER_BYTES]


def size_hint(max_tokens: int, hidden: int, ranks: int, experts: int) -> int:
    """Bytes that low-latency mode needs of each rank."""
    return _checked(max_tokens, hidden, ranks, experts).total_bytes


def _checked(max_tokens: int, hidden: int, ranks: int, experts: int, num_bytes: int = 0) -> Layout:
    if min(max_tokens, ranks, experts) <= 0 or experts % ranks:
        refuse(
            "num_max_dispatch_tokens_per_rank, num_experts", (max_tokens, experts),
            f"both must be positive, and experts a multiple of the {ranks} ranks",
        )  # fmt: skip
    if hidden <= 0 or hidden % HIDDEN_MULTIPLE:
        refuse("hidden", hidden, f"it must be a multiple of {HIDDEN_MULTIPLE}")
    return Layout(max_tokens, hidden, ranks, experts, num_bytes)


__all__ = ["Hook", "LowLatencyMode", "Turn", "size_hint"]
