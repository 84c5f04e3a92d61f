"""Time and balance of `luciola.plugins.eplb`, beside the original's algorithm written plainly in torch.

    python benchmarks/plugins/eplb.py [--plot FILE.png] [--quick]

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
from pathlib import Path

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
    anywhere = (
        optimal if size.nodes == 1 else rebalance_experts(weight, *size.arguments, policy="optimal-global")
    )
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


def measure_all(sizes: tuple[Size, ...]) -> list[Row]:
    rows = []
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
            rows.append(row)
            print(
                f"{size.name:30} {row.load:11}{row.original_ms:10.0f}{row.reference_ms:10.1f}{row.optimal_ms:10.1f}   "
                f"{row.original_balance:9.4f}{row.optimal_balance:9.4f}{row.anywhere_balance:9.4f}{row.bound:9.4f}"
            )
    return rows


def measure_budgets(size: Size) -> list[tuple[int, int, float, float]]:
    """(budget a layer, moves a layer, largest load over the bound, ms) after a third of the loads has changed."""
    before, after = (recorded(size, torch.Generator().manual_seed(seed)) for seed in (1, 2))
    weight = 2 / 3 * before + 1 / 3 * after
    current = rebalance_experts(before, *size.arguments, policy="optimal-global").physical_to_logical_map
    bound = lower_bound(weight, size.slots, size.gpus)

    def over_bound(physical: Tensor) -> float:
        return float((gpu_loads(weight, physical, size.gpus).amax(-1) / bound).mean())

    scratch = rebalance_experts(weight, *size.arguments, policy="optimal-global").physical_to_logical_map
    needed = (
        len(moves_between(current, align(current, scratch, size.gpus, num_nodes=1), size.gpus)) / size.layers
    )
    print(
        f"\n{size.name}, a third of the recorded loads changed; a new plan moves {needed:.0f} experts a layer"
    )
    print(f"{'moves a layer, at most':>24}{'made':>8}{'max/bound':>12}{'ms':>8}")
    found = []
    for budget in BUDGETS:
        start = time.process_time()
        placement, moves = rebalance_incrementally(weight, current, size.gpus, budget=budget * size.layers)
        spent_ms = 1e3 * (time.process_time() - start)
        found.append((budget, round(len(moves) / size.layers), over_bound(placement[0]), spent_ms))
        print("{:24}{:8}{:12.4f}{:8.0f}".format(*found[-1]))
    return found


def plot(rows: list[Row], budgets: list[tuple[int, int, float, float]], file: Path) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure, (times, balance, moves) = plt.subplots(1, 3, figsize=(15, 4.6), width_ratios=(1.2, 1.6, 1))
    names = list(dict.fromkeys(row.size.name for row in rows))
    for offset, kind, colour in (
        (-0.27, "original", "#888"),
        (0, "reference", "#2a6f97"),
        (0.27, "optimal", "#e07a1f"),
    ):
        values = [max(getattr(row, f"{kind}_ms") for row in rows if row.size.name == name) for name in names]
        times.barh(
            [index + offset for index in range(len(names))], values, height=0.25, color=colour, label=kind
        )
    times.set(
        xscale="log", xlabel="ms on one core, the slowest load", yticks=range(len(names)), yticklabels=names
    )
    times.invert_yaxis()
    times.legend(fontsize=8)

    marks = {"uniform": "o", "zipf": "s", "lognormal": "^", "recorded": "D"}
    for row in rows:
        y = names.index(row.size.name) + 0.18 * (list(marks).index(row.load) - 1.5)
        ends = [max(each / row.bound - 1, 1e-5) for each in (row.original_balance, row.optimal_balance)]
        balance.plot(ends, (y, y), color="#ddd", zorder=1)
        for end, colour in zip(ends, ("#888", "#e07a1f"), strict=True):
            balance.scatter(end, y, marker=marks[row.load], color=colour, s=22, zorder=2)
    for load, mark in marks.items():
        balance.scatter([], [], marker=mark, color="k", s=22, label=load)
    balance.set(xscale="log", xlabel="largest GPU load above the bound (grey: original, orange: optimal)")
    balance.set(yticks=range(len(names)), yticklabels=[])
    balance.invert_yaxis()
    balance.set_xlim(left=1e-5)
    balance.legend(fontsize=8, loc="upper left")

    moves.plot(
        [made for _, made, _, _ in budgets], [over for _, _, over, _ in budgets], "o-", color="#e07a1f"
    )
    moves.set(xlabel=f"moves a layer ({SIZES[1].name})", ylabel="largest GPU load / bound")
    moves.grid(alpha=0.3)
    figure.tight_layout()
    figure.savefig(file, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--plot", type=Path, metavar="FILE", help="draw the figures as PNG")
    parser.add_argument("--quick", action="store_true", help="only the first two sizes")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    rows = measure_all(SIZES[:2] if arguments.quick else SIZES)
    budgets = measure_budgets(SIZES[1])
    if arguments.plot:
        plot(rows, budgets, arguments.plot)


if __name__ == "__main__":
    main()
