"""Loads by layers: a layer of all pages is there before later ones are read, and errors and cancellation end them."""

import errno
import threading
from concurrent.futures import CancelledError

import pytest
import torch

from luciola.client.local import LocalFileSystem
from luciola.client.ring import Completion
from luciola.errors import CorruptData, NoSpace, NotFound
from luciola.plugins.flashmla import PageCache, PagedKVFile, PageLayout
from luciola.plugins.flashmla.mover import GROUP, STAGING
from page_cases import DiskRing, LateCopies, fill, same

LAYOUT = PageLayout(layers=4, page_tokens=4)
PAGES = GROUP + 3
TOKENS = list(range(4 * PAGES))


class HeldRing(DiskRing):
    """Reads of layers from `hold_from` on do not end; `failing` are (slot, layer) whose reads fail.

    It has room for a layer of all pages, so that a mover waits for held ones before it begins the second layer behind.
    """

    def __init__(self, disk):
        super().__init__()
        self._disk = disk
        self._held = []

    @property
    def in_flight(self):
        return len(self._done) + len(self._held)

    def submit(self, operations):
        taken = list(operations)[: PAGES - self.in_flight]
        with self._disk.changed:
            for each in taken:
                number = each.offset - self._disk.records_offset
                slot, at = divmod(number, LAYOUT.record_bytes)
                layer = at // LAYOUT.layer_stride
                self._disk.read.append((slot, layer))
                self._disk.changed.notify_all()
                if (slot, layer) in self._disk.failing:
                    self._done.append(Completion(each.user_data, -5))
                elif layer >= self._disk.hold_from and not each.write:
                    self._held.append(each)
                else:
                    super().submit([each])
        return len(taken)

    def drain(self, most=None, *, least=0, timeout_s=None):
        with self._disk.changed:
            assert self.in_flight or not least, "nothing is in flight that could end"
            if least and not self._done:
                assert self._disk.changed.wait_for(lambda: self._disk.hold_from >= LAYOUT.layers, 60)
            if self._disk.hold_from >= LAYOUT.layers:
                held, self._held = self._held, []
                super().submit(held)
            return super().drain()


class HeldFileSystem(LocalFileSystem):
    def __init__(self):
        super().__init__()
        self.changed = threading.Condition()
        self.hold_from = LAYOUT.layers
        self.failing = set()
        self.read = []
        self.records_offset = 0

    def ring(self, entries=128):
        return HeldRing(self)

    def release(self):
        with self.changed:
            self.hold_from = LAYOUT.layers
            self.changed.notify_all()


@pytest.fixture
def saved(tmp_path):
    """A file with pages, the cache that they come from, and the path."""
    path = str(tmp_path / "chat.pages")
    cache = PageCache.allocate(LAYOUT, PAGES)
    fill(cache, 1)
    with PagedKVFile.create(path, LAYOUT, PAGES, model="m") as file:
        file.save(file.names(TOKENS), range(PAGES), cache).wait()
    return path, cache


@pytest.fixture
def held(saved):
    """The file on a disk whose reads can be held and fail."""
    path, cache = saved
    disk = HeldFileSystem()
    with PagedKVFile(disk, path, disk.open(path, "rb"), writable=False) as file:
        disk.records_offset = file.header.records_offset
        yield file, disk, cache
        disk.release()


def same_layer(one, other, layer):
    return torch.equal(one.layers[layer].view(torch.uint8), other.layers[layer].view(torch.uint8))


def other_cache(*, staged, own_layers=False):
    other = PageCache.allocate(LAYOUT, PAGES)
    if own_layers:
        other = PageCache.over(
            LAYOUT, [each.clone(memory_format=torch.contiguous_format) for each in other.layers]
        )
    other.staged = staged
    return other


@pytest.mark.parametrize("own_layers", [False, True])
@pytest.mark.parametrize("staged", [False, True])
def test_every_bit_of_every_layer_comes_back(saved, staged, own_layers):
    path, cache = saved
    other = other_cache(staged=staged, own_layers=own_layers)
    with PagedKVFile.open(path, model="m") as file:
        transfer = file.load_layers(file.match(TOKENS), range(PAGES), other)
        for layer in range(LAYOUT.layers):
            assert transfer.wait_for_layer(layer)
            assert same_layer(cache, other, layer)
        assert transfer.wait()
    assert all(same(cache, block, other, block) for block in range(PAGES))


@pytest.mark.parametrize("staged", [False, True])
def test_a_layer_is_there_while_the_next_is_still_being_read(held, monkeypatch, staged):
    """With copies that come as late as may be: the wait itself must order them."""
    file, disk, cache = held
    disk.hold_from = 1
    other = other_cache(staged=staged)
    copies = LateCopies()
    monkeypatch.setattr(other, "copies", lambda: copies)
    transfer = file.load_layers(file.match(TOKENS), range(PAGES), other)
    assert transfer.wait_for_layer(0, timeout_s=100)
    assert same_layer(cache, other, 0)
    assert not transfer.wait_for_layer(1, timeout_s=0)
    assert not same_layer(cache, other, 1)
    assert not transfer.wait_for(0, timeout_s=0), "a page has landed when all its layers have"
    disk.release()
    assert transfer.wait_for_layer(2, timeout_s=100)
    assert same_layer(cache, other, 2)
    transfer.wait()
    assert not copies.waiting


def test_layers_are_read_in_their_order(held):
    file, disk, _ = held
    file.load_layers(file.match(TOKENS), range(PAGES), other_cache(staged=True)).wait()
    assert [layer for _, layer in disk.read] == [
        layer for layer in range(LAYOUT.layers) for _ in range(PAGES)
    ]


def test_more_layers_than_staging_slots_come_back(tmp_path):
    layout = PageLayout(layers=STAGING + 3, page_tokens=1)
    cache, other = PageCache.allocate(layout, 2), PageCache.allocate(layout, 2)
    fill(cache, 2)
    other.staged = True
    with PagedKVFile.create(str(tmp_path / "many.pages"), layout, 2, model="m") as file:
        file.save(file.names([1, 2]), range(2), cache).wait()
        file.load_layers(file.match([1, 2]), range(2), other).wait()
    assert all(same(cache, block, other, block) for block in range(2))


@pytest.mark.parametrize("staged", [False, True])
def test_damage_in_one_layer_is_raised_by_the_wait_and_costs_that_page_alone(saved, staged):
    path, cache = saved
    with PagedKVFile.open(path) as file:
        offset = file.header.record_offset(2) + LAYOUT.layer_stride + 5
    with open(path, "r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 1]))
    other = other_cache(staged=staged)
    with PagedKVFile.open(path) as file:
        transfer = file.load_layers(file.match(TOKENS), range(PAGES), other)
        assert set(transfer.errors()) == {2}
        for layer in range(LAYOUT.layers):
            with pytest.raises(CorruptData, match=r"page 2, layer 1: .*chat\.pages"):
                transfer.wait_for_layer(layer)
    assert all(same(cache, block, other, block) for block in range(PAGES) if block != 2)


def test_a_read_that_fails_ends_its_page_and_later_layers_of_it_are_not_read(held):
    file, disk, _ = held
    disk.failing = {(4, 0)}
    transfer = file.load_layers(file.match(TOKENS), range(PAGES), other_cache(staged=False))
    with pytest.raises(OSError, match="Input/output error"):
        transfer.wait()
    assert set(transfer.errors()) == {4}
    assert (4, 2) not in disk.read
    assert disk.read.count((5, 2)) == 1


def test_a_damaged_page_whose_entry_cannot_be_read_costs_no_other(held, monkeypatch):
    file, disk, _ = held
    with open(file.path, "r+b") as raw:
        raw.seek(disk.records_offset)
        raw.write(b"x" * 64)
    pages = file.match(TOKENS)
    other = other_cache(staged=False)

    def fail(size, offset):
        raise OSError(errno.EIO, "the disk")

    monkeypatch.setattr(file._file, "pread", fail)
    transfer = file.load(pages, range(PAGES), other)
    assert {place: error.errno for place, error in transfer.errors().items()} == {
        place: errno.EIO for place, page in enumerate(pages) if page.slot == 0
    }
    assert transfer._landed == [page.slot != 0 for page in pages]


@pytest.mark.parametrize("work", ["verify", "wait", "wait_for", "wait_for_layer"])
def test_a_transfer_that_cannot_begin_is_an_error_of_every_page(held, monkeypatch, work):
    file, disk, _ = held

    def fail(entries=128):
        raise OSError(errno.EMFILE, "no descriptors are left")

    monkeypatch.setattr(disk, "ring", fail)
    load = {"wait_for_layer": file.load_layers}.get(work, file.load)
    with pytest.raises(OSError, match="no descriptors"):
        if work == "verify":
            list(file.verify())
        else:
            transfer = load(file.match(TOKENS), range(PAGES), other_cache(staged=False))
            {"wait": transfer.wait, "wait_for": lambda: transfer.wait_for(PAGES - 1)}.get(
                work, lambda: transfer.wait_for_layer(0)
            )()


def test_an_evicted_page_is_not_found(saved, tmp_path):
    path, cache = saved
    with PagedKVFile.open(path) as reader, PagedKVFile.open(path, writable=True) as writer:
        stale = reader.match(TOKENS)
        writer.save(writer.names([99] * 4), [0], cache).wait()
        transfer = reader.load_layers(stale, range(PAGES), other_cache(staged=False))
        with pytest.raises(NotFound, match="has been evicted"):
            transfer.wait()


@pytest.mark.parametrize("staged", [False, True])
def test_a_cancelled_load_reads_no_further_layer_and_frees_its_blocks(held, staged):
    file, disk, _ = held
    disk.hold_from = 1
    transfer = file.load_layers(file.match(TOKENS), range(PAGES), other_cache(staged=staged))
    assert transfer.wait_for_layer(0, timeout_s=100)
    transfer.cancel()
    disk.release()
    with pytest.raises(CancelledError, match="was cancelled"):
        transfer.wait_for_layer(2)
    errors = transfer.errors()
    assert transfer.done
    assert set(errors) == set(range(PAGES))
    assert all(isinstance(each, CancelledError) for each in errors.values())
    assert not [each for each in disk.read if each[1] == 3], (
        "at most the job that waited for the ring has begun"
    )
    assert not +file._pinned, "its pages may be evicted again"


def test_a_cancelled_load_gives_back_every_staging_slot(tmp_path):
    """More pages than slots: the last ones would wait indefinitely for one that a page which never began has kept."""
    pages = 2 * STAGING + 1
    cache, other = PageCache.allocate(LAYOUT, pages), PageCache.allocate(LAYOUT, pages)
    other.staged = True
    path, tokens = str(tmp_path / "many.pages"), list(range(4 * pages))
    with PagedKVFile.create(path, LAYOUT, pages, model="m") as file:
        file.save(file.names(tokens), range(pages), cache).wait()
    disk = HeldFileSystem()
    with PagedKVFile(disk, path, disk.open(path, "rb"), writable=False) as file:
        with disk.changed:  # reads wait meanwhile
            transfer = file.load(file.match(tokens), range(pages), other)
            transfer.cancel()
        errors = transfer.errors()
    assert transfer._failure is None, "the transfer ended by itself"
    assert len(errors) >= pages - 1
    assert all(isinstance(each, CancelledError) for each in errors.values())


def test_a_page_that_is_being_loaded_is_not_evicted(held):
    """The file is full: a save that evicted one of the pages would fill its slot with other bytes."""
    file, disk, cache = held
    other = other_cache(staged=False)
    with PagedKVFile.open(file.path, writable=True) as writer:
        writer._file_system = disk
        disk.hold_from = 0
        transfer = writer.load(writer.match(TOKENS), range(PAGES), other)
        try:
            with disk.changed:
                assert disk.changed.wait_for(lambda: disk.read, 60)
            errors = writer.save(writer.names([99] * 4), [0], cache).errors()
        finally:
            disk.release()
        assert isinstance(errors.get(0), NoSpace)
        transfer.wait()
        writer.save(writer.names([99] * 4), [0], cache).wait()
        assert len(writer.match([99] * 4)) == 1
    assert all(same(cache, block, other, block) for block in range(PAGES))


def test_a_cancelled_save_leaves_no_page_and_the_file_usable(tmp_path, monkeypatch):
    cache = PageCache.allocate(LAYOUT, 2)
    fill(cache, 3)
    with PagedKVFile.create(str(tmp_path / "new.pages"), LAYOUT, 2, model="m") as file:
        with file._saving:  # so that it has not begun when it is cancelled
            transfer = file.save(file.names([1] * 8), [0, 1], cache)
            transfer.cancel()
        with pytest.raises(CancelledError):
            transfer.wait()
        assert len(file) == 0
        file.save(file.names([1] * 8), [0, 1], cache).wait()
        assert len(file) == 2


def test_no_pages_make_every_layer_ready(held):
    file, _, _ = held
    transfer = file.load_layers([], [], other_cache(staged=False))
    assert transfer.wait()
    assert all(transfer.wait_for_layer(layer) for layer in range(LAYOUT.layers))
