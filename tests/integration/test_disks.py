"""Disks that lie, lose or fill: what applications see, and what is repaired."""

import errno
import os
import re
import subprocess
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until
from disk_bytes import find, forget_pages, small_disk

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.timeout(600)]

MIB = 1 << 20


def storage_directories(cluster: LocalCluster) -> list[Path]:
    return sorted(cluster.data.glob("storage-*"))


def holders(cluster: LocalCluster, needle: bytes) -> list[tuple[Path, int]]:
    found = []
    for directory in storage_directories(cluster):
        try:
            found.append(find(directory, needle))
        except AssertionError:
            continue
    return found


def test_a_flipped_byte_is_never_served_and_is_repaired(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, mount=True) as cluster:
        assert cluster.mountpoint is not None
        content = os.urandom(3 * MIB)
        path = cluster.mountpoint / "file"
        with path.open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        # Both replicas of the middle chunk, one after the other: each must be healed by the other.
        needle = content[MIB + 5000 : MIB + 5064]
        places = holders(cluster, needle)
        assert len(places) == 2
        for disk, offset in places:
            with disk.open("r+b") as file:
                os.pwrite(file.fileno(), bytes([needle[0] ^ 0xFF]), offset)
            for _ in range(8):
                forget_pages(path)
                assert path.read_bytes() == content
            report = cluster.fsck("--scrub", "--repair")
            assert cluster.fsck("--scrub")["problems"] == [], report


def test_scrub_names_a_damaged_replica(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=2, replicas=2, mount=True) as cluster:
        assert cluster.mountpoint is not None
        content = os.urandom(MIB)
        with (cluster.mountpoint / "file").open("wb") as file:
            file.write(content)
            os.fsync(file.fileno())
        disk, offset = find(storage_directories(cluster)[0], content[100_000:100_064])
        with disk.open("r+b") as file:
            os.pwrite(file.fileno(), bytes([content[100_000] ^ 1]), offset)
        (problem,) = cluster.fsck("--scrub")["problems"]
        assert "damaged on node 201" in problem["what"]


def test_an_emptied_disk_is_filled_again(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, mount=True) as cluster:
        assert cluster.mountpoint is not None
        files = {f"file-{index}": os.urandom(2 * MIB + index) for index in range(12)}
        for name, content in files.items():
            (cluster.mountpoint / name).write_bytes(content)
        cluster.down()
        subprocess.run(["rm", "-rf", str(storage_directories(cluster)[1])], check=True)
        cluster.up()
        cluster.wait_healthy()
        assert {name: (cluster.mountpoint / name).read_bytes() for name in files} == files
        assert cluster.fsck("--scrub")["problems"] == []


@contextmanager
def disk_of_its_own(directory: Path, image: Path, size: int) -> Iterator[None]:
    """A file system that can be frozen: calls that change it then wait, as on a disk that hangs."""
    directory.mkdir(parents=True, mode=0o700)
    with image.open("wb") as file:
        file.truncate(size)
    subprocess.run(["mkfs.ext4", "-q", str(image)], check=True)
    subprocess.run(["mount", "-o", "loop", str(image), str(directory)], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", str(directory)], check=True)


@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
def test_a_hanging_disk_is_left_behind_and_its_process_says_so(tmp_path: Path) -> None:
    config = "[storage]\ndisk_timeout_ms = 2000\n"
    cluster = LocalCluster(tmp_path, storage_nodes=2, replicas=2, mount=True, config=config)
    assert cluster.mountpoint is not None
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "run").mkdir(mode=0o700)
    disk = tmp_path / "data" / "storage-202"
    with disk_of_its_own(disk, tmp_path / "image", 512 * MIB), cluster:
        cluster.wait_healthy()
        path = cluster.mountpoint / "file"
        path.write_bytes(os.urandom(4 * MIB))
        subprocess.run(["fsfreeze", "--freeze", str(disk)], check=True)
        try:
            content = os.urandom(4 * MIB)
            with path.open("r+b", buffering=0) as file:
                file.write(content)
                os.fsync(file.fileno())
            assert path.read_bytes() == content
            log = (cluster.data / "log" / "storage-202.log").read_text()
            assert "disk failed: a write of one block has not ended for 2 s" in log
            chains = cluster.ask("chain", "list")
            members = [each for chain in chains for each in chain["targets"] if each["node"] == 202]
            assert {each["state"] for each in members} == {"offline"}
        finally:
            subprocess.run(["fsfreeze", "--unfreeze", str(disk)], check=True)


def test_a_full_disk_gives_enospc_and_recovers(tmp_path: Path) -> None:
    config = "[storage]\nreserve_bytes = 33554432\n[meta]\ngc_delay_ms = 20000\n"
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1, mount=True, config=config)
    assert cluster.mountpoint is not None
    (tmp_path / "data").mkdir(mode=0o700)
    # The directory is a cluster's as soon as it has these.
    (tmp_path / "data" / "run").mkdir(mode=0o700)
    with small_disk(tmp_path / "data" / "storage-201", "256m"), cluster:
        kept = os.urandom(20 * MIB)
        (cluster.mountpoint / "kept").write_bytes(kept)
        block = os.urandom(MIB)
        with (
            pytest.raises(OSError) as caught,
            (cluster.mountpoint / "filler").open("wb", buffering=0) as file,
        ):
            for _ in range(512):
                file.write(block)
            os.fsync(file.fileno())
        assert caught.value.errno == errno.ENOSPC
        assert not cluster.status()["healthy"]
        assert cluster.status()["full"] == [201]
        nodes = luciola("node", "list", "--data", str(cluster.data)).stdout
        assert re.search(r"25\d\.\d MiB +\d", nodes), nodes
        assert "node 201: disk full, writes to its chains fail with ENOSPC" in nodes
        log = cluster.data / "log" / "storage-201.log"
        until(lambda: "disk full: writes fail with ENOSPC" in log.read_text(), what="a line in the log")
        forget_pages(cluster.mountpoint / "kept")
        assert (cluster.mountpoint / "kept").read_bytes() == kept
        (cluster.mountpoint / "directory").mkdir()
        (cluster.mountpoint / "small").write_text("inline files need no chunk")
        (cluster.mountpoint / "filler").unlink()
        until(
            lambda: _can_write(cluster.mountpoint / "again", 40 * MIB), timeout_s=180, what="space to return"
        )
        assert (cluster.mountpoint / "again").stat().st_size == 40 * MIB
        until(lambda: "disk has space again" in log.read_text(), what="a line in the log")
        assert log.read_text().count("disk full") == 1
        assert cluster.status()["full"] == []


def _can_write(path: Path, size: int) -> bool:
    try:
        with path.open("wb") as file:
            file.write(b"x" * size)
            os.fsync(file.fileno())
    except OSError as error:
        assert error.errno == errno.ENOSPC, error
        return False
    return True


@contextmanager
def lying_disk(directory: Path, backing: Path) -> Iterator[None]:
    """A disk that accepts every write and fails when it has to keep it: a file system in a sparse file, on
    another one that is too small for it."""
    backing.mkdir()
    directory.mkdir(parents=True)
    disk = backing / "disk"
    with small_disk(backing / "small", "80m"):
        disk = backing / "small" / "disk"
        subprocess.run(["truncate", "-s", "1G", str(disk)], check=True)
        subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
        subprocess.run(["mount", "-o", "loop", str(disk), str(directory)], check=True)
        (directory / "lost+found").rmdir()
        directory.chmod(0o700)
        try:
            yield
        finally:
            subprocess.run(["umount", str(directory)], check=True)


def states(cluster: LocalCluster, node: int) -> set[str]:
    """What the cluster says of the replicas on one node."""
    chains = cluster.ask("chain", "list")
    return {replica["state"] for chain in chains for replica in chain["targets"] if replica["node"] == node}


def test_a_disk_that_fails_when_it_must_keep_something_loses_nothing(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=2, replicas=2, mount=True)
    assert cluster.mountpoint is not None
    (tmp_path / "data").mkdir(mode=0o700)
    (tmp_path / "data" / "run").mkdir(mode=0o700)
    files = {}
    with lying_disk(tmp_path / "data" / "storage-201", tmp_path / "backing"), cluster:
        for index in range(6):
            content = os.urandom(24 * MIB)
            with (cluster.mountpoint / f"file-{index}").open("wb") as file:
                file.write(content)
                os.fsync(file.fileno())
            files[f"file-{index}"] = content
        until(lambda: states(cluster, 201) == {"offline"}, timeout_s=180, what="the node to be taken out")
        (process,) = [each for each in cluster.services("storage") if str(each["id"]) == "201"]
        assert process["pid"], "it keeps running, without serving, until an operator has looked at its disk"
        assert contents(cluster.mountpoint, files) == files
    # The disk has been replaced.
    with cluster:
        cluster.wait_healthy()
        assert contents(cluster.mountpoint, files) == files
        assert cluster.fsck("--scrub")["problems"] == []


def contents(directory: Path, names: Iterable[str]) -> dict[str, bytes]:
    for name in names:
        forget_pages(directory / name)
    return {name: (directory / name).read_bytes() for name in names}


def test_fsck_repairs_only_when_asked(shared_cluster: LocalCluster) -> None:
    assert shared_cluster.fsck()["problems"] == []
    result = luciola("fsck", "--data", str(shared_cluster.data))
    assert "0 problems" in result.stdout
