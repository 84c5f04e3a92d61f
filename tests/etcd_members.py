"""Members of a real etcd, on loopback addresses of their own: `with EtcdMembers(directory) as members: …`

    members.endpoints                    for EtcdOptions
    members.kill(index); members.start(index); members.pause(index); members.resume(index)
    members.leader()                     the index of the member that leads
    members.heal()                       everything runs and agrees again

Data is synced as etcd does it. A port that is taken meanwhile costs another attempt, with other addresses.
"""

import asyncio
import contextlib
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pytest

from luciola.errors import Error
from luciola.wire.etcd import EtcdClient, EtcdOptions

READY_S: Final = 150.0  # of a start on a busy machine: elections take a second on an idle one
ATTEMPTS: Final = 5
CLIENT_PORT: Final = 23790  # below the ports that the kernel gives to connections
PEER_PORT: Final = 23800


class Exited(Exception):
    """A member ended by itself: another process has its port, most likely."""


class EtcdMembers:
    """`count` members; `options` are more arguments for each. They end with the block, or with this thread."""

    def __init__(
        self, directory: Path, *, count: int = 3, options: Sequence[str] = (), tls: bool = False
    ) -> None:
        self.directory = directory
        self.count = count
        self.options = options
        self.tls = tls
        self.network = ""
        self.client_options: dict[str, object] = {}  # more for EtcdOptions: TLS, a password
        self._processes: list[subprocess.Popen[bytes] | None] = [None] * count

    @property
    def endpoints(self) -> tuple[str, ...]:
        return tuple(f"{self._host(index)}:{CLIENT_PORT}" for index in range(self.count))

    def client(self, endpoints: Sequence[str] | None = None, **more) -> EtcdClient:
        """Return a client, to be made and closed in a running loop."""
        return EtcdClient(EtcdOptions(tuple(endpoints or self.endpoints), **self.client_options), **more)

    def __enter__(self):
        for attempt in range(ATTEMPTS):
            self.network = f"127.{random.randrange(1, 255)}.{random.randrange(1, 255)}"
            shutil.rmtree(self.directory, ignore_errors=True)
            self.directory.mkdir(parents=True)
            try:
                if self.tls:
                    self._certify()
                for index in range(self.count):
                    self.start(index)
                self.wait()
            except Exited:
                self._end()
                if attempt == ATTEMPTS - 1:
                    raise
            except BaseException:
                self._end()
                raise
            else:
                return self
        raise AssertionError("the last attempt returns or raises")

    def __exit__(self, *exception):
        self._end()

    def start(self, index: int) -> None:
        """Start a member that does not run."""
        assert self._processes[index] is None, "it runs"
        peers = ",".join(f"m{i}=http://{self._host(i)}:{PEER_PORT}" for i in range(self.count))
        client = f"{'https' if self.tls else 'http'}://{self.endpoints[index]}"
        peer = f"http://{self._host(index)}:{PEER_PORT}"
        arguments = [
            *("setpriv", "--pdeathsig", "KILL", "etcd"),
            *("--name", f"m{index}", "--data-dir", str(self.directory / f"m{index}")),
            *("--listen-client-urls", client, "--advertise-client-urls", client),
            *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
            *("--initial-cluster", peers, "--initial-cluster-token", self.network),
            *self.options,
        ]
        if self.tls:
            arguments += ["--cert-file", str(self.certificate), "--key-file", str(self.key)]
            arguments += ["--client-cert-auth", "--trusted-ca-file", str(self.certificate)]
        with (self.directory / f"m{index}.log").open("ab") as output:
            self._processes[index] = subprocess.Popen(
                arguments,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env={name: value for name, value in os.environ.items() if not name.startswith("ETCD_")},
            )

    @property
    def certificate(self) -> Path:
        """Signed by itself, for all members and clients."""
        return self.directory / "certificate.pem"

    @property
    def key(self) -> Path:
        return self.directory / "key.pem"

    def control(self, *arguments: str, user: str = "") -> None:
        """Run `etcdctl`; `user` is a name and a password with a colon between them."""
        command = ["etcdctl", "--endpoints", ",".join(self.endpoints), *arguments]
        if self.tls:
            command += [
                "--cacert",
                str(self.certificate),
                "--cert",
                str(self.certificate),
                "--key",
                str(self.key),
            ]
        if user:
            command += ["--user", user]
        subprocess.run(
            command, check=True, capture_output=True, timeout=READY_S, env={**os.environ, "ETCDCTL_API": "3"}
        )

    def kill(self, index: int) -> None:
        """`kill -9` of one member."""
        process = self._processes[index]
        assert process is not None, "it does not run"
        process.kill()
        process.wait()
        self._processes[index] = None

    def pause(self, index: int) -> None:
        """Stop a member without a trace on its connections."""
        self._signal(index, signal.SIGSTOP)

    def resume(self, index: int) -> None:
        """End a pause."""
        self._signal(index, signal.SIGCONT)

    def wait(self) -> None:
        """Return when every member answers and knows a leader."""
        asyncio.run(self._wait())

    def leader(self) -> int:
        """Return the index of the member that leads."""
        return asyncio.run(self._leader())

    def heal(self) -> None:
        """Let every member run, and wait until they agree."""
        for index, process in enumerate(self._processes):
            if process is None:
                self.start(index)
            else:
                self.resume(index)
        self.wait()

    def _certify(self) -> None:
        names = ",".join(f"IP:{self._host(index)}" for index in range(self.count))
        subprocess.run(
            [
                *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
                *("-nodes", "-days", "2", "-subj", "/CN=test", "-addext", f"subjectAltName={names}"),
                *("-keyout", str(self.key), "-out", str(self.certificate)),
            ],
            check=True,
            capture_output=True,
            timeout=READY_S,
        )
        self.client_options |= {"ca": self.certificate, "certificate": self.certificate, "key": self.key}

    async def _wait(self) -> None:
        begun_s = time.monotonic()
        async with self.client() as client:
            while True:
                self._check()
                with contextlib.suppress(Error):
                    statuses = [await client.status(endpoint) for endpoint in self.endpoints]
                    await client.range(b"anything", limit=1)  # the members agree
                    if all(status.leader for status in statuses):
                        return
                if time.monotonic() - begun_s > READY_S:
                    raise AssertionError(f"etcd is not ready after {READY_S} s: {self._last_lines()}")
                await asyncio.sleep(0.1)

    async def _leader(self) -> int:
        begun_s = time.monotonic()
        async with self.client() as client:
            while time.monotonic() - begun_s < READY_S:
                for index, endpoint in enumerate(self.endpoints):
                    with contextlib.suppress(Error):
                        status = await client.status(endpoint)
                        if status.leader and status.leader == status.header.member_id:
                            return index
                await asyncio.sleep(0.1)
        raise AssertionError(f"no member leads: {self._last_lines()}")

    def _check(self) -> None:
        for process in self._processes:
            if process is not None and process.poll() is not None:
                raise Exited(f"etcd ended with {process.returncode}: {self._last_lines()}")

    def _last_lines(self) -> str:
        logs = sorted(self.directory.glob("*.log"))
        return " | ".join(path.read_text(errors="replace")[-400:] for path in logs)

    def _signal(self, index: int, number: int) -> None:
        process = self._processes[index]
        assert process is not None, "it does not run"
        process.send_signal(number)

    def _host(self, index: int) -> str:
        return f"{self.network}.{index + 1}"

    def _end(self) -> None:
        for index, process in enumerate(self._processes):
            if process is not None:
                self.kill(index)


def require_etcd() -> None:
    """Skip the test where etcd is not installed (`make dev` installs it on Debian)."""
    if shutil.which("etcd") is None:
        pytest.skip("etcd is not installed")


__all__ = ["EtcdMembers", "require_etcd"]
