"""Time and balance of `luciola.plugins.eplb`, beside the original's program structure: loops in Python over
tensors of one number (`reference.py`).

    python benchmarks/plugins/eplb.py [--quick]

Times are processor time of one thread, the least of several runs, so that other programs disturb them little. Balance
is max/mean GPU load, averaged over the layers of a model. The loads are made here, from fixed seeds:

    uniform    uniform in (0, 1)
    zipf       1/rank, shuffled in each layer
    lognormal  exp of a normal number
    recorded   what a recorder sees of 65,536 tokens that choose 8 experts: popularity varies by group and by expert,
               more so in later layers, and counts are drawn from it
"""

import os

os.environ.update(
    OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", MKL_NUM_THREADS="1"
)  # before numpy and torch load

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from luciola.plugins.eplb import (
    align,
    gpu_loads,
    imbalance,
    lower_bound,
    moves_between,
    rebalance_experts,
    rebalance_incrementally,
)
from luciola.plugins.eplb.reference import rebalance_experts as original

RUNS = 3
BUDGETS = (0, 1, 2, 5, 10, 20, 40, 80)  # expert moves a layer


@dataclass(frozen=True)
class Size:
    layers: int
    experts: int
    slots: int
    groups: int
    nodes: int
    gpus: int

    @property
    def name(self) -> str:
        where = f"{self.nodes} x {self.gpus // self.nodes}" if self.nodes > 1 else f"{self.gpus}"
        return f"{self.layers} x {self.experts} -> {self.slots}, {where} GPUs"

    @property
    def arguments(self) -> tuple[int, int, int, int]:
        return self.slots, self.groups, self.nodes, self.gpus


SIZES = (
    Size(58, 256, 288, 8, 4, 32),
    Size(58, 256, 288, 1, 1, 32),
    Size(58, 256, 288, 1, 1, 72),
    Size(58, 256, 288, 1, 1, 144),
    Size(61, 384, 416, 1, 1, 32),
    Size(61, 512, 640, 32, 8, 64),
    Size(61, 1024, 1280, 64, 8, 64),
    Size(61, 1024, 1280, 1, 1, 128),
)


def uniform(size: Size, generator: torch.Generator) -> Tensor:
    return torch.rand((size.layers, size.experts), generator=generator)


def zipf(size: Size, generator: torch.Generator) -> Tensor:
    return 1.0 / (1 + torch.rand((size.layers, size.experts), generator=generator).argsort(-1))


def lognormal(size: Size, generator: torch.Generator) -> Tensor:
    return torch.randn((size.layers, size.experts), generator=generator).exp()


def recorded(size: Size, generator: torch.Generator) -> Tensor:
    groups = max(size.groups, 8)
    spread = torch.linspace(0.3, 0.9, size.layers)[:, None]
    by_group = torch.randn((size.layers, groups), generator=generator) * 0.2
    by_expert = torch.randn((size.layers, size.experts), generator=generator) * spread
    popularity = (by_group.repeat_interleave(size.experts // groups, -1) + by_expert).exp()
    chosen = torch.multinomial(popularity, 8 * 65536, replacement=True, generator=generator)
    return torch.stack([torch.bincount(layer, minlength=size.experts) for layer in chosen]).float()


LOADS: tuple[Callable[[Size, torch.Generator], Tensor], ...] = (uniform, zipf, lognormal, recorded)


@dataclass(frozen=True)
class Row:
    """One line of the table: times in ms, balance as max/mean."""

    size: Size
    load: str
    original_ms: float
    reference_ms: float
    optimal_ms: float
    original_balance: float
    optimal_balance: float
    anywhere_balance: float
    bound: float


def measure(size: Size, original_ms: float, make: Callable[[Size, torch.Generator], Tensor]) -> Row:
    weight = make(size, torch.Generator().manual_seed(1))
    mean = weight.double().sum(-1) / size.gpus
    reference_ms, reference = timed(lambda: rebalance_experts(weight, *size.arguments), RUNS)
    optimal_ms, optimal = timed(lambda: rebalance_experts(weight, *size.arguments, policy="optimal"), RUNS)
    anywhere = rebalance_experts(weight, size.slots, 1, 1, size.gpus, policy="optimal")
    balances = [
        float(imbalance(weight, each[0], size.gpus).mean()) for each in (reference, optimal, anywhere)
    ]
    bound = float((lower_bound(weight, size.slots, size.gpus) / mean).mean())
    return Row(size, make.__name__, original_ms, reference_ms, optimal_ms, *balances, bound)


def timed(work: Callable[[], tuple[Tensor, ...]], runs: int) -> tuple[float, tuple[Tensor, ...]]:
    """Least processor time in ms, and the result."""
    times = []
    for _ in range(runs):
        start = time.process_time()
        result = work()
        times.append(1e3 * (time.process_time() - start))
    return min(times), result


def measure_all(sizes: tuple[Size, ...]) -> None:
    print(f"{'':42}{'time, ms':^30}   {'max/mean':^36}")
    print(
        f"{'layers x experts -> slots':30} {'load':11}{'original':>10}{'reference':>10}{'optimal':>10}   "
        f"{'original':>9}{'optimal':>9}{'anywhere':>9}{'bound':>9}"
    )
    for size in sizes:
        # The original's time does not depend on the loads.
        original_ms, _ = timed(
            lambda size=size: original(lognormal(size, torch.Generator()), *size.arguments), 1
        )
        for make in LOADS:
            row = measure(size, original_ms, make)
            print(
                f"{size.name:30} {row.load:11}{row.original_ms:10.0f}{row.reference_ms:10.1f}{row.optimal_ms:10.1f}   "
                f"{row.original_balance:9.4f}{row.optimal_balance:9.4f}{row.anywhere_balance:9.4f}{row.bound:9.4f}"
            )


def measure_budgets(size: Size) -> None:
    """(budget a layer, moves a layer, largest load over the bound, ms) after a third of the loads has changed."""
    before, after = (recorded(size, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    weight = 2 / 3 * before + 1 / 3 * after
    current = rebalance_experts(before, *size.arguments, policy="optimal").physical_to_logical_map
    bound = lower_bound(weight, size.slots, size.gpus)

    def over_bound(physical: Tensor) -> float:
        return float((gpu_loads(weight, physical, size.gpus).amax(-1) / bound).mean())

    scratch = rebalance_experts(weight, *size.arguments, policy="optimal").physical_to_logical_map
    needed = (
        len(moves_between(current, align(current, scratch, size.gpus, num_nodes=1), size.gpus)) / size.layers
    )
    print(
        f"\n{size.name}, a third of the recorded loads changed; a new plan moves {needed:.0f} experts a layer"
    )
    print(f"{'moves a layer, at most':>24}{'made':>8}{'max/bound':>12}{'ms':>8}")
    for budget in BUDGETS:
        start = time.process_time()
        placement, moves = rebalance_incrementally(weight, current, size.gpus, budget=budget * size.layers)
        spent_ms = 1e3 * (time.process_time() - start)
        made = round(len(moves) / size.layers)
        print(f"{budget:24}{made:8}{over_bound(placement[0]):12.4f}{spent_ms:8.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="only the first two sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    measure_all(SIZES[:2] if arguments.quick else SIZES)
    measure_budgets(SIZES[1])


if __name__ == "__main__":
    main()
