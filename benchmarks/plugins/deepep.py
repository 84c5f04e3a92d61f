"""DeepEP: bytes a second beside a plain memory copy between the same processes, and kernels on a GPU.

usage: python benchmarks/plugins/deepep.py [--ranks 2] [--tokens 512] [--hidden 2048] [--experts 32] [--topk 4]
                                           [--rounds 5] [--transport auto] [--lines FIRST]

Processes of this machine: each round, all ranks together copy the payload of one dispatch into the next rank's memory,
then dispatch and combine in normal and in low-latency mode. A payload is what a mode sends: a token once for each rank
that has one of its experts, or once for each expert. The best of the rounds, each that of its slowest rank: on a
machine that does other things too, the others show those. CPU is the processor time of the rank that took most of
it, in its best round: what a call costs, whatever else runs; and so many copies of the payload cost as much.

With a CUDA device there are its kernels too: all ranks of low-latency mode in one process on one card, beside device
copies of the same bytes. `--lines`: those alone, as JSON, for `gpu.py`.
"""

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from measuring import Case, Work, measure, print_figures, print_lines
from torch import multiprocessing

from luciola.cli.output import print_table
from luciola.plugins.deepep import Buffer
from luciola.plugins.deepep.low_latency.launch import KernelOps
from luciola.plugins.deepep.low_latency.layout import Layout, Received

ADDRESS: Final = "127.0.0.1"
NORMAL_BYTES: Final = 64 << 20
HEADER: Final = ("WHAT", "PAYLOAD, MiB", "ms", "GiB/s", "OF THE COPY", "CPU, ms", "CPU, COPIES")


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    ranks: int = 2
    tokens: int = 512
    hidden: int = 2048
    experts: int = 32
    topk: int = 4
    rounds: int = 5
    transport: str = "auto"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    for name, kind in (("ranks", int), ("tokens", int), ("hidden", int), ("experts", int), ("topk", int),
                       ("rounds", int), ("transport", str)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, default=getattr(Options, name))
    parser.add_argument(
        "--lines", type=int, metavar="FIRST", help="cases of a GPU from that number on, as JSON"
    )
    given = vars(parser.parse_args())
    first = given.pop("lines")
    if first is not None:
        print_lines(cases(), first)
        return
    options = Options(**given)
    if options.experts % options.ranks or not 0 < options.topk <= options.experts:
        parser.error("--experts must be a multiple of --ranks, and --topk at most --experts")
    store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
    multiprocessing.set_forkserver_preload(["torch", "luciola.plugins.deepep.api.buffer"])
    multiprocessing.start_processes(
        run_rank, (store.port, options), nprocs=options.ranks, start_method="forkserver"
    )
    if torch.cuda.is_available():
        print(f"\n{torch.cuda.get_device_name()}: all ranks on this card")
        print_figures(line for case in cases() for line in measure(case))
    else:
        print("\nThere is no CUDA device here: the kernels were not measured.")


# ---- processes of this machine


def run_rank(rank: int, port: int, options: Options) -> None:
    """One process; rank 0 prints."""
    torch.set_num_threads(1)
    store = dist.TCPStore(ADDRESS, port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=options.ranks)
    hint = Buffer.get_low_latency_rdma_size_hint(
        options.tokens, options.hidden, options.ranks, options.experts
    )
    buffer = Buffer(
        dist.group.WORLD, NORMAL_BYTES, hint, low_latency_mode=True, explicitly_destroy=True,
        transport=options.transport, device="cpu",
    )  # fmt: skip
    try:
        rows = measured(buffer, options)
        if rank == 0:
            sizes = f"{options.tokens} tokens of {options.hidden}, top {options.topk} of {options.experts}"
            print(f"{options.ranks} processes over {buffer.transport}, {sizes}")
            print_table(HEADER, rows, right=(1, 2, 3, 4, 5, 6))
    finally:
        buffer.destroy()
        dist.destroy_process_group()


def measured(buffer: Buffer, options: Options) -> list[tuple[str, ...]]:
    """Rows of the table; all ranks together."""
    generator = torch.Generator().manual_seed(buffer.rank)
    x = torch.randn(options.tokens, options.hidden, generator=generator).to(torch.bfloat16)
    topk = torch.rand(options.tokens, options.experts, generator=generator).topk(options.topk, -1)[1]
    weights = torch.rand(options.tokens, options.topk, generator=generator)
    per_rank, _, per_expert, member, _ = buffer.get_dispatch_layout(topk, options.experts)
    token_bytes = 2 * options.hidden
    once, often = int(member.sum()) * token_bytes, options.tokens * options.topk * token_bytes
    kept: dict[str, Any] = {}

    def dispatch() -> None:
        kept["rows"], *_, kept["handle"], _ = buffer.dispatch(
            x, num_tokens_per_rank=per_rank, is_token_in_rank=member,
            num_tokens_per_expert=per_expert, topk_idx=topk, topk_weights=weights,
        )  # fmt: skip

    def send(*, fp8: bool) -> None:
        kept["low"], _, kept["low handle"], _, _ = buffer.low_latency_dispatch(
            x, topk, options.tokens, options.experts, use_fp8=fp8
        )

    def low_combine(*, logfmt: bool = False) -> None:
        buffer.low_latency_combine(kept["low"], topk, weights, kept["low handle"], use_logfmt=logfmt)

    def rate(size: int, call: Callable[[], object]) -> tuple[int, Callable[[], object]]:
        return size, call

    works = {
        "copy to the next process": rate(once, copier(buffer, once)),
        "dispatch": rate(once, dispatch),
        "combine": rate(once, lambda: buffer.combine(kept["rows"], kept["handle"])),
        "low-latency dispatch, FP8": rate(often // 2 + often // 64, lambda: send(fp8=True)),
        "low-latency dispatch, BF16": rate(often, lambda: send(fp8=False)),
        "low-latency combine": rate(often, low_combine),
        "low-latency combine, LogFMT": rate(often * 21 // 32, lambda: low_combine(logfmt=True)),
    }
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in works}
    for turn in range(options.rounds + 1):
        for name, (_, call) in works.items():
            taken = timed(call)
            if turn:  # the first one touches memory for the first time
                times[name].append(taken)
    rows, copy_rate, copy_cpu = [], 0.0, 0.0
    for name, (size, _) in works.items():
        total = torch.tensor([float(size)])
        dist.all_reduce(total)
        seconds, cpu = (min(each) for each in zip(*times[name], strict=True))
        speed = float(total) / seconds
        copy_rate, copy_cpu = copy_rate or speed, copy_cpu or cpu / float(total)
        rows.append(
            (
                name,
                f"{float(total) / 2**20:.1f}",
                f"{seconds * 1e3:.2f}",
                f"{speed / 2**30:.2f}",
                f"{speed / copy_rate:.0%}",
                f"{cpu * 1e3:.2f}",
                f"{cpu / (copy_cpu * float(total)):.1f}",
            )
        )
    return rows


def copier(buffer: Buffer, size: int) -> Callable[[], None]:
    """Copies so many bytes into the next rank's memory, as much of it at a time as fits there."""
    place = buffer.transport.buffer((buffer.rank + 1) % buffer.group_size)[:NORMAL_BYTES]
    source = torch.ones(size, dtype=torch.uint8)

    def copy() -> None:
        for start in range(0, size, NORMAL_BYTES):
            part = source[start : start + NORMAL_BYTES]
            place[: len(part)].copy_(part)

    return copy


def timed(call: Callable[[], object]) -> tuple[float, float]:
    """Seconds of the slowest rank, and processor seconds of the one that took most; all begin together."""
    dist.barrier()
    began, worked = time.perf_counter(), time.thread_time()
    call()
    took = torch.tensor([time.perf_counter() - began, time.thread_time() - worked], dtype=torch.float64)
    dist.all_reduce(took, dist.ReduceOp.MAX)
    return float(took[0]), float(took[1])


# ---- all ranks on one card


def cases() -> Iterator[Case]:
    """Low-latency mode in the sizes of the original's test, on 2, 4 and 8 ranks."""
    for ranks in (2, 4, 8):
        layout = Layout(max_tokens=128, hidden=7168, ranks=ranks, experts=288)
        shape = f"{ranks} ranks, 128 tokens of 7168, top 8 of 288"
        yield Case("low-latency dispatch FP8", shape, lambda layout=layout: dispatching(layout, fp8=True))
        yield Case("low-latency dispatch BF16", shape, lambda layout=layout: dispatching(layout, fp8=False))
        yield Case("low-latency combine", shape, lambda layout=layout: combining(layout))


class Card:
    """All ranks' memory and inputs on the current device."""

    def __init__(self, layout: Layout, topk: int = 8) -> None:
        self.layout, device = layout, "cuda"
        self.memories = [
            torch.zeros(layout.total_bytes, dtype=torch.uint8, device=device) for _ in range(layout.ranks)
        ]
        table = torch.tensor([each.data_ptr() for each in self.memories], dtype=torch.int64, device=device)
        inactive = torch.zeros(layout.ranks, dtype=torch.int32, device=device)
        stopped = torch.zeros(1, dtype=torch.int32, device=device)
        self.ops = [KernelOps(layout, rank, table, inactive, stopped) for rank in range(layout.ranks)]
        shape = (layout.max_tokens, layout.hidden)
        self.xs = [torch.randn(shape, device=device).to(torch.bfloat16) for _ in range(layout.ranks)]
        scores = (layout.max_tokens, layout.experts)
        self.topks = [torch.rand(scores, device=device).topk(topk, -1)[1] for _ in range(layout.ranks)]
        self.weights = [torch.rand(layout.max_tokens, topk, device=device) for _ in range(layout.ranks)]
        self.messages = layout.ranks * layout.max_tokens * topk

    def send(self, *, fp8: bool) -> None:
        for ops, x, topk in zip(self.ops, self.xs, self.topks, strict=True):
            ops.dispatch_send(0, x, topk, fp8=fp8, round_scale=False)

    def outputs(self, *, fp8: bool) -> list[Received]:
        return [Received.empty(self.layout, "cuda", fp8=fp8) for _ in self.ops]

    def receive(self, outputs: list[Received]) -> None:
        for ops, output in zip(self.ops, outputs, strict=True):
            ops.dispatch_receive(0, output, None)


def dispatching(layout: Layout, *, fp8: bool) -> Work:
    card = Card(layout)
    outputs = card.outputs(fp8=fp8)

    def run() -> None:
        card.send(fp8=fp8)
        card.receive(outputs)

    payload = card.messages * (layout.fp8_bytes if fp8 else layout.bf16_bytes)
    read = layout.ranks * layout.max_tokens * layout.bf16_bytes
    run()
    return Work(run, 0, read + 3 * payload, outputs[0].counts, torch_ways=copies(payload))


def combining(layout: Layout) -> Work:
    card = Card(layout)
    outputs = card.outputs(fp8=False)
    card.send(fp8=False)
    card.receive(outputs)
    results = [torch.empty_like(x) for x in card.xs]

    def run() -> None:
        for ops, output in zip(card.ops, outputs, strict=True):
            ops.combine_send(
                1, output.rows, ranges=output.ranges, source_tokens=output.source_tokens, logfmt=False
            )
        for rank, ops in enumerate(card.ops):
            ops.combine_receive(
                1, topk=card.topks[rank], weights=card.weights[rank], out=results[rank], logfmt=False
            )

    payload = card.messages * layout.bf16_bytes
    written = layout.ranks * layout.max_tokens * layout.bf16_bytes
    return Work(run, 0, 3 * payload + written, results[0], torch_ways=copies(payload))


def copies(payload: int) -> dict[str, Callable[[], object]]:
    """The payload out and in again, as every message goes."""
    source, middle, target = (torch.empty(payload, dtype=torch.uint8, device="cuda") for _ in range(3))

    def twice() -> None:
        middle.copy_(source)
        target.copy_(middle)

    return {"two device copies": twice}


if __name__ == "__main__":
    main()
