"""The pages of `dataset` and `checkpoint`: their examples are carried out, and they name all that is public."""

import importlib
import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from cluster import LocalCluster

ROOT = Path(__file__).parents[2]
PAGES = ROOT / "docs" / "plugins"
PLUGINS = ("checkpoint", "dataset")
STARTING = re.compile(r"^(pip install|luciola up|export LUCIOLA_DATA=).*\n", re.MULTILINE)
"""What a user does once, and the fixture has done."""
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
ROW = re.compile(r"^\| (`[^|]*`) \|", re.MULTILINE)
CALL = re.compile(r"^(\w+)(?:\((.*)\))?$")


def blocks(plugin: str) -> list[tuple[str, str]]:
    """(language, text) of the examples of a page."""
    return BLOCK.findall((PAGES / f"{plugin}.md").read_text())


def python_of(plugin: str) -> str:
    return "\n".join(text for language, text in blocks(plugin) if language == "python")


def shell_of(plugin: str) -> str:
    return STARTING.sub(
        "", "\n".join(text for _, text in blocks(plugin) if text.startswith(("luciola ", "pip ")))
    )


def carry_out(command: list[str], cluster: LocalCluster, directory: Path) -> str:
    """Runs part of a page as its reader does, and returns what it prints."""
    paths = os.pathsep.join(path for path in sys.path if path)
    environment = os.environ | {
        "LUCIOLA_DATA": str(cluster.data),
        "PYTHONPATH": paths,
        "OMP_NUM_THREADS": "1",
    }
    done = subprocess.run(
        command, cwd=directory, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def shell(text: str) -> list[str]:
    return ["bash", "-ec", f'luciola() {{ "{sys.executable}" -m luciola.cli "$@"; }}\n{text}']


def test_from_nothing_to_a_training_loop(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    for number in range(520):
        (photos / f"{number}.raw").write_bytes(bytes([number % 256]) * 900)
    assert "520" in carry_out(shell(shell_of("dataset")), shared_cluster, tmp_path)
    told = 'print(loader.epoch, batch.shape, len(open_records("lu:/data/a.ffr")), metrics["samples"])'
    seen = "from dataclasses import asdict\nmetrics = asdict(loader.dataset.metrics.snapshot())\n" + told
    done = carry_out([sys.executable, "-c", f"{python_of('dataset')}\n{seen}"], shared_cluster, tmp_path)
    assert done.split("\n")[-2].startswith("10 torch.Size([256, 900]) 2 ")


def test_a_job_with_checkpoints(shared_cluster: LocalCluster, tmp_path: Path) -> None:
    before = """
import torch
model = torch.nn.Linear(4, 4)
optimizer = torch.optim.SGD(model.parameters())
class loader:
    state_dict = staticmethod(lambda: {"epoch": 0})
first, second = torch.ones(3), torch.zeros(3)
"""
    job = python_of("checkpoint")
    for written, meant in {"10_001": "201", "/mnt/luciola": str(shared_cluster.mountpoint)}.items():
        assert written in job
        job = job.replace(written, meant)
    told = 'print(start, latest("lu:/runs/7"), torch.equal(weights["weight"], model.weight))'
    done = carry_out([sys.executable, "-c", f"{before}{job}\n{told}"], shared_cluster, tmp_path)
    assert done.split("\n")[-2].startswith("0 luciola://")
    assert done.split("\n")[-2].endswith("step-100 True"), "the newest is the one that was saved last"
    listed = carry_out(shell(shell_of("checkpoint")), shared_cluster, tmp_path)
    assert "step-000000200" in listed


def rows(plugin: str) -> list[tuple[str, str | None]]:
    """(name, parameters) of what the page's tables explain."""
    cells = ", ".join(ROW.findall((PAGES / f"{plugin}.md").read_text()))
    return [(found[1], found[2]) for each in re.findall(r"`([^`]*)`", cells) if (found := CALL.match(each))]


@pytest.mark.parametrize("plugin", PLUGINS)
def test_all_that_is_public_is_explained(plugin: str) -> None:
    public = set(importlib.import_module(f"luciola.plugins.{plugin}").__all__) - {"describe"}
    assert public - {name for name, _ in rows(plugin)} == set()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_parameters_are_those_of_the_code(plugin: str) -> None:
    module = importlib.import_module(f"luciola.plugins.{plugin}")
    for name, parameters in rows(plugin):
        if name not in module.__all__ or parameters is None:
            continue
        known = inspect.signature(getattr(module, name)).parameters
        named = {each.strip().split("=")[0] for each in parameters.split(",")} - {"…"}
        assert named <= set(known), name
