"""The file that makes a directory a checkpoint: written last, before the directory gets its name.

    manifest.json  {"format": "luciola-checkpoint", "version": 1, "serial": 12, "step": 1200, "saved_ns": …, "ranks": 4,
                    "tensors": 340, "data_bytes": …, "torch": "2.15.0", "files": {NAME: bytes, …},
                    "metadata": "8 digits", "crc32c": "8 digits"}

Version 2 has "metrics": {NAME: number, …} too; it is written if there are any.

`serial` counts the saves into one parent directory: the newest checkpoint is the one with the greatest, regardless of
clocks and steps (a job may go back to an earlier step). `files` are all others of the directory, with their lengths.
`metadata` is the CRC32C of metadata.pickle, `crc32c` that of this file without it. Does not import torch.
"""

import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Final, SupportsFloat

from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData, NotFound

NAME: Final = "manifest.json"
METADATA_NAME: Final = "metadata.pickle"
FORMAT: Final = "luciola-checkpoint"
VERSION: Final = 2
BYTES_MAX: Final = 64 << 20  # a million files' names
DIGITS: Final = re.compile("[0-9a-f]{8}")


@dataclass(frozen=True)
class Manifest:
    """The description of a checkpoint."""

    serial: int
    step: int | None
    saved_ns: int
    ranks: int
    tensors: int
    data_bytes: int  # of the tensors and objects in it
    torch: str
    metadata: str
    files: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)

    def encode(self) -> bytes:
        """Encode manifest.json."""
        table = {"format": FORMAT, "version": VERSION if self.metrics else 1, **asdict(self)}
        if not self.metrics:
            del table["metrics"]
        return json.dumps({**table, "crc32c": _crc_of(table)}, indent=1).encode()


def parse_manifest(text: bytes, path: str) -> Manifest:
    """Decode manifest.json. Raises: CorruptData."""
    try:
        return _manifest(json.loads(text))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptData(f"not the manifest of a checkpoint: {error!s:.200}", path=path) from error


def _manifest(table: Any) -> Manifest:
    if not isinstance(table, dict) or table["format"] != FORMAT:
        raise ValueError(f"its format is not {FORMAT!r}")
    if type(table["version"]) is not int or not 1 <= table["version"] <= VERSION:
        raise ValueError(f"its version is {table['version']!r}, this program knows 1 to {VERSION}")
    if table.pop("crc32c") != _crc_of(table):
        raise ValueError("it does not match its own checksum")
    del table["format"], table["version"]
    manifest = Manifest(**table)
    for name in ("serial", "saved_ns", "ranks", "tensors", "data_bytes"):
        if not _is_count(getattr(manifest, name)):
            raise ValueError(f"{name} is not a number: {getattr(manifest, name)!r:.40}")
    if manifest.step is not None and not _is_count(manifest.step):
        raise ValueError(f"step is not a number: {manifest.step!r:.40}")
    _require_files(manifest.files)
    if not isinstance(manifest.metrics, dict) or finite(manifest.metrics) != manifest.metrics:
        raise ValueError("metrics are not names and numbers")
    if not DIGITS.fullmatch(manifest.metadata):
        raise ValueError(f"metadata is not a checksum: {manifest.metadata!r:.40}")
    return manifest


def _require_files(files: Any) -> None:
    if not isinstance(files, dict) or not all(map(_is_count, files.values())):
        raise ValueError("files are not names and lengths")
    if any("/" in name or name in {"", ".", ".."} for name in files):
        raise ValueError("a file's name is a path")


def finite(metrics: Mapping[str, SupportsFloat]) -> dict[str, float]:
    """Convert metrics to floats, without infinite ones and NaN: a policy cannot compare them."""
    numbers = {str(name): float(value) for name, value in metrics.items()}
    return {name: number for name, number in numbers.items() if math.isfinite(number)}


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _crc_of(table: dict[str, Any]) -> str:
    return crc_text(json.dumps(table, sort_keys=True).encode())


def crc_text(data: bytes) -> str:
    """Compute CRC32C as eight hexadecimal digits."""
    from luciola_core import crc32c

    return f"{crc32c(data):08x}"


def read_manifest(file_system: AnyFileSystem, path: str) -> Manifest:
    """Read the manifest of the checkpoint at `path`. Raises: NotFound without a checkpoint; CorruptData."""
    name = os.path.join(path, NAME)
    try:
        if file_system.stat(name).st_size > BYTES_MAX:
            raise CorruptData(f"a manifest of more than {BYTES_MAX} bytes", path=name)
        text = file_system.read(name)
    except (FileNotFoundError, NotADirectoryError) as error:
        what = "no manifest.json in it" if file_system.isdir(path) else "no such directory"
        raise NotFound(f"not a checkpoint: {what}", path=path) from error
    return parse_manifest(text, name)


__all__ = ["METADATA_NAME", "NAME", "Manifest", "crc_text", "finite", "parse_manifest", "read_manifest"]
