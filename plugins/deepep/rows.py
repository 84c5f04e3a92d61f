"""Rows of CPU tensors moved, summed and cast by the native module: one pass over memory each, on one core.

Rows are two-dimensional tensors that are contiguous along the second dimension, so they may lie apart, as messages with
a header do. What is computed has the bits that torch's operators give one after the other.
"""

from collections.abc import Sequence
from typing import Any, Final

import luciola_core
import torch
from torch import Tensor

_NUMBERS: Final = {torch.bfloat16: "bfloat16", torch.float32: "float32"}


def copy(
    target: Tensor, source: Tensor, *, target_rows: Tensor | None = None, source_rows: Tensor | None = None
) -> None:
    """target[target_rows[i]] = source[source_rows[i]]; without numbers, all rows in order.

    Shapes: (…, width), of as many bytes a row; numbers are contiguous int64. Raises: ValueError for numbers of no row.
    """
    if len(source if source_rows is None else source_rows):
        luciola_core.rows_copy(
            _bytes(target),
            _bytes(source),
            target_rows=_numbers(target_rows),
            source_rows=_numbers(source_rows),
        )


def turn(target: Tensor, source: Tensor, *, target_rows: Tensor, source_rows: Tensor | None = None) -> None:
    """target[r // n, :, r % n] = source[s] for each r of `target_rows` and s of `source_rows`.

    Shapes: target (groups, width, n) contiguous, source (…, width), both of 32-bit words; numbers as those of `copy`.
    """
    if len(target_rows):
        luciola_core.rows_turn(
            _bytes(target.view(-1, target.shape[-1])),
            _bytes(source),
            target_rows=_numbers(target_rows),
            source_rows=_numbers(source_rows),
        )


def can_sum(target: Tensor) -> bool:
    """Whether `sum_into` knows these numbers, and reaches them."""
    return target.dtype in _NUMBERS and target.device.type == "cpu"


def sum_into(target: Tensor, parts: Sequence[Tensor], places: Tensor, weights: Tensor | None = None) -> None:
    """target[t] = Σ over parts p of parts[p][places[t, p]] · weights[t, p], in float32, in this order.

    Shapes: target (T, H) and parts (…, H), all bfloat16 or all float32; places (T, p) int64, -1 adds nothing; weights
    (T, p) float32.
    """
    assert all(part.dtype == target.dtype for part in parts), "sums and parts are of one type"
    if not target.numel():
        return
    known = {id(each): _bytes(each) for each in parts if len(each)}
    nothing = _bytes(target)[:0]
    luciola_core.rows_sum(
        _bytes(target), [known.get(id(each), nothing) for each in parts], _numbers(places), _numbers(weights),
        number=_NUMBERS[target.dtype],
    )  # fmt: skip


def cast_to_fp8(values: Tensor, scales: Tensor, source: Tensor, *, round_scale: bool) -> None:
    """As `quantize.cast_to_fp8` of bfloat16, into given memory.

    Shapes: source (T, H) bfloat16; values (T, H) and scales (T, H / 128 · 4), both as bytes.
    """
    if len(source):
        luciola_core.rows_cast(_bytes(values), _bytes(scales), _bytes(source), round_scale=round_scale)


def pack_logs(
    target: Tensor, source: Tensor, *, target_rows: Tensor | None = None, source_rows: Tensor | None = None
) -> None:
    """As `quantize.to_logfmt` of bfloat16, codes and ranges of a row one after the other, rows as `copy` moves them.

    Shapes: source (…, H) bfloat16; target (…, H / 4 · 5 + H / 128 · 8) as bytes.
    """
    if len(source if source_rows is None else source_rows):
        luciola_core.rows_pack_logs(
            _bytes(target),
            _bytes(source),
            target_rows=_numbers(target_rows),
            source_rows=_numbers(source_rows),
        )


def sum_logs_into(target: Tensor, packed: Tensor, places: Tensor, weights: Tensor) -> None:
    """target[t] = Σ over k of packed[places[t, k]] · weights[t, k], of rows as `pack_logs` fills them.

    Shapes: target (T, H) bfloat16 or float32; places (T, K) int64, -1 adds nothing; weights (T, K) float32.
    """
    if target.numel():
        parts = [_bytes(packed)] * places.shape[1]
        luciola_core.rows_sum_logs(
            _bytes(target), parts, _numbers(places), _numbers(weights), number=_NUMBERS[target.dtype]
        )


def _bytes(x: Tensor) -> Any:
    return x.view(torch.uint8).numpy()


def _numbers(x: Tensor | None) -> Any:
    return None if x is None else x.reshape(-1).numpy()


__all__ = ["can_sum", "cast_to_fp8", "copy", "pack_logs", "sum_into", "sum_logs_into", "turn"]
