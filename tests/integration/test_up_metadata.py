"""`luciola up --metadata etcd`: files survive the loss of a metadata service and of a member of etcd."""

import json
import os
import shutil
import signal
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cluster import LocalCluster, luciola, until
from etcd_members import require_etcd

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]

FILES = 6  # written between two faults
KINDS = ["etcd", "etcd", "etcd", "meta", "meta", "mgmtd", "mount", "storage"]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster with a private etcd and two metadata services."""
    require_etcd()
    root = tmp_path_factory.mktemp("replicated")
    options = ["--metadata", "etcd", "--metas", "2"]
    with LocalCluster(root, storage_nodes=1, replicas=1, mount=True, options=options) as cluster:
        yield cluster
    shutil.rmtree(root)


def test_status_shows_members_of_etcd_and_one_primary(cluster: LocalCluster) -> None:
    cluster.wait_healthy()
    report = cluster.status()
    assert sorted(service["kind"] for service in report["services"]) == KINDS
    assert sorted(service["role"] for service in cluster.services("meta")) == ["primary", "standby"]
    assert [service["role"] for service in cluster.services("mgmtd")] == ["primary"]
    text = luciola("status", "--data", str(cluster.data)).stdout
    assert "standby" in text


def test_members_and_their_certificate_are_private(cluster: LocalCluster) -> None:
    for name in ("etcd", "etcd-1", "etcd-2", "etcd-3", "etcd/key.pem"):
        assert stat.S_IMODE((cluster.data / name).stat().st_mode) & 0o077 == 0, name
    endpoints = _record(cluster)["metadata"]["endpoints"]
    environment = {**os.environ, "ETCDCTL_API": "3"}
    if shutil.which("etcdctl") is None:
        return
    command = ["etcdctl", "--endpoints", endpoints[0], "--insecure-skip-tls-verify", "--dial-timeout", "5s"]
    refused = subprocess.run(
        [*command, "get", "a"], capture_output=True, text=True, timeout=100, env=environment, check=False
    )
    assert refused.returncode != 0, refused.stdout


def test_metadata_status_shows_log_and_members(cluster: LocalCluster) -> None:
    cluster.wait_healthy()
    report = _metadata_status(cluster)
    assert [(each["kind"], each["id"]) for each in report["replicas"]] == [
        ("mgmtd", "1"),
        ("meta", "100"),
        ("meta", "101"),
    ]
    (log,) = report["logs"]
    assert log["log"] == "meta"
    assert 0 < log["first"] <= log["last"]
    assert log["epoch"] > 0
    assert [each["state"] for each in report["etcd"]] == ["running"] * 3
    assert sum(each["leads"] for each in report["etcd"]) == 1
    assert "LED BY" in luciola("metadata", "status", "--data", str(cluster.data)).stdout


def test_files_survive_whatever_is_killed(cluster: LocalCluster) -> None:
    assert cluster.mountpoint is not None
    written: dict[str, bytes] = {}
    _write(cluster.mountpoint, written)
    for kind in ("etcd", "meta", "mgmtd"):
        killed = _kill_primary(cluster, kind)
        _write(cluster.mountpoint, written)  # meanwhile: it waits, and fails never
        until(lambda kind=kind, killed=killed: _is_replaced(cluster, kind, killed), what=f"another {kind}")
        cluster.wait_healthy()
        _check(cluster.mountpoint, written)
    epoch = _metadata_status(cluster)["logs"][0]["epoch"]
    assert epoch > 0
    processes = {service["pid"] for service in cluster.status()["services"]}
    cluster.down()
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    cluster.up()  # without the options: it knows them
    cluster.wait_healthy()
    _check(cluster.mountpoint, written)
    assert _metadata_status(cluster)["logs"][0]["epoch"] > epoch
    assert cluster.fsck()["problems"] == []


def test_an_etcd_that_does_not_answer_is_named(tmp_path: Path) -> None:
    options = ["--data", str(tmp_path / "data"), "--storage-nodes", "1", "--metadata", "etcd://127.0.0.1:1"]
    result = luciola("up", *options, "--detach", check=False)
    assert result.returncode == 1
    assert "etcd at 127.0.0.1:1 does not answer, or has no majority: start it" in result.stderr
    state = json.loads((tmp_path / "data" / "run" / "state.json").read_text())
    assert state["services"] == []  # none was started


def _write(mountpoint: Path, written: dict[str, bytes]) -> None:
    """Make a directory with small and large files."""
    directory = mountpoint / f"directory-{len(written)}"
    directory.mkdir()
    for index in range(FILES):
        path = directory / f"file-{index}"
        content = os.urandom(100 + index * 50_000)
        with path.open("xb") as file:
            file.write(content)
            os.fsync(file.fileno())
        path.rename(path.with_suffix(".renamed"))
        written[f"{directory.name}/file-{index}.renamed"] = content


def _check(mountpoint: Path, written: dict[str, bytes]) -> None:
    names = {str(path.relative_to(mountpoint)) for path in mountpoint.rglob("*.renamed")}
    assert names == written.keys()
    for name, content in written.items():
        assert (mountpoint / name).read_bytes() == content, name


def _kill_primary(cluster: LocalCluster, kind: str) -> dict[str, Any]:
    """kill -9 of the primary of a kind, or of the member that leads."""
    services = cluster.services(kind)
    if kind == "etcd":
        members = _metadata_status(cluster)["etcd"]
        (index,) = [index for index, each in enumerate(members) if each["leads"]]
        (service,) = [each for each in services if each["id"] == str(index + 1)]
    else:
        (service,) = [each for each in services if each["role"] == "primary"]
    os.kill(service["pid"], signal.SIGKILL)
    return service


def _is_replaced(cluster: LocalCluster, kind: str, old: dict[str, Any]) -> bool:
    now = next(service for service in cluster.services(kind) if service["id"] == old["id"])
    return now["state"] == "running" and now["pid"] not in (None, old["pid"])


def _metadata_status(cluster: LocalCluster) -> dict[str, Any]:
    result = luciola("metadata", "status", "--data", str(cluster.data), "--json", check=False)
    assert result.stdout, result.stderr
    report: dict[str, Any] = json.loads(result.stdout)
    return report


def _record(cluster: LocalCluster) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((cluster.data / "cluster.json").read_text())
    return record
