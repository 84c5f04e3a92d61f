"""A store that is lost, damaged or older than the rest of the cluster is refused, by name and with the remedy."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola

pytestmark = pytest.mark.slow


def write(cluster: LocalCluster, name: str, content: str) -> None:
    local = cluster.root / "local"
    local.write_text(content)
    luciola("cp", str(local), f"lu:/{name}", "--data", str(cluster.data))


def names(cluster: LocalCluster) -> list[str]:
    return luciola("ls", "/", "--data", str(cluster.data)).stdout.split()


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


@pytest.mark.parametrize("name", ["meta", "mgmtd"])
def test_lost_store_is_never_created_again(tmp_path: Path, name: str) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    with cluster:
        write(cluster, "kept", "content")
    store, copy = cluster.data / name, tmp_path / "copy"
    shutil.copytree(store, copy)
    damages: list[Callable[[Path], None]] = [remove, empty, lose_current]
    for damage in damages:
        damage(store)
        said = refused(cluster)
        assert f"{name}" in said
        assert "refuses to start" in said
        assert f"put back the newest copy of {store}" in said
        assert not (store / "CURRENT").exists()
        shutil.rmtree(store, ignore_errors=True)
        shutil.copytree(copy, store)
    with cluster:
        assert names(cluster) == ["kept"]
