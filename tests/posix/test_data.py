"""Bytes: reading, writing, holes, truncation, memory maps."""

import mmap
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from posix_calls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate, outcome

pytestmark = pytest.mark.mount

MIB = 1 << 20


def pattern(length: int, seed: int = 1) -> bytes:
    return random.Random(seed).randbytes(length)


@pytest.mark.parametrize("length", [0, 1, 4095, 4096, 4097, 65_536, MIB - 1, MIB, MIB + 1, 5 * MIB + 17])
def test_file_of_any_length_reads_back(area, length):
    data = pattern(length)
    Path("a").write_bytes(data)
    assert os.stat("a").st_size == length
    assert Path("a").read_bytes() == data


@pytest.mark.parametrize("step", [1_000, 4_096, 100_003])
def test_small_writes_one_after_the_other(area, step):
    data = pattern(MIB + 77)
    with open("a", "wb", buffering=0) as file:
        for start in range(0, len(data), step):
            assert file.write(data[start : start + step]) == len(data[start : start + step])
    assert Path("a").read_bytes() == data


def test_random_writes_against_a_model(area):
    chance = random.Random(7)
    model = bytearray(3 * MIB)
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    os.ftruncate(descriptor, len(model))
    for round_ in range(300):
        offset = chance.randrange(len(model))
        data = chance.randbytes(min(chance.choice((1, 100, 4096, 20_000, 300_000)), len(model) - offset))
        os.pwrite(descriptor, data, offset)
        model[offset : offset + len(data)] = data
        if round_ % 10 == 0:
            start = chance.randrange(len(model))
            assert os.pread(descriptor, 50_000, start) == model[start : start + 50_000]
    os.close(descriptor)
    assert Path("a").read_bytes() == model


def test_read_beyond_the_end_is_short(area):
    Path("a").write_bytes(b"0123456789")
    descriptor = os.open("a", os.O_RDONLY)
    assert os.pread(descriptor, 100, 5) == b"56789"
    assert os.pread(descriptor, 100, 10) == b""
    assert os.pread(descriptor, 100, 1 << 40) == b""
    os.close(descriptor)


def test_hole_reads_as_zeros(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(descriptor, b"end", 10 * MIB + 5)
    assert os.fstat(descriptor).st_size == 10 * MIB + 8
    assert os.pread(descriptor, MIB, 3 * MIB) == bytes(MIB)
    assert os.pread(descriptor, 100, 10 * MIB) == bytes(5) + b"end"
    os.close(descriptor)
    data = Path("a").read_bytes()
    assert data == bytes(10 * MIB + 5) + b"end"


def test_very_far_write(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    far = 1 << 38
    os.pwrite(descriptor, b"far", far)
    assert os.fstat(descriptor).st_size == far + 3
    assert os.pread(descriptor, 10, far - 4) == bytes(4) + b"far"
    os.close(descriptor)


def test_seek_data_and_hole_agree_with_content(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    os.pwrite(descriptor, b"x" * 4096, 8 * MIB)
    os.ftruncate(descriptor, 16 * MIB)
    os.fsync(descriptor)
    # A file system may report less holes than there are, never data where it reports a hole.
    data = os.lseek(descriptor, 0, os.SEEK_DATA)
    assert 0 <= data <= 8 * MIB
    hole = os.lseek(descriptor, 8 * MIB, os.SEEK_HOLE)
    assert 8 * MIB + 4096 <= hole <= 16 * MIB
    assert outcome(os.lseek, descriptor, 16 * MIB, os.SEEK_DATA) == "ENXIO"
    assert outcome(os.lseek, descriptor, 17 * MIB, os.SEEK_HOLE) == "ENXIO"
    os.close(descriptor)


@pytest.mark.parametrize("length", [0, 1, 1000, 4096, MIB, 2 * MIB + 3, 3 * MIB, 7 * MIB])
def test_truncate_keeps_the_start_and_extends_with_zeros(area, length):
    data = pattern(3 * MIB)
    Path("a").write_bytes(data)
    os.truncate("a", length)
    expected = data[:length] + bytes(max(0, length - len(data)))
    assert os.stat("a").st_size == length
    assert Path("a").read_bytes() == expected


def test_bytes_cut_off_do_not_come_back(area):
    Path("a").write_bytes(b"x" * (2 * MIB))
    descriptor = os.open("a", os.O_RDWR)
    for short in (MIB + 100, 5000, 3):
        os.ftruncate(descriptor, short)
        os.ftruncate(descriptor, 2 * MIB)
        assert os.pread(descriptor, 3 * MIB, 0) == b"x" * short + bytes(2 * MIB - short)
    os.close(descriptor)


def test_truncation_through_a_descriptor_is_seen_by_others(area):
    Path("a").write_bytes(b"0123456789")
    first = os.open("a", os.O_RDWR)
    second = os.open("a", os.O_RDONLY)
    os.ftruncate(first, 4)
    assert os.fstat(second).st_size == 4
    assert os.pread(second, 10, 0) == b"0123"
    os.close(first)
    os.close(second)


def test_truncate_refuses_what_makes_no_sense(area):
    Path("a").write_bytes(b"")
    os.mkdir("d")
    assert outcome(os.truncate, "a", -1) == "EINVAL"
    assert outcome(os.truncate, "d", 0) == "EISDIR"
    assert outcome(os.truncate, "missing", 0) == "ENOENT"
    descriptor = os.open("a", os.O_RDONLY)
    assert outcome(os.ftruncate, descriptor, 0) == "EINVAL"
    os.close(descriptor)


def test_writers_see_each_other_before_they_close(area):
    one = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    two = os.open("a", os.O_RDWR)
    os.pwrite(one, b"one", 0)
    assert os.pread(two, 3, 0) == b"one"
    assert os.stat("a").st_size == 3
    os.pwrite(two, b"two", 3)
    assert os.pread(one, 10, 0) == b"onetwo"
    os.close(one)
    assert os.pread(two, 10, 0) == b"onetwo"
    os.close(two)


def test_another_process_sees_what_was_written_before_close(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(descriptor, pattern(300_000))
    script = "import hashlib; print(hashlib.sha256(open('a','rb').read()).hexdigest())"
    seen = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    import hashlib

    assert seen.strip() == hashlib.sha256(pattern(300_000)).hexdigest()
    os.close(descriptor)


def test_vectored_io(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    assert os.writev(descriptor, [b"a" * 5000, b"b" * 70_000, b"", b"c"]) == 75_001
    first, second = bytearray(6000), bytearray(80_000)
    assert os.preadv(descriptor, [first, second], 0) == 75_001
    assert bytes(first) + bytes(second[:69_001]) == b"a" * 5000 + b"b" * 70_000 + b"c"
    os.close(descriptor)


def test_memory_map_reads_the_file(area):
    data = pattern(2 * MIB + 100)
    Path("a").write_bytes(data)
    with open("a", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view:
        assert view[:] == data
        assert view[MIB : MIB + 10] == data[MIB : MIB + 10]


def test_memory_map_writes_the_file(area):
    data = pattern(2 * MIB)
    Path("a").write_bytes(data)
    with open("a", "r+b") as file, mmap.mmap(file.fileno(), 0) as view:
        view[100:105] = b"hello"
        view[MIB - 2 : MIB + 3] = b"world"
        view.flush()
    expected = bytearray(data)
    expected[100:105] = b"hello"
    expected[MIB - 2 : MIB + 3] = b"world"
    assert Path("a").read_bytes() == expected


def test_memory_map_and_write_see_each_other(area):
    Path("a").write_bytes(bytes(100_000))
    with open("a", "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as view:
        file.seek(50_000)
        file.write(b"written")
        assert view[50_000:50_007] == b"written"
        view[10:16] = b"mapped"
        assert os.pread(file.fileno(), 6, 10) == b"mapped"


def test_memory_map_outlives_its_descriptor(area):
    Path("a").write_bytes(bytes(10_000))
    descriptor = os.open("a", os.O_RDWR)
    view = mmap.mmap(descriptor, 0)
    os.close(descriptor)
    view[5000:5005] = b"later"
    view.flush()
    view.close()
    assert Path("a").read_bytes()[5000:5005] == b"later"


def test_private_map_leaves_the_file_alone(area):
    Path("a").write_bytes(b"original")
    with open("a", "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as view:
        view[:] = b"modified"
    assert Path("a").read_bytes() == b"original"


def test_program_runs_from_the_file_system(area):
    Path("program").write_bytes(Path("/bin/true").resolve().read_bytes())
    os.chmod("program", 0o755)
    assert subprocess.run(["./program"], check=False).returncode == 0


def test_fallocate_extends_and_keeps_content(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    os.write(descriptor, b"start")
    result = outcome(os.posix_fallocate, descriptor, 0, 100_000)
    assert result == "ok"
    assert os.fstat(descriptor).st_size == 100_000
    assert os.pread(descriptor, 10, 0) == b"start" + bytes(5)
    os.close(descriptor)


def test_punched_hole_reads_as_zeros_if_supported(area):
    data = pattern(3 * MIB)
    Path("a").write_bytes(data)
    descriptor = os.open("a", os.O_RDWR)
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    result = outcome(fallocate, descriptor, mode, MIB - 10_000, MIB + 20_000)
    assert result in ("ok", "EOPNOTSUPP")
    expected = bytearray(data)
    if result == "ok":
        expected[MIB - 10_000 : 2 * MIB + 10_000] = bytes(MIB + 20_000)
    assert os.pread(descriptor, 4 * MIB, 0) == expected
    os.close(descriptor)


def test_hole_in_a_large_sparse_file_costs_what_is_there(area):
    descriptor = os.open("a", os.O_RDWR | os.O_CREAT, 0o644)
    large = 64 << 30
    os.ftruncate(descriptor, large)
    os.pwrite(descriptor, b"abc", 40 << 30)
    os.pwrite(descriptor, b"abc", 50 << 30)
    mode = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
    result = outcome(fallocate, descriptor, mode, (40 << 30) + 1, (10 << 30) + 1)
    assert result in ("ok", "EOPNOTSUPP")
    if result == "ok":
        assert os.pread(descriptor, 3, 40 << 30) == b"a\0\0"
        assert os.pread(descriptor, 3, 50 << 30) == b"\0\0c"
        assert fallocate(descriptor, mode, 0, 2 * large) is None
        assert os.pread(descriptor, 3, 50 << 30) == bytes(3)
        assert os.fstat(descriptor).st_size == large
    os.close(descriptor)


def test_copy_file_range_copies(area):
    data = pattern(2 * MIB + 5)
    Path("a").write_bytes(data)
    with open("a", "rb") as source, open("b", "wb") as target:
        left = len(data)
        while left:
            copied = os.copy_file_range(source.fileno(), target.fileno(), left)
            assert copied > 0
            left -= copied
    assert Path("b").read_bytes() == data


def test_sendfile_copies(area):
    data = pattern(MIB + 1)
    Path("a").write_bytes(data)
    with open("a", "rb") as source, open("b", "wb") as target:
        sent = 0
        while sent < len(data):
            sent += os.sendfile(target.fileno(), source.fileno(), sent, len(data) - sent)
    assert Path("b").read_bytes() == data


def free_bytes() -> int:
    about = os.statvfs(".")
    return about.f_bavail * about.f_frsize


@pytest.mark.parametrize("mode", [0, FALLOC_FL_KEEP_SIZE])
def test_space_that_is_not_there_cannot_be_allocated(area, mode):
    with open("a", "wb") as file:
        assert outcome(fallocate, file.fileno(), mode, 0, 10 * free_bytes()) == "ENOSPC"
        assert os.fstat(file.fileno()).st_size == 0
        fallocate(file.fileno(), mode, 0, MIB)


def test_allocation_inside_a_file_moves_its_times(area):
    Path("a").write_bytes(bytes(100_000))
    os.utime("a", ns=(5, 5))
    before = os.stat("a")
    with open("a", "r+b") as file:
        fallocate(file.fileno(), 0, 0, 1000)
    after = os.stat("a")
    assert after.st_size == 100_000
    assert after.st_mtime_ns > before.st_mtime_ns
    assert after.st_ctime_ns > before.st_ctime_ns
