"""The example: a training that is killed resumes with the same losses, on another number of processes."""

import json
import subprocess
from pathlib import Path

import pytest

from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.plugins.checkpoint import list_checkpoints

EXAMPLE = Path(__file__).parents[3] / "examples" / "train_text.py"


@pytest.mark.slow
def test_killed_training_resumes(warm_python: str, shared_cluster: LocalCluster, tmp_path):
    out, plot = f"luciola://{shared_cluster.data}!/train-text", tmp_path / "loss.png"
    options = ["--steps=20", "--every=2", "--resume-processes=1", f"--plot={plot}"]
    command = [warm_python, str(EXAMPLE), "compare", "--out", out, *options]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 processes resume after step" in done.stdout
    assert "the losses of all 20 steps are equal, bit by bit" in done.stdout
    fs, path = open_location(out)
    losses = json.loads(fs.read(f"{path}/stopped/losses.json"))
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5
    assert [saved.manifest.ranks for saved in list_checkpoints(f"{out}/stopped/checkpoints")][-1] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    fs.rmtree(path)
    close_locations()
