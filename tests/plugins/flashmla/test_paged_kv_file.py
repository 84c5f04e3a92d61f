"""Files of pages: round trips, eviction, damage, other processes, and power loss at any moment."""

import multiprocessing
import os
import random

import pytest
import torch

from luciola.client.local import LocalFileSystem
from luciola.client.ring import Completion
from luciola.errors import AlreadyExists, Busy, CorruptData, InvalidArgument, NoSpace, NotFound
from luciola.plugins.flashmla import PageCache, PagedKVFile, PageLayout
from luciola.plugins.flashmla.mover import STAGING
from luciola.plugins.flashmla.transfer import Transfer
from page_cases import SMALL, Disk, DiskFileSystem, DiskRing, LateCopies, ShortFileSystem, bits, fill, same


@pytest.fixture
def path(tmp_path):
    return str(tmp_path / "chat.pages")


@pytest.fixture
def file(path):
    with PagedKVFile.create(path, SMALL, 6, model="m") as file:
        yield file


@pytest.mark.parametrize("kind", ["bf16", "fp16", "fp8-v32", "fp8-model1"])
@pytest.mark.parametrize("layers", [1, 3])
def test_pages_come_back_bit_by_bit(path, kind, layers):
    layout = PageLayout(layers, kind)
    cache, other = PageCache.allocate(layout, 4), PageCache.allocate(layout, 4)
    fill(cache, layers)
    tokens = list(range(150))
    with PagedKVFile.create(path, layout, 5, model="m") as file:
        file.save(file.names(tokens), [2, 0, 3], cache).wait()
    with PagedKVFile.open(path, model="m") as file:
        pages = file.match([*tokens, 7, 8])
        assert [page.name.tokens for page in pages] == [64, 64, 22]
        assert [page.name for page in pages] == file.names(tokens), "found by the names they were saved under"
        transfer = file.load(pages, [1, 2, 0], other)
        assert transfer.wait()
        assert transfer.done
        assert list(file.verify()) == []
    assert all(same(cache, mine, other, its) for mine, its in ((2, 1), (0, 2), (3, 0)))
    assert not any(each.any() for each in bits(other, 3)), "a block that was not asked for stays as it was"


def test_caches_of_a_server_one_tensor_a_layer(file):
    layers = [torch.randn(9, 4, 1, 600).to(torch.bfloat16)[2:7, :, :, :576].contiguous() for _ in range(2)]
    cache, other = PageCache.over(SMALL, layers), PageCache.allocate(SMALL, 2)
    file.save(file.names([1, 2, 3, 4, 5]), [4, 0], cache).wait()
    file.load(file.match([1, 2, 3, 4, 5]), [0, 1], other).wait()
    assert same(cache, 4, other, 0)
    assert same(cache, 0, other, 1)


def test_bytes_that_pass_through_staging(path):
    """As for a cache on a GPU, more pages than staging slots."""
    pages = STAGING + 3
    cache, other = PageCache.allocate(SMALL, pages), PageCache.allocate(SMALL, pages)
    cache.staged = other.staged = True
    fill(cache, 1)
    tokens = list(range(4 * pages))
    with PagedKVFile.create(path, SMALL, pages, model="m") as file:
        assert file.save(file.names(tokens), range(pages), cache).wait(100)
        assert file.load(file.match(tokens), range(pages), other).wait(100)
    assert all(same(cache, block, other, block) for block in range(pages))


@pytest.mark.parametrize("own_layers", [False, True])
def test_copies_to_a_device_that_come_late_bring_the_right_bytes(path, monkeypatch, own_layers):
    """More pages than staging slots: a slot that was filled again before its copy ended would show."""
    pages = STAGING + 3
    cache, other = PageCache.allocate(SMALL, pages), PageCache.allocate(SMALL, pages)
    fill(cache, 1)
    tokens = list(range(4 * pages))
    if own_layers:
        other = PageCache.over(SMALL, [each.clone() for each in other.layers])
    other.staged = True
    copies = LateCopies()
    monkeypatch.setattr(other, "copies", lambda: copies)
    landed = []
    land = Transfer.land

    def land_after_its_copy(transfer, place):
        landed.append(same(cache, place, other, place))
        land(transfer, place)

    monkeypatch.setattr(Transfer, "land", land_after_its_copy)
    with PagedKVFile.create(path, SMALL, pages, model="m") as file:
        file.save(file.names(tokens), range(pages), cache).wait()
        landed.clear()
        file.load(file.match(tokens), range(pages), other).wait()
    assert landed == [True] * pages, "a page has landed when its copy has ended, not before"
    assert not copies.waiting


@pytest.mark.parametrize("own_layers", [False, True])
def test_save_from_a_device_writes_what_late_copies_bring(path, monkeypatch, own_layers):
    """A record that was written before its copy ended would hold what the staging slot held before."""
    pages = STAGING + 3
    cache, other = PageCache.allocate(SMALL, pages), PageCache.allocate(SMALL, pages)
    fill(cache, 1)
    if own_layers:
        cache = PageCache.over(SMALL, [each.clone() for each in cache.layers])
    cache.staged = True
    copies = LateCopies()
    monkeypatch.setattr(cache, "copies", lambda: copies)
    tokens = list(range(4 * pages))
    with PagedKVFile.create(path, SMALL, pages, model="m") as file:
        file.save(file.names(tokens), range(pages), cache).wait()
        file.load(file.match(tokens), range(pages), other).wait()
    assert all(same(cache, block, other, block) for block in range(pages))


def test_read_of_fewer_bytes_than_asked_fails_its_page_alone(path):
    cache, other = PageCache.allocate(SMALL, 3), PageCache.allocate(SMALL, 3)
    fill(cache, 1)
    with PagedKVFile.create(path, SMALL, 3, model="m") as file:
        file.save(file.names(range(12)), range(3), cache).wait()
        cut = file.header.record_offset(1)
    system = ShortFileSystem(lambda operation: operation.offset == cut)
    with PagedKVFile(system, path, system.open(path, "rb"), writable=False) as file:
        transfer = file.load(file.match(range(12)), range(3), other)
        errors = transfer.errors()
        assert set(errors) == {1}
        with pytest.raises(CorruptData, match=r"the file ends within a page: .*chat\.pages"):
            transfer.wait_for(1)
    assert same(cache, 0, other, 0)
    assert same(cache, 2, other, 2)


def test_write_of_fewer_bytes_than_asked_leaves_no_page(path):
    PagedKVFile.create(path, SMALL, 3, model="m").close()
    cache, names = PageCache.allocate(SMALL, 3), []
    system = ShortFileSystem(lambda operation: operation.write and operation.user_data[1] == 1)
    with PagedKVFile(system, path, system.open(path, "r+b"), writable=True) as file:
        names = file.names(range(12))
        transfer = file.save(names, range(3), cache)
        assert set(transfer.errors()) == {1}
        with pytest.raises(OSError, match=f"wrote {SMALL.record_bytes - 1} of {SMALL.record_bytes} bytes"):
            transfer.wait()
    with PagedKVFile.open(path) as file:
        assert {page.name.key for page in file.pages()} == {names[0].key, names[2].key}


def test_of_two_entries_of_one_page_that_of_the_later_save_counts(path):
    """As two writers at one time leave them: an older save's entry beside a newer one's, in a lower slot."""
    cache = PageCache.allocate(SMALL, 2)
    fill(cache, 1)
    with PagedKVFile.create(path, SMALL, 2, model="m") as file:
        file.save(file.names([1] * 4), [0], cache).wait()
        entry_offset, record_offset = file.header.entry_offset(0), file.header.record_offset(0)
        (older,) = file.match([1] * 4)
        with open(path, "rb") as raw:
            old_entry = os.pread(raw.fileno(), SMALL.entry_bytes, entry_offset)
            old_record = os.pread(raw.fileno(), SMALL.record_bytes, record_offset)
        file.save(file.names([2] * 8), [0, 1], cache).wait()  # evicts it
        file.save(file.names([3] * 4), [0], cache).wait()
        fill(cache, 2)
        file.save(file.names([1] * 4), [1], cache).wait()
        (newer,) = file.match([1] * 4)
        assert (older.slot, newer.slot) == (0, 1)
    with open(path, "r+b") as raw:
        os.pwrite(raw.fileno(), old_entry, entry_offset)
        os.pwrite(raw.fileno(), old_record, record_offset)
    other = PageCache.allocate(SMALL, 1)
    with PagedKVFile.open(path) as file:
        pages = file.match([1] * 4)
        assert [page.slot for page in pages] == [1]
        file.load(pages, [0], other).wait()
    assert same(cache, 1, other, 0)


def test_what_is_there_is_not_written_again(file):
    cache = PageCache.allocate(SMALL, 3)
    fill(cache, 1)
    file.save(file.names(range(8)), [0, 1], cache).wait()
    before = {page.slot: page.entry for page in file.pages()}
    file.save(file.names(range(10)), [0, 1, 2], cache).wait()
    after = {page.slot: page.entry for page in file.pages()}
    assert before.items() <= after.items()
    assert len(after) == 3


def test_texts_share_their_common_beginning(file):
    cache = PageCache.allocate(SMALL, 6)
    fill(cache, 1)
    file.save(file.names([1, 2, 3, 4, 5, 6, 7, 8]), [0, 1], cache).wait()
    file.save(file.names([1, 2, 3, 4, 9, 9]), [0, 2], cache).wait()
    assert len(file) == 3
    assert [page.name.tokens for page in file.match([1, 2, 3, 4, 9, 9, 9])] == [4, 2]
    assert [page.name.tokens for page in file.match([1, 2, 3, 4, 5])] == [4]
    assert file.match([2, 2, 3, 4]) == []


def test_the_longest_unused_go_first_and_of_a_text_its_end(file):
    cache = PageCache.allocate(SMALL, 6)
    fill(cache, 1)
    first, second, third = ([letter] * 12 for letter in (1, 2, 3))
    file.save(file.names(first), [0, 1, 2], cache).wait()
    file.save(file.names(second), [3, 4, 5], cache).wait()
    assert len(file) == 6
    file.load(file.match(first), [0, 1, 2], PageCache.allocate(SMALL, 3)).wait()
    file.save(file.names(third[:8]), [0, 1], cache).wait()
    assert [len(file.match(text)) for text in (first, second, third)] == [3, 1, 2]
    file.save(file.names([4] * 8), [0, 1], cache).wait()
    assert [len(file.match(text)) for text in (first, second, third)] == [2, 0, 2]


def test_order_of_use_survives_a_restart(path):
    cache = PageCache.allocate(SMALL, 2)
    with PagedKVFile.create(path, SMALL, 2, model="m") as file:
        file.save(file.names([1] * 4), [0], cache).wait()
        file.save(file.names([2] * 4), [1], cache).wait()
        file.load(file.match([1] * 4), [0], cache).wait()
    with PagedKVFile.open(path, writable=True) as file:
        file.save(file.names([3] * 4), [0], cache).wait()
        assert [len(file.match([letter] * 4)) for letter in (1, 2, 3)] == [1, 0, 1]


def test_a_text_larger_than_the_file_keeps_its_beginning(file):
    cache = PageCache.allocate(SMALL, 8)
    transfer = file.save(file.names(range(32)), range(8), cache)
    with pytest.raises(NoSpace, match="all 6 pages"):
        transfer.wait()
    assert set(transfer.errors()) == {6, 7}
    assert len(file.match(range(32))) == 6


@pytest.mark.parametrize("layer", [0, 1])
def test_damage_names_file_page_and_layer(path, layer):
    cache = PageCache.allocate(SMALL, 3)
    fill(cache, 1)
    with PagedKVFile.create(path, SMALL, 3, model="m") as file:
        file.save(file.names(range(12)), range(3), cache).wait()
        offset = file.header.record_offset(1) + layer * SMALL.layer_stride + 77
    with open(path, "r+b") as raw:
        raw.seek(offset)
        byte = raw.read(1)[0]
        raw.seek(offset)
        raw.write(bytes([byte ^ 4]))
    with PagedKVFile.open(path) as file:
        transfer = file.load(file.match(range(12)), range(3), cache)
        assert transfer.wait_for(0)
        assert transfer.wait_for(2)
        with pytest.raises(CorruptData, match=f"page 1, layer {layer}: .*chat.pages") as caught:
            transfer.wait()
        assert (caught.value.filename, caught.value.fields["page"]) == (path, "1")
        with pytest.raises(CorruptData):
            transfer.wait_for(1)
        assert [(each.slot, each.layer) for each in file.verify()] == [(1, layer)]


def test_a_reader_sees_what_is_saved_and_evicted(path):
    cache = PageCache.allocate(SMALL, 2)
    fill(cache, 1)
    with PagedKVFile.create(path, SMALL, 1, model="m") as writer, PagedKVFile.open(path) as reader:
        assert reader.match([1] * 4) == []
        writer.save(writer.names([1] * 4), [0], cache).wait()
        reader.refresh()
        stale = reader.match([1] * 4)
        reader.load(stale, [1], cache).wait()
        fill(cache, 2, [0])
        writer.save(writer.names([2] * 4), [0], cache).wait()
        with pytest.raises(NotFound, match=r"page 0 has been evicted.*chat\.pages"):
            reader.load(stale, [1], cache).wait()
        reader.refresh()
        assert reader.match([1] * 4) == []
        assert len(reader.match([2] * 4)) == 1


def test_bad_input_is_refused(path, file):
    cache = PageCache.allocate(SMALL, 2)
    with pytest.raises(AlreadyExists, match="remove it first"):
        PagedKVFile.create(path, SMALL, 1, model="m")
    with pytest.raises(Busy, match="open it for reading"):
        PagedKVFile.open(path, writable=True)
    with pytest.raises(InvalidArgument, match="another model than 'n'"):
        PagedKVFile.open(path, model="n")
    with pytest.raises(NotFoundOnDisk):
        PagedKVFile.open(path + "x")
    with pytest.raises(ValueError, match="capacity is 0"):
        PagedKVFile.create(path + "y", SMALL, 0, model="m")
    with pytest.raises(InvalidArgument, match="1 pages and 2 blocks"):
        file.save(file.names([1]), [0, 1], cache)
    with pytest.raises(InvalidArgument, match=r"blocks are \[2\]; they must differ and be 0 to 1"):
        file.save(file.names([1]), [2], cache)
    with pytest.raises(InvalidArgument, match=r"blocks are \[1, 1\]"):
        file.save(file.names(range(5)), [1, 1], cache)
    with pytest.raises(InvalidArgument, match="the cache has"):
        file.save(file.names([1]), [0], PageCache.allocate(PageLayout(1), 1))
    with PagedKVFile.open(path) as reader, pytest.raises(InvalidArgument, match="open it with writable=True"):
        reader.save(reader.names([1]), [0], cache)
    file.close()
    with pytest.raises(InvalidArgument, match="closed"):
        file.load([], [], cache)
    with open(path, "r+b") as raw:
        raw.truncate(9000)
    with pytest.raises(CorruptData, match="9000 bytes of"):
        PagedKVFile.open(path)
    with open(path, "wb") as raw:
        raw.write(b"something else entirely")
    with pytest.raises(InvalidArgument, match="not a file of KV pages"):
        PagedKVFile.open(path)


NotFoundOnDisk = FileNotFoundError


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([torch.zeros(2, 4, 1, 576)] * 2, "dtype torch.float32"),
        ([torch.zeros(2, 4, 1, 576, dtype=torch.bfloat16)], "1 tensors; the layout has 2"),
        ([torch.zeros(2, 5, 1, 576, dtype=torch.bfloat16)] * 2, "shape"),
        ([torch.zeros(2, 4, 1, 600, dtype=torch.bfloat16)[..., :576]] * 2, "without gaps"),
    ],
)
def test_a_cache_that_does_not_fit_is_refused(layers, message):
    with pytest.raises((ValueError, TypeError), match=message):
        PageCache.over(SMALL, layers)


def _read_until(path, ready, stop, results):
    cache = PageCache.allocate(SMALL, 4)
    loads = 0
    with PagedKVFile.open(path) as file:
        ready.release()
        while not stop.is_set():
            file.refresh()
            for letter in range(6):
                pages = file.match([letter] * 8)
                errors = file.load(pages, range(len(pages)), cache).errors()
                if any(not isinstance(error, NotFound) for error in errors.values()):
                    results.put(repr(errors))
                    return
                for place, page in enumerate(pages):
                    if place not in errors:
                        wanted = letter * 10 + page.name.depth
                        if not all((layer[place] == wanted).all() for layer in cache.layers):
                            results.put(f"other bytes than those of {letter}")
                            return
                        loads += 1
    results.put(loads)


@pytest.mark.usefixtures("warm_spawn")
def test_a_reader_in_another_process_never_sees_other_bytes(path):
    cache = PageCache.allocate(SMALL, 2)
    context = multiprocessing.get_context("spawn")
    ready, stop, results = context.Semaphore(0), context.Event(), context.Queue()
    PagedKVFile.create(path, SMALL, 5, model="m").close()
    system = LocalFileSystem()
    with PagedKVFile(system, path, Disk(system.open(path, "r+b")), writable=True) as file:
        reader = context.Process(target=_read_until, args=(path, ready, stop, results))
        reader.start()
        chosen = random.Random(1)
        try:
            assert ready.acquire(timeout=120)
            for _ in range(60):
                letter = chosen.randrange(6)
                for block in range(2):
                    for layer in cache.layers:
                        layer[block] = letter * 10 + block
                file.save(file.names([letter] * 8), [0, 1], cache).wait()
        finally:
            stop.set()
            found = results.get(timeout=120)
            reader.join()
    assert isinstance(found, int), found
    assert found > 0, "the reader must have met pages"


# Power loss.


def after_power_loss(image, log, cut, chosen):
    """What may be on the disk when the power goes after `cut` steps: what was synced, and any sectors of the rest."""
    last = max((place for place in range(cut) if log[place] == "sync"), default=-1)
    disk = bytearray(image)
    for place, step in enumerate(log[:cut]):
        if step == "sync":
            continue
        offset, data = step
        begin = offset
        while begin < offset + len(data):
            end = min(
                begin - begin % 512 + 512, offset + len(data)
            )  # sectors are the disk's, not the write's
            if place < last or chosen.random() < 0.5:
                disk[begin:end] = data[begin - offset : end - offset]
            begin = end
    return bytes(disk)


@pytest.mark.parametrize("seed", range(2))
def test_power_loss_at_any_step_keeps_finished_saves(path, tmp_path, seed):
    PagedKVFile.create(path, SMALL, 4, model="m").close()
    with open(path, "rb") as raw:
        image = raw.read()
    chosen, system = random.Random(seed), DiskFileSystem()
    disk = Disk(system.open(path, "r+b"))
    cache = PageCache.allocate(SMALL, 2)
    file = PagedKVFile(system, path, disk, writable=True)
    contents, promises = {}, []  # key -> bits; (steps so far, keys that must be there)
    for round_ in range(5):
        tokens = [round_ % 4] * chosen.choice([4, 6, 8])
        names = file.names(tokens)
        for block, name in enumerate(names):
            fill(cache, int.from_bytes(name.key[:4]), [block])  # what a page holds follows from its tokens
            contents[name.key] = bits(cache, block)
        file.save(names, range(len(names)), cache).wait()
        promises.append((len(disk.log), {page.name.key for page in file.pages()}))
    file.close()

    lost = str(tmp_path / "lost.pages")
    for cut in range(len(disk.log) + 1):
        with open(lost, "wb") as raw:
            raw.write(after_power_loss(image, disk.log, cut, chosen))
        before = [keys for steps, keys in promises if steps <= cut]
        following = [keys for steps, keys in promises if steps > cut]
        # What the save that was cut off would evict may be gone.
        must = (before[-1] if before else set()) & (following[0] if following else before[-1])
        with PagedKVFile(system, lost, Disk(system.open(lost, "r+b")), writable=True) as again:
            pages = again.pages()
            assert must <= {page.name.key for page in pages}, f"cut {cut} of seed {seed}"
            for page in pages:
                again.load([page], [0], cache).wait()
                assert all(map(torch.equal, bits(cache, 0), contents[page.name.key]))
            # The file works as if nothing had been.
            fill(cache, 999, [1])
            again.save(again.names([9] * 4), [1], cache).wait()
            again.load(again.match([9] * 4), [0], cache).wait()
            assert same(cache, 0, cache, 1)


class FailingRing(DiskRing):
    def submit(self, operations):
        operations = list(operations)
        good = [each for each in operations if not each.write]
        super().submit(good)
        self._done.extend(Completion(each.user_data, -28) for each in operations if each.write)
        return len(operations)


class FullFileSystem(LocalFileSystem):
    def ring(self, entries=128):
        return FailingRing()


def test_a_write_that_fails_leaves_no_page(path):
    PagedKVFile.create(path, SMALL, 2, model="m").close()
    system, cache = FullFileSystem(), PageCache.allocate(SMALL, 2)
    with PagedKVFile(system, path, system.open(path, "r+b"), writable=True) as file:
        with pytest.raises(OSError, match="No space left") as caught:
            file.save(file.names(range(8)), [0, 1], cache).wait()
        assert caught.value.errno == 28
        assert len(file) == 0
    with PagedKVFile.open(path, writable=True) as file:
        assert file.pages() == []
        file.save(file.names(range(8)), [0, 1], cache).wait()
        assert len(file) == 2


def test_other_blocks_are_usable_while_pages_land(file):
    """Other blocks are used meanwhile, and a transfer's own land one by one."""
    cache = PageCache.allocate(SMALL, 6)
    fill(cache, 1)
    kept = bits(cache, 5)
    file.save(file.names(range(20)), range(5), cache).wait()
    transfer = file.load(file.match(range(20)), range(5), cache)
    assert len(transfer) == 5
    for place in range(5):
        assert transfer.wait_for(place)
        assert all(map(torch.equal, bits(cache, 5), kept))
    assert transfer.wait()
    assert os.path.getsize(file.path) == file.header.file_bytes


class StuckDisk(Disk):
    """Refuses to sync while it is stuck."""

    stuck = False

    def fsync(self, *, data_only=False):
        if self.stuck:
            raise OSError(5, "Input/output error")
        super().fsync(data_only=data_only)


def test_an_eviction_that_could_not_be_made_durable_is_made_again(path):
    """Or a page would be overwritten while the disk still has its entry."""
    PagedKVFile.create(path, SMALL, 1, model="m").close()
    system, cache = DiskFileSystem(), PageCache.allocate(SMALL, 1)
    disk = StuckDisk(system.open(path, "r+b"))
    with PagedKVFile(system, path, disk, writable=True) as file:
        file.save(file.names([1] * 4), [0], cache).wait()
        disk.stuck = True
        with pytest.raises(OSError, match="Input/output error"):
            file.save(file.names([2] * 4), [0], cache).wait()
        disk.stuck = False
        disk.log.clear()
        file.save(file.names([3] * 4), [0], cache).wait()
        offsets = [step if step == "sync" else step[0] for step in disk.log]
        assert offsets[:3] == [file.header.entry_offset(0), "sync", file.header.record_offset(0)]
        assert not any(disk.log[0][1]), "the old entry is zeroed first"
