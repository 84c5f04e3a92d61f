"""`luciola metadata migrate`: one store each, logs in etcd, and back, with the same files all along."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until
from etcd_members import EtcdMembers, require_etcd
from luciola.cli.datadir import DataDir
from luciola.cli.metadata_migrate import to_logs, to_stores
from luciola.cli.metadata_options import PRIVATE, MetadataWanted
from luciola.cli.metadata_switch import steps

pytestmark = [pytest.mark.mount, pytest.mark.timeout(900)]

SHOWN_AS_KILLED = ("meta-checkpoints.new/*/SEAL", "etcd-1/member")
STEPS = 3  # of a switch, after which it is killed: some stores are aside, and some are not


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
        cluster.up()
        assert _dump(cluster) == before
        cluster.down()
        with _stopped(cluster) as data:
            to_logs(data, data.read_shape(), MetadataWanted(PRIVATE))
            list(islice(steps(data), STEPS))
        assert "finished a migration that was interrupted" in _migrate(cluster, "etcd").stdout
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

        with _stopped(cluster) as data, _taken_port(data):
            to_stores(data, data.read_shape())
            list(islice(steps(data), STEPS))
        cluster.up()
        cluster.wait_healthy()
        assert _dump(cluster) == before
        _check(cluster.mountpoint, "embedded")
        _check(cluster.mountpoint, "replicated")
        _write(cluster.mountpoint, "again")
        assert [service["kind"] for service in cluster.status()["services"]].count("etcd") == 0
        cluster.down()

        assert "there already" in _migrate(cluster, "embedded").stdout
        _refuse_older(cluster)


def test_a_cluster_goes_to_an_etcd_elsewhere_and_back_once(tmp_path: Path) -> None:
    require_etcd()
    with (
        EtcdMembers(tmp_path / "etcd", count=1) as members,
        LocalCluster(tmp_path, storage_nodes=1, replicas=1, mount=True) as cluster,
    ):
        assert cluster.mountpoint is not None
        elsewhere = f"etcd://{members.endpoints[0]}"
        _write(cluster.mountpoint, "embedded")
        before = _dump(cluster)
        cluster.down()
        assert "its log begins after record" in _migrate(cluster, elsewhere).stdout
        assert "there already" in _migrate(cluster, elsewhere).stdout
        another = _migrate(cluster, "etcd://127.0.0.1:1", check=False)
        assert "from one etcd to another" in another.stderr
        cluster.up()
        assert _dump(cluster) == before
        _write(cluster.mountpoint, "replicated")
        cluster.down()
        of_before = tmp_path / "cluster.json"
        of_before.write_bytes((cluster.data / "cluster.json").read_bytes())
        of_before.chmod(0o600)
        assert "its store has all up to record" in _migrate(cluster, "embedded").stdout
        for service, node in (("meta", "109"), ("mgmtd", "1")):
            _refuse_ended_log(service, node, of_before)
        again = _migrate(cluster, elsewhere, check=False)  # would write over the log that is there
        assert again.returncode == 1
        assert "etcd has a log at" in again.stderr
        assert not list(cluster.data.glob("*.new"))


def _refuse_ended_log(service: str, node: str, cluster_file: Path) -> None:
    """A process with the cluster file of before would serve what was left there."""
    data = cluster_file.with_name(f"{service}-{node}")
    command = ["--data", str(data), "--cluster", str(cluster_file), "--node-id", node]
    refused = subprocess.run(
        [sys.executable, "-m", f"luciola.{service}", *command],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert refused.returncode == os.EX_CONFIG
    assert "has ended: the metadata of this cluster were moved out of it" in refused.stderr


def _refuse_older(cluster: LocalCluster) -> None:
    """What was kept is older than the cluster by now, and the services say so."""
    aside = min(cluster.data.glob("meta.aside-*"), key=lambda path: int(path.name.rpartition("-")[2]))
    (cluster.data / "meta").rename(cluster.data / "meta.newest")
    aside.rename(cluster.data / "meta")
    refused = luciola("up", "--data", str(cluster.data), "--detach", check=False)
    assert refused.returncode == 1
    assert "older" in refused.stderr


def _migrate(cluster: LocalCluster, target: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
    return luciola("metadata", "migrate", "--to", target, "--data", str(cluster.data), check=check)


@contextmanager
def _stopped(cluster: LocalCluster) -> Iterator[DataDir]:
    """The data directory of a cluster that is down, locked as by a supervisor."""
    data = DataDir(cluster.data)
    with data.supervised():
        yield data


@contextmanager
def _taken_port(data: DataDir) -> Iterator[None]:
    """Another program listens where the first member of the private etcd did."""
    metadata = data.read_shape().cluster.metadata
    assert metadata is not None
    host, port = metadata.endpoints[0].removeprefix("https://").split(":")
    with socket.create_server((host, int(port))):
        yield


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
