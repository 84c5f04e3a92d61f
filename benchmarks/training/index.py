"""Memory and start of a data set of very many records, which are not read: 10⁹ by default.

usage: python benchmarks/training/index.py [--records 1000000000] [--files 1000] [--processes 3] [--batches 3]
                                           [--ways window shared own] [--directory DIR] [--json]

The files take next to no room: the bytes of records are holes, and FFRecord files are names of one file. Ways:

    window  Megatron token files, `window=2048`: places are computed, so there is no index
    shared  FFRecord files, `index_directory=`: one file has the places of all records, every process maps it
    own     FFRecord files: each process has the places of the files that it reads, which a shuffle makes all of them

Of each way: seconds until a data set is open, until the first batch (256 random records) is located, and for each
further one, in the first process, which makes the index, and in the others, which find it there and locate the same
batches; the memory that each process has to itself at the end (anonymous pages), and the file that all of them map.
Records are located, not read: reading is what `shards.py` measures. `own` takes 12 bytes a record in each process.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from luciola.plugins.dataset import FFRecordWriter, Order, TokenWriter, open_records
from luciola.plugins.dataset.tokens import HEAD, MAGIC, VERSION

BATCH = 256
WINDOW = 2048  # tokens of a sample
RECORD_BYTES = 64
SEQUENCE_TOKENS = 1 << 30  # of the token files: a document is shorter than 2³¹ tokens
WAYS = ("window", "shared", "own")


class Figures(NamedTuple):
    """Of one process."""

    open_s: float
    first_s: float
    batch_s: float
    memory_mib: float
    mapped_mib: float


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--records", type=int, default=10**9)
    parser.add_argument("--files", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=3)
    parser.add_argument("--batches", type=int, default=3)
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=["window", "shared"])
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--locate", nargs=2, metavar=("WAY", "DIR"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.locate:
        print(json.dumps(located(*options.locate, options.batches)))
        return
    if not options.json:
        print("| way | process | s to open | s to the first batch | ms a batch | own MiB | mapped MiB |")
        print("|---|---|---:|---:|---:|---:|---:|")
    for way in options.ways:
        for process, figures in enumerate(measured(way, options)):
            name = "first" if process == 0 else f"{process + 1}."
            if options.json:
                print(json.dumps({"way": way, "process": process, **figures._asdict()}), flush=True)
            else:
                print(
                    f"| {way} | {name} | {figures.open_s:.2f} | {figures.first_s:.2f} | {1e3 * figures.batch_s:.1f} "
                    f"| {figures.memory_mib:,.0f} | {figures.mapped_mib:,.0f} |",
                    flush=True,
                )


def measured(way: str, options: argparse.Namespace) -> Iterator[Figures]:
    """One process after the other opens the data set."""
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        each = options.records // options.files
        write = write_tokens if way == "window" else write_records
        write(Path(root, "data"), each, options.files)
        for _ in range(options.processes):
            done = subprocess.run(
                [sys.executable, __file__, "--locate", way, root, "--batches", str(options.batches)],
                stdout=subprocess.PIPE, text=True, check=True,
            )  # fmt: skip
            yield Figures(*json.loads(done.stdout))


def write_records(directory: Path, each: int, files: int) -> None:
    """A header with the places of records of one length; the records are a hole. All names are of this file."""
    directory.mkdir()
    first = directory / "000000.ffr"
    with FFRecordWriter(str(first), 1) as writer:
        writer.write(bytes(RECORD_BYTES))
    from luciola.plugins.dataset.ffrecord import header

    start = first.read_bytes()[4:12]
    assert start == (1).to_bytes(8, "little"), "the format has the number of records there"
    with first.open("r+b") as file:
        file.write(header([0] * each, [RECORD_BYTES] * each))
        file.truncate(12 + 12 * each + RECORD_BYTES * each)
    for number in range(1, files):
        os.link(first, directory / f"{number:06}.ffr")


def write_tokens(directory: Path, each: int, files: int) -> None:
    """An index of documents, and tokens that are a hole. All names are of one pair of files."""
    directory.mkdir()
    tokens = each * WINDOW + 1
    lengths = np.full(-(-tokens // SEQUENCE_TOKENS), SEQUENCE_TOKENS, "<i4")
    lengths[-1] = tokens - (len(lengths) - 1) * SEQUENCE_TOKENS
    offsets = 2 * (np.cumsum(lengths, dtype="<i8") - lengths)
    documents = np.arange(len(lengths) + 1, dtype="<i8")
    first = directory / "000000"
    with TokenWriter(str(first), dtype="uint16") as writer:
        writer.write([0])
    code = first.with_suffix(".idx").read_bytes()[len(MAGIC) + 8]
    head = HEAD.pack(MAGIC, VERSION, code, len(lengths), len(documents))
    first.with_suffix(".idx").write_bytes(head + lengths.tobytes() + offsets.tobytes() + documents.tobytes())
    os.truncate(first.with_suffix(".bin"), 2 * tokens)
    for number in range(1, files):
        for suffix in (".idx", ".bin"):
            os.link(first.with_suffix(suffix), directory / f"{number:06}{suffix}")


def located(way: str, root: str, batches: int) -> Figures:
    """Open the data set, and locate the records of some batches of a shuffle."""
    options: dict[str, Any] = {
        "window": {"window": WINDOW},
        "shared": {"index_directory": f"{root}/index"},
        "own": {},
    }[way]
    before = anonymous()
    begun = time.perf_counter()
    records = open_records(f"{root}/data", **options)
    opened = time.perf_counter()
    order = Order([len(records)], seed=7)
    times = []
    for number in range(1 + batches):
        samples = order.indices(0, np.arange(number * BATCH, (number + 1) * BATCH))
        extents = records.locate(samples)
        assert (extents.lengths == extents.lengths[0]).all(), "records of one length"
        times.append(time.perf_counter())
    mapped = sum(path.stat().st_size for path in Path(root).glob("index/*.lushidx"))
    return Figures(
        opened - begun,
        times[0] - begun,
        (times[-1] - times[0]) / max(1, batches),
        (anonymous() - before) / 2**20,
        mapped / 2**20,
    )


def anonymous() -> int:
    """Bytes of this process that are pages of no file."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("RssAnon"))


if __name__ == "__main__":
    main()
