"""`luciola chain` and `luciola node` on a cluster that runs: replicas away, back, and given up."""

from pathlib import Path

import pytest

import luciola
from cluster import LocalCluster, until
from cluster import luciola as command

CONFIG = "[mgmtd]\nheartbeat_interval_ms = 300\nlease_ms = 2000\nbootstrap_ms = 2200\n"


def states(cluster: LocalCluster, node: int) -> set[str]:
    """Of all replicas of the node."""
    chains = cluster.ask("chain", "list")
    return {each["state"] for chain in chains for each in chain["targets"] if each["node"] == node}


@pytest.mark.slow
def test_replicas_that_served_last_are_given_up_one_by_one(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=2, config=CONFIG) as cluster:
        with luciola.connect(cluster.data) as fs:
            fs.write("/old", b"o" * 300_000)
        data = ["--data", str(cluster.data)]
        nodes = cluster.ask("node", "list")
        first, second = (node["id"] for node in nodes if node["kind"] == "storage")
        chains = cluster.ask("chain", "list")
        assert {each["state"] for each in chains} == {"serving"}
        assert {node["serving"] for node in nodes if node["kind"] == "storage"} == {len(chains)}
        assert cluster.ask("chain", "list", "--incomplete") == []
        assert cluster.ask("node", "counters", str(first))["lease_left_ms"] > 0

        refused = command(
            "chain", "rotate", str(chains[0]["id"]), "--last-serving", "--yes", *data, check=False
        )
        assert refused.returncode == 1
        assert "does not wait" in refused.stderr

        command("node", "disable", str(first), *data)
        # Now no other node will have the data, though the first may hold its lease a little longer: that is asked
        # about, and no terminal is there to answer.
        alone = command("node", "disable", str(second), *data, check=False)
        assert alone.returncode == 2
        assert "only replica that serves" in alone.stderr
        until(lambda: states(cluster, first) == {"offline"}, what="the first node to be out")
        command("node", "disable", str(second), "--yes", *data)
        until(lambda: states(cluster, second) == {"lastsrv"}, what="the second node to be out")
        command("node", "enable", str(first), *data)
        until(
            lambda: {n["id"]: n["status"] for n in cluster.ask("node", "list")}[first] == "connected",
            what="the first node",
        )
        assert states(cluster, second) == {"lastsrv"}, "chains wait for it"

        number = str(chains[0]["id"])
        question = command("chain", "rotate", number, "--last-serving", *data, check=False)
        assert question.returncode == 2
        assert "lost for good" in question.stderr
        numbers = [str(each["id"]) for each in chains]
        command("chain", "rotate", *numbers, "--last-serving", "--yes", *data)
        until(lambda: states(cluster, first) == {"serving"}, what="the first node to serve")
        with luciola.connect(cluster.data) as fs:
            assert fs.read("/old") == b"o" * 300_000

        removed = next(
            target["target"]
            for target in cluster.ask("chain", "list", number)[0]["targets"]
            if target["node"] == second
        )
        (after,) = cluster.ask("chain", "remove", number, str(removed), "--yes")
        assert [each["node"] for each in after["targets"]] == [first]
        command("node", "enable", str(second), *data)
        (added,) = cluster.ask("chain", "add", number, str(second))
        assert [each["node"] for each in added["targets"]] == [first, second]
        cluster.wait_healthy()
        assert cluster.fsck()["problems"] == []
        command("chain", "rotate", *numbers, "--preferred", *data)
        cluster.wait_healthy()
        until(
            lambda: "nothing to change" in command("chain", "rotate", number, "--preferred", *data).stderr,
            what="the preferred order",
        )
        assert command("chain", "list", "1", *data, check=False).returncode == 1
        assert "no node 7" in command("node", "disable", "7", *data, check=False).stderr
        busy = command("node", "forget", str(second), "--yes", *data, check=False)
        assert busy.returncode == 1
        assert "may be alive" in busy.stderr
