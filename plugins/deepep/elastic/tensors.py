"""Tensors between ranks beside dispatch and combine: all-gather in sessions, a ring, rows fetched by number.

    sessions   [ tensor 0 of rank 0 | … of rank R - 1 | tensor 1 of rank 0 | … ]   each begins at a multiple of 32 bytes
    ring       [ from the previous rank: place 0 | place 1 | … | from the next rank: place 0 | … ]
    entries    this rank's rows of a table, after the first `num_bytes` of the region

Sessions and the ring use the first bytes of each region in turns with dispatch and combine (`_turn_to`).
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor

from ...kernels.errors import BadCall, BadType, refuse
from ...kernels.quantize import FP8, align
from ..api.buffer import Buffer
from ..normal.dispatcher import MappedDispatcher
from ..transport.interface import Transport
from ..transport.segment_header import Fact
from .experts import col_major

DATA_SLOT, END_SLOT, SENT_SLOT, TAKEN_SLOT = range(4, 8)
EXPERTS_CALLS, SESSIONS, RING = "dispatch and combine", "AGRS sessions", "pp_send and pp_recv"
UNIT_BYTES: Final = 2 << 20
"""Sizes of buffers are multiples of it."""
ROW_BYTES: Final = 32
"""Gathered tensors and entries begin at multiples of it."""
PLACE_BYTES: Final = 64
"""A place of the ring is a multiple of it."""


@dataclass(frozen=True)
class Table:
    """What all ranks have published. scales (all entries, packs) are on every rank."""

    entries: int
    hidden: int
    dtype: torch.dtype
    scales: Tensor | None


class TensorCalls:
    """What `ElasticBuffer` inherits; it has the attributes below."""

    transport: Transport
    num_bytes: int
    num_cpu_bytes: int
    _memory: Buffer
    _normal: MappedDispatcher

    def __init__(self) -> None:
        self._use = EXPERTS_CALLS
        self._session_limits = (0, 0)
        self._session_open = False
        self._session_end = self._gathers = 0
        """Bytes and calls of this session."""
        self._all_gathers = 0
        """Calls of all sessions."""
        self._tensor_bytes = self._inflight = 0
        self._sent: dict[int, int] = {}
        self._taken: dict[int, int] = {}
        self._table: Table | None = None

    def _turn_to(self, use: str) -> None:
        """Wait until all ranks have finished with what they used the memory for before."""
        if self._session_open and use != SESSIONS:
            raise BadCall("a session is open: end it first")
        if use != self._use:
            self.transport.barrier(what=f"from {self._use} to {use}")
            self._use = use

    @contextmanager
    def _agreed(self, call: str, facts: Mapping[str, Fact]) -> Iterator[None]:
        """Check arguments inside; then compare the facts of all ranks."""
        with self._memory.reporting(call):
            yield
        self._normal.agree(facts, call)

    # -- all-gather --

    @staticmethod
    def get_agrs_num_max_session_bytes(
        group: dist.ProcessGroup, shapes: Sequence[Sequence[int]], dtype: torch.dtype
    ) -> int:
        """Of a session that gathers tensors of these shapes."""
        return sum(align(math.prod(each) * dtype.itemsize * group.size(), ROW_BYTES) for each in shapes)

    @staticmethod
    def get_agrs_buffer_size_hint(group: dist.ProcessGroup, num_max_session_bytes: int) -> int:
        """Bytes for such sessions."""
        return align(num_max_session_bytes, UNIT_BYTES)

    def agrs_set_config(self, num_max_session_bytes: int, num_max_all_gathers_per_session: int) -> None:
        """Set the limits of sessions. All ranks give the same."""
        self._turn_to(EXPERTS_CALLS)
        limits = (num_max_session_bytes, num_max_all_gathers_per_session)
        with self._agreed("agrs_set_config", dict(zip(("bytes", "all-gathers"), limits, strict=True))):
            if not 0 < limits[0] <= self.num_bytes:
                allowed = f"it must be 1 to {self.num_bytes}, the bytes of this buffer"
                refuse("num_max_session_bytes", limits[0], allowed)
            if limits[1] < 1:
                refuse("num_max_all_gathers_per_session", limits[1], "it must be positive")
        self._session_limits = limits

    def create_agrs_session(self) -> None:
        """All-gathers may follow, until `destroy_agrs_session`."""
        if self._session_open:
            raise BadCall("a session is open: end it first")
        if not self._session_limits[0]:
            raise BadCall("call agrs_set_config before the first session")
        self._session_open, self._session_end, self._gathers = True, 0, 0
        self._turn_to(SESSIONS)

    def destroy_agrs_session(self) -> None:
        """What was gathered is not read any more, on any rank: the next session writes over it."""
        self._require_session()
        self._session_open = False
        self.transport.signal_all(END_SLOT)
        self.transport.wait_all(END_SLOT, "end of an AGRS session")

    @contextmanager
    def agrs_new_session(self, enabled: bool = True) -> Iterator[None]:
        """A session around a block, if `enabled`."""
        if enabled:
            self.create_agrs_session()
        try:
            yield
        finally:
            if enabled:
                self.destroy_agrs_session()

    def agrs_get_inplace_tensor(self, shapes: Any, dtype: torch.dtype) -> Any:
        """Where this rank's tensor of the next all-gather is stored: filled there, it is not copied.

        A shape gives a tensor, several give a tuple, for one all-gather of all of them.
        """
        single = bool(shapes) and isinstance(shapes[0], int)
        kinds = [(tuple(each), dtype) for each in ([shapes] if single else shapes)]
        wholes, _ = self._gathered(kinds, self.transport.rank)
        parts = tuple(each[self.transport.rank] for each in wholes)
        return parts[0] if single else parts

    def all_gather(self, t: Any) -> tuple[Any, ...]:
        """Tensors of all ranks, (R, …), and what waits until they have arrived: one of `t`, or of each of several."""
        self._require_session()
        tensors, transport = [t] if isinstance(t, Tensor) else list(t), self.transport
        if not tensors:
            refuse("t", "of no tensor", "give one or more")
        kinds = [(tuple(each.shape), each.dtype) for each in tensors]
        wholes, end = self._gathered(kinds, transport.rank)
        if self._gathers == self._session_limits[1]:
            raise BadCall(
                f"this session has made its {self._gathers} all-gathers: end it, or call agrs_set_config"
            )
        for rank in (transport.rank, *transport.peers):
            for there, each in zip(self._gathered(kinds, rank)[0], tensors, strict=True):
                if there[transport.rank].data_ptr() != each.data_ptr():
                    there[transport.rank].copy_(each)
        self._session_end = end
        self._gathers += 1
        self._all_gathers += 1
        call = self._all_gathers
        for peer in transport.peers:
            transport.signal(peer, DATA_SLOT, call)

        def wait() -> None:
            for peer in transport.peers:
                transport.wait(peer, DATA_SLOT, call, what="all-gather: waiting for tensors")

        return (*wholes, wait)

    def _gathered(
        self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]], rank: int
    ) -> tuple[list[Tensor], int]:
        """Results of the next all-gather, in a rank's region, and where they end."""
        self._require_session()
        wholes, at, size = [], self._session_end, self.transport.size
        for shape, dtype in kinds:
            each = math.prod(shape) * dtype.itemsize
            if each < 1 or each % ROW_BYTES:
                refuse("t", f"of {each} bytes", f"it must be a multiple of {ROW_BYTES}")
            end = at + each * size
            if end > self._session_limits[0]:
                allowed = f"agrs_set_config allows {self._session_limits[0]}"
                refuse("t", f"{end} bytes with what this session has", allowed)
            wholes.append(self.transport.buffer(rank)[at:end].view(dtype).view(size, *shape))
            at = end
        return wholes, at

    def _require_session(self) -> None:
        if not self._session_open:
            raise BadCall("there is no session: use `with buffer.agrs_new_session():`")

    # -- a ring --

    @staticmethod
    def get_pp_buffer_size_hint(num_max_tensor_bytes: int, num_max_inflight_tensors: int) -> int:
        """Bytes for so many tensors in flight to and from each neighbour."""
        return align(2 * num_max_inflight_tensors * align(num_max_tensor_bytes, PLACE_BYTES), UNIT_BYTES)

    def pp_set_config(self, num_max_tensor_bytes: int, num_max_inflight_tensors: int) -> None:
        """Before the first of a sequence of sends and receives. All ranks give the same, and have received all."""
        self._turn_to(EXPERTS_CALLS)
        limits = (num_max_tensor_bytes, num_max_inflight_tensors)
        name = "num_max_tensor_bytes, num_max_inflight_tensors"
        with self._agreed("pp_set_config", dict(zip(("bytes", "tensors"), limits, strict=True))):
            if min(limits) < 1:
                refuse(name, limits, "they must be positive")
            needed = 2 * limits[1] * align(limits[0], PLACE_BYTES)
            if needed > self.num_bytes:
                refuse(name, limits, f"they need {needed} bytes, and the buffer has {self.num_bytes}")
        self._tensor_bytes, self._inflight = limits
        self._turn_to(RING)

    def pp_send(self, t: Tensor, dst_rank_idx: int, num_sms: int = 0) -> None:
        """To the previous or the next rank. Waits only while the most tensors are in flight."""
        transport, size = self.transport, self._check_ring(t, dst_rank_idx, "dst_rank_idx")
        number = self._sent.get(dst_rank_idx, 0)
        if number >= self._inflight:
            free = number - self._inflight + 1
            transport.wait(dst_rank_idx, TAKEN_SLOT, free, what="pp_send: waiting for room")
        self._sent[dst_rank_idx] = number + 1
        start = self._place(number, from_previous=dst_rank_idx == self._neighbours[1])
        transport.buffer(dst_rank_idx)[start : start + size].copy_(t.reshape(-1).view(torch.uint8))
        transport.signal(dst_rank_idx, SENT_SLOT, number + 1)

    def pp_recv(self, t: Tensor, src_rank_idx: int, num_sms: int = 0) -> None:
        """Into `t`, from the previous or the next rank, in its order, as many bytes as it has sent."""
        transport, size = self.transport, self._check_ring(t, src_rank_idx, "src_rank_idx")
        number = self._taken.get(src_rank_idx, 0)
        transport.wait(src_rank_idx, SENT_SLOT, number + 1, what="pp_recv: waiting for a tensor")
        start = self._place(number, from_previous=src_rank_idx == self._neighbours[0])
        t.view(-1).view(torch.uint8).copy_(transport.buffer(transport.rank)[start : start + size])
        self._taken[src_rank_idx] = number + 1
        transport.signal(src_rank_idx, TAKEN_SLOT, number + 1)

    def _check_ring(self, t: Tensor, peer: int, name: str) -> int:
        """Bytes of the tensor."""
        if self._use != RING:
            raise BadCall(f"the buffer is used for {self._use}: call pp_set_config on all ranks first")
        rank, (before, after) = self.transport.rank, self._neighbours
        if peer not in {before, after} - {rank}:
            refuse(name, peer, f"neighbours of rank {rank} are {before} and {after}")
        size = t.numel() * t.element_size()
        if not t.is_contiguous() or not 0 < size <= self._tensor_bytes:
            refuse("t", f"of {size} bytes and strides {t.stride()}",
                   f"it must be contiguous and of 1 to {self._tensor_bytes} bytes")  # fmt: skip
        return size

    def _place(self, number: int, *, from_previous: bool) -> int:
        # Two ranks are each other's previous and next one: all their tensors use the first half.
        before, after = self._neighbours
        half = 0 if from_previous or before == after else self._inflight
        return (half + number % self._inflight) * align(self._tensor_bytes, PLACE_BYTES)

    @property
    def _neighbours(self) -> tuple[int, int]:
        """The previous and the next rank."""
        rank, size = self.transport.rank, self.transport.size
        return (rank - 1) % size, (rank + 1) % size

    # -- Engram --

    @staticmethod
    def get_engram_storage_size_hint(
        num_entries: int, hidden: int, num_max_tokens_per_rank: int, dtype: torch.dtype = torch.bfloat16
    ) -> tuple[int, int]:
        """num_bytes and num_cpu_bytes for entries of each rank; fetched rows need no memory of the buffer."""
        entry = align(hidden * dtype.itemsize, ROW_BYTES)
        return align(num_max_tokens_per_rank * entry, UNIT_BYTES), align(num_entries * entry, UNIT_BYTES)

    def engram_write(self, storage: Tensor, sf: Tensor | None = None) -> None:
        """Publish this rank's entries (entries, hidden), bfloat16 or FP8, as many on all ranks. All call it.

        sf (entries of all ranks, packs): scales of FP8 entries, the same on all ranks.
        """
        self._turn_to(EXPERTS_CALLS)
        facts: dict[str, Fact] = {"shape of storage": str(tuple(storage.shape)), "dtype": str(storage.dtype)}
        with self._agreed("engram_write", facts):
            self._check_entries(storage, sf)
        self._table = Table(len(storage), storage.shape[1], storage.dtype, sf)
        self._entries(self.transport.rank, self._table).copy_(storage.view(torch.uint8))
        self.transport.barrier()

    def engram_fetch(
        self, indices: Tensor, num_qps: int = 0, use_tma_aligned_col_major_sf: bool = False
    ) -> Callable[[], tuple[Tensor, Tensor | None]]:
        """Entries by number, of all ranks: call the result for (rows (numbers in all, hidden), scales or None).

        Rank r has numbers r · entries to (r + 1) · entries - 1. No other rank takes part.
        """
        table = self._table
        if table is None:
            raise BadCall("call engram_write first")
        if indices.dtype not in {torch.int32, torch.int64}:
            raise BadType(f"indices are {indices.dtype}; they must be torch.int32 or torch.int64")
        numbers, total = indices.reshape(-1).long(), table.entries * self.transport.size
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= total):
            given = f"{int(numbers.min())} to {int(numbers.max())}"
            refuse("indices", given, f"entries are 0 to {total - 1}")
        own = numbers.to(self.transport.device)
        width = table.hidden * table.dtype.itemsize
        out = torch.empty(len(own), width, dtype=torch.uint8, device=own.device)
        for rank in range(self.transport.size):
            mine = torch.nonzero(own // table.entries == rank).view(-1)
            out[mine] = self._entries(rank, table)[own[mine] - rank * table.entries]
        data, scales = out.view(table.dtype).to(indices.device), None
        if table.scales is not None:
            scales = table.scales[numbers.to(table.scales.device)].to(indices.device)
            scales = col_major(scales) if use_tma_aligned_col_major_sf else scales
        return lambda: (data, scales)

    def _check_entries(self, storage: Tensor, scales: Tensor | None) -> None:
        if storage.dtype not in {torch.bfloat16, FP8}:
            raise BadType(f"storage is {storage.dtype}; it must be torch.bfloat16 or {FP8}")
        if storage.dim() != 2 or not storage.is_contiguous() or not storage.numel():
            refuse("storage", f"of shape {tuple(storage.shape)}", "it must be contiguous (entries, hidden)")
        needed = len(storage) * align(storage.shape[1] * storage.element_size(), ROW_BYTES)
        if needed > self.num_cpu_bytes:
            allowed = f"num_cpu_bytes is {self.num_cpu_bytes}: ask get_engram_storage_size_hint"
            refuse("storage", f"of {needed} bytes", allowed)
        if (storage.dtype == FP8) != (scales is not None):
            raise BadCall("give sf with FP8 storage, and only with it")
        total = len(storage) * self.transport.size
        if scales is not None and (scales.dim() != 2 or len(scales) != total or scales.element_size() != 4):
            refuse("sf", f"{scales.dtype} of shape {tuple(scales.shape)}",
                   f"it must be float32 or int32 of shape ({total}, packs): of the entries of all ranks")  # fmt: skip

    def _entries(self, rank: int, table: Table) -> Tensor:
        width = table.hidden * table.dtype.itemsize
        padded = align(width, ROW_BYTES)
        region = self.transport.buffer(rank)[self.num_bytes : self.num_bytes + table.entries * padded]
        return region.view(table.entries, padded)[:, :width]


__all__ = ["EXPERTS_CALLS", "RING", "ROW_BYTES", "SESSIONS", "UNIT_BYTES", "TensorCalls"]
