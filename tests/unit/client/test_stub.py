"""The stub of the native module says what the module is."""

import os
import subprocess
import sys
from pathlib import Path

STUBS = Path(__file__).parents[3] / "core" / "stubs"


def test_the_stub_equals_the_module():
    command = [
        sys.executable,
        "-m",
        "mypy.stubtest",
        "luciola_core",
        "--concise",
        "--ignore-unused-allowlist",
    ]
    result = subprocess.run(
        [*command, "--allowlist", str(STUBS / "allowlist.txt")],
        env={**os.environ, "MYPYPATH": str(STUBS)},
        capture_output=True,
        text=True,
        timeout=280,
        check=False,
    )
    assert result.returncode == 0, result.stdout + result.stderr
