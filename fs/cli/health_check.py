"""`luciola health`: what is wrong with a cluster, and what helps."""

import asyncio
from typing import TypedDict

import click

from ..errors import Error, Timeout, Unavailable
from ..wire.pb import mgmtd_pb2 as pb
from .administration import ClusterTarget, cluster_options
from .datadir import DataDir
from .findings import Finding, Found, in_order, worst
from .health import (
    find_clock_skew,
    find_disk_errors,
    find_domains,
    find_incomplete,
    find_leaving,
    find_services,
    find_space,
    find_trouble,
)
from .mgmtd_client import MgmtdClient
from .options import is_on_this_machine, json_option
from .output import print_json
from .survey import survey


class Health(TypedDict):
    """What `luciola health` prints. `severity`: ok, or that of the worst finding."""

    severity: str
    findings: list[Found]


@click.command()
@cluster_options
@json_option
def health(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Show what is wrong with a cluster: a code, where, and what helps, the worst first.

    Exits with 0 if nothing is, 1 if all data can be used but something needs attention, 2 if something cannot be read
    or written, or is lost. docs/operations.md, "Health codes", has all codes. With --manager, processes and mounts of
    other machines are seen only as far as mgmtd knows them.

    \b
    Example:
      luciola health --data /var/lib/luciola
    """
    found = find_all(cluster)
    severity = worst(found)
    if as_json:
        report: Health = {
            "severity": severity.name.lower(),
            "findings": [each.as_found() for each in found],
        }
        print_json(report)
    else:
        print_findings(found)
    if severity:
        raise click.exceptions.Exit(int(severity))


def find_all(cluster: ClusterTarget) -> list[Finding]:
    """Return what is wrong with the cluster, the worst first. Raises: click.UsageError, InvalidArgument."""
    if is_on_this_machine(cluster.data_path, manager=cluster.manager):
        assert cluster.data_path is not None, "a named option was given"
        report = survey(DataDir(cluster.data_path.absolute()))
        found = [Finding.of(each) for each in report["findings"]]
        if {each.code for each in found} & {"CLUSTER_STOPPED", "MGMTD_DOWN"}:
            return found
        return in_order(found + cluster.ask(_find_counted))
    try:
        return in_order(cluster.ask(_find_published))
    except (Unavailable, Timeout) as error:
        return [Finding("MGMTD_DOWN", f"mgmtd does not answer: {error}", str(cluster.manager))]


def print_findings(found: list[Finding]) -> None:
    """Print each finding in three lines."""
    for each in found:
        click.echo(f"{each.severity.name} {each.code}: {each.what}")
        click.echo(f"    where:  {each.where}")
        click.echo(f"    remedy: {each.remedy}")
    if not found:
        click.echo("ok: nothing is wrong")


async def _find_published(ask: MgmtdClient) -> list[Finding]:
    """Return all that mgmtd and the storage nodes say."""
    routing = await ask.routing()
    nodes = [node.id for node in routing.nodes if node.kind == pb.NODE_STORAGE]
    spaces, counted = await asyncio.gather(ask.spaces(routing), _find_counted(ask))
    return [
        *find_trouble(routing, nodes),
        *find_incomplete(routing),
        *find_domains(routing),
        *find_services(routing),
        *find_space(spaces),
        *counted,
    ]


async def _find_counted(ask: MgmtdClient) -> list[Finding]:
    """Return what mgmtd knows of nodes that leave, what storage nodes have counted, and how their clocks differ."""
    try:
        routing = await ask.routing()
        timed = await ask.storage_statuses(routing)
        moves = await ask.control_moves(pb.ControlMovesRequest.STATUS)
    except Error:  # mgmtd has gone meanwhile: the next survey says so
        return []
    offsets = {f"node {node}": each.ahead_s for node, each in timed.items()}
    return [
        *find_leaving(routing, moves),
        *find_disk_errors({node: each.status for node, each in timed.items()}),
        *find_clock_skew(offsets | {"this machine": 0.0}),
    ]


__all__ = ["find_all", "health", "print_findings"]
