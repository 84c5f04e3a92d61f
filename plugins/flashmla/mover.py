"""Bytes of pages between a file and a cache, many operations in flight, through staging memory where it is on a device.

A job is what moves together: a page with all its layers, which is one read and one copy to a device; or one layer of
several pages, which is a read each and one copy of them all. Jobs are read in the order in which they are given, and
their copies are begun as their reads end, on one stream.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import torch

from ...client import Operation
from ...client.location import AnyFileSystem
from ...errors import CorruptData
from ..weights.transfer import submit_all
from .page_cache import Copies, Done, PageCache, staging_memory

ENTRIES: Final = 64  # operations in flight
STAGING: Final = 8  # jobs of a cache on a device that are on their way through host memory
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
                bytes_: Any = memory.numpy()
                found = [
                    (0, memoryview(bytes_ if job.layer is None else bytes_[row, : self._layout.layer_bytes]))
                ]
            self.parts += [(place, offset + at, each) for at, each in found]

    def layers(self) -> Iterator[tuple[int, int, memoryview]]:
        """Each layer of each page: place, number, bytes."""
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


class Receiver(Protocol):
    """What a mover reports to, from the thread that runs it."""

    @property
    def cancelled(self) -> bool:
        """Whether no further job is to begin."""

    def check(self, view: View, places: list[int]) -> list[int]:
        """Those of the places whose bytes, now in host memory, are right. It reports the others itself."""

    def begun(self, job: Job) -> None:
        """The copies of the job's pages, those that were right, have begun."""

    def landed(self, job: Job, places: list[int]) -> None:
        """The bytes of these are where they belong."""

    def failed(self, place: int, error: Exception) -> None:
        """That page has not moved."""


@dataclass
class _UnderWay:
    view: View
    left: int  # operations
    errors: dict[int, OSError] = field(default_factory=dict)  # by place


class Mover:
    """Carries out jobs. For one `run`."""

    def __init__(  # noqa: PLR0913 (from where, to where, and who hears of it)
        self,
        file_system: AnyFileSystem,
        file: Any,
        cache: PageCache,
        copies: Copies,
        receiver: Receiver,
        *,
        write: bool = False,
        by_layer: bool = False,
    ) -> None:
        """`write`: from the cache to the file. `by_layer`: jobs are one layer of at most GROUP pages each."""
        self._file_system = file_system
        self._file = file
        self._receiver = receiver
        self._write = write
        self._staging = _Staging(cache, copies, by_layer=by_layer)
        self._waiting: list[Operation] = []

    def run(self, jobs: Iterable[Job]) -> None:
        """Returns when nothing is under way."""
        try:
            with self._file_system.ring(ENTRIES) as ring:
                for job in jobs:
                    while (view := self._staging.view(job)) is None:
                        if not self._staging.end_copies(at_least=1):
                            self._settle(ring, least=1)
                    if self._receiver.cancelled:
                        self._staging.give_back(view)
                        for place in job.places:
                            self._receiver.failed(place, CancelledError("the transfer was cancelled"))
                        continue
                    self._begin(view)
                    submit_all(ring, self._waiting, lambda least: self._settle(ring, least=least))
                    self._staging.end_copies()
                while ring.in_flight:
                    self._settle(ring, least=1)
        finally:  # no copy may read staging memory that is given back
            self._staging.end_copies(at_least=STAGING)

    def _begin(self, view: View) -> None:
        if self._write:
            self._staging.from_device(view)
        under_way = _UnderWay(view, len(view.parts))
        self._waiting += [
            Operation(
                self._file, offset, memory, write=self._write, user_data=(under_way, place, memory.nbytes)
            )
            for place, offset, memory in view.parts
        ]

    def _settle(self, ring: Any, *, least: int) -> None:
        for done in ring.drain(least=least):
            under_way, place, wanted = done.user_data
            try:
                if done.moved < wanted:
                    under_way.errors[place] = CorruptData(
                        "the file ends within a page", path=str(self._file.name)
                    )
            except OSError as error:
                under_way.errors[place] = error
            under_way.left -= 1
            if under_way.left == 0:
                self._finish(under_way)

    def _finish(self, under_way: _UnderWay) -> None:
        view, errors, receiver = under_way.view, under_way.errors, self._receiver
        for place, error in errors.items():
            receiver.failed(place, error)
        good = receiver.check(view, [place for place in view.job.places if place not in errors])
        if good and not self._write:
            self._staging.to_device(view, good, lambda: receiver.landed(view.job, good))
        else:
            self._staging.give_back(view)
        receiver.begun(view.job)


class _Staging:
    """Host memory for jobs whose blocks are on a device, and the copies that read it; nothing for others."""

    def __init__(self, cache: PageCache, copies: Copies, *, by_layer: bool) -> None:
        layout = cache.layout
        shape = (STAGING, GROUP, layout.layer_stride) if by_layer else (STAGING, layout.record_bytes)
        self._cache = cache
        self._copies = copies
        self._free: list[int] = []
        self._memory: torch.Tensor | None = None
        self._moving: deque[tuple[Done, View, Callable[[], None]]] = deque()  # in the order of the stream
        if cache.staged:
            self._memory = staging_memory(cache.device, torch.Size(shape).numel()).view(shape)
            self._free = list(range(STAGING))

    def view(self, job: Job) -> View | None:
        """None while every slot is taken."""
        if self._memory is None:
            return View(self._cache, job, None, None)
        if not self._free:
            return None
        slot = self._free.pop()
        return View(self._cache, job, slot, self._memory[slot])

    def from_device(self, view: View) -> None:
        """Bring a block's bytes into its slot, and wait for them."""
        if (record := view.memory) is not None:
            self._copies.begin(lambda: self._cache.get(view.job.blocks[0], record))(True)

    def to_device(self, view: View, places: list[int], landed: Callable[[], None]) -> None:
        """Begin a slot's copy; `end_copies` gives the slot back. Other jobs are where they belong already."""
        job, memory = view.job, view.memory
        if memory is None:
            landed()
            return

        def copy() -> None:
            if job.layer is None:
                self._cache.put(job.blocks[0], memory)
            else:
                rows = {job.blocks[row]: row for row, place in enumerate(job.places) if place in places}
                self._cache.put_layer(job.layer, rows, memory)

        self._moving.append((self._copies.begin(copy), view, landed))

    def end_copies(self, at_least: int = 0) -> int:
        """Give back the slots of copies that have ended, waiting for some if there are any; how many."""
        ended = 0
        while self._moving and self._moving[0][0](ended < at_least):
            _, view, landed = self._moving.popleft()
            self.give_back(view)
            landed()
            ended += 1
        return ended

    def give_back(self, view: View) -> None:
        if view.slot is not None:
            self._free.append(view.slot)


__all__ = ["GROUP", "STAGING", "Job", "Mover", "Receiver", "View"]
