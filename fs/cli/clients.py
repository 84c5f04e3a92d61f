"""`luciola clients`: which programs and mounts use a cluster."""

import asyncio
import datetime as dt
from typing import Final, TypedDict

import click

from ..wire.pb import meta_pb2
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.common_pb2 import Claims
from .administration import ClusterTarget, cluster_options
from .mgmtd_client import MgmtdClient
from .options import json_option
from .output import print_json, print_table, shown

HEADER: Final = (
    *("CLIENT", "KIND", "HOST", "PID", "UID", "ROLE", "RELEASE", "SINCE", "SILENT"),
    *("WRITING", "READING", "DESCRIPTION"),
)


class ClientState(TypedDict):
    """One client, as commands print it.

    `token`: the id of the token that it showed last; with the cluster's secret a client makes a new one each time.
    `silent_s`: since it extended its session.
    `write_sessions`, `read_holds`: files that it has open; None if no metadata service says.
    """

    id: str
    kind: str
    host: str
    pid: int
    role: str
    uid: int
    token: str
    release: str
    since: str
    silent_s: float
    write_sessions: int | None
    read_holds: int | None
    description: str


@click.command()
@cluster_options
@json_option
def clients(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Show the programs and mounts that have a session, with the files that they have open.

    UID and ROLE are those of the token that a client shows; --json has its id, as `luciola token list`. A client that
    was killed stays until its session expires.

    \b
    Example:
      luciola clients --data /var/lib/luciola
    """
    found, is_complete = cluster.ask(_clients)
    if as_json:
        print_json(found)
        return
    rows = [
        (
            each["id"],
            each["kind"],
            each["host"],
            str(each["pid"]),
            str(each["uid"]),
            each["role"],
            each["release"] or "-",
            each["since"][:19].replace("T", " "),
            f"{each['silent_s']:.0f} s",
            *("-" if count is None else str(count) for count in (each["write_sessions"], each["read_holds"])),
            shown(each["description"], terminal=True),
        )
        for each in found
    ]
    print_table(HEADER, rows, right=(3, 4, 8, 9, 10))
    if not is_complete:
        click.echo("mgmtd has just started: clients that have not extended their sessions since are missing")


async def _clients(ask: MgmtdClient) -> tuple[list[ClientState], bool]:
    """Return the clients, and whether those are all."""
    routing = await ask.routing()
    listed, files = await asyncio.gather(ask.sessions(), ask.client_files(routing))
    return describe_clients(listed, files), not listed.bootstrapping


def describe_clients(
    listed: pb.ListClientsReply, files: meta_pb2.ClientFilesReply | None
) -> list[ClientState]:
    """Return clients in plain words, the oldest first. `files`: what they have open, if that is known."""
    opened = {} if files is None else {each.client: each for each in files.clients}
    nothing = meta_pb2.ClientFiles()
    return [
        {
            "id": f"{each.client:016x}",
            "kind": pb.NodeKind.Name(each.kind).removeprefix("NODE_").lower(),
            "host": each.host,
            "pid": each.pid,
            "role": Claims.Role.Name(each.role).lower(),
            "uid": each.uid,
            "token": each.token.hex(),
            "release": each.release,
            "since": dt.datetime.fromtimestamp(each.started_unix_ms / 1000, tz=dt.UTC).isoformat(),
            "silent_s": max(0, listed.unix_ms - each.last_seen_unix_ms) / 1000,
            "write_sessions": None if files is None else opened.get(each.client, nothing).write_sessions,
            "read_holds": None if files is None else opened.get(each.client, nothing).read_holds,
            "description": each.description,
        }
        for each in sorted(listed.clients, key=lambda each: (each.started_unix_ms, each.client))
    ]


__all__ = ["clients", "describe_clients"]
