#!/usr/bin/env python3
"""Our mount beside its ceiling: the same FUSE session in front of a file system that does nothing but reply.

usage: benchmarks/fuse/ceiling.py [--work DIR] [--seconds 2] [--rounds 3] [--replicas 1] [--json FILE]

The file system that only replies keeps one file of 256 MiB in memory (`trivial/src/bin/with_luciola.rs`); the mount is
a cluster started for the run, with a file of the same length. What remains between the two figures is the client, the
carriers and the services. Each round measures both in turn; the table shows medians over rounds and the median, lowest
and highest ratio within a round. Needs root, /dev/fuse, fio and cargo; run it with the Python that has luciola.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path

from compare import Served, build_trivial, measure

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from peers import luciola

BIG_BYTES = 256 << 20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--work", type=Path, default=Path("/tmp/luciola-fuse-compare"))
    parser.add_argument("--seconds", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    server = str(build_trivial(options.work) / "with_luciola")
    ceilings: list[dict[str, float]] = []
    mounts: list[dict[str, float]] = []
    with (
        tempfile.TemporaryDirectory(dir=options.work) as root,
        luciola(Path(root), storage_nodes=options.replicas, replicas=options.replicas) as mountpoint,
    ):
        fill(mountpoint / "big")
        for number in range(1, options.rounds + 1):
            with Served([server], {}, options.work / "mnt-ceiling") as directory:
                ceilings.append(measure(directory, options.seconds, 0))
            directory = mountpoint / f"round-{number}"
            directory.mkdir()
            os.link(mountpoint / "big", directory / "big")
            mounts.append(measure(directory, options.seconds, 0))
            print(f"round {number} of {options.rounds}", file=sys.stderr, flush=True)
    print(table(ceilings, mounts))
    if options.json is not None:
        options.json.write_text(json.dumps({"only replies": ceilings, "mount": mounts}, indent=1) + "\n")


def fill(path: Path) -> None:
    block = os.urandom(1 << 20)
    with path.open("wb") as file:
        for _ in range(BIG_BYTES // len(block)):
            file.write(block)


def table(ceilings: list[dict[str, float]], mounts: list[dict[str, float]]) -> str:
    lines = [
        "| work | only replies | mount | of the ceiling | lowest to highest |",
        "|---|---:|---:|---:|---:|",
    ]
    for figure in ceilings[0]:
        above = [each[figure] for each in ceilings]
        found = [each[figure] for each in mounts]
        ratios = [mine / theirs for mine, theirs in zip(found, above, strict=True)]
        lines.append(
            f"| {figure} | {statistics.median(above):,.0f} | {statistics.median(found):,.0f} | "
            f"{statistics.median(ratios):.2f} | {min(ratios):.2f} to {max(ratios):.2f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    main()
