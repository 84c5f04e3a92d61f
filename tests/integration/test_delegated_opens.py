"""Opens that mounts answer by themselves: what they show, and what a kill of a mount or of the service does to them."""

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cluster import LocalCluster, meta_status, until

pytestmark = pytest.mark.mount

LIMIT_S = 120.0


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    root = tmp_path_factory.mktemp("delegated")
    config = "[meta]\ndelegation_lease_ms = 5000\n"
    with LocalCluster(root, storage_nodes=1, replicas=1, mount=True, config=config) as cluster:
        yield cluster


def operations(cluster: LocalCluster) -> int:
    status = meta_status(cluster)
    return -1 if status is None else status.operations


def open_until_delegated(cluster: LocalCluster, path: Path) -> None:
    """Open the file again and again, as a program does, until the metadata service is not asked for that."""

    def is_delegated() -> bool:
        before = operations(cluster)
        path.read_bytes()
        return before >= 0 and operations(cluster) == before

    until(is_delegated, timeout_s=LIMIT_S, what=f"{path} to be delegated")


def change(path: Path, data: bytes) -> None:
    """As a program that is given up if it hangs."""
    failures: list[BaseException] = []

    def write() -> None:
        try:
            path.write_bytes(data)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=write, daemon=True)
    thread.start()
    thread.join(LIMIT_S)
    assert not thread.is_alive(), f"a change of {path} hangs"
    assert not failures, failures


@pytest.mark.timeout(600)
@pytest.mark.parametrize("size", [10, 100_000])
def test_change_of_one_mount_is_seen_by_the_next_open_of_another_that_opens_by_itself(cluster, size):
    name = f"shared-{size}"
    with cluster.mounted(f"second-{size}") as second:
        change(cluster.mountpoint / name, b"0" * size)
        for letter in (b"a", b"b", b"c"):
            for reader in (second, cluster.mountpoint):
                open_until_delegated(cluster, reader / name)
            change(cluster.mountpoint / name, letter * size)
            assert (second / name).read_bytes() == letter * size
            assert (cluster.mountpoint / name).read_bytes() == letter * size
        open_until_delegated(cluster, second / name)
        with (second / name).open("rb") as file:
            (cluster.mountpoint / name).unlink()
            assert file.read() == b"c" * size, "it is open, by the reader itself"


@pytest.mark.timeout(600)
def test_reader_that_is_killed_holds_a_change_up_for_its_lease_only(cluster):
    path = cluster.mountpoint / "killed"
    change(path, b"before")
    with cluster.mounted("reader") as reader:
        open_until_delegated(cluster, reader / "killed")
        (mount,) = [
            each
            for each in cluster.status()["services"]
            if each["kind"] == "mount" and each["id"] == str(reader)
        ]
        os.kill(mount["pid"], signal.SIGKILL)
        change(path, b"after")
        assert path.read_bytes() == b"after"


@pytest.mark.timeout(600)
def test_after_the_service_was_killed_readers_show_changes_and_open_by_themselves_again(cluster):
    path = cluster.mountpoint / "restarted"
    change(path, b"before")
    with cluster.mounted("other") as other:
        open_until_delegated(cluster, other / "restarted")
        cluster.kill("meta")
        change(path, b"after")
        assert (other / "restarted").read_bytes() == b"after"
        open_until_delegated(cluster, other / "restarted")
        assert (other / "restarted").read_bytes() == b"after"
