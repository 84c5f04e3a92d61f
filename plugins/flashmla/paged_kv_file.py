"""`PagedKVFile`: pages of a KV cache in one file of bounded size, on a cluster or on this machine.

    file = PagedKVFile.create("lu:/kv/chat", PageLayout(layers=61), capacity=10_000, model="v3 2026-01")
    cache = PageCache.allocate(file.layout, blocks=512)
    pages = file.match(tokens)                                     # the longest known beginning
    file.load(pages, range(len(pages)), cache).wait()
    ...
    file.save(file.names(tokens), blocks, cache).wait()            # durable, found again after a restart

One process writes, many read. When the file is full, the pages go that were used longest ago, later ones of a text
before earlier ones. What a page is, on disk: `page_format`; how it moves: `transfer`; how it is found: `prefix`.

    P1  a page that `match` returns is whole, or its load says CorruptData (with file and page) or NotFound (it was
        evicted meanwhile); it never loads other bytes silently
    P2  after a crash at any point every page that a finished save had is there, and of others all or nothing
"""

import contextlib
import fcntl
import os
import socket
import threading
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from luciola_core import crc32c

from ...client import open_location, replacing
from ...client.local import LocalFileSystem
from ...client.location import AnyFileSystem, Location
from ...closing import Closing
from ...errors import AlreadyExists, Busy, CorruptData, InvalidArgument, NoSpace, NotFound
from .mover import GROUP, Job, Mover, View
from .page_cache import PageCache
from .page_format import (
    BLOCK_BYTES,
    Entry,
    Header,
    PageLayout,
    PageName,
    decode_entry,
    decode_header,
    encode_entry,
    encode_header,
    fingerprint,
)
from .prefix import PrefixIndex, page_names
from .transfer import LayerTransfer, Transfer

WRITER_SUFFIX: Final = ".writer"  # beside a file on a cluster, while a process writes it
SCRUB_BLOCKS: Final = 8  # pages in memory while a file is verified

_SomeTransfer = TypeVar("_SomeTransfer", bound=Transfer)
_Path = str | os.PathLike[str]


@dataclass(frozen=True)
class Page:
    """A page of the file, as it was when it was found."""

    slot: int
    entry: Entry

    @property
    def name(self) -> PageName:
        entry = self.entry  # which is a name and more, so it equals none
        return PageName(entry.key, entry.parent, entry.depth, entry.tokens)


@dataclass(frozen=True)
class Damage:
    """A page whose bytes do not match their checksum."""

    slot: int
    layer: int
    key: bytes


class PagedKVFile(Closing):
    """An open file of pages. `match`, `load` and `save` may be called by several threads."""

    def __init__(self, file_system: AnyFileSystem, path: str, file: Any, *, writable: bool) -> None:
        self.path = path
        self.writable = writable
        self._file_system = file_system
        self._file = file
        block = file.pread(BLOCK_BYTES, 0)
        self.header: Header = decode_header(block, path)
        if file.stat().st_size < self.header.file_bytes:
            raise CorruptData(
                f"the file has {file.stat().st_size} bytes of {self.header.file_bytes}: it was cut, remove it",
                path=path,
            )
        self._lock = threading.Lock()  # of what follows
        self._saving = threading.Lock()  # one save at a time
        self._transfers: list[Transfer] = []
        self._pinned: Counter[int] = Counter()
        self._read_table()

    @classmethod
    def create(  # noqa: PLR0913 (what it is, and in whose name)
        cls,
        location: _Path | Location,
        layout: PageLayout,
        capacity: int,
        *,
        model: str,
        secret_file: _Path | None = None,
        token: str | None = None,
        token_file: _Path | None = None,
    ) -> "PagedKVFile":
        """Make a file for `capacity` pages, open for writing. It is sparse until pages are saved.

        `model`: a name for the weights and their revision; pages are found only by those who open with the same.
        Raises: AlreadyExists; InvalidArgument; OSError.
        """
        header = Header(layout, capacity, fingerprint(model, layout))
        file_system, path = open_location(
            location, secret_file=secret_file, token=token, token_file=token_file
        )
        if file_system.exists(path):
            raise AlreadyExists("a file of that name exists: open it, or remove it first", path=path)
        with replacing(file_system, path) as new:
            new.write(encode_header(header))
            new.truncate(header.file_bytes)
        return cls.open(
            location, model=model, writable=True, secret_file=secret_file, token=token, token_file=token_file
        )

    @classmethod
    def open(  # noqa: PLR0913 (what it is, and in whose name)
        cls,
        location: _Path | Location,
        *,
        model: str | None = None,
        writable: bool = False,
        take_over: bool = False,
        secret_file: _Path | None = None,
        token: str | None = None,
        token_file: _Path | None = None,
    ) -> "PagedKVFile":
        """Open a file. With `model` it must be of that model and revision.

        `take_over`: on a cluster, write though the last writer left its mark; only when it has surely ended.
        Raises: NotFound; InvalidArgument for another model or kind of file; Busy if it has a writer; CorruptData.
        """
        file_system, path = open_location(
            location, secret_file=secret_file, token=token, token_file=token_file
        )
        file: Any = file_system.open(path, "r+b" if writable else "rb", direct=True)
        with contextlib.ExitStack() as undo:
            undo.callback(file.close)
            if writable:
                _claim(file_system, path, file, take_over=take_over)
                undo.callback(_release, file_system, path)
            opened = cls(file_system, path, file, writable=writable)
            if model is not None and fingerprint(model, opened.layout) != opened.header.model:
                raise InvalidArgument(f"these pages are of another model than {model!r}", path=path)
            undo.pop_all()
        return opened

    @property
    def layout(self) -> PageLayout:
        return self.header.layout

    @property
    def capacity(self) -> int:
        return self.header.capacity

    def __len__(self) -> int:
        """Return how many pages there are."""
        with self._lock:
            return len(self._index)

    def names(self, tokens: Sequence[int]) -> list[PageName]:
        """Name the pages of a text; the last may not be full."""
        return page_names(tokens, self.layout.page_tokens, self.header.model)

    def match(self, tokens: Sequence[int]) -> list[Page]:
        """Find the pages of the longest beginning of a text that is there. The last one may hold fewer tokens."""
        with self._lock:
            slots = [self._index.slot(name.key) for name in self._index.longest(tokens)]
            return [Page(slot, self._entry(slot)) for slot in slots]

    def pages(self) -> list[Page]:
        """List all pages, by slot."""
        with self._lock:
            return [Page(slot, entry) for slot, entry in enumerate(self._entries) if entry is not None]

    def refresh(self) -> None:
        """Read what the writer has saved and evicted since. For readers; a writer knows."""
        if not self.writable:
            with self._lock:
                self._read_table()

    def load(self, pages: Sequence[Page], blocks: Sequence[int], cache: PageCache) -> Transfer:
        """Read pages into blocks of the cache, in a thread; each is verified before it counts as landed.

        A page that was evicted meanwhile fails with NotFound, a damaged one with CorruptData; the others land.
        """
        return self._load(Transfer(len(pages)), pages, blocks, cache)

    def load_layers(self, pages: Sequence[Page], blocks: Sequence[int], cache: PageCache) -> LayerTransfer:
        """Load layer by layer: the first layer of all pages is there first (`wait_for_layer`).

        For a model that computes while later layers are being read. A read for each layer of each page, so `load` is
        faster for all of them together. Damage in a late layer is found when earlier ones may have been used.
        """
        return self._load(LayerTransfer(len(pages), self.layout.layers), pages, blocks, cache)

    def save(self, names: Sequence[PageName], blocks: Sequence[int], cache: PageCache) -> Transfer:
        """Write blocks of the cache as the pages of those names, in a thread; a page has landed when it is durable.

        Pages that are there already are not written again. If the file is too small for all of them, later ones
        fail with NoSpace. Raises: InvalidArgument for a file that is open for reading.
        """
        if not self.writable:
            raise InvalidArgument("the file is open for reading: open it with writable=True", path=self.path)
        self._check(cache, blocks, len(names))
        transfer = Transfer(len(names))
        saving = _Saving(self, transfer, names, cache)
        self._start(transfer, lambda: self._save(saving, blocks))
        return transfer

    def verify(self) -> Iterator[Damage]:
        """Read every page and compare it with its checksums."""
        cache = PageCache.allocate(self.layout, min(SCRUB_BLOCKS, self.capacity))
        pages = self.pages()
        for begin in range(0, len(pages), cache.blocks):
            batch = pages[begin : begin + cache.blocks]
            for place, error in sorted(self.load(batch, range(len(batch)), cache).errors().items()):
                if isinstance(error, NotFound):
                    continue
                if not isinstance(error, CorruptData):
                    raise error
                page = batch[place]
                yield Damage(page.slot, int(error.fields.get("layer", 0)), page.name.key)

    def close(self) -> None:
        """Wait for transfers in progress, and close the file."""
        with self._lock:
            transfers, self._transfers = self._transfers, []
        for transfer in transfers:
            transfer.errors()
        if not self._file.closed:
            if self.writable:
                self._write_clocks()
                _release(self._file_system, self.path)
            self._file.close()

    # Loading.

    def _load(
        self, transfer: _SomeTransfer, pages: Sequence[Page], blocks: Sequence[int], cache: PageCache
    ) -> _SomeTransfer:
        self._check(cache, blocks, len(pages))
        loading = _Loading(self, transfer, pages, cache)
        slots = [page.slot for page in pages]
        with self._lock:
            self._pinned.update(slots)
            self._touch(slots)

        def work() -> None:
            try:
                loading.run(loading.jobs(blocks))
            finally:
                with self._lock:
                    self._pinned.subtract(slots)

        self._start(transfer, work)
        return transfer

    def reason(self, page: Page, layer: int) -> OSError:
        """Return why a page's bytes are not those that were expected."""
        size = self.layout.entry_bytes
        now = decode_entry(self._file.pread(size, self.header.entry_offset(page.slot)), self.layout)
        if now != page.entry:
            return NotFound(f"page {page.slot} has been evicted", path=self.path)
        message = f"page {page.slot}, layer {layer}: the bytes do not match their checksum"
        return CorruptData(message, path=self.path, page=page.slot, layer=layer)

    # Saving.

    def _save(self, saving: "_Saving", blocks: Sequence[int]) -> None:
        transfer, names = saving.transfer, saving.names
        with self._saving:
            slots = self._allot(transfer, names)
            try:
                saving.generation = self._generation
                saving.run(
                    Job((place,), (blocks[place],), (self.header.record_offset(slot),))
                    for place, slot in slots.items()
                )
                self._generation += len(saving.entries)
                self._sync(saving.entries)  # the records
                for place, entry in saving.entries.items():
                    data = encode_entry(entry, self.layout)
                    self._file.pwrite(data, self.header.entry_offset(slots[place]))
                self._sync(saving.entries)
            except BaseException:
                with self._lock:
                    self._stale.update(slots.values())
                raise
            with self._lock:
                for place, entry in saving.entries.items():
                    slot = slots.pop(place)
                    self._entries[slot] = entry
                    self._index.add(names[place], slot)
                self._stale.update(slots.values())  # those whose record could not be written
            for place in saving.entries:
                transfer.land(place)
            self._write_clocks()

    def _sync(self, changed: Collection[int]) -> None:
        if changed:
            self._file.fsync(data_only=True)

    def _allot(self, transfer: Transfer, names: Sequence[PageName]) -> dict[int, int]:
        """Allot a slot to each page that is not there, its old entry gone from the disk (F3); by place."""
        with self._lock:
            present = {place for place, name in enumerate(names) if name.key in self._index}
            # Keys that come twice are written once.
            wanted = {name.key: place for place, name in reversed(list(enumerate(names)))}
            places = sorted(set(wanted.values()) - present, key=lambda place: names[place].depth)
            kept = {self._index.slot(names[place].key) for place in present}
            self._touch(sorted(kept))
            chosen, stale = self._choose(len(places), kept)
            slots = dict(zip(places, chosen, strict=False))
            self._touch(list(slots.values()))
        empty = bytes(self.layout.entry_bytes)
        for slot in stale:
            self._file.pwrite(empty, self.header.entry_offset(slot))
        self._sync(stale)
        with self._lock:
            self._stale.difference_update(stale)
        for place in places[len(chosen) :]:
            transfer.fail(place, NoSpace(f"all {self.capacity} pages of the file are in use", path=self.path))
        written = {names[place].key for place in slots}
        for place in range(len(names)):
            if place in present or (place not in slots and names[place].key in written):
                transfer.land(place)
        return slots

    def _choose(self, count: int, kept: set[int]) -> tuple[list[int], list[int]]:
        """Choose up to `count` slots to write, and those of them whose entry on the disk must go first."""
        free = [slot for slot, entry in enumerate(self._entries) if entry is None]
        used = (
            (self._clocks[slot], -entry.depth, slot)
            for slot, entry in enumerate(self._entries)
            if entry is not None and slot not in kept and self._pinned[slot] <= 0
        )
        missing = count - len(free)
        victims = [slot for *_, slot in sorted(used)[:missing]] if missing > 0 else []
        chosen = (free + victims)[:count]
        for slot in victims:
            self._index.remove(self._entry(slot).key)
            self._entries[slot] = None
        self._stale.update(victims)
        return chosen, [slot for slot in chosen if slot in self._stale]

    # The table.

    def _read_table(self) -> None:
        header, layout = self.header, self.layout
        self._clocks = array("Q", self._file.pread(8 * header.capacity, header.clocks_offset))
        size = layout.entry_bytes
        table = memoryview(self._file.pread(size * header.capacity, header.entries_offset))
        self._entries: list[Entry | None] = [
            decode_entry(table[at : at + size], layout) if table[at] else None
            for at in range(0, len(table), size)
        ]
        # A slot that looks free but holds torn bytes is cleaned before it is used.
        empty = bytes(size)
        self._stale = {
            slot
            for slot, entry in enumerate(self._entries)
            if entry is None and table[slot * size : (slot + 1) * size] != empty
        }
        self._index = PrefixIndex(layout.page_tokens, header.model)
        self._generation = 1 + max((each.generation for each in self._entries if each is not None), default=0)
        self._clock = 1 + max(self._clocks, default=0)
        for entry, slot in sorted(
            ((each, slot) for slot, each in enumerate(self._entries) if each is not None),
            key=lambda pair: -pair[0].generation,
        ):
            if entry.key in self._index:  # an older copy, of two writers at one time
                self._entries[slot] = None
                self._stale.add(slot)
            else:
                self._index.add(entry, slot)

    def _entry(self, slot: int) -> Entry:
        entry = self._entries[slot]
        assert entry is not None, "the index and victims name used slots"
        return entry

    def _touch(self, slots: Sequence[int]) -> None:
        for slot in slots:
            self._clocks[slot] = self._clock
        self._clock += 1

    def _write_clocks(self) -> None:
        """Write times of use, without waiting for the disk: after a crash, older times of use do no harm."""
        with self._lock:
            data = self._clocks.tobytes()
        self._file.pwrite(data, self.header.clocks_offset)

    def _start(self, transfer: Transfer, work: Callable[[], None]) -> None:
        with self._lock:
            self._transfers = [each for each in self._transfers if not each.done]
            self._transfers.append(transfer)
        transfer.start(work)

    def _check(self, cache: PageCache, blocks: Sequence[int], count: int) -> None:
        if self._file.closed:
            raise InvalidArgument("the file is closed", path=self.path)
        if cache.layout != self.layout:
            raise InvalidArgument(f"the cache has {cache.layout}; the file has {self.layout}", path=self.path)
        if len(blocks) != count:
            raise InvalidArgument(f"there are {count} pages and {len(blocks)} blocks: pass one for each")
        bad = [block for block in blocks if not 0 <= block < cache.blocks]
        if bad or len(set(blocks)) != len(blocks):
            raise InvalidArgument(
                f"blocks are {list(blocks)}; they must differ and be 0 to {cache.blocks - 1}"
            )


class _Loading(Mover):
    """A load: pages, or layers of pages, that are verified as they arrive."""

    def __init__(
        self, file: PagedKVFile, transfer: Transfer, pages: Sequence[Page], cache: PageCache
    ) -> None:
        by_layer = isinstance(transfer, LayerTransfer)
        super().__init__(transfer, file._file_system, file._file, cache, by_layer=by_layer)  # noqa: SLF001
        self._kv_file = file
        self._pages = pages
        self._layers_left = Counter[int]()  # of each page, in a load by layers
        self._jobs_left = Counter[int]()  # of each layer

    def jobs(self, blocks: Sequence[int]) -> Iterator[Job]:
        """Yield a job for each page, or by layers: all jobs of a layer before those of the next.

        A page that has failed is left out of later layers.
        """
        begins = [self._kv_file.header.record_offset(page.slot) for page in self._pages]
        if not isinstance(self.transfer, LayerTransfer):
            for place, begin in enumerate(begins):
                yield Job((place,), (blocks[place],), (begin,))
            return
        layout = self._kv_file.layout
        self._layers_left.update(dict.fromkeys(range(len(self._pages)), layout.layers))
        for layer in range(layout.layers):
            places = [place for place in range(len(self._pages)) if not self.transfer.has_failed(place)]
            groups = [tuple(places[at : at + GROUP]) for at in range(0, len(places), GROUP)]
            self._jobs_left[layer] = len(groups)
            for group in groups:
                offsets = tuple(begins[place] + layer * layout.layer_stride for place in group)
                yield Job(group, tuple(blocks[place] for place in group), offsets, layer)

    def check(self, view: View, places: list[int]) -> list[int]:
        bad: dict[int, int] = {}
        for place, layer, memory in view.layers():
            wanted = self._pages[place].entry.checksums[layer]
            if place in places and place not in bad and crc32c(memory) != wanted:
                bad[place] = layer
        for place, layer in bad.items():
            try:
                error: BaseException = self._kv_file.reason(self._pages[place], layer)
            except OSError as unreadable:  # of its entry: that page is lost, not the others
                error = unreadable
            self.transfer.fail(place, error)
        return [place for place in places if place not in bad]

    def begun(self, job: Job) -> None:
        if job.layer is None:
            return
        self._jobs_left[job.layer] -= 1
        if self._jobs_left[job.layer] == 0:
            assert isinstance(self.transfer, LayerTransfer), "only its jobs have a layer"
            self.transfer.set_ready(job.layer, self.copies.mark())

    def landed(self, job: Job, places: list[int]) -> None:
        for place in places:
            self._layers_left[place] -= 1
            if job.layer is None or self._layers_left[place] == 0:
                self.transfer.land(place)


class _Saving(Mover):
    """A save: the entries of pages whose records are written. They land when those are durable."""

    def __init__(
        self, file: PagedKVFile, transfer: Transfer, names: Sequence[PageName], cache: PageCache
    ) -> None:
        super().__init__(transfer, file._file_system, file._file, cache, write=True)  # noqa: SLF001
        self.names = names
        self.generation = 0  # of the first entry
        self.entries: dict[int, Entry] = {}  # by place

    def check(self, view: View, places: list[int]) -> list[int]:
        for place in places:
            name, number = self.names[place], self.generation + len(self.entries)
            sums = tuple(crc32c(memory) for _, _, memory in view.layers())
            self.entries[place] = Entry(name.key, name.parent, name.depth, name.tokens, number, sums)
        return places


def _claim(file_system: AnyFileSystem, path: str, file: Any, *, take_over: bool) -> None:
    """Make this process the only writer. Raises: Busy."""
    if isinstance(file_system, LocalFileSystem):
        try:
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy("another process writes this file: open it for reading", path=path) from error
        return
    mark = path + WRITER_SUFFIX
    if take_over and file_system.exists(mark):
        file_system.remove(mark)
    try:
        with file_system.open(mark, "xb") as new:
            new.write(f"{socket.gethostname()} {os.getpid()}\n".encode())
    except FileExistsError as error:
        holder = file_system.read(mark).decode(errors="replace").strip()
        raise Busy(
            f"process {holder} writes this file: open it for reading, or with take_over=True if that has ended",
            path=path,
        ) from error


def _release(file_system: AnyFileSystem, path: str) -> None:
    if not isinstance(file_system, LocalFileSystem):
        file_system.remove(path + WRITER_SUFFIX)


__all__ = ["Damage", "Page", "PagedKVFile"]
