"""Checkpoints of Hugging Face's Trainer on a location: `Trainer(callbacks=[TrainerCheckpoints("lu:/runs/7")])`.

The Trainer writes a directory of its own, checkpoint-N, below `output_dir` on this machine. This callback saves its
files as one checkpoint: whole and durable or not at all, every byte with a checksum, old ones by policy. `restore`
brings the newest back, verified, for `trainer.train(resume_from_checkpoint=…)`.

H1  All files that the Trainer has written are saved: model or adapter (PEFT), optimizer, scheduler, random states.
H2  Rank 0 saves, after all ranks have written. FSDP and DeepSpeed, whose ranks write parts, are refused: save with
    `Checkpoints` from a callback of your own there.

Source: transformers.TrainerCallback, events on_save and on_train_begin.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save
from transformers import TrainerCallback

from luciola.client import Location, open_location
from luciola.errors import CorruptData, InvalidArgument

from .catalog import as_location, newest_in
from .job import FAILURES, NAME
from .reader import Reader
from .retention import Keep
from .writer import Writer

PREFIX: Final = "files."


class TrainerCheckpoints(TrainerCallback):  # type: ignore[misc] # (transformers is not followed)
    """Saves each checkpoint that the Trainer has written.

    `keep`: the ones that are kept; metrics are the last numbers that the Trainer has logged ("loss", "eval_loss", …).
    """

    def __init__(
        self,
        location: str | os.PathLike[str] | Location,
        *,
        keep: Keep | None = None,
        secret_file: str | os.PathLike[str] | None = None,
        token: str | None = None,
        token_file: str | os.PathLike[str] | None = None,
    ) -> None:
        self.location = as_location(location, secret_file=secret_file, token=token, token_file=token_file)
        self.keep = keep

    def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Refuse a Trainer whose checkpoints this callback cannot save. Raises: InvalidArgument."""
        if args.fsdp or args.deepspeed:
            raise InvalidArgument(
                "TrainerCheckpoints saves what one rank can read, and FSDP and DeepSpeed write parts of each rank: "
                "call Checkpoints.save(step, model=…, optimizer=…) on all ranks from a callback of your own"
            )

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        """Save checkpoint-N. Raises: CheckpointException."""
        if dist.is_available() and dist.is_initialized():
            dist.barrier()  # each rank writes its random state
        if not state.is_world_process_zero:
            return
        step = int(state.global_step)
        directory = os.path.join(args.output_dir, f"checkpoint-{step}")
        place = self.location.join(NAME.format(step))
        writer = Writer(place, step=step, keep=self.keep, metrics=_metrics(state.log_history))
        with _quiet():
            save({"files": dict(_contents(directory))}, storage_writer=writer, no_dist=True)

    def restore(self, directory: str | os.PathLike[str]) -> str | None:
        """Copy the newest whole checkpoint to DIRECTORY/checkpoint-N, and return that; None if there is none.

        On several ranks of a machine with a process group (which TrainingArguments make), the first copies, and all
        return or raise. Raises: CorruptData; CheckpointException.
        """
        if not dist.is_available() or not dist.is_initialized():
            return self._fetch(os.fspath(directory))
        found: str | BaseException | None = None
        if int(os.environ.get("LOCAL_RANK", "0")) == 0:
            try:
                found = self._fetch(os.fspath(directory))
            except FAILURES as error:
                found = error
        every: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(every, found)
        for each in every:
            if isinstance(each, BaseException):
                raise each
        path: str | None = every[0]
        return path

    def _fetch(self, directory: str) -> str | None:
        file_system, path = open_location(self.location)
        saved = newest_in(file_system, path, self.location)
        if saved is None:
            return None
        reader = Reader(saved.location)
        metadata = reader.read_metadata().state_dict_metadata
        files = {
            _checked(name): torch.empty(tuple(entry.size), dtype=torch.uint8)
            for name, entry in metadata.items()
            if isinstance(entry, TensorStorageMetadata)
        }
        with _quiet():
            load({"files": files}, storage_reader=reader, no_dist=True)
        target = os.path.join(directory, f"checkpoint-{saved.step}")
        part = f"{target}.part"
        shutil.rmtree(part, ignore_errors=True)
        for name, content in files.items():
            os.makedirs(os.path.dirname(os.path.join(part, name)), exist_ok=True)
            with open(os.path.join(part, name), "wb") as file:
                array: Any = content.numpy()
                file.write(memoryview(array))
        shutil.rmtree(target, ignore_errors=True)
        os.rename(part, target)
        return target


def _contents(directory: str) -> Iterator[tuple[str, torch.Tensor]]:
    """List the files below a directory, by their names there, as bytes that are read when they are saved."""
    for top, _, names in os.walk(directory):
        for name in names:
            path = os.path.join(top, name)
            size = os.stat(path).st_size
            content = (
                torch.from_file(path, shared=False, size=size, dtype=torch.uint8) if size else _nothing()
            )
            yield os.path.relpath(path, directory), content


def _nothing() -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8)


def _checked(name: str) -> str:
    """Return the name of a file of the checkpoint. Raises: CorruptData for one outside of it."""
    path = name.removeprefix(PREFIX)
    if path == name or os.path.isabs(path) or ".." in path.split("/"):
        raise CorruptData(f"not a checkpoint of a Trainer: it has {name!r}")
    return path


def _metrics(history: list[dict[str, Any]]) -> dict[str, float]:
    return {
        name: float(value)
        for entry in history
        for name, value in entry.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress torch's warning that a single process saves: it is intended."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled")
        yield


__all__ = ["TrainerCheckpoints"]
