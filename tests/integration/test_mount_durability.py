"""Which writes through a mount are durable when they return: open(2) with `O_DSYNC` and `O_SYNC`, `RWF_DSYNC`."""

import mmap
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola

pytestmark = pytest.mark.mount

WRITES = 8
PAGE = 4096


def syncs(cluster: LocalCluster) -> int:
    """How often storage nodes have been asked to make chunks durable."""
    total = 0
    for node in cluster.services("storage"):
        total += cluster.ask("node", "counters", str(node["id"]))["syncs"]
    return total


@pytest.fixture
def page() -> Iterator[mmap.mmap]:
    """A page of memory that direct writes accept."""
    with mmap.mmap(-1, PAGE) as memory:
        memory.write(b"p" * PAGE)
        yield memory


@pytest.fixture(scope="module")
def strict(shared_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A strict mount of the shared cluster."""
    mountpoint = tmp_path_factory.mktemp("strict")
    luciola("mount", "--consistency", "strict", str(shared_cluster.data), str(mountpoint))
    yield mountpoint
    luciola("umount", str(mountpoint))


def count_syncs(cluster: LocalCluster, path: Path, page: mmap.mmap, flags: int, per_write: int = 0) -> int:
    """Overwrites a file of one chunk `WRITES` times; how many syncs storage nodes were asked for."""
    path.write_bytes(bytes(WRITES * PAGE))
    descriptor = os.open(path, os.O_WRONLY | flags)
    try:
        os.fsync(descriptor)  # what was written before is durable
        before = syncs(cluster)
        for number in range(WRITES):
            os.pwritev(descriptor, [page], number * PAGE, per_write)
        after = syncs(cluster)
        os.fsync(descriptor)
        left = syncs(cluster) - after
    finally:
        os.close(descriptor)
        path.unlink()
    assert left or after - before >= WRITES, "what was not synced by the writes is synced by fsync"
    return after - before


@pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC], ids=["O_DSYNC", "O_SYNC"])
@pytest.mark.parametrize("direct", [os.O_DIRECT, 0], ids=["direct", "buffered"])
def test_write_to_descriptor_opened_for_synchronous_writes_is_durable(shared_cluster, page, flag, direct):
    path = shared_cluster.mountpoint / "synchronous"
    assert count_syncs(shared_cluster, path, page, direct | flag) >= WRITES


@pytest.mark.parametrize("direct", [os.O_DIRECT, 0], ids=["direct", "buffered"])
def test_write_that_asks_for_durability_itself_is_durable(shared_cluster, page, direct):
    path = shared_cluster.mountpoint / "per-write"
    assert count_syncs(shared_cluster, path, page, direct, os.RWF_DSYNC) >= WRITES


@pytest.mark.parametrize("flag", [os.O_DSYNC, os.O_SYNC], ids=["O_DSYNC", "O_SYNC"])
def test_synchronous_write_on_a_strict_mount_is_durable(shared_cluster, strict, page, flag):
    assert count_syncs(shared_cluster, strict / "synchronous", page, flag) >= WRITES


def test_write_that_asks_for_no_durability_is_not_synced(shared_cluster, page):
    path = shared_cluster.mountpoint / "plain"
    # Chunks of files that other tests removed may be collected meanwhile, which ends with syncs: that only adds some.
    assert min(count_syncs(shared_cluster, path, page, os.O_DIRECT) for _ in range(3)) < WRITES / 2
