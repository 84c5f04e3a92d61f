"""`luciola up`, `down`, `status`: what a person relies on."""

import json
import os
import shutil
import signal
import subprocess
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until

pytestmark = [pytest.mark.mount, pytest.mark.timeout(300)]


def test_same_directory_brings_the_same_files_back(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, mount=True)
    assert cluster.mountpoint is not None
    with cluster:
        (cluster.mountpoint / "kept").write_bytes(b"x" * 3_000_000)
        identity = cluster.status()["cluster_id"]
        (
            cluster.data / "run" / "state.json"
        ).unlink()  # `down` does not depend on what the supervisor could write
    assert not os.path.ismount(cluster.mountpoint)
    with cluster:
        assert (cluster.mountpoint / "kept").read_bytes() == b"x" * 3_000_000
        assert cluster.status()["cluster_id"] == identity


def test_kill_of_everything_loses_nothing_acknowledged(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, mount=True)
    assert cluster.mountpoint is not None
    with cluster:
        files = {f"file-{index}": os.urandom(200_000 + index) for index in range(20)}
        for name, content in files.items():
            (cluster.mountpoint / name).write_bytes(content)
        cluster.kill_everything()
        cluster.up()
        assert {name: (cluster.mountpoint / name).read_bytes() for name in files} == files
        cluster.wait_healthy()
        assert cluster.fsck()["problems"] == []


def test_down_after_a_kill_of_everything_leaves_no_dead_mount(tmp_path: Path) -> None:
    root = tmp_path / "a place with spaces"
    root.mkdir()
    cluster = LocalCluster(root, storage_nodes=1, replicas=1, mount=True)
    assert cluster.mountpoint is not None
    cluster.up()
    second = root / "second mount"
    second.mkdir()
    luciola("mount", str(cluster.data), str(second))
    (second / "kept").write_bytes(b"kept")
    served = next(each for each in cluster.services("mount") if each["id"] == str(second))
    cluster.kill_everything()
    os.kill(served["pid"], signal.SIGKILL)
    until(lambda: {each["state"] for each in cluster.services("mount")} == {"dead"}, what="dead mounts")
    refused = luciola("mount", str(cluster.data), str(root), check=False)
    assert refused.returncode == 1
    cluster.down()
    assert cluster.services("mount") == []
    for place in (cluster.mountpoint, second):
        assert not os.path.ismount(place)
        assert list(place.iterdir()) == []
    with cluster:
        assert (cluster.mountpoint / "kept").read_bytes() == b"kept"


def test_down_waits_for_programs_and_then_cuts_them_off(tmp_path: Path) -> None:
    cluster = LocalCluster(
        tmp_path, storage_nodes=1, replicas=1, mount=True, config="[mount]\ngrace_ms = 3000\n"
    )
    assert cluster.mountpoint is not None
    cluster.up()
    pids = [service["pid"] for service in cluster.services("mount")]
    file = os.open(cluster.mountpoint / "busy", os.O_WRONLY | os.O_CREAT, 0o644)
    os.write(file, b"written")
    result = luciola("down", "--data", str(cluster.data))
    assert f"programs that use {cluster.mountpoint}" in result.stderr
    for call in (os.fsync, os.close):
        with pytest.raises(OSError, match=r"not connected|connection abort|Input/output"):
            call(file)
    assert not os.path.ismount(cluster.mountpoint)
    assert not [pid for pid in pids if Path(f"/proc/{pid}").exists()]
    with cluster:
        assert (cluster.mountpoint / "busy").read_bytes() == b"written"


@pytest.mark.root
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=128k", "none", str(disk)], check=True)
    try:
        (disk / "lost+found").write_bytes(bytes(100 << 10))
        options = ["--data", str(disk), "--storage-nodes", "1"]
        result = luciola("up", *options, "--detach", check=False)
        assert result.returncode == 1
        assert "No space left" in result.stderr
        assert str(disk) in result.stderr
    finally:
        subprocess.run(["umount", str(disk)], check=True)  # fails while anything runs there


def test_a_service_that_dies_is_started_again(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, mount=True) as cluster:
        for kind in ("storage", "meta", "mgmtd", "mount"):
            old = cluster.kill(kind)
            until(lambda kind=kind, old=old: _is_replaced(cluster, kind, old), what=f"another {kind}")
        cluster.wait_healthy()
        assert cluster.mountpoint is not None
        (cluster.mountpoint / "after").write_text("all is well")
        assert (cluster.mountpoint / "after").read_text() == "all is well"


def _is_replaced(cluster: LocalCluster, kind: str, old: dict[str, object]) -> bool:
    now = next(service for service in cluster.services(kind) if service["id"] == old["id"])
    return now["state"] == "running" and now["pid"] not in (None, old["pid"])


def test_status_has_the_promised_shape(shared_cluster: LocalCluster) -> None:
    report = shared_cluster.status()
    kinds = sorted(service["kind"] for service in report["services"])
    assert kinds == ["meta", "mgmtd", "mount", "storage", "storage", "storage"]
    for service in report["services"]:
        assert {"kind", "id", "pid", "state"} <= service.keys()
        assert Path(f"/proc/{service['pid']}").exists()


def test_every_counter_is_explained(shared_cluster: LocalCluster) -> None:
    counters = shared_cluster.ask("node", "counters", "201")
    docs = Path(__file__).parents[2] / "docs"
    text = (docs / "operations.md").read_text() + (docs / "rdma.md").read_text()
    assert [name for name in counters if f"`{name}`" not in text] == []


def test_second_supervisor_is_refused(shared_cluster: LocalCluster) -> None:
    result = luciola("up", "--data", str(shared_cluster.data), "--detach", check=False)
    assert result.returncode == 1
    assert "running already" in result.stderr


def test_a_place_where_something_is_mounted_is_refused(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    options = ["--data", str(tmp_path / "data"), "--mount", str(shared_cluster.mountpoint)]
    result = luciola("up", *options, "--detach", check=False)
    assert result.returncode == 1
    assert "is mounted here already; unmount it first" in result.stderr
    assert json.loads((tmp_path / "data" / "run" / "state.json").read_text())["services"] == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--storage-nodes", "0"], "0 is not in the range"),
        (["--replicas", "4", "--storage-nodes", "3"], "need at least 4 storage nodes"),
        (["--replicas", "7", "--storage-nodes", "7"], "7 is not in the range 1<=x<=6"),
        (["--config", "/nonexistent.toml"], "no such configuration file"),
        (["--mount", "/proc/version"], "is a file"),
    ],
)
def test_wrong_options_say_what_to_do(tmp_path: Path, options: list[str], message: str) -> None:
    result = luciola("up", "--data", str(tmp_path / "data"), "--detach", *options, check=False)
    assert result.returncode in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "data").exists() or "--mount" in options  # whose place is looked at later


def test_a_service_that_cannot_start_is_named_with_what_it_says(tmp_path: Path) -> None:
    config = tmp_path / "config.toml"
    config.write_text("[mgmtd]\nlease_ms = 1000\n")
    options = ["--data", str(tmp_path / "data"), "--config", str(config)]
    result = luciola("up", *options, "--detach", check=False)
    assert result.returncode == 1
    assert "mgmtd refuses to start: mgmtd.lease_ms: must be at least two heartbeat" in result.stderr
    assert json.loads((tmp_path / "data" / "run" / "state.json").read_text())["phase"] == "stopped"


def test_a_foreign_directory_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("mine")
    result = luciola("up", "--data", str(tmp_path), "--detach", check=False)
    assert result.returncode == 1
    assert "not empty and holds no cluster" in result.stderr
    assert sorted(os.listdir(tmp_path)) == ["precious"]


def test_status_and_down_without_a_cluster_say_so(tmp_path: Path) -> None:
    for command in ("status", "down", "fsck"):
        result = luciola(command, "--data", str(tmp_path), check=False)
        assert result.returncode == 1
        assert "no cluster in this directory" in result.stderr


def test_damaged_cluster_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "cluster.json").write_text("{")
    result = luciola("status", "--data", str(tmp_path), check=False)
    assert result.returncode == 1
    assert "cluster.json" in result.stderr


def test_status_of_a_stopped_cluster(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    with cluster:
        pass
    result = luciola("status", "--data", str(cluster.data), "--json", check=False)
    assert result.returncode == 1
    assert json.loads(result.stdout)["phase"] == "stopped"
    again = luciola("down", "--data", str(cluster.data))
    assert again.stdout == "the cluster was not running\n"
    (tmp_path / "mnt").mkdir()
    for command in (["ls"], ["fsck"], ["node", "list"], ["mount", str(cluster.data), str(tmp_path / "mnt")]):
        options = [] if command[0] == "mount" else ["--data", str(cluster.data)]
        result = luciola(*command, *options, check=False, timeout_s=60)
        assert result.returncode == 1
        assert f"is not running; to start it: luciola up --data {cluster.data}" in result.stderr
    shutil.rmtree(cluster.data)


def test_lost_secret_is_reported(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    with cluster:
        pass
    (cluster.data / "secret").unlink()
    result = luciola("up", "--data", str(cluster.data), "--detach")
    try:
        assert "the cluster secret was missing, and a new one was made: tokens are void" in result.stderr
    finally:
        cluster.down()
