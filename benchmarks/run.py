"""Luciola with one and with two copies beside other file systems, in one run, as ratios.

usage: python benchmarks/run.py [--directory DIR] [--rounds 3] [--only PHASE ...] [--systems NAME ...] [--realtime]
                                [--before PYTHON] [--together] [--variant NAME OPTIONS]

Every round measures every system in turn, so that a machine whose speed drifts does so for all of them. The first
table shows medians over rounds, with the lowest and highest value; then one for each other system the ratios within
each round: their median, lowest and highest. Then follow the 99.9th percentile of the latency of random blocks of
4 KiB, the processor time of an operation by process, and where the bytes of a write are when it is acknowledged.
Results are also written to benchmarks/results/; a record that pages show is kept there under a name
(benchmarks/tables.py).

With `--before`, the Python of another checkout's environment, that version is measured in the same rounds; with
`--variant "two nodes" "--storage-nodes 2"` also Luciola with these options of `luciola up`, one copy unless they say
otherwise. With `--together` all systems are up at one time and take turns at each phase, so that other load on the
machine affects all alike: for differences of a few per cent. An idle cluster does little then, but holds its memory.
"""

import argparse
import json
import os
import platform
import shlex
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peers import glusterfs, juicefs, limit, local, luciola, moosefs
from workload import PHASES, Figure

HERE = Path(__file__).parent


@dataclass(frozen=True)
class System:
    """A file system, and where bytes are when it answers: a direct write, a buffered one, an fsync."""

    start: Callable[[Path], AbstractContextManager[Path]]
    direct: str
    buffered: str
    fsync: str


CLIENT = "memory of the client"
SERVER = "memory of a server"
DISK = "disk"


def _luciola(copies: int, **options: object) -> System:
    memory = SERVER if copies == 1 else f"memory of {copies} replicas"
    start = partial(luciola, storage_nodes=copies, replicas=copies, **options)
    return System(start, memory, CLIENT, DISK)


SYSTEMS: Mapping[str, System] = {
    "luciola": _luciola(1),
    "luciola 2 copies": _luciola(2),
    "juicefs": System(juicefs, CLIENT, CLIENT, SERVER),
    "moosefs": System(moosefs, CLIENT, CLIENT, SERVER),
    "moosefs 2 copies": System(partial(moosefs, copies=2), CLIENT, CLIENT, "memory of 2 replicas"),
    "glusterfs": System(glusterfs, CLIENT, CLIENT, DISK),
    "glusterfs 2 copies": System(partial(glusterfs, copies=2), CLIENT, CLIENT, DISK),
    "local": System(local, DISK, CLIENT, DISK),
    "limit": System(limit, CLIENT, CLIENT, CLIENT),
    "limit, one hop": System(partial(limit, hops=1), CLIENT, CLIENT, CLIENT),
}
DEFAULT_SYSTEMS = ("luciola", "luciola 2 copies", "juicefs", "local")
OURS = ("luciola", "luciola 2 copies")
STOLEN_MAX = 0.03  # of the processors' time in a round; with more, rounds differ too much to be compared
PROCESSOR_US_MIN = 0.5  # a process that takes less for an operation is not shown

Figures = dict[str, dict[str, list[Figure]]]
"""Those of all rounds, by system and name."""


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
    parser.add_argument(
        "--variant",
        nargs=2,
        action="append",
        default=[],
        metavar=("NAME", "OPTIONS"),
        help="also measure Luciola with further options of `luciola up` (repeatable)",
    )
    options = parser.parse_args()
    systems = chosen(options)
    if options.realtime:
        os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # all that is started from here inherits it
    figures = (measure_together if options.together else measure_in_turn)(systems, options)
    if not any(figures.values()):
        sys.exit("every round was dropped: measure when the host is quiet")
    print_figures(figures)
    print_ratios(figures)
    print_latencies(figures)
    print_processor_time(figures)
    print_acknowledgements(systems)
    keep(figures, systems)


def chosen(options: argparse.Namespace) -> dict[str, System]:
    """The systems that the options name."""
    systems = {name: SYSTEMS[name] for name in options.systems}
    if options.before:
        for copies, name in enumerate(OURS, start=1):
            if name in systems:
                systems[name.replace("luciola", "before")] = _luciola(copies, python=options.before)
    for name, words in options.variant:
        if name in SYSTEMS or name in systems:
            sys.exit(f"--variant {name}: there is a system of that name")
        systems[name] = _luciola(1, options=shlex.split(words))
    return systems


def measure_in_turn(systems: Mapping[str, System], options: argparse.Namespace) -> Figures:
    """One system after another, each started for its turn, all phases of it."""
    figures: Figures = {name: {} for name in systems}
    for round_number in range(options.rounds):
        before, found = processor_ticks(), {}
        for name, system in systems.items():
            print(f"round {round_number + 1}: {name}", file=sys.stderr, flush=True)
            with (
                tempfile.TemporaryDirectory(dir=options.directory) as root,
                system.start(Path(root)) as directory,
            ):
                found[name] = measure(directory, options, options.only)
        add_round(figures, found, stolen_since(before))
    return figures


def measure_together(systems: Mapping[str, System], options: argparse.Namespace) -> Figures:
    """All systems up; phase by phase, each in its turn, backwards in every other round."""
    figures: Figures = {name: {} for name in systems}
    with ExitStack() as running:
        directories: dict[str, Path] = {}
        for name, system in systems.items():
            root = running.enter_context(tempfile.TemporaryDirectory(dir=options.directory))
            directories[name] = running.enter_context(system.start(Path(root)))
        for round_number in range(options.rounds):
            order = list(systems) if round_number % 2 == 0 else list(reversed(systems))
            before = processor_ticks()
            found: dict[str, dict[str, Figure]] = {name: {} for name in systems}
            for phase in options.only:
                for name in order:
                    print(f"round {round_number + 1}: {phase}, {name}", file=sys.stderr, flush=True)
                    found[name] |= measure(directories[name], options, [phase])
            add_round(figures, found, stolen_since(before))
    return figures


def add_round(figures: Figures, found: dict[str, dict[str, Figure]], stolen: float) -> None:
    """Keep what one round found, unless other machines of the host took too much of the processors' time."""
    print(f"stolen processor time: {stolen:.1%}", file=sys.stderr, flush=True)
    if stolen > STOLEN_MAX:
        print(f"round dropped: more than {STOLEN_MAX:.0%} was stolen", file=sys.stderr, flush=True)
        return
    for system, measured in found.items():
        for name, figure in measured.items():
            figures[system].setdefault(name, []).append(figure)


def values(figures: list[Figure]) -> list[float]:
    return [figure.value for figure in figures]


def processor_ticks() -> tuple[int, int]:
    """Of all processors, since the machine started: stolen, and all."""
    ticks = [int(field) for field in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    return ticks[7], sum(ticks)


def stolen_since(before: tuple[int, int]) -> float:
    """The stolen share of the processors' time since `processor_ticks` returned `before`."""
    stolen, total = (now - then for now, then in zip(processor_ticks(), before, strict=True))
    return stolen / max(total, 1)


def measure(directory: Path, options: argparse.Namespace, phases: list[str]) -> dict[str, Figure]:
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
    return {name: Figure(**fields) for name, fields in json.loads(result.stdout).items()}


def spread(found: list[float], digits: int) -> str:
    """The median and, of several values, the lowest and the highest."""
    middle = f"{statistics.median(found):,.{digits}f}"
    return middle if len(found) == 1 else f"{middle} ({min(found):,.{digits}f} to {max(found):,.{digits}f})"


def print_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    print(f"| {' | '.join(head)} |")
    print("|---|" + "---:|" * (len(head) - 1))
    for row in rows:
        print(f"| {' | '.join(row)} |")


def print_figures(figures: Figures) -> None:
    names = next(iter(figures.values()))
    rows = [[name, *(spread(values(found[name]), 0) for found in figures.values())] for name in names]
    print_table(["work", *figures], rows)


def print_ratios(figures: Figures) -> None:
    """How many times that of each other system each figure of ours is."""
    ours = [name for name in OURS if name in figures]
    for other in figures:
        if other in (*ours, "local") or not ours:
            continue
        print()
        rows = [
            [name, *(spread(ratios(figures[system][name], theirs), 2) for system in ours)]
            for name, theirs in figures[other].items()
        ]
        print_table([f"times {other}", *ours], rows)


def ratios(mine: list[Figure], theirs: list[Figure]) -> list[float]:
    return [one / other for one, other in zip(values(mine), values(theirs), strict=True)]


def print_latencies(figures: Figures) -> None:
    """The 99.9th percentile of those that have one."""
    latencies = {
        system: {
            name: [figure.p999_ms for figure in each if figure.p999_ms is not None]
            for name, each in found.items()
        }
        for system, found in figures.items()
    }
    rows = [
        [name, *(spread(found[name], 2) for found in latencies.values())]
        for name, each in next(iter(latencies.values())).items()
        if each
    ]
    if rows:
        print()
        print_table(["p99.9, ms", *figures], rows)


def print_processor_time(figures: Figures) -> None:
    """Medians by process, a table a system."""
    for system, found in figures.items():
        medians = {name: processor_us(each) for name, each in found.items()}
        roles = {
            role: None for each in medians.values() for role, us in each.items() if us >= PROCESSOR_US_MIN
        }
        rows = [
            [name, *(f"{each[role]:,.1f}" if role in each else "" for role in roles)]
            for name, each in medians.items()
        ]
        print()
        print_table([f"{system}: processor time of an operation, µs", *roles], rows)


def processor_us(rounds: list[Figure]) -> dict[str, float]:
    """The medians of the rounds, by process."""
    found: dict[str, list[float]] = {}
    for figure in rounds:
        for role, us in figure.processor_us.items():
            found.setdefault(role, []).append(us)
    return {role: statistics.median(each) for role, each in found.items()}


def print_acknowledgements(systems: Mapping[str, System]) -> None:
    """Where the bytes are when a system answers."""
    print()
    rows = [[name, system.direct, system.buffered, system.fsync] for name, system in systems.items()]
    print_table(["acknowledged by", "direct write", "buffered write", "fsync"], rows)


def keep(figures: Figures, systems: Mapping[str, System]) -> None:
    results = HERE / "results"
    results.mkdir(exist_ok=True)
    record = {
        "machine": platform.uname()._asdict(),
        "command": sys.argv[1:],
        "when": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "figures": by_system(figures, values),
        "p999_ms": by_system(figures, lambda each: [figure.p999_ms for figure in each]),
        "processor_us": by_system(figures, processor_us),
        "acknowledged_by": {
            name: {"direct": system.direct, "buffered": system.buffered, "fsync": system.fsync}
            for name, system in systems.items()
        },
    }
    path = results / f"{time.strftime('%Y%m%d-%H%M%S')}.json"
    path.write_text(json.dumps(record, indent=1))
    print(f"written to {path}", file=sys.stderr)


def by_system(figures: Figures, show: Callable[[list[Figure]], object]) -> dict[str, dict[str, object]]:
    return {system: {name: show(each) for name, each in found.items()} for system, found in figures.items()}


if __name__ == "__main__":
    main()
