"""The file of one rank: the items of its plan, as the tensors of one safetensors file.

Items are resolved one by one, as they are written, because a planner may make memory for them.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Final

import torch
from torch.distributed.checkpoint.default_planner import DefaultSavePlanner
from torch.distributed.checkpoint.planner import SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult

from luciola.client.location import AnyFileSystem

from ..weights.dtypes import file_dtype
from ..weights.plan import BLOCK_BYTES
from .entries import Part, Stored, encode_parts, entry_name
from .plain import require_plain
from .tensorfile import TensorFile, header_room

DEVICE_PIECE_BYTES: Final = 64 * BLOCK_BYTES  # of a tensor on a device at a time
DIGESTS: Final = "luciola.digests"  # in a file's metadata: JSON, entry -> SHA-256 of type, shape and bytes
COMPLEX: Final = {torch.complex128, torch.complex32}  # types that the format does not have


@dataclass(frozen=True)
class Written:
    """A rank's report of one item to the coordinator."""

    stored: Stored
    files: dict[str, int]  # with the first item of a file: its name and length, and those of its checksums


def file_name(rank: int, kind: str = "") -> str:
    """Name a file of one rank."""
    return f"rank-{rank:05}{kind}.safetensors"


def write_items(  # noqa: PLR0913 (place, items, digests)
    file_system: AnyFileSystem,
    hidden: str,
    file: str,
    items: list[WriteItem],
    planner: SavePlanner,
    digests: dict[int, str] | None = None,
) -> list[WriteResult]:
    """Write items of the plan of one rank to one file. The results' storage data are `Written`.

    `digests`: of the tensors, by the ids of their items, for the file's header. Raises: NoSpace, OSError;
    InvalidArgument for an object that could not be loaded again.
    """
    ordered = sorted(items, key=_order)
    names, parts = _parts(ordered)
    results = []
    marks = {
        entry: digests[id(item)]
        for item, entry in zip(ordered, names, strict=True)
        if digests and id(item) in digests
    }
    extra = {DIGESTS: json.dumps(marks, separators=(",", ":"))} if marks else {}
    with TensorFile(file_system, os.path.join(hidden, file), _room(names, parts, ordered, extra)) as tensors:
        for item, entry in zip(ordered, names, strict=True):
            data = planner.resolve_data(item)
            if isinstance(data, torch.Tensor):
                form, nbytes = _add_tensor(tensors, entry, data, item)
                parts[entry] = replace(parts[entry], form=form)
            else:
                if isinstance(planner, DefaultSavePlanner):
                    require_plain(data, item.index.fqn)
                view = data.getbuffer()
                form, nbytes = "bytes", tensors.add(entry, "U8", (view.nbytes,), [view])
                parts[entry] = replace(parts[entry], size=(view.nbytes,))
            results.append(WriteResult(item.index, nbytes, Written(Stored(file, entry, form), {})))
        paths = tensors.finish(encode_parts(parts) | extra)
    files = {os.path.basename(path): length for path, length in paths.items()}
    results[0] = replace(results[0], storage_data=replace(results[0].storage_data, files=files))
    return results


def _order(item: WriteItem) -> tuple[int, str]:
    """Sort large elements first, so that each tensor is aligned to its own; objects last."""
    data = item.tensor_data
    return (0 if data is None else -data.properties.dtype.itemsize), item.index.fqn


def _parts(items: list[WriteItem]) -> tuple[list[str], dict[str, Part]]:
    parts: dict[str, Part] = {}
    names = []
    for item in items:
        data = item.tensor_data
        if data is None:
            name = entry_name(item.index.fqn, (), (), (), parts)
            parts[name] = Part(item.index.fqn, (0,), (0,), "bytes")
        else:
            box = tuple(data.chunk.offsets), tuple(data.chunk.sizes)
            name = entry_name(item.index.fqn, *box, data.size, parts)
            parts[name] = Part(item.index.fqn, box[0], tuple(data.size))
        names.append(name)
    return names, parts


def _room(names: list[str], parts: dict[str, Part], items: list[WriteItem], extra: dict[str, str]) -> int:
    shapes = {
        name: () if item.tensor_data is None else tuple(item.tensor_data.chunk.sizes)
        for name, item in zip(names, items, strict=True)
    }
    longest = {
        entry: replace(part, form="tensor!", size=part.size if part.form != "bytes" else (1 << 62,))
        for entry, part in parts.items()
    }
    return header_room(
        {name: shape or (1 << 62,) for name, shape in shapes.items()}, encode_parts(longest) | extra
    )


@dataclass(frozen=True)
class Prepared:
    """A tensor as it is stored in the file."""

    tensor: torch.Tensor
    form: str
    dtype: str
    shape: tuple[int, ...]

    def pieces(self) -> Iterator[memoryview]:
        """Return its bytes; those of a device in pieces, each in memory of its own."""
        return _pieces(self.tensor)


def prepared(data: Any, item: WriteItem) -> Prepared:
    """Convert what a planner returns for an item. Raises: ValueError, TypeError."""
    assert isinstance(data, torch.Tensor), "the item is one of a tensor"
    tensor = data
    if item.tensor_data is not None and tensor.shape != item.tensor_data.chunk.sizes:
        raise ValueError(
            f"the plan has shape {list(item.tensor_data.chunk.sizes)} for {item.index.fqn!r}, the planner's data "
            f"{list(tensor.shape)}"
        )
    if tensor.layout is not torch.strided or tensor.is_quantized or tensor.device.type == "meta":
        raise TypeError(
            f"{item.index.fqn!r} is {tensor.layout}, {tensor.dtype}, on {tensor.device}: only dense tensors with "
            "memory can be saved; convert it first"
        )
    tensor = tensor.detach().resolve_conj().resolve_neg()
    form = "tensor"
    if tensor.dtype in COMPLEX:
        tensor, form = torch.view_as_real(tensor), "real"
    dtype = file_dtype(tensor.dtype)
    shape = tuple(tensor.shape)
    if dtype.packed > 1:
        shape = (*shape[:-1], shape[-1] * dtype.packed) if shape else (dtype.packed,)
    return Prepared(tensor, form, dtype.name, shape)


def _add_tensor(tensors: TensorFile, entry: str, tensor: torch.Tensor, item: WriteItem) -> tuple[str, int]:
    data = prepared(tensor, item)
    return data.form, tensors.add(entry, data.dtype, data.shape, data.pieces())


def _pieces(tensor: torch.Tensor) -> Iterator[memoryview]:
    """Return the bytes of a tensor; those of a device in pieces, each in memory of its own."""
    if not tensor.numel():
        return
    flat = tensor.contiguous().reshape(-1).view(torch.uint8)
    if flat.device.type == "cpu":
        yield _memory(flat)
        return
    for begin in range(0, flat.numel(), DEVICE_PIECE_BYTES):
        yield _memory(flat[begin : begin + DEVICE_PIECE_BYTES].cpu())


def _memory(flat: torch.Tensor) -> memoryview:
    data: Any = flat.numpy()
    return memoryview(data)


__all__ = ["DIGESTS", "Prepared", "Written", "file_name", "prepared", "write_items"]
