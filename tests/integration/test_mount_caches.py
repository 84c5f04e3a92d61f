"""What the kernel keeps of files and names never hides what a mount has to show."""

import ctypes
import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import LocalCluster
from posix_calls import as_user

pytestmark = pytest.mark.mount

# Longer than a test: what was shown once stays valid.
CONFIG = "[client]\nattribute_timeout_ms = 600000\n"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    root = tmp_path_factory.mktemp("caches")
    with LocalCluster(root, storage_nodes=1, replicas=1, mount=True, config=CONFIG) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def forgetful_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Mounts of this one ask the metadata service for attributes every time."""
    config = CONFIG.replace("600000", "0")
    root = tmp_path_factory.mktemp("forgetful")
    with LocalCluster(root, storage_nodes=1, replicas=1, mount=True, config=config) as cluster:
        yield cluster


def resident_pages(mapped: mmap.mmap) -> int:
    """Count the pages of the mapping that the kernel has."""
    pages = (ctypes.c_ubyte * (len(mapped) // mmap.PAGESIZE))()
    address = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
    assert ctypes.CDLL(None).mincore(ctypes.c_void_p(address), ctypes.c_size_t(len(mapped)), pages) == 0
    return sum(page & 1 for page in pages)


@pytest.mark.parametrize(("before", "after"), [(10, 20), (10, 100_000), (100_000, 200_000), (100_000, 10)])
def test_open_after_close_reads_all_that_another_mount_has_written(cluster, before, after):
    name = f"{before}-{after}"
    with cluster.mounted(f"second-{name}") as second:
        (cluster.mountpoint / name).write_bytes(b"a" * before)
        assert (second / name).read_bytes() == b"a" * before
        assert (second / name).stat().st_size == before
        for letter in (b"b", b"c"):
            (cluster.mountpoint / name).write_bytes(letter * after)
            assert (second / name).read_bytes() == letter * after
            assert (second / name).stat().st_size == after
            with (cluster.mountpoint / name).open("ab") as file:
                file.write(letter * 1000)
            with (second / name).open("rb") as file:
                assert os.fstat(file.fileno()).st_size == after + 1000
                assert file.read() == letter * (after + 1000)


def test_listing_in_progress_shows_what_was_written_since_it_began(cluster):
    directory: Path = cluster.mountpoint / "listed"
    directory.mkdir()
    names = [f"{number:0200d}" for number in range(500)]  # so long that the kernel asks more than once
    for name in names:
        (directory / name).write_bytes(b"a")
    with os.scandir(directory) as entries:
        first = next(entries)
        for name in names:
            (directory / name).write_bytes(b"b" * 5000)
        assert {first.name, *(entry.name for entry in entries)} == set(names)
    assert {(directory / name).stat().st_size for name in names} == {5000}
    assert all((directory / name).read_bytes() == b"b" * 5000 for name in names)


@pytest.mark.root
@pytest.mark.parametrize("flags", [0, os.O_DIRECT], ids=["buffered", "direct"])
def test_set_id_bits_that_another_mount_has_set_end_with_a_write_here(cluster, flags):
    path = cluster.mountpoint / f"program-{flags}"
    path.write_bytes(bytes(8192))
    path.chmod(0o777)
    with cluster.mounted(f"setting-{flags}") as second:
        descriptor = os.open(path, os.O_RDWR | flags)
        try:
            assert path.stat().st_mode & 0o7777 == 0o777  # so this mount has no reason to ask again
            (second / path.name).chmod(0o6777)
            assert as_user(1000, f"os.pwritev({descriptor}, [mmap.mmap(-1, 4096)], 0)") == "ok"
        finally:
            os.close(descriptor)
        with (second / path.name).open("rb") as file:
            assert os.fstat(file.fileno()).st_mode & 0o7777 == 0o777


@pytest.mark.root
def test_name_believed_free_opens_the_file_that_another_mount_has_made_of_any_group(cluster):
    top = cluster.mountpoint / "of-groups"
    top.mkdir()
    top.chmod(0o777)
    with cluster.mounted("second-of-groups") as second:
        directory = os.open(second / "of-groups", os.O_PATH | os.O_DIRECTORY)
        try:
            for name, group in (("one", 5001), ("other", 5002)):
                assert not (second / "of-groups" / name).exists()
                (top / name).write_bytes(b"made elsewhere")
                os.chown(top / name, 0, group)
                (top / name).chmod(0o660)
            opened = "os.open({!r}, os.O_RDWR | os.O_CREAT, 0o600, dir_fd=" + f"{directory})"
            assert as_user(1000, opened.format("one"), groups=(5000, 5001)) == "ok"
            assert as_user(1000, opened.format("other"), groups=(5000, 5001)) == "EACCES"
            assert as_user(1000, opened.format("new"), groups=(5000, 5001)) == "ok"
        finally:
            os.close(directory)


def test_write_keeps_the_pages_of_its_file_in_the_kernel(forgetful_cluster):
    path, size = forgetful_cluster.mountpoint / "kept", 1 << 20
    path.write_bytes(bytes(size))
    with path.open("r+b") as file, mmap.mmap(file.fileno(), size) as mapped:
        assert os.pread(file.fileno(), size, 0) == bytes(size)
        for number in range(20):
            assert os.pwrite(file.fileno(), b"x" * 512, number * 5000) == 512
            if number % 4 == 0:
                os.fsync(file.fileno())
            assert os.fstat(file.fileno()).st_size == size
            assert os.pread(file.fileno(), 512, number * 5000) == b"x" * 512
        assert resident_pages(mapped) == size // mmap.PAGESIZE


def test_mapping_shows_what_another_mount_has_written_after_a_look_at_the_attributes(forgetful_cluster):
    path, size = forgetful_cluster.mountpoint / "mapped", 1 << 16
    path.write_bytes(b"a" * size)
    with (
        forgetful_cluster.mounted("writing") as second,
        path.open("rb") as file,
        mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ) as mapped,
    ):
        assert mapped[:] == b"a" * size
        for letter in (b"b", b"c", b"d"):
            with (second / path.name).open("r+b") as writer:
                writer.write(letter * size)
            assert os.fstat(file.fileno()).st_size == size
            assert mapped[:] == letter * size
            assert os.pread(file.fileno(), size, 0) == letter * size


def test_reader_that_stays_open_sees_what_another_mount_appends(forgetful_cluster):
    path, line = forgetful_cluster.mountpoint / "followed", b"a line that ends within a page\n" * 40
    path.touch()
    with forgetful_cluster.mounted("appending") as second, path.open("rb", buffering=0) as file:
        for number in range(1, 20):
            with (second / path.name).open("ab") as writer:
                writer.write(line)
            if number % 2:
                assert os.fstat(file.fileno()).st_size == number * len(line)
            assert file.read(1 << 20) == line
            assert os.pread(file.fileno(), 1 << 20, 0) == line * number
