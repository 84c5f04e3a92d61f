"""Opens the records of files, whatever their format."""

import os
from collections.abc import Sequence
from typing import Any, Final

from ...client.location import AnyFileSystem, Location
from ...errors import InvalidArgument
from .arrow import ArrowRecords
from .blocks import BlockRecords
from .ffrecord import FFRecords
from .jsonl import JsonlRecords
from .parquet import ParquetRecords
from .records import Records, files_below, place_of
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
    file_system: AnyFileSystem | None = None,
    index_directory: str | os.PathLike[str] | None = None,
    **options: Any,
) -> Records:
    """The records of a file, of several, or of all files of a format in a directory, in the order of their names.

    `format`: "ffrecord", "tokens", "tar", "jsonl", "parquet" or "arrow"; by default what the names' endings say.
    `index_directory`: a directory of this machine, as /dev/shm/me, where one file has the places of all records, and
    all processes share its memory; by default each process has those of the files that it reads. `options` are the
    format's own.
    Raises: InvalidArgument for files that are of no format or of several; CorruptData for files that are damaged.
    """
    place, paths = place_of(locations, secret_file=secret_file, token=token, file_system=file_system)
    if format is not None and format not in FORMATS:
        raise InvalidArgument(f"not a format: {format!r} (formats are {', '.join(FORMATS)})")
    kind = kind_of(place.file_system, paths) if format is None else FORMATS[format]
    files = [file for path in paths for file in files_below(place.file_system, path, kind)]
    if not files:
        raise InvalidArgument(f"no *{kind.suffix} there", path=paths[0])
    records = kind(place, files, **options)
    if index_directory is not None and not isinstance(
        records, BlockRecords
    ):  # rows have no places of their own
        records.index_directory = os.path.abspath(index_directory)
    return records


def kind_of(file_system: AnyFileSystem, paths: Sequence[str]) -> type[Records]:
    """The one format that names, or the names in directories, are of. Raises: InvalidArgument."""
    kinds = {kind for path in paths for kind in _kinds_at(file_system, path)}
    if len(kinds) != 1:
        endings = ", ".join(f"*{kind.suffix}" for kind in FORMATS.values())
        found = "no file of a known format" if not kinds else "files of several formats"
        raise InvalidArgument(
            f"{found}: give files or directories of {endings}, or say the format", path=paths[0]
        )
    return kinds.pop()


def _kinds_at(file_system: AnyFileSystem, path: str) -> set[type[Records]]:
    if not file_system.isdir(path):
        return {kind for kind in FORMATS.values() if path.endswith((kind.suffix, *kind.also))}
    return {kind for kind in FORMATS.values() if files_below(file_system, path, kind)}


__all__ = ["FORMATS", "kind_of", "open_records"]
