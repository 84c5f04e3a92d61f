"""Luciola beside JuiceFS and the local file system, in one run, as ratios.

usage: python benchmarks/run.py [--directory DIR] [--rounds 1] [--only PHASE ...] [--without-juicefs]

Every round measures every system in turn, so that a machine whose speed drifts does so for all of them; the table
shows medians and the ratios of medians. Results are also written to benchmarks/results/.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from peers import juicefs, local, luciola
from workload import PHASES

HERE = Path(__file__).parent
SYSTEMS: dict[str, Callable[[Path], AbstractContextManager[Path]]] = {
    "luciola": lambda root: luciola(root, storage_nodes=1, replicas=1),
    "luciola 2 copies": lambda root: luciola(root, storage_nodes=2, replicas=2),
    "juicefs": juicefs,
    "local": local,
}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=PHASES, default=list(PHASES))
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(SYSTEMS))
    options = parser.parse_args()
    figures: dict[str, dict[str, list[float]]] = {name: {} for name in options.systems}
    for round_number in range(options.rounds):
        for name in options.systems:
            print(f"round {round_number + 1}: {name}", file=sys.stderr, flush=True)
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as root,
                SYSTEMS[name](Path(root)) as directory,
            ):
                for figure, value in measure(directory, options).items():
                    figures[name].setdefault(figure, []).append(value)
    medians = {
        name: {figure: statistics.median(values) for figure, values in found.items()}
        for name, found in figures.items()
    }
    print_ratios(medians)
    keep(figures)


def measure(directory: Path, options: argparse.Namespace) -> dict[str, float]:
    command = [sys.executable, str(HERE / "workload.py"), str(directory)]
    command += [
        "--size-mib",
        str(options.size_mib),
        "--seconds",
        str(options.seconds),
        "--only",
        *options.only,
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def print_ratios(medians: dict[str, dict[str, float]]) -> None:
    names = list(medians)
    print("| work |", " | ".join(names), "| luciola / juicefs |")
    print("|---|" + "---:|" * (len(names) + 1))
    for figure in next(iter(medians.values())):
        values = [f"{medians[name][figure]:,.0f}" for name in names]
        ratio = "-"
        if "juicefs" in medians and "luciola" in medians:
            ratio = f"{medians['luciola'][figure] / medians['juicefs'][figure]:.2f}"
        print(f"| {figure} |", " | ".join(values), f"| {ratio} |")


def keep(figures: dict[str, dict[str, list[float]]]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    record = {
        "machine": platform.uname()._asdict(),
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "figures": figures,
    }
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
