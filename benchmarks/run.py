"""Luciola with one and with two copies beside other file systems, in one run, as ratios.

usage: python benchmarks/run.py [--directory DIR] [--rounds 3] [--only PHASE ...] [--systems NAME ...] [--realtime]
                                [--before PYTHON] [--together]

Every round measures every system in turn, so that a machine whose speed drifts does so for all of them. The first
table shows medians over rounds, with the lowest and highest value; then one for each other system the ratios within
each round: their median, lowest and highest. Results are also written to benchmarks/results/; a record that pages show
is kept there under a name (benchmarks/tables.py). With `--before`, the Python of another checkout's environment, that
version is measured in the same rounds. With `--together` all systems are up at one time and take turns at each phase,
so that other load on the machine affects all alike: for differences of a few per cent. An idle cluster does little
meanwhile, but holds its memory.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from functools import partial
from pathlib import Path

from peers import glusterfs, juicefs, local, luciola, moosefs
from workload import PHASES

HERE = Path(__file__).parent
Systems = dict[str, Callable[[Path], AbstractContextManager[Path]]]

SYSTEMS: Systems = {
    "luciola": lambda root: luciola(root, storage_nodes=1, replicas=1),
    "luciola 2 copies": lambda root: luciola(root, storage_nodes=2, replicas=2),
    "juicefs": juicefs,
    "moosefs": moosefs,
    "moosefs 2 copies": lambda root: moosefs(root, copies=2),
    "glusterfs": glusterfs,
    "glusterfs 2 copies": lambda root: glusterfs(root, copies=2),
    "local": local,
}
DEFAULT_SYSTEMS = ("luciola", "luciola 2 copies", "juicefs", "local")
STOLEN_MAX = 0.03  # of the processors' time in a round; with more, rounds differ too much to be compared


Figures = dict[str, dict[str, list[float]]]
"""The values of all rounds, by system and figure."""


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--directory", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size-mib", type=int, default=512)
    parser.add_argument("--seconds", type=int, default=4)
    parser.add_argument("--only", nargs="*", choices=PHASES, default=list(PHASES))
    parser.add_argument("--systems", nargs="*", choices=list(SYSTEMS), default=list(DEFAULT_SYSTEMS))
    parser.add_argument(
        "--realtime",
        action="store_true",
        help="everything at real-time priority, so that other programs on the machine do not count (root)",
    )
    parser.add_argument("--before", metavar="PYTHON", help="also measure the Luciola installed there")
    parser.add_argument("--together", action="store_true", help="all systems up at one time, taking turns")
    options = parser.parse_args()
    systems = {name: SYSTEMS[name] for name in options.systems}
    if options.before:
        for name, copies in (("before", 1), ("before 2 copies", 2)):
            if name.replace("before", "luciola") in systems:
                systems[name] = partial(luciola, storage_nodes=copies, replicas=copies, python=options.before)
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # all that is started from here inherits it
    figures = (measure_together if options.together else measure_in_turn)(systems, options)
    if not any(figures.values()):
        sys.exit("every round was dropped: measure when the host is quiet")
    print_figures(figures)
    print_ratios(figures)
    keep(figures)


def measure_in_turn(systems: Systems, options: argparse.Namespace) -> Figures:
    """One system after another, each started for its turn, all phases of it."""
    figures: Figures = {name: {} for name in systems}
    for round_number in range(options.rounds):
        before, found = processor_ticks(), {}
        for name, system in systems.items():
            print(f"round {round_number + 1}: {name}", file=sys.stderr, flush=True)
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as root,
                system(Path(root)) as directory,
            ):
                found[name] = measure(directory, options, options.only)
        add_round(figures, found, stolen_since(before))
    return figures


def measure_together(systems: Systems, options: argparse.Namespace) -> Figures:
    """All systems up; phase by phase, each in its turn, backwards in every other round."""
    figures: Figures = {name: {} for name in systems}
    with ExitStack() as running:
        directories: dict[str, Path] = {}
        for name, system in systems.items():
            root = running.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
            directories[name] = running.enter_context(system(Path(root)))
        for round_number in range(options.rounds):
            order = list(systems) if round_number % 2 == 0 else list(reversed(systems))
            before = processor_ticks()
            found: dict[str, dict[str, float]] = {name: {} for name in systems}
            for phase in options.only:
                for name in order:
                    print(f"round {round_number + 1}: {phase}, {name}", file=sys.stderr, flush=True)
                    found[name] |= measure(directories[name], options, [phase])
            add_round(figures, found, stolen_since(before))
    return figures


def add_round(figures: Figures, found: dict[str, dict[str, float]], stolen: float) -> None:
    """Keep what one round found, unless other machines of the host took too much of the processors' time."""
    print(f"stolen processor time: {stolen:.1%}", file=sys.stderr, flush=True)
    if stolen > STOLEN_MAX:
        print(f"round dropped: more than {STOLEN_MAX:.0%} was stolen", file=sys.stderr, flush=True)
        return
    for name, values in found.items():
        for figure, value in values.items():
            figures[name].setdefault(figure, []).append(value)


def processor_ticks() -> tuple[int, int]:
    """Of all processors, since the machine started: stolen, and all."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def stolen_since(before: tuple[int, int]) -> float:
    """The stolen share of the processors' time since `processor_ticks` returned `before`."""
    stolen, total = (now - then for now, then in zip(processor_ticks(), before, strict=True))
    return stolen / max(total, 1)


def measure(directory: Path, options: argparse.Namespace, phases: list[str]) -> dict[str, float]:
    command = [sys.executable, str(HERE / "workload.py"), str(directory)]
    command += [
        "--size-mib",
        str(options.size_mib),
        "--seconds",
        str(options.seconds),
        "--only",
        *phases,
    ]
    result = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures: dict[str, float] = json.loads(result.stdout)
    return figures


def spread(values: list[float], digits: int) -> str:
    """The median and, of several values, the lowest and the highest."""
    middle = f"{statistics.median(values):,.{digits}f}"
    return (
        middle if len(values) == 1 else f"{middle} ({min(values):,.{digits}f} to {max(values):,.{digits}f})"
    )


def print_figures(figures: Figures) -> None:
    names = list(figures)
    print("| work |", " | ".join(names), "|")
    print("|---|" + "---:|" * len(names))
    for figure in next(iter(figures.values())):
        print(f"| {figure} |", " | ".join(spread(figures[name][figure], 0) for name in names), "|")


def print_ratios(figures: Figures) -> None:
    """How many times that of each other system each figure of ours is."""
    ours = [name for name in figures if name.startswith("luciola")]
    for other in figures:
        if other in (*ours, "local") or not ours:
            continue
        print(f"\n| times {other} |", " | ".join(ours), "|")
        print("|---|" + "---:|" * len(ours))
        for figure, theirs in figures[other].items():
            ratios = [
                [mine / their for mine, their in zip(figures[name][figure], theirs, strict=True)]
                for name in ours
            ]
            print(f"| {figure} |", " | ".join(spread(each, 2) for each in ratios), "|")


def keep(figures: dict[str, dict[str, list[float]]]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    record = {
        "machine": platform.uname()._asdict(),
        "command": sys.argv[1:],
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "figures": figures,
    }
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1))
    print(f"written to {path}", file=sys.stderr)


if __name__ == "__main__":
    main()
