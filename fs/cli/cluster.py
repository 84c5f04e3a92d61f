"""`luciola up`, `down`, `status`: a cluster on this machine."""

import asyncio
import contextlib
import logging
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Final, NotRequired, TypeAlias, TypedDict, Unpack

import click

from ..config import load
from ..errors import Timeout, Unavailable
from ..fuse import Record, read_records, record_of, source_of, stale_mounts
from ..logfile import rotate_output
from ..metrics import address_of
from ..mgmtd.placement import REPLICAS_MAX
from ..wire.pb import mgmtd_pb2
from ..wire.pb.storage_pb2 import SpaceReply
from . import private_etcd, processes
from .administration import confirm
from .datadir import DataDir, Shape, check_shape, choose_shape
from .health import describe_domains, describe_progress, describe_space, describe_trouble
from .metadata_options import Given, metadata_options, wanted_metadata
from .metadata_status import (
    PRIMARY,
    STANDBY,
    LogState,
    MemberState,
    describe_members,
    leader_of,
    logs_of,
    members_of,
    primary_manager,
)
from .metadata_switch import finish
from .mgmtd_client import TAKE_OVER_S, ChainState, MgmtdClient, describe_chains, serving_meta
from .options import config_option, data_option, json_option, yes_option
from .output import print_json, print_table
from .processes import ServiceState
from .supervisor import (
    MANAGER_NODE,
    META_NODE,
    Supervisor,
    clean_stale_mounts,
    directory_of,
    end_extra_mounts,
    end_leftovers,
    read_state,
    storage_nodes,
)

READY_S: Final = 220.0  # longer than the supervisor itself waits for its services
DOWN_S: Final = 60.0
# What a supervisor in the background reports: lines of a word and a text.
NOTE: Final = "note"
READY: Final = "ready"
FAILED: Final = "failed"
REASON_BYTES_MAX: Final = 4096  # one write to a pipe
PATIENCE_S: Final = 2.0  # after which a command says what it waits for


@click.command()
@data_option(required=True)
@click.option(
    "--storage-nodes",
    type=click.IntRange(1, 64),
    help="Storage nodes of a new cluster, or more than a cluster has.  [default: 3]",
)
@click.option(
    "--replicas",
    type=click.IntRange(1, REPLICAS_MAX),
    help="Copies of every chunk in a new cluster.  [default: 2, or 1 with one storage node]",
)
@click.option(
    "--racks",
    type=click.IntRange(0, 64),
    help="Label the storage nodes as if they stood in so many racks, one after the other: for trials of placement.",
)
@click.option(
    "--mount",
    "mountpoint",
    type=click.Path(path_type=Path, file_okay=False),
    help="Also mount the cluster there.",
)
@metadata_options
@config_option
@click.option(
    "--accept-metadata-loss",
    is_flag=True,
    help="Continue with a metadata store that is older than the cluster, or with an empty one. Asks first.",
)
@click.option(
    "--rebuild-mgmtd",
    is_flag=True,
    help="Make a new store for mgmtd of what the storage nodes remember. Asks first.",
)
@yes_option
@click.option("--detach", is_flag=True, help="Return when everything is usable; the cluster keeps running.")
@click.option("--ready-fd", type=int, hidden=True, help="Where a detached supervisor reports.")
def up(
    data_path: Path,
    storage_nodes: int | None,
    replicas: int | None,
    racks: int | None,
    mountpoint: Path | None,
    config_file: Path | None,
    accept_metadata_loss: bool,
    rebuild_mgmtd: bool,
    yes: bool,
    detach: bool,
    ready_fd: int | None,
    **metadata_given: Unpack[Given],
) -> None:
    """Start a cluster on this machine and keep it running.

    The data directory is created if need be; with the same directory the same cluster comes back. Three storage nodes
    with two copies are the default: every chunk survives the loss of any node, and a third node takes part so that the
    load of a lost one spreads.

    \b
    Example:
      luciola up --data /var/lib/luciola --mount /mnt/luciola
      luciola up --data /var/lib/luciola --metadata etcd
    """
    if config_file is not None:
        load(config_file)  # a mistake is refused before anything is started
    data = DataDir(data_path.absolute())
    metadata = wanted_metadata(metadata_given)
    check_shape(data, storage_nodes=storage_nodes, replicas=replicas, metadata=metadata)
    if metadata.is_private:
        private_etcd.require_programs()
    _confirm_losses(data, rebuild_mgmtd=rebuild_mgmtd, accept_metadata_loss=accept_metadata_loss, yes=yes)
    if detach:
        _detach(data, [*sys.argv[1:], "--yes"])
        return
    from .live_table import LiveTable

    _log_to_stderr()
    if ready_fd is not None:
        rotate_output()
    try:
        data.create()
        with data.supervised(), LiveTable(enabled=ready_fd is None) as view:
            end_leftovers(data)  # which hold the ports that the shape names
            finish(data)  # a migration that was interrupted
            shape = choose_shape(
                data, storage_nodes=storage_nodes, replicas=replicas, racks=racks, metadata=metadata
            )
            if accept_metadata_loss:
                from . import stores

                stores.set_aside_broken_meta(data)
            supervisor = Supervisor(
                data,
                shape,
                accept_metadata_loss=accept_metadata_loss,
                rebuild_mgmtd=rebuild_mgmtd,
                config_file=None if config_file is None else config_file.absolute(),
                mountpoint=None if mountpoint is None else mountpoint.absolute(),
                on_change=view.show,
                on_note=lambda text: _report(ready_fd, NOTE, text),
            )
            asyncio.run(supervisor.run(on_ready=lambda _: _report(ready_fd, READY)))
    except OSError as error:
        _report(ready_fd, FAILED, str(error))
        raise


def _confirm_losses(data: DataDir, *, rebuild_mgmtd: bool, accept_metadata_loss: bool, yes: bool) -> None:
    if not (rebuild_mgmtd or accept_metadata_loss):
        return
    from . import stores

    data.read_shape()
    if rebuild_mgmtd:
        confirm(stores.rebuild_question(data), yes=yes)
    if accept_metadata_loss:
        confirm(stores.META_QUESTION, yes=yes)


@click.command()
@data_option(required=True)
def down(data_path: Path) -> None:
    """Stop the cluster of a data directory and unmount it.

    \b
    Example:
      luciola down --data /var/lib/luciola
    """
    data = DataDir(data_path.absolute())
    data.read_shape()
    was_running = data.is_supervised()
    _end_supervisor(data)
    _await_stop(data)
    end_extra_mounts(data, except_pids=set())
    end_leftovers(data)
    clean_stale_mounts(data)
    click.echo("the cluster is stopped" if was_running else "the cluster was not running")


def _end_supervisor(data: DataDir) -> None:
    """Ask the supervisor to stop everything. One that has just begun writes its id into the lock in a moment."""
    deadline = time.monotonic() + PATIENCE_S
    while data.is_supervised() and not data.signal_supervisor(signal.SIGTERM):
        if time.monotonic() > deadline:
            raise Unavailable(
                "the cluster runs, but not as a process that can be signalled from here: "
                "end `luciola up` where it was started"
            )
        time.sleep(0.05)


def _await_stop(data: DataDir) -> None:
    """Return when the supervisor is gone; print on standard error what it is waiting for."""
    began = time.monotonic()
    is_printed = False
    while data.is_supervised():
        waited_s = time.monotonic() - began
        if waited_s > DOWN_S:
            raise Timeout(f"the cluster has not stopped within {DOWN_S:.0f} s; see {data.root / 'log'}")
        if waited_s > PATIENCE_S and not is_printed:
            is_printed = True
            left = [each for each in read_state(data).get("services", []) if each["pid"]]
            mounts = [each["id"] for each in left if each["kind"] == "mount"]
            what = f"programs that use {', '.join(mounts)}" if mounts else f"{len(left)} services"
            click.echo(f"luciola: waiting for {what}; they will be disconnected", err=True)
        time.sleep(0.05)


@click.command()
@data_option(required=True)
@json_option
def status(data_path: Path, as_json: bool) -> None:
    """Show the services and chains of a cluster on this machine.

    Exits with 0 when everything runs, every chunk has all its copies and every disk takes writes, 1 otherwise.

    \b
    Example:
      luciola status --data /var/lib/luciola
    """
    data = DataDir(data_path.absolute())
    shape = data.read_shape()
    supervised = data.is_supervised()
    mounts = read_records(str(data.root))
    mounting = {record.pid for record in mounts}
    services = (
        [_checked(each, mounting) for each in read_state(data).get("services", [])] if supervised else []
    )
    services += _extra_mounts(data, services, mounts)
    services = [_with_channel(service, mounts) for service in services]
    report: Report = {
        "cluster_id": shape.cluster.cluster_id,
        "phase": read_state(data).get("phase", "stopped") if supervised else "stopped",
        "replicas": shape.replicas,
        "services": services,
        "chains": [],
        "notes": [],
        "full": [],
        "loading": False,
        "healthy": False,
    }
    troubles: list[str] = []
    if supervised:
        (manager, meta), members, logs = asyncio.run(_metadata_of(shape))
        services = [_checked_member(service, shape, members) for service in services]
        troubles = describe_members(members)
        try:
            routing, spaces, loading = asyncio.run(_state_of(shape, patience_s=TAKE_OVER_S if manager else 0))
            meta = None if (serving := serving_meta(routing)) is None else str(serving.id)
            report["chains"] = describe_chains(routing)
            services = [_reported(service, routing) for service in services]
            report["notes"] = [
                *_notes(shape, routing),
                *describe_progress(routing),
                *describe_domains(routing),
                *describe_space(spaces),
            ]
            report["loading"] = bool(loading)
            report["notes"] += [loading] if loading else []
            report["full"] = [node for node, space in sorted(spaces.items()) if space.full]
        except (Unavailable, Timeout) as error:
            report["error"] = str(error)
        primaries = {"mgmtd": manager, "meta": meta}
        services = [_with_role(service, primaries) for service in services]
        report["services"] = [_with_metrics(_with_log(service, logs), data) for service in services]
        troubles += _describe_roles(services) if shape.cluster.metadata is not None else []
        report["notes"] += troubles
    states = [service["state"] for service in report["services"]]
    chains = [chain["state"] for chain in report["chains"]]
    healthy = bool(states) and set(states) == {"running"} and bool(chains) and set(chains) == {"serving"}
    healthy = healthy and not report["full"] and not report["loading"] and not troubles
    report["healthy"] = healthy
    if as_json:
        print_json(report)
    else:
        _print_status(report)
    if not healthy:
        sys.exit(1)


class Report(TypedDict):
    """What `status` prints. `error`: why mgmtd could not be asked."""

    cluster_id: str
    phase: str
    replicas: int
    services: list[ServiceState]
    chains: list[ChainState]
    notes: list[str]
    full: list[int]
    loading: bool
    healthy: bool
    error: NotRequired[str]


Primaries: TypeAlias = tuple[str | None, str | None]  # ids of mgmtd and meta


async def _state_of(
    shape: Shape, *, patience_s: float
) -> tuple[mgmtd_pb2.Routing, dict[int, SpaceReply], str]:
    async with MgmtdClient.connect(shape.cluster) as manager:
        routing = await manager.routing(patience_s=patience_s)
        return routing, await manager.spaces(routing), await manager.load_in_progress(routing)


async def _metadata_of(shape: Shape) -> tuple[Primaries, list[MemberState], list[LogState]]:
    """Return which mgmtd and meta say that they are primary, the members of etcd, and the logs, if they can be read."""
    options = shape.cluster.metadata_options()
    if options is None:
        return (str(MANAGER_NODE), str(META_NODE)), [], []

    async def logs() -> list[LogState]:
        try:
            return await logs_of(options, shape.cluster)
        except (Unavailable, Timeout):  # what is said of the members says why
            return []

    manager, members, found = await asyncio.gather(
        primary_manager(shape.cluster), members_of(options), logs()
    )
    return (manager, leader_of(found, "meta")), members, found


def _checked_member(service: ServiceState, shape: Shape, members: list[MemberState]) -> ServiceState:
    """A member of etcd whose process runs has started when it answers."""
    if service["kind"] != "etcd" or service["state"] != "running":
        return service
    assert shape.etcd_peers, "a private etcd runs"
    state = members[int(service["id"]) - 1]["state"]
    return {**service, "state": "starting"} if state == "unreachable" else service


def _with_role(service: ServiceState, primaries: dict[str, str | None]) -> ServiceState:
    """Say which of several processes of a kind serves."""
    if service["kind"] not in primaries:
        return service
    return {**service, "role": PRIMARY if service["id"] == primaries[service["kind"]] else STANDBY}


def _describe_roles(services: list[ServiceState]) -> list[str]:
    """Name each kind of service of which none serves."""
    kinds = {service["kind"] for service in services if "role" in service}
    served = {service["kind"] for service in services if service.get("role") == PRIMARY}
    return [f"no {kind} is the primary: programs wait until one is" for kind in sorted(kinds - served)]


def _with_log(service: ServiceState, logs: list[LogState]) -> ServiceState:
    """Add how far a process has come that follows a log, if it says so."""
    for log in logs:
        for replica in log["replicas"]:
            if (log["log"], replica["id"]) == (service["kind"], service["id"]) and replica["lag"] is not None:
                return {**service, "lag": replica["lag"], "checkpoint": replica["checkpoint"]}
    return service


def _with_metrics(service: ServiceState, data: DataDir) -> ServiceState:
    """Say where a service shows its metrics."""
    if service["kind"] == "etcd" or not service["pid"]:
        return service
    if service["kind"] == "mount":
        base = record_of(service["id"], str(data.root))
    else:
        base = data.root / directory_of(service["kind"], service["id"])
    address = address_of(base)
    return {**service, "metrics": address} if address else service


def _notes(shape: Shape, routing: mgmtd_pb2.Routing) -> list[str]:
    """Return what an administrator has to know or do."""
    known = {node.id for node in routing.nodes if node.kind == mgmtd_pb2.NODE_STORAGE}
    return describe_trouble(routing, known | set(storage_nodes(shape)))


def _reported(service: ServiceState, routing: mgmtd_pb2.Routing) -> ServiceState:
    """Show a running process as starting until mgmtd has a heartbeat of it, not only of the one before it."""
    if service["state"] != "running" or service["kind"] not in ("mgmtd", "meta", "storage"):
        return service
    node = next((each for each in routing.nodes if str(each.id) == service["id"]), None)
    if node is not None and node.status == mgmtd_pb2.DISABLED:
        return {**service, "state": "disabled"}
    reported = node is not None and node.pid == service["pid"] and node.status == mgmtd_pb2.CONNECTED
    return service if reported else {**service, "state": "starting"}


def _checked(service: ServiceState, mounting: set[int]) -> ServiceState:
    """What the supervisor says of a service, and what the system knows better. `mounting`: processes with a mount."""
    if service["state"] != "running":
        return service
    if not (service["pid"] and processes.is_alive(service["pid"])):
        return {**service, "state": "dead"}
    if service["kind"] == "mount" and service["pid"] not in mounting:
        return {**service, "state": "starting"}
    return service


def _extra_mounts(data: DataDir, services: list[ServiceState], mounts: list[Record]) -> list[ServiceState]:
    known = {service["id"] for service in services if service["kind"] == "mount"}
    served: list[ServiceState] = [
        {"kind": "mount", "id": record.mountpoint, "pid": record.pid, "state": "running"}
        for record in mounts
        if record.mountpoint not in known
    ]
    dead: list[ServiceState] = [
        {"kind": "mount", "id": str(mountpoint), "pid": None, "state": "dead"}
        for mountpoint in stale_mounts(source_of(str(data.root)))
        if str(mountpoint) not in known
    ]
    return served + dead


def _with_channel(service: ServiceState, mounts: list[Record]) -> ServiceState:
    """Say where the requests of a mount come from."""
    for record in mounts:
        if service["kind"] == "mount" and service["pid"] == record.pid and record.channel:
            return {**service, "channel": record.channel, "channel_reason": record.channel_reason}
    return service


def _print_status(report: Report) -> None:
    copies = "one copy" if report["replicas"] == 1 else f"{report['replicas']} copies"
    click.echo(f"cluster {report['cluster_id']}: {report['phase']}, {copies} of every chunk")
    if report["services"]:
        rows = [
            (
                each["kind"],
                each["id"],
                str(each["pid"] or "-"),
                each["state"],
                str(each.get("restarts", 0)),
                each.get("role", ""),
            )
            for each in report["services"]
        ]
        print_table(("SERVICE", "ID", "PID", "STATE", "RESTARTS", "ROLE"), rows, right=(2, 4))
    for service in report["services"]:
        if "channel" in service:
            reason = f" (io_uring: {service['channel_reason']})" if service["channel_reason"] else ""
            click.echo(f"mount {service['id']}: requests by {service['channel']}{reason}")
    for chain in report["chains"]:
        if chain["state"] != "serving":
            members = " → ".join(f"{each['node']} {each['state']}" for each in chain["targets"])
            click.echo(f"chain {chain['id']}: {chain['state']}: {members}")
    serving = sum(chain["state"] == "serving" for chain in report["chains"])
    if report["chains"]:
        click.echo(f"chains: {serving} of {len(report['chains'])} complete")
    for note in report["notes"]:
        click.echo(note)
    if "error" in report:
        click.echo(f"mgmtd: {report['error']}")


def _log_to_stderr() -> None:
    logging.basicConfig(
        level=logging.INFO, stream=sys.stderr, format="%(asctime)s %(levelname)s %(name)s: %(message)s"
    )


def _report(descriptor: int | None, word: str, text: str = "") -> None:
    """Send a line to the command that waits for this one. The log may be on a full disk."""
    if descriptor is not None:
        line = f"{word} {' '.join(text.split())}".encode(errors="surrogateescape")[: REASON_BYTES_MAX - 1]
        with contextlib.suppress(BrokenPipeError):  # it waits no more
            os.write(descriptor, line + b"\n")


def _detach(data: DataDir, arguments: list[str]) -> None:
    """Run this command again in the background and return when it reports that everything is usable."""
    data.create()
    reader, writer = os.pipe()
    log = data.log("supervisor")
    processes.rotate(log)
    start = log.stat().st_size if log.exists() else 0
    rest = [argument for argument in arguments if argument != "--detach"]
    with log.open("ab") as output:
        process = subprocess.Popen(
            [*processes.python("-m", "luciola"), *rest, "--ready-fd", str(writer)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            pass_fds=(writer,),
            start_new_session=True,
        )
    os.close(writer)
    try:
        answer = _await_answer(reader, deadline_s=time.monotonic() + READY_S)
        if answer is None:
            return
        process.terminate()
        process.wait(DOWN_S)
    finally:
        os.close(reader)
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    reason = next((line for line in reversed(said) if line.startswith("luciola: ")), said[-1] if said else "")
    reason = answer or reason or f"it was not ready within {READY_S:.0f} s"
    where = "" if "(log: " in reason else f" (log: {log})"
    raise Unavailable(f"the cluster did not start: {reason.removeprefix('luciola: ')}{where}")


def _await_answer(reader: int, *, deadline_s: float) -> str | None:
    """Print notes until the supervisor is ready (None) or has failed: the reason, empty if it gave none."""
    os.set_blocking(reader, False)
    received = ""
    while time.monotonic() < deadline_s:
        try:
            data = os.read(reader, REASON_BYTES_MAX)
        except BlockingIOError:
            time.sleep(0.02)
            continue
        if not data:
            break  # it has ended
        received += data.decode(errors="surrogateescape")
        *lines, received = received.split("\n")
        for word, _, text in (line.partition(" ") for line in lines):
            if word == READY:
                return None
            if word == FAILED:
                return text
            click.echo(f"luciola: {text}", err=True)
    return ""


__all__ = ["down", "status", "up"]
