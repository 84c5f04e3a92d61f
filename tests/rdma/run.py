"""Builds what runs in the laboratory, and runs it there: `make test-rdma`.

    run.py              everything
    run.py --quick      what fits into continuous integration: tests marked `slow` are left out
    run.py -- ARGS...   only pytest, with these arguments

The native tests of connections (`core/tests/rdma.rs`) run first, then those of replication and recovery over RDMA
(`core/tests/storage_server.rs`), then pytest on this directory, all in one guest.
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
LIMIT_S: Final = 3600
QUICK_LIMIT_S: Final = 900


def build(*targets: tuple[str, ...]) -> list[Path]:
    """Builds with cargo; the binaries."""
    found = []
    for what in targets:
        command = ("cargo", what[0], "--locked", "--message-format=json-render-diagnostics", *what[1:])
        done = subprocess.run(command, cwd=CORE, stdout=subprocess.PIPE, text=True, check=False)
        if done.returncode != 0:
            sys.exit(f"run.py: {' '.join(command)} failed")
        executables = [json.loads(line).get("executable") for line in done.stdout.splitlines()]
        found.append(Path(next(filter(None, executables))))
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description="Test everything that speaks RDMA, in the laboratory.")
    parser.add_argument("--quick", action="store_true", help="leave out what takes long")
    parser.add_argument("pytest", nargs="*", help="only pytest, with these arguments")
    given = parser.parse_args()
    (peer,) = build(("build", "--example", "rdma_peer"))
    # Hypothesis is not used there, and slow to load.
    python = [sys.executable, "-m", "pytest", "-p", "no:hypothesispytest", "--timeout", "600"]
    if given.pytest:
        steps = [[*python, *given.pytest]]
    elif given.quick:
        steps = [[*python, "-m", "not slow", str(HERE)]]
    else:
        connections, chains = (
            build(("test", "--no-run", "--test", name))[0] for name in ("rdma", "storage_server")
        )
        # The tests of replication and recovery are those of every transport.
        over_rdma = ["env", "LUCIOLA_TEST_TRANSPORT=rdma", str(chains), "--test-threads", "1"]
        steps = [[str(connections), "--test-threads", "1"], over_rdma, [*python, str(HERE)]]
    script = " && ".join(shlex.join(step) for step in steps)
    command = [sys.executable, str(HERE / "laboratory.py")]
    command += ["--limit", str(QUICK_LIMIT_S if given.quick else LIMIT_S)]
    command += ["--", "env", f"LUCIOLA_RDMA_PEER={peer}", "bash", "-c", script]
    return subprocess.run(command, cwd=ROOT, check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
