"""`luciola health` on a real cluster, from nothing wrong to nothing running."""

from pathlib import Path

from click.testing import CliRunner

from cluster import LocalCluster, until
from luciola.cli import cli


def health(cluster: LocalCluster) -> tuple[int, dict[str, dict[str, str]]]:
    """The exit code, and the findings by code."""
    result = CliRunner().invoke(cli, ["health", "--data", str(cluster.data)])
    return result.exit_code, {each["code"]: each for each in cluster.ask("health")["findings"]}


def test_findings_follow_the_state_of_the_cluster(tmp_path: Path) -> None:
    cluster = LocalCluster(tmp_path, storage_nodes=2)
    with cluster:
        cluster.wait_healthy()
        assert health(cluster) == (0, {})
        cluster.ask("node", "disable", "202")
        until(lambda: "CHAIN_DEGRADED" in health(cluster)[1], what="chains without the node")
        code, found = health(cluster)
        assert code == 1
        assert set(found) == {"NODE_DISABLED", "CHAIN_DEGRADED"}
        assert found["NODE_DISABLED"]["remedy"].endswith("luciola node enable 202")
        status = cluster.status()
        assert {each["code"] for each in status["findings"]} == set(found)
        assert not status["healthy"]
        cluster.ask("node", "disable", "201", "--yes")
        until(lambda: health(cluster)[0] == 2, what="chains that cannot be used")
        assert "CHAIN_UNAVAILABLE" in health(cluster)[1]
    assert set(health(cluster)[1]) == {"CLUSTER_STOPPED"}
    assert health(cluster)[0] == 2


def test_cluster_at_an_address_is_asked(shared_cluster: LocalCluster) -> None:
    shared_cluster.wait_healthy()
    from luciola.wire import load_cluster

    known = load_cluster(shared_cluster.data / "cluster.json")
    arguments = ["health", "--manager", known.mgmtd_grpc, "--secret-file", str(known.secret_file)]
    result = CliRunner().invoke(cli, arguments)
    assert (result.exit_code, result.stdout) == (0, "ok: nothing is wrong\n")
