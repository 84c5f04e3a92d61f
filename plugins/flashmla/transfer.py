"""Pages on their way between a file and the cache, in a thread of its own, while decoding goes on with other pages.

    transfer = file.load(pages, blocks, cache)
    ...                                # decode with other blocks
    transfer.wait_for(0)               # the first page is there
    transfer.wait()                    # all are

The blocks of a transfer belong to it until it is done: nobody else may write them, and a load's may not be read.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Final

import torch

from ...client import Operation
from ...client.location import AnyFileSystem
from ...errors import CorruptData
from ..weights.transfer import submit_all
from .page_cache import Copies, Done, PageCache, staging_memory

ENTRIES: Final = 64  # operations in flight
STAGING: Final = 8  # pages of a cache on a device that are on their way through host memory


class Transfer:
    """The progress of some pages. `wait` and `wait_for` raise what went wrong with them."""

    def __init__(self, count: int) -> None:
        self._changed = threading.Condition()
        self._landed: list[bool] = [False] * count
        self._errors: dict[int, BaseException] = {}
        self._order: list[int] = []
        self._finished = False
        self._failure: BaseException | None = None

    def __len__(self) -> int:
        return len(self._landed)

    @property
    def done(self) -> bool:
        """Whether nothing is under way any more."""
        with self._changed:
            return self._finished

    def wait_for(self, place: int, timeout_s: float | None = None) -> bool:
        """Waits until the page at that place of the request has landed; False if that takes too long."""
        with self._changed:
            settled = self._changed.wait_for(lambda: self._is_settled(place), timeout_s)
            self._raise_for(place)
            return settled

    def wait(self, timeout_s: float | None = None) -> bool:
        """Waits for all pages; False if that takes too long. Raises: the error of the first page that has one."""
        with self._changed:
            settled = self._changed.wait_for(lambda: self._finished, timeout_s)
            for place in range(len(self._landed) if settled else 0):
                self._raise_for(place)
            if self._failure is not None:
                raise self._failure
            return settled

    def landing(self) -> Iterator[int]:
        """The places of pages as they land. Raises: as `wait`, at the end."""
        given = 0
        while fresh := self._landed_since(given):
            yield from fresh
            given += len(fresh)
        self.wait()

    def _landed_since(self, given: int) -> list[int]:
        """Waits for at least one more; empty at the end."""
        with self._changed:
            self._changed.wait_for(lambda: len(self._order) > given or self._finished)
            return self._order[given:]

    def errors(self) -> dict[int, BaseException]:
        """What went wrong, by place. Waits for the end."""
        with self._changed:
            self._changed.wait_for(lambda: self._finished)
            return dict(self._errors)

    def start(self, work: Callable[["Transfer"], None]) -> "Transfer":
        """Carries out `work` in a thread."""

        def run() -> None:
            failure: BaseException | None = None
            try:
                work(self)
            except BaseException as error:  # noqa: BLE001 (told to whoever waits)
                failure = error
            with self._changed:
                self._failure, self._finished = failure, True
                self._changed.notify_all()

        threading.Thread(target=run, name="luciola-kv-pages", daemon=True).start()
        return self

    def land(self, place: int) -> None:
        with self._changed:
            self._landed[place] = True
            self._order.append(place)
            self._changed.notify_all()

    def fail(self, place: int, error: BaseException) -> None:
        with self._changed:
            self._errors[place] = error
            self._changed.notify_all()

    def _is_settled(self, place: int) -> bool:
        return self._landed[place] or place in self._errors or self._finished

    def _raise_for(self, place: int) -> None:
        if (error := self._errors.get(place)) is not None:
            raise error
        if self._finished and not self._landed[place] and self._failure is not None:
            raise self._failure


class Mover:
    """Moves whole records between a file and a cache, many operations in flight. For one `run`."""

    def __init__(  # noqa: PLR0913 (from where, to where, and who is told)
        self,
        file_system: AnyFileSystem,
        file: Any,
        cache: PageCache,
        copies: Copies,
        *,
        write: bool,
        then: Callable[[int, "View"], bool],
        landed: Callable[[int], None],
        failed: Callable[[int, OSError], None],
    ) -> None:
        """`then(place, view)` is called for each page whose bytes are in host memory, and says whether they are right;
        `landed(place)` when those are in the cache, `failed(place, error)` for each page that has not moved.
        """
        self._file_system = file_system
        self._file = file
        self._write = write
        self._then = then
        self._landed = landed
        self._failed = failed
        self._staging = _Staging(cache, copies)
        self._waiting: list[Operation] = []
        self._left: dict[int, int] = {}  # operations of each page that is under way
        self._errors: dict[int, OSError] = {}
        self._views: dict[int, View] = {}

    def run(self, jobs: Iterable[tuple[int, int, int]]) -> None:
        """Jobs are (place, block, offset in the file). Returns when nothing is under way."""
        try:
            with self._file_system.ring(ENTRIES) as ring:
                for place, block, offset in jobs:
                    while (view := self._staging.view(block)) is None:
                        if not self._staging.end_copies(at_least=1):
                            self._settle(ring, least=1)
                    if self._write:
                        self._staging.from_device(view)
                    self._views[place] = view
                    self._left[place] = len(view.parts)
                    self._waiting += [
                        Operation(
                            self._file,
                            offset + at,
                            memory,
                            write=self._write,
                            user_data=(place, memory.nbytes),
                        )
                        for at, memory in view.parts
                    ]
                    submit_all(ring, self._waiting, lambda least: self._settle(ring, least=least))
                    self._staging.end_copies()
                while ring.in_flight:
                    self._settle(ring, least=1)
        finally:  # no copy may read staging memory that is given back
            self._staging.end_copies(at_least=STAGING)

    def _settle(self, ring: Any, *, least: int) -> None:
        for done in ring.drain(least=least):
            place, wanted = done.user_data
            try:
                if done.moved < wanted:
                    self._errors[place] = CorruptData(
                        "the file ends within a page", path=str(self._file.name)
                    )
            except OSError as error:
                self._errors[place] = error
            self._left[place] -= 1
            if self._left[place] == 0:
                self._finish(place)

    def _finish(self, place: int) -> None:
        view = self._views.pop(place)
        del self._left[place]
        if place in self._errors:
            self._failed(place, self._errors.pop(place))
        elif self._then(place, view) and not self._write:
            self._staging.to_device(view, lambda: self._landed(place))
            return
        self._staging.give_back(view)


class View:
    """One block's bytes in host memory: the cache's own, or those of a staging slot."""

    def __init__(self, cache: PageCache, block: int, slot: int | None, record: torch.Tensor | None) -> None:
        self.block = block
        self.slot = slot
        self.record = record
        self._layer_stride, self._layer_bytes = cache.layout.layer_stride, cache.layout.layer_bytes
        if record is None:
            self.parts = cache.parts(block)
        else:
            memory: Any = record.numpy()
            self.parts = [(0, memoryview(memory))]

    def layer(self, number: int) -> memoryview:
        """The bytes of one layer."""
        if len(self.parts) > 1:  # one a layer
            return self.parts[number][1]
        begin = number * self._layer_stride
        return self.parts[0][1][begin : begin + self._layer_bytes]


class _Staging:
    """Host memory for blocks that lie on a device, and the copies that read it; nothing for others."""

    def __init__(self, cache: PageCache, copies: Copies) -> None:
        record_bytes = cache.layout.record_bytes
        self._cache = cache
        self._copies = copies
        self._free: list[int] = []
        self._memory: torch.Tensor | None = None
        self._moving: deque[tuple[Done, View, Callable[[], None]]] = deque()  # in the order of the stream
        if cache.staged:
            self._memory = staging_memory(cache.device, STAGING * record_bytes).view(STAGING, record_bytes)
            self._free = list(range(STAGING))

    def view(self, block: int) -> View | None:
        """None while every slot is taken."""
        if self._memory is None:
            return View(self._cache, block, None, None)
        if not self._free:
            return None
        slot = self._free.pop()
        return View(self._cache, block, slot, self._memory[slot])

    def from_device(self, view: View) -> None:
        """Brings a block's bytes into its slot, and waits for them."""
        if (record := view.record) is not None:
            self._copies.begin(lambda: self._cache.get(view.block, record))(True)

    def to_device(self, view: View, landed: Callable[[], None]) -> None:
        """Begins a slot's copy; `end_copies` gives the slot back. Others are where they belong already."""
        record = view.record
        if record is None:
            landed()
        else:
            done = self._copies.begin(lambda: self._cache.put(view.block, record))
            self._moving.append((done, view, landed))

    def end_copies(self, at_least: int = 0) -> int:
        """Gives back the slots of copies that have ended, waiting for some if there are any; how many."""
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


__all__ = ["Mover", "Transfer", "View"]
