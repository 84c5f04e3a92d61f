"""The checkpoints of one training job in one directory: save a step, load the newest, keep some.

    checkpoints = Checkpoints("lu:/runs/7", keep=Keep(last=3, every=1000))
    parts = {"model": model, "optimizer": optimizer, "scheduler": scheduler, "loader": loader}
    start = checkpoints.load(**parts)               # None: there is none yet
    for step in range(0 if start is None else start, steps):
        ...
        checkpoints.async_save(step + 1, **parts)   # waits for the save before, copies, and saves beside training
    checkpoints.close()                             # waits for the last

All ranks call the same methods with the same steps. The first rank decides which checkpoint is the newest. Asynchronous
saves use a process group of their own, so that they do not interleave with the collectives of training.

J1  A save that failed by a transient fault is repeated, by all ranks: all have got the same CheckpointException.
J2  Old checkpoints are removed after the last collective of a save, by the coordinator.
"""

import contextlib
import errno
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Final, Self, SupportsIndex, TypedDict, Unpack

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
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
from luciola.errors import Error, NotFound

from .application import Application, Stateful
from .catalog import Saved, as_location, find, look, newest_in, step_number
from .manifest import finite
from .reader import Reader
from .retention import Keep
from .writer import Writer

log = logging.getLogger("luciola.checkpoint")

NAME: Final = "step-{:09}"
RETRIES: Final = 2  # of a save: a node that restarts is back within seconds
DELAY_MAX_S: Final = 60.0  # between two attempts: more would only lengthen the time without a checkpoint
TRANSIENT: Final = {errno.EAGAIN, errno.EBUSY, errno.EIO, errno.ENOTCONN, errno.ESTALE, errno.ETIMEDOUT}
"""Errors of a file system after which another attempt may succeed."""

FAILURES: Final = (Exception, CheckpointException)
"""torch's exception is a BaseException."""

OnError = Callable[[int, BaseException], object]


class Parts(TypedDict, total=False):
    """The parts of a training application. Any object with `state_dict` and `load_state_dict` is a Stateful."""

    model: torch.nn.Module
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer]
    scheduler: Stateful
    loader: Stateful
    per_rank: Stateful


@dataclass(frozen=True)
class _Task:
    """The parameters of a save, without its state."""

    step: int
    planner: SavePlanner | None
    metrics: dict[str, float]


@dataclass(frozen=True)
class _Saving:
    """An asynchronous save."""

    step: int
    future: Future[Any]
    writer: Writer | None  # of a save in another process, whose files are removed here after an error


class Checkpoints:
    """The checkpoints in one directory. Use as a context manager, or `close` it.

    `keep`: the checkpoints that stay after each save. `process_group`: the ranks that save and load, by default all.
    `in_process`: `async_save` writes in another process, as `AsyncCheckpointerType.PROCESS`, not in a thread.
    `share`: files that are unchanged since the save before are not written again (see sharing).
    `retries`: how often a save that failed by a transient fault is repeated, after `retry_delay_s`, twice as long each
    time (not `in_process`). `on_error(step, error)` is called for asynchronous saves that failed finally, on every
    rank, when the next one begins; without it, that raises the error.
    """

    def __init__(  # noqa: PLR0913 (where, what stays, who, how)
        self,
        location: str | os.PathLike[str] | Location,
        *,
        keep: Keep | None = None,
        process_group: dist.ProcessGroup | None = None,
        in_process: bool = False,
        verify: bool = True,
        share: bool = False,
        retries: int = RETRIES,
        retry_delay_s: float = 1.0,
        on_error: OnError | None = None,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        if retries < 0 or retry_delay_s < 0:
            raise ValueError(f"retries and retry_delay_s are not negative: {retries}, {retry_delay_s}")
        self.location = as_location(location, secret_file=secret_file, token=token, token_file=token_file)
        self.keep = keep
        self._group = process_group
        self._in_process = in_process
        self._verify = verify
        self._share = share
        self._retries = retries
        self._retry_delay_s = retry_delay_s
        self._on_error = on_error
        self._stager: DefaultStager | None = None
        self._own_group: dist.ProcessGroup | None = None
        self._thread: ThreadPoolExecutor | None = None
        self._saving: _Saving | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            with contextlib.suppress(*FAILURES):  # the error that leaves the block is raised
                self.close()

    def save(
        self,
        step: SupportsIndex,
        state: dict[str, Any] | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        planner: SavePlanner | None = None,
        **parts: Unpack[Parts],
    ) -> Location:
        """Save the parts of an application, and a state dict beside them; return the checkpoint's location.

        `metrics`: of this step, for a policy that keeps the best; those of the first rank count.
        Raises: CheckpointException, with the errors of all ranks; ValueError.
        """
        task = _Task(step_number(step), planner, finite(metrics or {}))
        self.wait()
        self._write(task, self._application(state, parts).to_save(), self._group)
        return self._place(task.step)

    def async_save(
        self,
        step: SupportsIndex,
        state: dict[str, Any] | None = None,
        *,
        metrics: Mapping[str, float] | None = None,
        planner: SavePlanner | None = None,
        **parts: Unpack[Parts],
    ) -> Future[Any]:
        """Copy the state after the save before has ended, and save the copy beside training.

        The memory of the copy is kept for the next. Raises: the error of the save before (see `on_error`), or of
        this copy.
        """
        task = _Task(step_number(step), planner, finite(metrics or {}))
        self.wait()
        group = self._group_of_saves()
        whole = self._application(state, parts).to_save()
        if self._stager is None:
            on_gpu = torch.cuda.is_available()
            self._stager = DefaultStager(StagingOptions(on_gpu, self._in_process, False, on_gpu))
        if self._in_process:
            self._saving = self._save_in_process(task, whole, group)
        else:
            if self._thread is None:
                self._thread = ThreadPoolExecutor(1, "luciola-checkpoint")
            staged: Any = self._stager.stage(whole)
            future = self._thread.submit(self._write, task, staged, group)
            self._saving = _Saving(task.step, future, None)
        return self._saving.future

    def wait(self) -> None:
        """Wait for the asynchronous save. Raises: its error, once, unless `on_error` is called with it."""
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            with contextlib.nullcontext() if saving.writer is None else _abandoning(saving.writer):
                saving.future.result()
        except FAILURES as error:
            if self._on_error is None:
                raise
            self._on_error(saving.step, error)

    def close(self) -> None:
        """Wait as `wait` does, and release the thread, the memory of copies and the process group of saves."""
        try:
            self.wait()
        finally:
            thread, self._thread = self._thread, None
            if thread is not None:
                thread.shutdown()
            stager, self._stager = self._stager, None
            if stager is not None:
                stager.close()
            group, self._own_group = self._own_group, None
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)

    def load(
        self,
        state: dict[str, Any] | None = None,
        *,
        step: SupportsIndex | None = None,
        planner: LoadPlanner | None = None,
        allow_unused: Sequence[str] = (),
        **parts: Unpack[Parts],
    ) -> int | None:
        """Load the newest whole checkpoint, or that of a step, into parts and state, in place; return its step.

        None, and no change, if there is no checkpoint at all. Entries of the checkpoint that are not asked for are an
        error, unless they match a pattern of `allow_unused` ("optimizer.*"; "*" for all).
        Raises: NotFound if there is none of that step; CheckpointException: model and state are undefined then.
        """
        number = None if step is None else step_number(step)
        self.wait()
        saved = self._agreed(number)
        if saved is None:
            return None
        assert saved.manifest is not None, "it is whole"
        reader = Reader(saved.location, verify=self._verify, allow_unused=allow_unused)
        application = self._application(state, parts)
        whole = application.template(reader.names() if parts else (), saved.manifest.ranks)
        try:
            load(whole, storage_reader=reader, planner=planner, process_group=self._group)
            application.restore(whole)
        except BaseException:
            application.undo()
            raise
        return saved.step

    def list(self) -> list[Saved]:
        """List the checkpoints, oldest first."""
        file_system, path = open_location(self.location)
        return find(file_system, path, self.location) if file_system.exists(path) else []

    def _application(self, state: dict[str, Any] | None, parts: Parts) -> Application:
        rank, ranks = 0, 1
        if dist.is_available() and dist.is_initialized():
            rank, ranks = dist.get_rank(self._group), dist.get_world_size(self._group)
        return Application(rank, ranks, {} if state is None else state, **parts)

    def _write(self, task: _Task, state: dict[str, Any], group: dist.ProcessGroup | None) -> None:
        """Save, repeat after transient faults (J1), and remove old checkpoints (J2)."""
        attempt = 0
        while True:
            writer = self._writer(task)
            try:
                with _abandoning(writer):
                    save(state, storage_writer=writer, planner=task.planner, process_group=group)
                break
            except CheckpointException as error:
                if attempt == self._retries or not _is_transient(error):
                    raise
                delay_s = min(DELAY_MAX_S, self._retry_delay_s * 2**attempt)
                log.warning(
                    "save of step %d failed: %s; next attempt in %g s", task.step, _first(error), delay_s
                )
            time.sleep(delay_s)
            attempt += 1
        writer.remove_old()

    def _save_in_process(
        self, task: _Task, state: dict[str, Any], group: dist.ProcessGroup | None
    ) -> _Saving:
        writer = self._writer(task)
        writer.removes_at_once = True  # in that process: no call follows
        with _abandoning(writer):
            future = async_save(
                state,
                storage_writer=writer,
                planner=task.planner,
                process_group=group,
                async_checkpointer_type=AsyncCheckpointerType.PROCESS,
                async_stager=self._stager,
            )
        if isinstance(future, AsyncSaveResponse):
            future = future.upload_completion
        return _Saving(task.step, future, writer)

    def _group_of_saves(self) -> dist.ProcessGroup | None:
        """Make a group of the same ranks, over gloo, for asynchronous saves."""
        if self._own_group is None and dist.is_available() and dist.is_initialized():
            group: Any
            if self._group is None:
                group = dist.new_group(backend="gloo")
            else:
                ranks = dist.get_process_group_ranks(self._group)
                group = dist.new_group(ranks, backend="gloo", use_local_synchronization=True)
            self._own_group = group
        return self._own_group

    def _place(self, step: int) -> Location:
        return self.location.join(NAME.format(step))

    def _writer(self, task: _Task) -> Writer:
        writer = Writer(
            self._place(task.step), step=task.step, keep=self.keep, metrics=task.metrics, share=self._share
        )
        writer.removes_at_once = False
        return writer

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
        """Broadcast what the first rank finds."""
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


def _is_transient(error: CheckpointException) -> bool:
    """Return whether another attempt may succeed: the errors of all ranks are transient."""
    errors = [each for each, _ in error.failures.values()]
    return bool(errors) and all(
        each.retryable if isinstance(each, Error) else isinstance(each, OSError) and each.errno in TRANSIENT
        for each in errors
    )


def _first(error: CheckpointException) -> str:
    return next((f"rank {rank}: {each}" for rank, (each, _) in error.failures.items()), str(error))


@contextlib.contextmanager
def _abandoning(writer: Writer) -> Any:
    """Remove the files of the checkpoint after an error, at the coordinator."""
    try:
        yield
    except BaseException:
        with contextlib.suppress(OSError):
            writer.abandon()
        raise


__all__ = ["Checkpoints", "Parts"]
