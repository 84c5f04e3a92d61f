"""`luciola top`: what every service and mount of a cluster does now."""

import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final, TypedDict

import click

from ..errors import InvalidArgument, Unavailable
from ..metrics import Samples, read_samples
from ..units import format_bytes
from .datadir import DataDir
from .options import data_option, json_option
from .output import print_json, print_table, shown
from .rates import OPERATIONS, Rates, rates
from .survey import metered_services

TIMEOUT_S: Final = 2.0  # of one process: the others are shown meanwhile
INTERVAL_S: Final = 2.0
INTERVAL_MIN_S: Final = 1.0  # a process makes its text at most once a second
READERS_MAX: Final = 16
NAMED_MAX: Final = 3  # operations in one row
CLEAR: Final = "\x1b[H\x1b[J"  # of a terminal


class Row(Rates):
    """One process. `metrics`: where it shows them."""

    kind: str
    id: str
    metrics: str


class Report(TypedDict):
    """What `luciola top` prints. `silent`: processes that show no metrics, and why."""

    interval_s: float
    services: list[Row]
    silent: dict[str, str]


class Source(TypedDict):
    """A process that shows metrics."""

    kind: str
    id: str
    metrics: str


@click.command()
@data_option(required=True)
@click.option(
    "--interval",
    type=click.FloatRange(INTERVAL_MIN_S, 3600),
    default=INTERVAL_S,
    show_default=True,
    help="Seconds over which rates are taken.",
)
@click.option("--once", is_flag=True, help="Show one interval, and end.")
@json_option
def top(data_path: Path, *, interval: float, once: bool, as_json: bool) -> None:
    """Show operations and bytes a second, and latencies, of every service and mount on this machine.

    P50 and P99 are of the requests of the interval, without those that wait on purpose; docs/metrics.md says what they
    are made of. Storage nodes count operations and bytes, and no latencies.

    \b
    Examples:
      luciola top --data /var/lib/luciola
      luciola top --data /var/lib/luciola --once --json
    """
    data = DataDir(data_path.absolute())
    sources = sources_of(data)
    before, began_s = _read(sources), time.monotonic()
    is_screen = sys.stdout.isatty() and not once and not as_json
    while True:
        time.sleep(interval)
        sources = sources_of(data)
        after, now_s = _read(sources), time.monotonic()
        report = _compare(sources, before, after, elapsed_s=now_s - began_s)
        if is_screen:
            click.echo(CLEAR, nl=False)
        if as_json:
            print_json(report)
        else:
            print_report(report)
        if once:
            return
        before, began_s = after, now_s


def sources_of(data: DataDir) -> list[Source]:
    """Return the processes of the cluster that show metrics. Raises: Unavailable if none does; NotFound."""
    found: list[Source] = [
        {"kind": each["kind"], "id": each["id"], "metrics": each["metrics"]}
        for each in metered_services(data)
        if each["kind"] in OPERATIONS
    ]
    if not found:
        raise Unavailable(
            "no process shows metrics: the cluster does not run, or [metrics] listen is off",
            path=str(data.root),
        )
    return found


def _read(sources: list[Source]) -> dict[str, Samples | str]:
    """Return what each shows, or why it does not, by address."""

    def read(source: Source) -> Samples | str:
        try:
            return read_samples(source["metrics"], timeout_s=TIMEOUT_S)
        except (Unavailable, InvalidArgument) as error:
            return str(error)

    with ThreadPoolExecutor(READERS_MAX) as pool:
        return {
            source["metrics"]: each for source, each in zip(sources, pool.map(read, sources), strict=True)
        }


def _compare(
    sources: list[Source],
    before: dict[str, Samples | str],
    after: dict[str, Samples | str],
    *,
    elapsed_s: float,
) -> Report:
    report: Report = {"interval_s": elapsed_s, "services": [], "silent": {}}
    for source in sources:
        then, now = before.get(source["metrics"], {}), after[source["metrics"]]
        if isinstance(now, str):
            report["silent"][f"{source['kind']} {source['id']}"] = now
            continue
        if not isinstance(then, str) and then:  # else it has just begun
            measured = rates(source["kind"], then, now, elapsed_s=elapsed_s)
            report["services"].append({**source, **measured})
    return report


def print_report(report: Report) -> None:
    """Print a row for each process."""
    rows = [
        (
            each["kind"],
            shown(each["id"], terminal=True),
            f"{each['operations_per_s']:.1f}",
            f"{each['failed_per_s']:.1f}",
            _bytes(each["read_bytes_per_s"]),
            _bytes(each["written_bytes_per_s"]),
            _duration(each["p50_s"]),
            _duration(each["p99_s"]),
            ", ".join(f"{name} {rate:.0f}" for name, rate in list(each["operations"].items())[:NAMED_MAX]),
        )
        for each in report["services"]
    ]
    header = ("SERVICE", "ID", "OPS/S", "FAILED/S", "READ/S", "WRITTEN/S", "P50", "P99", "MOST")
    print_table(header, rows, right=(2, 3, 4, 5, 6, 7))
    for name, reason in report["silent"].items():
        click.echo(f"{name}: {reason}")


def _bytes(rate: float | None) -> str:
    return "-" if rate is None else format_bytes(rate)


def _duration(duration_s: float | None) -> str:
    if duration_s is None:
        return "-"
    return f"{duration_s:.2f} s" if duration_s >= 1 else f"{duration_s * 1000:.2f} ms"


__all__ = ["print_report", "sources_of", "top"]
