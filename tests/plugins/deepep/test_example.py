"""The training example: four processes learn what one process learns."""

import re
import subprocess
from pathlib import Path

import pytest

from luciola.plugins.eplb import Loads

EXAMPLE = Path(__file__).parents[3] / "examples" / "train_moe_experts.py"
STEPS = 6


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_experts_on_four_processes_learn_as_on_one(warm_python: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [warm_python, str(EXAMPLE), "--out", str(tmp_path), "--steps", str(STEPS)],
        capture_output=True, text=True, timeout=280, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("3 experts read over shared-memory") == 4
    rows = re.findall(r"^ +(\d+) +(\d+\.\d+) +(\d+\.\d+)$", done.stdout, re.MULTILINE)
    assert [int(step) for step, _, _ in rows] == list(range(1, STEPS + 1))
    spread, alone = ([float(row[column]) for row in rows] for column in (1, 2))
    assert spread == pytest.approx(alone, rel=0.02)  # products of bfloat16
    assert spread[-1] < spread[0] - 0.3
    loads = Loads.load(tmp_path / "loads.safetensors")
    assert loads.steps == STEPS
    assert float(loads.average.sum()) == pytest.approx(128 * 2)  # pairs and experts of each, a step
