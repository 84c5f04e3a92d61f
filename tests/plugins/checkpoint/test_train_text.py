"""The example: a training that is killed resumes with the same losses, on another number of processes."""

import json

import pytest

from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.plugins.checkpoint import list_checkpoints
from pipeline_ranks import Ranks


@pytest.mark.slow
def test_killed_training_resumes(checkpoint_ranks: Ranks, shared_cluster: LocalCluster, tmp_path):
    out, plot, said = f"luciola://{shared_cluster.data}!/train-text", tmp_path / "loss.png", tmp_path / "said"
    options = ["--steps=20", "--every=2", "--resume-processes=1", f"--plot={plot}"]
    arguments = ["compare", "--out", out, *options]
    (answer,) = checkpoint_ranks.run("run_example", 1, arguments=arguments, output=str(said))
    assert (answer.error, answer.value) == ("", 0)
    assert "1 processes resume after step" in said.read_text()
    assert "the losses of all 20 steps are equal, bit by bit" in said.read_text()
    fs, path = open_location(out)
    losses = json.loads(fs.read(f"{path}/stopped/losses.json"))
    assert len(losses) == 20
    assert losses[-1] < losses[0] - 0.5
    assert [saved.manifest.ranks for saved in list_checkpoints(f"{out}/stopped/checkpoints")][-1] == 1
    assert plot.read_bytes().startswith(b"\x89PNG")
    fs.rmtree(path)
    close_locations()
