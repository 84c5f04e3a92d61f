"""Data sets for training: records on a location, read at random by many range reads in flight, in an order that is
the same for any number of ranks and workers, and can be resumed anywhere.

Files:
    open       `open_records`: the records of files, in any format
    records    where records are stored; one file, many, or a directory in one numbering
    shared_index  places of records in one piece of memory for all processes of a machine
    ffrecord   FFRecord files, read and written
    tokens     Megatron's .bin and .idx, read and written
    tar        tar shards with names as WebDataset has them, read at random by an index that is built once
    jsonl      JSON lines, read at random by the same kind of index
    parquet    rows of Parquet files, read by row groups
    arrow      rows of Arrow files and streams, read by record batches
    blocks     what these two share: blocks that are read for their rows, and cached
    rows       rows of a table as samples
    huggingface  `datasets` of Hugging Face, in and out
    packing    files into data sets
    verify     what a data set is, and whether it is whole
Order:
    permutation  a permutation of any size in constant memory
    shuffle    the global order: shuffles and mixtures of any size in constant memory
    block_shuffle  a shuffle for records in blocks
    buckets    batches of samples of similar length
    sampler    global batches, and the slices of ranks
    ranks      which slice is this process's
    choice     parts of data sets
Reading:
    reader     a batch of records in one submission to the ring (no torch)
    sample_reader  batches of samples, of records as they are and of rows
    pool       the memory of batches, which may be mapped by another process (no torch)
    shared_batches  batches of workers reach the training process without a copy
    bad        records that are damaged or cannot be decoded
    datasets   `MapDataset` and `IterableDataset`
    loader     `Loader`, a DataLoader that stops and resumes anywhere
    metrics    counters and latencies, on demand and for Prometheus
    sequences  sequences of several lengths in rows of one, with the borders of documents

    dataset = MapDataset(open_records("lu:/data/train"))
    for batch in Loader(dataset, global_batch_size=512, seed=7):
        ...

Importing this package imports neither torch nor the client until one of its names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .arrow import ArrowRecords, ArrowWriter
    from .bad import BadRecord
    from .buckets import LengthBuckets
    from .datasets import IterableDataset, MapDataset, collate
    from .ffrecord import FFRecords, FFRecordWriter
    from .huggingface import from_hugging_face, pack_hugging_face, to_hugging_face
    from .jsonl import JsonlRecords
    from .loader import Loader
    from .metrics import Metrics
    from .open import open_records
    from .parquet import ParquetRecords
    from .records import Records
    from .sampler import GlobalBatches
    from .samples import Samples
    from .sequences import PackedSequences, PackSequences
    from .shuffle import Order
    from .tar import TarRecords, TarWriter
    from .tokens import TokenRecords, TokenWriter

__all__ = [
    "ArrowRecords",
    "ArrowWriter",
    "BadRecord",
    "FFRecordWriter",
    "FFRecords",
    "GlobalBatches",
    "IterableDataset",
    "JsonlRecords",
    "LengthBuckets",
    "Loader",
    "MapDataset",
    "Metrics",
    "Order",
    "PackSequences",
    "PackedSequences",
    "ParquetRecords",
    "Records",
    "Samples",
    "TarRecords",
    "TarWriter",
    "TokenRecords",
    "TokenWriter",
    "collate",
    "describe",
    "from_hugging_face",
    "open_records",
    "pack_hugging_face",
    "to_hugging_face",
]

_MODULE_OF = {
    "ArrowRecords": "arrow",
    "ArrowWriter": "arrow",
    "BadRecord": "bad",
    "FFRecordWriter": "ffrecord",
    "FFRecords": "ffrecord",
    "GlobalBatches": "sampler",
    "IterableDataset": "datasets",
    "JsonlRecords": "jsonl",
    "LengthBuckets": "buckets",
    "Loader": "loader",
    "MapDataset": "datasets",
    "Metrics": "metrics",
    "Order": "shuffle",
    "PackSequences": "sequences",
    "PackedSequences": "sequences",
    "ParquetRecords": "parquet",
    "Records": "records",
    "Samples": "samples",
    "TarRecords": "tar",
    "TarWriter": "tar",
    "TokenRecords": "tokens",
    "TokenWriter": "tokens",
    "collate": "datasets",
    "from_hugging_face": "huggingface",
    "open_records": "open",
    "pack_hugging_face": "huggingface",
    "to_hugging_face": "huggingface",
}


def describe() -> dict[str, str]:
    """Describe the plugin for `luciola plugins`."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return {"state": "formats only: MapDataset and Loader need torch (pip install 'luciola[plugins]')"}
    columns = (
        "" if find_spec("pyarrow") else "; Parquet and Arrow need pyarrow (pip install 'luciola[arrow]')"
    )
    return {"state": f"ready: FFRecord, Megatron tokens, tar shards, JSON lines, Parquet and Arrow{columns}"}


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(f".{_MODULE_OF[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
