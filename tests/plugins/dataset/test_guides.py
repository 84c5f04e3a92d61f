"""The guides of docs/guides that train from data sets, word by word."""

import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from cluster import LocalCluster
from luciola.cli import cli
from luciola.cli.datadir import free_ports
from luciola.client import close_locations, open_location
from luciola.wire.cluster import FILE_NAME, load_cluster

GUIDES = Path(__file__).parents[3] / "docs" / "guides"
BLOCK = re.compile(r"^```(\w*)(?: (\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
STARTING = re.compile(r"^(pip install|luciola up|export LUCIOLA_DATA=).*\n", re.MULTILINE)
"""What a user does once, and the fixture has done."""
SLURM = """
scontrol() { test "$1 $2" = "show hostnames"; printf '127.0.0.1\\nother\\n'; }
srun() {
  test "$1" = --kill-on-bad-exit=1; shift
  for rank in 0 1; do
    SLURM_PROCID=$rank SLURM_LOCALID=0 SLURM_NTASKS=2 SLURM_STEP_NUM_TASKS=2 "$@" & processes[rank]=$!
  done
  for rank in 0 1; do wait "${processes[rank]}"; done
}
"""
"""Two tasks of a step, with the names that srun gives them; `--ntasks` of the script stays outside."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(900),  # of a machine that does much else: the programs start some twenty times
    pytest.mark.filterwarnings("ignore"),  # of the frameworks and what they import
]


@pytest.fixture
def home(
    shared_cluster: LocalCluster, warm_python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Path]:
    """A user's directory, with `lu:` for the cluster, which is empty again afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LUCIOLA_DATA", str(shared_cluster.data))
    monkeypatch.setenv("PATH", f"{Path(warm_python).parent}:{os.environ['PATH']}")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    fs, _ = open_location("lu:/")
    for name in ("photos", "text", "runs"):
        fs.rmtree(f"/{name}", ignore_errors=True)
    close_locations()


def follow(guide: str, names: dict[str, Any]) -> str:
    """Does what the guide says; returns what its commands print."""
    printed = ""
    for language, file, text in BLOCK.findall((GUIDES / guide).read_text()):
        if file:
            Path(file).write_text(text)
        elif language == "python":
            exec(text, names)
        else:
            printed += "".join(command(line) for line in STARTING.sub("", text).splitlines())
    return printed


def command(line: str) -> str:
    program, *arguments = map(os.path.expanduser, shlex.split(line))
    match program:
        case "luciola":
            done = CliRunner().invoke(cli, arguments)
            assert done.exit_code == 0, f"{line}\n{done.output}"
            return done.output
        case "torchrun":
            return run("python", "-m", "torch.distributed.run", *arguments)  # the same, by the `python` here
        case "sbatch":
            environment = {**os.environ, "SLURM_JOB_NODELIST": "node[1-2]", "SLURM_PROCID": "0"}
            environment.pop("LUCIOLA_DATA")  # machines of jobs are no servers
            script = Path(arguments[0]).read_text().replace("29500", str(free_ports(1)[0]))
            return run("bash", "-c", SLURM + script, *arguments, environment=environment)
    raise AssertionError(f"no program of the guides: {line}")


def run(*words: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr[-3000:]}"
    return done.stdout


def test_photos_with_labels_to_accuracy(home: Path) -> None:
    assert "300" in follow("images.md", {})


def test_text_to_perplexity_and_slurm(home: Path, shared_cluster: LocalCluster) -> None:
    printed = follow("text.md", {})
    assert "2 processes begin behind step 0\n" in printed
    assert "1 processes begin behind step 20\n" in printed
    (home / "luciola-address").write_text(load_cluster(shared_cluster.data / FILE_NAME).mgmtd_lane)
    printed = follow("slurm.md", {})
    assert "2 processes begin behind step 0\n" in printed
    assert "2 processes begin behind step 20\n" in printed
    assert re.search(r"^step 40: perplexity \d", printed, re.MULTILINE)
