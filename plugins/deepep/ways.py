"""Which way a call of normal mode goes: among the ranks of one node, in two hops, or without the host (`captured`)."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from torch import Tensor

from ..kernels.errors import BadCall, refuse
from . import normal, two_hop
from .captured import Captured
from .exchange import SLOTS_EACH, Exchange
from .failure import RanksDisagree
from .normal import Handle, Received, SizedHandle, Tokens
from .transport.device import DeviceTransport
from .transport.interface import Transport

AnyHandle: TypeAlias = Handle | two_hop.TwoHopHandle | tuple[Any, ...]


class Ways:
    """Of one buffer. Nodes are of so many ranks; bytes are of regions, for hops inside a node and between nodes."""

    def __init__(
        self, transport: Transport, *, ranks_per_node: int, num_nvl_bytes: int, num_rdma_bytes: int
    ) -> None:
        self._transport = transport
        self._has_nodes = transport.size > ranks_per_node
        self._exchange: Exchange | None = None
        self._nodes: two_hop.Nodes | None = None
        self._captured: Captured | None = None
        if num_nvl_bytes and not self._has_nodes:
            everyone = range(transport.size)
            self._exchange = Exchange(transport, everyone, start=0, num_bytes=num_nvl_bytes, slot=0)
            if isinstance(transport, DeviceTransport) and transport.spins:
                self._captured = Captured(transport, num_bytes=num_nvl_bytes)
        elif num_nvl_bytes and num_rdma_bytes:
            node, place = divmod(transport.rank, ranks_per_node)
            across = range(place, transport.size, ranks_per_node)
            within = range(node * ranks_per_node, (node + 1) * ranks_per_node)
            self._nodes = two_hop.Nodes(
                Exchange(transport, across, start=num_nvl_bytes, num_bytes=num_rdma_bytes, slot=SLOTS_EACH),
                Exchange(transport, within, start=0, num_bytes=num_nvl_bytes, slot=2 * SLOTS_EACH),
            )

    def dispatch(
        self, tokens: Tokens, member: Tensor, per_expert: Tensor, *, channels: int, rows: int | None
    ) -> Received:
        """Tokens to the ranks of their experts. `rows`: of the result, if it shall not depend on what comes."""
        if self._nodes is not None:
            return two_hop.dispatch(self._nodes, tokens, member, per_expert.tolist(), rows=rows)
        exchange = self._one_node()
        captured = self._captured
        if captured is None:
            return normal.dispatch(
                exchange, tokens, member, per_expert.tolist(), channels=channels, rows=rows
            )
        if rows is not None and captured.holds(tokens.columns(), rows, channels=channels):
            return captured.dispatch(
                tokens, member, num_experts=len(per_expert), channels=channels, rows=rows
            )
        with captured.apart():
            return normal.dispatch(
                exchange, tokens, member, per_expert.tolist(), channels=channels, rows=rows
            )

    def cached_dispatch(self, tokens: Tokens, handle: AnyHandle) -> Tokens:
        """Tokens where those of an earlier dispatch went."""
        if self._nodes is not None:
            return two_hop.cached_dispatch(self._nodes, tokens, _of_two_hops(handle))
        exchange, captured = self._one_node(), self._captured
        if captured is None:
            return normal.cached_dispatch(exchange, tokens, Handle(*handle))
        if isinstance(handle, SizedHandle) and captured.holds(tokens.columns(), handle.rows_max):
            return captured.cached_dispatch(tokens, handle)
        with captured.apart():
            return normal.cached_dispatch(exchange, tokens, Handle(*handle))

    def combine(self, columns: Sequence[Tensor], handle: AnyHandle, biases: Sequence[Tensor]) -> list[Tensor]:
        """Rows, and weights if there are two columns, back to where their tokens are from."""
        if self._nodes is not None:
            return two_hop.combine(self._nodes, columns, _of_two_hops(handle), biases)
        exchange, captured = self._one_node(), self._captured
        if captured is None:
            return normal.combine(exchange, columns, Handle(*handle), biases)
        if isinstance(handle, SizedHandle) and captured.holds(columns, handle.rows_max):
            return captured.combine(columns, handle, biases)
        with captured.apart():
            return normal.combine(exchange, columns, Handle(*handle), biases)

    def check_handle(self, handle: AnyHandle, *, tokens: int | None = None) -> int:
        """How many tokens were sent by its dispatch."""
        length = 6 if self._nodes is None else 10
        if not isinstance(handle, tuple) or len(handle) != length:
            raise BadCall(f"the handle must be what dispatch of this buffer returned, {length} tensors")
        member = handle[4] if self._nodes is None else handle[0]
        if self._nodes is None:
            self._one_node()
        if member.shape[1] != self._transport.size:
            raise BadCall(f"the handle is of {member.shape[1]} ranks; this buffer has {self._transport.size}")
        if tokens is not None and tokens != len(member):
            refuse("x", f"of {tokens} tokens", f"the handle is of {len(member)}")
        return len(member)

    def rows_of(self, handle: AnyHandle) -> int:
        """How many rows have come by its dispatch; where the host does not know it, how many its results have."""
        if self._captured is not None:
            return len(handle[3])
        tensors: tuple[Tensor, ...] = handle
        return int(tensors[0][-1, self._transport.rank] if self._nodes is None else tensors[6][-1])

    def refuse(self, error: RanksDisagree) -> None:
        """Tells the others, where they wait for this rank, that it has refused its arguments."""
        hops = () if self._nodes is None else (self._nodes.across, self._nodes.within)
        for exchange in (self._exchange, *hops):
            if exchange is not None:
                exchange.refuse(error)

    def _one_node(self) -> Exchange:
        if self._exchange is None:
            needed = "num_nvl_bytes and num_rdma_bytes" if self._has_nodes else "num_nvl_bytes"
            raise BadCall(f"this buffer has no memory for normal mode: make it with {needed}")
        return self._exchange


def _of_two_hops(handle: AnyHandle) -> two_hop.TwoHopHandle:
    if not isinstance(handle, two_hop.TwoHopHandle):
        raise BadCall("the handle must be the object that dispatch returned, not a copy of its tensors")
    return handle


__all__ = ["AnyHandle", "Ways"]
