"""A real cluster for tests: `luciola up` in a directory of its own, with the means to hurt it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Self

from click.testing import CliRunner, Result

from luciola.cli import cli
from luciola.errors import Error
from luciola.wire import SERVICE, RpcClient, load_cluster, methods, mint
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import MetaStatus
from luciola.wire.pb.mgmtd_pb2 import NODE_META, GetRoutingRequest

WAIT_S = 120.0


class LocalCluster:
    """One cluster on this machine. Use as a context manager: what was started is stopped."""

    def __init__(
        self,
        root: Path,
        *,
        storage_nodes: int = 3,
        replicas: int = 2,
        mount: bool = False,
        config: str = "",
        options: Sequence[str] = (),
    ) -> None:
        self.root = root
        self.data = root / "data"
        self.mountpoint = root / "mnt" if mount else None
        self._options = ["--storage-nodes", str(storage_nodes), "--replicas", str(replicas), *options]
        if config:
            (root / "config.toml").write_text(config)
            self._options += ["--config", str(root / "config.toml")]
        self._mounts: list[Path] = []

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *exception: object) -> None:
        self.down()

    def up(self) -> None:
        """Starts the cluster and returns when it is usable."""
        options = list(self._options)
        if self.mountpoint is not None:
            options += ["--mount", str(self.mountpoint)]
        luciola("up", "--data", str(self.data), "--detach", *options)

    def down(self) -> None:
        """Stops everything, mounts first."""
        assert _invoked("down", "--data", str(self.data)).exit_code == 0

    def ask(self, *arguments: str) -> Any:
        """What a command says with --json, whatever its exit code."""
        return json.loads(_invoked(*arguments, "--data", str(self.data), "--json").stdout)

    def status(self) -> dict[str, Any]:
        """What `luciola status --json` says."""
        report: dict[str, Any] = self.ask("status")
        return report

    def services(self, kind: str) -> list[dict[str, Any]]:
        """The services of that kind, as `status` shows them."""
        return [service for service in self.status()["services"] if service["kind"] == kind]

    def kill(self, kind: str, index: int = 0) -> dict[str, Any]:
        """kill -9 of one service. Returns what it was."""
        service = self.services(kind)[index]
        if service["pid"]:
            os.kill(service["pid"], signal.SIGKILL)
        return service

    def kill_everything(self) -> None:
        """kill -9 of the supervisor and all its services at once."""
        state = json.loads((self.data / "run" / "state.json").read_text())
        pids = [state["pid"], *(service["pid"] for service in state["services"] if service["pid"])]
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        until(lambda: not any(Path(f"/proc/{pid}/cmdline").exists() and _cmdline(pid) for pid in pids))

    def wait_healthy(self, *, timeout_s: float = WAIT_S) -> None:
        """Returns when every service runs and every chain has all its replicas serving."""
        until(lambda: self.status()["healthy"], timeout_s=timeout_s, what="a healthy cluster")

    def fsck(self, *options: str) -> dict[str, Any]:
        """The report of `luciola fsck --json`."""
        report: dict[str, Any] = self.ask("fsck", *options)
        return report

    @contextmanager
    def mounted(self, name: str) -> Iterator[Path]:
        """Another mount of this cluster."""
        mountpoint = self.root / name
        mountpoint.mkdir()
        luciola("mount", str(self.data), str(mountpoint))
        try:
            yield mountpoint
        finally:
            luciola("umount", str(mountpoint))


def meta_status(cluster: LocalCluster) -> MetaStatus | None:
    """Return the counters of the running metadata service; None while it does not answer."""
    known = load_cluster(cluster.data / "cluster.json")
    token = mint(known.secret(), role=SERVICE)
    try:
        with RpcClient(known.mgmtd_grpc, token) as manager:
            nodes = manager.call(methods.Mgmtd.get_routing, GetRoutingRequest()).nodes
        (meta,) = [node for node in nodes if node.kind == NODE_META]
        with RpcClient(meta.grpc_address, token) as service:
            return service.call(methods.Meta.status, Empty())
    except Error:
        return None


def _cmdline(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def _invoked(*arguments: str) -> Result:
    """A command that ran in this process: one of its own takes longer to start than to answer. Raises: its error."""
    result = CliRunner().invoke(cli, arguments)
    if not isinstance(result.exception, SystemExit | None):
        raise result.exception
    return result


def luciola(
    *arguments: str, check: bool = True, timeout_s: float = 250.0
) -> subprocess.CompletedProcess[str]:
    """Runs the command line in a process of its own."""
    result = subprocess.run(
        [sys.executable, "-m", "luciola", *arguments],
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
    if check:
        assert result.returncode == 0, f"luciola {' '.join(arguments)}: {result.stderr}"
    return result


def until(condition: Callable[[], object], *, timeout_s: float = WAIT_S, what: str = "it") -> None:
    """Polls until `condition` holds; the time limit is of the machine, not of the system under test."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {timeout_s} s for {what}"
        time.sleep(0.1)


def seen(path: Path) -> Path:
    """`path`, once its mount has heard that another client made it: after its attribute timeout at the latest."""
    until(path.exists, what=f"{path} to be seen")
    return path
