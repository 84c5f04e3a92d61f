"""`luciola config` on one cluster: set while it runs, adopted by every service, kept over restarts."""

from pathlib import Path

from cluster import LocalCluster, until
from cluster import luciola as command
from luciola.errors import Unavailable

OWN = "[meta]\ngc_batch = 100\n"


def test_settings_are_validated_adopted_and_kept(tmp_path: Path) -> None:
    with LocalCluster(tmp_path, storage_nodes=1, replicas=1, config=OWN) as cluster:
        data = ["--data", str(cluster.data)]

        def adopted(version: int) -> dict[str, dict]:
            """What each process said, when all have adopted the version."""
            found: dict[str, dict] = {}

            def are() -> bool:
                try:
                    processes = cluster.ask("config", "diff")["processes"]
                except Unavailable:  # mgmtd is being started again
                    return False
                found.update({each["process"].split()[0]: each for each in processes})
                return all(each["version"] == version for each in processes)

            until(are, what=f"version {version} to be adopted")
            return found

        # All bad keys are named, and nothing is stored.
        bad = command("config", "set", *data, "mgmtd.lease_m=1", "storage.scrub_interval_s=0", check=False)
        assert bad.returncode == 1
        assert "mgmtd.lease_m: unknown key" in bad.stderr
        assert "storage.scrub_interval_s: must be between" in bad.stderr
        assert cluster.ask("config", "history") == []

        # Hot keys take effect; cold ones wait, also in mgmtd.
        command("config", "set", *data, "mgmtd.heartbeat_interval_ms=500", "storage.resync_batch=32")
        command("config", "set", *data, "meta.gc_batch=7", "meta.list_limit=5", "mgmtd.lease_ms=3500")
        now = adopted(2)
        assert now["mgmtd"]["waiting"] == ["mgmtd.lease_ms"]
        assert now["storage"]["waiting"] == ["storage.resync_batch"]
        assert now["meta"]["waiting"] == []
        rows = cluster.ask("config", "get", "meta.gc_batch")
        assert [
            (row["value"], row["source"]) for row in rows if row["process"].split()[:1] in ([], ["meta"])
        ] == [
            (7, "cluster"),
            (100, "file"),
        ]

        # A start adopts what waited: from mgmtd, or from the copy.
        for kind in ("storage", "mgmtd"):
            cluster.kill(kind)
        until(
            lambda: not adopted(2)["mgmtd"]["waiting"] and not adopted(2)["storage"]["waiting"],
            what="restarts",
        )

        # Back to what was, with a history of it.
        command("config", "set", *data, "--to", "1")
        history = cluster.ask("config", "history")
        assert [version["version"] for version in history] == [1, 2, 3]
        assert history[2]["settings"] == history[0]["settings"]
        assert "admin" in history[0]["author"] or "service" in history[0]["author"]
        assert adopted(3)["mgmtd"]["waiting"] == ["mgmtd.lease_ms"]

        # Only administrators.
        token = str(tmp_path / "token")
        command("token", "create", *data, "--out", token, "--read-only")
        refused = command("config", "set", *data, "--token-file", token, "meta.gc_batch=8", check=False)
        assert refused.returncode == 1
        assert len(cluster.ask("config", "history")) == 3
