"""Steps of DualPipeV on CPU processes, beside torch.distributed.pipelining's, and how soon a dead rank is noticed.

    python benchmarks/plugins/dualpipe_steps.py [--ranks 2] [--chunks 8] [--rounds 5]

Both run the same stages on the same micro-batches in the same processes, in turns; the least time of a step counts.
"""

import argparse
import os
import signal
import socket
import time
from datetime import timedelta
from multiprocessing import get_context

import torch
import torch.distributed as dist
from torch import nn

from luciola.plugins.dualpipe import DualPipeV, PipelineError


def stages(count: int, width: int) -> list[nn.Module]:
    torch.manual_seed(1)
    return [
        nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        for _ in range(count)
    ]


def criterion(output, label):
    return ((output - label) ** 2).mean()


def ours(rank, options, width, rows):
    model = stages(2 * options.ranks, width)
    pipe = DualPipeV((model[rank], model[2 * options.ranks - 1 - rank]))
    inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(2))

    def step():
        given, labels = ((inputs,), (inputs,)) if rank == 0 else ((), ())
        return pipe.step(*given, num_chunks=options.chunks, criterion=criterion, labels=labels)[0]

    return step


def torchs(rank, options, width, rows):
    from torch.distributed.pipelining import PipelineStage
    from torch.distributed.pipelining.schedules import ScheduleDualPipeV

    count = 2 * options.ranks
    model = stages(count, width)
    held = [
        PipelineStage(model[index], index, count, torch.device("cpu")) for index in (rank, count - 1 - rank)
    ]
    schedule = ScheduleDualPipeV(held, options.chunks, loss_fn=criterion, scale_grads=False)
    inputs = torch.randn(rows, width, generator=torch.Generator().manual_seed(2))

    def step():
        losses: list[torch.Tensor] = []
        if rank == 0:
            schedule.step(inputs, target=inputs, losses=losses)
        else:
            schedule.step(losses=losses)
        return torch.stack(losses) if losses else None

    return step


def measure(step, rounds):
    times = []
    for _ in range(rounds):
        dist.barrier()
        begun = time.perf_counter()
        step()
        dist.barrier()
        times.append(time.perf_counter() - begun)
    return times


def steps(rank, options, results):
    for width, rows_a_chunk in ((8, 1), (256, 64)):
        rows = rows_a_chunk * options.chunks
        mine, theirs = (make(rank, options, width, rows) for make in (ours, torchs))
        one, two = mine(), theirs()
        if rank == 0:
            assert torch.allclose(one, two, rtol=1e-6), "both must compute the same"
        times = {"luciola": [], "torch": []}
        for _ in range(options.rounds):
            times["luciola"] += measure(mine, 5)
            times["torch"] += measure(theirs, 5)
        if rank == 0:
            results.put((width, {name: min(each) * 1e3 for name, each in times.items()}))


def death(rank, options, results):
    """The last rank dies in its third task; the others report when they learned of it."""
    model = stages(2 * options.ranks, 8)
    pipe = DualPipeV((model[rank], model[2 * options.ranks - 1 - rank]))
    inputs = (torch.randn(options.chunks, 8),) if rank == 0 else ()
    store = dist.distributed_c10d._get_default_store()  # noqa: SLF001
    pipe.step(*inputs, num_chunks=options.chunks, criterion=criterion, labels=inputs)
    if rank == options.ranks - 1:
        calls = []

        def die(*_):
            calls.append(1)
            if len(calls) == 3:
                store.set("died", str(time.monotonic()))
                os.kill(os.getpid(), signal.SIGKILL)

        pipe.module[0].register_forward_pre_hook(die)
    try:
        pipe.step(*inputs, num_chunks=options.chunks, criterion=criterion, labels=inputs)
    except PipelineError as error:
        results.put((time.monotonic() - float(store.get("died")), str(error)))
    if rank:
        store.set(f"left/{rank}", "1")
    else:
        store.wait([f"left/{each}" for each in range(1, options.ranks - 1)])


def run(work, rank, port, options, results):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"tcp://127.0.0.1:{port}",
        rank=rank,
        world_size=options.ranks,
        timeout=timedelta(seconds=60),
    )
    work(rank, options, results)
    results.close()
    results.join_thread()
    dist.destroy_process_group()


def together(work, options):
    context = get_context("spawn")
    results = context.Queue()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    processes = [
        context.Process(target=run, args=(work, rank, port, options, results))
        for rank in range(options.ranks)
    ]
    for each in processes:
        each.start()
    for each in processes:
        each.join()
    found = []
    while not results.empty():
        found.append(results.get())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    print(f"DualPipeV, {options.ranks} ranks, {options.chunks} micro-batches: least time of a step, ms")
    print(f"{'width':>6} {'luciola':>9} {'torch':>9}")
    for width, times in together(steps, options):
        print(f"{width:>6} {times['luciola']:>9.1f} {times['torch']:>9.1f}")
    options.ranks = max(options.ranks, 3)
    for seconds, text in together(death, options):
        print(f"a rank learned of a killed one after {seconds:.2f} s: {text[:100]}")


if __name__ == "__main__":
    main()
