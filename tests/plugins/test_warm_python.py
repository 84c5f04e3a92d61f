"""The `python` that forks programs from a process with torch behaves as the interpreter does."""

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import multiprocessing, os, sys

def child(queue):
    queue.put((os.getppid(), __name__))

if __name__ == "__main__":
    context = multiprocessing.get_context("spawn")
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue,))
    process.start()
    print(sys.argv[1:], sys.stdin.read(), os.getcwd(), os.environ["GIVEN"], queue.get()[1], "torch" in sys.modules)
    process.join()
    sys.exit(process.exitcode)
"""


def outcome(python: str, *arguments: str, **options) -> tuple[int, str, list[str]]:
    """Status, what is printed, and the last line of the errors."""
    done = subprocess.run([python, *arguments], capture_output=True, text=True, check=False, **options)
    return done.returncode, done.stdout, done.stderr.splitlines()[-1:]


@pytest.mark.parametrize(
    "arguments",
    [
        ("-c", "print(__name__, 5)"),
        ("-u", "-c", "import os; print(6); os._exit(7)"),
        ("-c", "raise SystemExit('the reason')"),
        ("-c", "raise ValueError(1)"),
        ("-c", "import atexit, sys; atexit.register(print, sys.argv); sys.exit(3)", "-c", "x"),
        ("-c", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"),
        ("-c", "import threading; threading.Timer(0.01, print, ['late']).start()"),
        ("-m", "json.tool", "nothing.json"),
    ],
)
def test_program_ends_as_under_the_interpreter(warm_python: str, arguments: tuple[str, ...]) -> None:
    assert outcome(warm_python, *arguments) == outcome(sys.executable, *arguments)


def test_script_has_what_its_client_has_and_spawns_the_same(warm_python: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "GIVEN": "that"}
    status, printed, _ = outcome(
        warm_python, str(script), "a", "b", input="read", env=environment, cwd=tmp_path
    )
    assert (status, printed) == (0, f"['a', 'b'] read {tmp_path} that __mp_main__ True\n")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_signal_to_the_client_ends_the_program(warm_python: str, number: signal.Signals) -> None:
    code = "import os, time; print(os.getpid(), flush=True); time.sleep(300)"
    with subprocess.Popen([warm_python, "-c", code], stdout=subprocess.PIPE) as client:
        assert client.stdout is not None
        ended = os.pidfd_open(int(client.stdout.readline()))
        client.send_signal(number)
        assert client.wait() == -number
        assert select.select([ended], [], [], 60)[0], "the program continues"
        os.close(ended)
