"""Batches of DataLoader's workers reach the training process in the memory that the ring has filled.

torch copies a worker's tensors into new shared memory, one piece for each batch. What `BatchReader` fills is shared
memory already: the worker exports it (`pool`), and the training process maps each piece once and then gets only its
number.

    Loader(…, num_workers=4): `SharedCollate(collate_fn)` is its workers' collate function

T1  Tensors in the memory of their batch are sent without a copy, wherever they are in lists, tuples and dictionaries.
    All others are sent as torch does.
T2  The worker may reuse the piece when nothing refers to the tensors' storage any more.
T3  Mappings of a worker that has ended are dropped by the next iteration; tensors over them stay valid.
T4  The training process has a mapping of each piece and no descriptor of it, however many workers there are.
"""

import os
import weakref
from collections.abc import Callable, Sequence
from multiprocessing.reduction import DupFd
from typing import Any

import luciola_core
import numpy as np
import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .pool import FLAG_BYTES, Export
from .reader import Batch
from .records import Bytes
from .samples import Samples

Maker = Callable[..., Any]


class SharedCollate:
    """A collate function that shares a worker's batches. In a process that is no worker it is `collate_fn` itself."""

    def __init__(self, collate_fn: Callable[[Any], Any]) -> None:
        self.collate_fn = collate_fn

    def __call__(self, samples: Any) -> Any:
        collated = self.collate_fn(samples)
        batch = samples.batch if isinstance(samples, Samples) else None
        if batch is None or get_worker_info() is None:
            return collated
        return shared(collated, batch)


def shared(collated: Any, batch: Batch) -> Any:
    """Replace tensors in the memory of `batch` by objects that unpickle to them in another process."""
    packing = _Packing(batch)
    packed = packing.packed(collated)
    return packed if packing.storage.export is not None else collated


class _Packing:
    def __init__(self, batch: Batch) -> None:
        self.batch = batch
        self.storage = _ExportedStorage()
        self._start = batch.memory.ctypes.data
        self._is_refused = False

    def packed(self, value: Any) -> Any:
        kind = type(value)
        if kind is Tensor:
            return self._shared_tensor(value)
        if kind is Samples:
            return value.changed(self.packed)
        if kind is list or kind is tuple:
            return kind(self.packed(each) for each in value)
        if isinstance(value, tuple) and hasattr(kind, "_make"):
            return kind._make(self.packed(each) for each in value)
        if kind is dict:
            return {name: self.packed(each) for name, each in value.items()}
        return value

    def _shared_tensor(self, tensor: Tensor) -> Any:
        if tensor.device.type != "cpu" or tensor.layout is not torch.strided or tensor.requires_grad:
            return tensor
        offset = tensor.data_ptr() - self._start
        extent = (
            sum((count - 1) * step for count, step in zip(tensor.shape, tensor.stride(), strict=True)) + 1
        )
        is_inside = offset >= 0 and offset + extent * tensor.itemsize <= self.batch.memory.nbytes
        if not tensor.numel() or not is_inside or offset % tensor.itemsize:
            return tensor
        if self.storage.export is None and not self._is_refused:
            self.storage.export = self.batch.export()
            self._is_refused = self.storage.export is None
        if self._is_refused:
            return tensor
        place = (tensor.dtype, offset // tensor.itemsize, tuple(tensor.shape), tensor.stride())
        return _Sent(_tensor, (self.storage, *place))


class _Sent:
    """Unpickles to what `maker` makes."""

    def __init__(self, maker: Maker, arguments: tuple[Any, ...]) -> None:
        self._reduced = (maker, arguments)

    def __reduce__(self) -> tuple[Maker, tuple[Any, ...]]:
        return self._reduced


class _ExportedStorage:
    """Unpickles to the storage of all tensors of a batch. Pickled once: pickle remembers what it has seen."""

    export: Export | None = None

    def __reduce__(self) -> tuple[Maker, tuple[Any, ...]]:
        assert self.export is not None, "it is in use by a tensor"
        export = self.export
        descriptor = None if export.descriptor is None else DupFd(export.descriptor)
        return _imported, (export._replace(descriptor=None), os.getpid(), descriptor)


class _Exporter:
    """A worker's pieces, as the training process has mapped them."""

    def __init__(self, worker: int) -> None:
        self.worker = worker
        self.pieces: dict[int, Bytes] = {}


_exporters: dict[bytes, _Exporter] = {}


def _imported(export: Export, worker: int, descriptor: Any) -> torch.UntypedStorage:
    exporter = _exporters.setdefault(export.pool, _Exporter(worker))
    for serial in export.retired:
        exporter.pieces.pop(serial, None)
    if descriptor is not None:
        file = descriptor.detach()
        try:
            exporter.pieces[export.serial] = _mapped(file, export.size + FLAG_BYTES)
        finally:
            os.close(file)
    piece = exporter.pieces[export.serial]
    array = np.frombuffer(piece, np.uint8, export.size)
    weakref.finalize(array, _release, piece, export, os.getpid()).atexit = False
    return torch.from_numpy(array).untyped_storage()


def _mapped(descriptor: int, size: int) -> Bytes:
    """Map a file in shared memory. Python's mmap would keep a descriptor for each."""
    path = f"/proc/self/fd/{descriptor}"
    mapped: Bytes = torch.from_file(path, shared=True, size=size, dtype=torch.uint8).numpy()
    return mapped


def _tensor(
    storage: torch.UntypedStorage,
    dtype: torch.dtype,
    offset: int,
    shape: Sequence[int],
    stride: Sequence[int],
) -> Tensor:
    return torch.empty(0, dtype=dtype).set_(storage, offset, shape, stride)


def _release(piece: Bytes, export: Export, process: int) -> None:
    if os.getpid() == process:  # a forked child has the same objects, and its parent may use them still
        luciola_core.flag_raise(piece.data, export.size, export.turn)


def unmap_ended() -> None:
    """Unmap the pieces of workers that have ended, as far as no tensor is over them."""
    for name, exporter in list(_exporters.items()):
        if not os.path.exists(f"/proc/{exporter.worker}"):
            _exporters.pop(name, None)


__all__ = ["SharedCollate", "shared", "unmap_ended"]
