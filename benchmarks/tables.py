"""Write the tables of measured figures into README.md and docs/performance.md, from the records of benchmarks/run.py
and turns.py.

usage: python benchmarks/tables.py [--check]

A table stands between `<!-- table: NAME -->` and `<!-- end -->`. `--check` writes nothing, and fails where a page holds
something else. A record is a file of `run.py` that was kept under a name (`RESULTS`): with the values of each round
(`figures`), or, where only these were kept, with medians and the range of the ratios to JuiceFS within a round
(`medians`, `ratios`). Of two versions it has the ratios of the rounds: median, lowest and highest (`ratios`; what
`turns.py --record` writes), or the figures of `run.py --before`; and the commit of the other one, by hand (`before`).
"""

import argparse
import json
import re
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeAlias

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
BASE = "juicefs"
PAGES = (ROOT / "README.md", ROOT / "docs" / "performance.md")
TABLE = re.compile(r"(<!-- table: ([\w-]+) -->\n)(.*?)(<!-- end -->)", re.DOTALL)


Spread: TypeAlias = tuple[float, float, float]
"""Median, lowest and highest of the ratios of rounds."""


@dataclass(frozen=True)
class Record:
    """One run: the median of each system's figures, and the range of its ratios to `BASE` within a round."""

    medians: Mapping[str, Mapping[str, float]]
    ratios: Mapping[str, Mapping[str, tuple[float, float]]]

    @classmethod
    def load(cls, path: Path) -> "Record":
        fields = json.loads(path.read_text())
        if "figures" not in fields:
            return cls(fields["medians"], fields["ratios"])
        rounds: dict[str, dict[str, list[float]]] = fields["figures"]
        medians = {
            system: {work: statistics.median(values) for work, values in figures.items()}
            for system, figures in rounds.items()
        }
        ratios = {
            system: {work: _range(values, rounds[BASE][work]) for work, values in figures.items()}
            for system, figures in rounds.items()
            if system != BASE
        }
        return cls(medians, ratios)


def _range(values: Sequence[float], base: Sequence[float]) -> tuple[float, float]:
    ratios = [value / other for value, other in zip(values, base, strict=True)]
    return min(ratios), max(ratios)


def medians_and_ratios() -> str:
    """Return one and two copies beside JuiceFS, with the range of the ratios."""
    record = Record.load(RESULTS / "juicefs.json")

    def cell(system: str, work: str) -> str:
        ratio = "" if system == BASE else f" ({_short(*record.ratios[system][work])})"
        return f"{record.medians[system][work]:,.0f}{ratio}"

    return _beside_juicefs(JUICEFS_ROWS, cell)


def medians_in_short() -> str:
    """Return the rows of `medians_and_ratios` that a visitor looks for, medians alone."""
    record = Record.load(RESULTS / "juicefs.json")
    return _beside_juicefs(SHORT_ROWS, lambda system, work: f"{record.medians[system][work]:,.0f}")


def _beside_juicefs(works_of: Mapping[str, Sequence[str]], cell: Callable[[str, str], str]) -> str:
    systems = {"one copy": "luciola", "two copies": "luciola 2 copies", "JuiceFS": BASE}
    rows = [
        (label, *(" / ".join(cell(system, work) for work in works) for system in systems.values()))
        for label, works in works_of.items()
    ]
    return _table(("work", *systems), rows)


def peers() -> str:
    """Return one copy beside other file systems, and what one and two copies are of the best of them."""
    fields = json.loads((RESULTS / "peers.json").read_text())
    rounds: dict[str, dict[str, list[float]]] = fields["figures"]
    systems = {"Luciola": "luciola", "MooseFS": "moosefs", "GlusterFS": "glusterfs", "JuiceFS": "juicefs"}
    rows = [
        (
            work.replace(" x", " ×"),
            *(f"{statistics.median(rounds[system][work]):,.0f}" for system in systems.values()),
            *(_spread(spread(_of_the_best(rounds, work, copies))) for copies in ("", " 2 copies")),
        )
        for work in rounds["luciola"]
    ]
    return _table(("work", *systems, "of the best", "two copies, of the best"), rows)


def peers_processor() -> str:
    """Return the processor time of three operations by process, beside MooseFS."""
    processor: dict[str, dict[str, dict[str, float]]] = json.loads((RESULTS / "peers.json").read_text())[
        "processor_us"
    ]
    systems = {"Luciola": "luciola", "MooseFS": "moosefs"}
    rows = [
        (
            work.replace(" x", " ×").rpartition(" ")[0],
            *(
                ", ".join(
                    f"{name} {used:,.0f}" for name, used in processor[system][work].items() if used >= 0.5
                )
                for system in systems.values()
            ),
        )
        for work in processor["luciola"]
    ]
    return _table(("work", *systems), rows)


def _of_the_best(rounds: Mapping[str, Mapping[str, Sequence[float]]], work: str, copies: str) -> list[float]:
    """Return the ratio to the best other system with as many copies, in each round."""
    own = rounds["luciola" + copies][work]
    others = [
        figures[work]
        for system, figures in rounds.items()
        if not system.startswith("luciola") and system.endswith(" 2 copies") == bool(copies)
    ]
    return [value / max(rivals) for value, *rivals in zip(own, *others, strict=True)]


def copies_before(name: str) -> str:
    """Return the ratios of one and two copies to an earlier version, from a run of both."""
    before, ratios = ratios_to_before(RESULTS / name)
    columns = {"one copy": ratios["luciola"], "two copies": ratios["luciola 2 copies"]}
    rows = [(work, *(_spread(column[work]) for column in columns.values())) for work in ratios["luciola"]]
    return _table((f"ratio to {before}", *columns), rows)


def turns_before() -> str:
    """Return the ratios of each job of `turns.py` to an earlier version, in both orders, and their geometric mean."""
    before, ratios = ratios_to_before(RESULTS / "trust-data.json")
    rows = []
    for work, first in ratios["first"].items():
        second = ratios["second"][work]
        mean = statistics.geometric_mean((first[0], second[0]))
        rows.append((work, _spread(first), _spread(second), f"{mean:.2f}"))
    return _table((f"ratio to {before}", "this one first", "the other first", "mean"), rows)


def ratios_to_before(path: Path) -> tuple[str, Mapping[str, Mapping[str, Spread]]]:
    """Return the earlier version of a record of two, and the ratios to it by column and work."""
    fields = json.loads(path.read_text())
    kept: dict[str, dict[str, Spread]] = fields.get("ratios", {})
    figures: dict[str, dict[str, list[float]]] = fields.get("figures", {})
    for system in figures.keys() & {"luciola", "luciola 2 copies"}:
        before = figures[system.replace("luciola", "before")]
        kept[system] = {
            work: spread([now / then for now, then in zip(values, before[work], strict=True)])
            for work, values in figures[system].items()
        }
    return fields["before"], kept


def spread(ratios: Sequence[float]) -> Spread:
    """Return the median of the rounds' ratios, the lowest and the highest."""
    return statistics.median(ratios), min(ratios), max(ratios)


def _spread(ratio: Spread) -> str:
    median, low, high = ratio
    return f"{median:.2f} ({low:.2f}–{high:.2f})"


def _short(low: float, high: float) -> str:
    """Return a range of ratios: one digit after the point, none from 10 on (`9.8–12`)."""
    return "–".join(f"{value:.0f}" if value >= 9.95 else f"{value:.1f}" for value in (low, high))


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, *rows]
    text = ["| " + " | ".join(line) + " |\n" for line in lines]
    return text[0] + "|---|" + "---:|" * (len(head) - 1) + "\n" + "".join(text[1:])


def _both(work: str, unit: str) -> tuple[str, str]:
    return f"{work} x1 {unit}", f"{work} x4 {unit}"


JUICEFS_ROWS: Mapping[str, Sequence[str]] = {
    "sequential write 1M, MiB/s": ("seq write 1M x1 MiB/s",),
    "sequential read 1M ×1, MiB/s": ("seq read 1M x1 MiB/s",),
    "sequential read 1M ×4, MiB/s": ("seq read 1M x4 MiB/s",),
    "sequential read 128K ×1, MiB/s": ("seq read 128K x1 MiB/s",),
    "random read 4K ×1 direct, IOPS": ("randread 4K x1 direct IOPS",),
    "random read 4K ×8 direct, IOPS": ("randread 4K x8 direct IOPS",),
    "random read 1M ×4 direct, IOPS": ("randread 1M x4 direct IOPS",),
    "random write 4K ×1 direct, IOPS": ("randwrite 4K x1 direct IOPS",),
    "random write 4K ×8 direct, IOPS": ("randwrite 4K x8 direct IOPS",),
    "random write 128K ×4 direct, IOPS": ("randwrite 128K x4 direct IOPS",),
    **{
        f"{work} ×1 / ×4, op/s": _both(work, "op/s")
        for work in ("create", "stat", "open and close", "rename", "list with stat", "unlink")
    },
    **{
        f"{work.replace('-', '–')} ×1 / ×4, file/s": _both(work, "file/s")
        for work in ("write 128K files", "read 128K files", "unpack 5-20K files")
    },
}
SHORT_ROWS: Mapping[str, Sequence[str]] = {
    "sequential write / read 1M, MiB/s": ("seq write 1M x1 MiB/s", "seq read 1M x1 MiB/s"),
    "random read 4K, 1 / 8 processes, IOPS": ("randread 4K x1 direct IOPS", "randread 4K x8 direct IOPS"),
    "random write 4K, 1 / 8 processes, IOPS": ("randwrite 4K x1 direct IOPS", "randwrite 4K x8 direct IOPS"),
    "create / stat, op/s": ("create x1 op/s", "stat x1 op/s"),
    "unpack an archive of 5–20 KiB files, file/s": ("unpack 5-20K files x1 file/s",),
}
TABLES: Mapping[str, Callable[[], str]] = {
    "juicefs": medians_and_ratios,
    "juicefs-short": medians_in_short,
    "peers": peers,
    "peers-processor": peers_processor,
    "trust-names": partial(copies_before, "trust-names.json"),
    "trust-small-files": partial(copies_before, "trust-small-files.json"),
    "trust-data": turns_before,
}


def written(page: Path) -> str:
    """Return the text of a page with each of its tables as the records have it."""
    return TABLE.sub(lambda found: found[1] + TABLES[found[2]]() + found[4], page.read_text())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    stale = [page for page in PAGES if page.read_text() != written(page)]
    if options.check and stale:
        sys.exit(f"run python benchmarks/tables.py: stale tables in {', '.join(map(str, stale))}")
    for page in stale:
        page.write_text(written(page))


if __name__ == "__main__":
    main()
