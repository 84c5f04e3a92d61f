"""Child processes of the supervisor: start, watch, restart with back-off, stop.

A child is started under `setpriv --pdeathsig TERM`, so that it stops by itself when the supervisor is killed.
"""

import asyncio
import os
import re
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, NotRequired, TypedDict

from ..logfile import LOG_BYTES_MAX

BACKOFF_FIRST_S: Final = 0.1  # a crashed service is missed at once
BACKOFF_MAX_S: Final = 5.0  # one that cannot start must not fill the disk with logs
STEADY_S: Final = 30.0  # after this long alive, a crash is a new story
STOP_S: Final = 20.0  # a service that has not stopped by then is killed
# What stands before the reason: the time, level and name of a log line, the name of a program.
LOG_PREFIX: Final = re.compile(r"^([\d-]+ [\d:,.]+ \w+ )?([\w.]+ cannot run: |luciola[\w.]*:? )?")
LAST_WORDS_BYTES: Final = 4096  # of a log, in which its last line is looked for


@dataclass(frozen=True)
class Service:
    """What to run: its kind and id as `luciola status` shows them, and the command."""

    kind: str  # etcd | mgmtd | meta | storage | mount
    id: str
    node: int  # node id in the cluster; 0 for a mount and for etcd
    command: tuple[str, ...]
    log: Path

    @property
    def name(self) -> str:
        alone = self.kind == "mount" or (self.kind, self.id) == ("mgmtd", "1")
        return self.kind if alone else f"{self.kind} {self.id}"


class ServiceState(TypedDict):
    """What commands print of a service: of a mount that no supervisor started only the first four.

    `role`, of meta and mgmtd: primary or standby. Of those that follow a log, if they answer: `lag`, how many of its
    records are not in their store, and `checkpoint`, the last one in the newest of their checkpoints (0: none).
    `channel`, of a mount that answers: where its requests come from, io_uring or /dev/fuse; `channel_reason`: why not
    over io_uring. `metrics`: where it shows them, "HOST:PORT" or "unix:PATH".
    """

    kind: str
    id: str
    pid: int | None
    state: str
    restarts: NotRequired[int]
    log: NotRequired[str]
    role: NotRequired[str]
    lag: NotRequired[int]
    checkpoint: NotRequired[int]
    channel: NotRequired[str]
    channel_reason: NotRequired[str]
    metrics: NotRequired[str]


@dataclass
class Child:
    """One service and its process."""

    service: Service
    state: str = "starting"  # starting | running | restarting | refused | stopping | stopped
    restarts: int = 0
    since: float = 0.0
    process: asyncio.subprocess.Process | None = field(default=None, repr=False)

    @property
    def pid(self) -> int | None:
        return None if self.process is None or self.process.returncode is not None else self.process.pid

    def last_log_line(self) -> str:
        """Return the last line of its log, and where the rest is."""
        try:
            with self.service.log.open("rb") as log:
                log.seek(max(0, log.seek(0, os.SEEK_END) - LAST_WORDS_BYTES))
                lines = log.read().decode(errors="replace").strip().splitlines()
        except OSError:
            lines = []
        said = LOG_PREFIX.sub("", lines[-1]) if lines else "it says nothing"
        return f"{said} (log: {self.service.log})"

    def describe(self) -> ServiceState:
        return {
            "kind": self.service.kind,
            "id": self.service.id,
            "pid": self.pid,
            "state": self.state,
            "restarts": self.restarts,
            "log": str(self.service.log),
        }


def python(*arguments: str) -> tuple[str, ...]:
    """The command that runs this Python with `arguments`; it imports no modules of the working directory."""
    return (sys.executable, "-P", "-u", *arguments)


async def start(child: Child) -> None:
    """Start the child's process, its output appended to its log."""
    rotate(child.service.log)
    with child.service.log.open("ab") as log:
        child.process = await asyncio.create_subprocess_exec(
            "setpriv",
            "--pdeathsig",
            "TERM",
            "--",
            *child.service.command,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            # Ctrl-C in the terminal reaches the supervisor alone, which stops the others in order.
            start_new_session=True,
        )
    child.since = asyncio.get_running_loop().time()
    child.state = "running"


async def keep_running(
    child: Child,
    *,
    on_end: Callable[[Child, int], Awaitable[None]],
    on_start: Callable[[Child], Awaitable[None]],
    stopping: asyncio.Event,
) -> None:
    """Restart the child whenever it ends, until `stopping` is set. Both callbacks are awaited.

    One that ends with EX_CONFIG is left: it will say the same until an operator has acted.
    """
    backoff_s = BACKOFF_FIRST_S
    loop = asyncio.get_running_loop()
    while True:
        assert child.process is not None, "the child was started"
        pid = child.process.pid
        await child.process.wait()
        if stopping.is_set():
            child.state = "stopped"
            return
        if loop.time() - child.since > STEADY_S:
            backoff_s = BACKOFF_FIRST_S
        if child.process.returncode == os.EX_CONFIG:
            child.state = "refused"
            await on_end(child, pid)
            return
        child.state = "restarting"
        child.restarts += 1
        await on_end(child, pid)
        try:
            await asyncio.wait_for(stopping.wait(), backoff_s)
        except TimeoutError:
            backoff_s = min(backoff_s * 2, BACKOFF_MAX_S)
        else:
            child.state = "stopped"
            return
        await start(child)
        await on_start(child)


async def stop(child: Child, *, patience_s: float = STOP_S) -> None:
    """Ask the child to end, and end it when it does not."""
    process = child.process
    if process is None or process.returncode is not None:
        child.state = "stopped"
        return
    child.state = "stopping"
    process.send_signal(signal.SIGTERM)
    try:
        await asyncio.wait_for(process.wait(), patience_s)
    except TimeoutError:
        process.kill()
        await process.wait()
    child.state = "stopped"


def rotate(log: Path) -> None:
    """Move a long log aside, to NAME.log.1."""
    if log.exists() and log.stat().st_size > LOG_BYTES_MAX:
        log.replace(log.with_name(log.name + ".1"))


def is_alive(pid: int) -> bool:
    """Return whether a process with that id runs. A zombie does while another of its threads ends."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return fields[0] != "Z" or int(fields[17]) > 1


def belongs(pid: int, data_root: Path) -> bool:
    """Return whether that process is one of ours, working on this data directory: ids are reused."""
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError):
        return False
    return b"luciola" in command and os.fsencode(data_root) in command


__all__ = [
    "Child",
    "Service",
    "belongs",
    "is_alive",
    "keep_running",
    "python",
    "rotate",
    "start",
    "stop",
]
