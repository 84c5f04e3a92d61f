"""`stat` and `create` of one program while the collector removes what another one has unlinked.

usage: python benchmarks/collector.py [--directory DIR] [--files 10000 100000] [--bytes 0] [--rounds 1]
                                      [--seconds 900] [--before PYTHON]

For each number of files a new cluster is made, with one storage node and a mount. A program measures, every few
milliseconds, one `stat` of a name that no cache holds and one `create`: before anything was removed ("idle"), and then
from the moment when the last file was unlinked until every inode of theirs is gone ("busy"), which `statfs` shows by
the number of inodes. "gone" is how long that took, the delay of the collector included. Files of more than 4096 bytes
have chunks. With `--before`, the Python of another checkout's environment, that version is measured in the same rounds.
"""

import argparse
import multiprocessing
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from peers import luciola

GC_DELAY_S = 20
INTERVAL_S = 0.004  # between two measured calls: the program that measures is no load
IDLE_S = 15.0
PROBES = 20_000  # names to stat: each comes again after longer than any cache keeps it
WORKERS = 4


class Latency(NamedTuple):
    """Of one call, in microseconds."""

    middle: float
    p99: float
    worst: float


class Figures(NamedTuple):
    idle: dict[str, Latency]
    busy: dict[str, Latency]
    unlink_s: float
    gone_s: float
    left: int


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--files", type=int, nargs="*", default=[10_000, 100_000])
    parser.add_argument("--bytes", type=int, default=0, help="of each file")
    parser.add_argument("--seconds", type=float, default=900.0, help="then what is left is reported")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--before", metavar="PYTHON", help="also measure the Luciola installed there")
    options = parser.parse_args()
    systems = {"luciola": sys.executable} | ({"before": options.before} if options.before else {})
    print("| files | version | call | idle p50 / p99, us | busy p50 / p99 / max, us | unlink, s | gone, s |")
    print("|---:|---|---|---:|---:|---:|---:|")
    for count in options.files:
        for _ in range(options.rounds):
            for name, python in systems.items():
                report(count, name, measure(options, count, python))


def measure(options: argparse.Namespace, count: int, python: str) -> Figures:
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        config = Path(root) / "config.toml"
        config.write_text(f"[meta]\ngc_delay_ms = {GC_DELAY_S * 1000}\n")
        with luciola(Path(root), storage_nodes=1, replicas=1, python=python, config=config) as mount:
            probe = Probe(mount / "probe")
            in_parallel(make, mount, count, options.bytes)
            time.sleep(GC_DELAY_S)
            idle = probe.run(until_s=time.monotonic() + IDLE_S)
            base = os.statvfs(mount).f_files
            begun_s = time.monotonic()
            in_parallel(unlink, mount, count, options.bytes)
            unlinked_s = time.monotonic()
            made = probe.made
            busy = probe.run(
                until_s=unlinked_s + options.seconds,
                is_done=lambda: os.statvfs(mount).f_files - (probe.made - made) <= base - count,
            )
            left = os.statvfs(mount).f_files - (probe.made - made) - (base - count)
            return Figures(idle, busy, unlinked_s - begun_s, time.monotonic() - unlinked_s, max(0, left))


class Probe:
    """The program that measures."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.made = 0
        self.looked = 0
        directory.mkdir()
        for number in range(PROBES):
            touch(directory / f"known-{number}")

    def run(self, *, until_s: float, is_done=lambda: False) -> dict[str, Latency]:
        samples: dict[str, list[float]] = {"stat": [], "create": []}
        turn = 0
        while time.monotonic() < until_s and not (turn % 250 == 249 and is_done()):
            turn += 1
            time.sleep(INTERVAL_S)
            begun_s = time.perf_counter()
            os.stat(self.directory / f"known-{self.looked % PROBES}")
            samples["stat"].append(time.perf_counter() - begun_s)
            self.looked += 1
            time.sleep(INTERVAL_S)
            begun_s = time.perf_counter()
            touch(self.directory / f"made-{self.made}")
            samples["create"].append(time.perf_counter() - begun_s)
            self.made += 1
        return {name: latency(values) for name, values in samples.items()}


def latency(samples: list[float]) -> Latency:
    if len(samples) < 2:
        return Latency(*(1e6 * sum(samples),) * 3)
    cuts = statistics.quantiles(samples, n=100)
    return Latency(cuts[49] * 1e6, cuts[98] * 1e6, max(samples) * 1e6)


def touch(path: Path) -> None:
    os.close(os.open(path, os.O_CREAT | os.O_WRONLY, 0o644))


def in_parallel(work, mount: Path, count: int, size: int) -> None:
    share = -(-count // WORKERS)
    processes = [
        multiprocessing.Process(
            target=work, args=(mount / f"files-{worker}", min(share, count - worker * share), size)
        )
        for worker in range(WORKERS)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert not process.exitcode, "a worker failed"


def make(directory: Path, count: int, size: int) -> None:
    directory.mkdir()
    data = b"x" * size
    for number in range(count):
        descriptor = os.open(directory / str(number), os.O_CREAT | os.O_WRONLY, 0o644)
        if data:
            os.write(descriptor, data)
        os.close(descriptor)


def unlink(directory: Path, count: int, size: int) -> None:
    del size
    for number in range(count):
        os.unlink(directory / str(number))


def report(count: int, name: str, figures: Figures) -> None:
    gone = f"{figures.gone_s:,.0f}" if not figures.left else f"{figures.left:,} left"
    for call, idle in figures.idle.items():
        busy = figures.busy[call]
        print(
            f"| {count:,} | {name} | {call} | {idle.middle:,.0f} / {idle.p99:,.0f} "
            f"| {busy.middle:,.0f} / {busy.p99:,.0f} / {busy.worst:,.0f} "
            f"| {figures.unlink_s:,.1f} | {gone} |",
            flush=True,
        )


if __name__ == "__main__":
    main()
