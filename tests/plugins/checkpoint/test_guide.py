"""docs/guides/checkpoints.md, word by word."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster import LocalCluster
from luciola.cli import cli
from luciola.client import close_locations, open_location
from luciola.plugins.checkpoint import list_checkpoints

GUIDE = Path(__file__).parents[3] / "docs" / "guides" / "checkpoints.md"
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks and what they import


def test_the_guide(shared_cluster: LocalCluster, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    names: dict[str, Any] = {}
    printed = ""
    for language, text in BLOCK.findall(GUIDE.read_text()):
        if language == "python":
            exec(text, names)
        elif not text.startswith("pip install"):  # what the fixture has done
            for line in text.splitlines():
                program, *arguments = shlex.split(line)
                assert program == "luciola"
                done = CliRunner().invoke(cli, arguments)
                assert done.exit_code == 0, f"{line}\n{done.output}"
                printed += done.output
    assert "model.0.weight" in printed
    assert "0 damages" in printed
    assert "optimizer" not in printed
    assert {saved.step for saved in list_checkpoints("lu:/runs/stopped")} >= {40, 50}
    assert list_checkpoints("lu:/runs/trainer")[-1].step == 4
    fs, _ = open_location("lu:/runs")
    assert "last.ckpt" in fs.listdir("/runs/lightning")
    fs.rmtree("/runs")
    close_locations()
