"""Batches through a ring: what is one read, memory, open files, threads, and reads that fail."""

import errno
import gc
import os
import resource
import threading
import zlib
from types import SimpleNamespace

import numpy as np
import pytest

from luciola.client import Completion, LocalFileSystem
from luciola.errors import CorruptData
from luciola.plugins.dataset import (
    FFRecords,
    FFRecordWriter,
    Loader,
    MapDataset,
    datasets,
    ffrecord,
    open_records,
)
from luciola.plugins.dataset.ffrecord import header
from luciola.plugins.dataset.pinning import pin_array
from luciola.plugins.dataset.pool import POOL_BYTES, Pool
from luciola.plugins.dataset.reader import ENTRIES, PIECE_BYTES, BatchReader
from luciola.plugins.dataset.records import Numbering


def write_file(path, records: list[bytes]) -> None:
    """Without the fsync of a writer."""
    path.write_bytes(
        header([zlib.crc32(each) for each in records], [len(each) for each in records]) + b"".join(records)
    )


@pytest.mark.parametrize("counts", [[6], [3, 0, 4, 1], [0, 2, 0]], ids=str)
def test_each_number_is_in_one_share(counts) -> None:
    expected = [(sequence, place) for sequence, count in enumerate(counts) for place in range(count)]
    numbers = np.random.default_rng(1).integers(0, sum(counts), 40)
    found = [None] * len(numbers)
    for sequence, chosen, within in Numbering.of("samples", counts).shares(numbers):
        for at, place in zip(chosen, within, strict=True):
            assert found[at] is None
            found[at] = (sequence, int(place))
    assert found == [expected[number] for number in numbers]
    assert not Numbering.of("samples", counts).shares(numbers[:0])
    with pytest.raises(IndexError, match=f"samples are 0 to {sum(counts) - 1}"):
        Numbering.of("samples", counts).shares(np.array([0, sum(counts)]))


class Rings(LocalFileSystem):
    """A local file system whose rings count what they are given, and whose n-th result is another."""

    def __init__(self) -> None:
        self.operations = self.submissions = 0
        self.good, self.result = 0, 0

    def ring(self, entries=128):
        return CountingRing(self, super().ring(entries))


class CountingRing:
    def __init__(self, rings: Rings, ring) -> None:
        self._rings, self._ring = rings, ring

    def __getattr__(self, name):
        return getattr(self._ring, name)

    def submit_from(self, queue):
        taken = self._ring.submit_from(queue)
        self._rings.submissions += 1
        self._rings.operations += taken
        return taken

    def drain(self, *, least, into):
        assert not into
        self._ring.drain(least=least, into=into)
        for place, one in enumerate(into):
            self._rings.good -= 1
            if self._rings.good == 0:
                into[place] = Completion(one.user_data, self._rings.result)


@pytest.fixture
def rings():
    return Rings()


@pytest.fixture
def reader(tmp_path, rings):
    """1500 records of 1 to 100 bytes."""
    write_file(tmp_path / "a.ffr", [bytes([number % 256]) * (1 + number % 100) for number in range(1500)])
    made = BatchReader([open_records(tmp_path / "a.ffr", file_system=rings)])
    yield made
    made.close()


def files_in_use(reader: BatchReader) -> list[object]:
    return [opened for pending in reader._begun for opened in pending.files]


def is_right(batch, numbers) -> bool:
    wanted = [bytes([number % 256]) * (1 + number % 100) for number in numbers]
    return [array.tobytes() for array in batch.arrays()] == wanted


def test_a_batch_is_one_submission(reader: BatchReader, rings: Rings) -> None:
    assert is_right(reader.read([5, 1000, 7]), [5, 1000, 7])
    assert (rings.submissions, rings.operations) == (1, 3)


def test_neighbours_of_one_length_are_one_read_and_large_ones_several(tmp_path, rings: Rings) -> None:
    large = np.random.default_rng(2).integers(0, 256, 2 * PIECE_BYTES + 5, np.uint8).tobytes()
    write_file(tmp_path / "b.ffr", [b"%08d" % number for number in range(50)] + [large])
    reader = BatchReader([open_records(tmp_path / "b.ffr", file_system=rings)])
    assert reader.read(np.arange(50)).matrix()[49].tobytes() == b"00000049"
    assert rings.operations == 1
    reader.read([3, 4, 5, 9, 8, 7])
    assert rings.operations == 1 + 4
    assert reader.read([50]).arrays()[0].tobytes() == large
    assert rings.operations == 1 + 4 + 3
    reader.close()


def test_more_reads_than_the_ring_has_room_for(reader: BatchReader, rings: Rings) -> None:
    numbers = np.random.default_rng(1).permutation(1500)
    assert len(numbers) > ENTRIES
    first, second = reader.start(numbers), reader.start(numbers[::-1])
    assert is_right(reader.finish(second), numbers[::-1])
    assert is_right(reader.finish(first), numbers)
    assert rings.operations == 3000


def test_cancelled_batches_are_dropped(reader: BatchReader) -> None:
    pending = reader.start([1, 2, 3])
    reader.cancel(pending)
    assert is_right(reader.read([9]), [9])
    assert not files_in_use(reader)


def test_a_batch_that_cannot_be_submitted_leaves_nothing_behind(reader: BatchReader, rings: Rings) -> None:
    reader.read([0])
    channel = reader._channels[0]
    ring = channel.ring

    class Full:
        in_flight = 0

        def submit_from(self, queue):
            raise ValueError("closed")

    channel.ring = Full()
    with pytest.raises(ValueError, match="closed"):
        reader.start([1, 2])
    channel.ring = ring
    assert not channel.queue
    assert is_right(reader.read([3]), [3])
    assert not files_in_use(reader)


@pytest.mark.parametrize("good", [1, 3, 700])
@pytest.mark.parametrize(
    ("result", "kind", "words"),
    [
        (-errno.EIO, OSError, "Input/output error"),
        (-errno.ETIMEDOUT, TimeoutError, "timed out"),
        (0, CorruptData, "the file ends before byte"),
    ],
)
def test_a_read_that_fails_names_the_file_and_the_next_batch_is_right(
    reader: BatchReader, rings: Rings, good: int, result: int, kind, words: str
) -> None:
    rings.good, rings.result = good, result
    numbers = np.arange(0, 1500, 2)
    with pytest.raises(kind, match=words) as caught:
        reader.read(numbers)
    assert caught.value.filename == reader.parts[0].files[0].path
    assert is_right(reader.read(numbers), numbers)
    assert not files_in_use(reader)


def test_loader_continues_after_a_read_that_failed(tmp_path, rings: Rings) -> None:
    write_file(tmp_path / "a.ffr", [bytes([number]) for number in range(100)])
    dataset = MapDataset(open_records(tmp_path / "a.ffr", file_system=rings))
    loader = Loader(dataset, global_batch_size=10, shuffle=False, resume=True)
    rings.good, rings.result = 3, -errno.EIO
    seen = []
    with pytest.raises(OSError, match="Input/output"):
        for batch in loader:
            seen += batch.flatten().tolist()
    for batch in loader:
        seen += batch.flatten().tolist()
    assert seen == list(range(100))
    dataset.close()


def test_file_that_cannot_be_opened_raises_when_its_batch_is_asked_for(tmp_path) -> None:
    for name in "ab":
        write_file(tmp_path / f"{name}.ffr", [name.encode()] * 40)
    dataset = MapDataset(open_records(tmp_path))
    (tmp_path / "b.ffr").unlink()
    loader = Loader(dataset, global_batch_size=10, shuffle=False, read_ahead=3)
    seen = []
    with pytest.raises(FileNotFoundError):
        seen.extend(bytes(batch.flatten().tolist()) for batch in loader)
    assert seen == [b"a" * 10] * 4
    assert loader.sample == 40
    dataset.close()


def test_a_file_that_cannot_be_opened_leaves_the_others_readable(tmp_path) -> None:
    for name in "ab":
        write_file(tmp_path / f"{name}.ffr", [name.encode()])
    records = open_records(tmp_path)
    assert len(records.locate(np.arange(2)).files) == 2, "the indexes have been read"
    (tmp_path / "b.ffr").unlink()
    reader = BatchReader([records])
    with pytest.raises(FileNotFoundError):
        reader.read([0, 1])
    assert reader.read([0]).arrays()[0].tobytes() == b"a"
    assert not files_in_use(reader)
    reader.close()


def test_open_files_are_bounded(tmp_path) -> None:
    count, limit = 160, 64
    for number in range(count):
        write_file(tmp_path / f"{number:05}.ffr", [b"%05d" % number])
    reader = BatchReader([open_records(tmp_path)], open_files_max=limit)
    for start in range(0, count, 50):
        numbers = np.arange(start, min(start + 50, count))
        assert [each.tobytes() for each in reader.read(numbers).arrays()] == [
            b"%05d" % number for number in numbers
        ]
        assert len(reader._open) <= limit
    assert reader.read([0]).arrays()[0].tobytes() == b"00000", "opened again"
    reader.close()


def test_local_files_leave_half_of_the_descriptors_to_the_program(tmp_path) -> None:
    descriptors = 2 * len(os.listdir("/proc/self/fd")) + 128  # this process has some already
    count = descriptors // 2 + 40
    for number in range(count):
        write_file(tmp_path / f"{number:05}.ffr", [b"%05d" % number])
    records = open_records(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (descriptors, hard))
    try:
        reader = BatchReader([records])
        for start in range(0, count, 20):
            reader.read(np.arange(start, min(start + 20, count)))
        assert len(reader._open) == descriptors // 2
        reader.close()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_several_threads_share_a_reader(reader: BatchReader) -> None:
    wrong = []

    def work(seed: int) -> None:
        source = np.random.default_rng(seed)
        for _ in range(20):
            numbers = source.integers(0, 1500, 40)
            if not is_right(reader.read(numbers), numbers):
                wrong.append(seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_several_file_systems_in_one_batch(tmp_path) -> None:
    write_file(tmp_path / "a.ffr", [b"a" * 5, b"b" * 5])
    parts = [open_records(tmp_path / "a.ffr", file_system=Rings()), open_records(tmp_path / "a.ffr")]
    reader = BatchReader(parts)
    assert [each.tobytes() for each in reader.read([3, 0, 2, 1]).arrays()] == [
        b"b" * 5,
        b"a" * 5,
        b"a" * 5,
        b"b" * 5,
    ]
    with pytest.raises(IndexError, match="samples are 0 to 3, not 4"):
        reader.read([4])
    reader.close()


class Meeting(LocalFileSystem):
    """`open` returns when so many files are being opened."""

    def __init__(self, files: int) -> None:
        self.met = 0
        self._barrier = threading.Barrier(files, timeout=100)

    def open(self, *arguments, **named):
        if self._barrier.wait() == 0:
            self.met += 1
        return super().open(*arguments, **named)


def test_files_are_opened_and_indexes_read_concurrently(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(ffrecord, "FIRST_BYTES", ffrecord.HEAD.size)  # no places with the first bytes
    for number in range(8):
        write_file(tmp_path / f"{number}.ffr", [b"%d" % number])
    meeting = Meeting(8)
    reader = BatchReader([open_records(tmp_path, file_system=meeting)])
    assert meeting.met == 1
    assert [each.tobytes() for each in reader.read(np.arange(8)).arrays()] == [b"%d" % n for n in range(8)]
    assert meeting.met == 3, "indexes, and files"
    reader.close()


class Listing(LocalFileSystem):
    """Remembers what was listed."""

    def __init__(self) -> None:
        self.listed: list[str] = []

    def listdir(self, path):
        self.listed.append(path)
        return os.listdir(path)


def test_directory_is_listed_once_for_all_formats(tmp_path) -> None:
    write_file(tmp_path / "a.ffr", [b"a"])
    listing = Listing()
    assert len(open_records(tmp_path, file_system=listing)) == 1
    assert listing.listed == [str(tmp_path)]


def test_free_memory_of_sizes_that_are_not_used_any_more_makes_room() -> None:
    pool = Pool(limit_bytes=3 << 20)
    taken = [pool.take(1 << 20) for _ in range(3)]
    taken.clear()
    for _ in range(2):
        taken = [pool.take(2 << 20) for _ in range(2)]
        taken.clear()
        sizes = {size: len(free) for size, free in pool._free.items()}
        assert sizes == {1 << 20: 1, 2 << 20: 2}, "two of the size in use, and what is within the limit"
    assert pool._made == 5


def test_page_locks_end_with_their_memory(monkeypatch) -> None:
    locked: set[int] = set()
    runtime = SimpleNamespace(
        cudaHostRegister=lambda address, _size, _flags: locked.add(address) or 0,
        cudaHostUnregister=locked.remove,
    )
    monkeypatch.setattr("torch.cuda.cudart", lambda: runtime)
    pool = Pool(pin=pin_array, limit_bytes=2 << 20)
    taken = [pool.take(1 << 20) for _ in range(4)]
    assert locked == {array.ctypes.data for _, array in taken}
    taken.clear()
    assert len(locked) == 4, "no call of CUDA while an object is freed"
    piece, array = pool.take(2 << 20)
    assert locked == {array.ctypes.data}
    del pool, piece, array
    gc.collect()
    assert not locked


def test_workers_share_the_limit_of_free_memory(tmp_path, monkeypatch) -> None:
    write_file(tmp_path / "a.ffr", [b"a"])
    monkeypatch.setattr(datasets, "get_worker_info", lambda: SimpleNamespace(id=0, num_workers=16))
    dataset = MapDataset(open_records(tmp_path))
    assert dataset.reader._pool._limit_bytes == POOL_BYTES // 16
    dataset.close()


def test_memory_that_is_kept_is_bounded() -> None:
    pool = Pool(limit_bytes=3 << 20)
    taken = [pool.take(1 << 20) for _ in range(5)]
    assert len({array.ctypes.data for _, array in taken}) == 5
    assert all(array.ctypes.data % 4096 == 0 and array.nbytes == 1 << 20 for _, array in taken)
    del taken
    gc.collect()
    assert pool.free_bytes == 3 << 20


def test_a_data_set_of_one_file_may_be_made_by_hand(tmp_path) -> None:
    from luciola.plugins.dataset.records import Place

    with FFRecordWriter(tmp_path / "a.ffr", 1) as writer:
        writer.write(b"x")
    records = FFRecords(Place(None, LocalFileSystem()), [str(tmp_path / "a.ffr")])
    assert repr(records) == "<FFRecords of 1 records in 1 files>"
