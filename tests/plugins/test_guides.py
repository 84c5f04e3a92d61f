"""The pages of `dataset` and `checkpoint`: their examples are carried out, and they name all that is public."""

import importlib
import inspect
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from PIL import Image

import luciola
from cluster import LocalCluster
from luciola.cli import cli

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


@pytest.fixture
def home(shared_cluster: LocalCluster, locations: None, tmp_path: Path, monkeypatch) -> Path:
    """A user's directory, with `lu:` for the cluster."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    return tmp_path


def shell(text: str) -> str:
    """Carries out commands of `luciola`, and returns what they print."""
    told = []
    for line in text.splitlines():
        program, *arguments = shlex.split(line, comments=True) or ["luciola", "--version"]
        assert program == "luciola"
        done = CliRunner().invoke(cli, arguments)
        assert done.exit_code == 0, f"{line}\n{done.output}"
        told.append(done.output)
    return "".join(told)


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes")
def test_from_nothing_to_a_training_loop(home: Path, shared_cluster: LocalCluster, monkeypatch) -> None:
    for number in range(580):
        photo = home / "photos" / ("cat", "dog")[number % 2] / f"{number}.jpg"
        photo.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number % 256, 255 * (number % 2), 0)).save(photo)
    datasets = pytest.importorskip("datasets", reason="needs the extra `ecosystem`")
    reviews = {"text": [f"review {number}" for number in range(256)], "label": [0, 1] * 128}
    datasets.Dataset.from_dict(reviews).save_to_disk("reviews")
    monkeypatch.setattr(datasets, "load_dataset", lambda name, split: datasets.load_from_disk("reviews"))
    with luciola.connect(shared_cluster.data) as fs:
        fs.makedirs("/text/parquet")
        with fs.open("/text/parquet/a.parquet", "wb") as file:
            datasets.Dataset.from_dict(reviews).to_parquet(file)
    assert "580" in shell(shell_of("dataset"))
    names: dict[str, Any] = {}
    exec(python_of("dataset"), names)
    assert names["loader"].epoch == 10
    pictures, classes = names["batch"]
    assert pictures.shape == (256, 3, 64, 64)
    greens = pictures[:, 1].mean((1, 2))
    assert ((greens > 0.5) == (classes == 1)).all(), "the class is that of the picture"
    assert len(names["open_records"]("lu:/data/a.ffr")) == 2
    assert sum(len(batch["label"]) for batch in names["rows_in_blocks"]) == 256
    assert [row["label"] for row in names["stream"]] == reviews["label"]
    assert (home / "checkpoint.pt").exists()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized")
def test_a_job_with_checkpoints(home: Path, shared_cluster: LocalCluster) -> None:
    model = torch.nn.Linear(4, 4)
    optimizer = torch.optim.SGD(model.parameters())
    names = {
        "model": model,
        "optimizer": optimizer,
        "scheduler": torch.optim.lr_scheduler.StepLR(optimizer, 10),
        "loader": SimpleNamespace(state_dict=lambda: {"epoch": 0}, load_state_dict=lambda _: None),
        "torch": torch,
        "first": torch.ones(3),
        "second": torch.zeros(3),
    }
    job = python_of("checkpoint")
    for written, meant in {"10_001": "201", "/mnt/luciola": str(shared_cluster.mountpoint)}.items():
        assert written in job
        job = job.replace(written, meant)
    exec(job, names)
    assert names["start"] == 0
    assert str(names["latest"]("lu:/runs/7")).endswith("/step-100"), "the one that was saved last"
    assert torch.equal(names["weights"]["weight"], model.weight)
    assert "step-000000200" in shell(shell_of("checkpoint"))


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
        named = {each.strip().lstrip("*").split("=")[0] for each in parameters.split(",")} - {"…"}
        assert named <= set(known), name
