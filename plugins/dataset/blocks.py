"""Records in blocks: rows of files that store columns, in row groups (Parquet) or record batches (Arrow).

A row is in as many places as there are columns, and compressed with its block. So blocks are what is read: their bytes
by the ring, as the records of other formats (`Runs`), and decoded blocks are cached.

    records.block_of(numbers)                               # (block, row within it) of each record
    records.decode(block, runs)                             # a table of pyarrow, from the bytes of the block
    records.rows(block, table, rows)                        # samples

K1  A process reads a block once as long as it is cached: those used last, up to `cache_bytes`, and at least one.
K2  Nothing of a block is used before it is checked: places against the size of the file, rows against the footer,
    Arrow's buffers against their lengths.
K3  A sample has the values that the file has: nulls are None, also within structures and lists of texts.
K4  A forked process begins without decoded blocks: they may be views of memory that its parent reads into again.

pyarrow is imported when a file is opened.
"""

import os
import threading
import weakref
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from importlib.util import find_spec
from typing import Any, Final, NamedTuple

import numpy as np

from ...errors import CorruptData, InvalidArgument
from .records import Bytes, Extents, Index, Integers, Numbering, Place, RecordFile, Records
from .rows import samples_of

CACHE_BYTES: Final = 1 << 30  # of decoded blocks, in each process that reads
HEADS_MAX: Final = 256  # footers and dictionaries that are cached parsed; others are read again


class Layout(NamedTuple):
    """The blocks of one file: rows of each, and its runs of bytes.

    `firsts` has one element more than there are blocks: block b has the runs from firsts[b] to firsts[b+1].
    """

    rows: Integers
    firsts: Integers
    offsets: Integers
    lengths: Integers

    @classmethod
    def of(cls, rows: Sequence[int], runs: Sequence[Sequence[tuple[int, int]]]) -> "Layout":
        """Make one from (offset, bytes) of the runs of each block."""
        flat = [run for each in runs for run in each]
        numbers = np.array(flat, np.int64).reshape(-1, 2)
        firsts = np.concatenate(([0], np.cumsum([len(each) for each in runs], dtype=np.int64)))
        return cls(np.array(rows, np.int64), firsts.astype(np.int64), numbers[:, 0], numbers[:, 1])


class Run(NamedTuple):
    """Bytes of a file, and where they begin in it."""

    offset: int
    data: Bytes


class Runs(Records):
    """The stored bytes of the blocks of a `BlockRecords`, as records that a `BatchReader` reads."""

    format = "runs"
    suffix = ""

    def __init__(self, place: Place, files: Sequence[RecordFile], layouts: Sequence[Layout]) -> None:
        self.place = place
        pairs = list(zip(files, layouts, strict=True))
        self._places = {file.path: Index(layout.offsets, layout.lengths, None) for file, layout in pairs}
        self._number([replace(file, count=len(layout.offsets)) for file, layout in pairs])

    def examine(self, path: str) -> RecordFile:
        raise AssertionError(f"{path} was examined by the records in blocks")

    def read_index(self, file: RecordFile) -> Index:
        return self._places[file.path]


class BlockRecords(Records):
    """Rows of files in blocks. A sample is a dictionary of the columns' values.

    `columns`: their names, all by default; only these are read where the format allows it. `tensors`: lists of numbers
    become arrays; without it they are lists of Python. `cache_bytes`: of decoded blocks, kept by each process.
    Raises: InvalidArgument without pyarrow, for columns that a file does not have or that have one name, and for files
    whose columns differ.
    """

    is_plain = False

    def __init__(
        self,
        place: Place,
        paths: list[str],
        *,
        columns: Sequence[str] | None = None,
        tensors: bool = True,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        require_pyarrow(self.format)
        if isinstance(columns, str):
            raise InvalidArgument(f"columns is a list of names, not {columns!r}: write [{columns!r}]")
        self.tensors = tensors
        self._asked = None if columns is None else list(columns)
        self._layouts: dict[str, Layout] = {}
        self._schemas: dict[str, Any] = {}
        self.cache = BlockCache(cache_bytes)
        self._heads: OrderedDict[int, Any] = OrderedDict()
        self.after_fork()
        super().__init__(place, paths)
        self.schema = self._common_schema()
        layouts = [self._layouts[file.path] for file in self.files]
        self._schemas, self._layouts = {}, {}
        self.stored_runs = Runs(place, self.files, layouts)
        self._blocks = Numbering.of("blocks", [len(layout.rows) for layout in layouts])
        self._rows = Numbering.of("records", np.concatenate([layout.rows for layout in layouts]))
        runs = np.cumsum([0, *(len(layout.offsets) for layout in layouts)])
        firsts = [layout.firsts[:-1] + first for layout, first in zip(layouts, runs[:-1], strict=True)]
        self._run_firsts: Integers = np.append(np.concatenate(firsts), runs[-1])

    @property
    def stored(self) -> Records:
        return self.stored_runs

    @property
    def names(self) -> list[str]:
        """The names of the columns."""
        return list(self.schema.names)

    @abstractmethod
    def decode(self, block: int, runs: list[Run]) -> Any:
        """Decode the table of a block. Raises: CorruptData, which names file and block."""

    @property
    @abstractmethod
    def block_noun(self) -> str:
        """The format's word for a block."""

    def __getstate__(self) -> dict[str, Any]:
        state = super().__getstate__()
        del state["_lock"]
        return {**state, "_heads": OrderedDict()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.after_fork()

    def after_fork(self) -> None:
        """Drop what belonged to threads of another process."""
        self._lock = threading.Lock()
        _of_this_process.add(self)

    def _chosen(self, path: str, schema: Any) -> Any:
        """Select the columns of a file that are wanted."""
        repeated = sorted({name for name in schema.names if schema.names.count(name) > 1})
        wanted = schema.names if self._asked is None else self._asked
        missing = [name for name in wanted if name not in schema.names]
        if missing:
            raise InvalidArgument(f"no column {missing[0]!r}: columns are {schema.names}", path=path)
        if set(wanted) & set(repeated) or len(set(wanted)) < len(wanted):
            raise InvalidArgument(f"several columns have one name: {repeated or wanted}", path=path)
        import pyarrow as pa

        return pa.schema([schema.field(name) for name in wanted])

    def _common_schema(self) -> Any:
        schema = self._schemas[self.files[0].path]
        for file in self.files[1:]:
            other = self._schemas[file.path]
            if other.names != schema.names or other.types != schema.types:
                raise InvalidArgument(
                    f"the columns differ from those of {self.files[0].path}: {_described(other)}, "
                    f"not {_described(schema)}; "
                    "give columns= that all files have, or open them as several data sets",
                    path=file.path,
                )
        return schema

    # ---- which block

    def block_of(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Find (blocks, rows within them) of records. Raises: IndexError."""
        return self._rows.split(numbers)

    def block_sizes(self) -> Integers:
        """Count the records of each block."""
        return self._rows.ends - self._rows.starts

    def rows_of(self, block: int) -> range:
        """List the records of a block."""
        return range(int(self._rows.starts[block]), int(self._rows.ends[block]))

    def runs_of(self, block: int) -> range:
        """List the records of `stored` that are the bytes of a block."""
        return range(int(self._run_firsts[block]), int(self._run_firsts[block + 1]))

    def block_bytes(self, block: int) -> int:
        """Count the stored bytes of a block."""
        return int(self.stored.locate(np.array(self.runs_of(block), np.int64)).lengths.sum())

    def file_of(self, block: int) -> tuple[int, int]:
        """Find (file, number of the block within it)."""
        return self._blocks.split_one(block)

    def block_name(self, block: int) -> str:
        """Name a block in messages."""
        return f"{self.block_noun} {self.file_of(block)[1]}"

    def locate(self, numbers: Integers) -> Extents:
        """Find the bytes of the blocks that records are in."""
        files, _ = self.split(numbers)
        blocks, _ = self.block_of(numbers)
        offsets, lengths = np.zeros_like(blocks), np.zeros_like(blocks)
        for block in np.unique(blocks):
            runs = self.stored.locate(np.array(self.runs_of(int(block)), np.int64))
            if len(runs.offsets):
                mine = blocks == block
                offsets[mine] = runs.offsets.min()
                lengths[mine] = (runs.offsets + runs.lengths).max() - runs.offsets.min()
        return Extents(files, offsets, lengths, None)

    def lengths(self) -> set[int]:
        return {0, 1}  # rows have no lengths

    def read_index(self, file: RecordFile) -> Index:
        raise AssertionError(f"rows of {file.path} have no places of their own")

    def digest(self) -> str:
        return super().digest() if self._asked is None else f"{super().digest()} of {self._asked}"

    def name(self, number: int) -> str:
        block, row = self._rows.split_one(number)
        return f"row {row} of {self.block_name(block)}"

    # ---- samples

    def decoded(self, block: int, read: Callable[[], list[Run]]) -> Any:
        """Return the table of a block: the cached one, or one decoded from the bytes that `read` returns."""
        table = self.cache.get(block)
        if table is None:
            runs = read()
            table = self.decode(block, runs)
            # A table that is a view of its runs keeps all of their bytes, whichever columns it has.
            self.cache.put(block, table, max(table.nbytes, sum(run.data.nbytes for run in runs)))
        return table

    def rows(self, block: int, table: Any, rows: Integers) -> list[Any]:
        """Make samples of rows; `Unfit` in place of one that cannot be made. Raises: CorruptData."""
        with self.decoding(block):  # texts are decoded only now
            return samples_of(table, rows, tensors=self.tensors)

    def head(self, file: int, make: Callable[[], Any]) -> Any:
        """Return what `make` parses of a file; cached for the files used last."""
        with self._lock:
            if file in self._heads:
                self._heads.move_to_end(file)
                return self._heads[file]
        made = make()
        with self._lock:
            self._heads[file] = made
            while len(self._heads) > HEADS_MAX:
                self._heads.popitem(last=False)
        return made

    @contextmanager
    def decoding(self, block: int) -> Iterator[str]:
        """Raise pyarrow's errors as damage of a block. Yields the file's path."""
        import pyarrow as pa

        path = self.files[self.file_of(block)[0]].path
        try:
            yield path
        except pa.ArrowNotImplementedError as error:
            raise InvalidArgument(f"{self.block_name(block)} cannot be read: {error}", path=path) from error
        except CorruptData:
            raise
        except (pa.ArrowException, OSError, ValueError) as error:
            raise CorruptData(f"{self.block_name(block)} cannot be decoded: {error}", path=path) from error


class BlockCache:
    """Decoded blocks, those used last. Several threads may use it."""

    def __init__(self, limit_bytes: int) -> None:
        if limit_bytes < 0:
            raise InvalidArgument(f"cache_bytes is 0 or more, not {limit_bytes}")
        self.limit_bytes = limit_bytes
        self.decoded = 0
        """Blocks that were put here since the start."""
        self.after_fork()

    def after_fork(self) -> None:
        """Drop what the parent has cached (K4), and the lock that its threads may hold."""
        self._cached: OrderedDict[int, tuple[Any, int]] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        _of_this_process.add(self)

    def __reduce__(self) -> tuple[Any, ...]:
        return BlockCache, (self.limit_bytes,)

    def __contains__(self, block: int) -> bool:
        return block in self._cached

    def get(self, block: int) -> Any:
        """Return the table of a block; None if it is not cached."""
        with self._lock:
            found = self._cached.get(block)
            if found is None:
                return None
            self._cached.move_to_end(block)
            return found[0]

    def put(self, block: int, table: Any, nbytes: int) -> None:
        """Cache a block, and drop those that were used longest ago."""
        with self._lock:
            self.decoded += 1
            if block in self._cached:
                self._bytes -= self._cached.pop(block)[1]
            self._cached[block] = (table, nbytes)
            self._bytes += nbytes
            while self._bytes > self.limit_bytes and len(self._cached) > 1:
                _, (_, gone) = self._cached.popitem(last=False)
                self._bytes -= gone


_of_this_process: Final[weakref.WeakSet[BlockCache | BlockRecords]] = weakref.WeakSet()


def _after_fork() -> None:
    for each in list(_of_this_process):
        each.after_fork()


os.register_at_fork(after_in_child=_after_fork)


def require_pyarrow(format_name: str) -> None:
    """Require pyarrow. Raises: InvalidArgument, with what to install."""
    if find_spec("pyarrow") is None:
        raise InvalidArgument(f"files of {format_name} need pyarrow: pip install 'luciola[arrow]'")


def _described(schema: Any) -> str:
    return ", ".join(f"{field.name} {field.type}" for field in schema)


__all__ = ["BlockCache", "BlockRecords", "Layout", "Run", "Runs", "require_pyarrow"]
