"""Verification of every byte of a checkpoint against its checksum. Does not import torch."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from luciola.client import Location, open_location
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData

from ..weights.checkpoint import Checkpoint
from ..weights.checksums import SUFFIX
from .manifest import METADATA_NAME, Manifest, crc_text, read_manifest

FILE_SUFFIX: Final = ".safetensors"


@dataclass(frozen=True)
class Damage:
    """Damage of a tensor in a file, or of a whole file."""

    file: str
    tensor: str  # its name in the file; empty for the whole file
    what: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}"


def verify(
    location: str | os.PathLike[str] | Location,
    *,
    progress: Callable[[int], object] = lambda _: None,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> list[Damage]:
    """Read a checkpoint and return what is damaged, by file, tensor and bytes; nothing if it is whole.

    Raises: NotFound if there is no checkpoint.
    """
    file_system, path = open_location(location, secret_file=secret_file, token=token, token_file=token_file)
    return verify_at(file_system, path, progress)


def verify_at(
    file_system: AnyFileSystem, path: str, progress: Callable[[int], object] = lambda _: None
) -> list[Damage]:
    """Verify as `verify` does."""
    try:
        manifest = read_manifest(file_system, path)
    except CorruptData as error:
        return [_whole(str(error.filename), error.message)]
    damages = _verify_metadata(file_system, path, manifest)
    for name, length in manifest.files.items():
        if name.endswith(FILE_SUFFIX):
            damages += _verify_file(file_system, path, name, length, progress)
    return damages


def _verify_metadata(file_system: AnyFileSystem, path: str, manifest: Manifest) -> list[Damage]:
    name = os.path.join(path, METADATA_NAME)
    try:
        text = file_system.read(name)
    except FileNotFoundError:
        return [_whole(name, "missing")]
    if crc_text(text) != manifest.metadata:
        return [_whole(name, "does not match the checksum in the manifest")]
    return []


def _verify_file(
    file_system: AnyFileSystem, path: str, name: str, length: int, progress: Callable[[int], object]
) -> list[Damage]:
    where = os.path.join(path, name)
    try:
        found = file_system.stat(where).st_size
        if found != length:
            return [_whole(where, f"{found} bytes long, not {length}")]
        if not file_system.exists(where + SUFFIX):
            return [_whole(where + SUFFIX, "missing")]
        blocks = Checkpoint(file_system, path, files=[name]).verify(progress)
    except FileNotFoundError:
        return [_whole(where, "missing")]
    except CorruptData as error:
        return [_whole(str(error.filename or where), error.message)]
    return [Damage(block.file, block.tensor, str(block)) for block in blocks]


def _whole(file: str, what: str) -> Damage:
    return Damage(file, "", what)


__all__ = ["Damage", "verify", "verify_at"]
