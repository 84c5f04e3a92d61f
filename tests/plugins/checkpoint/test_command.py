"""`luciola checkpoint`."""

import json
import os

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner

from cluster import LocalCluster, luciola
from luciola.client import close_locations, open_location
from luciola.errors import CorruptData, NotFound
from luciola.plugins.checkpoint import Checkpoints, Writer, latest
from luciola.plugins.checkpoint.command import checkpoint

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


@pytest.fixture
def root(tmp_path):
    checkpoints = Checkpoints(tmp_path / "runs")
    for step in (1, 2, 3, 4):
        checkpoints.save(step, {"w": torch.ones(400, 700), "b": torch.ones(3).bfloat16(), "step": step})
    return str(tmp_path / "runs")


def run(*arguments, error=None):
    result = CliRunner().invoke(checkpoint, arguments)
    if error is None:
        assert result.exit_code == 0, result.output + repr(result.exception)
    else:
        assert isinstance(result.exception, error), result.output
    return result


def test_list(root):
    os.mkdir(f"{root}/.step-5.00000000-5-77-00000000.part")
    os.truncate(f"{root}/step-000000002/rank-00000.safetensors", 10)
    lines = run("list", root).output.splitlines()
    assert lines[0].split() == ["NAME", "STEP", "SAVED", "RANKS", "TENSORS", "SIZE", "STATE"]
    assert lines[1].split()[:2] == ["step-000000001", "1"]
    assert lines[1].endswith("1        3  1.1 MiB  complete")
    assert "rank-00000.safetensors has 10 bytes, not" in lines[2]
    assert lines[5].startswith("step-5: being saved, or interrupted")
    report = json.loads(run("list", root, "--json").output)
    assert [(each["step"], each["state"]) for each in report["checkpoints"]] == [
        (1, "complete"), (2, "damaged"), (3, "complete"), (4, "complete"),
    ]  # fmt: skip
    assert [each["kind"] for each in report["unfinished"]] == ["part"]


def test_show(root):
    text = run("show", root).output
    assert ["w", "F32", "400×700", "1120000", "1"] in [line.split() for line in text.splitlines()]
    assert "step-000000004: 3 of 3 tensors, complete" in text
    report = json.loads(run("show", f"{root}/step-000000002", "--json", "--match", "[wb]").output)
    assert report["step"] == 2
    assert [(each["name"], each["dtype"], each["shape"]) for each in report["tensors"]] == [
        ("b", "BF16", [3]),
        ("w", "F32", [400, 700]),
    ]
    assert report["tensors"][1]["parts"] == [
        {"file": "rank-00000.safetensors", "entry": "w", "offsets": [0, 0], "shape": [400, 700]}
    ]
    run("show", os.path.dirname(root), error=NotFound)


def test_verify(root):
    assert "read 4 checkpoints, 4.3 MiB: 0 damages" in run("verify", root).output
    path = f"{root}/step-000000003/rank-00000.safetensors"
    with open(path, "r+b") as file:
        file.seek(5000)
        file.write(b"\x01")
    assert "tensor 'w': bytes 0 to 1048576 do not match" in run("verify", root, error=CorruptData).output
    report = json.loads(run("verify", f"{root}/step-000000003", "--json", error=CorruptData).output)
    ((damage,),) = report["damages"].values()
    assert (damage["file"], damage["tensor"]) == (path, "w")
    run("verify", f"{root}/step-000000004")
    run("verify", f"{root}/none", error=NotFound)


def test_prune(root):
    unfinished = f"{root}/.step-5.00000000-5-77-00000000.part"
    os.mkdir(unfinished)
    run("prune", root, error=SystemExit)
    report = json.loads(
        run("prune", root, "--keep-last", "1", "--keep-every", "2", "--json", "--dry-run").output
    )
    assert report == {
        "removed": ["step-000000001", "step-000000003"], "interrupted": [], "dry_run": True,
    }  # fmt: skip
    assert "removed 2 checkpoints" in run("prune", root, "--keep-last", "1", "--keep-every", "2").output
    assert sorted(os.listdir(root)) == [os.path.basename(unfinished), "step-000000002", "step-000000004"]
    assert unfinished in run("prune", root, "--interrupted").output
    assert sorted(os.listdir(root)) == ["step-000000002", "step-000000004"]


@pytest.mark.parametrize("name", ["", "list", "show", "verify", "prune"])
def test_help_has_an_example(name):
    assert f"luciola checkpoint {name}".strip() in run(*([name] if name else []), "--help").output


def test_on_a_cluster_without_torch(shared_cluster: LocalCluster, monkeypatch):
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    dcp.save({"x": torch.ones(5)}, storage_writer=Writer("lu:/command-runs/step-7"))
    assert str(latest("lu:/command-runs")) == f"luciola://{shared_cluster.data}!/command-runs/step-7"
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    result = luciola("checkpoint", "verify", "lu:/command-runs")
    assert "| torch\n" not in result.stderr
    assert "read 1 checkpoints" in result.stdout
    fs, path = open_location("lu:/command-runs")
    fs.rmtree(path)
    close_locations()
