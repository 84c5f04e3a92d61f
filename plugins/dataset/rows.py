"""Rows of a table of pyarrow as samples: dictionaries of values."""

from typing import Any, NamedTuple

import numpy as np

from .records import Integers


class Unfit(NamedTuple):
    """In place of a sample that cannot be what was asked for."""

    reason: str


def samples_of(table: Any, rows: Integers, *, tensors: bool) -> list[Any]:
    """Convert rows to dictionaries by column: values of Python, and with `tensors` arrays of lists of numbers.

    `Unfit` for a row with a null within a list that should be an array: no array has one.
    """
    import pyarrow as pa

    if not table.num_columns:
        return [{} for _ in rows]
    taken = _taken(table, rows)
    columns = [
        _arrays(column) if tensors and is_list_of_numbers(column.type) else column.to_pylist()
        for column in (taken.column(number) for number in range(taken.num_columns))
    ]
    samples: list[Any] = []
    for values in zip(*columns, strict=True):
        unfit = next(
            (name for name, value in zip(table.column_names, values, strict=True) if value is pa.NA), None
        )
        samples.append(
            dict(zip(table.column_names, values, strict=True))
            if unfit is None
            else Unfit(
                f"a null within a list of column {unfit!r}, which no tensor has: open with tensors=False"
            )
        )
    return samples


def is_list_of_numbers(kind: Any) -> bool:
    """Return whether the values of a type of pyarrow become arrays."""
    from pyarrow import types

    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    if not is_list:
        return False
    value = kind.value_type
    return bool(types.is_integer(value) or types.is_floating(value) or types.is_boolean(value))


def _taken(table: Any, rows: Integers) -> Any:
    import pyarrow as pa

    if len(rows) and (np.diff(rows) == 1).all():
        return table.slice(int(rows[0]), len(rows))
    return table.take(pa.array(rows))


def _arrays(column: Any) -> list[Any]:
    """Copy each list to an array; None for a null, and pyarrow's NA for a list with a null in it."""
    import pyarrow as pa

    return [
        None if each is None else pa.NA if each.null_count else np.array(each.to_numpy(zero_copy_only=False))
        for each in (scalar.values for scalar in column)
    ]


__all__ = ["Unfit", "is_list_of_numbers", "samples_of"]
