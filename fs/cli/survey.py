"""What `luciola status` and `luciola health` find out of a cluster on this machine."""

import asyncio
from typing import Final, NotRequired, TypeAlias, TypedDict

from ..errors import Timeout, Unavailable
from ..fuse import Record, read_records, record_of, source_of, stale_mounts
from ..ids import MANAGER_NODE, META_NODE
from ..metrics import address_of
from ..wire.pb import mgmtd_pb2
from ..wire.pb.storage_pb2 import SpaceReply
from . import processes
from .datadir import DataDir, Shape
from .findings import Finding, Found, in_order
from .health import describe_progress, find_domains, find_incomplete, find_services, find_space, find_trouble
from .metadata_status import (
    PRIMARY,
    STANDBY,
    LogState,
    MemberState,
    find_logs,
    find_members,
    leader_of,
    logs_of,
    members_of,
    primary_manager,
)
from .mgmtd_client import TAKE_OVER_S, ChainState, MgmtdClient, describe_chains, serving_meta
from .processes import ServiceState
from .supervisor import directory_of, read_state, storage_nodes

Primaries: TypeAlias = tuple[str | None, str | None]  # ids of mgmtd and meta
DOWN: Final = ("dead", "restarting", "refused", "stopped")  # states of a process that does not run


class Report(TypedDict):
    """What `luciola status` prints. `findings`: what is wrong; `error`: why mgmtd could not be asked."""

    cluster_id: str
    phase: str
    replicas: int
    services: list[ServiceState]
    chains: list[ChainState]
    notes: list[str]
    findings: list[Found]
    full: list[int]
    loading: bool
    healthy: bool
    error: NotRequired[str]


def survey(data: DataDir) -> Report:
    """Return the state of the cluster: of its processes, and what they say themselves. Raises: NotFound."""
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
        "findings": [],
        "full": [],
        "loading": False,
        "healthy": False,
    }
    found: list[Finding] = []
    troubles: list[str] = []
    if supervised:
        (manager, meta), members, logs = asyncio.run(_metadata_of(shape))
        services = [_checked_member(service, shape, members) for service in services]
        of_members = find_members(members)
        troubles = [finding.what for finding in of_members]
        found += of_members + find_logs(logs)
        try:
            routing, spaces, loading = asyncio.run(_state_of(shape, patience_s=TAKE_OVER_S if manager else 0))
            meta = None if (serving := serving_meta(routing)) is None else str(serving.id)
            report["chains"] = describe_chains(routing)
            services = [_reported(service, routing) for service in services]
            trouble, space = find_trouble(routing, _expected(shape, routing)), find_space(spaces)
            report["notes"] = [each.line for each in trouble] + describe_progress(routing)
            domains = find_domains(routing)
            report["notes"] += [each.what for each in domains] + [each.line for each in space]
            found += [*trouble, *domains, *space, *find_incomplete(routing), *find_services(routing)]
            report["loading"] = bool(loading)
            report["notes"] += [loading] if loading else []
            found += [Finding("META_LOADING", loading, "meta")] if loading else []
            report["full"] = [node for node, reply in sorted(spaces.items()) if reply.full]
        except (Unavailable, Timeout) as error:
            report["error"] = str(error)
            found.append(Finding("MGMTD_DOWN", f"mgmtd does not answer: {error}", "mgmtd"))
        primaries = {"mgmtd": manager, "meta": meta}
        services = [_with_role(service, primaries) for service in services]
        report["services"] = [_with_metrics(_with_log(service, logs), data) for service in services]
        troubles += _describe_roles(services) if shape.cluster.metadata is not None else []
        report["notes"] += troubles
    else:
        found.append(Finding("CLUSTER_STOPPED", f"the cluster in {data.root} does not run", str(data.root)))
    found += find_processes(report["services"])
    report["findings"] = [finding.as_found() for finding in in_order(_each_once(found))]
    report["healthy"] = _is_healthy(report) and not troubles
    return report


def metered_services(data: DataDir) -> list[ServiceState]:
    """Return the processes of the cluster that show metrics. They are not asked. Raises: NotFound."""
    data.read_shape()
    services = read_state(data).get("services", []) if data.is_supervised() else []
    services = services + _extra_mounts(data, services, read_records(str(data.root)))
    located = (_with_metrics(service, data) for service in services)
    return [service for service in located if "metrics" in service]


def _is_healthy(report: Report) -> bool:
    states = {service["state"] for service in report["services"]}
    chains = {chain["state"] for chain in report["chains"]}
    return states == {"running"} and chains == {"serving"} and not report["full"] and not report["loading"]


def _each_once(findings: list[Finding]) -> list[Finding]:
    """Two ways lead to some of them."""
    return list({(finding.code, finding.where): finding for finding in findings}.values())


def find_processes(services: list[ServiceState]) -> list[Finding]:
    """Return processes that do not run. Of storage nodes that have not reported routing says more."""
    found = []
    for service in services:
        where = f"{service['kind']} {service['id']}"
        what = f"{where} is {service['state']}"
        if service["kind"] == "mount" and service["state"] in DOWN:
            remedy = f"luciola umount {service['id']}, and mount again"
            found.append(Finding("MOUNT_DOWN", what, where, remedy))
        elif service["state"] in DOWN:
            found.append(Finding("SERVICE_DOWN", what, where, _see(service)))
        elif service["state"] == "starting" and service["kind"] != "storage":
            found.append(Finding("SERVICE_STARTING", what, where, f"wait; if it lasts, {_see(service)}"))
    return found


def _see(service: ServiceState) -> str:
    log = service.get("log")
    return f"its log says why: {log}" if log else "its log says why: log/*.log"


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


def _expected(shape: Shape, routing: mgmtd_pb2.Routing) -> set[int]:
    """Return the storage nodes that should report."""
    known = {node.id for node in routing.nodes if node.kind == mgmtd_pb2.NODE_STORAGE}
    return known | set(storage_nodes(shape))


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


__all__ = ["Report", "find_processes", "metered_services", "survey"]
