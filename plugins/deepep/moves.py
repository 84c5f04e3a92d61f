"""Rows from one place to another, and sums of rows: by the native module, or by the Triton kernels.

Which of them is said by `plugins/kernels/layers.py`. Both read and write the same bytes, so ranks may differ in it.
"""

from collections.abc import Sequence
from typing import TypeAlias

import torch
from torch import Tensor

from ..kernels.layers import uses_kernels
from . import routes
from . import rows as native

Rows: TypeAlias = Tensor | slice
"""Numbers of rows (int64), or a range of them."""


def length(rows: Rows) -> int:
    """How many rows."""
    return rows.stop - rows.start if isinstance(rows, slice) else rows.shape[0]


def part(rows: Rows, start: int, count: int) -> Rows:
    """Some of them."""
    if isinstance(rows, slice):
        return slice(rows.start + start, rows.start + start + count)
    return rows[start : start + count]


def take(out: Tensor, source: Tensor, rows: Rows) -> None:
    """out[i] = source[rows[i]]. Both contiguous and of one dtype, rows of any shape."""
    if not length(rows) or not out.numel():
        return
    if uses_kernels(out):
        from . import launch

        launch.take(words(out), words(source), rows)
    elif isinstance(rows, slice):
        out.copy_(source[rows])
    elif out.device.type == "cpu":
        native.copy(_flat(out), _flat(source), source_rows=rows)
    else:
        torch.index_select(words(source), 0, rows, out=words(out))


def put(out: Tensor, source: Tensor, rows: Tensor, source_rows: Tensor) -> None:
    """out[rows[i]] = source[source_rows[i]], each row of `out` at most once. Contiguous and of one dtype."""
    if not len(rows) or not out.numel():
        return
    if out.device.type == "cpu":
        native.copy(_flat(out), _flat(source), target_rows=rows, source_rows=source_rows)
    else:
        words(out).index_copy_(0, rows, words(source)[source_rows])


def reduce(out: Tensor, parts: Sequence[Tensor], member: Tensor, *, bias: Sequence[Tensor] = ()) -> None:
    """out[t] = bias[t] + Σ over ranks r of parts[r][row of t], in float32, in this order.

    Shapes: out (T, H), member (T, n); parts[r] has a row for each t that is a member of r, in the order of t. Rows on
    the Triton layer may lie in other processes' memory.
    """
    if not out.numel():
        return
    if uses_kernels(out):
        from . import launch

        launch.reduce(out, parts, member, bias)
    elif native.can_sum(out):
        places = routes.heads(member)
        if bias:
            every = torch.arange(len(out)).unsqueeze(1).expand(-1, len(bias))
            places = torch.cat([every, places], 1)
        native.sum_into(out, [*bias, *parts], places)
    else:
        _reduce(out, parts, member, bias)


def _reduce(out: Tensor, parts: Sequence[Tensor], member: Tensor, bias: Sequence[Tensor]) -> None:
    """`reduce` by torch, on any device."""
    total = torch.zeros(out.shape, dtype=torch.float32, device=out.device)
    for each in bias:
        total += each
    for rank, rows in enumerate(parts):
        total.index_add_(0, torch.nonzero(member[:, rank]).view(-1), rows.float())
    out.copy_(total)


def _flat(x: Tensor) -> Tensor:
    return x if x.dim() == 2 else x.view(x.shape[0], -1)


def words(x: Tensor) -> Tensor:
    """Rows as the widest integers that they are made of: copies do not depend on what they mean."""
    rows = x.reshape(len(x), -1)
    row_bytes = rows.shape[1] * x.element_size()
    width = next(each for each in (torch.int64, torch.int32, torch.uint8) if row_bytes % each.itemsize == 0
                 and x.data_ptr() % each.itemsize == 0)  # fmt: skip
    return rows.view(torch.uint8).view(width)


__all__ = ["Rows", "length", "part", "put", "reduce", "take", "words"]
