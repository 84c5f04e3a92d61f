"""Bytes of pages between a file and a cache, many operations in flight, through staging memory where it is on a device.

A job is what moves together: a page with all its layers, which is one read and one copy to a device; or one layer of
several pages, which is a read each and one copy of them all. Jobs are read in the order in which they are given, and
their copies are begun as their reads end, on one stream.
"""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from errno import EIO
from typing import Any, Final

import torch

from ...client import Operation
from ...client.location import AnyFileSystem
from ...errors import CorruptData, Error
from ..weights.transfer import submit_all
from .page_cache import Done, PageCache, staging_memory
from .transfer import Transfer

ENTRIES: Final = 64  # operations in flight
STAGING: Final = 8  # jobs of a cache on a device that are in host memory at a time
GROUP: Final = 8  # pages whose layer is one copy: 576 KiB in 16 bit, enough for the bus to be busy


@dataclass(frozen=True)
class Job:
    """Pages that move together; `layer` is None for one page with all its layers."""

    places: tuple[int, ...]  # of the pages in the request
    blocks: tuple[int, ...]
    offsets: tuple[int, ...]  # of the bytes in the file
    layer: int | None = None


class View:
    """The bytes of a job in host memory: the cache's own, or those of a staging slot."""

    def __init__(self, cache: PageCache, job: Job, slot: int | None, memory: torch.Tensor | None) -> None:
        self.job = job
        self.slot = slot
        self.memory = memory  # of the slot: a record, or (GROUP, layer_stride)
        self._layout = cache.layout
        self.parts: list[tuple[int, int, memoryview]] = []  # place, offset in the file, bytes
        for row, (place, block, offset) in enumerate(zip(job.places, job.blocks, job.offsets, strict=True)):
            if memory is None:
                found = cache.parts(block) if job.layer is None else [(0, cache.part(job.layer, block))]
            else:
                staged: Any = memory.numpy()
                bytes_ = staged if job.layer is None else staged[row, : self._layout.layer_bytes]
                found = [(0, memoryview(bytes_))]
            self.parts += [(place, offset + at, each) for at, each in found]

    def layers(self) -> Iterator[tuple[int, int, memoryview]]:
        """Yield each layer of each page: place, number, bytes."""
        layout, job = self._layout, self.job
        if job.layer is not None:
            yield from ((place, job.layer, part) for place, _, part in self.parts)
        elif len(self.parts) > 1:  # of a cache with a tensor a layer
            yield from ((place, number, part) for number, (place, _, part) in enumerate(self.parts))
        else:
            (place, _, record) = self.parts[0]
            for number in range(layout.layers):
                begin = number * layout.layer_stride
                yield place, number, record[begin : begin + layout.layer_bytes]


@dataclass
class _InFlight:
    view: View
    left: int  # operations
    errors: dict[int, OSError] = field(default_factory=dict)  # by place


class Mover:
    """Carries out the jobs of one transfer. A load and a save define what happens to bytes that have arrived."""

    def __init__(  # noqa: PLR0913 (from where, to where, and which way)
        self,
        transfer: Transfer,
        file_system: AnyFileSystem,
        file: Any,
        cache: PageCache,
        *,
        write: bool = False,
        by_layer: bool = False,
    ) -> None:
        """`write`: from the cache to the file. `by_layer`: jobs are one layer of at most GROUP pages each."""
        self.transfer = transfer
        self.copies = cache.copies()
        self._file_system = file_system
        self._file = file
        self._cache = cache
        self._write = write
        self._by_layer = by_layer
        self._waiting: list[Operation] = []

    def check(self, view: View, places: list[int]) -> list[int]:
        """Return those of the places whose bytes, now in host memory, are right; fail the others."""
        raise NotImplementedError

    def begun(self, job: Job) -> None:
        """Note that the copies of the job's pages have begun: of those that were right."""

    def landed(self, job: Job, places: list[int]) -> None:
        """Note that the bytes of these places are in the cache."""

    def run(self, jobs: Iterable[Job]) -> None:
        """Carry out the jobs; return when none is in flight. After a cancel no further one begins."""
        staging = _Staging(self, self._cache, by_layer=self._by_layer)
        try:
            with self._file_system.ring(ENTRIES) as ring:
                for job in jobs:
                    while (view := staging.view(job)) is None:
                        if not staging.end_copies(at_least=1):
                            self._settle(ring, staging, least=1)
                    if self.transfer.cancelled:
                        staging.give_back(view)
                        for place in job.places:
                            self.transfer.fail(place, CancelledError("the transfer was cancelled"))
                        continue
                    if self._write:
                        staging.from_device(view)
                    begun = _InFlight(view, len(view.parts))
                    self._waiting += [
                        Operation(self._file, offset, part, write=self._write, user_data=(begun, place, part.nbytes))
                        for place, offset, part in view.parts
                    ]  # fmt: skip
                    submit_all(ring, self._waiting, lambda least: self._settle(ring, staging, least=least))
                    staging.end_copies()
                while ring.in_flight:
                    self._settle(ring, staging, least=1)
        finally:  # no copy may read staging memory that is given back
            staging.end_copies(at_least=STAGING)

    def _settle(self, ring: Any, staging: "_Staging", *, least: int) -> None:
        for done in ring.drain(least=least):
            job, place, wanted = done.user_data
            try:
                if done.moved < wanted:
                    job.errors[place] = self._short(done.moved, wanted)
            except OSError as error:
                job.errors[place] = error
            job.left -= 1
            if job.left == 0:
                self._finish(job, staging)

    def _short(self, moved: int, wanted: int) -> OSError:
        path = str(self._file.name)
        if self._write:
            return Error(f"wrote {moved} of {wanted} bytes of a page", errno=EIO, path=path)
        return CorruptData("the file ends within a page", path=path)

    def _finish(self, job: _InFlight, staging: "_Staging") -> None:
        for place, error in job.errors.items():
            self.transfer.fail(place, error)
        good = self.check(job.view, [place for place in job.view.job.places if place not in job.errors])
        if good and not self._write:
            staging.to_device(job.view, good)
        else:
            staging.give_back(job.view)
        self.begun(job.view.job)


class _Staging:
    """Host memory for jobs whose blocks are on a device, and the copies that read it; nothing for others."""

    def __init__(self, mover: Mover, cache: PageCache, *, by_layer: bool) -> None:
        layout = cache.layout
        shape = (STAGING, GROUP, layout.layer_stride) if by_layer else (STAGING, layout.record_bytes)
        self._mover = mover
        self._cache = cache
        self._free: list[int] = []
        self._memory: torch.Tensor | None = None
        self._moving: deque[tuple[Done, View, list[int]]] = deque()  # in the order of the stream
        if cache.staged:
            self._memory = staging_memory(cache.device, torch.Size(shape).numel()).view(shape)
            self._free = list(range(STAGING))

    def view(self, job: Job) -> View | None:
        """Return memory for a job, None while every slot is in use."""
        if self._memory is None:
            return View(self._cache, job, None, None)
        if not self._free:
            return None
        slot = self._free.pop()
        return View(self._cache, job, slot, self._memory[slot])

    def from_device(self, view: View) -> None:
        """Bring a block's bytes into its slot, and wait for them."""
        if (record := view.memory) is not None:
            self._mover.copies.begin(lambda: self._cache.get(view.job.blocks[0], record))(True)

    def to_device(self, view: View, places: list[int]) -> None:
        """Begin a slot's copy; `end_copies` gives the slot back. Bytes of other jobs are in the cache already."""
        job, memory = view.job, view.memory
        if memory is None:
            self._mover.landed(job, places)
            return

        def copy() -> None:
            if job.layer is None:
                self._cache.put(job.blocks[0], memory)
            else:
                rows = {job.blocks[row]: row for row, place in enumerate(job.places) if place in places}
                self._cache.put_layer(job.layer, rows, memory)

        self._moving.append((self._mover.copies.begin(copy), view, places))

    def end_copies(self, at_least: int = 0) -> int:
        """Give back the slots of copies that have ended, waiting for some if there are any; return how many."""
        ended = 0
        while self._moving and self._moving[0][0](ended < at_least):
            _, view, places = self._moving.popleft()
            self.give_back(view)
            self._mover.landed(view.job, places)
            ended += 1
        return ended

    def give_back(self, view: View) -> None:
        if view.slot is not None:
            self._free.append(view.slot)


__all__ = ["GROUP", "STAGING", "Job", "Mover", "View"]
