"""`luciola rebalance`: which replicas should be on other nodes, and their moves while the cluster serves."""

from collections.abc import Mapping, Sequence
from typing import Final, TypedDict

import click

from ..errors import NotFound
from ..mgmtd.balance import NONE, plan
from ..mgmtd.domains import NAMES, domain_of, parse_level
from ..mgmtd.placement import Site, weights_of
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.storage_pb2 import SpaceReply
from .administration import ClusterTarget, cluster_options, confirm
from .health import SPACE_WARNING
from .mgmtd_client import MgmtdClient
from .options import json_option, yes_option
from .output import print_json, print_table

Action = pb.ControlMovesRequest


class Loads(TypedDict):
    """What a plan changes for one node."""

    node: int
    replicas: int
    planned: int


@click.group()
def rebalance() -> None:
    """Move replicas to other nodes while their chains serve: to new nodes, apart, or away from a node.

    Each goes in three steps: the chain gets a replica on the other node, which is filled as any that returns; when it
    serves, the old one stops serving; then that is removed, and its chunks are deleted.

    \b
    Example:
      luciola rebalance plan --data /var/lib/luciola
      luciola rebalance start --data /var/lib/luciola
    """


without_option: Final = click.option(
    "--without",
    metavar="NODE",
    type=click.IntRange(1),
    multiple=True,
    help="A node that is to hold nothing (repeat).",
)
domain_option: Final = click.option(
    "--domain",
    type=click.Choice(tuple(NAMES)),
    help="What two copies of a chunk are not to share.  [default: what the table was created for]",
)


@rebalance.command("plan")
@without_option
@domain_option
@cluster_options
@json_option
def show_plan(cluster: ClusterTarget, without: tuple[int, ...], domain: str | None, *, as_json: bool) -> None:
    """Show which replicas `start` would move. Nothing changes.

    \b
    Example:
      luciola rebalance plan --without 203 --data /var/lib/luciola
    """
    moves, loads = _planned(cluster, without, domain)
    if as_json:
        print_json({"moves": [_described(move) for move in moves], "nodes": loads})
        return
    rows = [(str(each["node"]), str(each["replicas"]), str(each["planned"])) for each in loads]
    print_table(("NODE", "REPLICAS", "PLANNED"), rows, right=(0, 1, 2))
    click.echo(f"{len(moves)} replicas would move")


@rebalance.command()
@without_option
@domain_option
@click.option(
    "--concurrent",
    type=click.IntRange(1, 1000),
    default=4,
    show_default=True,
    help="Chains that change at once.",
)
@cluster_options
@yes_option
def start(
    cluster: ClusterTarget, without: tuple[int, ...], domain: str | None, concurrent: int, *, yes: bool
) -> None:
    """Make a plan and carry it out. A plan that has not been finished is replaced, but for moves that have begun.

    \b
    Example:
      luciola rebalance start --concurrent 2 --data /var/lib/luciola
    """
    moves, _ = _planned(cluster, without, domain)
    if not moves:
        click.echo("nothing to move")
        return
    confirm(f"Move {len(moves)} replicas?", yes=yes)
    cluster.ask(lambda ask: ask.start_moves(moves, concurrent=concurrent))
    click.echo(f"{len(moves)} replicas move; luciola rebalance status shows how far they have come")


@rebalance.command()
@cluster_options
@json_option
def status(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Show how far moves have come.

    \b
    Example:
      luciola rebalance status --data /var/lib/luciola
    """
    _show(cluster, Action.STATUS, as_json=as_json)


@rebalance.command()
@cluster_options
@json_option
def pause(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Begin no more moves, those of drained and lost nodes included; those that have begun are completed.

    \b
    Example:
      luciola rebalance pause --data /var/lib/luciola
    """
    _show(cluster, Action.PAUSE, as_json=as_json)


@rebalance.command()
@cluster_options
@json_option
def resume(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Begin moves again after a pause.

    \b
    Example:
      luciola rebalance resume --data /var/lib/luciola
    """
    _show(cluster, Action.RESUME, as_json=as_json)


@rebalance.command()
@cluster_options
@json_option
def cancel(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Forget moves that have not begun. Of the others, those whose new replica serves are completed, the rest undone.

    It does not concern nodes that are drained (`luciola node undrain`), or that do not report.

    \b
    Example:
      luciola rebalance cancel --data /var/lib/luciola
    """
    _show(cluster, Action.CANCEL, as_json=as_json)


def _planned(
    cluster: ClusterTarget, without: Sequence[int], domain: str | None
) -> tuple[list[pb.Move], list[Loads]]:
    async def state_of(ask: MgmtdClient) -> tuple[pb.Routing, dict[int, SpaceReply]]:
        routing = await ask.routing()
        return routing, await ask.spaces(routing)

    routing, spaces = cluster.ask(state_of)
    return plan_moves(routing, spaces, without=without, level=None if domain is None else parse_level(domain))


def plan_moves(
    routing: pb.Routing, spaces: Mapping[int, SpaceReply], *, without: Sequence[int], level: int | None
) -> tuple[list[pb.Move], list[Loads]]:
    """Return the moves of all tables, each planned by itself, and what they change.

    Raises: NotFound, InvalidArgument.
    """
    nodes = sorted((node for node in routing.nodes if node.kind == pb.NODE_STORAGE), key=lambda node: node.id)
    unknown = set(without) - {node.id for node in nodes}
    if unknown:
        raise NotFound(f"no storage node {min(unknown)}; `luciola node list` shows all nodes")
    leaving = {node.id for node in nodes if node.leaving == pb.DRAINED} | set(without)
    closed = {node.id for node in nodes if node.status != pb.CONNECTED or _is_full(spaces.get(node.id))}
    sizes = [_room(spaces.get(node.id)) for node in nodes]
    chains = {chain.id: chain for chain in routing.chains}
    moves: list[pb.Move] = []
    before: dict[int, int] = {node.id: 0 for node in nodes}
    after = dict(before)
    newest = {table.id: table for table in sorted(routing.tables, key=lambda table: table.version)}
    for table in newest.values():
        sites = [
            Site(node.id, domain_of(node, table.domain if level is None else level), weight)
            for node, weight in zip(nodes, weights_of(sizes), strict=True)
        ]
        held = {number: [target.node for target in chains[number].targets] for number in table.chains}
        found = plan(sites, held, replicas=table.replicas, closed=closed, leaving=leaving)
        for step in found.steps:
            targets = {target.node: target.id for target in chains[step.chain].targets}
            leaves = 0 if step.source == NONE else targets[step.source]
            moves.append(pb.Move(chain=step.chain, target=leaves, node=step.node))
        for counts, changed in ((before, found.before), (after, found.after)):
            for node, count in changed.items():
                counts[node] = counts.get(node, 0) + count
    return moves, [
        {"node": node, "replicas": before[node], "planned": after[node]} for node in sorted(before)
    ]


def _is_full(space: SpaceReply | None) -> bool:
    return space is not None and (space.full or space.free_bytes < (1 - SPACE_WARNING) * space.capacity_bytes)


def _room(space: SpaceReply | None) -> int:
    """Return how much chains may have on a node: what they have, and what is free. 0: not known."""
    return 0 if space is None else space.free_bytes + space.used_bytes


def _described(move: pb.Move) -> dict[str, int]:
    return {"chain": move.chain, "target": move.target, "node": move.node}


def _show(cluster: ClusterTarget, action: "pb.ControlMovesRequest.Action", *, as_json: bool) -> None:
    found = cluster.ask(lambda ask: ask.control_moves(action))
    known = found.rebalance
    state = "idle" if not found.active and not found.waiting else "paused" if known.paused else "running"
    if as_json:
        print_json(
            {
                "state": state,
                "total": known.total,
                "done": known.done,
                "waiting": found.waiting,
                "concurrent": known.concurrent,
                "obstacle": found.obstacle,
                "active": [_described(move) for move in found.active],
                "leaving": [
                    {"node": each.node, "replicas": each.replicas, "obstacle": each.obstacle}
                    for each in found.leaving
                ],
            }
        )
        return
    click.echo(
        f"{state}: {known.done} of {known.total} moves done, {len(found.active)} in progress, {found.waiting} wait"
    )
    for each in found.leaving:
        waits = f", and waits: {each.obstacle}" if each.obstacle else ""
        click.echo(f"node {each.node} has {each.replicas} replicas left to move{waits}")
    for move in found.active:
        what = f"replica {move.target} leaves" if move.target else "no replica leaves"
        click.echo(f"chain {move.chain}: {what}{f' for node {move.node}' if move.node else ''}")
    if found.obstacle:
        click.echo(f"the next one waits: {found.obstacle}")


__all__ = ["plan_moves", "rebalance"]
