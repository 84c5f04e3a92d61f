"""A store that is lost, damaged or older than the rest of the cluster is refused, by name and with the remedy."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until
from luciola import connect
from luciola.meta.schema import GENERATION_BITS
from luciola.mgmtd.rebuild import CONFIG_GAP

pytestmark = pytest.mark.slow


REVOKED = "5f" * 16  # the id of a token


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> tuple[LocalCluster, Path]:
    """A cluster that is stopped, with one file, and a copy of its directory. Put that back before you use it."""
    root = tmp_path_factory.mktemp("kept")
    cluster, copy = LocalCluster(root, storage_nodes=1, replicas=1), root / "copy"
    with cluster:
        write(cluster, "kept", "content")
    copy_sparse(cluster.data, copy)
    return cluster, copy


def write(cluster: LocalCluster, name: str, content: str) -> None:
    with connect(str(cluster.data)) as fs:
        fs.write(f"/{name}", content.encode())


def names(cluster: LocalCluster) -> list[str]:
    with connect(str(cluster.data)) as fs:
        return fs.listdir("/")


def refused(cluster: LocalCluster, *options: str) -> str:
    """What `up` says on standard error; nothing runs afterwards."""
    result = luciola("up", "--data", str(cluster.data), "--detach", *options, check=False)
    assert result.returncode == 1, result.stderr
    status = cluster.status()
    assert status["phase"] == "stopped"
    assert all(service["pid"] is None for service in status["services"])
    return result.stderr


def remove(store: Path) -> None:
    shutil.rmtree(store)


def empty(store: Path) -> None:
    shutil.rmtree(store)
    store.mkdir()


def lose_current(store: Path) -> None:
    (store / "CURRENT").unlink()


@pytest.mark.parametrize(
    ("name", "damages"), [("meta", (remove, empty, lose_current)), ("mgmtd", (empty,))], ids=["meta", "mgmtd"]
)
def test_lost_store_is_never_created_again(
    kept: tuple[LocalCluster, Path], name: str, damages: tuple[Callable[[Path], None], ...]
) -> None:
    """Both services open their stores by the same engine; that of mgmtd is also removed in a test below."""
    cluster, copy = kept
    put_back(copy, cluster.data)
    store = cluster.data / name
    for damage in damages:
        damage(store)
        said = refused(cluster)
        assert f"{name}" in said
        assert "refuses to start" in said
        remedy = "put back the newest copy of" if name == "meta" else "--rebuild-mgmtd"
        assert remedy in said
        assert str(store) in said
        assert not (store / "CURRENT").exists()
        put_back(copy / name, store)
    with cluster:
        assert names(cluster) == ["kept"]


def test_everything_put_back_from_one_moment_starts_without_a_word(kept: tuple[LocalCluster, Path]) -> None:
    cluster, copy = kept
    put_back(copy, cluster.data)
    with cluster:
        write(cluster, "second", "2")
    put_back(copy, cluster.data)
    with cluster:
        assert names(cluster) == ["kept"]
        write(cluster, "third", "3")


def put_back(copy: Path, store: Path) -> None:
    shutil.rmtree(store, ignore_errors=True)
    copy_sparse(copy, store)


def copy_sparse(source: Path, copy: Path) -> None:
    subprocess.run(["cp", "-a", "--sparse=always", source, copy], check=True)


def inode(cluster: LocalCluster, name: str) -> int:
    with connect(str(cluster.data)) as fs:
        return fs.stat(f"/{name}").st_ino


def content(cluster: LocalCluster, name: str) -> str:
    with connect(str(cluster.data)) as fs, fs.open(f"/{name}", "rb") as file:
        return file.read().decode()


def test_older_metadata_store_is_refused_until_its_loss_is_accepted(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    store, older, newest = cluster.data / "meta", tmp_path / "older", tmp_path / "newest"
    with cluster:
        write(cluster, "first", "1")
    shutil.copytree(store, older)
    with cluster:
        write(cluster, "second", "2")
        luciola("rm", "lu:/first", "--data", str(cluster.data))
    shutil.copytree(store, newest)

    put_back(older, store)
    said = refused(cluster)
    assert "meta's store is older than the cluster: position" in said
    assert f"put back the newest copy of {store}" in said
    assert f"luciola up --data {cluster.data} --accept-metadata-loss" in said

    unanswered = luciola("up", "--data", str(cluster.data), "--accept-metadata-loss", check=False)
    assert unanswered.returncode == 2
    assert "repeat with --yes" in unanswered.stderr
    luciola("up", "--data", str(cluster.data), "--detach", "--accept-metadata-loss", "--yes")
    assert names(cluster) == ["first"]
    write(cluster, "third", "3")
    assert inode(cluster, "third") >> GENERATION_BITS == 2, (
        "an id of the lost state could be handed out again"
    )
    cluster.kill("meta")
    cluster.wait_healthy()  # whose loss was accepted once, and not with every start
    write(cluster, "fourth", "4")
    assert inode(cluster, "fourth") >> GENERATION_BITS == 2
    cluster.down()

    put_back(newest, store)
    assert "generation 1, but an operator accepted its loss in generation 2" in refused(cluster)
    shutil.rmtree(store)
    assert "--accept-metadata-loss" in refused(cluster)
    luciola("up", "--data", str(cluster.data), "--detach", "--accept-metadata-loss", "--yes")
    with cluster_that_runs(cluster):
        assert names(cluster) == []
        write(cluster, "fifth", "5")
        assert inode(cluster, "fifth") >> GENERATION_BITS == 3


def test_older_store_of_mgmtd_is_refused_and_made_again_of_what_the_storage_nodes_remember(
    tmp_path: Path,
) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=2, replicas=2)
    store, older = cluster.data / "mgmtd", tmp_path / "older"
    with cluster:
        write(cluster, "file", "before" * 1000)
    shutil.copytree(store, older)
    with cluster:
        cluster.wait_healthy()
        luciola("token", "revoke", REVOKED, "--data", str(cluster.data))
        luciola("config", "set", "mgmtd.down_out_s=1800", "--data", str(cluster.data))
        copies = [
            cluster.data / f"{name}.config.json" for name in ("mgmtd", "meta", "storage-201", "storage-202")
        ]
        until(lambda: all(copy.exists() for copy in copies), what="copies of the settings")
        luciola("node", "disable", "202", "--data", str(cluster.data))
        until(lambda: not serves(cluster, 202), what="the fall of node 202")
        write(cluster, "file", "after!" * 1000)

    put_back(older, store)
    said = refused(cluster)
    assert "mgmtd's store is older than the cluster: node 20" in said
    assert f"luciola up --data {cluster.data} --rebuild-mgmtd" in said
    shutil.rmtree(store)
    assert "--rebuild-mgmtd" in refused(cluster)
    unanswered = luciola("up", "--data", str(cluster.data), "--rebuild-mgmtd", check=False)
    assert unanswered.returncode == 2
    assert "what 2 storage nodes remember" in unanswered.stderr
    luciola("up", "--data", str(cluster.data), "--detach", "--rebuild-mgmtd", "--yes")
    with cluster_that_runs(cluster):
        assert content(cluster, "file") == "after!" * 1000
        assert REVOKED in luciola("token", "list", "--data", str(cluster.data)).stdout
        history = cluster.ask("config", "history")
        assert [(each["version"], each["author"]) for each in history] == [(1 + CONFIG_GAP, "rebuild")]
        (value,) = {row["value"] for row in cluster.ask("config", "get", "mgmtd.down_out_s")}
        assert value == 1800
        cluster.wait_healthy()
        cluster.kill("storage", 0)  # the replica that missed the write has it now
        assert content(cluster, "file") == "after!" * 1000
        cluster.wait_healthy()
        assert cluster.fsck()["problems"] == []
    with cluster:
        assert content(cluster, "file") == "after!" * 1000


def serves(cluster: LocalCluster, node: int) -> bool:
    targets = [target for chain in cluster.status()["chains"] for target in chain["targets"]]
    return any(target["node"] == node and target["state"] == "serving" for target in targets)


@contextmanager
def cluster_that_runs(cluster: LocalCluster) -> Iterator[None]:
    try:
        yield
    finally:
        cluster.down()


@pytest.mark.parametrize("replicas", [1, 2])
def test_older_copy_of_a_storage_directory_is_refused_and_the_newest_bytes_are_read(
    tmp_path: Path, replicas: int
) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=replicas, replicas=replicas)
    store, older, newest = cluster.data / "storage-201", tmp_path / "older", tmp_path / "newest"
    with cluster:
        write(cluster, "file", "before" * 1000)
    copy_sparse(store, older)
    with cluster:
        cluster.kill("storage", 0)
        cluster.wait_healthy()
        write(cluster, "file", "after!" * 1000)
    copy_sparse(store, newest)

    put_back(older, store)
    if replicas == 1:
        said = refused(cluster)
    else:
        up = luciola("up", "--data", str(cluster.data), "--detach", check=False)
        with cluster_that_runs(cluster):
            said = up.stdout + up.stderr
            assert content(cluster, "file") == "after!" * 1000
            assert not serves(cluster, 201)
    assert "the directory of node 201 is an older copy" in said
    assert f"put back the newest {store}, or empty it" in said

    put_back(newest, store)
    with cluster:
        assert content(cluster, "file") == "after!" * 1000
        cluster.wait_healthy()
        assert cluster.fsck()["problems"] == []
    put_back(older, store)
    if replicas == 1:  # and the newest is lost: an operator takes what there is
        assert "--rebuild-mgmtd" in refused(cluster)
        luciola("up", "--data", str(cluster.data), "--detach", "--rebuild-mgmtd", "--yes")
        with cluster_that_runs(cluster):
            assert serves(cluster, 201)
    else:
        empty(store)
        with cluster:
            cluster.wait_healthy()
            cluster.kill("storage", 1)  # the replica that was filled has it now
            assert content(cluster, "file") == "after!" * 1000


def test_copy_of_a_storage_directory_made_while_its_node_ran_is_refused(tmp_path: Path) -> None:
    """As a whole, and its chunks alone; however often it is started."""
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    store, older, newest = cluster.data / "storage-201", tmp_path / "older", tmp_path / "newest"
    with cluster:
        write(cluster, "file", "before" * 1000)
        copy_sparse(store, older)
        write(cluster, "file", "after!" * 1000)
        with connect(str(cluster.data)) as fs, fs.open("/file", "r+b") as file:
            file.fsync()
        for change in (
            ("disable", "--yes"),
            ("enable",),
        ):  # after which mgmtd has a heartbeat of the node again
            luciola("node", *change, "201", "--data", str(cluster.data))
        cluster.wait_healthy()
    copy_sparse(store, newest)
    for part, starts in (("chunks", 2), (".", 1)):
        put_back(newest, store)
        put_back(older / part, store / part)
        for _ in range(starts):
            said = refused(cluster)
            assert "the directory of node 201 is an older copy" in said
            assert f"put back the newest {store}, or empty it" in said
    put_back(newest, store)
    with cluster:
        assert content(cluster, "file") == "after!" * 1000


def test_second_metadata_service_with_a_store_of_its_own_is_refused(
    shared_cluster: LocalCluster, tmp_path: Path
) -> None:
    for node in ("100", "101"):
        command = [sys.executable, "-m", "luciola.meta", "--data", str(tmp_path / node), "--create"]
        command += ["--cluster", str(shared_cluster.data / "cluster.json"), "--node-id", node]
        result = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
        assert result.returncode == os.EX_CONFIG
        assert "but the cluster's is 0x" in result.stderr
    assert shared_cluster.status()["healthy"]
