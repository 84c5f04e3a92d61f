"""deploy/: units that systemd accepts and finds hardened, configurations that are read."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from luciola.config import load

DEPLOY = Path(__file__).parents[2] / "deploy"
UNITS = sorted((DEPLOY / "systemd").glob("*.service"))
PROGRAM = "/opt/luciola/bin/luciola"
EXPOSURE_MAX = {"luciola.service": 2.5, "luciola-mount@.service": 6.5}  # of 10; a mount acts for every user


@pytest.mark.parametrize("unit", UNITS, ids=lambda unit: unit.name)
def test_unit_is_correct_and_hardened(unit: Path, tmp_path: Path) -> None:
    text = unit.read_text()
    assert PROGRAM in text
    copy = tmp_path / unit.name.replace("@.", "@mnt-luciola.")
    copy.write_text(text.replace(PROGRAM, sys.executable))  # that it is there is looked at, too
    verified = analyzed("verify", "--man=no", str(copy))
    assert verified.stderr == ""
    secured = analyzed("security", "--offline=true", "--no-pager", str(copy))
    exposure = re.search(r"exposure level for \S+: ([\d.]+)", secured.stdout)
    assert exposure is not None, secured.stdout + secured.stderr
    assert float(exposure[1]) <= EXPOSURE_MAX[unit.name]


def analyzed(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=True)


@pytest.mark.parametrize("file", sorted((DEPLOY / "config").glob("*.toml")), ids=lambda file: file.name)
def test_configuration_is_read_and_named_by_a_unit(file: Path) -> None:
    load(file)
    assert any(f"--config /etc/luciola/{file.name}" in unit.read_text() for unit in UNITS)
