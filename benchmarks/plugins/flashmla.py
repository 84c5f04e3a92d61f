"""FlashMLA: attention kernels against the roofline of a GPU, and files of KV pages against plain reads.

usage: python benchmarks/plugins/flashmla.py [--pages 64] [--layers 16] [--rounds 5] [--directory DIR] [--plot FILE]

With a CUDA device: dense and sparse decoding and prefill in the shapes of FlashMLA's own benchmark, in every layer that
has them, TFLOP/s, GB/s, the share of what the device's memory and tensor cores allow, and torch's best way over
ours; a failed case is reported, and the others still run. Without one it says so. In either case:
`PagedKVFile.save` and `load` on a local directory, and on a cluster of one storage node on this machine, beside preadv
of the same bytes with as many threads, and decoding by the CPU reference. Medians of the rounds; files are in the page
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
from pathlib import Path

import torch
from measuring import Case, Work, measure, print_figures, print_lines

from luciola.client import Buffer, close_locations
from luciola.client.local_ring import THREADS, read_fully
from luciola.plugins.flashmla import (
    PageCache,
    PagedKVFile,
    PageLayout,
    flash_attn_varlen_func,
    flash_mla_sparse_fwd,
    flash_mla_with_kvcache,
    get_mla_metadata,
    layer_for,
    quantize_v32,
)

Row = tuple[str, str, str, str, str]
GATHERED = 256  # queries: 604 MB of rows at topk 2048


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--pages", type=int, default=64)
    parser.add_argument("--layers", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--plot", type=Path, help="write a chart of the bandwidths there")
    parser.add_argument(
        "--lines", type=int, metavar="FIRST", help="cases of a GPU from that number on, as JSON"
    )
    options = parser.parse_args()
    if options.lines is not None:
        print_lines(cases(), options.lines)
        return
    if torch.cuda.is_available():
        print(f"{torch.cuda.get_device_name()}: random inputs")
        print_figures(line for case in cases() for line in measure(case))
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


def cases() -> Iterator[Case]:
    both, one = ("triton", "hopper"), ("triton",)
    for b, h_q, s_q, s_k in (
        (128, 16, 1, 4096),
        (128, 64, 1, 4096),
        (128, 128, 1, 4096),
        (128, 128, 1, 8192),
        (128, 128, 2, 8192),
        (128, 128, 1, 32768),
        (1, 128, 1, 131072),
    ):
        given = (b, h_q, s_q, s_k)
        shape = f"b {b} h {h_q} s_q {s_q} s_k {s_k}"
        yield Case(
            "dense decoding", shape, lambda given=given: dense_case(*given, "cuda"), both if h_q > 32 else one
        )
    for b, h_q, s_q, topk in ((128, 128, 2, 2048), (128, 64, 2, 2048), (128, 16, 1, 2048)):
        given = (b, h_q, s_q, 8192, topk)
        shape = f"b {b} h {h_q} s_q {s_q} topk {topk}"
        yield Case(
            "sparse decoding", shape, lambda given=given: sparse_case(*given), both if h_q > 32 else one
        )
    for h_q in (16, 128):
        shape = f"b 128 h {h_q} s_q 1 s_k 4096"
        run = lambda h_q=h_q: dense_case(128, h_q, 1, 4096, "cuda", fp8=True)  # noqa: E731
        yield Case("dense decoding, FP8", shape, run, both if h_q > 32 else one)
    for h_q in (64, 128):
        yield Case(
            "sparse prefill",
            f"s_q 4096 h {h_q} topk 2048",
            lambda h_q=h_q: prefill_case(4096, h_q, 8192, 2048),
            both,
        )
    yield Case("plain attention", "4 x 4096 h 16 d 192", lambda: varlen_case(4, 4096, 16))
    yield Case("its gradients", "4 x 4096 h 16 d 192", lambda: gradients_case(4, 4096, 16))


def dense_case(b: int, h_q: int, s_q: int, s_k: int, device: str, *, fp8: bool = False) -> Work:
    pages = -(-s_k // 64)
    q = torch.randn(b, s_q, h_q, 576, device=device).bfloat16()
    cache = torch.randn(b * pages, 64, 1, 576, device=device, dtype=torch.bfloat16)
    blocks = torch.randperm(b * pages, device=device).to(torch.int32).view(b, pages)
    lengths = torch.full((b,), s_k, dtype=torch.int32, device=device)
    schedule, _ = get_mla_metadata()
    ways = torch_attention(q, cache.view(b, pages * 64, 576)) if device == "cuda" and s_q == 1 else {}
    rows = quantize_v32(cache) if fp8 else cache
    return Work(
        lambda: flash_mla_with_kvcache(
            q, rows, blocks, lengths, 512, schedule, causal=True, is_fp8_kvcache=fp8
        ),
        2.0 * b * s_q * h_q * s_k * (576 + 512),
        b * s_k * (656.0 if fp8 else 1152.0) + b * s_q * h_q * 2176.0,
        torch_ways=ways,
    )


def torch_attention(q: torch.Tensor, rows: torch.Tensor) -> dict[str, Callable[[], object]]:
    """torch's attention over rows one after the other, which spares it the pages."""
    from torch.nn.functional import scaled_dot_product_attention

    queries = q.transpose(1, 2)
    keys = rows.unsqueeze(1)

    def products() -> torch.Tensor:
        scores = torch.matmul(q.squeeze(1), rows.mT) * 576**-0.5
        return torch.matmul(scores.softmax(-1), rows[..., :512])

    return {
        "SDPA": lambda: scaled_dot_product_attention(queries, keys, keys[..., :512], enable_gqa=True),
        "two products": products,
    }


def sparse_case(b: int, h_q: int, s_q: int, s_k: int, topk: int) -> Work:
    pages = b * s_k // 64
    q = torch.randn(b, s_q, h_q, 576, device="cuda").bfloat16()
    cache = torch.cat(
        [
            quantize_v32(torch.randn(pages // b, 64, 1, 576, device="cuda", dtype=torch.bfloat16))
            for _ in range(b)
        ]
    )
    indices = torch.randint(0, pages * 64, (b, s_q, topk), device="cuda", dtype=torch.int32)
    schedule, _ = get_mla_metadata()
    run = lambda: flash_mla_with_kvcache(  # noqa: E731
        q, cache, None, None, 512, schedule, is_fp8_kvcache=True, indices=indices
    )
    moved = b * s_q * (topk * 656.0 + h_q * 2176.0)
    return Work(run, 2.0 * b * s_q * h_q * topk * (576 + 512), moved)


def prefill_case(s_q: int, h_q: int, s_kv: int, topk: int) -> Work:
    q = torch.randn(s_q, h_q, 576, device="cuda").bfloat16()
    kv = torch.randn(s_kv, 1, 576, device="cuda").bfloat16()
    indices = torch.randint(0, s_kv, (s_q, 1, topk), device="cuda", dtype=torch.int32)
    moved = s_kv * 1152.0 + s_q * h_q * 2176.0
    run = lambda: flash_mla_sparse_fwd(q, kv, indices, 576**-0.5)  # noqa: E731
    ways = torch_sparse_prefill(q, kv, indices, 576**-0.5)
    return Work(run, 2.0 * s_q * h_q * topk * (576 + 512), moved, torch_ways=ways)


def torch_sparse_prefill(
    q: torch.Tensor, kv: torch.Tensor, indices: torch.Tensor, scale: float
) -> dict[str, Callable[[], torch.Tensor]]:
    """torch's attention over gathered rows, some queries at a time; the results are `flash_mla_sparse_fwd`'s out.

    Each query is a sequence whose heads are the queries. Masked: indices outside the rows.
    """
    from torch.nn.functional import scaled_dot_product_attention

    def attention(queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        keys, queries = keys.unsqueeze(1), queries.unsqueeze(1)
        mask = seen[:, None, None]
        return scaled_dot_product_attention(queries, keys, keys[..., :512], mask, scale=scale).squeeze(1)

    def products(queries: torch.Tensor, keys: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
        scores = torch.matmul(queries, keys.mT).mul_(scale).masked_fill_(~seen.unsqueeze(1), -torch.inf)
        return torch.matmul(scores.softmax(-1), keys[..., :512])

    def gathered(one: Callable[..., torch.Tensor]) -> torch.Tensor:
        out = q.new_empty(*q.shape[:2], 512)
        for begin in range(0, len(q), GATHERED):
            rows = slice(begin, begin + GATHERED)
            wanted = indices[rows, 0]
            seen = (wanted >= 0) & (wanted < len(kv))
            keys = kv[:, 0][wanted.where(seen, 0).long()]  # (queries, topk, width)
            out[rows] = one(q[rows], keys, seen)
        return out

    return {
        "SDPA over gathered rows": lambda: gathered(attention),
        "two products over gathered rows": lambda: gathered(products),
    }


def varlen_case(sequences: int, tokens: int, heads: int) -> Work:
    from torch.nn.functional import scaled_dot_product_attention

    total = sequences * tokens
    q, k = (torch.randn(total, heads, 192, device="cuda").bfloat16() for _ in range(2))
    v = torch.randn(total, heads, 128, device="cuda").bfloat16()
    starts = torch.arange(sequences + 1, device="cuda", dtype=torch.int32) * tokens
    apart = [each.view(sequences, tokens, heads, -1).transpose(1, 2) for each in (q, k, v)]
    return Work(
        lambda: flash_attn_varlen_func(q, k, v, starts, starts, tokens, tokens, causal=True),
        sequences * heads * tokens * tokens * (192.0 + 128.0),
        2.0 * total * heads * (192 + 192 + 128 + 128),
        torch_ways={"SDPA": lambda: scaled_dot_product_attention(*apart, is_causal=True)},
    )


def gradients_case(sequences: int, tokens: int, heads: int) -> Work:
    """The backward pass alone: five products where the forward pass has two."""
    from torch.nn.functional import scaled_dot_product_attention

    total = sequences * tokens
    q, k = (torch.randn(total, heads, 192, device="cuda").bfloat16().requires_grad_() for _ in range(2))
    v = torch.randn(total, heads, 128, device="cuda").bfloat16().requires_grad_()
    grad = torch.randn(total, heads, 128, device="cuda").bfloat16()
    starts = torch.arange(sequences + 1, device="cuda", dtype=torch.int32) * tokens
    out, _ = flash_attn_varlen_func(q, k, v, starts, starts, tokens, tokens, causal=True)
    apart = [each.view(sequences, tokens, heads, -1).transpose(1, 2) for each in (q, k, v)]
    other = scaled_dot_product_attention(*apart, is_causal=True)
    other_grad = grad.view(sequences, tokens, heads, -1).transpose(1, 2)
    return Work(
        lambda: torch.autograd.grad(out, (q, k, v), grad, retain_graph=True),
        sequences * heads * tokens * tokens * (3 * 192.0 + 2 * 128.0),
        2.0 * total * heads * (4 * 192 + 5 * 128),
        torch_ways={"SDPA": lambda: torch.autograd.grad(other, (q, k, v), other_grad, retain_graph=True)},
    )


def on_cpu(rounds: int) -> Iterator[Row]:
    for b, h_q, s_k in ((1, 16, 4096), (4, 16, 1024), (1, 128, 1024)):
        call = dense_case(b, h_q, 1, s_k, "cpu").run
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
    command = (sys.executable, "-m", "luciola")
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
