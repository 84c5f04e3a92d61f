"""`luciola metadata`: replicated metadata, as an administrator sees them."""

import asyncio
import shlex
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import NotRequired, TypedDict, Unpack

import click

from ..errors import Busy, Error, InvalidArgument, Timeout, Unavailable
from ..kv.checkpoint.history import format_moment
from ..units import format_bytes
from ..wire import RpcClients
from ..wire.etcd import EtcdClient, EtcdOptions
from . import metadata_restore, private_etcd
from .administration import confirm
from .datadir import DataDir, Shape, check_shape
from .metadata_log import log_of, patiently
from .metadata_migrate import to_logs, to_stores
from .metadata_options import EMBEDDED, AccessGiven, MetadataWanted, etcd_options, wanted_metadata
from .metadata_room import make_room
from .metadata_status import (
    PRIMARY,
    STANDBY,
    LogState,
    MemberState,
    ReplicaState,
    describe_members,
    logs_of,
    members_of,
    primary_manager,
)
from .metadata_switch import finish
from .mgmtd_client import MgmtdClient, serving_meta
from .options import data_option, json_option, yes_option
from .output import print_json, print_table
from .replica_control import check_able, check_absent, find_replica, lead, make_checkpoint
from .supervisor import end_leftovers, manager_nodes, meta_nodes


@click.group()
def metadata() -> None:
    """Replicated metadata of a cluster (`luciola up --metadata`).

    \b
    Example:
      luciola metadata status --data /var/lib/luciola
      luciola metadata promote 101 --data /var/lib/luciola
    """


class ProcessState(TypedDict):
    """One process of mgmtd or meta."""

    kind: str
    id: str
    role: str


class Report(TypedDict):
    """What `metadata status` prints. `error`: why the logs could not be read."""

    cluster_id: str
    processes: list[ProcessState]
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
    shape, _ = _replicated(data_path)
    report = asyncio.run(_report(shape))
    if as_json:
        print_json(report)
    else:
        _print(report)
    led = {each["kind"] for each in report["processes"] if each["role"] == PRIMARY}
    if led != {"mgmtd", "meta"} or report["notes"] or "error" in report:
        raise click.exceptions.Exit(1)


def _replicated(data_path: Path) -> tuple[Shape, EtcdOptions]:
    """Return what a cluster is, and how its etcd is reached. Raises: InvalidArgument if it has none."""
    shape = DataDir(data_path.absolute()).read_shape()
    options = shape.cluster.metadata_options()
    if options is None:
        raise InvalidArgument(
            "the metadata of this cluster are not replicated: mgmtd and meta have a store each; "
            "`luciola metadata migrate` changes that"
        )
    return shape, options


async def _report(shape: Shape) -> Report:
    options = shape.cluster.metadata_options()
    assert options is not None, "its metadata are replicated"
    members, processes = await asyncio.gather(members_of(options), _processes(shape))
    report: Report = {
        "cluster_id": shape.cluster.cluster_id,
        "processes": processes,
        "logs": [],
        "etcd": members,
        "notes": describe_members(members),
    }
    try:
        report["logs"] = await logs_of(options, shape.cluster)
    except (Unavailable, Timeout) as error:
        report["error"] = str(error)
    return report


async def _processes(shape: Shape) -> list[ProcessState]:
    manager = await primary_manager(shape.cluster)
    serving = None
    if manager is not None:
        async with MgmtdClient.connect(shape.cluster) as client:
            try:
                serving = serving_meta(await client.routing())
            except (Unavailable, Timeout):
                serving = None
    managers = [_process("mgmtd", node, primary=manager) for node in manager_nodes(shape)]
    meta = None if serving is None else str(serving.id)
    return managers + [_process("meta", node, primary=meta) for node in meta_nodes(shape)]


def _process(kind: str, number: int, *, primary: str | None) -> ProcessState:
    return {"kind": kind, "id": str(number), "role": PRIMARY if str(number) == primary else STANDBY}


def _print(report: Report) -> None:
    click.echo(f"cluster {report['cluster_id']}")
    rows = [(each["kind"], each["id"], each["role"]) for each in report["processes"]]
    print_table(("SERVICE", "ID", "ROLE"), rows)
    if report["logs"]:
        click.echo()
        records = [
            (each["log"], str(each["first"]), str(each["last"]), str(each["epoch"]), each["owner"] or "-")
            for each in report["logs"]
        ]
        print_table(("LOG", "FIRST", "LAST", "EPOCH", "LED BY"), records, right=(1, 2, 3))
    if any(log["replicas"] for log in report["logs"]):
        click.echo()
        followers = [
            (log["log"], each["id"], *_numbers(each)) for log in report["logs"] for each in log["replicas"]
        ]
        print_table(("FOLLOWS", "ID", "AT RECORD", "BEHIND", "CHECKPOINT"), followers, right=(2, 3, 4))
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


def _numbers(replica: ReplicaState) -> list[str]:
    """What is shown of a replica: nothing for what it does not say."""
    numbers = (replica["position"], replica["lag"], replica["checkpoint"] or None)
    return ["-" if number is None else str(number) for number in numbers]


@metadata.command()
@click.argument("node")
@data_option(required=True)
def promote(node: str, data_path: Path) -> None:
    """Let another process of mgmtd or meta be the primary: NODE, as `luciola metadata status` shows it.

    The present primary gives its lease up, so programs wait for a moment, and see no error.

    \b
    Example:
      luciola metadata promote 101 --data /var/lib/luciola
    """

    async def work(clients: RpcClients, logs: list[LogState]) -> None:
        log, replica = find_replica(logs, node)
        check_able(replica)
        if replica["leads"]:
            click.echo(f"{log['log']} {node} is the primary")
            return
        await lead(clients, log, replica)
        click.echo(f"{log['log']} {node} is the primary now")

    _with_replicas(data_path, work)


@metadata.command()
@click.argument("node")
@data_option(required=True)
@yes_option
def forget(node: str, data_path: Path, *, yes: bool) -> None:
    """Count no more on the checkpoints of a process of mgmtd or meta that has gone for good: NODE, as in `status`.

    Until then the log is trimmed as if that process still had them. It has to be stopped; one that comes back all the
    same counts again.

    \b
    Example:
      luciola metadata forget 102 --data /var/lib/luciola
    """
    shape, options = _replicated(data_path)

    async def find() -> tuple[LogState, ReplicaState]:
        found = find_replica(await logs_of(options, shape.cluster), node)
        check_absent(found[1])
        return found

    log, replica = asyncio.run(find())
    confirm(
        f"{log['log']} {node} will not come back: its checkpoint up to record {replica['checkpoint']} is lost?",
        yes=yes,
    )
    asyncio.run(_withdraw(shape, options, log["log"], node))
    click.echo(f"{log['log']} {node} counts no more")


async def _withdraw(shape: Shape, options: EtcdOptions, kind: str, node: str) -> None:
    async with EtcdClient(options) as client, log_of(client, shape, kind) as ordered:
        await patiently(lambda: ordered.withdraw(node))


@metadata.command()
@data_option(required=True)
def checkpoint(data_path: Path) -> None:
    """Make a checkpoint of each copy of the metadata, and remove what the log needs no more.

    The services do this by themselves from time to time (`[metadata]` in the configuration).

    \b
    Example:
      luciola metadata checkpoint --data /var/lib/luciola
    """
    _with_replicas(data_path, _make_checkpoints)


@metadata.command()
@data_option(required=True)
def trim(data_path: Path) -> None:
    """Make room in etcd: checkpoints, a shorter log, smaller files of etcd's members, and the end of their alarms.

    Each member serves nothing while its file is made smaller: seconds for a GiB.

    \b
    Example:
      luciola metadata trim --data /var/lib/luciola
    """
    _, options = _replicated(data_path)

    async def work(clients: RpcClients, logs: list[LogState]) -> None:
        await _make_checkpoints(clients, logs)
        if await _make_room(options):  # what a full etcd could not take, it takes now
            await _make_checkpoints(clients, logs)
            await _make_room(options)

    _with_replicas(data_path, work)


@metadata.command()
@data_option(required=True)
@click.option(
    "--to",
    "target",
    metavar="etcd | etcd://HOST:PORT,… | embedded",
    required=True,
    help="A private etcd, one that runs elsewhere, or one store each for mgmtd and meta.",
)
@etcd_options
def migrate(data_path: Path, target: str, **given: Unpack[AccessGiven]) -> None:
    """Move the metadata of a cluster that is stopped into logs in etcd, or out of them.

    Programs pause from `luciola down` to `luciola up`. The old stores are kept, and renamed. A migration that is
    interrupted has done nothing yet, or is finished by the next `luciola up`.

    \b
    Example:
      luciola metadata migrate --to etcd --data /var/lib/luciola
      luciola metadata migrate --to embedded --data /var/lib/luciola
    """
    data = DataDir(data_path.absolute())
    data.read_shape()  # or there is no cluster
    where = "" if target == EMBEDDED else target
    wanted = wanted_metadata({**given, "metadata": where})
    if not where and wanted != MetadataWanted():
        raise InvalidArgument(
            f"--to {EMBEDDED} has no other options: there is one process of mgmtd and of meta"
        )
    _require_stopped(data)
    if wanted.is_private:
        private_etcd.require_programs()
    with data.supervised():
        end_leftovers(data)
        if finish(data):
            click.echo("finished a migration that was interrupted")
        shape = data.read_shape()
        if _is_there(data, shape, wanted):
            click.echo("the metadata are there already")
            return
        migrated = to_logs(data, shape, wanted) if where else to_stores(data, shape)
        finish(data)
    for kind, index in migrated.positions.items():
        click.echo(f"{kind}: {'its log begins after' if where else 'its store has all up to'} record {index}")
    click.echo(
        f"the old stores are kept in {data.root}, as NAME{migrated.suffix}: remove them when the cluster works"
    )
    click.echo(f"to start it: luciola up --data {shlex.quote(str(data.root))}")


@metadata.command()
@data_option(required=True)
@click.option(
    "--at", metavar="TIME", required=True, help="As in 2026-12-02T14:30:00, or with +01:00 or Z behind it."
)
@click.option("--dry-run", is_flag=True, help="Make that state, say what it would change, and remove it.")
@yes_option
def restore(data_path: Path, at: str, *, dry_run: bool, yes: bool) -> None:
    """Bring names, attributes and small files of a cluster that is stopped back to how they were at a time.

    For replicated metadata with a history (`[metadata] history_s`). Files that were removed have their bytes again;
    bytes that were written over stay as they are now, and what has grown keeps its length. Nothing is removed: the
    stores that are replaced are renamed, and the abandoned state can be restored as well. End all mounts before.

    \b
    Example:
      luciola down --data /var/lib/luciola
      luciola metadata restore --at 2026-12-02T14:30:00 --data /var/lib/luciola
      luciola up --data /var/lib/luciola
    """
    _replicated(data_path)
    at_ms = metadata_restore.parse_time(at, now_ms=time.time_ns() // 1_000_000)
    data = DataDir(data_path.absolute())
    _require_stopped(data)
    with data.supervised():
        end_leftovers(data)
        if finish(data):
            click.echo("finished a migration or restore that was interrupted")
        shape, _ = _replicated(data_path)
        made = metadata_restore.stage(data, shape, at_ms)
        try:
            _print_staged(made)
            if dry_run:
                metadata_restore.give_up(data)
                return
            confirm("All later changes are abandoned. Restore it?", yes=yes)
        except BaseException:
            metadata_restore.give_up(data)
            raise
        suffix = metadata_restore.decide(data, shape, made)
        finish(data)
    click.echo(
        f"the replaced stores are kept in {data.root}, as NAME{suffix}: remove them when the cluster works"
    )
    click.echo(f"to start it: luciola up --data {shlex.quote(str(data.root))}")


def _print_staged(made: metadata_restore.Staged) -> None:
    later = made.last.index - made.record
    click.echo(
        f"the state of {format_moment(made.unix_ms)}: record {made.record}, and {later} later ones abandoned"
    )
    report = made.report
    if report.grown:
        click.echo(
            f"{report.grown} of {report.files} files in chunks have been written since, and keep their length"
        )
    if report.gone_count:
        named = ", ".join(map(str, report.gone))
        click.echo(
            f"{report.gone_count} of {report.files} files in chunks lost their bytes since: inodes {named}"
        )


def _require_stopped(data: DataDir) -> None:
    """Raises: Busy."""
    if data.is_supervised():
        raise Busy(
            f"the cluster runs: stop it first with `luciola down --data {shlex.quote(str(data.root))}`"
        )


def _is_there(data: DataDir, shape: Shape, wanted: MetadataWanted) -> bool:
    """Return whether the metadata are where they are wanted. Raises: InvalidArgument if they are in another etcd."""
    if not wanted.where or shape.cluster.metadata is None:
        return not wanted.where and shape.cluster.metadata is None
    known = {endpoint.partition("://")[2] for endpoint in shape.cluster.metadata.endpoints}
    if wanted.is_private != bool(shape.etcd_peers) or (wanted.addresses and set(wanted.addresses) != known):
        raise InvalidArgument(
            f"from one etcd to another: migrate --to {EMBEDDED} first, and then to the other; "
            "if it is the same etcd, which has moved, `luciola up --metadata` takes its new addresses"
        )
    check_shape(data, storage_nodes=None, replicas=None, metadata=wanted)
    return True


def _with_replicas(data_path: Path, work: Callable[[RpcClients, list[LogState]], Awaitable[None]]) -> None:
    shape, options = _replicated(data_path)

    async def run() -> None:
        logs = await logs_of(options, shape.cluster)
        async with shape.cluster.clients() as clients:
            await work(clients, logs)

    asyncio.run(run())


async def _make_checkpoints(clients: RpcClients, logs: list[LogState]) -> None:
    """One after the other: the last one trims behind what all have."""
    for log in logs:
        for replica in log["replicas"]:
            name = f"{log['log']} {replica['id']}"
            try:
                state = await make_checkpoint(clients, replica)
            except Error as error:  # the others have theirs
                click.echo(f"{name}: no checkpoint: {error}")
            else:
                click.echo(f"{name}: a checkpoint up to record {state.checkpoint}")


async def _make_room(options: EtcdOptions) -> bool:
    """Return whether a member was full."""
    was_full = False
    async for made in make_room(options):
        was_full = was_full or made["state"] == "full"
        if made["state"] == "unreachable":
            click.echo(f"etcd at {made['address']} does not answer")
        else:
            sizes = f"{format_bytes(made['before_bytes'])} → {format_bytes(made['after_bytes'])}"
            click.echo(f"etcd at {made['address']}: {sizes}")
    return was_full


__all__ = ["metadata"]
