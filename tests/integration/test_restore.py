"""`luciola metadata restore`: names and bytes of before, whatever happened since, and however it is killed."""

import json
import os
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime
from functools import partial
from itertools import islice
from pathlib import Path

import pytest

from cluster import LocalCluster, luciola, until
from etcd_members import require_etcd
from luciola.cli import metadata_restore
from luciola.cli.datadir import DataDir
from luciola.cli.metadata_switch import finish, steps
from luciola.cli.supervisor import end_leftovers

pytestmark = [pytest.mark.mount, pytest.mark.timeout(900)]

# Removed files are collected at once, but for the history.
CONFIG = "[metadata]\nhistory_s = 86400\n[meta]\ngc_delay_ms = 20000\n"
SHOWN_AS_KILLED = ("meta.new.part", "meta.new", "meta-checkpoints.new/*/SEAL")
METAS = 2
STEPS = 3  # of a switch, after which it is killed
LARGE = 3_000_000


def test_a_namespace_of_before_comes_back_with_its_bytes_and_so_does_the_abandoned_one(
    tmp_path: Path,
) -> None:
    require_etcd()
    with LocalCluster(
        tmp_path, storage_nodes=1, replicas=1, mount=True, config=CONFIG, options=["--metadata", "etcd"]
    ) as cluster:
        assert cluster.mountpoint is not None
        root = cluster.mountpoint
        begun = partial(cluster.data.glob, "meta*-history/*/SEAL")
        until(lambda: len(list(begun())) == METAS, what="histories that have begun")
        empty = _moment(cluster)
        _make(root)
        before = _tree(root)
        then = _moment(cluster)
        refused = _restore(cluster, then, check=False)
        assert "the cluster runs: stop it first with `luciola down" in refused.stderr
        _change(root)
        after = _tree(root)
        luciola("metadata", "checkpoint", "--data", str(cluster.data))
        now = _moment(cluster)
        (root / "last").write_bytes(b"without a moment, perhaps")
        cluster.kill("meta")
        cluster.down()

        _refuse(cluster)
        shown = _restore(cluster, then, "--dry-run").stdout
        assert "later ones abandoned" in shown
        assert not list(cluster.data.glob("*.new"))
        asked = _restore(cluster, then, check=False)
        assert asked.returncode == 2
        assert "repeat with --yes" in asked.stderr
        _interrupt(cluster, then)
        cluster.up()  # finishes it
        cluster.wait_healthy()
        changed = dict(before)
        changed["grown"] = after["grown"]  # what was appended is there
        changed["written"] = after["written"]  # what was written over stays
        until(
            lambda: _lengths(_tree(root)) == _lengths(changed),
            what="lengths that the collector measures",
            timeout_s=200,
        )
        assert _tree(root) == changed
        _find_abandoned_chunks(cluster)
        (root / "new").write_bytes(bytes(LARGE))
        assert list(cluster.data.glob("meta.aside-*"))
        cluster.down()

        assert "kept in" in _restore(cluster, then, "--yes").stdout
        assert "kept in" in _restore(cluster, now, "--yes").stdout  # no service has run since that one
        cluster.up()
        cluster.wait_healthy()
        assert _tree(root) == after
        cluster.down()

        assert "kept in" in _restore(cluster, empty, "--yes").stdout
        cluster.up()
        assert _tree(root) == {}
        _make(root)
        assert _tree(root) == before


def _make(root: Path) -> None:
    (root / "directory").mkdir()
    for name, size in (("removed", LARGE), ("renamed", 100), ("grown", LARGE), ("written", LARGE)):
        (root / name).write_bytes(_content(name, size))
    (root / "directory" / "inside").write_bytes(_content("inside", LARGE))
    (root / "directory" / "truncated").write_bytes(_content("truncated", LARGE))
    (root / "small").write_bytes(b"small")


def _change(root: Path) -> None:
    (root / "removed").unlink()
    (root / "renamed").rename(root / "directory" / "other")
    with (root / "grown").open("ab") as file:
        file.write(_content("more", LARGE))
    with (root / "written").open("r+b") as file:
        file.write(b"written over")
    (root / "directory" / "truncated").write_bytes(b"")
    (root / "small").write_bytes(b"not small any more" * 1000)
    (root / "directory" / "inside").unlink()
    (root / "made").write_bytes(_content("made", LARGE))


def _content(name: str, size: int) -> bytes:
    return (name.encode() * (size // len(name) + 1))[:size]


def _tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() if path.is_file() else b""
        for path in sorted(root.rglob("*"))
    }


def _lengths(tree: dict[str, bytes]) -> dict[str, int]:
    return {name: len(content) for name, content in tree.items()}


def _moment(cluster: LocalCluster) -> str:
    """A moment between what was done and what follows: each is a second away, in which moments are written."""
    assert cluster.mountpoint is not None
    os.sync()
    seen = _last(cluster)
    until(lambda: _last(cluster) > seen or not time.sleep(1.5), what="a moment in the log")
    now = datetime.now(UTC).isoformat()
    time.sleep(1.5)
    return now


def _last(cluster: LocalCluster) -> int:
    report = json.loads(
        luciola("metadata", "status", "--data", str(cluster.data), "--json", check=False).stdout
    )
    return next((log["last"] for log in report["logs"] if log["log"] == "meta"), 0)


def _ms(moment: str) -> int:
    return int(datetime.fromisoformat(moment).timestamp() * 1000)


def _refuse(cluster: LocalCluster) -> None:
    """Times that there is no state of."""
    for at, expected in (
        ("yesterday", "is not a time: write 2026-"),
        ("2999-01-01T00:00:00Z", "is in the future"),
        ("2020-01-01T00:00:00Z", "the history begins at 20"),
    ):
        refused = _restore(cluster, at, "--yes", check=False)
        assert refused.returncode == 1
        assert expected in refused.stderr


def _find_abandoned_chunks(cluster: LocalCluster) -> None:
    problems = [problem["what"] for problem in cluster.fsck()["problems"]]
    assert problems
    assert all("belong to no file" in problem for problem in problems)


def _restore(
    cluster: LocalCluster, at: str, *options: str, check: bool = True
) -> subprocess.CompletedProcess[str]:
    return luciola("metadata", "restore", "--at", at, "--data", str(cluster.data), *options, check=check)


def _interrupt(cluster: LocalCluster, at: str) -> None:
    """Kill restores while they make the state, and in the middle of the switch."""
    for name in SHOWN_AS_KILLED:
        _kill_restore(cluster, at, name)
    data = DataDir(cluster.data)
    with data.supervised():
        end_leftovers(data)
        finish(data)
        shape = data.read_shape()
        metadata_restore.decide(data, shape, metadata_restore.stage(data, shape, _ms(at)))
        list(islice(steps(data), STEPS))


def _kill_restore(cluster: LocalCluster, at: str, shown: str) -> None:
    """kill -9 of a restore when it has made `shown`, or later."""
    command = ["metadata", "restore", "--at", at, "--yes", "--data", str(cluster.data)]
    with subprocess.Popen([sys.executable, "-m", "luciola", *command], stdout=subprocess.DEVNULL) as process:
        until(lambda: any(cluster.data.glob(shown)) or process.poll() is not None, what=shown)
        process.send_signal(signal.SIGKILL)
