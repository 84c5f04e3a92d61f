"""Saves that share unchanged files with the checkpoint before, under a second name (a hard link).

    rank-00000.safetensors       the tensors that this rank's save has found changed, and its objects
    rank-00000-same.safetensors  those that are unchanged since the checkpoint before

S1  A file is shared whole or not at all: so every byte of a shared file is in use, and a removal frees the rest.
S2  Tensors are the same if their SHA-256 is, which is in the header of their file, beside type and shape.
S3  A file is read and compared with its checksums before it is shared: damage does not spread.
S4  Without sharing (no links, a base that is missing or damaged) everything is written.

So the first save writes all, the second collects unchanged tensors, and from the third on these are only read. Later
damage of a shared file is damage of all checkpoints that share it.
"""

import hashlib
import json
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData

from ..weights.checkpoint import Checkpoint
from ..weights.checksums import SUFFIX
from .entries import Stored, parse_parts
from .items import DIGESTS, Written, file_name, prepared, write_items
from .manifest import read_manifest

log = logging.getLogger("luciola.checkpoint")

SAME: Final = "-same"
REWRITE_SHARE: Final = 8  # unchanged tensors are collected again when they are this part of the shared file

Key = tuple[str, tuple[int, ...], tuple[int, ...]]
"""Tensor, offsets, size of the whole."""


@dataclass(frozen=True)
class _Base:
    """One file of this rank in the checkpoint before."""

    name: str
    opened: Checkpoint
    files: dict[str, int]  # its length, and that of its checksums
    entries: dict[Key, Stored]
    digests: dict[Key, str]
    nbytes: dict[Key, int]

    def has(self, key: Key, digest: str) -> bool:
        return self.digests.get(key) == digest


def write_shared(  # noqa: PLR0913 (place, items, base)
    file_system: AnyFileSystem,
    hidden: str,
    rank: int,
    items: list[WriteItem],
    planner: SavePlanner,
    base: str | None,
) -> list[WriteResult]:
    """Write as `write_items`, sharing files of the checkpoint `base` of which all tensors are saved unchanged."""
    digests = {
        index: _digest(item, planner) for index, item in enumerate(items) if item.tensor_data is not None
    }
    keys = {index: _key(items[index]) for index in digests}
    known = [] if base is None else _files_of(file_system, base, rank)
    found = {
        index: file for index, key in keys.items() for file in known if file.has(key, digests[index])
    }  # the last one has it if both do
    results: list[WriteResult] = []
    for file in _shareable(known, found, keys, len(items)):
        mine = [index for index in found if found[index] is file]
        if _share(file_system, base or "", hidden, file):
            results += _results(file, [(items[index], keys[index]) for index in mine])
            found = {index: each for index, each in found.items() if each is not file}
            digests = {index: digest for index, digest in digests.items() if index not in mine}
    shared = {name for result in results for name in result.storage_data.files}
    done = set(keys) - set(digests)
    for name, chosen in _groups(rank, len(items), set(found), done, shared):
        if chosen:
            marks = {id(items[index]): digests[index] for index in chosen if index in digests}
            results += write_items(
                file_system, hidden, name, [items[index] for index in chosen], planner, marks
            )
    return results


def _groups(
    rank: int, count: int, same: set[int], done: set[int], shared: set[str]
) -> list[tuple[str, list[int]]]:
    """List the files that are left to write, and their items."""
    rest = [index for index in range(count) if index not in done]
    if file_name(rank, SAME) in shared:
        return [(file_name(rank), rest)]
    return [
        (file_name(rank, SAME), [index for index in rest if index in same]),
        (file_name(rank), [index for index in rest if index not in same]),
    ]


def _shareable(
    known: Sequence[_Base], found: dict[int, _Base], keys: dict[int, Key], count: int
) -> list[_Base]:
    """List the files of which all entries are saved unchanged, and whose names no other file needs."""
    whole = [file for file in known if sum(each is file for each in found.values()) == len(file.entries)]
    if len(found) == count and len(whole) == len(known):
        return whole
    same = [file for file in whole if file.name.endswith(f"{SAME}.safetensors")]
    size = sum(sum(file.nbytes.values()) for file in same)
    others = sum(file.nbytes[keys[index]] for index, file in found.items() if file not in same)
    return same if others * REWRITE_SHARE < size or not others else []


def _digest(item: WriteItem, planner: SavePlanner) -> str:
    data = prepared(planner.resolve_data(item), item)
    digest = hashlib.sha256(f"{data.dtype} {data.form} {data.shape}".encode())
    for piece in data.pieces():
        digest.update(piece)
    return digest.hexdigest()


def _key(item: WriteItem) -> Key:
    assert item.tensor_data is not None, "objects have none"
    return item.index.fqn, tuple(item.tensor_data.chunk.offsets), tuple(item.tensor_data.size)


def _files_of(file_system: AnyFileSystem, base: str, rank: int) -> list[_Base]:
    """Open this rank's files of the base; none if any is missing or damaged."""
    try:
        lengths = read_manifest(file_system, base).files
        names = [name for name in (file_name(rank), file_name(rank, SAME)) if name in lengths]
        return [_open(file_system, base, name, lengths) for name in names]
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        log.warning("base %s cannot be shared: %s; everything is written", base, error)
        return []


def _open(file_system: AnyFileSystem, base: str, name: str, lengths: dict[str, int]) -> _Base:
    path = os.path.join(base, name)
    opened = Checkpoint(file_system, base, files=[name])
    if not opened.file_has_checksums(path):
        raise CorruptData("it has no checksums", path=path)
    infos = {info.name: info for info in opened.tensors.values()}
    parts = parse_parts(opened.metadata, infos, path)
    marks: dict[str, str] = json.loads(opened.metadata.get(DIGESTS, "{}"))
    key_of = {entry: (part.tensor, part.offsets, part.size) for entry, part in parts.items()}
    return _Base(
        name,
        opened,
        {each: lengths[each] for each in (name, name + SUFFIX)},
        {key_of[entry]: Stored(name, entry, part.form) for entry, part in parts.items()},
        {key_of[entry]: mark for entry, mark in marks.items() if entry in key_of},
        {key_of[entry]: infos[entry].nbytes for entry in parts},
    )


def _share(file_system: AnyFileSystem, base: str, hidden: str, file: _Base) -> bool:
    """Link a file after its verification; return whether that succeeded."""
    try:
        if damages := file.opened.verify():
            raise CorruptData(str(damages[0]), path=damages[0].file)
        for name in file.files:
            file_system.link(os.path.join(base, name), os.path.join(hidden, name))
    except OSError as error:
        log.warning("%s of %s cannot be shared: %s; it is written", file.name, base, error)
        for name in file.files:
            if file_system.exists(os.path.join(hidden, name)):
                file_system.remove(os.path.join(hidden, name))
        return False
    return True


def _results(file: _Base, items: list[tuple[WriteItem, Key]]) -> list[WriteResult]:
    files: list[Any] = [file.files, *({} for _ in items[1:])]
    return [
        WriteResult(item.index, file.nbytes[key], Written(file.entries[key], lengths))
        for (item, key), lengths in zip(items, files, strict=True)
    ]


__all__ = ["write_shared"]
