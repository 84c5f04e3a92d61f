"""kill -9 of services at random moments under a mixed load that checks every read.

`pytest tests/integration/test_chaos.py --chaos-seconds 600 --chaos-seed 7` runs longer, or repeats a run.
"""

import json
import random
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from cluster import LocalCluster

LOAD = Path(__file__).parents[1] / "load.py"
WORKERS = 3
# An application waits this long at most: a lease, a restart, a new chain, and a loaded machine.
PAUSE_MAX_S = 60.0

pytestmark = [pytest.mark.mount, pytest.mark.timeout(1800)]


@pytest.mark.parametrize(("nodes", "replicas"), [(3, 2), (3, 3)])
def test_nothing_is_lost_when_services_are_killed(
    tmp_path: Path, request: pytest.FixtureRequest, nodes: int, replicas: int
) -> None:
    seconds = float(request.config.getoption("--chaos-seconds"))
    seed = int(request.config.getoption("--chaos-seed") or random.randrange(1 << 30))
    print(f"repeat with --chaos-seed {seed}")
    choose = random.Random(seed)
    with ExitStack() as stack:
        cluster = stack.enter_context(
            LocalCluster(tmp_path, storage_nodes=nodes, replicas=replicas, mount=True)
        )
        workers = [
            subprocess.Popen(
                [
                    sys.executable,
                    str(LOAD),
                    f"{cluster.mountpoint}/worker-{index}",
                    "--seconds",
                    str(seconds),
                    "--seed",
                    str(choose.randrange(1 << 30)),
                ],
                stdout=subprocess.PIPE,
                text=True,
            )
            for index in range(WORKERS)
        ]
        stack.callback(_end, workers)
        killed = _kill_services(cluster, choose, until_s=time.monotonic() + seconds)
        reports = [json.loads(worker.communicate(timeout=seconds + 300)[0]) for worker in workers]
        print(f"killed {killed}; {reports}")
        assert [report["error"] for report in reports] == [""] * WORKERS
        assert all(report["operations"] > len(killed) for report in reports)
        assert max(report["longest_s"] for report in reports) < PAUSE_MAX_S
        cluster.wait_healthy(timeout_s=200)
        assert cluster.fsck("--scrub")["problems"] == []


def _end(workers: list[subprocess.Popen[str]]) -> None:
    """They do not outlive the test, whatever it fails on."""
    for worker in workers:
        worker.kill()
        worker.communicate()


def _kill_services(cluster: LocalCluster, choose: random.Random, *, until_s: float) -> list[str]:
    """Kills one service after the other, never a second replica before the first has caught up."""
    killed = []
    while time.monotonic() < until_s:
        cluster.wait_healthy(timeout_s=200)
        time.sleep(choose.uniform(0.2, 3.0))
        kind = choose.choice(("storage", "storage", "storage", "meta", "mgmtd"))
        index = choose.randrange(len(cluster.services(kind)))
        killed.append(f"{kind} {cluster.kill(kind, index)['id']}")
    return killed
