"""The work that file systems are compared by: data through fio, names through plain system calls.

usage: python benchmarks/workload.py DIRECTORY [--size-mib 512] [--seconds 4] [--files 2000] [--only PHASE ...]

Prints one JSON object: of each figure its `value`, the processor time of an operation in µs by process (`processor_us`;
"program" is the one that does the work), and for random blocks of 4 KiB the 99.9th percentile of its latency
(`p999_ms`). The services are the processes that name something beside DIRECTORY in their command lines. Before each
read phase the kernel's pages of the file are dropped, so that a figure shows the file system and not the client's page
cache; the servers' own files stay in the machine's page cache.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from processes import since, usage_of_services

PHASES = ("sequential", "random", "metadata", "small", "unpack")
SMALL_BYTES = 128 << 10
UNPACKED_BYTES = (5 << 10, 20 << 10)  # the smallest and the largest file of an archive


@dataclass(frozen=True)
class Outcome:
    """Of one piece of work: its figure, and how many operations it was."""

    value: float
    operations: float
    p999_ms: float | None = None


@dataclass(frozen=True)
class Figure:
    """A figure, the processor time of an operation in µs by process, and the 99.9th percentile of its latency."""

    value: float
    processor_us: dict[str, float]
    p999_ms: float | None


class Figures:
    """What was measured, by the figure's name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self.found: dict[str, Figure] = {}

    def add(self, name: str, work: Callable[[], Outcome]) -> None:
        """Do some work, and measure it."""
        services, program = usage_of_services(self._root, starter=os.getppid()), program_ns()
        outcome = work()
        used_ns = {"program": program_ns() - program} | {
            role: usage.processor_ns
            for role, usage in since(services, usage_of_services(self._root, starter=os.getppid())).items()
        }
        processor_us = {role: ns / 1000 / outcome.operations for role, ns in used_ns.items()}
        self.found[name] = Figure(outcome.value, processor_us, outcome.p999_ms)


def program_ns() -> int:
    """Return the processor time of the processes that did the work so far."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return round((used.ru_utime + used.ru_stime) * 1e9)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("directory", type=Path)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--files", type=int, default=2000)
    parser.add_argument("--only", nargs="*", choices=PHASES, default=PHASES)
    options = parser.parse_args()
    work = options.directory / "workload"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    figures = Figures(options.directory.parent)
    data = work / "data"
    try:
        if {"sequential", "random"} & set(options.only):
            write_sequentially(figures, data, options.size_mib)
        if "sequential" in options.only:
            read_sequentially(figures, data, options.size_mib)
        if "random" in options.only:
            access_randomly(figures, data, options.size_mib, options.seconds)
        data.unlink(missing_ok=True)
        if "metadata" in options.only:
            work_on_names(figures, work, options.files)
        if "small" in options.only:
            work_on_small_files(figures, work, options.files // 2)
        if "unpack" in options.only:
            unpack_archives(figures, work, options.files)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    json.dump({name: asdict(figure) for name, figure in figures.found.items()}, sys.stdout, indent=1)


@dataclass(frozen=True)
class Job:
    """The totals of one fio run."""

    iops: float
    bytes_per_s: float
    operations: int
    p999_ms: float

    @property
    def mib_per_s(self) -> float:
        return self.bytes_per_s / 2**20


def fio(**options: object) -> Job:
    fixed = ["--name=work", "--ioengine=psync", "--group_reporting", "--fallocate=none", "--norandommap"]
    command = ["fio", "--output-format=json", *fixed, *(f"--{key}={value}" for key, value in options.items())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout[result.stdout.index("{") :])
    side = report["jobs"][0]["read" if "read" in str(options["rw"]) else "write"]
    p999_ns = side["clat_ns"]["percentile"]["99.900000"]
    return Job(side["iops"], side["bw_bytes"], side["total_ios"], p999_ns / 1e6)


def forget_pages(path: Path) -> None:
    """Drops the file's pages from the client's page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_sequentially(figures: Figures, path: Path, size_mib: int) -> None:
    def work() -> Outcome:
        job = fio(filename=path, rw="write", bs="1M", size=f"{size_mib}M", end_fsync=1)
        return Outcome(job.mib_per_s, job.operations)

    figures.add("seq write 1M x1 MiB/s", work)


def read_sequentially(figures: Figures, path: Path, size_mib: int) -> None:
    def work(block: str, jobs: int) -> Outcome:
        share = f"{size_mib // jobs}M"
        spread = {"offset_increment": share, "io_size": share} if jobs > 1 else {}
        job = fio(
            filename=path, rw="read", bs=block, size=f"{size_mib}M", numjobs=jobs, invalidate=1, **spread
        )
        return Outcome(job.mib_per_s, job.operations)

    for block, jobs in (("1M", 1), ("1M", 4), ("128K", 1)):
        forget_pages(path)
        figures.add(f"seq read {block} x{jobs} MiB/s", partial(work, block, jobs))


def access_randomly(figures: Figures, path: Path, size_mib: int, seconds: int) -> None:
    def work(pattern: str, block: str, jobs: int, mode: str) -> Outcome:
        job = fio(
            filename=path,
            rw=pattern,
            bs=block,
            size=f"{size_mib}M",
            numjobs=jobs,
            runtime=seconds,
            time_based=1,
            direct=int(mode == "direct"),
            randrepeat=0,
        )
        return Outcome(job.iops, job.operations, job.p999_ms if block == "4K" else None)

    for pattern, block, jobs, mode in (
        ("randread", "4K", 1, "direct"),
        ("randread", "4K", 8, "direct"),
        ("randread", "1M", 4, "direct"),
        ("randwrite", "4K", 1, "direct"),
        ("randwrite", "4K", 8, "direct"),
        ("randwrite", "128K", 4, "direct"),
        ("randwrite", "4K", 1, "buffered"),
        ("randwrite", "4K", 8, "buffered"),
    ):
        name = f"{pattern} {block} x{jobs} {mode} IOPS"
        figures.add(name, partial(work, pattern, block, jobs, mode))


def parallel(action: Callable[[Path, int], None], work: Path, processes: int, count: int) -> Outcome:
    """Actions per second of `processes` processes, each with `count` files in a directory of its own."""
    # Forked, so that no interpreter start-up is measured.
    context = multiprocessing.get_context("fork")
    workers = [
        context.Process(target=action, args=(work / f"names-{index}", count)) for index in range(processes)
    ]
    begin = time.perf_counter()
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    taken_s = time.perf_counter() - begin
    if any(worker.exitcode for worker in workers):
        raise RuntimeError(f"{action.__name__} failed")
    return Outcome(count * processes / taken_s, count * processes)


def create(directory: Path, count: int) -> None:
    directory.mkdir(exist_ok=True)
    for index in range(count):
        os.close(os.open(f"{directory}/file-{index}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def stat(directory: Path, count: int) -> None:
    for index in range(count):
        os.stat(f"{directory}/file-{index}")


def open_and_close(directory: Path, count: int) -> None:
    for index in range(count):
        os.close(os.open(f"{directory}/file-{index}", os.O_RDONLY))


def open_again(directory: Path, count: int) -> None:
    open_and_close(directory, count)


def rename(directory: Path, count: int) -> None:
    for index in range(count):
        os.rename(f"{directory}/file-{index}", f"{directory}/renamed-{index}")


def list_with_stat(directory: Path, count: int) -> None:
    with os.scandir(directory) as entries:
        assert sum(1 for entry in entries if entry.stat(follow_symlinks=False).st_mode) == count


def unlink(directory: Path, count: int) -> None:
    for index in range(count):
        os.unlink(f"{directory}/renamed-{index}")


def write_small(directory: Path, count: int) -> None:
    directory.mkdir(exist_ok=True)
    content = os.urandom(SMALL_BYTES)
    for index in range(count):
        Path(f"{directory}/small-{index}").write_bytes(content)


def read_small(directory: Path, count: int) -> None:
    for index in range(count):
        assert len(Path(f"{directory}/small-{index}").read_bytes()) == SMALL_BYTES


def unpack(directory: Path, count: int) -> None:
    """What GNU tar does as root for each file of an archive."""
    directory.mkdir(exist_ok=True)
    smallest, largest = UNPACKED_BYTES
    content = os.urandom(largest)
    for index in range(count):
        length = smallest + index * 7919 % (largest - smallest)
        file = os.open(f"{directory}/file-{index}", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        for at in range(0, length, 10 << 10):
            os.write(file, content[at : min(length, at + (10 << 10))])
        os.utime(file, ns=(1_700_000_000 * 10**9, 1_700_000_000 * 10**9 + index))
        os.fchown(file, 0, 0)
        os.fchmod(file, 0o644)
        os.close(file)


def unpack_archives(figures: Figures, work: Path, files: int) -> None:
    for processes in (1, 4):
        names = work / f"unpack-{processes}"
        names.mkdir()
        action = partial(parallel, unpack, names, processes, files // processes)
        figures.add(f"unpack 5-20K files x{processes} file/s", action)


def work_on_names(figures: Figures, work: Path, files: int) -> None:
    for processes in (1, 4):
        count = files // processes
        for action in (create, stat, open_and_close, open_again, rename, list_with_stat, unlink):
            if action is open_again:
                # A client may answer the third open of a file that no other uses from what the second brought.
                parallel(open_and_close, work, processes, count)
            else:
                forget_names()
            name = action.__name__.replace("_", " ")
            figures.add(f"{name} x{processes} op/s", partial(parallel, action, work, processes, count))


def work_on_small_files(figures: Figures, work: Path, files: int) -> None:
    for processes in (1, 4):
        names = work / f"small-{processes}"
        names.mkdir()
        count = files // processes
        write, read = (
            partial(parallel, action, names, processes, count) for action in (write_small, read_small)
        )
        figures.add(f"write 128K files x{processes} file/s", write)
        for path in names.rglob("small-*"):
            if path.is_file():
                forget_pages(path)
        forget_names()
        figures.add(f"read 128K files x{processes} file/s", read)


def forget_names() -> None:
    """Drops the kernel's cached names and attributes (root)."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


if __name__ == "__main__":
    main()
