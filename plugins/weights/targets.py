"""Tensors as targets: which of their bytes a read may fill directly, and how the rest gets there.

The only module of this plugin that handles tensors' memory.
"""

import functools
import itertools
import operator
from collections.abc import Callable, Iterator
from typing import Any

import torch

from luciola.client import Buffer

from .dtypes import torch_dtype
from .header import TensorInfo
from .plan import BLOCK_BYTES, Block, Dimension, blocks
from .transfer import SLOTS, Part

Index = tuple[slice | int, ...] | slice | int
CheckOf = Callable[[TensorInfo, int, int], Callable[[memoryview], None] | None]


class _Wanted:
    """One slice: its box, its target, and the target's bytes if they may be filled directly."""

    def __init__(self, info: TensorInfo, file: int, target: torch.Tensor, index: Index) -> None:
        shape = info.torch_shape
        self.info = info
        self.file = file
        self.target = target.detach()
        self.dtype = torch_dtype(info.dtype)
        self.start, kept = _box(index, shape, info.name)
        sizes = tuple(size for size, _ in kept)
        if tuple(target.shape) != sizes:
            raise ValueError(
                f"the target of {info.name!r} has shape {list(target.shape)}; what is asked for has {list(sizes)}"
            )
        self.dimensions = tuple(
            Dimension(size, stride, step) for (size, stride), step in zip(kept, target.stride(), strict=True)
        )
        if any(dimension.target == 0 and dimension.size > 1 for dimension in self.dimensions):
            raise ValueError(f"the target of {info.name!r} is expanded: its elements share memory")
        self.memory = (
            _memory(self.target) if target.device.type == "cpu" and target.dtype == self.dtype else None
        )

    @property
    def item_bytes(self) -> int:
        return self.dtype.itemsize

    @property
    def position(self) -> tuple[int, int]:
        return self.file, self.info.offset + self.start * self.item_bytes


def _box(index: Index, shape: tuple[int, ...], name: str) -> tuple[int, list[tuple[int, int]]]:
    """First element, and (size, stride) of each dimension that stays. Raises: ValueError, TypeError."""
    each = index if isinstance(index, tuple) else (index,)
    if len(each) > len(shape):
        raise ValueError(f"{len(each)} indices for {name!r}, which has {len(shape)} dimensions")
    start, stride, kept = 0, 1, []
    for dimension in reversed(range(len(shape))):
        size = shape[dimension]
        part = each[dimension] if dimension < len(each) else slice(None)
        if isinstance(part, slice):
            first, last = _bounds(part, size, f"dimension {dimension} of {name!r}, of size {size}")
            kept.append((last - first, stride))
        else:
            first = operator.index(part)
            if not 0 <= first < size:
                raise ValueError(
                    f"{first} is not an index of dimension {dimension} of {name!r}, of size {size}"
                )
        start += first * stride
        stride *= size
    return start, kept[::-1]


def _bounds(part: slice, size: int, where: str) -> tuple[int, int]:
    first = 0 if part.start is None else operator.index(part.start)
    last = size if part.stop is None else operator.index(part.stop)
    if part.step not in {None, 1} or not 0 <= first <= last <= size:
        raise ValueError(f"{part} does not lie within {where} with step 1")
    return first, last


def _memory(tensor: torch.Tensor) -> memoryview:
    """All bytes of the tensor's storage from its first element on."""
    storage = tensor.untyped_storage()
    data: Any = torch.empty(0, dtype=torch.uint8).set_(storage).numpy()
    return memoryview(data)[tensor.storage_offset() * tensor.element_size() :]


class Placer:
    """Collect slices and turn them into parts of a transfer."""

    def __init__(self, *, convert: bool, gap_bytes: int, whole_blocks: bool = False) -> None:
        self._convert = convert
        self._gap_bytes = gap_bytes
        self._whole_blocks = whole_blocks
        self._wanted: list[_Wanted] = []
        self._on_gpu = False
        self.needed_bytes = 0

    def add(self, info: TensorInfo, file: int, target: torch.Tensor, index: Index) -> None:
        """Raises: ValueError, TypeError for a target that does not fit."""
        if not isinstance(target, torch.Tensor):
            raise TypeError(f"the target of {info.name!r} is a {type(target).__name__}, not a tensor")
        if target.layout is not torch.strided or target.device.type == "meta":
            raise ValueError(
                f"the target of {info.name!r} has no memory of its own: {target.layout}, {target.device}"
            )
        wanted = _Wanted(info, file, target, index)
        if target.dtype != wanted.dtype and not self._convert:
            raise TypeError(
                f"the target of {info.name!r} is {target.dtype}, the checkpoint has {wanted.dtype}: "
                "give such a target, or convert=True"
            )
        self._wanted.append(wanted)
        self.needed_bytes += target.numel() * wanted.item_bytes
        self._on_gpu |= target.device.type == "cuda"

    def staging(self) -> memoryview:
        """The staging buffer: one that storage nodes fill themselves, or pinned if a target is on a GPU."""
        if not self._on_gpu:
            return memoryview(Buffer(SLOTS * BLOCK_BYTES))
        pinned: Any = torch.empty(SLOTS * BLOCK_BYTES, dtype=torch.uint8, pin_memory=True).numpy()
        return memoryview(pinned)

    def parts(self, check_of: CheckOf) -> Iterator[Part]:
        """In the order of the files."""
        for wanted in sorted(self._wanted, key=lambda each: each.position):
            size, info = wanted.item_bytes, wanted.info
            for begin, nbytes, inside in self._reads(wanted):
                part = Part(wanted.file, info.offset + begin, nbytes, check=check_of(info, begin, nbytes))
                first = inside[0]
                if wanted.memory is not None and first.is_run and first.span * size == nbytes:
                    part.target = wanted.memory[first.target * size :][:nbytes]
                else:
                    part.land = functools.partial(_land, wanted, inside, begin)
                yield part

    def _reads(self, wanted: _Wanted) -> Iterator[tuple[int, int, list[Block]]]:
        """Begin and length of each read in bytes of its tensor, and what is wanted of it."""
        size = wanted.item_bytes
        if not self._whole_blocks:
            for block in blocks(wanted.dimensions, wanted.start, size, gap_bytes=self._gap_bytes):
                yield block.source * size, block.span * size, [block]
            return
        # Every block that has a checksum and of which something is wanted, whole.
        cut = blocks(wanted.dimensions, wanted.start, size, gap_bytes=BLOCK_BYTES, aligned=True)
        for number, group in itertools.groupby(cut, lambda block: block.source * size // BLOCK_BYTES):
            begin = number * BLOCK_BYTES
            yield begin, min(BLOCK_BYTES, wanted.info.nbytes - begin), list(group)


def _land(wanted: _Wanted, inside: list[Block], begin: int, view: memoryview) -> Any:
    """Copy blocks out of the bytes from `begin` of their tensor on; returns an event if a device still copies."""
    for block in inside:
        at = block.source * wanted.item_bytes - begin
        sizes = [dimension.size for dimension in block.dimensions]
        data = _aligned(view[at : at + block.span * wanted.item_bytes], wanted.dtype)
        source = data.as_strided(sizes, [dimension.source for dimension in block.dimensions])
        place = wanted.target.storage_offset() + block.target
        target = wanted.target.as_strided(sizes, [dimension.target for dimension in block.dimensions], place)
        target.copy_(source, non_blocking=target.device.type == "cuda")
    if wanted.target.device.type != "cuda":
        return None
    done: Any = torch.cuda.Event()  # type: ignore[no-untyped-call]
    done.record(torch.cuda.current_stream(wanted.target.device))
    return done


def _aligned(view: memoryview, dtype: torch.dtype) -> torch.Tensor:
    """The elements in `view`; files may put a tensor at any byte."""
    data = torch.frombuffer(view, dtype=torch.uint8)
    return (data.clone() if data.data_ptr() % dtype.itemsize else data).view(dtype)


__all__ = ["Index", "Placer"]
