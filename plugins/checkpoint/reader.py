"""The StorageReader: a rank's items of a checkpoint, by many range reads in flight, straight into its tensors.

R1  Blocks of 1 MiB of which something is asked for are read whole, and no others: so every byte that is read is
    compared with its checksum. `verify=False` reads only what is asked for, and compares nothing.
R2  Targets are resolved WAVE_BYTES at a time, because a planner may make memory for them.
R3  metadata.pickle is compared with the checksum in the manifest before it is unpickled, by an allow-list; so are
    objects (see plain). A planner of torch's kind gets them pickled again, because it unpickles without one.
R4  An entry of the checkpoint that no rank asks for is an error, unless it is allowed.

Source: the protocol of torch.distributed.checkpoint.storage.StorageReader.
"""

import fnmatch
import io
import math
import os
import uuid
from collections.abc import Iterator, Sequence
from typing import Any, Final

import torch
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlan, LoadPlanner, ReadItem
from torch.distributed.checkpoint.storage import StorageReader
from torch.futures import Future

from luciola.client import Location, open_location
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData, InvalidArgument

from ..weights.checkpoint import Checkpoint, ReadReport, Slice
from .catalog import as_location, is_location
from .entries import Stored
from .manifest import METADATA_NAME, Manifest, crc_text, read_manifest
from .plain import decode_metadata, load_plain

WAVE_BYTES: Final = 1 << 30
FILES: Final = 128  # open at a time: a process may have 1024 by default
NAMED: Final = 8  # unused entries that an error names
NOTHING: Final = ReadReport(0, 0, 0, 0)


class Reader(StorageReader):
    """Loads a checkpoint for `torch.distributed.checkpoint.load`, on any number of ranks, in any sharding.

    `location`: of the checkpoint itself (see `latest`); `checkpoint_id` of a load takes its place. `allow_unused`:
    patterns (as of the shell) of entries that need not be asked for; by default all, so that parts can be loaded.
    `report` counts what the last load has read on this rank. May be pickled, and reused.
    """

    def __init__(  # noqa: PLR0913 (by keyword)
        self,
        location: str | os.PathLike[str] | Location | None = None,
        *,
        verify: bool = True,
        allow_unused: Sequence[str] = ("*",),
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.verify = verify
        self.allow_unused = (allow_unused,) if isinstance(allow_unused, str) else tuple(allow_unused)
        self._credentials: dict[str, Any] = {
            "secret_file": secret_file,
            "token": token,
            "token_file": token_file,
        }
        self.report = NOTHING
        self._location: Location | None = None
        if location is not None:
            self._location = as_location(location, **self._credentials)
        self._load_id = ""
        self._stored: dict[Any, Stored] = {}
        self._metadata: Metadata | None = None
        self._names: set[str] = set()

    # Called by torch, in this order.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._location = as_location(checkpoint_id, **self._credentials)
            self._metadata = None
        self._stored = {}
        self._load_id = str(uuid.uuid4())

    def read_metadata(self, *args: Any) -> Metadata:  # noqa: ARG002
        metadata = self._metadata or load_metadata(self._file_system, self._path, self.manifest())
        self._metadata = None  # of `names`: another load may meet another checkpoint
        if metadata.storage_meta is None:
            metadata.storage_meta = StorageMeta()
        metadata.storage_meta.load_id = self._load_id
        return metadata

    def set_up_storage_reader(
        self,
        metadata: Metadata,
        is_coordinator: bool,  # noqa: FBT001, ARG002
        *args: Any,  # noqa: ARG002
        **kwargs: Any,  # noqa: ARG002
    ) -> None:
        self._stored = metadata.storage_data
        self._names = _with_content(metadata)

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        wanted = {item.storage_index.fqn for plan in plans for item in plan.items}
        unused = sorted(
            name
            for name in self._names - wanted
            if not any(fnmatch.fnmatchcase(name, pattern) for pattern in self.allow_unused)
        )
        if unused:
            more = f" and {len(unused) - NAMED} more" if len(unused) > NAMED else ""
            raise InvalidArgument(
                f"the checkpoint has entries that are not asked for: {', '.join(unused[:NAMED])}{more}. Load them too, "
                "or leave them: allow_unused=['optimizer.*', …]",
                path=self._path,
            )
        return plans

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        self.report = NOTHING
        items = sorted(plan.items, key=self._position)
        for files, inside in self._by_files(items):
            checkpoint = Checkpoint(self._file_system, self._path, verify=self.verify, files=files)
            for wave in _waves(inside, checkpoint, self._stored):
                self._read(checkpoint, wave, planner)
        future: Future[None] = Future()
        future.set_result(None)
        return future

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return is_location(checkpoint_id)

    @property
    def checkpoint_id(self) -> str:
        """The location of the checkpoint."""
        return str(self._place)

    def names(self) -> set[str]:
        """List the names of the checkpoint's entries, as of a flat state dict. Raises: NotFound, CorruptData."""
        self._metadata = load_metadata(self._file_system, self._path, self.manifest())
        return set(self._metadata.state_dict_metadata)

    def manifest(self) -> Manifest:
        """Read the manifest. Raises: NotFound, CorruptData."""
        return read_manifest(self._file_system, self._path)

    # Steps of these.

    @property
    def _place(self) -> Location:
        if self._location is None:
            raise InvalidArgument(
                "no checkpoint is named: give Reader a location, or the load a checkpoint_id"
            )
        return self._location

    @property
    def _file_system(self) -> AnyFileSystem:
        return open_location(self._place)[0]

    @property
    def _path(self) -> str:
        return self._place.path

    def _stored_at(self, item: ReadItem) -> Stored:
        return self._stored[item.storage_index]

    def _position(self, item: ReadItem) -> tuple[str, str, tuple[int, ...]]:
        stored = self._stored_at(item)
        return stored.file, stored.entry, tuple(item.storage_offsets)

    def _by_files(self, items: list[ReadItem]) -> Iterator[tuple[list[str], list[ReadItem]]]:
        """Group sorted items by files, of which at most FILES are open at a time."""
        files = sorted({self._stored_at(item).file for item in items})
        for begin in range(0, len(files), FILES):
            some = files[begin : begin + FILES]
            inside = set(some)
            yield some, [item for item in items if self._stored_at(item).file in inside]

    def _read(self, checkpoint: Checkpoint, items: list[ReadItem], planner: LoadPlanner) -> None:
        slices, targets = [], []
        for item in items:
            stored = self._stored_at(item)
            name = f"{stored.file}/{stored.entry}"
            if name not in checkpoint.tensors:
                raise CorruptData(
                    f"tensor {stored.entry!r} is not in this file, where the metadata says it is",
                    path=os.path.join(self._path, stored.file),
                )
            target = _Target(item, stored, checkpoint.tensors[name].torch_shape, planner)
            targets.append(target)
            slices.append(Slice(name, target.memory, target.index))
        report = checkpoint.read_slices(slices, convert=True, whole_blocks=self.verify)
        for target in targets:
            target.commit(planner)
        self.report = ReadReport(
            self.report.needed + report.needed,
            self.report.read + report.read,
            self.report.verified + report.verified,
            self.report.reads + report.reads,
        )


class _Target:
    """The target of one item, and its commit after the read."""

    def __init__(self, item: ReadItem, stored: Stored, shape: tuple[int, ...], planner: LoadPlanner) -> None:
        self._item = item
        self._target: torch.Tensor | None = None
        self.index: tuple[slice, ...] = ()
        if item.type is LoadItemType.BYTE_IO:
            self.memory = torch.empty(shape, dtype=torch.uint8)
            return
        self.index = tuple(
            slice(offset, offset + length)
            for offset, length in zip(item.storage_offsets, item.lengths, strict=True)
        )
        self._target = planner.resolve_tensor(item).detach()
        if self._target.shape != item.lengths:
            raise ValueError(
                f"{item.dest_index.fqn!r}: the planner gives {list(self._target.shape)} for {list(item.lengths)}"
            )
        self.memory = self._target
        if stored.form == "real":
            if not self._target.is_complex():
                raise TypeError(
                    f"{item.dest_index.fqn!r} is complex in the checkpoint, not {self._target.dtype}"
                )
            self.memory = torch.view_as_real(self._target)
        elif len(shape) != len(item.lengths):
            raise CorruptData(
                f"tensor {stored.entry!r} has shape {list(shape)}, and {len(item.lengths)} dimensions in the metadata",
                path=stored.file,
            )

    def commit(self, planner: LoadPlanner) -> None:
        """Pass what was read to the planner."""
        if self._target is None:
            array: Any = self.memory.numpy()
            data = io.BytesIO(array.tobytes())
            if isinstance(planner, DefaultLoadPlanner):
                value = load_plain(data, self._item.storage_index.fqn)
                data = io.BytesIO()
                torch.save(value, data)
                data.seek(0)
            planner.load_bytes(self._item, data)
        else:
            planner.commit_tensor(self._item, self._target)


def _waves(
    items: list[ReadItem], checkpoint: Checkpoint, stored: dict[Any, Stored]
) -> Iterator[list[ReadItem]]:
    """Group items by about WAVE_BYTES."""
    wave: list[ReadItem] = []
    size = 0
    for item in items:
        where = stored[item.storage_index]
        info = checkpoint.tensors.get(f"{where.file}/{where.entry}")
        if info is not None:
            whole = max(1, math.prod(info.shape))
            part = whole if item.type is LoadItemType.BYTE_IO else math.prod(item.lengths)
            size += info.nbytes * part // whole
        wave.append(item)
        if size >= WAVE_BYTES:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


def load_metadata(file_system: AnyFileSystem, path: str, manifest: Manifest) -> Metadata:
    """Load the metadata of a checkpoint, as torch's planners take it. Raises: CorruptData."""
    name = os.path.join(path, METADATA_NAME)
    text = file_system.read(name)
    if crc_text(text) != manifest.metadata:
        raise CorruptData(
            "it does not match the checksum in the manifest: the checkpoint is damaged", path=name
        )
    return decode_metadata(text, name)


def _with_content(metadata: Metadata) -> set[str]:
    """List the entries that a load can ask for: not tensors without elements."""
    return {
        name
        for name, entry in metadata.state_dict_metadata.items()
        if not isinstance(entry, TensorStorageMetadata) or 0 not in entry.size
    }


__all__ = ["Reader", "load_metadata"]
