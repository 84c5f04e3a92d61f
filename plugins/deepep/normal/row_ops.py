"""Rows published, fetched and summed by torch, on a CPU; `launch` does the same by kernels.

Both read and write the same bytes, so ranks may differ in it.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ..transport.interface import Transport


class RowOps:
    """Work on the regions of a transport."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    def heads(self, at: int, width: int) -> Tensor:
        """The int32 words that each rank has at byte `at` of its region: (R, width)."""
        return torch.stack([each[at : at + 4 * width].view(torch.int32) for each in self._regions()])

    def publish(self, room: Tensor, source: Tensor, limit: Tensor | None = None) -> None:
        """room[i] = source[i], of integers (T, width), for the first `limit` () rows, or all."""
        count = len(source) if limit is None else min(int(limit), len(source))
        room[:count] = source[:count]

    def place(  # noqa: PLR0913 (the kernel's own)
        self, source_rows: Tensor, heads: Tensor, ends: Tensor, numbers_at: int, *, shape: int, problem: int
    ) -> None:
        """source_rows (N,) int32: which token of its source each row is, by the numbers that sources have written.

        heads (R, …) begin with each source's tokens and the shape of its call. ends (R,): where each source's rows end.
        `problem`: address of an int64, see `kernel.place_kernel`; on a CPU the caller has compared shapes and counts.
        """
        del shape, problem
        begin, size = 0, self._transport.size
        for region, tokens, end in zip(self._regions(), heads[:, 0].tolist(), ends.tolist(), strict=True):
            numbers = region[numbers_at : numbers_at + 4 * tokens * size].view(torch.int32).view(tokens, size)
            rows = torch.nonzero(numbers[:, self._transport.rank] >= 0).view(-1)
            source_rows[begin:end] = rows[: max(len(source_rows) - begin, 0)]
            begin = end

    def fetch(self, out: Tensor, source_rows: Tensor, ends: Tensor, at: int, *, tokens_max: int) -> None:
        """out[i] = row source_rows[i] of its source, of integers (N, width), whose rows are at byte `at`."""
        begin, size = 0, tokens_max * out.shape[1] * out.element_size()
        numbers = source_rows.long()
        for region, end in zip(self._regions(), ends.tolist(), strict=True):
            rows = region[at : at + size].view(out.dtype).view(tokens_max, -1)
            out[begin:end] = rows[numbers[begin:end]]
            begin = end

    def reduce(  # noqa: PLR0913 (the kernel's own)
        self, out: Tensor, at: int, rows: Tensor, ranks: Tensor | None, bias: Sequence[Tensor], rows_max: int
    ) -> None:
        """out[t] = bias[t] + Σ over p of row rows[t, p], or none at -1, of rank ranks[t, p], or p: float32, in order.

        Shapes: out and bias (T, H), of which each row is contiguous; rows and ranks (T, P) int32.
        """
        size = rows_max * out.shape[1] * out.element_size()
        parts = [region[at : at + size].view(out.dtype).view(rows_max, -1) for region in self._regions()]
        places = rows.long()
        if ranks is not None:
            every = torch.arange(len(parts))
            places = torch.where(ranks.unsqueeze(2) == every, places.unsqueeze(2), -1).flatten(1)
            parts = parts * rows.shape[1]
        if bias:
            own = torch.arange(len(out)).unsqueeze(1).expand(-1, len(bias))
            places = torch.cat([own, places], 1)
        out.copy_(summed([*bias, *parts], places))

    def _regions(self) -> list[Tensor]:
        return [self._transport.buffer(each) for each in range(self._transport.size)]


def summed(parts: Sequence[Tensor], places: Tensor, weights: Tensor | None = None) -> Tensor:
    """Σ over parts p of parts[p][places[t, p]] · weights[t, p], in float32, in this order, rounded once.

    Shapes: parts (…, H) of one type, and the result (T, H) of that type; places (T, p), -1 adds nothing; weights (T, p)
    float32. On a GPU the host does not wait for the device.
    """
    assert places.shape[1] == len(parts), "a place in each part"
    total = torch.zeros(len(places), parts[0].shape[1], dtype=torch.float32, device=places.device)
    for p, part in enumerate(parts):
        if places.device.type == "cpu":
            tokens = torch.nonzero(places[:, p] >= 0).view(-1)
            values = part[places[tokens, p]].float()
            total[tokens] += values if weights is None else values * weights[tokens, p].unsqueeze(1)
        elif len(part):
            values = part[places[:, p].clamp(min=0)].float()
            values = values if weights is None else values * weights[:, p].unsqueeze(1)
            total += torch.where(places[:, p].unsqueeze(1) >= 0, values, 0.0)
    return total.to(parts[0].dtype)


def words_of(x: Tensor) -> Tensor:
    """Rows as the widest integers that they are made of: copies do not depend on what they mean."""
    row_bytes = x.shape[1:].numel() * x.element_size()
    width = next(each for each in (torch.int64, torch.int32, torch.uint8) if row_bytes % each.itemsize == 0
                 and x.data_ptr() % each.itemsize == 0)  # fmt: skip
    return x.reshape(-1).view(torch.uint8).view(width).view(len(x), row_bytes // width.itemsize)


__all__ = ["RowOps", "summed", "words_of"]
