"""benchmarks/processes.py finds the processes of a file system and what they used."""

import importlib
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
# Uses the processor for a while, in a thread that has ended when it says so; then sleeps until its input ends.
WORKER = """
import sys, threading, time
def work():
    until = time.thread_time() + 0.05
    while time.thread_time() < until:
        pass
thread = threading.Thread(target=work)
thread.start()
thread.join()
print("worked", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def processes(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("processes")


@contextmanager
def worker(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """A process that has used 50 ms of processor time."""
    command = [sys.executable, "-S", "-c", WORKER, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            assert process.stdout.readline() == "worked\n"
            yield process
        finally:
            process.communicate(timeout=100)


@pytest.mark.parametrize(
    ("command", "role"),
    [
        ("/venv/bin/python -m luciola.storage --data /run/x/luciola/node-1", "storage"),
        ("/venv/bin/python3.11 -m luciola mount --foreground /run/x/luciola /mnt", "mount"),
        ("/venv/bin/python /venv/bin/luciola up --data /run/x", "up"),
        ("mfschunkserver -c /run/x/server0.cfg start", "mfschunkserver"),
        ("redis-server: 127.0.0.1:7000", "redis-server"),
        ("/usr/sbin/glusterfsd -s 10.0.0.1 --volfile-id a", "glusterfsd"),
        ("/venv/bin/juicefs mount /run/luciola.d/x", "juicefs"),
    ],
)
def test_role_is_the_service_or_the_program(processes: ModuleType, command: str, role: str) -> None:
    assert processes.role_of(command.split()) == role


def test_command_line_names_a_directory_or_what_is_in_it(processes: ModuleType) -> None:
    root = Path("/run/x.1")
    assert processes.names(["a", "/run/x.1/data"], root)
    assert processes.names(["--data=/run/x.1"], root)
    assert processes.names(["mfsmount (mounted on: /run/x.1 )"], root)
    assert not processes.names(["/run/x.10/data", "/run/x11", "/run"], root)


def test_usage_counts_threads_that_have_ended(processes: ModuleType, tmp_path: Path) -> None:
    with worker(str(tmp_path / "data")) as process:
        used = processes.usage(process.pid)
    assert used.processor_ns >= 50_000_000
    assert used.sleeps >= 1


def test_services_are_found_by_what_they_name(processes: ModuleType, tmp_path: Path) -> None:
    with worker("luciola.meta", str(tmp_path / "data")), worker(str(tmp_path) + "0"):
        (found,) = processes.usage_of_services(tmp_path).items()
    assert found[0] == "meta"
    assert found[1].processor_ns >= 50_000_000


def test_services_that_change_their_command_line_are_found_by_who_started_them(
    processes: ModuleType, tmp_path: Path
) -> None:
    with worker("luciola.storage"), worker("luciola.storage"):
        assert processes.usage_of_services(tmp_path) == {}
        found = processes.usage_of_services(tmp_path, starter=os.getpid())
    assert found["storage"].processor_ns >= 100_000_000


def test_what_is_started_later_counts_from_its_start_and_what_restarts_not_at_all(
    processes: ModuleType,
) -> None:
    usage = processes.Usage
    before = {"mount": usage(10, 1), "meta": usage(100, 10)}
    now = {"mount": usage(30, 2), "meta": usage(5, 0), "storage": usage(7, 3)}
    assert processes.since(before, now) == {"mount": usage(20, 1), "storage": usage(7, 3)}
