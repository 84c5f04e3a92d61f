"""Tensors between ranks beside dispatch and combine: all-gather in sessions, a ring, rows fetched by number.

    sessions   [ tensor 0 of rank 0 | … of rank R - 1 | tensor 1 of rank 0 | … ]   each begins at a multiple of 32 bytes
    ring       [ from the previous rank: place 0 | place 1 | … | from the next rank: place 0 | … ]

Sessions and the ring use the first bytes of each region in turns, which `ElasticBuffer` keeps apart; entries have bytes
of their own.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor

from ...kernels.errors import BadCall, BadType, refuse
from ...kernels.quantize import FP8, align
from ..transport.interface import Transport
from .experts import col_major
from .sizes import ROW_BYTES, row_bytes

DATA_SLOT, END_SLOT, SENT_SLOT, TAKEN_SLOT = range(4, 8)
PLACE_BYTES: Final = 64
"""A place of the ring is a multiple of it."""


class Sessions:
    """Each rank puts its tensor into all regions; results are views of the own one, until the session ends."""

    def __init__(self, transport: Transport, num_bytes: int) -> None:
        self._transport, self._room = transport, num_bytes
        self._limits = (0, 0)
        self._calls = self._ends = self._at = self._gathers = 0
        self.is_open = False

    def configure(self, num_bytes: int, gathers: int) -> None:
        """Limits of a session."""
        if not 0 < num_bytes <= self._room:
            refuse(
                "num_max_session_bytes", num_bytes, f"it must be 1 to {self._room}, the bytes of this buffer"
            )
        if gathers < 1:
            refuse("num_max_all_gathers_per_session", gathers, "it must be positive")
        self._limits = (num_bytes, gathers)

    def begin(self) -> None:
        """All ranks have ended the last one."""
        if self.is_open:
            raise BadCall("a session is open: end it first")
        if not self._limits[0]:
            raise BadCall("call agrs_set_config before the first session")
        self.is_open, self._at, self._gathers = True, 0, 0

    def end(self) -> None:
        """Results are not read any more, on any rank."""
        self._require_open()
        self.is_open = False
        self._ends += 1
        for peer in self._transport.peers:
            self._transport.signal(peer, END_SLOT, self._ends)
        for peer in self._transport.peers:
            self._transport.wait(peer, END_SLOT, self._ends, what="end of an AGRS session")

    def own_parts(self, shapes: Sequence[Sequence[int]], dtype: torch.dtype) -> list[Tensor]:
        """Where this rank's tensors of the next all-gather lie."""
        wholes = self._wholes([(tuple(each), dtype) for each in shapes])[0]
        return [each[self._transport.rank] for each in wholes]

    def gather(self, tensors: Sequence[Tensor]) -> tuple[list[Tensor], Callable[[], None]]:
        """Results (R, …) and what waits until they are there."""
        if not tensors:
            refuse("t", "of no tensor", "give one or more")
        wholes, end = self._wholes([(tuple(each.shape), each.dtype) for each in tensors])
        if self._gathers == self._limits[1]:
            raise BadCall(
                f"this session has made its {self._limits[1]} all-gathers: end it, or call agrs_set_config"
            )
        rank = self._transport.rank
        for whole, each in zip(wholes, tensors, strict=True):
            if whole[rank].data_ptr() != each.data_ptr():
                whole[rank].copy_(each)
        for peer in self._transport.peers:
            home, at = self._transport.buffer(peer), self._at
            for whole in wholes:
                size = whole[rank].numel() * whole.element_size()
                part = whole[rank].reshape(-1).view(torch.uint8)
                home[at + rank * size : at + (rank + 1) * size].copy_(part)
                at += size * self._transport.size
        self._at = end
        self._gathers += 1
        self._calls += 1
        call = self._calls
        for peer in self._transport.peers:
            self._transport.signal(peer, DATA_SLOT, call)

        def wait() -> None:
            for peer in self._transport.peers:
                self._transport.wait(peer, DATA_SLOT, call, what="all-gather: waiting for tensors")

        return wholes, wait

    def _wholes(self, kinds: Sequence[tuple[tuple[int, ...], torch.dtype]]) -> tuple[list[Tensor], int]:
        """Results of the next all-gather, in this rank's region, and where they end."""
        self._require_open()
        wholes, at, size = [], self._at, self._transport.size
        for shape, dtype in kinds:
            each = math.prod(shape) * dtype.itemsize
            if each < 1 or each % ROW_BYTES:
                refuse("t", f"of {each} bytes", f"it must be a multiple of {ROW_BYTES}")
            if at + each * size > self._limits[0]:
                refuse("t", f"{at + each * size} bytes with what this session has",
                       f"agrs_set_config allows {self._limits[0]}")  # fmt: skip
            own = self._transport.buffer(self._transport.rank)[at : at + each * size]
            wholes.append(own.view(dtype).view(size, *shape))
            at += each * size
        return wholes, at

    def _require_open(self) -> None:
        if not self.is_open:
            raise BadCall("there is no session: use `with buffer.agrs_new_session():`")


class Ring:
    """Tensors to and from the neighbours of a ring of all ranks, several on the way."""

    def __init__(self, transport: Transport, num_bytes: int) -> None:
        self._transport, self._room = transport, num_bytes
        self.previous = (transport.rank - 1) % transport.size
        self.next = (transport.rank + 1) % transport.size
        self._tensor_bytes = self._inflight = 0
        self._sent: dict[int, int] = {}
        self._taken: dict[int, int] = {}

    def configure(self, tensor_bytes: int, inflight: int) -> None:
        """Limits; all that was sent has been received."""
        if tensor_bytes < 1 or inflight < 1:
            refuse("num_max_tensor_bytes, num_max_inflight_tensors", (tensor_bytes, inflight),
                   "they must be positive")  # fmt: skip
        needed = 2 * inflight * align(tensor_bytes, PLACE_BYTES)
        if needed > self._room:
            refuse("num_max_tensor_bytes, num_max_inflight_tensors", (tensor_bytes, inflight),
                   f"they need {needed} bytes, and the buffer has {self._room}")  # fmt: skip
        self._tensor_bytes, self._inflight = tensor_bytes, inflight

    def send(self, t: Tensor, peer: int) -> None:
        """Waits for room, not for the receiver."""
        size = self._check(t, peer, "dst_rank_idx")
        number = self._sent.get(peer, 0)
        if number >= self._inflight:
            free = number - self._inflight + 1
            self._transport.wait(peer, TAKEN_SLOT, free, what="pp_send: waiting for room")
        self._sent[peer] = number + 1
        # This rank is the next one of its previous one.
        start = self._start(number, from_previous=peer == self.next)
        self._transport.buffer(peer)[start : start + size].copy_(t.reshape(-1).view(torch.uint8))
        self._transport.signal(peer, SENT_SLOT, number + 1)

    def receive(self, t: Tensor, peer: int) -> None:
        """Into `t`, as many bytes as the sender gave."""
        size = self._check(t, peer, "src_rank_idx")
        number = self._taken.get(peer, 0)
        self._transport.wait(peer, SENT_SLOT, number + 1, what="pp_recv: waiting for a tensor")
        start = self._start(number, from_previous=peer == self.previous)
        home = self._transport.buffer(self._transport.rank)
        t.view(-1).view(torch.uint8).copy_(home[start : start + size])
        self._taken[peer] = number + 1
        self._transport.signal(peer, TAKEN_SLOT, number + 1)

    def _check(self, t: Tensor, peer: int, name: str) -> int:
        if peer not in {self.previous, self.next} - {self._transport.rank}:
            refuse(
                name, peer, f"neighbours of rank {self._transport.rank} are {self.previous} and {self.next}"
            )
        size = t.numel() * t.element_size()
        if not t.is_contiguous() or not 0 < size <= self._tensor_bytes:
            refuse("t", f"of {size} bytes and strides {t.stride()}",
                   f"it must be contiguous and of 1 to {self._tensor_bytes} bytes")  # fmt: skip
        return size

    def _start(self, number: int, *, from_previous: bool) -> int:
        # Two ranks are each other's previous and next one: there all goes by the first half.
        half = 0 if from_previous or self.previous == self.next else self._inflight
        return (half + number % self._inflight) * align(self._tensor_bytes, PLACE_BYTES)


@dataclass(frozen=True)
class Table:
    """What all ranks have published. scales (all entries, packs) are everywhere."""

    entries: int
    hidden: int
    dtype: torch.dtype
    scales: Tensor | None


class Engram:
    """Rows of a table that is spread over all ranks, through `num_bytes` of each region from `start` on.

    Rank r has rows r · entries to (r + 1) · entries - 1. Readers take what they want by themselves.
    """

    def __init__(self, transport: Transport, *, start: int, num_bytes: int) -> None:
        self._transport, self._start, self._room = transport, start, num_bytes
        self._table: Table | None = None

    def check(self, storage: Tensor, scales: Tensor | None) -> None:
        """Whether it can be written."""
        if storage.dtype not in {torch.bfloat16, FP8}:
            raise BadType(f"storage is {storage.dtype}; it must be torch.bfloat16 or {FP8}")
        if storage.dim() != 2 or not storage.is_contiguous() or not storage.numel():
            refuse("storage", f"of shape {tuple(storage.shape)}", "it must be contiguous (entries, hidden)")
        needed = len(storage) * row_bytes(storage.shape[1], storage.element_size())
        if needed > self._room:
            refuse("storage", f"of {needed} bytes",
                   f"num_cpu_bytes is {self._room}: ask get_engram_storage_size_hint")  # fmt: skip
        if (storage.dtype == FP8) != (scales is not None):
            raise BadCall("give sf with FP8 storage, and only with it")
        total = len(storage) * self._transport.size
        if scales is not None and (scales.dim() != 2 or len(scales) != total or scales.element_size() != 4):
            refuse("sf", f"{scales.dtype} of shape {tuple(scales.shape)}",
                   f"it must be float32 or int32 of shape ({total}, packs): of the entries of all ranks")  # fmt: skip

    def write(self, storage: Tensor, scales: Tensor | None) -> None:
        """This rank's rows; nobody reads meanwhile."""
        self._table = Table(len(storage), storage.shape[1], storage.dtype, scales)
        self._rows(self._transport.rank, self._table).copy_(storage.view(torch.uint8))

    def fetch(self, indices: Tensor, *, column_scales: bool) -> tuple[Tensor, Tensor | None]:
        """Rows (numbers in all, hidden) and their scales, on the device of `indices`."""
        table = self._table
        if table is None:
            raise BadCall("call engram_write first")
        if indices.dtype not in {torch.int32, torch.int64}:
            raise BadType(f"indices are {indices.dtype}; they must be torch.int32 or torch.int64")
        numbers, total = indices.reshape(-1).long(), table.entries * self._transport.size
        if len(numbers) and (int(numbers.min()) < 0 or int(numbers.max()) >= total):
            refuse(
                "indices", f"{int(numbers.min())} to {int(numbers.max())}", f"entries are 0 to {total - 1}"
            )
        here = numbers.to(self._transport.device)
        width = table.hidden * table.dtype.itemsize
        out = torch.empty(len(here), width, dtype=torch.uint8, device=here.device)
        for rank in range(self._transport.size):
            mine = torch.nonzero(here // table.entries == rank).view(-1)
            out[mine] = self._rows(rank, table)[here[mine] - rank * table.entries]
        data = out.view(table.dtype).to(indices.device)
        if table.scales is None:
            return data, None
        scales = table.scales[numbers.to(table.scales.device)].to(indices.device)
        return data, col_major(scales) if column_scales else scales

    def _rows(self, rank: int, table: Table) -> Tensor:
        padded = row_bytes(table.hidden, table.dtype.itemsize)
        region = self._transport.buffer(rank)[self._start : self._start + table.entries * padded]
        return region.view(table.entries, padded)[:, : table.hidden * table.dtype.itemsize]


__all__ = ["PLACE_BYTES", "Engram", "Ring", "Sessions"]
