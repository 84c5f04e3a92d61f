"""Rows of one tensor summed in an order of the caller's: float32, rounded once. Native on a CPU, torch elsewhere."""

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import rows as native


def add(rows: Tensor, places: Tensor, *, bias: Sequence[Tensor] = ()) -> Tensor:
    """out[t] = bias[t] + Σ over k of rows[places[t, k]], in this order.

    Shapes: rows (M, H), places (T, K) int64, -1 adds nothing; result (T, H) of the type of rows.
    """
    out = rows.new_empty(len(places), rows.shape[1])
    if native.can_sum(out):
        every = torch.arange(len(out)).unsqueeze(1).expand(-1, len(bias))
        native.sum_into(out, [*bias, *[rows] * places.shape[1]], torch.cat([every, places], 1))
        return out
    return _add(rows, places, bias).to(rows.dtype)


def _add(rows: Tensor, places: Tensor, bias: Sequence[Tensor]) -> Tensor:
    """The same by torch, before it is rounded."""
    total = torch.zeros(len(places), rows.shape[1], dtype=torch.float32, device=rows.device)
    for each in bias:
        total += each
    for k in range(places.shape[1] if len(rows) else 0):
        found = places[:, k, None] >= 0
        total += torch.where(found, rows[places[:, k].clamp(min=0)].float(), 0.0)
    return total


__all__ = ["add"]
