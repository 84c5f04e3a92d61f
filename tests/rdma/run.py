"""Builds what runs in the laboratory, and runs it there: `make test-rdma`.

    run.py              everything
    run.py --quick      what fits into continuous integration: tests marked `slow` are left out
    run.py -- ARGS...   only pytest, with these arguments

The native tests of connections (`core/tests/rdma.rs`) run first, then those of the data path (`core/tests/data.rs`)
and of replication and recovery (`core/tests/storage_server.rs`) over RDMA, then pytest on this directory, all in one
guest.
"""

import argparse
import contextlib
import json
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

HERE: Final = Path(__file__).resolve().parent
ROOT: Final = HERE.parent.parent
CORE: Final = ROOT / "core"
# Boot and tests, on a machine with two cores that are busy with other work; ten thousand connections take most of it.
LIMIT_S: Final = 7200
QUICK_LIMIT_S: Final = 1500
# Of the data path: one is about memory that is shared on one host, which behaves otherwise; one counts attempts by the
# clock, and an emulated machine may be too slow to connect in time.
NOT_OVER_RDMA: Final = (
    "a_node_in_trouble_is_left_alone_for_a_while",
    "a_read_into_registered_memory_is_abandoned_if_its_owner_can_do_without",
)


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
        connections, data, chains = build(
            *(("test", "--no-run", "--test", name) for name in ("rdma", "data", "storage_server"))
        )
        alone = ("--test-threads", "1")
        # These tests are those of every transport.
        over_rdma = ("env", "LUCIOLA_TEST_TRANSPORT=rdma")
        left_out = [word for name in NOT_OVER_RDMA for word in ("--skip", name)]
        steps = [
            [str(connections), *alone],
            [*over_rdma, str(data), *alone, *left_out],
            [*over_rdma, str(chains), *alone],
            [*python, str(HERE)],
        ]
    script = " && ".join(shlex.join(step) for step in steps)
    # The laboratory ends with this process, and the guest with it, whatever ends this process.
    command = ["setpriv", "--pdeathsig", "TERM", sys.executable, str(HERE / "laboratory.py")]
    command += ["--limit", str(QUICK_LIMIT_S if given.quick else LIMIT_S)]
    command += ["--", "env", f"LUCIOLA_RDMA_PEER={peer}", "bash", "-c", script]
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))
    with subprocess.Popen(command, cwd=ROOT) as laboratory:
        try:
            while True:
                # No longer than a second: Python handles a signal that came just before the call only after it.
                with contextlib.suppress(subprocess.TimeoutExpired):
                    return laboratory.wait(1)
        finally:
            laboratory.terminate()


if __name__ == "__main__":
    sys.exit(main())
