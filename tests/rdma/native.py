"""The native end (`core/examples/rdma_peer.rs`) as a process that is driven by lines."""

import os
import subprocess
from pathlib import Path
from typing import Self

BINARY = Path(
    os.environ.get("LUCIOLA_RDMA_PEER", Path(__file__).parents[2] / "core/target/debug/examples/rdma_peer")
)


class Native:
    """Use as a context manager: the process ends with it."""

    def __init__(self, *arguments: str) -> None:
        assert BINARY.exists(), f"{BINARY} is missing: `cd core && cargo build --example rdma_peer`"
        self.process = subprocess.Popen(
            [BINARY, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.process.stdin.close()
        self.process.stdout.close()

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hear(self) -> str:
        line = self.process.stdout.readline()
        assert line, f"the native end has ended with {self.process.wait()}"
        return line.strip()

    def ask(self, *words: object) -> str:
        self.say(*words)
        return self.hear()

    def say(self, *words: object) -> None:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
