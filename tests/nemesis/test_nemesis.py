"""Short runs of the nemesis with fixed seeds: every history is valid, and nothing else is found."""

import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

from etcd_members import require_etcd
from nemesis.faults import WEIGHTS, Plan

TESTS = Path(__file__).parents[1]
SECONDS = 30
REPLICATED_SECONDS = 15  # rounds of seed 222 that hit a manager, a metadata service, and members of etcd
HURTS_METADATA = (
    "kill",
    "pause",
    "isolate",
    "one way",
    "power",
)  # with seeds that choose mgmtd, meta and etcd
NEEDS = [
    pytest.mark.mount,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.timeout(900),
    pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices"),
]


def run(*options: str, seconds: int = SECONDS) -> None:
    command = [sys.executable, "-m", "nemesis.run", "--seconds", str(seconds), *options]
    search = os.pathsep.join([str(TESTS), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": search}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


@pytest.mark.parametrize("seed", [pytest.param(43, marks=NEEDS)])
def test_histories_under_two_faults_at_a_time_are_valid(seed: int) -> None:
    run("--seed", str(seed))


@pytest.mark.parametrize("seed", [pytest.param(5, marks=NEEDS)])
def test_what_was_synced_survives_losses_of_power_of_everything(seed: int) -> None:
    run("--seed", str(seed), "--faults", "blackout")


@pytest.mark.parametrize("seed", [pytest.param(seed, marks=NEEDS) for seed in (222,)])
def test_histories_over_replicated_metadata_are_valid(seed: int) -> None:
    require_etcd()
    run("--seed", str(seed), "--metadata", "etcd", "--faults", *HURTS_METADATA, seconds=REPLICATED_SECONDS)


def test_plan_depends_on_the_seed_alone() -> None:
    places = {name: name for name in ("mgmtd", "meta", "storage-201", "storage-202")} | {
        "mount": "storage-201"
    }

    def begin(seed: int) -> list[str]:
        plan = Plan(random.Random(seed), places)
        return [str(next(plan)) for _ in range(50)]

    assert begin(1) == begin(1)
    assert begin(1) != begin(2)


def test_two_faults_of_a_plan_hit_different_machines() -> None:
    places = {name: name for name in ("mgmtd", "meta", "storage-201", "storage-202")} | {
        "mount": "storage-201"
    }
    plan = Plan(random.Random(1), places)
    seen = set()
    for _ in range(300):
        faults = next(plan).faults
        seen |= {fault.kind for fault in faults}
        assert len({places[fault.victim] for fault in faults}) == len(faults)
    assert seen == set(WEIGHTS)
