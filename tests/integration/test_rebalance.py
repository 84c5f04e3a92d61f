"""Replicas move while programs write and nodes die: a node is added, emptied, or does not return."""

import os
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from cluster import LocalCluster, until
from cluster import luciola as command
from disk_bytes import forget_pages

pytestmark = [pytest.mark.mount, pytest.mark.slow]
OUT_S = 3
CONFIG = "[mgmtd]\nheartbeat_interval_ms = 300\nlease_ms = 2000\nbootstrap_ms = 2200\n"
FILE_BYTES = 3_000_000  # three chunks
FILES = 8


class Writer(threading.Thread):
    """Writes files over and over, and remembers what was synced."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.files = {directory / f"file-{number}": b"" for number in range(FILES)}
        self.count = 0
        self.error: BaseException | None = None
        self._ended = threading.Event()

    def run(self) -> None:
        try:
            while not self._ended.is_set():
                for path in self.files:
                    content = os.urandom(FILE_BYTES)
                    with path.open("r+b" if path.exists() else "wb") as file:
                        file.write(content)
                        os.fsync(file.fileno())
                    self.files[path] = content
                self.count += 1
        except BaseException as error:  # noqa: BLE001 (handed to the test)
            self.error = error

    def advance(self) -> None:
        """Return when every file has been written once more."""
        count = self.count
        until(lambda: self.error is not None or self.count > count + 1, what="all files to be written")
        if self.error is not None:
            raise self.error

    def finish(self) -> None:
        self._ended.set()
        self.join()
        if self.error is not None:
            raise self.error

    def check(self) -> None:
        """Every file has what was synced last."""
        for path, content in self.files.items():
            forget_pages(path)
            assert path.read_bytes() == content, path


def replicas(cluster: LocalCluster) -> Counter[int]:
    """How many replicas each node has."""
    return Counter(each["node"] for chain in cluster.ask("chain", "list") for each in chain["targets"])


def status(cluster: LocalCluster) -> dict[str, Any]:
    found: dict[str, Any] = cluster.ask("rebalance", "status")
    return found


def moved(cluster: LocalCluster) -> None:
    """Return when all moves of the plan are done."""
    until(lambda: status(cluster)["state"] == "idle", what="all moves")
    found = status(cluster)
    assert found["done"] == found["total"] > 0


def taken(cluster: LocalCluster, node: int) -> int:
    """Bytes of a node's disk that chunks cannot have: those of its chunks, and the reserve."""
    (found,) = [each for each in cluster.ask("node", "list") if each["id"] == node]
    count: int = found["capacity_bytes"] - found["free_bytes"]
    return count


def test_moves_under_a_writer_outlive_a_killed_node_and_lose_nothing(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=3, config=CONFIG) as first:
        chains = len(first.ask("chain", "list"))
    cluster = LocalCluster(tmp_path, storage_nodes=4, mount=True, config=CONFIG)
    assert cluster.mountpoint is not None
    with cluster:
        data = ("--data", str(cluster.data))
        assert 204 not in replicas(cluster), "a node that was added has nothing"
        reserve = taken(cluster, 204)
        writer = Writer(cluster.mountpoint)
        writer.start()
        try:
            writer.advance()
            command("rebalance", "start", "--yes", *data)
            until(lambda: status(cluster)["done"] > 0, what="the first move")
            assert status(cluster)["state"] == "running"
            cluster.kill("storage", 3)  # the node that gets replicas
            writer.advance()
            cluster.kill("storage", 0)
            moved(cluster)
            cluster.wait_healthy()
            assert replicas(cluster).total() == 2 * chains
            assert max(replicas(cluster).values()) - min(replicas(cluster).values()) <= 1
            assert len(replicas(cluster)) == 4
            assert cluster.ask("rebalance", "plan")["moves"] == []

            command("rebalance", "start", "--without", "202", "--concurrent", "2", "--yes", *data)
            moved(cluster)
            writer.advance()
        finally:
            writer.finish()
        assert 202 not in replicas(cluster)
        assert replicas(cluster).total() == 2 * chains
        cluster.wait_healthy()
        writer.check()
        assert cluster.fsck("--scrub")["problems"] == []
        assert taken(cluster, 201) > reserve + FILE_BYTES
        until(lambda: taken(cluster, 202) == reserve, what="the space of an emptied node")


def test_drained_and_lost_nodes_are_emptied_under_a_writer_and_nothing_is_lost(tmp_path: Path) -> None:
    config = f"{CONFIG}down_out_s = {OUT_S}\n"
    cluster = LocalCluster(tmp_path, storage_nodes=5, mount=True, config=config)
    assert cluster.mountpoint is not None
    with cluster:
        data = ("--data", str(cluster.data))
        count = replicas(cluster).total()
        reserve = taken(cluster, 202)
        writer = Writer(cluster.mountpoint)
        writer.start()
        try:
            writer.advance()
            command("node", "drain", "205", *data)
            assert state(cluster, 205) in ("draining", "drained")
            until(lambda: state(cluster, 205) == "drained", what="an empty node")
            assert 205 not in replicas(cluster)
            assert all(move["node"] != 205 for move in cluster.ask("rebalance", "plan")["moves"])
            command("node", "undrain", "205", *data)

            disk, aside = cluster.data / "storage-202", cluster.data / "aside"
            disk.rename(aside)
            disk.write_bytes(b"")  # so that it cannot be started
            cluster.kill("storage", 1)
            until(lambda: state(cluster, 202) == "out", what="a node that is out")
            assert "NODE_OUT" in {each["code"] for each in cluster.ask("health")["findings"]}
            until(lambda: 202 not in replicas(cluster), what="copies on other nodes")
            cluster.kill("storage", 0)
            writer.advance()
            disk.unlink()
            aside.rename(disk)
            until(lambda: not state(cluster, 202), what="the return of the node")
        finally:
            writer.finish()
        cluster.wait_healthy()
        until(lambda: status(cluster)["state"] == "idle", what="all moves")
        assert replicas(cluster).total() == count
        writer.check()
        assert cluster.fsck("--scrub")["problems"] == []
        drains = [each for each in cluster.ask("audit") if each["what"] == "Mgmtd.DrainNode"]
        assert [(each["by"], each["outcome"], each["request"]["node"]) for each in drains] == [
            ("mgmtd-1", "done", 205),
            ("mgmtd-1", "done", 205),
        ]
        assert {each["who"]["uid"] for each in drains} == {os.getuid()}
        until(
            lambda: taken(cluster, 202) == reserve,
            what="the space of replicas removed while their node was away",
        )


def state(cluster: LocalCluster, node: int) -> str:
    """Whether a node is leaving, as `node list` says it."""
    (found,) = [each["leaving"] for each in cluster.ask("node", "list") if each["id"] == node]
    said: str = found
    return said
