"""A training step with DualPipe beside PyTorch's pipelines, measured on this machine.

usage: python benchmarks/plugins/dualpipe.py [--ranks 2] [--chunks 12]

The model is that of examples/train_moe_dualpipe.py with larger layers, two for each rank. As many processes as ranks
train it, one thread each, with DualPipe, DualPipeV and, of PyTorch, 1F1B and DualPipeV.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor, multiprocessing, nn
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleDualPipeV

sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))

from moe_stage import MoeConfig, MoeStage, build_stage, next_token_loss

from luciola.cli.output import print_table
from luciola.plugins.dualpipe import DualPipe, DualPipeV, Linear

CONFIG = MoeConfig(width=256, heads=8, expert_width=512, sequence=128)
MICRO_BATCH = 2
SEED = 1
ADDRESS = "127.0.0.1"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "--ranks", type=int, default=2, help="processes, an even number; one for each core at most"
    )
    parser.add_argument("--chunks", type=int, default=12, help="micro-batches of a step")
    parser.add_argument("--steps", type=int, default=7, help="steps measured of each pipeline")
    options = parser.parse_args()
    if options.ranks < 2 or options.ranks % 2 or options.chunks % 2 or options.chunks < 2 * options.ranks:
        parser.error("--ranks must be even, and --chunks even and at least twice the ranks")
    torch.set_num_threads(1)
    print(f"{processor()}, {os.cpu_count()} cores; torch {torch.__version__}, one thread a process")

    store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
    load = os.getloadavg()[0]
    measured = run_ranks(measure_steps, options.ranks, store.port, options.chunks, options.steps)[0]
    print(
        f"\nmeasured: {options.ranks} processes, {options.steps} steps; load of the machine before {load:.1f}"
    )
    print_table(
        ("PIPELINE", "MEDIAN STEP, MS", "LEAST, MS", "PROCESSOR TIME OF ALL, MS"),
        [
            (name, *(f"{1e3 * each:.0f}" for each in (median, least, used)))
            for name, (median, least, used) in measured
        ],
        right=(1, 2, 3),
    )


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(":")[1].strip() for line in file if line.startswith("model name")), "CPU")


def cut(layers: int, stages: int) -> MoeConfig:
    return replace(CONFIG, stages=stages, layers=layers // stages)


# ---- several processes


def run_ranks(work: Callable[..., object], ranks: int, port: int, *arguments: object) -> list:
    """What each rank returns, by rank."""
    context = multiprocessing.get_context("spawn")
    results = context.SimpleQueue()
    multiprocessing.start_processes(
        _rank, (work, ranks, port, arguments, results), nprocs=ranks, start_method="spawn"
    )
    found = dict(results.get() for _ in range(ranks))
    return [found[rank] for rank in range(ranks)]


def _rank(rank: int, work, ranks: int, port: int, arguments, results) -> None:
    torch.set_num_threads(1)
    base = dist.TCPStore(ADDRESS, port, is_master=False)
    dist.init_process_group("gloo", store=dist.PrefixStore(work.__name__, base), rank=rank, world_size=ranks)
    results.put((rank, work(rank, ranks, *arguments)))
    dist.barrier()
    dist.destroy_process_group()


def measure_steps(
    rank: int, ranks: int, chunks: int, steps: int
) -> list[tuple[str, tuple[float, float, float]]]:
    """(pipeline, seconds of a step), the same on all ranks."""
    source = torch.Generator().manual_seed(SEED)
    batch = torch.randint(CONFIG.vocabulary, (chunks * MICRO_BATCH, CONFIG.sequence + 1), generator=source)
    job = Job(rank, ranks, chunks, batch[:, :-1].contiguous(), batch[:, 1:].contiguous())
    return [
        (name, clock(make(job), steps))
        for name, make in (
            ("Luciola DualPipe", luciola_dualpipe),
            ("Luciola DualPipeV", luciola_dualpipev),
            ("PyTorch Schedule1F1B", torch_1f1b),
            ("PyTorch ScheduleDualPipeV", torch_dualpipev),
        )
    ]


def clock(step: Callable[[], object], steps: int) -> tuple[float, float, float]:
    """After two steps to warm up: median and least time from barrier to barrier, least processor time of all ranks."""
    times, used = [], []
    for _ in range(steps + 2):
        dist.barrier()
        start, start_used = time.perf_counter(), time.process_time()
        step()
        processor_time = torch.tensor(time.process_time() - start_used)
        dist.all_reduce(processor_time)
        times.append(time.perf_counter() - start)
        used.append(float(processor_time))
    return statistics.median(times[2:]), min(times[2:]), min(used[2:])


@dataclass(frozen=True)
class Job:
    """One rank's view of what all pipelines compute."""

    rank: int
    ranks: int
    chunks: int
    tokens: Tensor
    labels: Tensor

    def stages(self, count: int, mine: Iterable[int]) -> list[MoeStage]:
        return [build_stage(cut(2 * self.ranks, count), stage, SEED) for stage in mine]


def forget(modules: Iterable[nn.Module]) -> None:
    for module in modules:
        module.zero_grad()


def luciola_dualpipe(job: Job) -> Callable[[], object]:
    last = job.ranks - 1
    modules = job.stages(job.ranks, (job.rank, last - job.rank))
    pipeline = DualPipe(modules, gradient_scale="mean")
    ends = job.rank in (0, last)
    half = int(job.rank == last)
    inputs = [job.tokens.chunk(2)[half]] if ends else []
    labels = [job.labels.chunk(2)[1 - half]] if ends else []

    def step() -> None:
        pipeline.step(*inputs, num_chunks=job.chunks, criterion=next_token_loss, labels=labels)
        pipeline.reduce_mirror_gradients()
        forget(modules)

    return step


def luciola_dualpipev(job: Job) -> Callable[[], object]:
    modules = job.stages(2 * job.ranks, (job.rank, 2 * job.ranks - 1 - job.rank))
    pipeline = DualPipeV(modules, gradient_scale="mean")
    inputs, labels = ([job.tokens], [job.labels]) if job.rank == 0 else ([], [])

    def step() -> None:
        pipeline.step(*inputs, num_chunks=job.chunks, criterion=next_token_loss, labels=labels)
        forget(modules)

    return step


def torch_1f1b(job: Job) -> Callable[[], object]:
    (module,) = job.stages(job.ranks, (job.rank,))
    stage = PipelineStage(plain(module), job.rank, job.ranks, torch.device("cpu"))
    schedule = Schedule1F1B(stage, job.chunks, loss_fn=next_token_loss)
    inputs = [job.tokens] if job.rank == 0 else []
    target = {"target": job.labels} if job.rank == job.ranks - 1 else {}

    def step() -> None:
        schedule.step(*inputs, **target)
        module.zero_grad()

    return step


def torch_dualpipev(job: Job) -> Callable[[], object]:
    count = 2 * job.ranks
    mine = (job.rank, count - 1 - job.rank)
    modules = job.stages(count, mine)
    stages = [
        PipelineStage(plain(module), index, count, torch.device("cpu"))
        for module, index in zip(modules, mine, strict=True)
    ]
    schedule = ScheduleDualPipeV(stages, job.chunks, loss_fn=next_token_loss)
    inputs, target = ([job.tokens], {"target": job.labels}) if job.rank == 0 else ([], {})

    def step() -> None:
        schedule.step(*inputs, **target)
        forget(modules)

    return step


def plain(module: MoeStage) -> MoeStage:
    """With PyTorch's own linear layers, which is what its pipelines split by themselves."""
    for each in module.modules():
        if isinstance(each, Linear):
            each.__class__ = nn.Linear
    return module


if __name__ == "__main__":
    main()
