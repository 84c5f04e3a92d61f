"""The checkpoints of one training job in one directory: save a step, load the newest, keep some.

    checkpoints = Checkpoints("lu:/runs/7", keep=Keep(last=3, every=1000))
    start = checkpoints.load(state)                 # None: there is none yet
    for step in range(0 if start is None else start, steps):
        ...
        checkpoints.async_save(step + 1, state)     # waits for the one before, copies, and saves while training goes on
    checkpoints.close()                             # waits for the last

All ranks call the same methods with the same steps. Which checkpoint is the newest is decided by the first rank. Saves
that go on beside training talk through a process group of their own, so that they do not get between the collectives
of training.
"""

import contextlib
import os
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, Self

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import (
    AsyncCheckpointerType,
    AsyncSaveResponse,
    async_save,
    save,
)

from luciola.client import Location, open_location
from luciola.errors import NotFound

from .catalog import Saved, as_location, find, look, newest_in
from .reader import Reader
from .retention import Keep
from .writer import Writer

NAME: Final = "step-{:09}"


class Checkpoints:
    """The checkpoints in one directory. Use as a context manager, or `close` it.

    `keep`: which stay after each save. `process_group`: whose ranks save and load together, by default all.
    `in_process`: `async_save` writes in a process of its own, as `AsyncCheckpointerType.PROCESS`, not in a thread.
    """

    def __init__(  # noqa: PLR0913 (where, what stays, who, how)
        self,
        location: str | os.PathLike[str] | Location,
        *,
        keep: Keep | None = None,
        process_group: dist.ProcessGroup | None = None,
        in_process: bool = False,
        verify: bool = True,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
    ) -> None:
        self.location = as_location(location, secret_file=secret_file, token=token)
        self.keep = keep
        self._group = process_group
        self._in_process = in_process
        self._verify = verify
        self._stager: DefaultStager | None = None
        self._own_group: dist.ProcessGroup | None = None
        self._saving: tuple[Future[Any], Writer] | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(Exception):  # the error that leaves the block is the one to tell
                self.close()

    def save(self, step: int, state: dict[str, Any], *, planner: SavePlanner | None = None) -> Location:
        """Saves a state dict; returns where. Raises: CheckpointException, with the errors of all ranks."""
        self.wait()
        writer = self._writer(step)
        with _abandoning(writer):
            save(state, storage_writer=writer, planner=planner, process_group=self._group)
        return self._place(step)

    def async_save(
        self, step: int, state: dict[str, Any], *, planner: SavePlanner | None = None
    ) -> Future[Any]:
        """Copies a state dict and saves the copy while the caller goes on, once the save before has ended.

        The memory of the copy is kept for the next. Raises: what the save before has met, or this one's copying.
        """
        self.wait()
        group = self._group_of_saves()
        if self._stager is None:
            on_gpu = torch.cuda.is_available()
            self._stager = DefaultStager(StagingOptions(on_gpu, self._in_process, False, on_gpu))
        writer = self._writer(step)
        kind = AsyncCheckpointerType.PROCESS if self._in_process else AsyncCheckpointerType.THREAD
        with _abandoning(writer):
            future = async_save(
                state,
                storage_writer=writer,
                planner=planner,
                process_group=group,
                async_checkpointer_type=kind,
                async_stager=self._stager,
            )
        if isinstance(future, AsyncSaveResponse):
            future = future.upload_completion
        self._saving = future, writer
        return future

    def wait(self) -> None:
        """Returns when no save is under way. Raises: what the last one has met, once."""
        saving, self._saving = self._saving, None
        if saving is not None:
            future, writer = saving
            with _abandoning(writer):
                future.result()

    def close(self) -> None:
        """As `wait`, and gives back the memory of copies and the process group of saves."""
        try:
            self.wait()
        finally:
            stager, self._stager = self._stager, None
            if stager is not None:
                stager.close()
            group, self._own_group = self._own_group, None
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)

    def _group_of_saves(self) -> dist.ProcessGroup | None:
        """The same ranks, over gloo; for saves that go on beside training."""
        if self._own_group is None and dist.is_available() and dist.is_initialized():
            group: Any
            if self._group is None:
                group = dist.new_group(backend="gloo")
            else:
                ranks = dist.get_process_group_ranks(self._group)
                group = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
            self._own_group = group
        return self._own_group

    def load(
        self, state: dict[str, Any], *, step: int | None = None, planner: LoadPlanner | None = None
    ) -> int | None:
        """Loads the newest whole checkpoint, or that of a step, into a state dict, in place; returns its step.

        None if there is no checkpoint at all. Raises: NotFound if there is none of that step; CheckpointException.
        """
        self.wait()
        saved = self._agreed(step)
        if saved is None:
            return None
        reader = Reader(saved.location, verify=self._verify)
        load(state, storage_reader=reader, planner=planner, process_group=self._group)
        return saved.step

    def list(self) -> list[Saved]:
        """What is there, oldest first."""
        file_system, path = open_location(self.location)
        return find(file_system, path, self.location) if file_system.exists(path) else []

    def _place(self, step: int) -> Location:
        return self.location.join(NAME.format(step))

    def _writer(self, step: int) -> Writer:
        return Writer(self._place(step), step=step, keep=self.keep)

    def _find(self, step: int | None) -> Saved | None:
        file_system, path = open_location(self.location)
        if step is None:
            return newest_in(file_system, path, self.location)
        place = self._place(step)
        saved = look(file_system, place.path, place)
        if saved.problem:
            raise NotFound(f"no whole checkpoint of step {step}: {saved.problem}", path=place.path)
        return saved

    def _agreed(self, step: int | None) -> Saved | None:
        """What the first rank finds."""
        if not dist.is_available() or not dist.is_initialized():
            return self._find(step)
        found: list[Any] = [None]
        if dist.get_rank(self._group) == 0:
            try:
                found = [self._find(step)]
            except OSError as error:
                found = [error]
        dist.broadcast_object_list(found, group=self._group, group_src=0)
        if isinstance(found[0], BaseException):
            raise found[0]
        saved: Saved | None = found[0]
        return saved


@contextlib.contextmanager
def _abandoning(writer: Writer) -> Any:
    """After an error the coordinator removes what there is of the checkpoint."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            writer.abandon()
        raise


__all__ = ["Checkpoints"]
