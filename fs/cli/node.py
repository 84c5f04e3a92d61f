"""`luciola node`: which processes the cluster knows, and which of them take part."""

from collections import Counter, defaultdict
from typing import TypedDict

import click

from ..config import LABELS
from ..errors import InvalidArgument
from ..units import format_bytes
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.storage_pb2 import SpaceReply
from .administration import ClusterTarget, cluster_options, confirm
from .health import describe_space
from .mgmtd_client import MgmtdClient
from .options import json_option, yes_option
from .output import print_json, print_table


@click.group()
def node() -> None:
    """Look at the nodes of a cluster, and take one out or in.

    \b
    Example:
      luciola node list --data /var/lib/luciola
    """


@node.command("list")
@cluster_options
@json_option
def list_nodes(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Show every node with its status, how many replicas of chains a storage node has, and the space of its disk.

    LABELS are the room, the rack and the host that a storage node was started with: what fails together.

    \b
    Example:
      luciola node list --data /var/lib/luciola
    """

    async def state_of(ask: MgmtdClient) -> tuple[pb.Routing, dict[int, SpaceReply]]:
        routing = await ask.routing()
        return routing, await ask.spaces(routing)

    routing, spaces = cluster.ask(state_of)
    counts = count_replicas(routing)
    found = [
        describe_node(each, counts[each.id], spaces.get(each.id))
        for each in sorted(routing.nodes, key=lambda each: each.id)
    ]
    if as_json:
        print_json(found)
        return
    rows = [
        (
            str(each["id"]),
            each["kind"],
            ", ".join(filter(None, (each["status"], each["leaving"]))),
            each["host"],
            str(each["pid"]),
            str(each["replicas"]),
            str(each["serving"]),
            *_space_columns(each),
            " ".join(f"{level}={name}" for level, name in each["labels"].items() if name) or "-",
        )
        for each in found
    ]
    header = ("NODE", "KIND", "STATUS", "HOST", "PID", "REPLICAS", "SERVING", "SIZE", "FREE", "LABELS")
    print_table(header, rows, right=(0, 4, 5, 6, 7, 8))
    for line in describe_space(spaces):
        click.echo(line)


@node.command()
@click.argument("number", metavar="NODE", type=click.IntRange(1))
@cluster_options
@json_option
def counters(cluster: ClusterTarget, number: int, *, as_json: bool) -> None:
    """Show what a storage node has counted since it started: requests, recovery, scrubbing, RDMA.

    What each counter means is in docs/operations.md, "Counters of a storage node".

    \b
    Example:
      luciola node counters 201 --data /var/lib/luciola
    """
    found = cluster.ask(lambda ask: ask.counters(number))
    if as_json:
        print_json(found)
    else:
        print_table(("COUNTER", "VALUE"), [(name, str(value)) for name, value in found.items()], right=(1,))


@node.command()
@click.argument("number", metavar="NODE", type=click.IntRange(1))
@cluster_options
@yes_option
@json_option
def disable(
    cluster: ClusterTarget,
    number: int,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Take a node out: its replicas go offline as soon as its lease has run out, and others serve.

    It keeps what it holds, and misses what is written meanwhile. Chains of which it has the only replica that serves
    wait until it is enabled again.

    \b
    Example:
      luciola node disable 202 --data /var/lib/luciola
    """
    try:
        _set(cluster, number, disabled=True, as_json=as_json)
    except InvalidArgument as error:
        if "unavailable" not in error.fields:
            raise
        question = (
            f"{str(error).capitalize()}: their files cannot be read until it is enabled again. Continue?"
        )
        confirm(question, yes=yes)
        _set(cluster, number, disabled=True, accept_unavailable=True, as_json=as_json)


@node.command()
@click.argument("number", metavar="NODE", type=click.IntRange(1))
@cluster_options
@json_option
def enable(cluster: ClusterTarget, number: int, *, as_json: bool) -> None:
    """Let a disabled node take part again: its replicas are brought up to date and serve.

    \b
    Example:
      luciola node enable 202 --data /var/lib/luciola
    """
    _set(cluster, number, disabled=False, as_json=as_json)


@node.command()
@click.argument("number", metavar="NODE", type=click.IntRange(1))
@click.option(
    "--to",
    "successor",
    metavar="NODE",
    type=click.IntRange(1),
    help="Where its replicas go, but for those of chains that have one there.  [default: to all others]",
)
@cluster_options
@json_option
def drain(cluster: ClusterTarget, number: int, successor: int | None, *, as_json: bool) -> None:
    """Empty a storage node while the cluster serves: its replicas are made on others, and it gets no new ones.

    It serves until it has none left, and may then be stopped and forgotten. `luciola rebalance status` shows how far
    that has come. The mark stays, over restarts too, until `luciola node undrain`.

    \b
    Example:
      luciola node drain 203 --data /var/lib/luciola
    """
    _drain(cluster, number, drained=True, successor=successor or 0, as_json=as_json)


@node.command()
@click.argument("number", metavar="NODE", type=click.IntRange(1))
@cluster_options
@json_option
def undrain(cluster: ClusterTarget, number: int, *, as_json: bool) -> None:
    """Let a drained node keep what it has left, and get replicas again (`luciola rebalance`).

    \b
    Example:
      luciola node undrain 203 --data /var/lib/luciola
    """
    _drain(cluster, number, drained=False, as_json=as_json)


@node.command()
@click.argument("number", metavar="NODE", type=click.IntRange(1))
@cluster_options
@yes_option
def forget(cluster: ClusterTarget, number: int, *, yes: bool) -> None:
    """Forget a node that is gone for good and has no replicas (`luciola node drain`).

    \b
    Example:
      luciola node forget 204 --data /var/lib/luciola
    """
    confirm(f"Forget node {number}?", yes=yes)
    cluster.ask(lambda ask: ask.forget_node(number))
    click.echo(f"node {number} is forgotten")


class NodeState(TypedDict):
    """One node, as commands print it. The bytes are those of its disk, if it is a storage node that answered."""

    id: int
    kind: str
    status: str
    leaving: str  # draining, drained (it holds nothing), out (its replicas are moved), or nothing
    host: str
    pid: int
    address: str
    release: str
    replicas: int
    serving: int
    capacity_bytes: int | None
    free_bytes: int | None
    labels: dict[str, str]


def _space_columns(node: NodeState) -> tuple[str, str]:
    if node["capacity_bytes"] is None or node["free_bytes"] is None:
        return "-", "-"
    return format_bytes(node["capacity_bytes"]), format_bytes(node["free_bytes"])


def count_replicas(routing: pb.Routing) -> dict[int, Counter[str]]:
    """Return how many `replicas` each node holds, and how many of them are `serving`."""
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for chain in routing.chains:
        for target in chain.targets:
            counts[target.node]["replicas"] += 1
            counts[target.node]["serving"] += target.state == pb.SERVING
    return counts


def describe_node(node: pb.Node, counts: Counter[str], space: SpaceReply | None = None) -> NodeState:
    """Return a node in plain words. `space`: of its disk, if it is a storage node that answered."""
    return {
        "id": node.id,
        "kind": pb.NodeKind.Name(node.kind).removeprefix("NODE_").lower(),
        "status": pb.NodeStatus.Name(node.status).lower(),
        "leaving": _leaving(node, counts["replicas"]),
        "host": node.host,
        "pid": node.pid,
        "address": node.grpc_address,
        "release": node.release,
        "replicas": counts["replicas"],
        "serving": counts["serving"],
        "capacity_bytes": None if space is None else space.capacity_bytes,
        "free_bytes": None if space is None else space.free_bytes,
        "labels": {level: getattr(node.labels, level) for level in LABELS},
    }


def _leaving(node: pb.Node, replicas: int) -> str:
    if node.leaving == pb.DRAINED:
        return "draining" if replicas else "drained"
    return "out" if node.leaving == pb.OUT else ""


def _drain(cluster: ClusterTarget, number: int, *, drained: bool, successor: int = 0, as_json: bool) -> None:
    changed = cluster.ask(lambda ask: ask.drain_node(number, drained=drained, successor=successor))
    counts = count_replicas(cluster.ask(MgmtdClient.routing))[changed.id]
    if as_json:
        print_json(describe_node(changed, counts))
    elif drained:
        click.echo(
            f"node {number} is drained: {counts['replicas']} replicas leave it; luciola rebalance status"
        )
    else:
        click.echo(f"node {number} is not drained any more; it has {counts['replicas']} replicas")


def _set(
    cluster: ClusterTarget, number: int, *, disabled: bool, accept_unavailable: bool = False, as_json: bool
) -> None:
    changed = cluster.ask(
        lambda ask: ask.disable_node(number, disabled=disabled, accept_unavailable=accept_unavailable)
    )
    if as_json:
        print_json(describe_node(changed, count_replicas(cluster.ask(MgmtdClient.routing))[changed.id]))
    else:
        click.echo(f"node {number} is {'disabled' if disabled else 'enabled'}")


__all__ = ["count_replicas", "describe_node", "node"]
