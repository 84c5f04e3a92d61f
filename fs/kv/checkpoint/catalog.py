"""The checkpoints in one directory, which one process owns.

A checkpoint is made beside, in a directory that ends in `.part`, and renamed when it is complete and durable (P1).
"""

import asyncio
import errno
import logging
import os
import shutil
import threading
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

from ...errors import Busy, CorruptData, Error, NoSpace, Unavailable
from ..applied import IDENTITY_KEY, POSITION_KEY, decode_position
from ..rocksdb import RocksEngine, is_short_of_space, read_values
from .seal import SEAL_NAME, Seal, SealedFile, hash_file, read_seal, verify_files

log = logging.getLogger(__name__)

PART: Final = ".part"  # of what is not complete, or is being removed
RAW: Final = ".tmp"  # added by RocksDB to the name of a checkpoint that it has begun
TABLE: Final = ".sst"  # of files that never change once they are written
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A complete one."""

    directory: Path
    seal: Seal

    @property
    def name(self) -> str:
        return self.directory.name


class Cancelled(Exception):
    """The caller does not wait any more."""


class Catalog:
    """The checkpoints in `directory`, which is created if it is missing. What a killed process left is removed (P2)."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._busy = False
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        sync_directory(directory.parent)
        for path in list(directory.iterdir()):
            if path.name.endswith((PART, PART + RAW)):
                shutil.rmtree(path)

    def checkpoints(self) -> Sequence[Checkpoint]:
        """Return all whose seal can be read, oldest first."""
        found = []
        for path in self.directory.iterdir():
            if path.name.endswith(PART) or not path.is_dir():
                continue
            try:
                found.append(Checkpoint(path, read_seal(path)))
            except CorruptData as error:
                log.warning("checkpoint %s skipped: %s", path, error)
        return sorted(found, key=lambda checkpoint: checkpoint.seal.position.index)

    def newest(self) -> Checkpoint | None:
        """Return the last of `checkpoints`, if there is one."""
        return next(reversed(self.checkpoints()), None)

    def find(self, seal: Seal) -> Checkpoint | None:
        """Return the checkpoint of the seal's position, if it is here. Raises: CorruptData for another history."""
        return _present(self.directory / checkpoint_name(seal), seal)

    async def create(self, engine: RocksEngine) -> Checkpoint:
        """Make a checkpoint of the store as it is now, or return the one of this position.

        Commits continue meanwhile. Raises: Busy while another one is made; NoSpace; CorruptData; Unavailable.
        """
        async with self.building() as part:
            seal = await in_thread(lambda check: _fill(part, engine, self._known_tables(), check))
            return await self.complete(part, seal)

    @asynccontextmanager
    async def building(self) -> AsyncGenerator[Path]:
        """Give the place for the files of a new checkpoint, which does not exist yet; remove it at the end (P2).

        Raises: Busy.
        """
        if self._busy:
            raise Busy(f"another checkpoint is being made in {self.directory}")
        self._busy = True
        part = self.directory / f"new{PART}"
        try:
            yield part
        finally:
            try:
                await in_thread(lambda _check: _remove_leftovers(part))
            finally:
                self._busy = False

    async def complete(self, part: Path, seal: Seal) -> Checkpoint:
        """Seal what is in `part`, and list it (P1), unless one of this position is listed: return that one."""
        return await in_thread(lambda check: self._complete(part, seal, check))

    async def verify(self, checkpoint: Checkpoint) -> None:
        """Read every byte and compare it with the seal. Raises: CorruptData."""
        await in_thread(lambda _check: verify_files(checkpoint.directory, checkpoint.seal))

    async def retain(self, count: int) -> Sequence[str]:
        """Remove all but the `count` newest; return the names of the removed."""
        assert count > 0, "the last one is never removed: nothing could be fetched"
        removed = self.checkpoints()[:-count]
        for checkpoint in removed:
            await in_thread(partial(self._remove, checkpoint.directory))
        return [checkpoint.name for checkpoint in removed]

    async def discard(self, checkpoint: Checkpoint) -> None:
        """Remove a checkpoint that is damaged."""
        await in_thread(partial(self._remove, checkpoint.directory))

    def _complete(self, part: Path, seal: Seal, check: Callable[[], None]) -> Checkpoint:
        target = self.directory / checkpoint_name(seal)
        if (present := _present(target, seal)) is not None:
            return present
        _make_durable(part, seal)
        check()
        if target.exists():
            log.warning("checkpoint %s cannot be read; replaced", target)
            shutil.rmtree(target)
        part.rename(target)
        sync_directory(self.directory)
        return Checkpoint(target, seal)

    def _known_tables(self) -> Mapping[tuple[int, int], SealedFile]:
        """Checksums of the tables of other checkpoints, by device and inode: a hard link to one needs no reading."""
        known = {}
        for checkpoint in self.checkpoints():
            for file in checkpoint.seal.files:
                if not file.name.endswith(TABLE):
                    continue
                try:
                    status = (checkpoint.directory / file.name).lstat()
                except OSError:
                    continue
                if status.st_size == file.size_bytes:
                    known[status.st_dev, status.st_ino] = file
        return known

    def _remove(self, directory: Path, _check: Callable[[], None]) -> None:
        part = directory.with_name(directory.name + PART)
        directory.rename(part)  # so that one of which a part is gone is never listed
        sync_directory(self.directory)
        shutil.rmtree(part)


def _fill(
    part: Path,
    engine: RocksEngine,
    known: Mapping[tuple[int, int], SealedFile],
    check: Callable[[], None],
) -> Seal:
    engine.checkpoint(part)
    check()
    identity, stored = read_values(part, (IDENTITY_KEY, POSITION_KEY))  # RocksDB opens it: it can be restored
    if identity is None or stored is None:
        raise CorruptData("the key-value store follows no log: it has no position to make a checkpoint of")
    epoch, position = decode_position(stored)
    files = []
    for path in sorted(part.iterdir()):
        status = path.lstat()
        sealed = known.get((status.st_dev, status.st_ino))
        if sealed is None or sealed.size_bytes != status.st_size:
            sealed = hash_file(path)
        files.append(SealedFile(path.name, sealed.size_bytes, sealed.sha256))
        check()
    return Seal(identity, epoch, position, tuple(files))


def _present(target: Path, seal: Seal) -> Checkpoint | None:
    """Return the complete checkpoint at `target`, if its seal can be read."""
    try:
        found = read_seal(target)
    except CorruptData:
        return None
    if found.position != seal.position or found.log_id != seal.log_id:
        raise CorruptData(f"the checkpoint {target} is of another history of the log")
    return Checkpoint(target, found)


def _make_durable(part: Path, seal: Seal) -> None:
    """Write the seal, and see to it that files and names survive power loss. RocksDB has synced its tables."""
    (part / SEAL_NAME).write_bytes(seal.encode())
    for path in part.iterdir():
        if path.suffix != TABLE:
            sync_file(path)
    sync_directory(part)


async def in_thread(work: Callable[[Callable[[], None]], T]) -> T:
    """Return what `work` returns, which runs in a thread. When cancelled, wait until it has noticed and ended."""
    cancelled = threading.Event()

    def check() -> None:
        if cancelled.is_set():
            raise Cancelled

    task = asyncio.ensure_future(asyncio.to_thread(_translated, work, check))
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        cancelled.set()
        while not task.done():
            try:
                await asyncio.wait([task])
            except asyncio.CancelledError:  # again: the thread cannot be left alone with the directory
                continue
        task.exception()  # or it would be reported as never retrieved
        raise


def _translated(work: Callable[[Callable[[], None]], T], check: Callable[[], None]) -> T:
    try:
        return work(check)
    except Error:
        raise
    except OSError as error:
        kind = NoSpace if error.errno in (errno.ENOSPC, errno.EDQUOT) else Unavailable
        raise kind(f"the checkpoint cannot be made or read: {error}") from error


def require_space(directory: Path, size_bytes: int) -> None:
    """Raises: NoSpace if so many more bytes would leave less than the store's reserve."""
    if is_short_of_space(directory, size_bytes):
        raise NoSpace(f"no room in {directory} for a checkpoint of {size_bytes} bytes")


def sync_file(path: Path) -> None:
    """Make the content of a file survive power loss."""
    _sync(path, os.O_RDONLY)


def sync_directory(path: Path) -> None:
    """Make the names in a directory survive power loss."""
    _sync(path, os.O_RDONLY | os.O_DIRECTORY)


def _sync(path: Path, flags: int) -> None:
    descriptor = os.open(path, flags | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def checkpoint_name(seal: Seal) -> str:
    """Return the name of a checkpoint's directory: by position, so that two of one position have one name."""
    return f"{seal.position.index:020d}"


def _remove_leftovers(part: Path) -> None:
    for path in (part, part.with_name(part.name + RAW)):
        if path.exists():
            shutil.rmtree(path)


__all__ = [
    "PART",
    "RAW",
    "TABLE",
    "Catalog",
    "Checkpoint",
    "checkpoint_name",
    "in_thread",
    "sync_directory",
    "sync_file",
]
