"""Packs files into data sets: FFRecord, tokens or tar shards, in parts of bounded size, on any location.

P1  The order of records is that of the sources, and of the names in each directory, byte by byte: packing the same
    files twice makes the same data set.
P2  A part appears complete or not at all. Parts of an earlier data set in the target directory are refused, not mixed.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple

import numpy as np

from ...client.location import AnyFileSystem
from ...errors import AlreadyExists, InvalidArgument
from .ffrecord import FFRecordWriter
from .open import FORMATS, Locations
from .records import Records, place_of
from .tar import TarWriter, key_and_part
from .tokens import TokenWriter

READ_BYTES: Final = 16 << 20
PART_BYTES: Final = 1 << 30
PACKED: Final = ("ffrecord", "tokens", "tar")
LABELS_NAME: Final = "labels.json"

Advance = Callable[[int], None]


class Source(NamedTuple):
    """A file to pack: its path below the directory that was given, and where it is."""

    name: str
    path: str
    size: int


@dataclass
class Report:
    """What was written."""

    format: str
    records: int = 0
    bytes: int = 0
    files: list[str] = field(default_factory=list)
    labels: list[str] = field(default_factory=list)
    """Names of classes, in the order of their numbers."""


@dataclass(frozen=True)
class Sources:
    """Files to pack, on one file system."""

    file_system: AnyFileSystem
    files: list[Source]

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def find_sources(locations: Locations) -> Sources:
    """List the files, and all files below the directories. Raises: InvalidArgument if there are none."""
    place, paths = place_of(locations)
    file_system = place.file_system
    files = [source for path in paths for source in _below(file_system, path)]
    if not files:
        raise InvalidArgument("no files there", path=paths[0])
    return Sources(file_system, files)


def _below(file_system: AnyFileSystem, path: str) -> Iterator[Source]:
    if not file_system.isdir(path):
        yield Source(os.path.basename(path), path, file_system.stat(path).st_size)
        return
    found = [
        os.path.join(directory, name) for directory, _, names in file_system.walk(path) for name in names
    ]
    for file in sorted(found, key=os.fsencode):
        name = os.path.relpath(file, path)
        if not any(part.startswith(".") for part in name.split("/")):
            yield Source(name, file, file_system.stat(file).st_size)


def pack_files(  # noqa: PLR0913 (by keyword)
    sources: Sources,
    target: Locations,
    *,
    format: str,  # noqa: A002 (what it is called everywhere)
    part_bytes: int = PART_BYTES,
    dtype: str | None = None,
    labels: bool = False,
    advance: Advance = lambda _count: None,
) -> Report:
    """Pack files into the directory `target`, as PART_00000, PART_00001, … of about `part_bytes` each.

    "ffrecord": each file is a record. "tar": files are parts of samples, by their names. "tokens": each file is a
    document: one-dimensional arrays of integers in .npy, or the bytes of any other file.
    `labels`: the directory of each sample is its class; samples get a part `cls`, the number of the class in the order
    of their names, and the target a file LABELS_NAME with the names.
    Raises: InvalidArgument for files that the format cannot hold; AlreadyExists for a target with parts in it.
    """
    if format not in PACKED:
        raise InvalidArgument(f"not a format that is packed: {format!r} (formats are {', '.join(PACKED)})")
    if part_bytes < 1:
        raise InvalidArgument(f"parts have at least one byte, not {part_bytes}")
    place, (directory,) = place_of(target)
    require_empty(place.file_system, directory)
    place.file_system.makedirs(directory, exist_ok=True)
    report = Report(format)
    if labels:
        report.labels = _labels(sources, format)
        place.file_system.write(
            os.path.join(directory, LABELS_NAME), json.dumps(report.labels, ensure_ascii=False).encode()
        )
    packer = _Packer(sources.file_system, place.file_system, report, advance, dtype)
    pack = {"ffrecord": packer.pack_ffrecord, "tokens": packer.pack_tokens, "tar": packer.pack_tar}[format]
    for number, part in enumerate(_parts(sources.files, part_bytes, keep_samples=format == "tar")):
        pack(part, os.path.join(directory, f"PART_{number:05}"))
    return report


def _labels(sources: Sources, format: str) -> list[str]:  # noqa: A002 (what it is called everywhere)
    if format != "tar":
        raise InvalidArgument("labels go with tar, which keeps names and parts of samples")
    found = {os.path.dirname(source.name) for source in sources.files}
    if "" in found:
        alone = next(source for source in sources.files if not os.path.dirname(source.name))
        raise InvalidArgument("no directory names the class of this file", path=alone.path)
    parts = (key_and_part(source.name) for source in sources.files)
    if any(named is not None and named[1] == "cls" for named in parts):
        raise InvalidArgument(
            "samples have a part `cls` already: pack them without labels", path=sources.files[0].path
        )
    return sorted(found, key=os.fsencode)


def require_empty(
    file_system: AnyFileSystem, directory: str, *, kinds: Iterable[type[Records]] = FORMATS.values()
) -> None:
    """Require a directory without files of these formats. Raises: AlreadyExists."""
    endings = tuple(ending for kind in kinds for ending in (kind.suffix, *kind.also))
    if file_system.isdir(directory):
        there = [name for name in file_system.listdir(directory) if name.endswith(endings)]
        if there:
            raise AlreadyExists(
                f"there is a data set already ({there[0]}): choose another directory", path=directory
            )


def _parts(files: Sequence[Source], part_bytes: int, *, keep_samples: bool) -> Iterator[list[Source]]:
    """Group files into parts; those of one sample stay together."""
    part: list[Source] = []
    size = 0
    before: str | None = None
    for file in files:
        named = key_and_part(file.name) if keep_samples else None
        key = named[0] if named else None
        if part and size + file.size > part_bytes and (key is None or key != before):
            yield part
            part, size = [], 0
        part.append(file)
        size += file.size
        before = key
    if part:
        yield part


@dataclass(frozen=True)
class _Packer:
    """Writes one part after the other."""

    origin: AnyFileSystem
    target: AnyFileSystem
    report: Report
    advance: Advance
    dtype: str | None

    def pack_ffrecord(self, part: list[Source], path: str) -> None:
        with FFRecordWriter(path + ".ffr", len(part), file_system=self.target) as writer:
            for source in part:
                writer.write(self.read(source))
        self.add(path + ".ffr", writer.written, writer.bytes_written)

    def pack_tar(self, part: list[Source], path: str) -> None:
        with TarWriter(path + ".tar", file_system=self.target) as writer:
            for key, members in _samples(part):
                sample = {name: self.read(source) for name, source in members}
                if self.report.labels:
                    sample["cls"] = str(self.report.labels.index(os.path.dirname(key))).encode()
                writer.write({"__key__": key, **sample})
        self.add(path + ".tar", writer.written, writer.bytes_written)

    def pack_tokens(self, part: list[Source], path: str) -> None:
        first = _tokens(self.read(part[0]), part[0])
        with TokenWriter(path, dtype=self.dtype or first.dtype.name, file_system=self.target) as writer:
            writer.write(first)
            for source in part[1:]:
                writer.write(_tokens(self.read(source), source))
        self.add(path + ".bin", writer.written, writer.bytes_written)

    def read(self, source: Source) -> bytes:
        data: bytes = self.origin.read(source.path)
        if len(data) != source.size:
            raise InvalidArgument(
                f"the file was {source.size} bytes long and is {len(data)}: it is being written",
                path=source.path,
            )
        self.advance(source.size)
        return data

    def add(self, path: str, records: int, nbytes: int) -> None:
        self.report.files.append(path)
        self.report.records += records
        self.report.bytes += nbytes


def _samples(part: Iterable[Source]) -> Iterator[tuple[str, list[tuple[str, Source]]]]:
    key: str | None = None
    members: list[tuple[str, Source]] = []
    for source in part:
        named = key_and_part(source.name)
        if named is None:
            raise InvalidArgument(
                "not the name of a part of a sample: names in tar shards have an ending, as in 0001.jpg",
                path=source.path,
            )
        if key is not None and named[0] != key:
            yield key, members
            members = []
        key = named[0]
        members.append((named[1], source))
    if key is not None:
        yield key, members


def _tokens(data: bytes, source: Source) -> Any:
    if not source.name.endswith(".npy"):
        return np.frombuffer(data, np.uint8)
    import io

    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except ValueError as error:
        raise InvalidArgument(f"not an array: {error}", path=source.path) from error
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise InvalidArgument(
            f"tokens are integers in one dimension, not {array.dtype} in {array.ndim}", path=source.path
        )
    return array


__all__ = ["PART_BYTES", "Report", "Sources", "find_sources", "pack_files", "require_empty"]
