"""Rows from one place to another, and sums of rows: by torch, or by the Triton kernels.

Which of them is said by `plugins/kernels/layers.py`. Both read and write the same bytes, so ranks may differ in it.
"""

from collections.abc import Sequence
from typing import Final, TypeAlias

import torch
from torch import Tensor

from ..kernels.layers import layer_for

Rows: TypeAlias = Tensor | slice
"""Numbers of rows (int64), or a range of them."""

REDUCE_TOKENS: Final = 64
"""Tokens summed at a time, so that their float32 sums stay in a cache."""


def length(rows: Rows) -> int:
    """How many rows."""
    return rows.stop - rows.start if isinstance(rows, slice) else len(rows)


def part(rows: Rows, start: int, count: int) -> Rows:
    """Some of them."""
    if isinstance(rows, slice):
        return slice(rows.start + start, rows.start + start + count)
    return rows[start : start + count]


def take(out: Tensor, source: Tensor, rows: Rows) -> None:
    """out[i] = source[rows[i]]. Both contiguous and of one dtype, rows of any shape."""
    if not length(rows) or not out.numel():
        return
    words, out_words = _words(source), _words(out)
    if layer_for(out) == "triton":
        from . import launch

        launch.take(out_words, words, rows)
    elif isinstance(rows, slice):
        out_words.copy_(words[rows])
    else:
        torch.index_select(words, 0, rows, out=out_words)


def reduce(out: Tensor, parts: Sequence[Tensor], member: Tensor, *, bias: Sequence[Tensor] = ()) -> None:
    """out[t] = bias[t] + Σ over ranks r of parts[r][row of t], in float32, in this order.

    Shapes: out (T, H), member (T, n); parts[r] has a row for each t that is a member of r, in the order of t. Rows on
    the Triton layer may lie in other processes' memory.
    """
    if not out.numel():
        return
    if layer_for(out) == "triton":
        from . import launch

        launch.reduce(out, parts, member, bias)
        return
    cursors = [0] * len(parts)
    for start in range(0, len(out), REDUCE_TOKENS):
        block = member[start : start + REDUCE_TOKENS]
        total = torch.zeros(len(block), out.shape[1], dtype=torch.float32, device=out.device)
        for each in bias:
            total += each[start : start + len(block)]
        for rank, rows in enumerate(parts):
            tokens = torch.nonzero(block[:, rank]).view(-1)
            here = rows[cursors[rank] : cursors[rank] + len(tokens)]
            cursors[rank] += len(tokens)
            if len(tokens) == len(block):
                total += here
            elif len(tokens):
                total.index_add_(0, tokens, here.float())
        out[start : start + len(block)] = total


def _words(x: Tensor) -> Tensor:
    """Rows as the widest integers that they are made of: copies do not depend on what they mean."""
    rows = x.reshape(len(x), -1)
    row_bytes = rows.shape[1] * x.element_size()
    width = next(each for each in (torch.int64, torch.int32, torch.uint8) if row_bytes % each.itemsize == 0
                 and x.data_ptr() % each.itemsize == 0)  # fmt: skip
    return rows.view(torch.uint8).view(width)


__all__ = ["Rows", "length", "part", "reduce", "take"]
