"""One fio job on this version of Luciola and on another in turn: ratios, processor time and sleeps of an operation.

usage: python benchmarks/turns.py randread 4k 1 --before PYTHON [--rounds 10] [--seconds 1] [--directory DIR] [--swap]
                                  [--copies 1] [--record FILE]

Both clusters are up, of one copy each or as many as `--copies`, with data of their own. On a RAM disk (`--directory
/dev/shm`, the default) what is compared is the path of an operation, not the disk's writing back, and rounds differ by
a few per cent only. All runs at real-time priority (root). Where data lie in memory depends on which cluster is started
first: repeat a difference in reads of much data with `--swap`.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from peers import luciola
from processes import since, usage_of_services
from tables import spread
from workload import fio

ROLES = ("mount", "storage")


@dataclass(frozen=True)
class Round:
    """One run of the job. By role: µs of processor time and how often a thread went to sleep, each for an operation."""

    iops: float
    processor_us: dict[str, float]
    sleeps: dict[str, float]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("pattern", help="as fio names it: randread, write, ...")
    parser.add_argument("block")
    parser.add_argument("jobs", type=int)
    parser.add_argument(
        "--before", required=True, metavar="PYTHON", help="of the other version's environment"
    )
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--seconds", type=int, default=1)
    parser.add_argument("--size-mib", type=int, default=256)
    parser.add_argument("--directory", type=Path, default=Path("/dev/shm"))
    parser.add_argument("--copies", type=int, default=1)
    parser.add_argument("--swap", action="store_true", help="start the other version first")
    parser.add_argument("--record", type=Path, metavar="FILE", help="add the ratios to this JSON file")
    options = parser.parse_args()
    os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(1))  # all that is started from here inherits it
    versions = {"now": sys.executable, "before": options.before}
    with ExitStack() as stack:
        files = {}
        for name in reversed(versions) if options.swap else versions:
            root = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=name, dir=options.directory)))
            mountpoint = stack.enter_context(
                luciola(root, storage_nodes=options.copies, replicas=options.copies, python=versions[name])
            )
            files[name] = mountpoint / "data"
            fio(filename=files[name], rw="write", bs="1M", size=f"{options.size_mib}M", end_fsync=1)
        measured: dict[str, list[Round]] = {name: [] for name in versions}
        for number in range(options.rounds):
            for name in versions if number % 2 else reversed(versions):
                measured[name].append(measure(files[name], options))
    show(measured)
    if options.record is not None:
        job = f"{options.pattern} {options.block.upper()} x{options.jobs} direct"
        record(options.record, "second" if options.swap else "first", job, ratios_of(measured))


def measure(path: Path, options: argparse.Namespace) -> Round:
    root = path.parent.parent
    before = usage_of_services(root)
    job = fio(
        filename=path,
        rw=options.pattern,
        bs=options.block,
        size=f"{options.size_mib}M",
        numjobs=options.jobs,
        runtime=options.seconds,
        time_based=1,
        direct=1,
        randrepeat=0,
    )
    used = since(before, usage_of_services(root))
    return Round(
        job.iops,
        {role: used[role].processor_ns / job.operations / 1000 for role in ROLES},
        {role: used[role].sleeps / job.operations for role in ROLES},
    )


def show(measured: dict[str, list[Round]]) -> None:
    print("| version | IOPS |" + "".join(f" {role} µs | {role} sleeps |" for role in ROLES))
    print("|---|---:|" + "---:|---:|" * len(ROLES))
    for name, rounds in measured.items():
        cells = [f"{statistics.median(one.iops for one in rounds):,.0f}"]
        for role in ROLES:
            cells.append(f"{statistics.median(one.processor_us[role] for one in rounds):.1f}")
            cells.append(f"{statistics.median(one.sleeps[role] for one in rounds):.2f}")
        print(f"| {name} | {' | '.join(cells)} |")
    median, low, high = spread(ratios_of(measured))
    print(f"\nnow / before: {median:.2f} ({low:.2f} to {high:.2f})")


def ratios_of(measured: dict[str, list[Round]]) -> list[float]:
    return [now.iops / before.iops for now, before in zip(measured["now"], measured["before"], strict=True)]


def record(path: Path, order: str, job: str, ratios: list[float]) -> None:
    """Put a job's ratios, with this version started `first` or `second`, into a record for `tables.py`."""
    fields = json.loads(path.read_text()) if path.exists() else {"ratios": {}}
    fields["ratios"].setdefault(order, {})[job] = spread(ratios)
    path.write_text(json.dumps(fields, indent=1) + "\n")


if __name__ == "__main__":
    main()
