"""A whole cluster whose data moves by RDMA and nothing else: a mount, the native client, three nodes, two ports.

That it was RDMA is shown by the devices themselves, which count their packets.
"""

import itertools
import os
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster
from luciola.client import Buffer, Operation
from luciola.config import ClientConfig
from rdma import cable

pytestmark = [pytest.mark.slow, pytest.mark.mount, pytest.mark.timeout(1500)]

MIB = 1 << 20
PACKET = 4096
# An emulated machine is slow: a late process there has not died.
PATIENCE_S = 600
CONFIG = """
[mgmtd]
lease_ms = 15000
bootstrap_ms = 16000
[storage]
transport = "rdma"
[client]
transport = "rdma"
deadline_ms = 120000
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    # Programs are read from the machine outside, slowly the first time: not while a supervisor waits for them.
    services = ("mgmtd", "meta", "storage")
    imports = "; ".join(f"import luciola.{name}.__main__" for name in services)
    subprocess.run([sys.executable, "-c", imports], check=True)
    with LocalCluster(tmp_path_factory.mktemp("cluster"), replicas=3, mount=True, config=CONFIG) as running:
        running.wait_healthy(timeout_s=PATIENCE_S)
        yield running


@pytest.fixture(scope="module")
def fs(cluster: LocalCluster) -> Iterator[luciola.FileSystem]:
    config = ClientConfig(transport="rdma", deadline_ms=120_000)
    with luciola.connect(cluster.data, config=config) as fs:
        yield fs


def packets() -> int:
    """Packets that both devices have sent since they were made."""
    counters = Path("/sys/class/infiniband").glob("*/ports/1/hw_counters/sent_pkts")
    return sum(int(counter.read_text()) for counter in counters)


def data(seed: int, size: int = 6 * MIB + 123) -> bytes:
    return random.Random(seed).randbytes(size)


def drop_caches() -> None:
    """What is read next comes from storage nodes, not from the kernel's memory."""
    os.sync()
    Path("/proc/sys/vm/drop_caches").write_text("3")


def test_files_on_a_mount_cross_the_fabric_and_come_back(cluster: LocalCluster) -> None:
    before = packets()
    for seed in range(3):
        (cluster.mountpoint / f"file-{seed}").write_bytes(data(seed))
    # Each byte reaches three replicas: fetched by the head, then passed along.
    assert packets() - before > 3 * 3 * len(data(0)) // PACKET
    drop_caches()
    before = packets()
    for seed in range(3):
        assert (cluster.mountpoint / f"file-{seed}").read_bytes() == data(seed)
    assert packets() - before > 3 * len(data(0)) // PACKET


def test_a_ring_copies_and_verifies(fs: luciola.FileSystem) -> None:
    content = data(7, 4 * MIB)
    fs.write("/source", content)
    memory = Buffer(len(content))
    before = packets()
    with fs.ring(16) as ring:
        with fs.open("/source", "rb") as source:
            ring.submit(Operation(source, at * MIB, memory, at * MIB, MIB) for at in range(4))
            drained(ring, 4)
        with fs.open("/target", "wb") as target:
            ring.submit(Operation(target, at * MIB, memory, at * MIB, MIB, write=True) for at in range(4))
            drained(ring, 4)
    assert fs.read("/target") == content
    assert packets() - before > 2 * len(content) // PACKET


def drained(ring, count: int) -> None:
    done = []
    while len(done) < count:
        done += ring.drain(least=1, timeout_s=PATIENCE_S)
    assert all(each.moved == MIB for each in done)


def test_a_killed_node_costs_nothing(cluster: LocalCluster) -> None:
    (cluster.mountpoint / "before").write_bytes(data(11))
    cluster.kill("storage", 1)
    (cluster.mountpoint / "after").write_bytes(data(12))
    drop_caches()
    assert (cluster.mountpoint / "before").read_bytes() == data(11)
    assert (cluster.mountpoint / "after").read_bytes() == data(12)
    cluster.wait_healthy(timeout_s=PATIENCE_S)
    assert cluster.fsck()["problems"] == []


def test_loss_delay_and_reordering_lose_nothing(cluster: LocalCluster, whole_cable: None) -> None:
    cable.disturb("ve0", "delay", "1ms", "500us", "loss", "0.5%", "reorder", "25%")
    (cluster.mountpoint / "disturbed").write_bytes(data(13, 2 * MIB))
    drop_caches()
    assert (cluster.mountpoint / "disturbed").read_bytes() == data(13, 2 * MIB)


def test_a_cut_cable_is_bridged_when_it_is_mended(cluster: LocalCluster, whole_cable: None) -> None:
    """What was written before is there, and what is written after; connections are made again."""
    (cluster.mountpoint / "kept").write_bytes(data(14, MIB))
    cable.cut("ve0")
    cable.mend()
    (cluster.mountpoint / "again").write_bytes(data(15, MIB))
    drop_caches()
    assert (cluster.mountpoint / "kept").read_bytes() == data(14, MIB)
    assert (cluster.mountpoint / "again").read_bytes() == data(15, MIB)
    cluster.wait_healthy(timeout_s=PATIENCE_S)
    assert cluster.fsck("--scrub")["problems"] == []


def test_the_devices_hold_no_more_than_connections_need(cluster: LocalCluster) -> None:
    """Clients that come and go leave no queue pair behind."""

    def connect_once() -> None:
        with luciola.connect(cluster.data, config=ClientConfig(transport="rdma", deadline_ms=120_000)) as fs:
            assert fs.read("/held") == data(16, MIB)

    (cluster.mountpoint / "held").write_bytes(data(16, MIB))
    connect_once()
    before = queue_pairs()
    for _ in range(5):
        connect_once()
    cable.wait_for("queue pairs are as many as before", lambda: queue_pairs() <= before)


def queue_pairs() -> int:
    shown = subprocess.run(["rdma", "resource"], capture_output=True, text=True, check=True).stdout.split()
    return sum(int(count) for name, count in itertools.pairwise(shown) if name == "qp")
