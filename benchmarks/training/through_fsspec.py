"""fsspec's operations on `luciola://` beside the same through the mount, on JuiceFS, and on the local disk, in one run.

usage: python benchmarks/training/through_fsspec.py [--size-mib 256] [--files 1000] [--rounds 3]
                                                    [--systems NAME ...] [--directory DIR]

One storage node, one copy. The servers' page cache is warm. The kernel's pages of the files, and its names (root), are
dropped before each reading, so that a mount asks its servers as the native client does; "local, cold" therefore reads
the disk, and "local" is the same with nothing dropped. Every result is compared with what was written. The first table
shows medians (within a round that of REPEATS for what is read by ranges), the second the median over rounds of each
way's ratio to the mount.
"""

import argparse
import contextlib
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pds
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from luciola.client import close_locations
from luciola.client.fsspec import LuciolaFileSystem

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import juicefs, local, luciola

COLUMNS = 8
PART_MIB = 32  # of one parquet file
SMALL_BYTES = 20_000
RANGES = 2048
REPEATS = 5
Figures = dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    found: dict[str, list[Figures]] = {}
    for number in range(options.rounds):
        for system in options.systems:
            print(f"round {number + 1}: {system}", file=sys.stderr, flush=True)
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as root,
                SYSTEMS[system](Path(root)) as ways,
            ):
                for way, (fs, top) in ways.items():
                    figures = measure(fs, top, options, cold=way != "local")
                    found.setdefault(way, []).append(figures)
    print_figures(found)
    print_ratios(found)


Ways = dict[str, tuple[Any, str]]
"""A file system and an empty directory on it, by the name of the way."""


@contextlib.contextmanager
def luciola_ways(root: Path) -> Iterator[Ways]:
    with luciola(root, storage_nodes=1, replicas=1) as mountpoint:
        try:
            yield {
                "luciola://": (LuciolaFileSystem(root / "luciola"), "/native"),
                "mount": (LocalFileSystem(auto_mkdir=True), f"{mountpoint}/mount"),
            }
        finally:
            close_locations()


@contextlib.contextmanager
def juicefs_ways(root: Path) -> Iterator[Ways]:
    with juicefs(root) as mountpoint:
        yield {"juicefs": (LocalFileSystem(auto_mkdir=True), f"{mountpoint}/work")}


@contextlib.contextmanager
def local_ways(root: Path) -> Iterator[Ways]:
    with local(root) as directory:
        fs = LocalFileSystem(auto_mkdir=True)
        yield {"local, cold": (fs, f"{directory}/cold"), "local": (fs, f"{directory}/warm")}


SYSTEMS: dict[str, Callable[[Path], Any]] = {
    "luciola": luciola_ways,
    "juicefs": juicefs_ways,
    "local": local_ways,
}


def measure(fs: Any, top: str, options: argparse.Namespace, *, cold: bool) -> Figures:
    fs.makedirs(top)
    figures: Figures = {}
    forget = (lambda: forget_pages(fs, top)) if cold else lambda: None
    scans(fs, f"{top}/table", options.size_mib, figures, forget)
    ranges(fs, f"{top}/blob", options.size_mib, figures, forget)
    small_files(fs, f"{top}/small", options.files, figures, forget)
    whole_files(fs, f"{top}/whole", options.size_mib, figures, forget)
    fs.rm(top, recursive=True)
    return figures


def forget_pages(fs: Any, top: str) -> None:
    """Drops what the kernel keeps of the files below `top`, and its names of all files (root)."""
    if isinstance(fs, LocalFileSystem):
        for path in fs.find(top):
            file = os.open(path, os.O_RDONLY)
            os.fdatasync(file)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
            os.close(file)
        Path("/proc/sys/vm/drop_caches").write_text("2")


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    begin = time.perf_counter()
    result = work()
    return time.perf_counter() - begin, result


def repeated(work: Callable[[], Any], forget: Callable[[], None]) -> tuple[float, Any]:
    """The median of REPEATS readings, which are short; none but the first has anything to import or to connect."""
    taken = []
    for _ in range(REPEATS):
        forget()
        seconds, result = timed(work)
        taken.append(seconds)
    return statistics.median(taken), result


def scans(fs: Any, top: str, size_mib: int, figures: Figures, forget: Callable[[], None]) -> None:
    """A parquet data set of doubles that do not compress."""
    rows = (PART_MIB << 20) // 8 // COLUMNS
    for part in range(max(1, size_mib // PART_MIB)):
        columns = {f"c{index}": pa.array(noise(rows, part * COLUMNS + index)) for index in range(COLUMNS)}
        fs.makedirs(top, exist_ok=True)
        pq.write_table(
            pa.table(columns),
            f"{top}/{part}.parquet",
            filesystem=fs,
            compression="none",
            use_dictionary=False,
        )
    total = fs.du(top) / 2**20
    for name, wanted in (("whole", None), ("one column of 8", ["c3"])):
        seconds, table = repeated(
            lambda w=wanted: pds.dataset(top, filesystem=fs).to_table(columns=w), forget
        )
        assert table.num_rows == rows * max(1, size_mib // PART_MIB)
        assert table["c3"][5].as_py() == noise(rows, 3)[5]
        share = 1 if wanted is None else 1 / COLUMNS
        figures[f"parquet scan, {name}, MiB/s"] = total * share / seconds


def noise(rows: int, seed: int) -> Any:
    import numpy as np

    return np.random.default_rng(seed).random(rows)


def ranges(fs: Any, path: str, size_mib: int, figures: Figures, forget: Callable[[], None]) -> None:
    block = random.Random(1).randbytes(1 << 20)
    with fs.open(path, "wb") as file:
        for _ in range(size_mib):
            file.write(block)
    for length, name in ((4 << 10, "4 KiB"), (128 << 10, "128 KiB")):
        count = min(RANGES, (size_mib << 20) // length)
        chooser = random.Random(length)
        starts = [chooser.randrange((size_mib << 20) - length) for _ in range(count)]
        ends = [start + length for start in starts]
        seconds, found = repeated(lambda s=starts, e=ends, c=count: fs.cat_ranges([path] * c, s, e), forget)
        assert all(
            data == (block + block)[start % (1 << 20) :][:length]
            for data, start in zip(found, starts, strict=True)
        )
        figures[f"cat_ranges {name}, ranges/s"] = count / seconds


def small_files(fs: Any, top: str, count: int, figures: Figures, forget: Callable[[], None]) -> None:
    contents = {f"{top}/{index}": random.Random(index).randbytes(SMALL_BYTES) for index in range(count)}
    fs.makedirs(top)
    seconds, _ = timed(lambda: fs.pipe(contents))
    figures["pipe 20 kB files, file/s"] = count / seconds
    forget()
    seconds, found = timed(lambda: fs.cat(list(contents)))
    assert found == contents
    figures["cat 20 kB files, file/s"] = count / seconds
    forget()
    seconds, listed = timed(lambda: fs.ls(top, detail=True))
    assert len(listed) == count
    figures["ls with details, entries/s"] = count / seconds


def whole_files(fs: Any, path: str, size_mib: int, figures: Figures, forget: Callable[[], None]) -> None:
    with tempfile.TemporaryDirectory() as here:
        source, back = f"{here}/source", f"{here}/back"
        with open(source, "wb") as file:
            file.writelines(os.urandom(1 << 20) for _ in range(size_mib))
        seconds, _ = timed(lambda: fs.put_file(source, path))
        figures["put_file, MiB/s"] = size_mib / seconds
        forget()
        seconds, _ = timed(lambda: fs.get_file(path, back))
        figures["get_file, MiB/s"] = size_mib / seconds
        assert Path(source).read_bytes() == Path(back).read_bytes()


def print_figures(found: dict[str, list[Figures]]) -> None:
    print("| work |", " | ".join(found), "|")
    print("|---|" + "---:|" * len(found))
    for work in next(iter(found.values()))[0]:
        cells = [f"{statistics.median(each[work] for each in rounds):,.0f}" for rounds in found.values()]
        print(f"| {work} |", " | ".join(cells), "|")


def print_ratios(found: dict[str, list[Figures]]) -> None:
    if "mount" not in found:
        return
    others = [way for way in found if way != "mount"]
    print("\n| times the mount |", " | ".join(others), "|")
    print("|---|" + "---:|" * len(others))
    for work in found["mount"][0]:
        ratios = [
            statistics.median(a[work] / b[work] for a, b in zip(found[way], found["mount"], strict=True))
            for way in others
        ]
        print(f"| {work} |", " | ".join(f"{ratio:.2f}" for ratio in ratios), "|")


if __name__ == "__main__":
    main()
