"""Machines with networks of their own: `with Machines(["10.0.0.1", …]) as machines: machines.start(address, command)`.

A machine is a network namespace on one bridge, its address the only one that others know. Files are shared. Loss of a
machine ends all that was started on it, without a word.
"""

import os
import signal
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Self

from cluster import until


class Machines:
    """Network namespaces on one bridge. They end with the block."""

    def __init__(self, addresses: Sequence[str]) -> None:
        self._addresses = addresses
        self._holders: dict[str, subprocess.Popen[bytes]] = {}
        self._running: dict[str, list[subprocess.Popen[bytes]]] = {address: [] for address in addresses}
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            hub = stack.enter_context(_namespace())
            run(hub, "ip", "link", "add", "hub", "type", "bridge")
            run(hub, "ip", "link", "set", "hub", "up")
            for number, address in enumerate(self._addresses):
                holder = stack.enter_context(_namespace())
                self._holders[address] = holder
                port = f"port{number}"
                peer = ["peer", "name", "eth0", "netns", str(holder.pid)]
                run(hub, "ip", "link", "add", port, "type", "veth", *peer)
                run(hub, "ip", "link", "set", port, "master", "hub", "up")
                run(holder, "ip", "address", "add", f"{address}/24", "dev", "eth0")
                for device in ("lo", "eth0"):
                    run(holder, "ip", "link", "set", device, "up")
                stack.callback(self.lose, address)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: object) -> None:
        self._stack.close()

    def start(
        self, address: str, command: Sequence[str], log: Path, *, environment: Mapping[str, str] = {}
    ) -> subprocess.Popen[bytes]:
        """Start a program on a machine: a group of processes, whose first is returned."""
        with log.open("ab") as output:
            process = subprocess.Popen(
                [*_entering(self._holders[address]), *command],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                env=os.environ | environment,
            )
        self._running[address].append(process)
        return process

    def run(self, address: str, command: Sequence[str], *, expected: int = 0) -> str:
        """Run a command to its end, with the exit code that is expected; return what it prints."""
        return run(self._holders[address], *command, expected=expected)

    def lose(self, address: str) -> None:
        """End everything that runs on a machine, at once."""
        network = os.readlink(f"/proc/{self._holders[address].pid}/ns/net")
        while pids := [pid for pid in _in_network(network) if pid != self._holders[address].pid]:
            for pid in pids:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            for process in self._running[address]:
                process.wait()
        self._running[address].clear()


def run(holder: subprocess.Popen[bytes], *command: str, expected: int = 0) -> str:
    done = subprocess.run([*_entering(holder), *command], capture_output=True, text=True, check=False)
    assert done.returncode == expected, f"{' '.join(command)}\n{done.stdout}{done.stderr}"
    return done.stdout


def _entering(holder: subprocess.Popen[bytes]) -> list[str]:
    return ["nsenter", "-t", str(holder.pid), "-n", "--"]


def _in_network(network: str) -> list[int]:
    """Return the processes in a network namespace. A zombie is in none."""
    found = []
    for pid in (int(name) for name in os.listdir("/proc") if name.isdecimal()):
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == network:
                found.append(pid)
        except OSError:
            continue
    return found


@contextmanager
def _namespace() -> Iterator[subprocess.Popen[bytes]]:
    """A process that holds a network namespace of its own."""
    mine = os.readlink("/proc/self/ns/net")
    with subprocess.Popen(["unshare", "--net", "sleep", "infinity"]) as holder:
        try:
            until(lambda: os.readlink(f"/proc/{holder.pid}/ns/net") != mine, what="a network namespace")
            yield holder
        finally:
            holder.kill()
