"""`luciola up --metadata etcd`: files survive the loss of a metadata service, a manager and a member of etcd."""

import json
import os
import shutil
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from cluster import LocalCluster, luciola, until
from etcd_members import require_etcd
from luciola.mgmtd.rebuild import VERSION_GAP

pytestmark = [pytest.mark.mount, pytest.mark.timeout(600)]

FILES = 6  # written between two faults
KINDS = ["etcd", "etcd", "etcd", "meta", "meta", "mgmtd", "mgmtd", "mount", "storage"]
PROCESSES = [("mgmtd", "1"), ("mgmtd", "2"), ("meta", "100"), ("meta", "101")]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster with a private etcd, two managers and two metadata services."""
    require_etcd()
    root = tmp_path_factory.mktemp("replicated")
    options = ["--metadata", "etcd", "--metas", "2", "--managers", "2"]
    with LocalCluster(root, storage_nodes=1, replicas=1, mount=True, options=options) as cluster:
        yield cluster
    shutil.rmtree(root)


@pytest.fixture(scope="module", autouse=True)
def unanswered(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, subprocess.Popen[str]]]:
    """`luciola up` with an etcd that is not there, which it tries for a while; other tests run meanwhile."""
    data = tmp_path_factory.mktemp("unanswered") / "data"
    command = [sys.executable, "-m", "luciola", "up", "--data", str(data), "--storage-nodes", "1", "--detach"]
    command += ["--metadata", "etcd://127.0.0.1:1"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        yield data, process
        process.kill()


def test_status_shows_members_of_etcd_and_one_primary(cluster: LocalCluster) -> None:
    cluster.wait_healthy()
    assert sorted(service["kind"] for service in cluster.status()["services"]) == KINDS
    for kind in ("meta", "mgmtd"):
        _await_roles(cluster, kind)
    text = luciola("status", "--data", str(cluster.data), check=False).stdout
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
    found: list[dict[str, Any]] = []

    def is_well() -> bool:
        found[:] = [_metadata_status(cluster)]
        led = [log["epoch"] for log in found[0]["logs"]]
        return not found[0]["notes"] and len(led) == 2 and all(led)

    until(is_well, what="members that are well and logs that are led")
    (report,) = found
    assert [(each["kind"], each["id"]) for each in report["processes"]] == PROCESSES
    followers = [(log["log"], each["id"]) for log in report["logs"] for each in log["replicas"]]
    assert followers == PROCESSES
    assert all(0 < log["first"] <= log["last"] for log in report["logs"])
    assert [each["state"] for each in report["etcd"]] == ["running"] * 3
    assert sum(each["leads"] for each in report["etcd"]) == 1
    assert "LED BY" in luciola("metadata", "status", "--data", str(cluster.data), check=False).stdout


@pytest.mark.parametrize("kind", ["mgmtd", "meta"])
def test_a_named_process_becomes_the_primary(cluster: LocalCluster, kind: str) -> None:
    cluster.wait_healthy()
    _await_roles(cluster, kind)
    standby = next(each["id"] for each in cluster.services(kind) if each["role"] != "primary")
    until(lambda: _followers(cluster).get(standby, {}).get("lag") == 0, what="a standby that is not behind")
    until(lambda: _is_promoted(cluster, kind, standby), what=f"{standby} as the primary")
    refused = luciola("metadata", "promote", "7", "--data", str(cluster.data), check=False)
    assert refused.returncode == 1
    assert "no process 7 follows a log; these do: mgmtd 1, mgmtd 2, meta 100, meta 101" in refused.stderr


def test_commands_reach_whichever_manager_is_the_primary(cluster: LocalCluster) -> None:
    cluster.wait_healthy()
    for primary in ("2", "1"):
        until(lambda primary=primary: _is_promoted(cluster, "mgmtd", primary), what=f"manager {primary}")
        luciola("node", "enable", "201", "--data", str(cluster.data))
        nodes = cluster.ask("node", "list")
        assert {"1", "2"} <= {str(node["id"]) for node in nodes}


def test_room_is_made_by_checkpoints_and_smaller_files(cluster: LocalCluster) -> None:
    assert cluster.mountpoint is not None
    cluster.wait_healthy()
    written: dict[str, bytes] = {}
    _write(cluster.mountpoint, written)
    until(lambda: _is_trimmed(cluster), what="a trim of all")
    until(lambda: _shows_checkpoints(cluster), what="checkpoints in the status")
    _check(cluster.mountpoint, written)
    shutil.rmtree(cluster.mountpoint / "directory-0")


def test_files_survive_whatever_is_killed(cluster: LocalCluster) -> None:
    assert cluster.mountpoint is not None
    written: dict[str, bytes] = {}
    _write(cluster.mountpoint, written)
    for kind in ("etcd", "meta", "mgmtd"):
        killed = _kill_primary(cluster, kind)
        _write(cluster.mountpoint, written)  # meanwhile: it waits, and fails never
        until(lambda kind=kind, killed=killed: _is_replaced(cluster, kind, killed), what=f"another {kind}")
        _write(cluster.mountpoint, written)
        cluster.wait_healthy()
        _check(cluster.mountpoint, written)
    epochs = _epochs(cluster)
    processes = {service["pid"] for service in cluster.status()["services"]}
    cluster.down()
    assert not [pid for pid in processes if Path(f"/proc/{pid}").exists()]
    cluster.up()  # without the options: it knows them
    cluster.wait_healthy()
    _check(cluster.mountpoint, written)
    assert all(epoch > epochs[log] for log, epoch in _epochs(cluster).items())
    assert cluster.fsck()["problems"] == []


def test_programs_on_a_mount_wait_for_another_manager_when_the_primary_hangs(cluster: LocalCluster) -> None:
    assert cluster.mountpoint is not None
    cluster.wait_healthy()
    _await_roles(cluster, "mgmtd")
    written: dict[str, bytes] = {}
    hung = next(each for each in cluster.services("mgmtd") if each["role"] == "primary")
    os.kill(hung["pid"], signal.SIGSTOP)
    try:
        _write(cluster.mountpoint / "hung", written)  # meanwhile: it waits, and fails never
        until(
            lambda: (
                "primary" in {each["role"] for each in cluster.services("mgmtd") if each["id"] != hung["id"]}
            ),
            what="another manager",
        )
        _write(cluster.mountpoint / "hung", written)  # storage nodes have leases of the other
        _check(cluster.mountpoint / "hung", written)
    finally:
        with suppress(ProcessLookupError):
            os.kill(hung["pid"], signal.SIGCONT)
    _await_roles(cluster, "mgmtd")
    _write(cluster.mountpoint / "hung", written)
    cluster.wait_healthy()
    _check(cluster.mountpoint / "hung", written)


def test_log_of_the_managers_is_made_again_of_what_the_storage_nodes_remember(cluster: LocalCluster) -> None:
    assert cluster.mountpoint is not None
    cluster.wait_healthy()
    written: dict[str, bytes] = {}
    _write(cluster.mountpoint / "rebuilt", written)
    epoch = _epochs(cluster)["mgmtd"]
    cluster.down()
    mount = ["--mount", str(cluster.mountpoint)]
    luciola("up", "--data", str(cluster.data), *mount, "--detach", "--rebuild-mgmtd", "--yes")
    cluster.wait_healthy()
    _await_roles(cluster, "mgmtd")
    assert _epochs(cluster)["mgmtd"] > epoch
    chains = cluster.ask("chain", "list")
    assert all(chain["version"] > VERSION_GAP for chain in chains)
    _check(cluster.mountpoint / "rebuilt", written)
    asides = {path.name.partition(".aside-")[0] for path in cluster.data.glob("*.aside-*")}
    assert {"mgmtd", "mgmtd-2"} <= asides


def test_a_rebuild_of_mgmtd_that_is_killed_is_repeated(cluster: LocalCluster) -> None:
    assert cluster.mountpoint is not None
    cluster.wait_healthy()
    written: dict[str, bytes] = {}
    _write(cluster.mountpoint / "again", written)
    cluster.down()
    command = ["--data", str(cluster.data), "--rebuild-mgmtd", "--yes"]
    for path in cluster.data.glob("mgmtd*.aside-*"):
        shutil.rmtree(path)
    for shown in ("mgmtd.aside-*", "mgmtd/CURRENT"):
        before = set(cluster.data.glob(shown)) if "aside" in shown else set()
        with subprocess.Popen(
            [sys.executable, "-m", "luciola", "up", *command], stdout=subprocess.DEVNULL
        ) as process:
            until(
                lambda shown=shown, before=before, process=process: (
                    process.poll() is not None or set(cluster.data.glob(shown)) - before
                ),
                what=shown,
            )
            process.kill()
    luciola("up", *command, "--mount", str(cluster.mountpoint), "--detach")
    cluster.wait_healthy()
    _await_roles(cluster, "mgmtd")
    _check(cluster.mountpoint / "again", written)
    assert cluster.fsck()["problems"] == []


def test_an_etcd_that_does_not_answer_is_named(unanswered: tuple[Path, subprocess.Popen[str]]) -> None:
    data, process = unanswered
    _, said = process.communicate(timeout=250)
    assert process.returncode == 1
    assert "etcd at 127.0.0.1:1 does not answer, or has no majority: start it" in said
    state = json.loads((data / "run" / "state.json").read_text())
    assert state["services"] == []  # none was started


def _write(mountpoint: Path, written: dict[str, bytes]) -> None:
    """Make a directory with small and large files."""
    directory = mountpoint / f"directory-{len(written)}"
    directory.mkdir(parents=True)
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


def _is_promoted(cluster: LocalCluster, kind: str, name: str) -> bool:
    """Promote a process; on a machine that stalls, the other may lead again at once."""
    luciola("metadata", "promote", name, "--data", str(cluster.data), check=False)
    return {each["id"]: each["role"] for each in cluster.services(kind)}[name] == "primary"


def _is_trimmed(cluster: LocalCluster) -> bool:
    """Make room; on a machine that stalls, a member or a service may not answer in time."""
    result = luciola("metadata", "trim", "--data", str(cluster.data), check=False)
    print(result.stdout, result.stderr)
    return result.stdout.count("a checkpoint up to record") == 4 and result.stdout.count("→") == 3


def _shows_checkpoints(cluster: LocalCluster) -> bool:
    return all(each.get("checkpoint", 0) > 0 for kind in ("mgmtd", "meta") for each in cluster.services(kind))


def _await_roles(cluster: LocalCluster, kind: str) -> None:
    def has_roles() -> bool:
        return sorted(each["role"] for each in cluster.services(kind)) == ["primary", "standby"]

    until(has_roles, what=f"one primary and one standby of {kind}")


def _kill_primary(cluster: LocalCluster, kind: str) -> dict[str, Any]:
    """kill -9 of the primary of a kind, or of the member that leads."""
    found: list[dict[str, Any]] = []

    def find() -> bool:
        found[:] = [service for service in cluster.services(kind) if _is_primary(cluster, service)]
        return len(found) == 1

    until(find, what=f"one primary of {kind}")
    os.kill(found[0]["pid"], signal.SIGKILL)
    return found[0]


def _is_primary(cluster: LocalCluster, service: dict[str, Any]) -> bool:
    if service["kind"] != "etcd":
        return service.get("role") == "primary"
    return bool(_metadata_status(cluster)["etcd"][int(service["id"]) - 1]["leads"])


def _is_replaced(cluster: LocalCluster, kind: str, old: dict[str, Any]) -> bool:
    now = next(service for service in cluster.services(kind) if service["id"] == old["id"])
    return now["state"] == "running" and now["pid"] not in (None, old["pid"])


def _metadata_status(cluster: LocalCluster) -> dict[str, Any]:
    report: dict[str, Any] = cluster.ask("metadata", "status")
    return report


def _epochs(cluster: LocalCluster) -> dict[str, int]:
    """Of the term of each log."""
    found: dict[str, int] = {}

    def find() -> bool:
        found.update({log["log"]: log["epoch"] for log in _metadata_status(cluster)["logs"]})
        return len(found) == 2 and all(found.values())

    until(find, what="a primary of mgmtd and one of meta")
    return found


def _followers(cluster: LocalCluster) -> dict[str, dict[str, Any]]:
    """The processes that follow a log, by their ids."""
    return {each["id"]: each for log in _metadata_status(cluster)["logs"] for each in log["replicas"]}


def _record(cluster: LocalCluster) -> dict[str, Any]:
    record: dict[str, Any] = json.loads((cluster.data / "cluster.json").read_text())
    return record
