"""Mistakes that `tests/planted/run.py` plants can still be planted."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted((ROOT / "tests" / "planted").glob("*.patch"))


@pytest.mark.parametrize("patch", PATCHES, ids=lambda patch: patch.stem)
def test_planted_mistake_applies_to_the_present_code(patch: Path) -> None:
    done = subprocess.run(
        ["git", "apply", "--check", patch], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"make the patch again for the code as it is now: {done.stderr}"


def test_every_planted_mistake_has_suites_that_should_find_it() -> None:
    listed = subprocess.run(
        [sys.executable, ROOT / "tests" / "planted" / "run.py", "--help"],
        capture_output=True,
        text=True,
        check=True,
        env=os.environ | {"COLUMNS": "10000"},  # names in one piece
    ).stdout
    assert PATCHES
    assert [patch.stem for patch in PATCHES if patch.stem not in listed] == []
