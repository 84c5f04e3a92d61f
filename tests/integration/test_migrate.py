"""`luciola metadata migrate`: one store each, logs in etcd, and back, with the same files all along."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until
from etcd_members import require_etcd

pytestmark = [pytest.mark.mount, pytest.mark.timeout(900)]

SHOWN_AS_KILLED = ("meta.new", "etcd-1/member", "meta-checkpoints.new/*/SEAL")


def test_a_cluster_goes_to_logs_and_back_with_the_same_files(tmp_path: Path) -> None:
    require_etcd()
    with LocalCluster(tmp_path, storage_nodes=1, replicas=1, mount=True) as cluster:
        assert cluster.mountpoint is not None
        _write(cluster.mountpoint, "embedded")
        running = _migrate(cluster, "etcd", check=False)
        assert running.returncode == 1
        assert "the cluster runs: stop it first with `luciola down" in running.stderr
        before = _dump(cluster)
        cluster.down()

        for shown in SHOWN_AS_KILLED:
            _kill_migration(cluster, shown)
        _migrate(cluster, "etcd")
        assert "there already" in _migrate(cluster, "etcd").stdout
        cluster.up()
        cluster.wait_healthy()
        until(
            lambda: _roles(cluster) == ["primary", "standby"], what="a standby that began with a checkpoint"
        )
        assert _dump(cluster) == before
        killed = _kill_primary(cluster)
        _write(cluster.mountpoint, "replicated")  # waits for the other
        until(lambda: killed not in _pids(cluster), what="the end of the killed one")
        cluster.wait_healthy()
        assert cluster.fsck()["problems"] == []
        before = _dump(cluster)
        cluster.down()

        assert "its store has all up to record" in _migrate(cluster, "embedded").stdout
        cluster.up()
        cluster.wait_healthy()
        assert _dump(cluster) == before
        _check(cluster.mountpoint, "embedded")
        _check(cluster.mountpoint, "replicated")
        _write(cluster.mountpoint, "again")
        assert cluster.fsck()["problems"] == []
        assert [service["kind"] for service in cluster.status()["services"]].count("etcd") == 0
        cluster.down()

        _refuse_older(cluster)


def _refuse_older(cluster: LocalCluster) -> None:
    """What was kept is older than the cluster by now, and the services say so."""
    aside = min(cluster.data.glob("meta.aside-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    (cluster.data / "meta").rename(cluster.data / "meta.newest")
    aside.rename(cluster.data / "meta")
    refused = luciola("up", "--data", str(cluster.data), "--detach", check=False)
    assert refused.returncode == 1
    assert "older" in refused.stderr
    (cluster.data / "meta").rename(aside)
    (cluster.data / "meta.newest").rename(cluster.data / "meta")
    cluster.up()


def _migrate(cluster: LocalCluster, target: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return luciola("metadata", "migrate", "--to", target, "--data", str(cluster.data), check=check)


def _kill_migration(cluster: LocalCluster, shown: str) -> None:
    """kill -9 of a migration when it has made `shown`, or later."""
    command = ["metadata", "migrate", "--to", "etcd", "--data", str(cluster.data)]
    with subprocess.Popen([sys.executable, "-m", "luciola", *command], stdout=subprocess.DEVNULL) as process:
        until(lambda: any(cluster.data.glob(shown)) or process.poll() is not None, what=shown)
        process.kill()


def _dump(cluster: LocalCluster) -> list[str]:
    """The tree, without the first and last line, which say when it was and are signed."""
    target = cluster.root / "names"
    luciola("dump", "--data", str(cluster.data), str(target))
    lines = target.read_text().splitlines()
    target.unlink()
    assert len(lines) > 4
    return lines[1:-1]


def _roles(cluster: LocalCluster) -> list[str]:
    return sorted(service.get("role", "") for service in cluster.services("meta"))


def _pids(cluster: LocalCluster) -> set[int]:
    return {service["pid"] for service in cluster.services("meta")}


def _kill_primary(cluster: LocalCluster) -> int:
    """kill -9 of the primary, when there is one: on a busy machine a lease may just have run out."""
    found: list[int] = []

    def has_primary() -> bool:
        found[:] = [each["pid"] for each in cluster.services("meta") if each.get("role") == "primary"]
        return bool(found)

    until(has_primary, what="a primary")
    os.kill(found[0], signal.SIGKILL)
    return found[0]


def _write(mountpoint: Path, name: str) -> None:
    directory = mountpoint / name
    directory.mkdir()
    for index in range(6):
        path = directory / f"file-{index}"
        with path.open("xb") as file:
            file.write(_content(name, index))
            os.fsync(file.fileno())
        path.rename(path.with_suffix(".renamed"))


def _check(mountpoint: Path, name: str) -> None:
    for index in range(6):
        assert (mountpoint / name / f"file-{index}.renamed").read_bytes() == _content(name, index)


def _content(name: str, index: int) -> bytes:
    return f"{name} {index} ".encode() * (10 + index * 5000)
