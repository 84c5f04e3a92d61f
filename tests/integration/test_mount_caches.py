"""What the kernel keeps of files and names never hides what a mount has to show."""

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
