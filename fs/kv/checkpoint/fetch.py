"""A copy of another replica's checkpoint.

What is read is hashed as it arrives and compared with the seal (P3). A source that fails is asked again for what is
still missing, as long as it sends something between two failures.
"""

import hashlib
import os
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path
from typing import Final, Protocol

from ...clock import Clock, SystemClock
from ...errors import CorruptData, NotFound, Timeout, Unavailable
from .catalog import Catalog, Checkpoint, checkpoint_name, in_thread, require_space
from .seal import READ_BYTES, Seal, SealedFile

TRIES: Final = 5  # in which nothing arrives, one after another
PAUSE_S: Final = 1.0  # between two of them
_SYSTEM_CLOCK: Final = SystemClock()


class Source(Protocol):
    """Who has checkpoints to give. Its calls raise Unavailable or Timeout where another try may succeed."""

    async def seals(self) -> Sequence[bytes]:
        """Return the encoded seals of the checkpoints, oldest first."""

    def read(self, name: str, file: str, offset_bytes: int) -> AsyncGenerator[bytes]:
        """Yield the content of a file of the checkpoint `name` from `offset_bytes` on. Raises: NotFound."""


class DirectorySource:
    """The checkpoints of a directory of this machine, or of one that is mounted."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog

    async def seals(self) -> Sequence[bytes]:
        return [checkpoint.seal.encode() for checkpoint in self._catalog.checkpoints()]

    async def read(self, name: str, file: str, offset_bytes: int) -> AsyncGenerator[bytes]:
        try:
            opened = (self._catalog.directory / name / file).open("rb", buffering=0)
        except FileNotFoundError as error:
            raise NotFound(f"the checkpoint {name} has been removed, or has no file {file}") from error
        with opened:
            opened.seek(offset_bytes)
            while chunk := await in_thread(lambda _check: opened.read(READ_BYTES)):
                yield chunk


@dataclass(frozen=True, slots=True)
class Fetched:
    """What a fetch is busy with."""

    source: Source
    name: str
    seal: Seal
    clock: Clock


async def fetch(
    source: Source, catalog: Catalog, *, log_id: bytes, clock: Clock = _SYSTEM_CLOCK
) -> Checkpoint:
    """Copy the newest checkpoint of `source` into `catalog`, unless it is there.

    A call that is cancelled, or fails, leaves nothing.
    Raises: NotFound if there is none, or it was removed meanwhile; CorruptData if it does not match its seal or is of
    another log; Unavailable or Timeout, the last one, after `TRIES` without progress; Busy; NoSpace.
    """
    seals = await source.seals()
    if not seals:
        raise NotFound("there is no checkpoint to fetch")
    seal = Seal.decode(seals[-1])
    if seal.log_id != log_id:
        raise CorruptData("the checkpoint that was offered is of another log")
    if (present := catalog.find(seal)) is not None:
        return present
    async with catalog.building() as part:
        require_space(catalog.directory, seal.size_bytes)
        part.mkdir(mode=0o700)
        work = Fetched(source, checkpoint_name(seal), seal, clock)
        for file in seal.files:
            await _fetch_file(work, file, part)
        return await catalog.complete(part, seal)


async def _fetch_file(work: Fetched, file: SealedFile, part: Path) -> None:
    digest = hashlib.sha256()
    with (part / file.name).open("xb", buffering=0) as target:
        async with aclosing(_content(work, file)) as chunks:
            async for chunk in chunks:
                digest.update(chunk)
                await in_thread(partial(_write_all, target, chunk))
        if digest.hexdigest() != file.sha256:
            raise CorruptData(f"the file {file.name} of a checkpoint does not match its checksum")
        await in_thread(lambda _check: os.fsync(target.fileno()))


async def _content(work: Fetched, file: SealedFile) -> AsyncGenerator[bytes]:
    """Yield the content of a file, however often the source fails on the way."""
    received_bytes = failures = 0
    while received_bytes < file.size_bytes:
        before_bytes = received_bytes
        try:
            async with aclosing(_rest(work, file, received_bytes)) as chunks:
                async for chunk in chunks:
                    received_bytes += len(chunk)
                    yield chunk
        except (Unavailable, Timeout):
            failures = 1 if received_bytes > before_bytes else failures + 1
            if failures >= TRIES:
                raise
            await work.clock.sleep(PAUSE_S)


def _write_all(target: FileIO, data: bytes, _check: Callable[[], None]) -> None:
    view = memoryview(data)
    while view:
        view = view[target.write(view) :]


async def _rest(work: Fetched, file: SealedFile, offset_bytes: int) -> AsyncGenerator[bytes]:
    """Yield the rest of a file. Raises: Unavailable if less arrives than the seal says; CorruptData if more."""
    missing_bytes = file.size_bytes - offset_bytes
    async with aclosing(work.source.read(work.name, file.name, offset_bytes)) as chunks:
        async for chunk in chunks:
            missing_bytes -= len(chunk)
            if missing_bytes < 0:
                raise CorruptData(f"the file {file.name} of a checkpoint is longer than its seal says")
            yield chunk
    if missing_bytes > 0:
        raise Unavailable(f"the file {file.name} of a checkpoint ended early")


__all__ = ["DirectorySource", "Source", "fetch"]
