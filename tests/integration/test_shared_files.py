"""Files that several processes and mounts use: fsync covers what any of them wrote, appends do not overwrite."""

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster, meta_status, until

pytestmark = pytest.mark.mount

NODE = "201"
CHUNK_BYTES = 1 << 20


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    with LocalCluster(tmp_path_factory.mktemp("fsync"), storage_nodes=1, replicas=1, mount=True) as cluster:
        yield cluster


def syncs(cluster: LocalCluster) -> int:
    """How often the storage node was asked to make chains durable."""
    return int(cluster.ask("node", "counters", NODE)["syncs"])


def operations(cluster: LocalCluster) -> int:
    """How many requests the metadata service has carried out."""
    status = meta_status(cluster)
    assert status is not None
    return status.operations


def fsync(path: Path, flags: int, call: str = "fsync") -> None:
    """In a process of its own."""
    program = f"import os; os.{call}(os.open({str(path)!r}, {flags}))"
    subprocess.run([sys.executable, "-c", program], check=True)


@pytest.mark.parametrize("call", ["fsync", "fdatasync"])
@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDWR])
def test_fsync_of_a_file_that_another_process_closed_syncs_its_chains(cluster, flags, call):
    file = cluster.mountpoint / f"closed-{flags}-{call}"
    file.write_bytes(b"x" * (2 * CHUNK_BYTES))
    before = syncs(cluster)
    fsync(file, flags, call)
    assert syncs(cluster) > before


def test_sync_program_syncs_the_chains_of_a_closed_file(cluster):
    file = cluster.mountpoint / "closed"
    file.write_bytes(b"x" * 100_000)
    before = syncs(cluster)
    subprocess.run(["sync", str(file)], check=True)
    assert syncs(cluster) > before


def test_fsync_on_another_mount_syncs_chains_of_a_file_that_is_still_being_written(cluster):
    file = cluster.mountpoint / "shared"
    with cluster.mounted("second") as second, file.open("wb", buffering=0) as writer:
        writer.write(b"x" * CHUNK_BYTES)
        os.fsync(writer.fileno())
        with (second / "shared").open("rb") as reader:
            os.fsync(reader.fileno())
            before = syncs(cluster)
            os.fsync(reader.fileno())
            assert syncs(cluster) > before, "the other mount may have written"


def test_second_fsync_of_an_unchanged_file_asks_no_chain(cluster):
    file = cluster.mountpoint / "quiet"
    with file.open("wb", buffering=0) as writer:
        writer.write(b"x" * CHUNK_BYTES)
        os.fsync(writer.fileno())
        before = syncs(cluster)
        os.fsync(writer.fileno())
        os.fdatasync(writer.fileno())
        assert syncs(cluster) == before


def test_reader_without_permission_to_write_may_fsync(cluster):
    with luciola.connect(cluster.data) as fs:
        fs.write("/readable", b"x" * 100_000)
        fs.chmod("/readable", 0o444)
    program = (
        f"import os; mount = os.open({str(cluster.mountpoint)!r}, os.O_RDONLY); os.setgroups([]); os.setgid(65534);"
        "os.setuid(65534); os.fsync(os.open('readable', os.O_RDONLY, dir_fd=mount))"
    )
    until((cluster.mountpoint / "readable").exists, what="a name that another client has made")
    before = syncs(cluster)
    subprocess.run([sys.executable, "-c", program], check=True)
    assert syncs(cluster) > before


@pytest.mark.parametrize("length", [30, 900], ids=["inline", "in chunks"])
def test_lines_that_two_mounts_append_and_sync_in_turn_are_all_there(cluster, length):
    name = f"log-{length}"
    lines = [f"line {number}".encode().ljust(length - 1) + b"\n" for number in range(100)]
    with cluster.mounted(f"second-{length}") as second:
        (cluster.mountpoint / name).touch()
        flags = os.O_WRONLY | os.O_APPEND
        files = [os.open(place / name, flags) for place in (cluster.mountpoint, second)]
        for number, line in enumerate(lines):
            assert os.write(files[number % 2], line) == length
            os.fsync(files[number % 2])
        for file in files:
            os.close(file)
        assert (second / name).read_bytes() == b"".join(lines)
        assert (cluster.mountpoint / name).read_bytes() == b"".join(lines)


def test_direct_append_is_no_call_of_the_metadata_service(cluster):
    with (
        luciola.connect(cluster.data) as fs,
        luciola.connect(cluster.data) as other,
        fs.open("/appended", "wb", direct=True) as file,
    ):
        file.write(b"x" * 100_000)
        before = operations(cluster)
        for number in range(50):
            file.pwrite(b"y" * 1000, 100_000 + number * 1000)
        assert operations(cluster) - before < 25, "the clock's calls, and none for each write"
        assert other.stat("/appended").st_size == 150_000
        assert len(other.read("/appended")) == 150_000
