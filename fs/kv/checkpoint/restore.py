"""A store from a checkpoint: what a new replica, and one that lags behind the log, begins with."""

import os
import shutil
from pathlib import Path

from ...errors import AlreadyExists
from .catalog import PART, TABLE, Checkpoint, in_thread, sync_directory, sync_file
from .seal import verify_files


async def restore(checkpoint: Checkpoint, store: Path) -> None:
    """Make `store`, which must not exist, a key-value store with the content of the checkpoint.

    Its tables are hard links where the file system is the same, copies otherwise. After a crash `store` is complete or
    does not exist. Raises: AlreadyExists; CorruptData if a file does not match the seal (P3); NoSpace; Unavailable.
    """
    await in_thread(lambda _check: _restore(checkpoint, store))


def _restore(checkpoint: Checkpoint, store: Path) -> None:
    if store.exists():
        raise AlreadyExists(f"a checkpoint is not restored over what exists in {store}")
    verify_files(checkpoint.directory, checkpoint.seal)
    part = store.with_name(f"{store.name}{PART}")
    if part.exists():  # of a process that was killed
        shutil.rmtree(part)
    try:
        part.mkdir(mode=0o700, parents=True)
        for file in checkpoint.seal.files:
            place(checkpoint.directory / file.name, part / file.name)
        sync_directory(part)
        part.rename(store)
        sync_directory(store.parent)
    finally:
        if part.exists():
            shutil.rmtree(part)


def place(source: Path, target: Path) -> None:
    """Make `target` the same file of a checkpoint as `source`: a hard link to a table, else a durable copy."""
    if source.suffix == TABLE:
        try:
            os.link(source, target)
        except OSError:  # another file system, or one without hard links
            pass
        else:
            return
    shutil.copyfile(source, target)
    sync_file(target)


__all__ = ["place", "restore"]
