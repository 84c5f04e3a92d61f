"""Short runs of the nemesis with fixed seeds: every history is valid, and nothing else is found."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from nemesis.faults import Plan

TESTS = Path(__file__).parents[1]
SECONDS = 40

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.skipif(not Path("/dev/loop-control").exists(), reason="needs loop devices")
@pytest.mark.parametrize("seed", [43, 99])  # all kinds of faults are in one of them
def test_histories_under_two_faults_at_a_time_are_valid(seed: int) -> None:
    command = [sys.executable, "-m", "nemesis.run", "--seed", str(seed), "--seconds", str(SECONDS)]
    environment = os.environ | {"PYTHONPATH": str(TESTS)}
    result = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    print(result.stdout)
    assert result.returncode == 0, result.stdout + result.stderr


def test_plan_depends_on_the_seed_alone() -> None:
    import random

    places = {name: name for name in ("mgmtd", "meta", "storage-201", "storage-202")} | {
        "mount": "storage-201"
    }

    def begin(seed: int) -> list[str]:
        plan = Plan(random.Random(seed), places)
        return [str(next(plan)) for _ in range(50)]

    assert begin(1) == begin(1)
    assert begin(1) != begin(2)
