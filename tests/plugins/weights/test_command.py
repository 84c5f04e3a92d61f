"""`luciola weights`."""

import json
import os

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import save_file

from cluster import LocalCluster, luciola
from luciola.errors import CorruptData, NotFound
from luciola.plugins.weights import Checkpoint, save
from luciola.plugins.weights.command import weights

TENSORS = {
    "layers.0.w": torch.ones(700, 800),
    "layers.1.w": torch.ones(3, 4).bfloat16(),
    "step": torch.tensor(7),
}


@pytest.fixture
def path(tmp_path):
    save_file(TENSORS, tmp_path / "m.safetensors", {"made": "here"})
    return str(tmp_path / "m.safetensors")


def run(*arguments, error=None):
    result = CliRunner().invoke(weights, arguments)
    if error is None:
        assert result.exit_code == 0, result.output + repr(result.exception)
    else:
        assert isinstance(result.exception, error), result.output
    return result


def test_the_table(path):
    lines = run("ls", path).output.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["NAME", "DTYPE", "SHAPE", "BYTES", "FILE"],
        ["layers.0.w", "F32", "700×800", "2240000", "m.safetensors"],
        ["layers.1.w", "BF16", "3×4", "24", "m.safetensors"],
    ]
    assert lines[-1].startswith("3 of 3 tensors")
    assert run("ls", path, "--match", "layers.1.*").output.splitlines()[-1].startswith("1 of 3 tensors, 24")


def test_json(path):
    report = json.loads(run("ls", path, "--json").output)
    assert report["metadata"] == {"made": "here"}
    offset = Checkpoint.open(path).info("step").offset
    assert report["tensors"][-1] == {
        "name": "step", "dtype": "I64", "shape": [], "bytes": 8, "file": path, "offset": offset,
    }  # fmt: skip


def test_names_cannot_write_to_the_terminal(tmp_path):
    save_file({"\x1b[2Jx": torch.ones(1)}, tmp_path / "m.safetensors")
    assert "'\\x1b[2Jx'" in run("ls", str(tmp_path)).output


def test_checksums_are_written_and_verified(path):
    assert "no checksums beside it" in run("verify", path).output
    run("checksum", path)
    assert "no checksums" not in run("verify", path).output
    with open(path + ".crc32c", "rb") as file:
        made = file.read()
    save(TENSORS, path, metadata={"made": "here"})
    with open(path + ".crc32c", "rb") as file:
        saved = json.loads(file.read())
    assert saved["tensors"] == json.loads(made)["tensors"]  # both ways give the same
    run("checksum", path, error=SystemExit)
    run("checksum", path, "--force")
    with open(path, "r+b") as file:
        file.seek(Checkpoint.open(path).info("layers.0.w").offset + (1 << 20))
        file.write(b"\xff")
    report = run("verify", path, "--json", error=CorruptData).output
    (damage,) = json.loads(report)["damages"]
    assert (damage["file"], damage["tensor"], damage["begin"], damage["end"]) == (
        path,
        "layers.0.w",
        1 << 20,
        1 << 21,
    )
    assert "tensor 'layers.0.w': bytes 1048576 to 2097152" in run("verify", path, error=CorruptData).output


def test_nothing_there(tmp_path):
    run("ls", str(tmp_path), error=NotFound)


@pytest.mark.parametrize("name", ["", "ls", "verify", "checksum"])
def test_help_has_an_example(name):
    assert f"luciola weights {name}".strip() in run(*([name] if name else []), "--help").output


def test_on_a_cluster_without_torch(shared_cluster: LocalCluster, path, monkeypatch):
    """As a user calls it: errors are one line, and nothing imports torch."""
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    luciola("cp", path, "lu:/m.safetensors")
    monkeypatch.setenv("PYTHONPROFILEIMPORTTIME", "1")
    result = luciola("weights", "checksum", "lu:/m.safetensors")
    assert "| torch\n" not in result.stderr
    assert "luciola.plugins.weights" in result.stderr
    monkeypatch.delenv("PYTHONPROFILEIMPORTTIME")
    assert "read 2.1 MiB in 1 files" in luciola("weights", "verify", "lu:/m.safetensors").stdout
    result = luciola("weights", "ls", "lu:/none", check=False)
    assert (result.returncode, result.stderr.count("\n")) == (1, 1)
    assert os.path.exists(path)
