"""The seal of a checkpoint: the position that it was made at, and each file with its length and checksum.

Stored beside the files, as two lines: a JSON object, and the SHA-256 of that line.
"""

import hashlib
import json
import re
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, cast

from ...errors import CorruptData
from ...units import MIB
from ..log import Position
from ..log.ordered_log import DIGEST_BYTES

SEAL_NAME: Final = "SEAL"
FORMAT: Final = 1
FILES_MAX: Final = 100_000  # tables of 64 MiB: 6 TB of metadata
SEAL_BYTES_MAX: Final = 32 * MIB  # of so many files
READ_BYTES: Final = 1 * MIB
FILE_NAME: Final = re.compile(
    r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}"
)  # as RocksDB names its files; no way out of a directory


@dataclass(frozen=True, slots=True)
class SealedFile:
    """One file of a checkpoint."""

    name: str
    size_bytes: int
    sha256: str

    def __post_init__(self) -> None:
        assert self.size_bytes >= 0, "a file has a length"


@dataclass(frozen=True, slots=True)
class Seal:
    """What a checkpoint contains. `files` are in the order of their names."""

    log_id: bytes
    epoch: int
    position: Position
    files: tuple[SealedFile, ...]

    @property
    def size_bytes(self) -> int:
        """Of all files; those that the store still has cost no space."""
        return sum(file.size_bytes for file in self.files)

    def encode(self) -> bytes:
        """Return the stored form."""
        line = json.dumps(
            {
                "format": FORMAT,
                "log": self.log_id.hex(),
                "epoch": self.epoch,
                "index": self.position.index,
                "digest": self.position.digest.hex(),
                "files": [[file.name, file.size_bytes, file.sha256] for file in self.files],
            }
        ).encode()
        return line + b"\n" + hashlib.sha256(line).hexdigest().encode() + b"\n"

    @staticmethod
    def decode(encoded: bytes) -> "Seal":
        """Return what `encode` was called on. Raises: CorruptData."""
        lines = encoded.split(b"\n")
        if len(lines) != 3 or lines[2] or hashlib.sha256(lines[0]).hexdigest().encode() != lines[1]:
            raise CorruptData("the seal of a checkpoint does not match its checksum")
        try:
            fields = cast("Mapping[str, object]", json.loads(lines[0]))
            return _from_fields(fields)
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise CorruptData(f"the seal of a checkpoint cannot be read: {error}") from error


def hash_file(path: Path) -> SealedFile:
    """Return name, length and checksum of a file."""
    digest = hashlib.sha256()
    size_bytes = 0
    with path.open("rb", buffering=0) as file:
        while chunk := file.read(READ_BYTES):
            digest.update(chunk)
            size_bytes += len(chunk)
    return SealedFile(path.name, size_bytes, digest.hexdigest())


def read_seal(directory: Path) -> Seal:
    """Return the seal of the checkpoint in `directory`. Raises: CorruptData, also if there is none."""
    try:
        with (directory / SEAL_NAME).open("rb") as file:
            encoded = file.read(SEAL_BYTES_MAX + 1)
    except OSError as error:
        raise CorruptData(f"the checkpoint {directory} has no seal: {error}") from error
    if len(encoded) > SEAL_BYTES_MAX:
        raise CorruptData(f"the seal of the checkpoint {directory} is larger than {SEAL_BYTES_MAX} bytes")
    return Seal.decode(encoded)


def verify_files(directory: Path, seal: Seal) -> None:
    """Compare every file with the seal, and require that there is no other. Raises: CorruptData."""
    sealed = {file.name for file in seal.files}
    found = {path.name for path in directory.iterdir()} - {SEAL_NAME}
    if strangers := sorted(found - sealed):
        raise CorruptData(f"the checkpoint {directory} has files that are not sealed: {_some(strangers)}")
    damaged = [file.name for file in seal.files if file.name not in found or not _matches(directory, file)]
    if damaged:
        raise CorruptData(f"the checkpoint {directory} is damaged: {_some(damaged)}")


def _matches(directory: Path, file: SealedFile) -> bool:
    path = directory / file.name
    try:
        status = path.lstat()
        return stat.S_ISREG(status.st_mode) and status.st_size == file.size_bytes and hash_file(path) == file
    except OSError:  # a bad sector, or it is gone
        return False


def _from_fields(fields: Mapping[str, object]) -> Seal:
    if fields["format"] != FORMAT:
        raise ValueError(f"format {fields['format']}, and this release reads format {FORMAT}")
    listed = cast("Sequence[tuple[str, int, str]]", fields["files"])
    if len(listed) > FILES_MAX:
        raise ValueError(f"{len(listed)} files, and at most {FILES_MAX} are read")
    if any(int(size) < 0 for _, size, _ in listed):
        raise ValueError("a file with a negative length")
    files = tuple(SealedFile(str(name), int(size), str(sha256)) for name, size, sha256 in listed)
    for file in files:
        if not FILE_NAME.fullmatch(file.name) or file.name == SEAL_NAME:
            raise ValueError(f"the file {file.name!r}")
    if len({file.name for file in files}) != len(files):
        raise ValueError("a file twice")
    digest = bytes.fromhex(str(fields["digest"]))
    if len(digest) != DIGEST_BYTES:
        raise ValueError("a digest of another length")
    position = Position(int(cast("int", fields["index"])), digest)
    return Seal(bytes.fromhex(str(fields["log"])), int(cast("int", fields["epoch"])), position, files)


def _some(names: Sequence[str]) -> str:
    shown = ", ".join(names[:3])
    return shown if len(names) <= 3 else f"{shown} and {len(names) - 3} more"


__all__ = ["READ_BYTES", "SEAL_NAME", "Seal", "SealedFile", "hash_file", "read_seal", "verify_files"]
