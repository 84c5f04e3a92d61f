"""The directory that holds backups of one cluster.

    ROOT/luciola-backup     what this is, and of which cluster
    ROOT/lock               held while a backup is taken, or old ones are removed
    ROOT/packs/NNNNNNNN     bytes of chunks, end to end
    ROOT/NNNNNN.db          names and chunks of backup NNNNNN, an SQLite database
    ROOT/NNNNNN.manifest    that backup is complete: what belongs to it, and checksums

    B1  A manifest appears, by rename, when everything that it refers to is on the disk: what is there without one is
        the rest of a run that broke off, and the next run removes it.
    B2  What a manifest refers to is never changed.

Packs are shared: a backup refers to the packs of earlier ones for what has not changed. docs/formats.md draws all.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import sqlite3
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Final, NamedTuple, Self

from ...client.chunks import crc32c
from ...errors import Busy, CorruptData, InvalidArgument, NotFound
from ...units import MIB

FORMAT: Final = 1
MARK: Final = "luciola-backup"
PACK_BYTES: Final = 256 * MIB  # a file of which little is needed any more is not much
SCHEMA: Final = """
CREATE TABLE chunk (
    chain INTEGER NOT NULL, content INTEGER NOT NULL, number INTEGER NOT NULL,
    chain_version INTEGER NOT NULL, version INTEGER NOT NULL, length INTEGER NOT NULL, crc32c INTEGER NOT NULL,
    pack INTEGER NOT NULL, offset INTEGER NOT NULL,
    PRIMARY KEY (chain, content, number)
) WITHOUT ROWID;
CREATE TABLE record (number INTEGER PRIMARY KEY, bytes BLOB NOT NULL);
"""
INDEX: Final = "CREATE INDEX IF NOT EXISTS chunk_content ON chunk (content, number);"


class Place(NamedTuple):
    """Where the bytes of a chunk are stored. `crc32c`: of these bytes."""

    pack: int
    offset: int
    length: int
    crc32c: int


@dataclass(frozen=True)
class Manifest:
    """What is said of a backup. `moment_ns`: the state that it holds, since 1970. `consistency`: "moment" or "none".

    `packs`: bytes that it needs of each. `damaged`: chunks of files that could not be read, in words: it lacks them.
    """

    number: int
    cluster: str
    moment_ns: int
    consistency: str
    database_bytes: int
    database_sha256: str
    packs: dict[int, int]
    files: int
    chunks: int
    bytes: int
    copied_chunks: int
    copied_bytes: int
    held_ms: int
    damaged: list[str] = field(default_factory=list)
    format: int = FORMAT

    @property
    def is_complete(self) -> bool:
        return not self.damaged


class Repository:
    """A directory of backups."""

    def __init__(self, root: Path) -> None:
        self.root: Final = root
        self.packs: Final = root / "packs"

    # Opening.

    @classmethod
    def open(cls, root: Path) -> "Repository":
        """Open an existing one. Raises: NotFound, InvalidArgument."""
        repository = cls(root)
        repository.cluster  # noqa: B018, it raises
        return repository

    @classmethod
    def create(cls, root: Path, cluster: str) -> "Repository":
        """One for backups of `cluster`, made if it is not there. Raises: InvalidArgument if it is another cluster's."""
        repository = cls(root)
        root.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not (root / MARK).exists():
            if any(
                entry.name not in ("lost+found", MARK + ".new", "packs", "lock") for entry in root.iterdir()
            ):
                raise InvalidArgument(
                    "not empty, and no directory of backups: name another one", path=str(root)
                )
            repository.packs.mkdir(mode=0o700, exist_ok=True)
            _write(root / MARK, f"luciola backups\nformat {FORMAT}\ncluster {cluster}\n")
        if repository.cluster != cluster:
            raise InvalidArgument(
                f"holds backups of cluster {repository.cluster!r}, not of {cluster!r}: name another directory",
                path=str(root),
            )
        return repository

    @property
    def cluster(self) -> str:
        """Whose backups these are. Raises: NotFound, InvalidArgument."""
        try:
            lines = (self.root / MARK).read_text(encoding="ascii").splitlines()
        except FileNotFoundError as error:
            raise NotFound(
                "no directory of backups: it has no file luciola-backup", path=str(self.root)
            ) from error
        if lines[:1] != ["luciola backups"] or lines[1:2] != [f"format {FORMAT}"] or len(lines) != 3:
            raise InvalidArgument(
                f"not a directory of backups of format {FORMAT}, which this release reads",
                path=str(self.root),
            )
        return lines[2].removeprefix("cluster ")

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes from changing it. Raises: Busy."""
        with (self.root / "lock").open("w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy("another backup is being taken, or removed, here", path=str(self.root)) from error
            yield

    # What is there.

    def numbers(self) -> list[int]:
        """Return the backups that are finished, oldest first."""
        return sorted(int(path.stem) for path in self.root.glob("*.manifest") if path.stem.isdecimal())

    def manifest(self, number: int | None = None) -> Manifest:
        """Return what is said of a backup, of the newest by default. Raises: NotFound, CorruptData."""
        if number is None:
            numbers = self.numbers()
            if not numbers:
                raise NotFound("no finished backup is here", path=str(self.root))
            number = numbers[-1]
        path = self.root / f"{number:06}.manifest"
        try:
            text, checksum, _ = path.read_bytes().split(b"\n")
        except FileNotFoundError as error:
            raise NotFound(
                f"no backup {number}; `luciola backup list` shows all", path=str(self.root)
            ) from error
        except ValueError as error:
            raise CorruptData("the manifest is damaged", path=str(path)) from error
        if checksum != f"crc32c {crc32c(text):08x}".encode():
            raise CorruptData("the manifest is damaged", path=str(path))
        table = json.loads(text)
        if table["format"] != FORMAT:
            raise InvalidArgument(f"format {table['format']}; this release reads {FORMAT}", path=str(path))
        table["packs"] = {int(pack): count for pack, count in table["packs"].items()}
        return Manifest(**table)

    def database(self, number: int) -> Path:
        return self.root / f"{number:06}.db"

    def pack(self, number: int) -> Path:
        return self.packs / f"{number:08}"

    def check_database(self, manifest: Manifest) -> None:
        """Raises: CorruptData if the database is not the one that the manifest was written for."""
        path = self.database(manifest.number)
        try:
            found = path.stat().st_size, sha256_of(path)
        except FileNotFoundError as error:
            raise CorruptData("the database of the backup is missing", path=str(path)) from error
        if found != (manifest.database_bytes, manifest.database_sha256):
            raise CorruptData("the database of the backup is damaged", path=str(path))

    # Changing.

    def begin(self) -> tuple[int, int]:
        """Remove what broken-off runs have left; numbers of the next backup and the next pack."""
        needed = {pack for number in self.numbers() for pack in self.manifest(number).packs}
        for path in self.root.iterdir():
            number = path.name.split(".")[0]
            if number.isdecimal() and int(number) not in self.numbers():
                path.unlink()
        packs = [int(path.name) for path in self.packs.iterdir() if path.name.isdecimal()]
        for pack in packs:
            if pack not in needed:
                self.pack(pack).unlink()
        sync_directory(self.packs)
        return max(self.numbers(), default=0) + 1, max(needed, default=0) + 1

    def finish(self, manifest: Manifest) -> None:
        """The backup is complete (B1): its database and packs are on the disk."""
        text = json.dumps(asdict(manifest)).encode()
        checksum = f"crc32c {crc32c(text):08x}"
        _write(self.root / f"{manifest.number:06}.manifest", f"{text.decode()}\n{checksum}\n")

    def prune(self, keep: int) -> tuple[list[int], int]:
        """Remove all but the newest `keep`; which, and how many bytes of packs without a reference."""
        numbers = self.numbers()
        removed = numbers[: max(0, len(numbers) - keep)]
        for number in removed:
            (self.root / f"{number:06}.manifest").unlink()
        sync_directory(self.root)
        before = self._pack_bytes()
        self.begin()
        return removed, before - self._pack_bytes()

    def _pack_bytes(self) -> int:
        return sum(path.stat().st_size for path in self.packs.iterdir())


class PackWriter:
    """Writes chunks into new packs, from several threads."""

    def __init__(self, repository: Repository, first: int, *, pack_bytes: int = PACK_BYTES) -> None:
        self._repository = repository
        self._pack_bytes = pack_bytes
        self._number = first - 1
        self._file = -1
        self._offset = 0
        self._lock = threading.Lock()
        self.bytes = 0

    def add(self, data: memoryview) -> tuple[int, int]:
        """Return where the bytes are stored: pack and offset. Raises: OSError."""
        with self._lock:
            if self._file < 0 or self._offset >= self._pack_bytes:
                self._next()
            offset = self._offset
            written = 0
            while written < len(data):
                try:
                    written += os.pwrite(self._file, data[written:], offset + written)
                except OSError as error:
                    error.filename = str(self._repository.pack(self._number))
                    raise
            self._offset += len(data)
            self.bytes += len(data)
            return self._number, offset

    def sync(self) -> None:
        """All that was added is on the disk. Raises: OSError."""
        with self._lock:
            if self._file >= 0:
                os.fsync(self._file)
        sync_directory(self._repository.packs)

    def close(self) -> None:
        """End without a promise."""
        with self._lock:
            if self._file >= 0:
                os.close(self._file)
                self._file = -1

    def _next(self) -> None:
        if self._file >= 0:
            os.fsync(self._file)
            os.close(self._file)
            self._file = -1
        self._number += 1
        path = self._repository.pack(self._number)
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._offset = 0


class PackReader:
    """Reads chunks from packs, from several threads. Every byte that it returns has been checked."""

    def __init__(self, repository: Repository) -> None:
        self._repository = repository
        self._files: dict[int, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        for file in self._files.values():
            os.close(file)

    def read(self, place: Place) -> bytes:
        """Raises: CorruptData if they are not the bytes that were written."""
        path = self._repository.pack(place.pack)
        with self._lock:
            if place.pack not in self._files:
                try:
                    self._files[place.pack] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError as error:
                    raise CorruptData("a pack is missing", path=str(path)) from error
            file = self._files[place.pack]
        data = os.pread(file, place.length, place.offset)
        if len(data) != place.length or crc32c(data) != place.crc32c:
            raise CorruptData(
                f"{place.length} bytes at {place.offset} are damaged: restore from another backup",
                path=str(path),
            )
        return data


@contextlib.contextmanager
def opened(path: Path, *, create: bool = False) -> Iterator[sqlite3.Connection]:
    """A backup's database. A reader does not change it."""
    # Several threads of a reader take turns. What a crash leaves of a new one is thrown away (B1).
    name = str(path) if create else f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    base = sqlite3.connect(name, uri=not create, check_same_thread=create)
    try:
        if create:
            path.chmod(0o600)
            base.executescript(
                "PRAGMA journal_mode = OFF; PRAGMA synchronous = OFF; PRAGMA cache_size = -65536;"
            )
        yield base
    finally:
        base.close()


def sha256_of(path: Path) -> str:
    """In hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_file(path: Path) -> None:
    """Its bytes, and its name, survive the loss of power."""
    with path.open("rb") as file:
        os.fsync(file.fileno())
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """The names in it survive the loss of power."""
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(directory)
    finally:
        os.close(directory)


def _write(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".new")
    with temporary.open("w", encoding="utf-8") as file:
        os.fchmod(file.fileno(), 0o600)
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
    sync_directory(path.parent)


def describe(manifest: Manifest) -> dict[str, object]:
    """For `--json`."""
    return asdict(manifest)


__all__ = [
    "INDEX",
    "SCHEMA",
    "Manifest",
    "PackReader",
    "PackWriter",
    "Place",
    "Repository",
    "describe",
    "opened",
    "sha256_of",
    "sync_directory",
    "sync_file",
]
