"""The RDMA transport beside perftest, on two devices of this machine, as ratios.

    python benchmarks/rdma.py [--devices rxe0,rxe1] [--rounds N] [--alone] [--json FILE]     on a machine with devices
    python tests/rdma/laboratory.py -- python benchmarks/rdma.py                             in the laboratory

Three things are measured in turn, round by round, so that what else a machine does meets all of them:

transport   what a server does with its link and nothing else: one-sided operations and the waiting for them. perftest
            does the same with as many outstanding, with packets of the same size, in the same direction: our reads are
            WRITEs of the server (`ib_write_bw`), our writes are READs (`ib_read_bw`). Only this is compared with it.
memory      whole requests: a frame there, the lookup, the transfer, checksums of every byte at both ends, a reply; the
            server keeps its chunks in memory, and copies them.
storage     the same on a storage node, with chunks in files (page cache).

What a request does beside the transfer stands below: how fast one pass of the checksum is, of which it makes two, and
how fast a new file takes bytes, which a write does on a storage node. On Soft-RoCE under emulation no figure means
anything but the ratios, and those of requests are worse than on hardware: checksums and copies, which a network card
does not slow down, are emulated too.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

PEER = Path(__file__).parents[1] / "core/target/release/examples/rdma_peer"
MIB = 1 << 20
# Operations of 1 MiB outstanding at once.
DEPTH = 8
# Operations of 4 KiB outstanding at once, which is one frame of ours.
SMALL = 4096
SMALL_DEPTH = 64
BATCHES = 4
PINGS = 100
# perftest's server is not ready at once.
PATIENCE_S = 60
PORT = "18900"


@dataclass(frozen=True)
class Row:
    """One line of the table, for each round: ours, and what it is compared with."""

    ours: str
    beside: str
    unit: str
    pairs: list[tuple[float, float]]

    @property
    def ratios(self) -> list[float]:
        return [ours / theirs for ours, theirs in self.pairs]


def gid_index(device: str) -> str:
    """The IPv4 address of RoCE version 2."""
    port = Path("/sys/class/infiniband") / device / "ports/1"
    if not port.is_dir():
        sys.exit(f"{device}: there is no such device; --devices names two that reach each other")
    for entry in sorted((port / "gids").iterdir(), key=lambda entry: int(entry.name)):
        kind = port / "gid_attrs/types" / entry.name
        try:
            if ":ffff:" in entry.read_text() and kind.read_text().strip() == "RoCE v2":
                return entry.name
        except OSError:
            continue
    sys.exit(f"{device}: no IPv4 GID of RoCE version 2")


def is_emulated(devices: list[str]) -> bool:
    """Whether all of them are Soft-RoCE."""
    return all(name.startswith("rxe") for name in devices)


def perftest(program: str, devices: list[str], *options: str, before: tuple[str, ...] = ()) -> list[str]:
    """The last row of a perftest program's table; its client, which issues the operations, uses the second device."""
    commands = [
        [program, "-d", device, "-x", gid_index(device), "-F", "-p", PORT, *options] for device in devices
    ]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(commands[0], **pipes) as server:
        try:
            end = time.monotonic() + PATIENCE_S
            while True:
                done = subprocess.run([*before, *commands[1], "127.0.0.1"], **pipes, check=False)
                rows = [
                    line.split() for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+\s+\d", line)
                ]
                if rows:
                    return rows[-1]
                is_not_ready = "connect" in done.stdout and server.poll() is None
                if not is_not_ready or time.monotonic() > end:
                    sys.exit(f"{program} failed:\n{done.stdout}")
                time.sleep(0.1)
        finally:
            server.kill()


def bandwidth(program: str, devices: list[str]) -> float:
    """MiB/s of operations of 1 MiB."""
    return streamed(program, devices, MIB, DEPTH)[0] * 1e9 / 8 / MIB


def operations(program: str, devices: list[str]) -> float:
    """Operations of 4 KiB a second."""
    return streamed(program, devices, SMALL, SMALL_DEPTH)[1] * 1e6


def streamed(program: str, devices: list[str], size: int, depth: int) -> tuple[float, float]:
    """Gbit/s and millions of operations a second, the next one as soon as one is done.

    perftest looks for completions all the time, which takes processor time from a device in software: there the better
    of two runs counts, one of which looks only when nothing else wants to run.
    """
    options = ("-s", str(size), "-n", str(depth * BATCHES), "-t", str(depth), "-Q", "1", "--report_gbits")
    ways = ((), ("chrt", "--idle", "0")) if is_emulated(devices) else ((),)
    runs = [perftest(program, devices, *options, before=way) for way in ways]
    return max((float(row[3]), float(row[4])) for row in runs)


def latency(devices: list[str], *options: str) -> float:
    """Microseconds that a READ of eight bytes typically takes."""
    return float(perftest("ib_read_lat", devices, "-s", "8", "-n", str(PINGS), *options)[4])


class End:
    """A process of ours that is asked by lines, each of which it answers. Use as a context manager."""

    def __init__(self, *arguments: str) -> None:
        if not PEER.exists():
            sys.exit(f"{PEER} is missing: `cd core && cargo build --release --example rdma_peer`")
        self.process = subprocess.Popen(
            [PEER, *arguments], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stdin.close()
        self.process.stdout.close()

    def hear(self) -> str:
        return self.process.stdout.readline().strip()

    def ask(self, *words: object) -> str:
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        return self.hear()

    def times_us(self, *words: object) -> list[int]:
        """How long each of what is asked for took."""
        answer = self.ask(*words)
        if not answer.replace(" ", "").isdecimal():
            sys.exit(f"{' '.join(map(str, words))}: {answer or 'the process has ended'}")
        return [int(word) for word in answer.split()]

    def mib_s(self, what: str, depth: int = DEPTH, batches: int = BATCHES) -> float:
        """Of operations of 1 MiB, so many in each batch; all batches together, as perftest's average."""
        times_us = self.times_us(*what.split(), MIB, depth, batches)
        return depth * batches / (sum(times_us) / 1e6)

    def operations_s(self, what: str, batches: int = BATCHES) -> float:
        """Operations of 4 KiB a second, batch after batch."""
        times_us = self.times_us(*what.split(), SMALL, SMALL_DEPTH, batches)
        return SMALL_DEPTH * batches / (sum(times_us) / 1e6)


def new_file_mib_s(directory: str) -> float:
    """How fast new files take 1 MiB each, in MiB/s."""
    data, times_s = os.urandom(MIB), []
    for number in range(DEPTH * BATCHES):
        with open(Path(directory) / f"new-{number}", "wb", buffering=0) as file:
            start = time.monotonic()
            file.write(data)
            times_s.append(time.monotonic() - start)
        os.unlink(file.name)
    return 1 / statistics.median(times_s)


@contextmanager
def client_of(devices: list[str], *server: str) -> Iterator[End]:
    """A client on the first device, connected to a server of ours on the second that holds the chunks."""
    with End(server[0], devices[1], *server[1:]) as there:
        address = f"127.0.0.1:{there.hear()}"
        with End("drive", devices[0], address, "strict") as client:
            end = time.monotonic() + PATIENCE_S
            # An emulated machine may be too slow for the limits of a handshake.
            while (answer := client.ask("connect")) != "rdma":
                if not answer or time.monotonic() > end:
                    sys.exit(f"no connection by RDMA: {answer or 'the client has ended'}")
            yield client


def measured(devices: list[str], rounds: int, *, alone: bool) -> tuple[list[Row], dict[str, float]]:
    """All rows, or those of the transport alone; and MiB/s of what requests do beside."""
    pairs: dict[tuple[str, str, str], list[tuple[float, float]]] = {}

    def note(ours: str, beside: str, unit: str, pair: tuple[float, float]) -> None:
        print(f"{ours}: {pair[0]:.1f}, {beside}: {pair[1]:.1f} {unit}", file=sys.stderr, flush=True)
        pairs.setdefault((ours, beside, unit), []).append(pair)

    with ExitStack() as stack:
        wire = stack.enter_context(End("wire", *devices))
        wire.hear()
        directory = stack.enter_context(tempfile.TemporaryDirectory())
        kinds = {} if alone else {"memory": ("serve",), "storage": ("store", directory)}
        servers = {name: stack.enter_context(client_of(devices, *server)) for name, server in kinds.items()}
        for client in servers.values():
            # Makes the chunks that are read.
            client.mib_s("measure write", batches=1)
            client.operations_s("measure write", batches=1)
        beside = {
            "one pass of the checksum": 1e6 / statistics.median(wire.times_us("checksum", MIB, 100)),
            "new files": new_file_mib_s(directory),
        }
        for _ in range(rounds):
            write = bandwidth("ib_write_bw", devices)
            note("transport, WRITE", "ib_write_bw", "MiB/s", (wire.mib_s("write"), write))
            for name, client in servers.items():
                note(f"{name}, read", "ib_write_bw", "MiB/s", (client.mib_s("measure read"), write))
                single = client.mib_s("measure read", 1, DEPTH * BATCHES)
                note(f"{name}, read, one at a time", "ib_write_bw", "MiB/s", (single, write))
            read = bandwidth("ib_read_bw", devices)
            note("transport, READ", "ib_read_bw", "MiB/s", (wire.mib_s("read"), read))
            for name, client in servers.items():
                note(f"{name}, write", "ib_read_bw", "MiB/s", (client.mib_s("measure write"), read))
            small_writes, small_reads = (
                operations(which, devices) for which in ("ib_write_bw", "ib_read_bw")
            )
            for name, client in servers.items():
                pair = (client.operations_s("measure read"), small_writes)
                note(f"{name}, reads of 4 KiB", "ib_write_bw", "1/s", pair)
                pair = (client.operations_s("measure write"), small_reads)
                note(f"{name}, writes of 4 KiB", "ib_read_bw", "1/s", pair)
            polling, events = latency(devices), latency(devices, "-e")
            small = statistics.median(wire.times_us("read", 8, 1, PINGS))
            note("transport, READ of 8 B", "ib_read_lat -e", "us", (small, events))
            note("transport, READ of 8 B", "ib_read_lat", "us", (small, polling))
            for name, client in servers.items():
                ping = statistics.median(client.times_us("measure", "ping", PINGS))
                note(f"{name}, ping", "ib_read_lat -e", "us", (ping, events))
                times_us = client.times_us("measure", "read", SMALL, 1, PINGS)
                note(f"{name}, read of 4 KiB", "ib_read_lat -e", "us", (statistics.median(times_us), events))
    return [Row(*key, found) for key, found in pairs.items()], beside


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="rxe0,rxe1", help="of the client and of the server")
    parser.add_argument("--rounds", type=int, default=5, help="the figures are their medians")
    parser.add_argument("--alone", action="store_true", help="only the transport, no requests")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    devices = given.devices.split(",")
    if len(devices) != 2 or given.rounds < 1:
        parser.error("--devices takes two names, and --rounds at least 1")
    rows, beside = measured(devices, given.rounds, alone=given.alone)
    print(f"devices {given.devices}, {DEPTH} x 1 MiB outstanding, {given.rounds} rounds")
    if is_emulated(devices):
        print("Soft-RoCE: only the ratios mean anything")
    print(f"{'ours':32}{'beside':16}{'unit':8}{'ours':>9}{'beside':>9}{'ratio':>7}   lowest and highest")
    for row in rows:
        ours, theirs = (statistics.median(side) for side in zip(*row.pairs, strict=True))
        ratio, low, high = statistics.median(row.ratios), min(row.ratios), max(row.ratios)
        print(
            f"{row.ours:32}{row.beside:16}{row.unit:8}{ours:9.1f}{theirs:9.1f}{ratio:7.2f}   {low:.2f} {high:.2f}"
        )
    for what, mib_s in beside.items():
        print(f"{what}: {mib_s:.0f} MiB/s")
    if given.json:
        document = [{**asdict(row), "ratio": statistics.median(row.ratios)} for row in rows]
        given.json.write_text(json.dumps({"rows": document, "beside_mib_s": beside}, indent=2))


if __name__ == "__main__":
    main()
