"""Opens the records of files of any format."""

import os
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from ...client.location import AnyFileSystem, Location
from ...errors import InvalidArgument
from .arrow import ArrowRecords
from .blocks import BlockRecords
from .ffrecord import FFRecords
from .jsonl import JsonlRecords
from .parquet import ParquetRecords
from .records import Records, place_of
from .tar import TarRecords
from .tokens import TokenRecords

FORMATS: Final[dict[str, type[Records]]] = {
    kind.format: kind
    for kind in (FFRecords, TokenRecords, TarRecords, JsonlRecords, ParquetRecords, ArrowRecords)
}

Locations = str | os.PathLike[str] | Location | Sequence[str | os.PathLike[str] | Location]


def open_records(  # noqa: PLR0913 (by keyword)
    locations: Locations,
    *,
    format: str | None = None,  # noqa: A002 (what it is called everywhere)
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
    file_system: AnyFileSystem | None = None,
    index_directory: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Records:
    """Open the records of a file, of several, or of all files of a format in a directory, in the order of their names.

    `format`: "ffrecord", "tokens", "tar", "jsonl", "parquet" or "arrow"; by default that of the names' endings.
    `index_directory`: a directory of this machine, as /dev/shm/me, where one file has the places of all records, and
    all processes share its memory; by default each process has those of the files that it reads. `options` are the
    format's own.
    Raises: InvalidArgument for files that are of no format or of several; CorruptData for files that are damaged.
    """
    place, paths = place_of(
        locations, secret_file=secret_file, token=token, token_file=token_file, file_system=file_system
    )
    if format is not None and format not in FORMATS:
        raise InvalidArgument(f"not a format: {format!r} (formats are {', '.join(FORMATS)})")
    found = [_look(place.file_system, path) for path in paths]
    kind = _kind_of(found) if format is None else FORMATS[format]
    files = [file for each in found for file in each.files(kind)]
    if not files:
        raise InvalidArgument(f"no *{kind.suffix} there", path=paths[0])
    records = kind(place, files, **options)
    if index_directory is not None and not isinstance(
        records, BlockRecords
    ):  # rows have no places of their own
        records.index_directory = os.path.abspath(index_directory)
    return records


class _Found(NamedTuple):
    """A file, or a directory and the names in it."""

    path: str
    names: list[str] | None

    def files(self, kind: type[Records]) -> list[str]:
        """List the file, or those of a directory that have an ending of a format, in the order of their names."""
        if self.names is None:
            return [self.path]
        endings = kind.in_directories or (kind.suffix,)
        return [os.path.join(self.path, name) for name in self.names if name.endswith(endings)]

    def kinds(self) -> set[type[Records]]:
        """Return the formats of these names."""
        if self.names is None:
            return {kind for kind in FORMATS.values() if self.path.endswith((kind.suffix, *kind.also))}
        return {kind for kind in FORMATS.values() if self.files(kind)}


def _look(file_system: AnyFileSystem, path: str) -> _Found:
    if not file_system.isdir(path):
        return _Found(path, None)
    return _Found(path, sorted(name for name in file_system.listdir(path) if not name.startswith(".")))


def _kind_of(found: Sequence[_Found]) -> type[Records]:
    kinds = {kind for each in found for kind in each.kinds()}
    if len(kinds) != 1:
        endings = ", ".join(f"*{kind.suffix}" for kind in FORMATS.values())
        what = "no file of a known format" if not kinds else "files of several formats"
        raise InvalidArgument(
            f"{what}: give files or directories of {endings}, or name the format", path=found[0].path
        )
    return kinds.pop()


def kind_of(locations: Locations) -> type[Records]:
    """Find the one format of names, or of the names in directories. Raises: InvalidArgument."""
    place, paths = place_of(locations)
    return _kind_of([_look(place.file_system, path) for path in paths])


__all__ = ["FORMATS", "Locations", "kind_of", "open_records"]
