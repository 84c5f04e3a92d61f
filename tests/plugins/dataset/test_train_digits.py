"""The example as a user runs it, shorter: it compares the losses itself, and its exit code says whether they agree."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[3] / "examples" / "train_digits.py"


@pytest.mark.slow
@pytest.mark.timeout(600)  # a cluster of its own, and five processes that load torch
def test_killed_training_resumes_with_the_same_losses(tmp_path) -> None:
    command = [sys.executable, str(EXAMPLE), "demo", "--epochs", "2", "--plot", str(tmp_path / "digits.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "46 losses, equal in every bit" in done.stdout
    assert "stopped, 1 processes: resuming after step 30: epoch 1, sample 448" in done.stdout
    steps = [
        re.findall(rf"^{name}: epoch \d step (\d+) ", done.stdout, re.MULTILINE)
        for name in ("unstopped, 2 processes", "stopped, 2 processes", "stopped, 1 processes")
    ]
    assert [(int(each[0]), int(each[-1])) for each in steps] == [(1, 46), (1, 31), (31, 46)]
    assert (tmp_path / "digits.png").read_bytes().startswith(b"\x89PNG")
