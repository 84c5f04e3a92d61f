"""FlashMLA: attention kernels against the roofline of a GPU, and files of KV pages against plain reads.

usage: python benchmarks/plugins/flashmla.py [--pages 64] [--layers 16] [--rounds 5] [--directory DIR] [--plot FILE]

With a CUDA device: dense and sparse decoding and sparse prefill in the shapes of FlashMLA's own benchmark, TFLOP/s,
GB/s, and the share of what the device's memory and tensor cores allow. Without one it says so. In either case:
`PagedKVFile.save` and `load` on a local directory, and on a cluster of one storage node on this machine, beside preadv
of the same bytes with as many threads, and decoding by the CPU reference. Medians of the rounds; files lie in the page
cache. Every loaded page is verified by its checksums.
"""

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch

from luciola.client import Buffer, close_locations
from luciola.client.local import THREADS, read_fully
from luciola.plugins.flashmla import (
    PageCache,
    PagedKVFile,
    PageLayout,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    layer_for,
    quantize_v32,
)

Row = tuple[str, str, str, str, str]


@dataclass(frozen=True)
class Card:
    """What a device can do at best: bytes/s of memory, and bfloat16 operations/s."""

    memory: float
    compute: float


# Data sheets, dense. Another card is measured against the first whose name it contains, or shows no share.
CARDS = {"H200": Card(4.8e12, 989e12), "H100": Card(3.35e12, 989e12), "H800": Card(3.35e12, 989e12)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=64)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--plot", type=Path, help="write a chart of the bandwidths there")
    options = parser.parse_args()
    if torch.cuda.is_available():
        name = torch.cuda.get_device_name()
        print(f"{name}: random inputs, medians of {options.rounds} rounds of 20 calls")
        table(("operator", "µs", "TFLOP/s", "GB/s", "of the limit"), list(on_gpu(options.rounds)))
    else:
        print("no CUDA device: the kernels were not measured; what follows is the CPU reference")
    table(("decoding on the CPU", "ms", "", "", ""), list(on_cpu(options.rounds)))
    rows = list(files(options))
    print(f"{options.pages} pages of {options.layers} layers, {rows[0][2]} MiB")
    table(("KV pages", "MiB/s", "", "", ""), [(name, f"{rate:.0f}", "", "", "") for name, rate, _ in rows])
    if options.plot:
        plot(options.plot, rows)


def table(header: Row, rows: list[Row]) -> None:
    widths = [max(len(row[column]) for row in (header, *rows)) for column in range(len(header))]
    for row in (header, *rows):
        first, *rest = (cell.ljust(width) if column == 0 else cell.rjust(width)
                        for column, (cell, width) in enumerate(zip(row, widths, strict=True)))  # fmt: skip
        print("  ".join((first, *rest)).rstrip())
    print()


# Operators.


def dense_case(
    b: int, h_q: int, s_q: int, s_k: int, device: str
) -> tuple[Callable[[], object], float, float]:
    """A call, its operations, and the bytes it must move."""
    pages = -(-s_k // 64)
    q = torch.randn(b, s_q, h_q, 576, device=device).bfloat16()
    cache = torch.randn(b * pages, 64, 1, 576, device=device, dtype=torch.bfloat16)
    blocks = torch.randperm(b * pages, device=device).to(torch.int32).view(b, pages)
    lengths = torch.full((b,), s_k, dtype=torch.int32, device=device)
    schedule, _ = get_mla_metadata()
    operations = 2.0 * b * s_q * h_q * s_k * (576 + 512)
    moved = b * s_k * 1152.0 + b * s_q * h_q * 2176.0
    return (
        lambda: flash_mla_with_kvcache(q, cache, blocks, lengths, 512, schedule, causal=True),
        operations,
        moved,
    )


def sparse_case(b: int, h_q: int, s_q: int, s_k: int, topk: int) -> tuple[Callable[[], object], float, float]:
    pages = b * s_k // 64
    q = torch.randn(b, s_q, h_q, 576, device="cuda").bfloat16()
    cache = quantize_v32(torch.randn(pages, 64, 1, 576, device="cuda", dtype=torch.bfloat16))
    indices = torch.randint(0, pages * 64, (b, s_q, topk), device="cuda", dtype=torch.int32)
    schedule, _ = get_mla_metadata()
    operations = 2.0 * b * s_q * h_q * topk * (576 + 512)
    moved = b * s_q * (topk * 656.0 + h_q * 2176.0)
    return (
        lambda: flash_mla_with_kvcache(
            q, cache, None, None, 512, schedule, is_fp8_kvcache=True, indices=indices
        ),
        operations,
        moved,
    )


def prefill_case(s_q: int, h_q: int, s_kv: int, topk: int) -> tuple[Callable[[], object], float, float]:
    q = torch.randn(s_q, h_q, 576, device="cuda").bfloat16()
    kv = torch.randn(s_kv, 1, 576, device="cuda").bfloat16()
    indices = torch.randint(0, s_kv, (s_q, 1, topk), device="cuda", dtype=torch.int32)
    operations = 2.0 * s_q * h_q * topk * (576 + 512)
    return (
        lambda: flash_mla_sparse_fwd(q, kv, indices, 576**-0.5),
        operations,
        s_kv * 1152.0 + s_q * h_q * 2176.0,
    )


def on_gpu(rounds: int) -> Iterator[Row]:
    cases = {
        "dense b128 h16 s_k4096": lambda: dense_case(128, 16, 1, 4096, "cuda"),
        "dense b128 h64 s_k4096": lambda: dense_case(128, 64, 1, 4096, "cuda"),
        "dense b128 h128 s_k8192": lambda: dense_case(128, 128, 1, 8192, "cuda"),
        "dense b128 h128 s_q2 s_k8192": lambda: dense_case(128, 128, 2, 8192, "cuda"),
        "sparse b128 h128 s_q2 topk2048": lambda: sparse_case(128, 128, 2, 8192, 2048),
        "prefill s_q4096 h128 topk2048": lambda: prefill_case(4096, 128, 8192, 2048),
    }
    name = torch.cuda.get_device_name()
    card = next((card for part, card in CARDS.items() if part in name), None)
    for label, make in cases.items():
        call, operations, moved = make()
        call()
        seconds = statistics.median(gpu_seconds(call) for _ in range(rounds))
        share = "-"
        if card is not None:
            limit = max(operations / card.compute, moved / card.memory)
            share = f"{limit / seconds:.0%}"
        yield (
            label,
            f"{seconds * 1e6:.0f}",
            f"{operations / seconds / 1e12:.0f}",
            f"{moved / seconds / 1e9:.0f}",
            share,
        )


def gpu_seconds(call: Callable[[], object], count: int = 20) -> float:
    """Seconds of one call. The second-level cache is overwritten before each."""
    flush = torch.empty(256 << 20, dtype=torch.uint8, device="cuda")
    total = 0.0
    for _ in range(count):
        flush.zero_()
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        call()
        end.record()
        end.synchronize()
        total += begin.elapsed_time(end) / 1000
    return total / count


def on_cpu(rounds: int) -> Iterator[Row]:
    for b, h_q, s_k in ((1, 16, 4096), (4, 16, 1024), (1, 128, 1024)):
        call, _, _ = dense_case(b, h_q, 1, s_k, "cpu")
        assert layer_for(torch.zeros(1)) == "reference", "start without TRITON_INTERPRET"
        call()
        seconds = statistics.median(elapsed(call) for _ in range(rounds))
        yield f"dense b{b} h{h_q} s_k{s_k}", f"{seconds * 1e3:.1f}", "", "", ""


def elapsed(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


# Files.


def files(options: argparse.Namespace) -> Iterator[tuple[str, float, str]]:
    """(what, MiB/s, MiB of all pages)."""
    layout = PageLayout(layers=options.layers)
    size = options.pages * layout.record_bytes / (1 << 20)
    cache = PageCache.allocate(layout, options.pages)
    for layer in cache.layers:
        layer.copy_(torch.randn(layer.shape))
    with tempfile.TemporaryDirectory(dir=options.directory) as root:
        local = f"{root}/local.pages"
        for way, location in (("local", local), ("cluster", f"luciola://{root}/data!/kv.pages")):
            with cluster(root, wanted=way == "cluster"):
                save, load, again = page_file(location, layout, cache, options)
            for name, seconds in (("save", save), ("load, memory new", load), ("load, again", again)):
                yield f"{name}, {way}", size / seconds, f"{size:.0f}"
            if way == "local":
                for name, seconds in zip(
                    ("memory new", "again"), plain_reads(local, layout, options), strict=True
                ):
                    yield f"preadv, {THREADS} threads, {name}", size / seconds, f"{size:.0f}"


def page_file(
    location: str, layout: PageLayout, cache: PageCache, options: argparse.Namespace
) -> tuple[float, float, float]:
    saves, loads, again = [], [], []
    blocks = range(options.pages)
    with PagedKVFile.create(location, layout, options.pages, model="benchmark") as file:
        for round_ in range(options.rounds):
            names = file.names([round_] * (64 * options.pages))
            saves.append(elapsed(lambda names=names: file.save(names, blocks, cache).wait()))
            pages = file.match([round_] * (64 * options.pages))
            other = PageCache.allocate(layout, options.pages)
            loads.append(elapsed(lambda pages=pages, other=other: file.load(pages, blocks, other).wait()))
            again.append(elapsed(lambda pages=pages, other=other: file.load(pages, blocks, other).wait()))
            assert all(map(torch.equal, cache.layers, other.layers)), "every bit comes back"
    return statistics.median(saves), statistics.median(loads), statistics.median(again)


def plain_reads(path: str, layout: PageLayout, options: argparse.Namespace) -> tuple[float, float]:
    """The same records by preadv, without checksums, into memory that is new and that was used."""
    size = layout.record_bytes
    with PagedKVFile.open(path) as file:
        begin = file.header.records_offset
    descriptor = os.open(path, os.O_RDONLY)
    first, again = [], []
    with ThreadPoolExecutor(THREADS) as pool:
        for _ in range(options.rounds):
            memory = memoryview(Buffer(options.pages * size))

            def read(page: int, memory: memoryview = memory) -> int:
                return read_fully(descriptor, memory[page * size : (page + 1) * size], begin + page * size)

            for times in (first, again):
                times.append(elapsed(lambda read=read: sum(pool.map(read, range(options.pages)))))
    os.close(descriptor)
    return statistics.median(first), statistics.median(again)


@contextmanager
def cluster(root: str, *, wanted: bool) -> Iterator[None]:
    if not wanted:
        yield
        return
    command = (sys.executable, "-m", "luciola.cli")
    shape = ("--storage-nodes", "1", "--replicas", "1", "--detach")
    subprocess.run((*command, "up", "--data", f"{root}/data", *shape), check=True, stdout=subprocess.DEVNULL)
    try:
        yield
    finally:
        close_locations()
        subprocess.run((*command, "down", "--data", f"{root}/data"), check=True, stdout=subprocess.DEVNULL)


def plot(path: Path, rows: list[tuple[str, float, str]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 3))
    axes.barh([name for name, *_ in rows][::-1], [rate for _, rate, _ in rows][::-1])
    axes.set_xlabel("MiB/s")
    figure.tight_layout()
    figure.savefig(path)


if __name__ == "__main__":
    main()
