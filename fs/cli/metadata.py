"""`luciola metadata`: replicated metadata, as an administrator sees them."""

import asyncio
from pathlib import Path
from typing import NotRequired, TypedDict

import click

from ..errors import InvalidArgument, Timeout, Unavailable
from ..units import format_bytes
from .datadir import DataDir, Shape
from .metadata_status import (
    PRIMARY,
    STANDBY,
    LogState,
    MemberState,
    describe_members,
    logs_of,
    members_of,
    primary_manager,
)
from .mgmtd_client import MgmtdClient, serving_meta
from .options import data_option, json_option
from .output import print_json, print_table
from .supervisor import meta_nodes


@click.group()
def metadata() -> None:
    """Replicated metadata of a cluster (`luciola up --metadata`).

    \b
    Example:
      luciola metadata status --data /var/lib/luciola
    """


class ReplicaState(TypedDict):
    """One process of mgmtd or meta."""

    kind: str
    id: str
    role: str


class Report(TypedDict):
    """What `metadata status` prints. `error`: why the logs could not be read."""

    cluster_id: str
    replicas: list[ReplicaState]
    logs: list[LogState]
    etcd: list[MemberState]
    notes: list[str]
    error: NotRequired[str]


@metadata.command()
@data_option(required=True)
@json_option
def status(data_path: Path, as_json: bool) -> None:
    """Show the primary and standbys of mgmtd and meta, their logs, and the members of etcd.

    Exits with 0 when each has a primary and every member of etcd is well, 1 otherwise.

    \b
    Example:
      luciola metadata status --data /var/lib/luciola
    """
    shape = DataDir(data_path.absolute()).read_shape()
    if shape.cluster.metadata is None:
        raise InvalidArgument(
            "the metadata of this cluster are not replicated: mgmtd and meta have a store each; a new cluster can be "
            "started with `luciola up --metadata etcd`"
        )
    report = asyncio.run(_report(shape))
    if as_json:
        print_json(report)
    else:
        _print(report)
    led = {each["kind"] for each in report["replicas"] if each["role"] == PRIMARY}
    if led != {"mgmtd", "meta"} or report["notes"] or "error" in report:
        raise click.exceptions.Exit(1)


async def _report(shape: Shape) -> Report:
    options = shape.cluster.metadata_options()
    assert options is not None, "its metadata are replicated"
    members, replicas = await asyncio.gather(members_of(options), _replicas(shape))
    report: Report = {
        "cluster_id": shape.cluster.cluster_id,
        "replicas": replicas,
        "logs": [],
        "etcd": members,
        "notes": describe_members(members),
    }
    try:
        report["logs"] = await logs_of(options, shape.cluster.cluster_id)
    except (Unavailable, Timeout) as error:
        report["error"] = str(error)
    return report


async def _replicas(shape: Shape) -> list[ReplicaState]:
    manager = await primary_manager(shape.cluster)
    serving = None
    if manager is not None:
        async with MgmtdClient.connect(shape.cluster) as client:
            try:
                serving = serving_meta(await client.routing())
            except (Unavailable, Timeout):
                serving = None
    managers = [_replica("mgmtd", number, primary=manager) for number in range(1, shape.managers + 1)]
    meta = None if serving is None else serving.id
    return managers + [_replica("meta", node, primary=meta) for node in meta_nodes(shape)]


def _replica(kind: str, number: int, *, primary: int | None) -> ReplicaState:
    return {"kind": kind, "id": str(number), "role": PRIMARY if number == primary else STANDBY}


def _print(report: Report) -> None:
    click.echo(f"cluster {report['cluster_id']}")
    rows = [(each["kind"], each["id"], each["role"]) for each in report["replicas"]]
    print_table(("SERVICE", "ID", "ROLE"), rows)
    if report["logs"]:
        click.echo()
        records = [
            (each["log"], str(each["first"]), str(each["last"]), str(each["epoch"]), each["owner"] or "-")
            for each in report["logs"]
        ]
        print_table(("LOG", "FIRST", "LAST", "EPOCH", "LED BY"), records, right=(1, 2, 3))
    click.echo()
    members = [
        (
            each["address"],
            each["state"] + (", leads" if each["leads"] else ""),
            each["version"] or "-",
            format_bytes(each["size_bytes"]),
            format_bytes(each["used_bytes"]),
        )
        for each in report["etcd"]
    ]
    print_table(("ETCD", "STATE", "VERSION", "SIZE", "USED"), members, right=(3, 4))
    for note in report["notes"]:
        click.echo(note)
    if "error" in report:
        click.echo(f"logs: {report['error']}")


__all__ = ["metadata"]
