"""What commands show of replicated metadata: who is primary, the logs, the members of etcd."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Final, TypedDict

from ..errors import Error, NotFound
from ..kv.checkpoint.keeper import Announcement, announcements
from ..kv.log.etcd import EtcdLog
from ..units import format_bytes
from ..wire import Cluster, RpcClients, methods
from ..wire.etcd import EtcdClient, EtcdOptions
from ..wire.pb import etcd_pb2 as pb
from ..wire.pb.common_pb2 import Empty
from .findings import Finding
from .mgmtd_client import MgmtdClient

LOGS: Final = ("mgmtd", "meta")
ANSWER_S: Final = 2.0  # of what is shown if it is there
LAG_MAX: Final = 10_000  # records: some seconds of a busy log, and of a take-over
PRIMARY: Final = "primary"
STANDBY: Final = "standby"


class MemberState(TypedDict):
    """One member of etcd. Sizes are of its file: `used_bytes` of them are not free for other records."""

    address: str
    state: str  # running | unreachable | full | corrupt
    leads: bool
    version: str
    size_bytes: int
    used_bytes: int


class ReplicaState(TypedDict):
    """One process that follows a log: of one that does not answer `position` and `lag` are None.

    `position`, `lag`: the last record in its store, and how many there are behind it. `checkpoint`: the last record in
    the newest of its checkpoints, 0 if it has none.
    """

    id: str
    address: str
    leads: bool
    position: int | None
    lag: int | None
    checkpoint: int


class LogState(TypedDict):
    """One log: its records that are kept, and who leads it under which epoch (0: no process)."""

    log: str
    first: int
    last: int
    epoch: int
    owner: str
    replicas: list[ReplicaState]


async def primary_manager(cluster: Cluster) -> str | None:
    """Return the id of the mgmtd process that answers for the cluster; None if none does."""
    addresses = cluster.mgmtd_grpc.split(",")

    async def answers(address: str) -> bool:
        try:
            async with (
                asyncio.timeout(ANSWER_S),
                MgmtdClient.connect(replace(cluster, mgmtd_grpc=address)) as one,
            ):
                return await one.answers()
        except TimeoutError:
            return False

    replies = await asyncio.gather(*map(answers, addresses))
    return next((str(number) for number, is_primary in enumerate(replies, 1) if is_primary), None)


async def members_of(options: EtcdOptions) -> list[MemberState]:
    """Return each member, in the order of its addresses."""
    async with EtcdClient(options, request_s=ANSWER_S) as client:
        try:
            alarms = {alarm.member_id: alarm.alarm for alarm in await client.alarms()}
        except Error:  # no majority, or no member answers: the state of each shows it
            alarms = {}
        return [await _member(client, address, alarms) for address in options.endpoints]


async def _member(client: EtcdClient, address: str, alarms: dict[int, "pb.AlarmType"]) -> MemberState:
    try:
        status = await client.status(address)
    except Error:
        return _unreachable(address)
    member = status.header.member_id
    return {
        "address": address,
        "state": {pb.NOSPACE: "full", pb.CORRUPT: "corrupt"}.get(alarms.get(member, pb.NONE), "running"),
        "leads": status.leader == member,
        "version": status.version,
        "size_bytes": status.size_bytes,
        "used_bytes": status.used_bytes,
    }


def _unreachable(address: str) -> MemberState:
    return {
        "address": address,
        "state": "unreachable",
        "leads": False,
        "version": "",
        "size_bytes": 0,
        "used_bytes": 0,
    }


def describe_members(members: Sequence[MemberState]) -> list[str]:
    """One line for each trouble; none if every member is well."""
    return [finding.what for finding in find_members(members)]


def find_members(members: Sequence[MemberState]) -> list[Finding]:
    """Return what is wrong with the members of etcd."""
    found = [
        Finding(
            "ETCD_MEMBER_DOWN", f"etcd at {each['address']} does not answer", f"etcd at {each['address']}"
        )
        for each in members
        if each["state"] == "unreachable"
    ]
    if found and len(found) > (len(members) - 1) // 2:
        what = (
            f"{len(found)} of {len(members)} members of etcd do not answer, a majority is needed: no metadata can be "
            "read or changed until they are back"
        )
        found.append(Finding("ETCD_NO_QUORUM", what, "etcd"))
    elif members and not any(each["leads"] for each in members):
        what = "etcd has no leader: no metadata can be read or changed until it has one"
        found.append(Finding("ETCD_NO_LEADER", what, "etcd"))
    if full := [each for each in members if each["state"] == "full"]:
        where = ", ".join(each["address"] for each in full)
        size = format_bytes(max(each["size_bytes"] for each in full))
        what = (
            f"etcd at {where} is full ({size}): no metadata can be changed; `luciola metadata trim` makes room, and "
            'docs/operations.md, "A full etcd", says more'
        )
        found.append(Finding("ETCD_FULL", what, f"etcd at {where}"))
    return found + [
        Finding(
            "ETCD_CORRUPT",
            f"etcd at {each['address']} found its data damaged: replace that member",
            f"etcd at {each['address']}",
        )
        for each in members
        if each["state"] == "corrupt"
    ]


def find_logs(logs: Sequence[LogState]) -> list[Finding]:
    """Return processes that follow a log and do not answer, or are far behind."""
    found = []
    for log in logs:
        name, replicas = log["log"], log["replicas"]
        answering = [each for each in replicas if each["position"] is not None]
        if len(answering) == 1 < len(replicas):
            silent = ", ".join(each["id"] for each in replicas if each["position"] is None)
            what = f"no standby for {name} {answering[0]['id']}: {name} {silent} does not answer"
            found.append(Finding(f"{name.upper()}_NO_STANDBY", what, name))
        found += [
            Finding(
                f"{name.upper()}_BEHIND",
                f"{name} {each['id']} lacks {each['lag']} records",
                f"{name} {each['id']}",
            )
            for each in answering
            if (each["lag"] or 0) > LAG_MAX
        ]
    return found


async def logs_of(options: EtcdOptions, cluster: Cluster) -> list[LogState]:
    """Return the logs that there are. Raises: Unavailable, Timeout; InvalidArgument if one is another cluster's."""
    async with (
        EtcdClient(options, request_s=ANSWER_S) as etcd,
        cluster.clients() as clients,
    ):
        states = [await _log(etcd, clients, name, cluster) for name in LOGS]
    return [state for state in states if state is not None]


def leader_of(logs: Sequence[LogState], name: str) -> str | None:
    """Return which process says that it leads the log of that name; None if none does."""
    replicas = (replica for log in logs if log["log"] == name for replica in log["replicas"])
    return next((replica["id"] for replica in replicas if replica["leads"]), None)


async def _log(etcd: EtcdClient, clients: RpcClients, name: str, cluster: Cluster) -> LogState | None:
    try:
        log = await EtcdLog.open(
            etcd, prefix=cluster.log_prefix(name), cluster=cluster.cluster_id, create=False
        )
    except NotFound:
        return None
    try:
        bounds, claim, announced = await log.bounds(), await log.claim(), await announcements(log)
    finally:
        await log.close()
    replicas = await asyncio.gather(
        *(_replica(clients, name, each, last=bounds.last.index) for name, each in sorted(announced.items()))
    )
    return {
        "log": name,
        "first": bounds.first,
        "last": bounds.last.index,
        "epoch": 0 if claim is None else claim.epoch,
        "owner": "" if claim is None else claim.owner,
        "replicas": replicas,
    }


async def _replica(clients: RpcClients, name: str, announced: Announcement, *, last: int) -> ReplicaState:
    state: ReplicaState = {
        "id": name,
        "address": announced.address,
        "leads": False,
        "position": None,
        "lag": None,
        "checkpoint": announced.position.index,
    }
    try:
        reply = await clients.call(announced.address, methods.Replicas.state, Empty(), timeout_s=ANSWER_S)
    except Error:  # also of a stranger who listens at that address now
        return state
    return {
        **state,
        "leads": reply.leads,
        "position": reply.position,
        "lag": max(0, last - reply.position),
        "checkpoint": reply.checkpoint,
    }


__all__ = [
    "PRIMARY",
    "STANDBY",
    "LogState",
    "MemberState",
    "ReplicaState",
    "describe_members",
    "find_logs",
    "find_members",
    "leader_of",
    "logs_of",
    "members_of",
    "primary_manager",
]
