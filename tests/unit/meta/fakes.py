"""The fakes of this service and of chains that the Rust client's tests use, asked as `World` asks the service."""

import json
import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from luciola.wire import TRUSTED, Identity, errors, methods
from luciola.wire.pb.common_pb2 import Error

from .world import World

CORE: Final = Path(__file__).resolve().parents[3] / "core"
START: Final = 0  # the numbers of core/src/client/fake_server.rs
WRITE: Final = 1 << 16
READ: Final = WRITE + 1


class Fakes:
    """The process that has them."""

    def __init__(self, stream: socket.socket) -> None:
        self._stream = stream
        self._replies = stream.makefile("rb")

    def ask(self, number: int, request: bytes = b"") -> bytes:
        """The reply's bytes. Raises: what the fake refuses with."""
        self._stream.sendall(_words(4, number, len(request)) + request)
        head = self._replies.read(8)
        assert len(head) == 8, "the fakes do not know this request, or it breaks a rule for clients"
        reply = self._replies.read(int.from_bytes(head[4:], "little"))
        if head[0]:
            raise errors.decode(Error.FromString(reply))
        return reply


class FakeService:
    """Answers to the methods of `MetaService`."""

    def __init__(self, fakes: Fakes) -> None:
        self._fakes = fakes

    def __getattr__(self, name: str):
        method = getattr(methods.Meta, name)
        return lambda request, _: method.reply.FromString(
            self._fakes.ask(method.lane, request.SerializeToString())
        )


class FakeWorld(World):
    """A fake service and fake chains, at their start."""

    def __init__(self, fakes: Fakes) -> None:
        fakes.ask(START)
        self.fakes = fakes
        self.service = FakeService(fakes)
        self.identity = Identity(TRUSTED, 0, 0, ())
        self._principals = {self.identity.principal: 0}
        self.sequence = 0

    def write_to(self, inode, content: int, offset: int, data: bytes) -> None:
        self.fakes.ask(WRITE, _words(8, content, offset) + data)

    def read(self, inode) -> bytes:
        data = inode.inline_data if inode.is_inline else self.fakes.ask(READ, _words(8, inode.content))
        return data[: inode.length].ljust(inode.length, b"\0")

    def collect(self, rounds: int = 50) -> None:
        """The fake leaves nothing to a collector."""


def _words(size: int, *numbers: int) -> bytes:
    return b"".join(number.to_bytes(size, "little") for number in numbers)


def _binary() -> Path:
    """The client's tests, built if `cargo test` has not done so."""
    command = ("cargo", "test", "--locked", "--lib", "--no-run", "--message-format=json-render-diagnostics")
    done = subprocess.run(command, cwd=CORE, stdout=subprocess.PIPE, check=True)
    built = [json.loads(line).get("executable") for line in done.stdout.splitlines()]
    return Path(next(filter(None, built)))


@contextmanager
def serve_fakes(directory: Path) -> Iterator[Fakes]:
    """Runs the process that serves them."""
    path = directory / "fakes.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        command = [_binary(), "client::fake_server::serve_the_fakes", "--exact", "--ignored"]
        with subprocess.Popen(
            command, env=os.environ | {"LUCIOLA_FAKES": str(path)}, stdout=subprocess.DEVNULL
        ) as process:
            stream, _ = listener.accept()
            with stream:
                fakes = Fakes(stream)
                yield fakes
                fakes._replies.close()
            process.wait()
