"""Hugging Face `datasets`, in and out.

    dataset = from_hugging_face(load_dataset("…", split="train"))       # its Arrow files, where they are
    pack_hugging_face(load_dataset("…", split="train", streaming=True), "lu:/data/x")   # copied into Arrow files
    stream = to_hugging_face(dataset)                                   # an `IterableDataset` of theirs

`datasets` is imported by the program that has one of its data sets; here it is imported by `to_hugging_face` only.
"""

import os
from collections.abc import Iterator
from typing import Any, Final

import numpy as np
import torch

from ...errors import InvalidArgument
from .arrow import ArrowRecords, ArrowWriter
from .datasets import MapDataset
from .open import Locations, open_records
from .packing import PART_BYTES, Report, require_empty
from .records import Integers, place_of

BATCH_ROWS: Final = 256  # of a record batch: what is read for one row
READ_ROWS: Final = 256  # samples that a stream reads together
SHARDS: Final = 64  # parts of a stream, which workers and ranks share


def from_hugging_face(dataset: Any, **options: Any) -> MapDataset:
    """Open the rows of a `datasets.Dataset`, in its Arrow files; nothing is copied.

    Rows that were chosen or reordered (`select`, `shuffle`, `filter`, `train_test_split`) are a `subset`. Values are
    those in the files: an image is {"bytes": …, "path": …}. `options` are those of `MapDataset`.
    Raises: InvalidArgument for data that are in memory, or that the files do not have in that form.
    """
    if not hasattr(dataset, "_indices") or not hasattr(dataset, "data"):
        raise InvalidArgument(
            f"not one datasets.Dataset but {type(dataset).__name__}: choose a split; copy a stream by "
            "pack_hugging_face"
        )
    remedy = "copy it by pack_hugging_face, or save it by save_to_disk and load it again"
    blocks = list(_blocks(dataset.data))
    files = list(dict.fromkeys(path for path, _ in blocks))
    if not files:
        raise InvalidArgument(f"the data set is in memory: {remedy}")
    names = list(dataset.column_names)
    try:
        records = open_records(files, format="arrow", columns=names)
    except InvalidArgument as error:
        raise InvalidArgument(f"columns were renamed, added or cast: {remedy}", path=files[0]) from error
    if [(file.path, file.count) for file in records.files] != blocks:
        raise InvalidArgument(f"rows were left out, repeated or joined: {remedy}", path=files[0])
    _require_same(records, dataset, remedy)
    made = MapDataset(records, **options)
    chosen = dataset._indices  # noqa: SLF001 (their only name for it)
    return made if chosen is None else made.subset(chosen.column(0).to_numpy())


def _blocks(table: Any) -> Iterator[tuple[str, int]]:
    """List (file, rows) of what a table of `datasets` has mapped: it is one file, or made of blocks."""
    if getattr(table, "path", None):
        yield table.path, table.num_rows
    for row in getattr(table, "blocks", ()):
        for block in row:
            yield from _blocks(block)


def _require_same(records: Any, dataset: Any, remedy: str) -> None:
    """Require that a table is its files: not cut, changed, or joined with other data. Raises: InvalidArgument."""
    table = dataset.data
    count = table.num_rows
    if len(records) != count or records.schema.types != [
        table.schema.field(name).type for name in records.names
    ]:
        raise InvalidArgument(
            f"the files have {len(records)} rows, the data set {count}, or columns were cast: {remedy}",
            path=records.files[0].path,
        )
    rows = MapDataset(records)
    try:
        for number in {0, count - 1} if count else set():
            (wanted,) = table.slice(number, 1).to_pylist()
            if repr(_plain(rows[number])) != repr({name: wanted[name] for name in records.names}):
                raise InvalidArgument(
                    f"row {number} is not that of the files: {remedy}", path=records.files[0].path
                )
    finally:
        rows.close()


def _plain(sample: dict[str, Any]) -> dict[str, Any]:
    return {
        name: value.tolist() if isinstance(value, torch.Tensor) else value for name, value in sample.items()
    }


def pack_hugging_face(
    dataset: Any, target: Locations, *, batch_rows: int = BATCH_ROWS, part_bytes: int = PART_BYTES
) -> Report:
    """Copy a `datasets.Dataset` or `IterableDataset` into Arrow files PART_00000.arrow, … of about `part_bytes` each.

    Rows keep their order, columns and types. `batch_rows`: of each record batch; a row is read with its batch.
    Raises: InvalidArgument for other objects; AlreadyExists for a target with a data set in it.
    """
    if not hasattr(dataset, "with_format") or not hasattr(dataset, "iter"):
        raise InvalidArgument(f"not a data set of Hugging Face but {type(dataset).__name__}: choose a split")
    if batch_rows < 1 or part_bytes < 1:
        raise InvalidArgument(
            f"batches and parts have at least one row, not {batch_rows} and {part_bytes} bytes"
        )
    place, (directory,) = place_of(target)
    file_system = place.file_system
    require_empty(file_system, directory, kinds=[ArrowRecords])
    report = Report("arrow")
    tables = dataset.with_format("arrow").iter(batch_size=batch_rows)
    table = next(tables, None)
    while table is not None:
        path = os.path.join(directory, f"PART_{len(report.files):05}.arrow")
        with ArrowWriter(path, file_system=file_system) as writer:
            while table is not None and (not writer.written or writer.bytes_written < part_bytes):
                writer.write(table)
                table = next(tables, None)
        report.files.append(path)
        report.records += writer.written
        report.bytes += writer.bytes_written
    return report


def to_hugging_face(dataset: MapDataset, *, shards: int = SHARDS) -> Any:
    """Make a `datasets.IterableDataset` of the samples in order, for `map`, `Trainer`, `push_to_hub` and the like.

    It has up to `shards` parts, which its workers and `split_dataset_by_node` share. Tensors of bytes are bytes, others
    arrays; a sample that is no dictionary is {"data": …}.
    """
    import datasets

    count = max(1, min(shards, len(dataset)))
    bounds = [
        (len(dataset) * number // count, len(dataset) * (number + 1) // count) for number in range(count)
    ]
    return datasets.IterableDataset.from_generator(
        _examples, gen_kwargs={"dataset": dataset, "parts": bounds}
    )


def _examples(dataset: MapDataset, parts: list[tuple[int, int]]) -> Iterator[dict[str, Any]]:
    for start, stop in parts:
        for first in range(start, stop, READ_ROWS):
            numbers: Integers = np.arange(first, min(first + READ_ROWS, stop))
            for sample in dataset.__getitems__(numbers):
                made = _example(sample)
                yield made if isinstance(made, dict) else {"data": made}


def _example(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        array = value.numpy()
        return array.tobytes() if array.dtype == np.uint8 and array.ndim == 1 else np.array(array)
    if isinstance(value, dict):
        return {name: _example(each) for name, each in value.items()}
    return value


__all__ = ["from_hugging_face", "pack_hugging_face", "to_hugging_face"]
