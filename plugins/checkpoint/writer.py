"""The StorageWriter: one safetensors file of each rank, written in parallel; the checkpoint appears when all are there.

The coordinator makes a hidden directory and sends its name to all ranks with their plans. Each writes and syncs its
file. `finish` adds the metadata and the manifest, and renames the directory (see commit). Ranks communicate only as
`torch.distributed.checkpoint` allows: by their plans and their results.

Source: the protocol of torch.distributed.checkpoint.storage.StorageWriter.
"""

import contextlib
import logging
import os
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, SupportsIndex

import torch
from torch.distributed.checkpoint.metadata import Metadata, StorageMeta
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import StorageWriter, WriteResult
from torch.futures import Future

from luciola.client import Location, open_location
from luciola.client.location import AnyFileSystem
from luciola.errors import CorruptData, InvalidArgument, NotFound

from .catalog import (
    as_location,
    find_named,
    is_location,
    newest_in,
    next_serial,
    problem_of,
    step_number,
    step_of,
)
from .commit import begin, commit, discard, durable_name, find_part, split
from .items import file_name, write_items
from .manifest import METADATA_NAME, NAME, Manifest, crc_text, finite
from .plain import encode_metadata
from .retention import Keep
from .sharing import write_shared
from .tensorfile import explained

log = logging.getLogger("luciola.checkpoint")

WAIT_S: Final = 30.0  # for another mount to see the directory that the coordinator has made: usually a second


@dataclass(frozen=True)
class _Place:
    """What the coordinator sends to a rank."""

    path: str
    hidden: str
    rank: int
    ranks: int
    base: str | None  # the checkpoint whose files may be shared


class Writer(StorageWriter):
    """Saves one checkpoint at a time for `torch.distributed.checkpoint.save` and `async_save`.

    `location`: of the checkpoint itself, a new directory; `checkpoint_id` of a save takes its place. `step`: by default
    the number that its name ends with. `keep`: the checkpoints beside it that are kept when it is complete, also by
    `metrics`, its numbers. `overwrite`: a checkpoint of the same name is replaced, in one step. `share`: files of the
    checkpoint before that are unchanged get a second name instead of being written again (see sharing). May be pickled,
    and reused.
    """

    def __init__(  # noqa: PLR0913 (place, policy, credentials)
        self,
        location: str | os.PathLike[str] | Location | None = None,
        *,
        step: SupportsIndex | None = None,
        keep: Keep | None = None,
        metrics: Mapping[str, float] | None = None,
        overwrite: bool = True,
        share: bool = False,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        self.keep = keep
        self.metrics = finite(metrics or {})
        self.overwrite = overwrite
        self.share = share
        self.removes_at_once = True  # in `finish`, while the other ranks wait; Checkpoints does it later
        self._credentials: dict[str, Any] = {
            "secret_file": secret_file,
            "token": token,
            "token_file": token_file,
        }
        self._step = None if step is None else step_number(step)
        self._location: Location | None = None
        if location is not None:
            self._location = as_location(location, **self._credentials)
        self._save_id = ""
        self._is_coordinator = False
        self._hidden: str | None = None  # at the coordinator: the directory that it has made
        self._replaced: str | None = None  # the hidden name of the checkpoint that had this name before
        self._ranks = 1

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_hidden": None}  # another process has not made it

    # Called by torch, in this order.

    def reset(self, checkpoint_id: str | os.PathLike[str] | None = None) -> None:
        if checkpoint_id is not None:
            self._location = as_location(checkpoint_id, **self._credentials)
        self._save_id = str(uuid.uuid4())

    def storage_meta(self) -> StorageMeta | None:
        return StorageMeta(checkpoint_id=self.checkpoint_id, save_id=self._save_id)

    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None:  # noqa: FBT001, ARG002
        if not kwargs.get("use_collectives", True):
            raise InvalidArgument(
                "use_collectives=False: without collectives no rank knows when all have written, so a checkpoint could "
                "not appear at once; leave it out"
            )
        self._is_coordinator = is_coordinator
        split(self._path)

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        self.abandon()
        with explained(self._path):
            self._hidden = begin(self._file_system, self._path, overwrite=self.overwrite, owner=self)
        self._ranks = len(plans)
        base = self._base() if self.share else None
        return [
            replace(plan, storage_data=_Place(self._path, self._hidden, rank, len(plans), base))
            for rank, plan in enumerate(plans)
        ]

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        place: _Place = plan.storage_data
        hidden = self._hidden_directory(place)
        results: list[WriteResult] = []
        if plan.items and self.share:
            results = write_shared(self._file_system, hidden, place.rank, plan.items, planner, place.base)
        elif plan.items:
            results = write_items(self._file_system, hidden, file_name(place.rank), plan.items, planner)
        future: Future[list[WriteResult]] = Future()
        future.set_result(results)
        return future

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        assert self._hidden is not None, "the coordinator has begun"
        try:
            with explained(self._path):
                self._finish(self._hidden, metadata, [result for each in results for result in each])
        except BaseException:
            with contextlib.suppress(OSError):
                self.abandon()
            raise
        self._hidden = None
        if self.removes_at_once:
            self.remove_old()

    def remove_old(self) -> None:
        """Remove the checkpoint that the last save has replaced, and those that the policy does not keep.

        Only the coordinator does.
        """
        if not self._is_coordinator:
            return
        try:
            self._remove_old()
        except OSError as error:
            log.warning(
                "removal of old checkpoints beside %s failed: %s; the next save retries", self._place, error
            )

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        return is_location(checkpoint_id)

    @property
    def checkpoint_id(self) -> str:
        """The location of the checkpoint."""
        return str(self._place)

    def abandon(self) -> None:
        """Remove the files of a save that failed. Only the coordinator does; the next save does it too."""
        hidden, self._hidden = self._hidden, None
        if hidden is not None and self._file_system.exists(hidden):
            discard(self._file_system, hidden)

    # Steps of these.

    @property
    def _place(self) -> Location:
        if self._location is None:
            raise InvalidArgument(
                "the checkpoint has no location: give one to Writer, or a checkpoint_id to the save"
            )
        return self._location

    @property
    def _file_system(self) -> AnyFileSystem:
        return open_location(self._place)[0]

    @property
    def _path(self) -> str:
        return self._place.path.rstrip("/") or "/"

    def _hidden_directory(self, place: _Place) -> str:
        """Find the directory to write into.

        A planner that caches plans sends the place of an earlier save; then the directory is searched for. Another
        mount may take a moment to see it.
        """
        deadline = time.monotonic() + WAIT_S
        while True:
            if place.path == self._path and self._file_system.isdir(place.hidden):
                return place.hidden
            found = find_part(self._file_system, self._path)
            if found is not None:
                return found
            if time.monotonic() > deadline:
                raise NotFound(
                    f"the directory that the coordinator has made for this save does not appear within {WAIT_S:g} s: "
                    "all ranks must see the same file system",
                    path=place.hidden,
                )
            time.sleep(0.05)

    def _base(self) -> str | None:
        """Find the newest whole checkpoint beside it."""
        directory, _ = split(self._path)
        saved = newest_in(self._file_system, directory, replace(self._place, path=directory))
        return None if saved is None else os.path.join(directory, saved.name)

    def _finish(self, hidden: str, metadata: Metadata, results: list[WriteResult]) -> None:
        file_system = self._file_system
        metadata.storage_data = {result.index: result.storage_data.stored for result in results}
        metadata.storage_meta = self.storage_meta()
        files: dict[str, int] = {}
        for result in results:
            files.update(result.storage_data.files)
        _require_files(file_system, hidden, files)
        text = encode_metadata(metadata)
        with file_system.open(os.path.join(hidden, METADATA_NAME), "xb") as file:
            file.write(text)
            file.flush()
            file.fsync()  # type: ignore[attr-defined]
        directory, name = split(self._path)
        manifest = Manifest(
            serial=next_serial(find_named(file_system, directory, replace(self._place, path=directory))),
            step=step_of(name) if self._step is None else self._step,
            saved_ns=time.time_ns(),
            ranks=self._ranks,
            tensors=len(metadata.state_dict_metadata),
            data_bytes=sum(result.size_in_bytes for result in results),
            torch=torch.__version__,
            metadata=crc_text(text),
            files=files | {METADATA_NAME: len(text)},
            metrics=self.metrics,
        )
        with durable_name(file_system, os.path.join(hidden, NAME), manifest.encode()):
            self._replaced = commit(file_system, hidden, self._path, overwrite=self.overwrite)

    def _remove_old(self) -> None:
        """Remove the checkpoint that this one has replaced, and those that the policy does not keep."""
        replaced, self._replaced = self._replaced, None
        if replaced is not None:
            discard(self._file_system, replaced)
        if self.keep is None:
            return
        directory, name = split(self._path)
        parent = replace(self._place, path=directory)
        file_system = self._file_system
        found = find_named(file_system, directory, parent)
        for saved in self.keep.surplus(found, lambda saved: not problem_of(file_system, directory, saved)):
            if saved.name != name:
                discard(file_system, os.path.join(directory, saved.name))


def _require_files(file_system: AnyFileSystem, hidden: str, files: dict[str, int]) -> None:
    for name, length in files.items():
        path = os.path.join(hidden, name)
        if (found := file_system.stat(path).st_size) != length:
            raise CorruptData(f"a rank wrote {length} bytes, and the file has {found}", path=path)


__all__ = ["Writer"]
