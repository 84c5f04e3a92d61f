"""Samples a second and how long training waits: records in random order over the ring, a mount, and the local disk.

usage: python benchmarks/training/records.py [--size-mib 256] [--seconds 3] [--rounds 1] [--workers 1 2 4] [--plot FILE]
                                             [--systems NAME ...] [--records 4KiB ...] [--directory DIR]

One storage node, one copy, in one run. Records of one size in an FFRecord file, batches of BATCH_BYTES; ways:

    ring            `luciola.plugins.dataset.Loader` on luciola://: batches in one submission
    mount, juicefs, what a training job does without Luciola's library: a Dataset that reads one record at a time from
    local           the same file, in a DataLoader
    mount, Loader   the Loader on the mount, which reads with a few threads
    webdataset      the library of that name on local tar shards: in sequence, with a shuffle buffer
                    (pip install webdataset)

Pages of the mounts are dropped before each measurement and no record is read twice in one, so a mount asks its servers;
those of the servers, and of the local disk, are warm. The first figure is samples a second of a consumer that does
nothing; the second how long, on average, one that computes for STEP_S waits for each batch. Contents are verified by
the FFRecord checksums in the Loader, and by their first bytes elsewhere.
"""

import argparse
import importlib.util
import io
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from luciola.client import close_locations
from luciola.plugins.dataset import FFRecords, FFRecordWriter, Loader, MapDataset, open_records
from luciola.units import parse_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import juicefs, local, luciola

BATCH_BYTES = 4 << 20
BATCH_MAX = 256
STEP_S = 0.02
SHARD_BYTES = 32 << 20
SHUFFLE = 1000  # samples in WebDataset's buffer

Found = dict[tuple[str, str, int], list[tuple[float, float]]]
"""(samples/s, wait in ms) of all rounds, by record size, way and workers."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--seconds", type=float, default=3)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="*", default=[1, 2, 4])
    parser.add_argument("--records", nargs="*", default=["4KiB", "128KiB", "1MiB"])
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: Found = {}
    for number in range(options.rounds):
        for system in options.systems:
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as root,
                SYSTEMS[system](Path(root)) as places,
            ):
                for size in options.records:
                    print(f"round {number + 1}: {system}, {size}", file=sys.stderr, flush=True)
                    measure(system, places, size, options, found)
    print_figures(found, options.workers)
    if options.plot is not None:
        plot(found, options)


Places = tuple[str | None, Path]
"""A location for the ring (None where there is none), and a directory."""


@contextmanager
def luciola_places(root: Path) -> Iterator[Places]:
    with luciola(root, storage_nodes=1, replicas=1) as mountpoint:
        try:
            yield f"luciola://{root}/luciola!", mountpoint
        finally:
            close_locations()


@contextmanager
def juicefs_places(root: Path) -> Iterator[Places]:
    with juicefs(root) as mountpoint:
        yield None, mountpoint


@contextmanager
def local_places(root: Path) -> Iterator[Places]:
    with local(root) as directory:
        yield None, directory


SYSTEMS: dict[str, Any] = {"luciola": luciola_places, "juicefs": juicefs_places, "local": local_places}


def measure(system: str, places: Places, size: str, options: argparse.Namespace, found: Found) -> None:
    location, directory = places
    length = parse_bytes(size)
    count = max(1, (options.size_mib << 20) // length)
    batch = max(1, min(BATCH_MAX, BATCH_BYTES // length))
    path = directory / f"{size}.ffr"
    write_records(path, count, length)
    name = "mount" if system == "luciola" else system
    for workers in options.workers:
        ways: dict[str, Any] = {name: lambda w=workers: one_at_a_time(path, batch, w)}
        if location is not None:
            ways["ring"] = lambda w=workers: loader(f"{location}/{size}.ffr", batch, w)
            ways["mount, Loader"] = lambda w=workers: loader(str(path), batch, w)
        if system == "local" and importlib.util.find_spec("webdataset") is not None:
            write_shards(directory / size, count, length)
            ways["webdataset"] = lambda w=workers: webdataset(directory / size, batch, w)
        for way, make in ways.items():
            figures = []
            for step_s in (0.0, STEP_S):
                if system != "local":
                    forget_pages(path)
                figures.append(consume(make(), batch, options.seconds, step_s))
            found.setdefault((size, way, workers), []).append((figures[0][0], figures[1][1] * 1e3))
    path.unlink()


def record(index: int, length: int) -> bytes:
    return index.to_bytes(8, "little") + np.random.default_rng(index % 64).bytes(length - 8)


def write_records(path: Path, count: int, length: int) -> None:
    with FFRecordWriter(str(path), count) as writer:
        for index in range(count):
            writer.write(record(index, length))


def write_shards(directory: Path, count: int, length: int) -> None:
    if directory.exists():
        return
    directory.mkdir()
    share = max(1, min(SHARD_BYTES // length, count // 8))  # at least as many shards as workers
    for shard, start in enumerate(range(0, count, share)):
        with tarfile.open(directory / f"{shard:05}.tar", "w") as archive:
            for index in range(start, min(count, start + share)):
                info = tarfile.TarInfo(f"{index:08}.bin")
                info.size = length
                archive.addfile(info, io.BytesIO(record(index, length)))


def forget_pages(path: Path) -> None:
    file = os.open(path, os.O_RDONLY)
    os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)


class OneAtATime(Dataset[torch.Tensor]):
    """What is usual: open the file once in each worker, and one pread for each record."""

    def __init__(self, path: Path) -> None:
        self.path = path
        records = open_records(str(path))
        assert isinstance(records, FFRecords)
        extents = records.locate(np.arange(len(records)))
        self.offsets, self.lengths = extents.offsets, extents.lengths
        self.file: int | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, index: int) -> torch.Tensor:
        if self.file is None:
            self.file = os.open(self.path, os.O_RDONLY)
        data = os.pread(self.file, int(self.lengths[index]), int(self.offsets[index]))
        assert int.from_bytes(data[:8], "little") == index
        return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def one_at_a_time(path: Path, batch: int, workers: int) -> Iterable[Any]:
    return DataLoader(OneAtATime(path), batch_size=batch, shuffle=True, num_workers=workers)


def loader(location: str, batch: int, workers: int) -> Iterable[Any]:
    return Loader(
        MapDataset(open_records(location)), global_batch_size=batch, num_workers=workers, rank=0, ranks=1
    )


def webdataset(directory: Path, batch: int, workers: int) -> Iterable[Any]:
    import webdataset as wds

    shards = sorted(str(path) for path in directory.iterdir())
    samples = (
        wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False).shuffle(SHUFFLE).to_tuple("bin")
    )
    decoded = samples.map_tuple(lambda data: torch.frombuffer(bytearray(data), dtype=torch.uint8))
    return wds.WebLoader(decoded, batch_size=batch, num_workers=workers)  # type: ignore[no-any-return]


def consume(batches: Iterable[Any], batch: int, seconds: float, step_s: float) -> tuple[float, float]:
    """Samples a second, and seconds of waiting for each batch. What starts workers is not counted."""
    iterator = iter(batches)
    next(iterator)
    waited, count = 0.0, 0
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds:
        asked = time.perf_counter()
        try:
            next(iterator)
        except StopIteration:
            break
        waited += time.perf_counter() - asked
        count += 1
        if step_s:
            time.sleep(step_s)
    taken = time.perf_counter() - begin
    del iterator
    return count * batch / taken, waited / max(1, count)


def print_figures(found: Found, workers: list[int]) -> None:
    sizes = list(dict.fromkeys(size for size, _, _ in found))
    ways = list(dict.fromkeys(way for _, way, _ in found))
    for title, column in (("samples/s", 0), (f"ms waited for each batch, {STEP_S * 1e3:.0f} ms of work", 1)):
        print(f"\n| {title} | workers |", " | ".join(ways), "|")
        print("|---|---:|" + "---:|" * len(ways))
        for size in sizes:
            for count in workers:
                cells = [middle(found, (size, way, count), column) for way in ways]
                texts = [
                    "" if cell is None else f"{cell:,.0f}" if column == 0 else f"{cell:.1f}" for cell in cells
                ]
                print(f"| {size} | {count} |", " | ".join(texts), "|")
    print("\n| samples/s, times the mount | workers |", " | ".join(ways), "|")
    print("|---|---:|" + "---:|" * len(ways))
    for size in sizes:
        for count in workers:
            mount = middle(found, (size, "mount", count), 0)
            cells = [middle(found, (size, way, count), 0) for way in ways]
            texts = ["" if cell is None or not mount else f"{cell / mount:.2f}" for cell in cells]
            print(f"| {size} | {count} |", " | ".join(texts), "|")


def middle(found: Found, key: tuple[str, str, int], column: int) -> float | None:
    values = [figures[column] for figures in found.get(key, [])]
    return statistics.median(values) if values else None


def plot(found: Found, options: argparse.Namespace) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    ways = list(dict.fromkeys(way for _, way, _ in found))
    figure, panels = plt.subplots(
        1, len(options.records), figsize=(4.5 * len(options.records), 3.6), squeeze=False
    )
    for panel, size in zip(panels[0], options.records, strict=True):
        for place, way in enumerate(ways):
            values = [middle(found, (size, way, count), 0) or 0 for count in options.workers]
            shift = (place - len(ways) / 2 + 0.5) * 0.8 / len(ways)
            panel.bar(np.arange(len(options.workers)) + shift, values, 0.8 / len(ways), label=way)
        panel.set_xticks(range(len(options.workers)), [f"{count}" for count in options.workers])
        panel.set_title(f"{size} records")
        panel.set_xlabel("workers")
    panels[0][0].set_ylabel("samples a second")
    panels[0][-1].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    main()
