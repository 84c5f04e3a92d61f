"""Replicas as processes (`replica_process`), for tests and benchmarks that kill them."""

import os
import selectors
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import replica_process

WAIT_S = 150.0  # for an answer, on the busiest machine


class ReplicaProcess:
    """One process, which is asked line by line."""

    def __init__(self, directory: Path, name: str, endpoints: Sequence[str]) -> None:
        self._arguments = [str(directory / name), "luciola/replicas/", name, *endpoints]
        self._errors = directory / f"{name}.log"
        self.name = name
        self.process: subprocess.Popen[bytes]
        self.start()

    def start(self) -> None:
        module = Path(replica_process.__file__)
        with self._errors.open("ab") as errors:
            self.process = subprocess.Popen(
                ["setpriv", "--pdeathsig", "KILL", sys.executable, str(module), *self._arguments],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                bufsize=0,
                env={**os.environ, "GRPC_ENABLE_FORK_SUPPORT": "false"},
            )

    def ask(self, request: str) -> str:
        assert self.process.stdin is not None
        try:
            self.process.stdin.write(f"{request}\n".encode())
        except BrokenPipeError:
            raise AssertionError(self._ended()) from None
        return self._line(request)

    def kill(self) -> None:
        self.process.kill()
        self._close()

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        try:
            self.process.wait(WAIT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
        self._close()

    def _close(self) -> None:
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe is not None:
                pipe.close()

    def _line(self, request: str) -> str:
        assert self.process.stdout is not None
        received = b""
        with selectors.DefaultSelector() as selector:
            selector.register(self.process.stdout, selectors.EVENT_READ)
            while not received.endswith(b"\n"):
                assert selector.select(WAIT_S), f"{self.name} does not answer {request!r}: {self._ended()}"
                chunk = os.read(self.process.stdout.fileno(), 4096)
                assert chunk, self._ended()
                received += chunk
        return received.decode().strip()

    def _ended(self) -> str:
        return f"{self.name}, {self.process.poll()}: {self._errors.read_text()[-2000:]}"


def count(replicas: Sequence[ReplicaProcess], request: str) -> tuple[int, ReplicaProcess]:
    """The answer to a request, and who gave it; it is asked of one after another until one is primary."""
    begun_s = time.monotonic()
    while True:
        for replica in replicas:
            answer = replica.ask(f"count {request}").split()
            if answer[0] == "done":
                return int(answer[1]), replica
        assert time.monotonic() - begun_s < WAIT_S, f"no replica is primary: {answer}"
        time.sleep(0.02)  # they are standbys until a lease has run out


def settled(replicas: Sequence[ReplicaProcess]) -> set[str]:
    """What the replicas hold once all are at one position, or after `WAIT_S`."""
    begun_s = time.monotonic()
    while True:
        dumps = {replica.ask("dump") for replica in replicas}
        if len(dumps) == 1 or time.monotonic() - begun_s > WAIT_S:
            return dumps
        time.sleep(0.05)
