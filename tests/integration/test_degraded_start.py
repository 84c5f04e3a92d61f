"""A cluster with a node or a disk missing starts with what it has, and says what helps."""

import shutil
from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster, until
from cluster import luciola as command

pytestmark = [pytest.mark.mount, pytest.mark.slow]
CONFIG = "[mgmtd]\nheartbeat_interval_ms = 300\nlease_ms = 2000\nbootstrap_ms = 2200\n"


def start(cluster: LocalCluster) -> str:
    """What `up` says on standard error."""
    options = ["--config", str(cluster.root / "config.toml"), "--mount", str(cluster.mountpoint)]
    return command("up", "--data", str(cluster.data), "--detach", *options).stderr


def test_disabled_node_is_reported_and_the_others_serve(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, mount=True, config=CONFIG)
    assert cluster.mountpoint is not None
    data = ["--data", str(cluster.data)]
    with cluster:
        (cluster.mountpoint / "kept").write_bytes(b"k" * 300_000)
        command("node", "disable", "202", *data)
    said = start(cluster)
    try:
        assert "node 202 is disabled; to let it take part: luciola node enable 202" in said
        assert (cluster.mountpoint / "kept").read_bytes() == b"k" * 300_000
        result = command("status", *data, check=False)
        assert result.returncode == 1
        assert "node 202 is disabled" in result.stdout
        report = cluster.status()
        assert {each["id"]: each["state"] for each in report["services"]}["202"] == "disabled"
        assert any("node 202 is disabled" in note for note in report["notes"])
        command("node", "enable", "202", *data)
        cluster.wait_healthy()
        assert cluster.status()["notes"] == []
    finally:
        cluster.down()


def test_chains_that_lost_their_last_disk_do_not_keep_the_others_from_starting(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=2, replicas=1, mount=True, config=CONFIG)
    assert cluster.mountpoint is not None
    data = ["--data", str(cluster.data)]
    with cluster, luciola.connect(cluster.data) as fs:
        fs.write("/small", b"in its inode")
    shutil.rmtree(cluster.data / "storage-202")
    (cluster.data / "storage-202").mkdir()
    said = start(cluster)
    try:
        assert "waiting for node 202, whose data are gone" in said
        assert "--last-serving" in said
        assert (cluster.mountpoint / "small").read_bytes() == b"in its inode"
        assert command("status", *data, check=False).returncode == 1
        found = cluster.ask("chain", "list")
        lost = [str(each["id"]) for each in found if each["state"] == "unavailable"]
        assert {len(lost), len(found) - len(lost)} != {0}, "one node is whole"
    finally:
        cluster.down()
    until(lambda: cluster.status()["phase"] == "stopped", what="the stop")
