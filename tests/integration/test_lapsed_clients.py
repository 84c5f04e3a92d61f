"""Clients that are silent for their session timeout, and that come back."""

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

import luciola
from cluster import LocalCluster, meta_status, until

CONFIG = "[mgmtd]\nclient_session_timeout_ms = 2000\nclient_extend_interval_ms = 200\n"

WRITER = """
import sys, luciola
with luciola.connect(sys.argv[1]) as fs, fs.open("/slept", "wb", buffering=0) as file:
    file.write(b"before" * 50_000)
    file.flush()
    file.write(b"waits here")
    print("written", flush=True)
    sys.stdin.readline()
    outcomes = []
    for call in (lambda: file.fsync(), lambda: file.write(b"after"), file.close):
        try:
            call()
            outcomes.append(0)
        except OSError as error:
            outcomes.append(error.errno)
    print(*outcomes, flush=True)
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    root = tmp_path_factory.mktemp("lapsed")
    with LocalCluster(root, storage_nodes=1, replicas=1, config=CONFIG) as cluster:
        yield cluster


def write_sessions(cluster: LocalCluster) -> int:
    """How many files are open for writing."""
    status = meta_status(cluster)
    assert status is not None
    return status.write_sessions


@pytest.fixture
def writer(cluster: LocalCluster) -> Iterator[subprocess.Popen[str]]:
    """A program that has a file open and waits for a line before it continues."""
    command = [sys.executable, "-c", WRITER, str(cluster.data)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "written\n"
    yield process
    process.kill()
    process.wait()


def outcomes(writer: subprocess.Popen[str]) -> list[int]:
    output, _ = writer.communicate("\n")
    return [int(word) for word in output.split()]


def test_a_program_that_slept_while_others_replaced_its_file_gets_estale(cluster, writer):
    os.kill(writer.pid, signal.SIGSTOP)
    until(lambda: write_sessions(cluster) == 0, what="the sleeper's session to end")
    with luciola.connect(cluster.data) as fs:
        fs.write("/slept", b"theirs")
        os.kill(writer.pid, signal.SIGCONT)
        assert outcomes(writer) == [errno.ESTALE] * 3
        assert fs.read("/slept") == b"theirs"


def test_a_program_that_did_not_sleep_keeps_its_session(cluster, writer):
    assert outcomes(writer) == [0, 0, 0]
    with luciola.connect(cluster.data) as fs:
        assert fs.stat("/slept").st_size == 300_015
