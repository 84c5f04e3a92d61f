"""`luciola top` on a real cluster: what programs do shows in its rows."""

import threading
from pathlib import Path

import pytest
from click.testing import CliRunner

from cluster import LocalCluster
from luciola.cli import cli
from luciola.errors import Unavailable


def test_work_through_a_mount_shows_in_every_row(shared_cluster: LocalCluster, mounted_dir: Path) -> None:
    ended = threading.Event()

    def work() -> None:
        while not ended.is_set():
            (mounted_dir / "file").write_bytes(bytes(100_000))
            (mounted_dir / "file").unlink()

    worker = threading.Thread(target=work)
    worker.start()
    try:
        report = shared_cluster.ask("top", "--once")
    finally:
        ended.set()
        worker.join()
    rows = {(each["kind"], each["id"]): each for each in report["services"]}
    assert report["silent"] == {}
    assert {kind for kind, _ in rows} == {"mgmtd", "meta", "storage", "mount"}
    mount = rows["mount", str(shared_cluster.mountpoint)]
    assert mount["operations_per_s"] > 0
    assert mount["written_bytes_per_s"] > 0
    assert 0 < mount["p50_s"] <= mount["p99_s"]
    (meta,) = [each for (kind, _), each in rows.items() if kind == "meta"]
    assert meta["operations"]
    assert 0 < meta["p50_s"] <= meta["p99_s"]
    assert any(each["written_bytes_per_s"] > 0 for (kind, _), each in rows.items() if kind == "storage")


def test_stopped_cluster_is_named(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    with cluster:
        pass
    result = CliRunner().invoke(cli, ["top", "--data", str(cluster.data), "--once"])
    assert isinstance(result.exception, Unavailable)
    with pytest.raises(Unavailable, match="no process shows metrics"):
        raise result.exception
