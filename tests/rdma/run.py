"""Builds what runs in the laboratory, and runs it there: `make test-rdma`.

    run.py              everything
    run.py --quick      what fits into continuous integration: tests marked `slow` are left out
    run.py -- ARGS...   only pytest, with these arguments

The native tests of connections (`core/tests/rdma.rs`) run first, then pytest on this directory, all in one guest.
"""

import argparse
import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
CORE: Final = ROOT / "core"
# Boot and tests, on a machine with two busy cores.
LIMIT_S: Final = 1800
QUICK_LIMIT_S: Final = 600


def build() -> tuple[Path, Path]:
    """The binaries of the native tests, and of the native end for the other implementation."""
    found: dict[str, Path] = {}
    for what in (("build", "--example", "rdma_peer"), ("test", "--no-run", "--test", "rdma")):
        command = ("cargo", what[0], "--locked", "--message-format=json-render-diagnostics", *what[1:])
        done = subprocess.run(command, cwd=CORE, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"run.py: {' '.join(command)} failed")
        for line in done.stdout.splitlines():
            message = json.loads(line)
            if message.get("executable") and message["target"]["name"] in ("rdma", "rdma_peer"):
                found[message["target"]["name"]] = Path(message["executable"])
    return found["rdma"], found["rdma_peer"]


def main() -> int:
    parser = argparse.ArgumentParser(description="Test everything that speaks RDMA, in the laboratory.")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    parser.add_argument("pytest", nargs="*", help="only pytest, with these arguments")
    given = parser.parse_args()
    native, peer = build()
    python = [sys.executable, "-m", "pytest", "--timeout", "300"]
    steps = [[str(native), "--test-threads", "1"], [*python, str(HERE)]]
    if given.pytest:
        steps = [[*python, *given.pytest]]
    elif given.quick:
        steps = [[*python, "-m", "not slow", str(HERE)]]
    script = " && ".join(shlex.join(step) for step in steps)
    command = [sys.executable, str(HERE / "laboratory.py")]
    command += ["--limit", str(QUICK_LIMIT_S if given.quick else LIMIT_S)]
    command += ["--", "env", f"LUCIOLA_RDMA_PEER={peer}", "bash", "-c", script]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
