"""Records of files: where each one is stored, in any format. `reader` reads them, `shuffle` decides their order.

A `Records` joins files of one format into one numbering. What it knows of a file is its size, its date and how many
records it has; the places of the records (`Index`) are read when the first one is wanted, by each process, so that a
data set sent to a worker is small.

R1  Nothing in a file is believed before it is checked against the file's size: no length makes an allocation larger
    than the file, no offset leads out of it.
R2  A file that was replaced after the data set was opened is refused, not mixed with the old one.
"""

import contextlib
import dataclasses
import hashlib
import itertools
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, ClassVar, Final, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ...client.location import AnyFileSystem, Location, open_location, parse_location
from ...errors import CorruptData, InvalidArgument
from .shared_index import SharedIndex, shared_index

STRETCH: Final = 1024  # consecutive records that a shuffle by blocks keeps together
THREADS: Final = 16  # files opened, or indexes read, concurrently

Given = TypeVar("Given")
Made = TypeVar("Made")

Integers = npt.NDArray[np.int64]
Checksums = npt.NDArray[np.uint32]
Bytes = npt.NDArray[np.uint8]
Shares = list[tuple[int, Integers, Integers]]
"""Of numbers in several sequences: (sequence, which of the numbers are in it, their places within it)."""


class Numbering(NamedTuple):
    """The numbers of the elements of several sequences, counted one sequence after the other."""

    noun: str
    starts: Integers
    ends: Integers

    @classmethod
    def of(cls, noun: str, counts: Iterable[int]) -> Self:
        """Number sequences of so many elements. `noun`: what an element is called in messages."""
        sizes = np.fromiter(counts, np.int64)
        ends = np.cumsum(sizes)
        return cls(noun, ends - sizes, ends)

    @property
    def size(self) -> int:
        return int(self.ends[-1]) if len(self.ends) else 0

    def split(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Find (sequences, places within them). Raises: IndexError."""
        require_within(numbers, self.size, self.noun)
        owners = np.searchsorted(self.ends, numbers, side="right")
        return owners, numbers - self.starts[owners]

    def shares(self, numbers: Integers) -> Shares:
        """Find the sequences that these numbers are in. Raises: IndexError."""
        if len(self.ends) == 1 and len(numbers):
            require_within(numbers, self.size, self.noun)
            return [(0, np.arange(len(numbers)), numbers)]
        owners, within = self.split(numbers)
        order = np.argsort(owners, kind="stable")
        ordered = owners[order]
        bounds = np.append(np.flatnonzero(np.diff(ordered, prepend=-1)), len(order)).tolist()
        chosen = [order[first:end] for first, end in itertools.pairwise(bounds)]
        return [(int(owners[each[0]]), each, within[each]) for each in chosen]

    def split_one(self, number: int) -> tuple[int, int]:
        """Find (sequence, place within it) of one. Raises: IndexError."""
        (owner,), (place,) = self.split(np.array([number], np.int64))
        return int(owner), int(place)


def require_within(numbers: Integers, size: int, noun: str) -> None:
    """Require numbers from 0 to size-1. Raises: IndexError."""
    if numbers.size and not 0 <= int(numbers.min()) <= int(numbers.max()) < size:
        wrong = int(numbers.max() if numbers.min() >= 0 else numbers.min())
        raise IndexError(f"{noun} are 0 to {size - 1}, not {wrong}")


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
        """Look up the bytes of these records."""
        if self.lengths is not None:
            return self.lengths[numbers]
        result: Integers = self.offsets[numbers + 1] - self.offsets[numbers]
        return result


class Extents(NamedTuple):
    """Where some records are stored: one element for each in every array."""

    files: Integers
    offsets: Integers
    lengths: Integers
    checksums: Checksums | None


class Identity(NamedTuple):
    """What distinguishes one state of a file from another."""

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
    """One file of a data set."""

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
    """A sample is an array of the bytes of its record."""
    index_directory: str | None = None
    """Where all processes of this machine share the places of records (`shared_index`)."""
    in_directories: ClassVar[tuple[str, ...]] = ()
    """The endings that a directory is searched for, if there are more than `suffix`."""

    def __init__(self, place: Place, paths: Sequence[str]) -> None:
        if not paths:
            raise InvalidArgument(f"a data set has at least one file, named *{self.suffix}")
        self.place = place
        self._number(concurrently(self.examine, paths))

    def _number(self, files: list[RecordFile]) -> None:
        self.files = [dataclasses.replace(file, index=None) for file in files]
        self._numbering = Numbering.of("records", [file.count for file in files])
        self._indexes = {number: file.index for number, file in enumerate(files) if file.index is not None}
        self._shared: SharedIndex | None = None

    @abstractmethod
    def examine(self, path: str) -> RecordFile:
        """Describe a file. Raises: CorruptData for one that cannot be of this format."""

    @abstractmethod
    def read_index(self, file: RecordFile) -> Index:
        """Read the places of the records, and check them."""

    @property
    def stored(self) -> "Records":
        """What is read from the files: these records, or the blocks that they are in."""
        return self

    def samples(self, numbers: Integers, arrays: list[Bytes]) -> list[Any]:  # noqa: ARG002
        """Make samples of records; `arrays` are their bytes."""
        return [array.view(self.dtype) for array in arrays]

    def __len__(self) -> int:
        return self._numbering.size

    def __getstate__(self) -> dict[str, Any]:
        state = self.__dict__.copy()
        state.update(_indexes={}, _shared=None)
        return state

    def __repr__(self) -> str:
        return f"<{type(self).__name__} of {len(self)} records in {len(self.files)} files>"

    def digest(self) -> str:
        """Hash what names the data: formats, names, sizes and indexes, not where they are."""
        lines = [
            f"{os.path.basename(file.path)} {file.count} {file.identity.size} {file.checksum}"
            for file in self.files
        ]
        text = "\n".join([self.format, *lines])
        return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()

    def index(self, number: int) -> Index:
        """Look up the places of the records of a file; read them at first."""
        if self.index_directory is not None:
            return Index(*self.shared(self.index_directory).of(number))
        # Two threads that read one index at once get the same.
        return self._indexes.setdefault(number, self._known_index(number))

    def _known_index(self, number: int) -> Index:
        found = self._indexes.get(number)
        return self.read_index(self.files[number]) if found is None else found

    def shared(self, directory: str) -> SharedIndex:
        """Map the places of all records, in memory that processes share; the first process makes it."""
        if self._shared is None:
            self._shared = shared_index(
                directory,
                self.index_key(),
                [file.count for file in self.files],
                lambda numbers: concurrently(self._known_index, numbers),
            )
            self._indexes.clear()
        return self._shared

    def index_key(self) -> str:
        """Name the indexes: another state of a file has another name."""
        return " ".join([self.digest(), *(str(file.identity.mtime_ns) for file in self.files)])

    def block_sizes(self) -> Integers:
        """Count the records of each stretch of the files, or of each block that is read as a whole."""
        counts = self._numbering.ends - self._numbering.starts
        stretches = -(-counts // STRETCH)
        sizes = np.full(int(stretches.sum()), STRETCH, np.int64)
        some = stretches > 0
        sizes[np.cumsum(stretches)[some] - 1] = (counts - (stretches - 1) * STRETCH)[some]
        return sizes

    def lengths(self) -> set[int]:
        """Find the lengths that records have, two at most: more are not searched for. Reads the indexes."""
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
        concurrently(self.index, [number for number in files if number not in self._indexes])

    def locate(self, numbers: Integers) -> Extents:
        """Find where records are stored. Raises: IndexError for a number that is not 0 to len-1."""
        if self.index_directory is not None:
            files, _ = self.split(numbers)
            return Extents(files, *self.shared(self.index_directory).locate(numbers, files))
        files, offsets, lengths = (np.empty_like(numbers) for _ in range(3))
        checksums: Checksums | None = np.zeros(len(numbers), np.uint32)
        shares = self._numbering.shares(numbers)
        self._read_indexes([file for file, _, _ in shares])
        for file, chosen, within in shares:
            index = self.index(file)
            files[chosen], offsets[chosen] = file, index.offsets[within]
            lengths[chosen] = index.lengths_of(within)
            if index.checksums is None:
                checksums = None
            elif checksums is not None:
                checksums[chosen] = index.checksums[within]
        return Extents(files, offsets, lengths, checksums)

    def split(self, numbers: Integers) -> tuple[Integers, Integers]:
        """Find (files, numbers within them). Raises: IndexError."""
        return self._numbering.split(numbers)

    def in_file(self, number: int) -> tuple[RecordFile, int]:
        """Find (file, number within it) of one record. Raises: IndexError."""
        file, within = self._numbering.split_one(number)
        return self.files[file], within

    def numbers_in(self, file: int) -> Integers:
        """List the numbers of a file's records."""
        return np.arange(self._numbering.starts[file], self._numbering.ends[file])

    def name(self, number: int) -> str:
        """Name a record in messages."""
        return f"record {self.in_file(number)[1]}"

    def open(self, number: int) -> Any:
        """Open a file. Raises: CorruptData if it was replaced or changed."""
        known = self.files[number]
        file: Any = self.place.file_system.open(known.path, "rb")
        try:
            _check_same(known.path, known.identity, identity_of(file))
        except CorruptData:
            file.close()
            raise
        return file


def concurrently(act: Callable[[Given], Made], all_given: Sequence[Given]) -> list[Made]:
    """Call `act` with each, in THREADS threads, and return the results. Raises: the first of their errors.

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
        try:
            shares = list(pool.map(share, range(threads)))
        except BaseException as error:  # an interrupt of this thread ends the others, too
            failed[len(all_given)] = error
            raise
    if failed:
        raise failed[min(failed)]
    return [shares[number % threads][number // threads] for number in range(len(all_given))]


def identity_of(file: Any) -> Identity:
    """Identify an open file."""
    status = file.stat()
    return Identity(status.st_size, status.st_mtime_ns)


@contextlib.contextmanager
def opened(file_system: AnyFileSystem, path: str) -> Iterator[tuple[Any, Identity]]:
    """Open a file, and identify it."""
    file: Any
    with file_system.open(path, "rb") as file:
        yield file, identity_of(file)


@contextlib.contextmanager
def reopened(file_system: AnyFileSystem, path: str, known: Identity) -> Iterator[Any]:
    """Open a file that was identified before. Raises: CorruptData if it was replaced or changed (R2)."""
    with opened(file_system, path) as (file, identity):
        _check_same(path, known, identity)
        yield file


def _check_same(path: str, known: Identity, identity: Identity) -> None:
    if identity != known:
        raise CorruptData(
            "the file was replaced or changed after the data set was opened: open it again", path=path
        )


def read_exactly(file: Any, offset: int, length: int) -> bytes:
    """Read so many bytes. Raises: CorruptData where the file ends before."""
    data: bytes = file.pread(length, offset)
    if len(data) < length:
        raise CorruptData(f"the file ends before byte {offset + length}", path=str(file.name))
    return data


def place_of(
    locations: str | os.PathLike[str] | Location | Sequence[str | os.PathLike[str] | Location],
    *,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    file_system: AnyFileSystem | None = None,
) -> tuple[Place, list[str]]:
    """Find the file system of locations, and their paths there. With `file_system` they are paths on that.

    Raises: InvalidArgument for none, and for locations on several clusters.
    """
    given = [locations] if isinstance(locations, str | os.PathLike | Location) else list(locations)
    if not given:
        raise InvalidArgument("no location is given")
    if file_system is not None:
        return Place(None, file_system), [os.fspath(each) for each in given]  # type: ignore[arg-type]
    parsed = [each if isinstance(each, Location) else parse_location(each, os.environ) for each in given]
    parsed = [
        each.with_credentials(secret_file=secret_file, token=token, token_file=token_file) for each in parsed
    ]
    wheres = {(each.address, each.secret_file, each.token, each.token_file) for each in parsed}
    if len(wheres) > 1:
        raise InvalidArgument(
            "these locations are on several clusters: open each separately, and give MapDataset the list",
            path=str(parsed[-1]),
        )
    return Place(dataclasses.replace(parsed[0], path="/")), [each.path for each in parsed]


__all__ = [
    "Bytes",
    "Checksums",
    "Extents",
    "Identity",
    "Index",
    "Integers",
    "Numbering",
    "Place",
    "RecordFile",
    "Records",
    "Shares",
    "concurrently",
    "identity_of",
    "opened",
    "place_of",
    "read_exactly",
    "reopened",
    "require_within",
]
