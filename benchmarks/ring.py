"""Reads through the Python ring beside one process that reads the same bytes from a local file with preadv.

    python benchmarks/ring.py [--rounds 5] [--size-mib 256] [--seconds 0.5] [--transports shm tcp] [--replicas 1]
                              [--cold]

A cluster is started for the run and its file is read once, so that its bytes lie in the page cache of the storage
node; the local file's lie in the page cache too. Each round measures the local file, then every transport, block size
and number of operations in flight, one after the other, because the speed of a machine drifts: what counts is the ratio
within a round. The table shows medians over rounds, and the lowest and highest ratio. Both sides read blocks in the
same random order into the same buffer of as many blocks as are in flight. CPU is what this process and the storage
nodes have spent together, per block; the local reader's is beside it.

With --cold the page cache forgets all files before each measurement, every block is read once, and no two lie in one
page of the chunk engine.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import luciola
from luciola.client import Buffer, Operation
from luciola.config import ClientConfig
from luciola.units import KIB, MIB

WORKS = (
    (1 * MIB, 1),
    (1 * MIB, 4),
    (1 * MIB, 16),
    (128 * KIB, 1),
    (128 * KIB, 16),
    (4 * KIB, 1),
    (4 * KIB, 64),
)
PAGE = 16 * KIB  # that the chunk engine reads
TICKS = os.sysconf("SC_CLK_TCK")


class Figure(NamedTuple):
    """Of one measurement: blocks each second, and processor time for each."""

    rate: float
    cpu_us: float


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--transports", nargs="*", choices=("shm", "tcp"), default=("shm", "tcp"))
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cold", action="store_true")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    root = Path(tempfile.mkdtemp(prefix="luciola-ring-", dir=options.directory))
    data = root / "data"
    command = (sys.executable, "-m", "luciola")
    nodes = str(options.replicas)
    shape = ("--storage-nodes", nodes, "--replicas", nodes, "--detach")
    try:
        subprocess.run((*command, "up", "--data", str(data), *shape), check=True, stdout=subprocess.DEVNULL)
        try:
            show(measure(root, data, options), options)
        finally:
            subprocess.run((*command, "down", "--data", str(data)), check=True, stdout=subprocess.DEVNULL)
    finally:
        shutil.rmtree(root)


def measure(root: Path, data: Path, options: argparse.Namespace) -> dict[tuple[str, int, int], list[Figure]]:
    """Figures of all rounds by (side, block bytes, operations in flight)."""
    content = os.urandom(options.size_mib * MIB)
    local = root / "local"
    local.write_bytes(content)
    file_systems = {
        name: luciola.connect(data, config=ClientConfig(transport=name)) for name in options.transports
    }
    with next(iter(file_systems.values())).open("/data", "wb") as file:
        file.write(content)
    nodes = storage_nodes(data)
    figures: dict[tuple[str, int, int], list[Figure]] = {}
    for number in range(options.rounds + 1):
        for block, depth in WORKS:
            order = list(range(0, len(content) - block + 1, max(block, PAGE) if options.cold else block))
            random.Random(number).shuffle(order)
            for side in ("local", *file_systems):
                if options.cold:
                    evict(root)
                offsets = iter(order) if options.cold else cycle(order)
                if side == "local":
                    figure = timed(options.seconds, [], local_reader(local, content, offsets, block, depth))
                else:
                    reader = ring_reader(file_systems[side], content, offsets, block, depth)
                    figure = timed(options.seconds, nodes, reader)
                if number:  # the first round only warms up
                    figures.setdefault((side, block, depth), []).append(figure)
        print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    for file_system in file_systems.values():
        file_system.close()
    return figures


def evict(root: Path) -> None:
    """Makes the page cache forget all files below a directory."""
    for path in root.rglob("*"):
        if path.is_file():
            descriptor = os.open(path, os.O_RDONLY)
            os.fdatasync(descriptor)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(descriptor)


Reader = Callable[[float], int]
"""Reads until that moment, or until there is nothing left to read; returns the number of blocks read."""


def local_reader(path: Path, content: bytes, offsets: Iterator[int], block: int, depth: int) -> Reader:
    def read(until: float) -> int:
        descriptor = os.open(path, os.O_RDONLY)
        buffer = memoryview(Buffer(block * depth))
        slots = cycle([buffer[at : at + block] for at in range(0, block * depth, block)])
        count = 0
        for offset in offsets:
            slot = next(slots)
            if os.preadv(descriptor, [slot], offset) != block:
                raise EOFError(path)
            if not count:
                assert slot == content[offset : offset + block], "the local file differs"
            count += 1
            if time.perf_counter() >= until:
                break
        os.close(descriptor)
        return count

    return read


def ring_reader(
    file_system: luciola.FileSystem, content: bytes, offsets: Iterator[int], block: int, depth: int
) -> Reader:
    def read(until: float) -> int:
        buffer = Buffer(block * depth)
        count = 0
        with file_system.open("/data", "rb") as file, file_system.ring(depth) as ring:
            first = next(offsets)
            ring.submit([Operation(file, first, buffer, 0, block)])
            assert ring.drain(least=1)[0].moved == block
            assert memoryview(buffer)[:block] == content[first : first + block], "the ring's bytes differ"
            free = list(range(0, block * depth, block))
            while time.perf_counter() < until:
                places = zip(free, offsets, strict=False)
                batch = [Operation(file, offset, buffer, at, block, user_data=at) for at, offset in places]
                if not batch and not ring.in_flight:
                    break
                ring.submit(batch)
                done = ring.drain(least=1)
                if any(each.moved != block for each in done):
                    raise EOFError("/data")
                free = [each.user_data for each in done]
                count += len(done)
            count += len(ring.drain(least=ring.in_flight))
        return count

    return read


def timed(seconds: float, nodes: list[int], reader: Reader) -> Figure:
    cpu_before, begin = cpu_s(nodes), time.perf_counter()
    count = reader(begin + seconds)
    took = time.perf_counter() - begin
    return Figure(count / took, (cpu_s(nodes) - cpu_before) / count * 1e6)


def cpu_s(others: list[int]) -> float:
    """Processor time of this process and `others`."""
    ticks = 0
    for pid in others:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return time.process_time() + ticks / TICKS


def storage_nodes(data: Path) -> list[int]:
    """Process ids of the cluster's storage nodes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                command = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if b"luciola.storage" in command and os.fsencode(data) in command:
                found.append(int(entry.name))
    assert found, "the storage nodes run on this machine"
    return found


def show(figures: dict[tuple[str, int, int], list[Figure]], options: argparse.Namespace) -> None:
    print("| block | in flight | side | MiB/s | blocks/s | of local | lowest to highest | CPU µs a block |")
    print("|---|---:|---|---:|---:|---:|---:|---:|")
    for block, depth in WORKS:
        local = figures["local", block, depth]
        for side in ("local", *options.transports):
            found = figures[side, block, depth]
            rate = statistics.median(each.rate for each in found)
            ratios = [mine.rate / theirs.rate for mine, theirs in zip(found, local, strict=True)]
            name = f"{block // MIB}M" if block >= MIB else f"{block // KIB}K"
            cpu = statistics.median(each.cpu_us for each in found)
            print(
                f"| {name} | {depth} | {side} | {rate * block / MIB:,.0f} | {rate:,.0f} | "
                f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} | {cpu:,.1f} |"
            )


if __name__ == "__main__":
    main()
