"""The work that file systems are compared by: data through fio, names through plain system calls.

usage: python benchmarks/workload.py DIRECTORY [--size-mib 512] [--seconds 4] [--files 2000] [--only PHASE ...]

Prints one JSON object, figure → value. Before each read phase the kernel's pages of the file are dropped, so that a
figure shows the file system and not the client's page cache; the servers' own files stay in the machine's page cache.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

PHASES = ("sequential", "random", "metadata", "small", "unpack")
SMALL_BYTES = 128 << 10
UNPACKED_BYTES = (5 << 10, 20 << 10)  # the smallest and the largest file of an archive


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
    figures: dict[str, float] = {}
    data = work / "data"
    try:
        if {"sequential", "random"} & set(options.only):
            figures |= write_sequentially(data, options.size_mib)
        if "sequential" in options.only:
            figures |= read_sequentially(data, options.size_mib)
        if "random" in options.only:
            figures |= access_randomly(data, options.size_mib, options.seconds)
        data.unlink(missing_ok=True)
        if "metadata" in options.only:
            figures |= work_on_names(work, options.files)
        if "small" in options.only:
            figures |= work_on_small_files(work, options.files // 2)
        if "unpack" in options.only:
            figures |= unpack_archives(work, options.files)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    json.dump(figures, sys.stdout, indent=1)


def fio(**options: object) -> dict[str, dict[str, float]]:
    """The totals of one fio run."""
    fixed = ["--name=work", "--ioengine=psync", "--group_reporting", "--fallocate=none", "--norandommap"]
    command = ["fio", "--output-format=json", *fixed, *(f"--{key}={value}" for key, value in options.items())]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    report = json.loads(result.stdout[result.stdout.index("{") :])
    job: dict[str, dict[str, float]] = report["jobs"][0]
    return job


def forget_pages(path: Path) -> None:
    """Drops the file's pages from the client's page cache."""
    with path.open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def write_sequentially(path: Path, size_mib: int) -> dict[str, float]:
    job = fio(filename=path, rw="write", bs="1M", size=f"{size_mib}M", end_fsync=1)
    return {"seq write 1M x1 MiB/s": job["write"]["bw_bytes"] / 2**20}


def read_sequentially(path: Path, size_mib: int) -> dict[str, float]:
    figures = {}
    for block, jobs in (("1M", 1), ("1M", 4), ("128K", 1)):
        forget_pages(path)
        share = f"{size_mib // jobs}M"
        spread = {"offset_increment": share, "io_size": share} if jobs > 1 else {}
        job = fio(
            filename=path, rw="read", bs=block, size=f"{size_mib}M", numjobs=jobs, invalidate=1, **spread
        )
        figures[f"seq read {block} x{jobs} MiB/s"] = job["read"]["bw_bytes"] / 2**20
    return figures


def access_randomly(path: Path, size_mib: int, seconds: int) -> dict[str, float]:
    figures = {}
    # A direct write is acknowledged by the file system's servers, a buffered one by the memory of the client.
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
        side = job["read" if pattern == "randread" else "write"]
        figures[f"{pattern} {block} x{jobs} {mode} IOPS"] = side["iops"]
    return figures


def parallel(action: Callable[[Path, int], None], work: Path, processes: int, count: int) -> float:
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
    return count * processes / taken_s


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


def unpack_archives(work: Path, files: int) -> dict[str, float]:
    figures = {}
    for processes in (1, 4):
        names = work / f"unpack-{processes}"
        names.mkdir()
        figures[f"unpack 5-20K files x{processes} file/s"] = parallel(
            unpack, names, processes, files // processes
        )
    return figures


def work_on_names(work: Path, files: int) -> dict[str, float]:
    figures = {}
    for processes in (1, 4):
        for action in (create, stat, open_and_close, rename, list_with_stat, unlink):
            forget_names()
            name = action.__name__.replace("_", " ")
            figures[f"{name} x{processes} op/s"] = parallel(action, work, processes, files // processes)
    return figures


def work_on_small_files(work: Path, files: int) -> dict[str, float]:
    figures = {}
    for processes in (1, 4):
        names = work / f"small-{processes}"
        names.mkdir()
        figures[f"write 128K files x{processes} file/s"] = parallel(
            write_small, names, processes, files // processes
        )
        for path in names.rglob("small-*"):
            if path.is_file():
                forget_pages(path)
        forget_names()
        figures[f"read 128K files x{processes} file/s"] = parallel(
            read_small, names, processes, files // processes
        )
    return figures


def forget_names() -> None:
    """Drops the kernel's cached names and attributes (root)."""
    Path("/proc/sys/vm/drop_caches").write_text("2")


if __name__ == "__main__":
    main()
