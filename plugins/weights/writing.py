"""Writes safetensors files that appear complete and durable, with checksums beside them.

Tensors are laid out by the size of their elements, largest first, then by name, so that each is aligned to its own.
"""

import json
import os
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import torch

from luciola.client import Location, open_location, replacing
from luciola.client.location import AnyFileSystem

from .checkpoint import FILE_SUFFIX, INDEX_SUFFIX
from .checksums import SUFFIX, Checksums, write_checksums
from .dtypes import DType, file_dtype
from .header import encode_header
from .plan import BLOCK_BYTES

if TYPE_CHECKING:
    from _typeshed import StrPath

Tensors = Mapping[str, torch.Tensor]


def save(  # noqa: PLR0913 (what is written, where, how)
    tensors: Tensors,
    location: "str | os.PathLike[str] | Location",
    *,
    metadata: Mapping[str, str] | None = None,
    shard_bytes: int | None = None,
    checksums: bool = True,
    secret_file: "StrPath | None" = None,
    token: str | None = None,
    token_file: "StrPath | None" = None,
) -> None:
    """Write a checkpoint: one file, or with `shard_bytes` a directory with shards of at most that size and an index.

    The file, or the index of the shards, appears under its name only when everything is complete and durable. A tensor
    that is larger than `shard_bytes` gets a shard of its own.

    Raises: TypeError for an element type that the format does not have; ValueError; OSError.
    """
    file_system, path = open_location(location, secret_file=secret_file, token=token, token_file=token_file)
    metadata = dict(metadata or {})
    if not all(isinstance(text, str) for pair in metadata.items() for text in pair):
        raise TypeError("metadata is a table of texts")
    dtypes = {name: file_dtype(tensor.dtype) for name, tensor in tensors.items()}
    order = sorted(tensors, key=lambda name: (-dtypes[name].bits, name))
    if shard_bytes is None:
        _write_file(file_system, path, {name: tensors[name] for name in order}, metadata, checksums=checksums)
        return
    if shard_bytes < 1:
        raise ValueError(f"shard_bytes is at least 1, not {shard_bytes}")
    shards = list(_split({name: tensors[name] for name in order}, shard_bytes))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{len(shards):05}{FILE_SUFFIX}"
        _write_file(file_system, os.path.join(path, file), shard, metadata, checksums=checksums)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    with replacing(file_system, os.path.join(path, f"model{INDEX_SUFFIX}")) as writer:
        writer.write(json.dumps(index, indent=2, ensure_ascii=False).encode())


def _split(tensors: Tensors, shard_bytes: int) -> Iterator[Tensors]:
    shard: dict[str, torch.Tensor] = {}
    size = 0
    for name, tensor in tensors.items():
        if shard and size + tensor.nbytes > shard_bytes:
            yield shard
            shard, size = {}, 0
        shard[name] = tensor
        size += tensor.nbytes
    yield shard


def _write_file(
    file_system: AnyFileSystem, path: str, tensors: Tensors, metadata: dict[str, str], *, checksums: bool
) -> None:
    from luciola_core import crc32c

    entries = {name: _entry(tensor, file_dtype(tensor.dtype)) for name, tensor in tensors.items()}
    head = encode_header(entries, metadata)
    sums = Checksums(len(head) + sum(nbytes for *_, nbytes in entries.values()), crc32c(head))
    if file_system.exists(path + SUFFIX):  # of the file before: it must not count as that of the new one
        file_system.remove(path + SUFFIX)
    with replacing(file_system, path) as writer:
        writer.write(head)
        for name, tensor in tensors.items():
            flat: Any = tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            data = memoryview(flat)
            sums.tensors[name] = []
            for begin in range(0, data.nbytes, BLOCK_BYTES):
                block = data[begin : begin + BLOCK_BYTES]
                sums.tensors[name].append(crc32c(block))
                writer.write(block)
    if checksums:
        write_checksums(file_system, path, sums)


def _entry(tensor: torch.Tensor, dtype: DType) -> tuple[str, tuple[int, ...], int]:
    shape = tuple(tensor.shape)
    if dtype.packed > 1:
        shape = (*shape[:-1], shape[-1] * dtype.packed) if shape else (dtype.packed,)
    return dtype.name, shape, tensor.nbytes


__all__ = ["save"]
