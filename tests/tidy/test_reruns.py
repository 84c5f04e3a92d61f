"""`make test-python` runs a failed test once more, under the rules of tests/reruns.py."""

import os
import re
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]
[OPTIONS] = re.findall(r"-m pytest (--reruns .*)", (TESTS.parent / "Makefile").read_text())

SETTINGS = """
[pytest]
addopts = -raR --strict-markers --import-mode=importlib -p no:cacheprovider
timeout = {timeout_s}
timeout_method = signal
filterwarnings = error
markers = integrity: never again
"""
CONFTEST = """
import pytest
from reruns import Reruns

def pytest_configure(config):
    config.pluginmanager.register(Reruns())

def log(line):
    with open("log", "a") as file:
        file.write(line + "\\n")

def times(line):
    log(line)
    return open_log().count(line)

def open_log():
    with open("log") as file:
        return file.read().splitlines()

@pytest.fixture
def attempt(request):
    return times(f"test {request.node.name}")

@pytest.fixture(scope="session")
def cluster():
    log("cluster begins")
    yield {"works": True}
    log("cluster ends")

@pytest.fixture(scope="module")
def mount(cluster):
    if times("mount begins") == 1:
        raise OSError("a mount that fails")
    yield cluster
    log("mount ends")
"""


def run_pytest(directory: Path, tests: str, *options: str, timeout_s: int = 300) -> tuple[int, str]:
    """What pytest returns and says of these tests."""
    (directory / "pytest.ini").write_text(SETTINGS.format(timeout_s=timeout_s))
    (directory / "conftest.py").write_text(CONFTEST)
    (directory / "test_it.py").write_text(tests)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "pytest_timeout", "-p", "pytest_rerunfailures", *options],
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(TESTS), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"},
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    return result.returncode, result.stdout + result.stderr


def test_a_failure_is_forgiven_once_and_shown(tmp_path: Path) -> None:
    tests = """
def test_unlucky(attempt):
    assert attempt == 2

def test_lucky(attempt):
    assert attempt == 1
"""
    code, said = run_pytest(tmp_path, tests, *OPTIONS.split())
    assert code == 0, said
    assert "2 passed, 1 rerun" in said
    assert "RERUN test_it.py::test_unlucky" in said
    assert "assert 1 == 2" in said  # why it failed


def test_failures_are_final_without_the_option(tmp_path: Path) -> None:
    code, said = run_pytest(tmp_path, "def test_unlucky(attempt):\n    assert attempt == 2\n")
    assert code == 1, said
    assert "1 failed" in said


def test_lost_data_a_second_failure_and_a_sixth_test_are_not_forgiven(tmp_path: Path) -> None:
    tests = """
import pytest

@pytest.mark.integrity
def test_data(attempt):
    assert attempt == 2

def test_always(attempt):
    raise ValueError

@pytest.mark.parametrize("number", range(5))
def test_many(attempt, number):
    assert attempt == 2
"""
    code, said = run_pytest(tmp_path, tests, *OPTIONS.split())
    assert code == 1, said
    assert "3 failed, 4 passed, 5 rerun" in said
    for name in ("data", "always", "many[4]"):
        assert f"FAILED test_it.py::test_{name}" in said


def test_another_attempt_has_everything_anew(tmp_path: Path) -> None:
    tests = """
def test_a_fixture_that_fails_to_begin(mount):
    assert mount["works"]

def test_breaks_the_cluster(attempt, mount):
    mount["works"] = attempt == 2
    assert mount["works"]

def test_uses_it_afterwards(mount, cluster):
    assert mount is cluster
    assert mount["works"]
"""
    code, said = run_pytest(tmp_path, tests, *OPTIONS.split())
    assert code == 0, said
    assert "3 passed, 2 rerun" in said
    fixtures = [line for line in (tmp_path / "log").read_text().splitlines() if "test" not in line]
    begun = ["cluster begins", "mount begins"]
    assert fixtures == [*begun, "cluster ends", *[*begun, "mount ends", "cluster ends"] * 2]


def test_what_a_failed_attempt_left_open_fails_no_other_test(tmp_path: Path) -> None:
    tests = """
import gc, socket

def test_leaves_a_socket_open(attempt):
    left = socket.socket()
    assert attempt == 2
    left.close()

def test_collects():
    gc.collect()
"""
    code, said = run_pytest(tmp_path, tests, *OPTIONS.split())
    assert code == 0, said
    assert "2 passed, 1 rerun" in said


def test_each_attempt_has_the_time_limit(tmp_path: Path) -> None:
    tests = """
import threading

def test_hangs(attempt):
    threading.Event().wait()

def test_goes_on():
    pass
"""
    code, said = run_pytest(tmp_path, tests, *OPTIONS.split(), timeout_s=1)
    assert code == 1, said
    assert "1 failed, 1 passed, 1 rerun" in said
    assert "Timeout (>1" in said
