"""`luciola bench DIR`: how fast is this directory, on any file system."""

import mmap
import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import click

from ..units import KIB, MIB, parse_bytes
from .options import json_option
from .output import print_json, print_table

SEQUENTIAL_BYTES: Final = 1 * MIB
RANDOM_BYTES: Final = 4 * KIB
SEED: Final = 1  # the same offsets in every run


@dataclass(frozen=True)
class Result:
    """One figure."""

    name: str
    value: float
    unit: str
    latency_us_p50: float | None = None
    latency_us_p99: float | None = None


@click.command()
@click.argument("directory", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.option("--size", default="512M", show_default=True, help="Size of the data file.")
@click.option(
    "--seconds",
    default=4.0,
    show_default=True,
    type=click.FloatRange(0.1, 3600),
    help="Of each random phase.",
)
@click.option(
    "--files",
    default=1000,
    show_default=True,
    type=click.IntRange(1, 1_000_000),
    help="Of the metadata phase.",
)
@click.option(
    "--only",
    type=click.Choice(["sequential", "random", "metadata"]),
    multiple=True,
    help="Phases to run (repeatable).  [default: all]",
)
@json_option
def bench(
    directory: Path, size: str, seconds: float, files: int, only: tuple[str, ...], as_json: bool
) -> None:
    """Measure sequential, random and metadata speed of a directory.

    One process, one thread. The kernel's pages of the file are dropped before it is read, and random phases use
    O_DIRECT where the file system has it, so that the figures are the file system's and not the page cache's.

    \b
    Example:
      luciola bench /mnt/luciola
    """
    try:
        size_bytes = parse_bytes(size) // SEQUENTIAL_BYTES * SEQUENTIAL_BYTES
    except ValueError as error:
        raise click.BadParameter(str(error), param_hint="--size") from None
    if size_bytes < SEQUENTIAL_BYTES:
        raise click.BadParameter("must be at least 1M", param_hint="--size")
    phases = only or ("sequential", "random", "metadata")
    work = Path(tempfile.mkdtemp(prefix=".luciola-bench-", dir=directory))
    try:
        results = list(_run(work, phases, size_bytes=size_bytes, seconds=seconds, files=files))
    finally:
        shutil.rmtree(work)
    if as_json:
        print_json([vars(result) for result in results])
        return
    rows = [
        (
            each.name,
            f"{each.value:,.0f}",
            each.unit,
            _microseconds(each.latency_us_p50),
            _microseconds(each.latency_us_p99),
        )
        for each in results
    ]
    print_table(("WORK", "VALUE", "UNIT", "P50 µs", "P99 µs"), rows, right=(1, 3, 4))


def _microseconds(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _run(
    work: Path, phases: tuple[str, ...], *, size_bytes: int, seconds: float, files: int
) -> Iterator[Result]:
    data = work / "data"
    if "sequential" in phases or "random" in phases:
        written = _sequential_write(data, size_bytes)
        if "sequential" in phases:
            yield written
            yield _sequential_read(data, size_bytes)
    if "random" in phases:
        yield _random("random read 4K", data, size_bytes, seconds, os.preadv, os.O_RDONLY)
        yield _random("random write 4K", data, size_bytes, seconds, os.pwritev, os.O_RDWR)
    if "metadata" in phases:
        yield from _metadata(work / "names", files)


def _sequential_write(path: Path, size_bytes: int) -> Result:
    block = os.urandom(SEQUENTIAL_BYTES)
    begin = time.perf_counter()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        for _ in range(size_bytes // SEQUENTIAL_BYTES):
            os.write(descriptor, block)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return Result("sequential write 1M + fsync", size_bytes / MIB / (time.perf_counter() - begin), "MiB/s")


def _sequential_read(path: Path, size_bytes: int) -> Result:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        block = bytearray(SEQUENTIAL_BYTES)
        begin = time.perf_counter()
        while os.readv(descriptor, [block]):
            pass
    finally:
        os.close(descriptor)
    return Result("sequential read 1M", size_bytes / MIB / (time.perf_counter() - begin), "MiB/s")


def _random(
    name: str,
    path: Path,
    size_bytes: int,
    seconds: float,
    operation: Callable[[int, list[mmap.mmap], int], int],
    flags: int,
) -> Result:
    try:
        descriptor = os.open(path, flags | os.O_DIRECT)
        name += " direct"
    except OSError:
        descriptor = os.open(path, flags)
    block = mmap.mmap(-1, RANDOM_BYTES)
    block.write(os.urandom(RANDOM_BYTES))
    choose = random.Random(SEED)  # noqa: S311
    latencies: list[float] = []
    try:
        end = time.perf_counter() + seconds
        now = time.perf_counter()
        while now < end:
            operation(descriptor, [block], choose.randrange(size_bytes // RANDOM_BYTES) * RANDOM_BYTES)
            after = time.perf_counter()
            latencies.append(after - now)
            now = after
    finally:
        os.close(descriptor)
    ordered = sorted(latencies)
    return Result(
        name,
        len(latencies) / seconds,
        "op/s",
        latency_us_p50=ordered[len(ordered) // 2] * 1e6,
        latency_us_p99=ordered[len(ordered) * 99 // 100] * 1e6,
    )


def _metadata(directory: Path, count: int) -> Iterator[Result]:
    directory.mkdir()
    names = [f"{directory}/file-{index}" for index in range(count)]

    def create(name: str) -> None:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))

    def open_and_close(name: str) -> None:
        os.close(os.open(name, os.O_RDONLY))

    def rename(name: str) -> None:
        os.rename(name, name + "-renamed")

    def unlink(name: str) -> None:
        os.unlink(name + "-renamed")

    for label, operation in (
        ("create", create),
        ("stat", os.stat),
        ("open + close", open_and_close),
        ("rename", rename),
        ("unlink", unlink),
    ):
        begin = time.perf_counter()
        for name in names:
            operation(name)
        yield Result(label, count / (time.perf_counter() - begin), "op/s")


__all__ = ["Result", "bench"]
