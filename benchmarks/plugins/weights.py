"""Loading weights: `luciola.plugins.weights` beside the safetensors library, on local files, a mount and a cluster.

usage: python benchmarks/plugins/weights.py [--size-mib 512] [--rounds 3] [--directory DIR]

One machine, one storage node, one copy. The servers' page cache is warm; the mount's is dropped before each read, so
that it asks the cluster as the native client does. Targets are in memory that was touched before. The table shows
medians in MiB/s of the bytes that were wanted. Every result is compared with what was written. "Shared" are tensors
that storage nodes fill themselves (`allocate`): for the first time, when every page costs the node a fault, and again.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors import safe_open

from luciola.client import Buffer, close_locations
from luciola.plugins.weights import Checkpoint, Slice, save

ROWS = COLUMNS = 4096
TENSOR_MIB = ROWS * COLUMNS * 2 >> 20
SHARDS = 8  # ranks that share a tensor
CASES = {
    "whole checkpoint": (slice(None), slice(None)),
    "1/8 of the rows": (slice(ROWS // SHARDS, 2 * ROWS // SHARDS), slice(None)),
    "1/8 of the columns": (slice(None), slice(COLUMNS // SHARDS, 2 * COLUMNS // SHARDS)),
}
Targets = dict[str, torch.Tensor]
Index = tuple[slice, slice]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    options = parser.parse_args()
    torch.set_num_threads(1)
    tensors = {
        f"layers.{layer}.weight": torch.randn(ROWS, COLUMNS, dtype=torch.bfloat16)
        for layer in range(max(1, options.size_mib // TENSOR_MIB))
    }
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        data, mountpoint = Path(root) / "data", Path(root) / "mount"
        command = (sys.executable, "-m", "luciola")
        shape = ("--storage-nodes", "1", "--replicas", "1", "--mount", str(mountpoint))
        subprocess.run((*command, "up", "--data", str(data), *shape, "--detach"), check=True)
        try:
            measure(
                tensors,
                {"local": f"{root}/m", "native": f"luciola://{data}!/m", "mount": f"{mountpoint}/m"},
                options,
            )
        finally:
            close_locations()
            subprocess.run((*command, "down", "--data", str(data)), check=True)


def measure(tensors: Targets, places: dict[str, str], options: argparse.Namespace) -> None:
    for name in ("local", "native"):
        save(tensors, f"{places[name]}.safetensors")
    ways = {
        "safetensors, local": lambda index: with_library(places["local"], tensors, index),
        "weights, local": lambda index: with_weights(places["local"], tensors, index),
        "safetensors, mount": lambda index: with_library(places["mount"], tensors, index),
        "weights, mount": lambda index: with_weights(places["mount"], tensors, index),
        "weights, native": lambda index: with_weights(places["native"], tensors, index),
        "weights, native, verified": lambda index: with_weights(
            places["native"], tensors, index, verify=True
        ),
        "weights, native, shared, first": lambda index: into_shared(
            places["native"], tensors, index, fills=1
        ),
        "weights, native, shared, again": lambda index: into_shared(
            places["native"], tensors, index, fills=2
        ),
    }
    print("| way |" + "".join(f" {case} |" for case in CASES))
    print("|---|" + "---:|" * len(CASES))
    figures: dict[str, dict[str, list[float]]] = {way: {case: [] for case in CASES} for way in ways}
    for _ in range(options.rounds):
        for way, load in ways.items():
            for case, index in CASES.items():
                if "shared" in way and case != "whole checkpoint":
                    continue
                drop_cache(places["mount"])
                seconds = load(index)
                part = next(iter(tensors.values()))[index].nbytes * len(tensors)
                figures[way][case].append(part / seconds / (1 << 20))
    for way, cases in figures.items():
        cells = [f"{statistics.median(values):,.0f}" if values else "-" for values in cases.values()]
        print(f"| {way} | " + " | ".join(cells) + " |")


def with_library(place: str, tensors: Targets, index: Index) -> float:
    targets = {name: torch.zeros_like(tensor[index].contiguous()) for name, tensor in tensors.items()}
    start = time.perf_counter()
    with safe_open(f"{place}.safetensors", "pt") as file:
        for name, target in targets.items():
            target.copy_(file.get_slice(name)[index])
    seconds = time.perf_counter() - start
    require(targets, tensors, index)
    return seconds


def with_weights(place: str, tensors: Targets, index: Index, *, verify: bool = False) -> float:
    targets = {name: torch.zeros_like(tensor[index].contiguous()) for name, tensor in tensors.items()}
    start = time.perf_counter()
    checkpoint = Checkpoint.open(f"{place}.safetensors", verify=verify)
    checkpoint.read_slices([Slice(name, target, index) for name, target in targets.items()])
    seconds = time.perf_counter() - start
    require(targets, tensors, index)
    return seconds


def into_shared(place: str, tensors: Targets, index: Index, *, fills: int) -> float:
    checkpoint = Checkpoint.open(f"{place}.safetensors", verify=False)
    memory = torch.frombuffer(Buffer(sum(tensor.nbytes for tensor in tensors.values())), dtype=torch.uint8)
    memory.zero_()
    parts = memory.split([tensor.nbytes for tensor in tensors.values()])
    targets = {
        name: part.view(tensor.dtype).view(tensor.shape)
        for (name, tensor), part in zip(tensors.items(), parts, strict=True)
    }
    for _ in range(fills):
        start = time.perf_counter()
        checkpoint.read_into(targets)
        seconds = time.perf_counter() - start
    require(targets, tensors, index)
    return seconds


def require(loaded: Targets, tensors: Targets, index: Index) -> None:
    assert all(torch.equal(loaded[name], tensor[index]) for name, tensor in tensors.items()), (
        "other bytes came back"
    )


def drop_cache(place: str) -> None:
    descriptor = os.open(f"{place}.safetensors", os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


if __name__ == "__main__":
    main()
