"""The RDMA transport beside perftest, on two devices of this machine, as ratios.

    python benchmarks/rdma.py [--devices rxe0,rxe1] [--json FILE]      on a machine with devices
    python tests/rdma/laboratory.py -- python benchmarks/rdma.py       in the laboratory

perftest moves bytes and looks at none. Luciola's figures are whole requests: a frame there, the server's lookup, its
one-sided transfer, checksums of every byte at both ends, the reply. The largest batch is 8 MiB. On Soft-RoCE under
emulation no figure means anything but the ratios, and they are worse than on hardware: checksums and copies, which a
network card does not slow down, are emulated too.
"""

import argparse
import json
import re
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PEER = Path(__file__).parents[1] / "core/target/release/examples/rdma_peer"
MIB = 1 << 20
BATCHES = 24
PINGS = 500


def gid_index(device: str) -> str:
    """The IPv4 address of RoCE version 2."""
    port = Path("/sys/class/infiniband") / device / "ports/1"
    for entry in sorted((port / "gids").iterdir(), key=lambda entry: int(entry.name)):
        kind = port / "gid_attrs/types" / entry.name
        try:
            if ":ffff:" in entry.read_text() and kind.read_text().strip() == "RoCE v2":
                return entry.name
        except OSError:
            continue
    sys.exit(f"{device}: no IPv4 GID of RoCE version 2")


def perftest(program: str, devices: list[str], *options: str) -> list[str]:
    """The last row of a perftest program's table, for the two devices."""
    common = ["-F", "-x", gid_index(devices[0]), "-p", "18900", *options]
    server = subprocess.Popen(
        [program, "-d", devices[1], *common], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        while "Waiting for client" not in (line := server.stdout.readline()):
            if not line:
                sys.exit(f"{program}: the server ended")
        done = subprocess.run(
            [program, "-d", devices[0], *common, "127.0.0.1"], capture_output=True, text=True, check=False
        )
    finally:
        server.kill()
        server.wait()
        server.stdout.close()
    rows = [line.split() for line in done.stdout.splitlines() if re.match(r"\s*\d+\s+\d+", line)]
    if not rows:
        sys.exit(f"{program} failed: {done.stdout}{done.stderr}")
    return rows[-1]


@contextmanager
def driven(devices: list[str]) -> Iterator:
    """A client on the first device, connected to a server on the second; a function that asks it."""
    if not PEER.exists():
        sys.exit(f"{PEER} is missing: `cd core && cargo build --release --example rdma_peer`")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True, "bufsize": 1}
    with subprocess.Popen([PEER, "serve", devices[1]], **pipes) as server:
        address = f"127.0.0.1:{server.stdout.readline().strip()}"
        with subprocess.Popen([PEER, "drive", devices[0], address, "strict"], **pipes) as client:

            def ask(process: subprocess.Popen, *words: object) -> str:
                process.stdin.write(" ".join(map(str, words)) + "\n")
                return process.stdout.readline().strip()

            try:
                for chunk in range(8):
                    ask(server, "put", 9, chunk, MIB, chunk)
                if (answer := ask(client, "connect")) != "rdma":
                    sys.exit(f"no connection by RDMA: {answer}")
                yield lambda *words: [int(part) for part in ask(client, *words).split()]
            finally:
                client.kill()
                server.kill()


def mib_s(times_us: list[int], batch_bytes: int) -> float:
    return batch_bytes / MIB / (statistics.median(times_us) / 1e6)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--devices", default="rxe0,rxe1", help="of the client and of the server")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args()
    devices = given.devices.split(",")
    size = ("-s", str(MIB), "-n", "64", "--report_gbits")
    # Gbit/s on average is the fourth column of a bandwidth test; microseconds, the sixth of a latency test, typical.
    to_mib = 1e9 / 8 / MIB
    base = {
        "write": float(perftest("ib_write_bw", devices, *size)[3]) * to_mib,
        "read": float(perftest("ib_read_bw", devices, *size)[3]) * to_mib,
        "latency": float(perftest("ib_read_lat", devices, "-s", "8", "-n", str(PINGS))[4]),
    }
    with driven(devices) as ask:
        ask("measure", "read", MIB, 8, 2)
        reads = mib_s(ask("measure", "read", MIB, 8, BATCHES), 8 * MIB)
        single = mib_s(ask("measure", "read", MIB, 1, BATCHES), MIB)
        writes = mib_s(ask("measure", "write", MIB, 8, BATCHES), 8 * MIB)
        ping = statistics.median(ask("measure", "ping", PINGS))
        small = statistics.median(ask("measure", "read", 4096, 1, PINGS))
    rows = [
        ("read, 8 x 1 MiB a batch", "ib_write_bw, MiB/s", reads, base["write"], reads / base["write"]),
        ("read, 1 MiB alone", "ib_write_bw, MiB/s", single, base["write"], single / base["write"]),
        ("write, 8 x 1 MiB a batch", "ib_read_bw, MiB/s", writes, base["read"], writes / base["read"]),
        ("ping", "ib_read_lat, us", ping, base["latency"], ping / base["latency"]),
        ("read 4 KiB", "ib_read_lat, us", small, base["latency"], small / base["latency"]),
    ]
    emulated = all(name.startswith("rxe") for name in devices)
    print(f"devices {given.devices}" + (", Soft-RoCE: only the ratios mean anything" if emulated else ""))
    print(f"{'ours':26}{'beside':22}{'ours':>10}{'beside':>10}{'ratio':>8}")
    for name, beside, ours, theirs, ratio in rows:
        print(f"{name:26}{beside:22}{ours:10.1f}{theirs:10.1f}{ratio:8.2f}")
    if given.json:
        given.json.write_text(json.dumps([row[:1] + row[2:] for row in rows], indent=2))


if __name__ == "__main__":
    main()
