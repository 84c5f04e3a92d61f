"""Saving and loading a checkpoint with torch.distributed.checkpoint: over the ring, through mounts, on the local disk.

usage: python benchmarks/training/checkpoint.py [--size-mib 2048] [--rounds 3] [--systems NAME ...] [--directory DIR]

One process, one storage node, one copy, in one run:

    ring                 `luciola.plugins.checkpoint` on luciola://; "unverified": loading without comparing checksums
    ours on the mount,   the same on a plain path
    ours on local
    mount, juicefs,      torch's FileSystemWriter and FileSystemReader
    local

Every way syncs what it saves. The mounts' pages are dropped before loading, the servers' page cache is warm. What is
loaded is compared with what was saved. The first table shows medians in MiB/s, and the median over rounds of the ratio
to the mount in the same round. The second one shows the second of two asynchronous saves: for how long it stops
training (torch's copy; ours keeps its memory from one save to the next), and until it is complete. Processor seconds
are those of this process and of all services together: what they say holds on a busy machine too.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

from luciola.client import close_locations
from luciola.plugins.checkpoint import Checkpoints, Reader, Writer

sys.path.insert(0, str(Path(__file__).parents[1]))
from peers import Meter, juicefs, local, luciola

TENSOR_MIB = 16
State = dict[str, torch.Tensor]
Figures = dict[str, dict[str, list[float]]]
"""MiB/s of all rounds, by way and "save" or "load"."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    count = max(1, options.size_mib // TENSOR_MIB)
    state = {
        f"layers.{index}.weight": torch.randn((TENSOR_MIB << 20) // 4096, 1024) for index in range(count)
    }
    target = {name: torch.zeros_like(tensor) for name, tensor in state.items()}
    figures: Figures = {}
    for number in range(options.rounds):
        for system in options.systems:
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as root,
                SYSTEMS[system](Path(root)) as ways,
            ):
                for way, (writer, reader, forget) in ways.items():
                    print(f"round {number + 1}: {way}", file=sys.stderr, flush=True)
                    meter = Meter(root)
                    measure(
                        way, figures, state, target, writer=writer, reader=reader, forget=forget, meter=meter
                    )
                    if writer is not None:
                        measure_async(figures[way], state, writer().checkpoint_id, way=way)
        if number + 1 < options.rounds:
            print(f"after round {number + 1}:")
        print_figures(figures)
        print_async(figures)


Way = tuple[Callable[[], Any] | None, Callable[[], Any], Callable[[], None]]
"""A writer (None: load what the way before has saved), a reader, and what drops the client's pages."""


@contextmanager
def luciola_ways(root: Path) -> Iterator[dict[str, Way]]:
    with luciola(root, storage_nodes=1, replicas=1) as mountpoint:
        url = f"luciola://{root}/luciola!/ring"
        try:
            yield {
                "ring": (lambda: Writer(url), lambda: Reader(url), nothing),
                "ring, unverified": (None, lambda: Reader(url, verify=False), nothing),
                "mount": torch_way(mountpoint),
                "ours on the mount": our_way(mountpoint),
            }
        finally:
            close_locations()


@contextmanager
def juicefs_ways(root: Path) -> Iterator[dict[str, Way]]:
    with juicefs(root) as mountpoint:
        yield {"juicefs": torch_way(mountpoint)}


@contextmanager
def local_ways(root: Path) -> Iterator[dict[str, Way]]:
    with local(root) as directory:
        yield {
            "local": (*torch_way(directory)[:2], nothing),
            "ours on local": (*our_way(directory)[:2], nothing),
        }


SYSTEMS: dict[str, Any] = {"luciola": luciola_ways, "juicefs": juicefs_ways, "local": local_ways}


def torch_way(directory: Path) -> Way:
    place = directory / "checkpoint"
    return (
        lambda: dcp.FileSystemWriter(place),
        lambda: dcp.FileSystemReader(place),
        lambda: forget_pages(place),
    )


def our_way(directory: Path) -> Way:
    place = directory / "ours-checkpoint"
    return (lambda: Writer(place), lambda: Reader(place), lambda: forget_pages(place))


def nothing() -> None:
    """The native client keeps no pages, and the local disk's stay, as the servers' do."""


def forget_pages(place: Path) -> None:
    for path in place.iterdir():
        file = os.open(path, os.O_RDONLY)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(file)


def measure(
    way: str,
    figures: Figures,
    state: State,
    target: State,
    *,
    writer: Callable[[], Any] | None,
    reader: Callable[[], Any],
    forget: Callable[[], None],
    meter: Meter,
) -> None:
    mib = sum(tensor.nbytes for tensor in state.values()) / 2**20
    found = figures.setdefault(way, {"save": [], "load": []})
    if writer is not None:
        begin = time.perf_counter()
        dcp.save(state, storage_writer=writer())
        found["save"].append(mib / (time.perf_counter() - begin))
        found.setdefault("save, processor", []).append(meter.seconds() / mib * 1024)
    forget()
    for tensor in target.values():
        tensor.zero_()
    meter.seconds()
    begin = time.perf_counter()
    dcp.load(target, storage_reader=reader())
    found["load"].append(mib / (time.perf_counter() - begin))
    found.setdefault("load, processor", []).append(meter.seconds() / mib * 1024)
    assert all(torch.equal(target[name], tensor) for name, tensor in state.items()), "other bytes came back"


def measure_async(found: dict[str, list[float]], state: State, place: str, *, way: str) -> None:
    """Two asynchronous saves; the figures are those of the second, in seconds."""
    with Checkpoints(f"{place}-async") as checkpoints:
        for turn in range(2):
            begin = time.perf_counter()
            if way == "ring" or way.startswith("ours"):
                future: Any = checkpoints.async_save(turn, state)
            else:
                future = dcp.async_save(state, storage_writer=dcp.FileSystemWriter(f"{place}-async-{turn}"))
            stopped = time.perf_counter() - begin
            future.result()
            complete = time.perf_counter() - begin
    found.setdefault("stopped", []).append(stopped)
    found.setdefault("complete", []).append(complete)


def print_async(figures: Figures) -> None:
    print("\n| way | training stops, s | saved after, s |")
    print("|---|---:|---:|")
    for way, found in figures.items():
        if found.get("stopped"):
            cells = [f"{statistics.median(found[name]):.2f}" for name in ("stopped", "complete")]
            print(f"| {way} | " + " | ".join(cells) + " |")


def print_figures(figures: Figures) -> None:
    print(
        "| way | save, MiB/s | load, MiB/s | save, times the mount | load, times the mount "
        "| processor s/GiB, save | load |"
    )
    print("|---|---:|---:|---:|---:|---:|---:|")
    for way, found in figures.items():
        cells = [f"{statistics.median(found[work]):,.0f}" if found[work] else "" for work in ("save", "load")]
        for work in ("save", "load"):
            mount = figures.get("mount", {}).get(work, [])
            ratios = [mine / theirs for mine, theirs in zip(found[work], mount, strict=False)]
            cells.append(f"{statistics.median(ratios):.2f}" if ratios else "")
        cells.extend(
            f"{statistics.median(found[work]):.2f}" if work in found else ""
            for work in ("save, processor", "load, processor")
        )
        print(f"| {way} | " + " | ".join(cells) + " |")


if __name__ == "__main__":
    main()
