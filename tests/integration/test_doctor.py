"""`luciola doctor` on this machine: with a cluster that runs, with one that is down, and alone."""

import json
from pathlib import Path

from click.testing import CliRunner

from cluster import LocalCluster
from luciola.cli import cli

ADDRESS = "address of "


def test_every_address_of_a_cluster_is_tried(shared_cluster: LocalCluster) -> None:
    checks = {each["check"]: each for each in shared_cluster.ask("doctor")}
    reached = {name.removeprefix(ADDRESS) for name in checks if name.startswith(ADDRESS)}
    assert {"mgmtd 1", "meta 100 requests", *(f"storage {node} data" for node in (201, 202, 203))} <= reached
    assert all(each["code"] != "ADDRESS_UNREACHABLE" for each in checks.values()), checks
    assert checks["clocks"]["what"].startswith("5 services")
    assert checks["releases"]["severity"] == "ok"
    assert f"disk of {shared_cluster.data}" in checks


def test_cluster_that_is_down_is_named_and_its_disks_are_looked_at(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=1, replicas=1)
    with cluster:
        pass
    checks = {each["check"]: each for each in cluster.ask("doctor")}
    assert checks["address of mgmtd 1"]["code"] == "ADDRESS_UNREACHABLE"
    assert checks["address of mgmtd 1"]["remedy"]
    assert checks[f"disk of {cluster.data}"]["what"]


def test_machine_without_a_cluster_is_checked() -> None:
    result = CliRunner().invoke(cli, ["doctor", "--json"], env={"LUCIOLA_DATA": None})
    assert {"descriptors", "fuse"} <= {each["check"] for each in json.loads(result.stdout)}
