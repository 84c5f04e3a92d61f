"""Records of files: where each one lies, whatever the format. Reading them is `batch`, their order is `order`.

A `Records` joins files of one format into one numbering. What it knows of a file is its size, its date and how many
records it has; the places of the records (`Index`) are read when the first one is wanted, in each process anew, so
that a data set sent to a worker is small.

R1  Nothing in a file is believed before it is checked against the file's size: no length makes an allocation larger
    than the file, no offset leads out of it.
R2  A file that was replaced after the data set was opened is refused, not mixed with the old one.
"""

import contextlib
import dataclasses
import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from ...client.location import AnyFileSystem, Location, open_location, parse_location
from ...errors import CorruptData, InvalidArgument
from .shared_index import SharedIndex, shared_index

STRETCH: Final = 1024  # records in a row that a shuffle by blocks keeps together
THREADS: Final = 16  # files opened, or indexes read, together

Given = TypeVar("Given")
Made = TypeVar("Made")

Integers = npt.NDArray[np.int64]
Checksums = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]


class Index(NamedTuple):
    """The records of one file. Without `lengths`, `offsets` has one more, and each record ends where the next begins.

    `checksums`: CRC32 (zlib) of each record, None where the format has none.
    """

    offsets: Integers
    lengths: Integers | None
    checksums: Checksums | None

    def __len__(self) -> int:
        return len(self.offsets) - (self.lengths is None)

    def lengths_of(self, numbers: Integers) -> Integers:
        """Bytes of these records."""
        if self.lengths is not None:
            return self.lengths[numbers]
        result: Integers = self.offsets[numbers + 1] - self.offsets[numbers]
        return result


class Extents(NamedTuple):
    """Where some records lie: one element for each in every array."""

    files: Integers
    offsets: Integers
    lengths: Integers
    checksums: Checksums | None


class Identity(NamedTuple):
    """What tells one state of a file from another."""

    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Place:
    """A file system that is found again in another process: by its location, unless one was given."""

    location: Location | None
    given: Any = None

    @property
    def file_system(self) -> AnyFileSystem:
        if self.given is not None:
            found: AnyFileSystem = self.given
            return found
        assert self.location is not None, "one of the two is there"
        return open_location(self.location)[0]


@dataclass(frozen=True)
class RecordFile:
    """One file of a data set: its records are `count`, its bytes lie at `path`."""

    path: str
    count: int
    identity: Identity
    checksum: int = 0
    """Of its index, or of what stands for it: the same for a copy of the file."""
    index: Index | None = dataclasses.field(default=None, compare=False, repr=False)
    """The places of its records, if they were read with its head; `Records` moves them to its own."""


class Records(ABC):
    """The records of some files of one format, numbered from 0 in the order of the files."""

    format: ClassVar[str]
    suffix: ClassVar[str]
    """Of the files that a directory is searched for."""
    also: ClassVar[tuple[str, ...]] = ()
    """Other endings by which a file may be named."""
    dtype: Any = np.dtype(np.uint8)
    """Of the elements of a record."""
    is_plain = True
    """A record is an array as it lies in the file."""
    index_directory: str | None = None
    """Where all processes of this machine share the places of records (`shared_index`)."""
    in_directories: ClassVar[tuple[str, ...]] = ()
    """The endings that a directory is searched for, if there are more than `suffix`."""

    def __init__(self, place: Place, paths: Sequence[str]) -> None:
        if not paths:
            raise InvalidArgument(f"a data set has at least one file, named *{self.suffix}")
        self.place = place
        self._number(together(self.examine, paths))

    def _number(self, files: list[RecordFile]) -> None:
        self.files = [dataclasses.replace(file, index=None) for file in files]
        counts = np.array([file.count for file in self.files], np.int64)
        self._ends: Integers = np.cumsum(counts)
        self._starts: Integers = self._ends - counts
        self._indexes = {number: file.index for number, file in enumerate(files) if file.index is not None}
        self._shared: SharedIndex | None = None

    @abstractmethod
    def examine(self, path: str) -> RecordFile:
        """What a file is. Raises: CorruptData for one that cannot be of this format."""

    @abstractmethod
    def read_index(self, file: RecordFile) -> Index:
        """The places of the records, checked."""

    @property
    def stored(self) -> "Records":
        """What is read from the files: these records, or the blocks that they are in."""
        return self

    def samples(self, numbers: Integers, arrays: list[Bytes]) -> list[Any]:  # noqa: ARG002
        """The records as samples; `arrays` are their bytes."""
        return [array.view(self.dtype) for array in arrays]

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_indexes={}, _shared=None)
        return state

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} records in {len(self.files)} files>"

    def digest(self) -> str:
        """Names the data: formats, names, sizes and indexes, not where they are."""
        told = [self.format, *(self._told(file) for file in self.files)]
        return hashlib.sha256("\n".join(told).encode("utf-8", "surrogateescape")).hexdigest()

    def _told(self, file: RecordFile) -> str:
        return f"{os.path.basename(file.path)} {file.count} {file.identity.size} {file.checksum}"

    def index(self, number: int) -> Index:
        """The places of the records of a file."""
        if self.index_directory is not None:
            return Index(*self.shared(self.index_directory).of(number))
        found = self._indexes.get(number)
        if found is None:  # two threads that read one index at once get the same
            found = self._indexes.setdefault(number, self._known_index(number))
        return found

    def _known_index(self, number: int) -> Index:
        found = self._indexes.get(number)
        return self.read_index(self.files[number]) if found is None else found

    def shared(self, directory: str) -> SharedIndex:
        """The places of all records, in memory that processes share; made by the first one that asks."""
        if self._shared is None:
            self._shared = shared_index(
                directory,
                self.index_key(),
                [file.count for file in self.files],
                lambda numbers: together(self._known_index, numbers),
            )
            self._indexes.clear()
        return self._shared

    def index_key(self) -> str:
        """Names the indexes: another state of a file has another one."""
        return " ".join([self.digest(), *(str(file.identity.mtime_ns) for file in self.files)])

    def block_sizes(self) -> Integers:
        """Records that are stored together: of a stretch of the file, or of a block that is read as a whole."""
        counts = np.array([file.count for file in self.files], np.int64)
        stretches = -(-counts // STRETCH)
        sizes = np.full(int(stretches.sum()), STRETCH, np.int64)
        some = stretches > 0
        sizes[np.cumsum(stretches)[some] - 1] = (counts - (stretches - 1) * STRETCH)[some]
        return sizes

    def lengths(self) -> set[int]:
        """The lengths that records have, two at most: more are not looked for. Reads the indexes."""
        result: set[int] = set()
        self._read_indexes(range(len(self.files)))
        for number, file in enumerate(self.files):
            of_file = self.index(number).lengths_of(np.arange(file.count))
            if file.count:
                result |= {int(of_file.min()), int(of_file.max())}
            if len(result) > 1:
                break
        return result

    def _read_indexes(self, files: Iterable[int]) -> None:
        if self.index_directory is not None:
            self.shared(self.index_directory)
            return
        together(self.index, [number for number in files if number not in self._indexes])

    def locate(self, numbers: Integers) -> Extents:
        """Where records lie. Raises: IndexError for a number that is not 0 to len-1."""
        files, within = self.split(numbers)
        offsets, lengths = np.empty_like(within), np.empty_like(within)
        checksums: Checksums | None = np.zeros(len(within), np.uint32)
        self._read_indexes(np.unique(files).tolist())
        for file in np.unique(files):
            index, chosen = self.index(int(file)), files == file
            offsets[chosen] = index.offsets[within[chosen]]
            lengths[chosen] = index.lengths_of(within[chosen])
            if index.checksums is None:
                checksums = None
            elif checksums is not None:
                checksums[chosen] = index.checksums[within[chosen]]
        return Extents(files, offsets, lengths, checksums)

    def split(self, numbers: Integers) -> tuple[Integers, Integers]:
        """(files, numbers within them)."""
        if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < len(self):
            wrong = int(numbers.max() if numbers.min() >= 0 else numbers.min())
            raise IndexError(f"records are 0 to {len(self) - 1}, not {wrong}")
        files = np.searchsorted(self._ends, numbers, side="right")
        return files, numbers - self._starts[files]

    def first(self, file: int) -> int:
        """The number of a file's first record."""
        return int(self._starts[file])

    def name(self, number: int) -> str:
        """A record's name in messages."""
        _, within = self.split(np.array([number]))
        return f"record {int(within[0])}"

    def open(self, number: int) -> Any:
        """An open file. Raises: CorruptData if it is not the file that it was."""
        known = self.files[number]
        file: Any = self.place.file_system.open(known.path, "rb")
        if identity_of(file) != known.identity:
            file.close()
            raise CorruptData(
                "the file was replaced or changed after the data set was opened: open it again",
                path=known.path,
            )
        return file


def together(act: Callable[[Given], Made], all_given: Sequence[Given]) -> list[Made]:
    """Return what `act` makes of each, by THREADS at once. Raises: what it raises, for the first that failed.

    Each thread takes every n-th: handing over one by one costs as much as a call to a cluster on this machine.
    """
    threads = min(THREADS, len(all_given))
    if threads < 2:
        return [act(each) for each in all_given]
    failed: dict[int, BaseException] = {}

    def share(first: int) -> list[Made]:
        made = []
        for number in range(first, len(all_given), threads):
            if failed:
                break
            try:
                made.append(act(all_given[number]))
            except BaseException as error:  # noqa: BLE001 (raised in the caller)
                failed[number] = error
        return made

    with ThreadPoolExecutor(threads, "luciola-dataset") as pool:
        shares = list(pool.map(share, range(threads)))
    if failed:
        raise failed[min(failed)]
    return [shares[number % threads][number // threads] for number in range(len(all_given))]


def identity_of(file: Any) -> Identity:
    """Of an open file."""
    status = file.stat()
    return Identity(status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def opened(file_system: AnyFileSystem, path: str) -> Iterator[tuple[Any, Identity]]:
    """An open file and what it is."""
    file: Any
    with file_system.open(path, "rb") as file:
        yield file, identity_of(file)


def read_exactly(file: Any, offset: int, length: int) -> bytes:
    """Raises: CorruptData where the file ends before."""
    data: bytes = file.pread(length, offset)
    if len(data) < length:
        raise CorruptData(f"the file ends before byte {offset + length}", path=str(file.name))
    return data


def place_of(
    locations: str | os.PathLike[str] | Location | Sequence[str | os.PathLike[str] | Location],
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    file_system: AnyFileSystem | None = None,
) -> tuple[Place, list[str]]:
    """The file system that locations are on, and their paths there. With `file_system` they are paths on that.

    Raises: InvalidArgument for none, and for locations on several clusters.
    """
    given = [locations] if isinstance(locations, str | os.PathLike | Location) else list(locations)
    if not given:
        raise InvalidArgument("no location is given")
    if file_system is not None:
        return Place(None, file_system), [os.fspath(each) for each in given]  # type: ignore[arg-type]
    parsed = [each if isinstance(each, Location) else parse_location(each, os.environ) for each in given]
    parsed = [each.with_credentials(secret_file=secret_file, token=token) for each in parsed]
    wheres = {(each.address, each.secret_file, each.token) for each in parsed}
    if len(wheres) > 1:
        raise InvalidArgument(
            "these locations are on several clusters: open each by itself, and give MapDataset the list",
            path=str(parsed[-1]),
        )
    return Place(dataclasses.replace(parsed[0], path="/")), [each.path for each in parsed]


def files_below(file_system: AnyFileSystem, path: str, kind: type[Records]) -> list[str]:
    """The file, or those of a directory whose names end as those of a format, in the order of their names."""
    if not file_system.isdir(path):
        return [path]
    endings = kind.in_directories or (kind.suffix,)
    names = sorted(
        name for name in file_system.listdir(path) if name.endswith(endings) and not name.startswith(".")
    )
    return [os.path.join(path, name) for name in names]


__all__ = [
    "Bytes",
    "Checksums",
    "Extents",
    "Identity",
    "Index",
    "Integers",
    "Place",
    "RecordFile",
    "Records",
    "files_below",
    "identity_of",
    "opened",
    "place_of",
    "read_exactly",
    "together",
]
