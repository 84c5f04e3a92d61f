"""What protecting the data plane costs: reads and writes over TCP with `wire` none, mac and encrypt, in one run.

usage: python benchmarks/wire.py [--mib 256] [--rounds 3]

One storage node, one client, one connection in use at a time, both in this process; in each round the three take turns.
Prints the median of the rounds: MiB/s in requests of 1 MiB, µs for one of 4 KiB, and the ratio to none.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import luciola_core

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from lane_world import TOKEN, SniffedServices
from unit.wire.tls_world import World, tls

MIB = 1 << 20
SMALL_BYTES = 4096
SMALL_COUNT = 4000
WIRES = ("none", "mac", "encrypt")


def client_of(wire: str, world: World, directory: Path, stack: ExitStack) -> luciola_core.Client:
    services = SniffedServices(tls(world.machine("mgmtd")), tls(world.machine("meta")))
    stack.callback(services.close)
    services.route(services.add_storage(directory, world.machine("storage"), wire))
    client = luciola_core.Client(
        [services.mgmtd.address],
        TOKEN.claims,
        TOKEN.key,
        certificates=world.holder().native(),
        transport="tcp",
    )
    stack.callback(client.close)
    return client


def took_s(work: Callable[[int], object], count: int) -> float:
    begun_s = time.perf_counter()
    for number in range(count):
        work(number)
    return time.perf_counter() - begun_s


def measure(client: luciola_core.Client, mib: int) -> tuple[float, float, float, float]:
    """MiB/s of writes and reads of 1 MiB, µs of writes and reads of 4 KiB."""
    large, small = bytearray(b"x" * MIB), bytearray(SMALL_BYTES)
    file = client.open(b"/f", read=True, write=True, direct=True, permissions=0o600)
    try:
        write_s = took_s(lambda number: file.write(large, number * MIB), mib)
        read_s = took_s(lambda number: file.read_into(large, number * MIB), mib)
        small_write_s = took_s(lambda number: file.write(small, number % mib * MIB), SMALL_COUNT)
        small_read_s = took_s(lambda number: file.read_into(small, number % mib * MIB), SMALL_COUNT)
    finally:
        file.close()
    each = 1e6 / SMALL_COUNT
    return mib / write_s, mib / read_s, small_write_s * each, small_read_s * each


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    found: dict[str, list[tuple[float, ...]]] = {wire: [] for wire in WIRES}
    with tempfile.TemporaryDirectory() as top, ExitStack() as stack:
        world = World()
        clients = {wire: client_of(wire, world, Path(top) / wire, stack) for wire in WIRES}
        for _ in range(options.rounds):
            for wire, client in clients.items():
                found[wire].append(measure(client, options.mib))
    medians = {
        wire: [statistics.median(each) for each in zip(*rows, strict=True)] for wire, rows in found.items()
    }
    print(f"{'wire':8} {'write MiB/s':>16} {'read MiB/s':>16} {'write 4K µs':>16} {'read 4K µs':>16}")
    for wire, row in medians.items():
        ratios = [
            f"{each:9.0f} ({each / base:4.2f})" for each, base in zip(row, medians["none"], strict=True)
        ]
        print(f"{wire:8} " + " ".join(f"{text:>16}" for text in ratios))


if __name__ == "__main__":
    main()
