"""Rows of a table that is spread over all ranks, fetched by number from the memory of the rank that has them.

Rank r has rows r · entries to (r + 1) · entries - 1. Readers take what they want by themselves: memory must be mapped.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from ...kernels.errors import BadCall, BadType, refuse
from ...kernels.quantize import FP8
from .. import moves
from ..transport.interface import Transport
from .dispatch import col_major
from .sizes import row_bytes


@dataclass(frozen=True)
class Table:
    """What all ranks have published. scales (all entries, packs) are everywhere."""

    entries: int
    hidden: int
    dtype: torch.dtype
    scales: Tensor | None


class Engram:
    """Of one buffer, through `num_bytes` of each region from `start` on."""

    def __init__(self, transport: Transport, *, start: int, num_bytes: int) -> None:
        self._transport, self._start, self._room = transport, start, num_bytes
        self._table: Table | None = None

    def check(self, storage: Tensor, scales: Tensor | None) -> None:
        """Whether it can be written."""
        if not self._transport.all_mapped:
            raise BadCall(f"Engram reads the memory of other ranks, which {self._transport} does not map")
        if storage.dtype not in {torch.bfloat16, FP8}:
            raise BadType(f"storage is {storage.dtype}; it must be torch.bfloat16 or {FP8}")
        if storage.dim() != 2 or not storage.is_contiguous() or not storage.numel():
            refuse("storage", f"of shape {tuple(storage.shape)}", "it must be contiguous (entries, hidden)")
        needed = len(storage) * row_bytes(storage.shape[1], storage.element_size())
        if needed > self._room:
            refuse(
                "storage",
                f"of {needed} bytes",
                f"num_cpu_bytes is {self._room}: ask get_engram_storage_size_hint",
            )
        if (storage.dtype == FP8) != (scales is not None):
            raise BadCall("give sf with FP8 storage, and only with it")
        total = len(storage) * self._transport.size
        if scales is not None and (scales.dim() != 2 or len(scales) != total or scales.element_size() != 4):
            refuse("sf", f"{scales.dtype} of shape {tuple(scales.shape)}",
                   f"it must be float32 or int32 of shape ({total}, packs): of the entries of all ranks")  # fmt: skip

    def write(self, storage: Tensor, scales: Tensor | None) -> None:
        """This rank's rows; nobody reads meanwhile."""
        self._table = Table(len(storage), storage.shape[1], storage.dtype, scales)
        self._rows(self._transport.rank, self._table)[:, : self._width(self._table)].copy_(
            storage.view(torch.uint8)
        )

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
        out = torch.empty(len(here), self._width(table), dtype=torch.uint8, device=here.device)
        padded = row_bytes(table.hidden, table.dtype.itemsize)
        for rank in range(self._transport.size):
            mine = torch.nonzero(here // table.entries == rank).view(-1)
            whole = torch.empty(len(mine), padded, dtype=torch.uint8, device=here.device)
            moves.take(whole, self._rows(rank, table), here[mine] - rank * table.entries)
            out[mine] = whole[:, : self._width(table)]
        data = out.view(table.dtype).to(indices.device)
        if table.scales is None:
            return data, None
        scales = table.scales[numbers.to(table.scales.device)].to(indices.device)
        return data, col_major(scales) if column_scales else scales

    def _rows(self, rank: int, table: Table) -> Tensor:
        padded = row_bytes(table.hidden, table.dtype.itemsize)
        region = self._transport.buffer(rank)[self._start : self._start + table.entries * padded]
        return region.view(table.entries, padded)

    @staticmethod
    def _width(table: Table) -> int:
        return table.hidden * table.dtype.itemsize


__all__ = ["Engram"]
