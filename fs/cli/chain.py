"""`luciola chain`: which replicas form which chain, and what an administrator may change about it."""

import click

from ..errors import NotFound
from ..wire.pb import mgmtd_pb2 as pb
from .administration import ClusterTarget, cluster_options, confirm
from .mgmtd_client import ChainState, MgmtdClient, describe_chain, describe_chains
from .options import json_option, yes_option
from .output import print_json, print_table

Action = pb.UpdateChainRequest


@click.group()
def chain() -> None:
    """Look at chains, and change their replicas.

    A chain is an ordered list of replicas (targets), each on another node. `list` shows them with their states, which
    docs/architecture.md explains.

    \b
    Example:
      luciola chain list --data /var/lib/luciola
    """


@chain.command("list")
@click.argument("chains", metavar="[CHAIN]...", type=click.IntRange(1), nargs=-1)
@click.option("--incomplete", is_flag=True, help="Only chains of which not every replica serves.")
@cluster_options
@json_option
def list_chains(
    cluster: ClusterTarget,
    chains: tuple[int, ...],
    *,
    incomplete: bool,
    as_json: bool,
) -> None:
    """Show chains with their version, and the state of every replica, head first.

    STATE is what mgmtd publishes of a replica, REPORTED what its node reports.

    \b
    Example:
      luciola chain list --incomplete --data /var/lib/luciola
    """
    found = describe_chains(cluster.ask(MgmtdClient.routing))
    if chains:
        found = _chosen(found, chains)
    if incomplete:
        found = [each for each in found if each["state"] != "serving"]
    _show(found, as_json=as_json)


@chain.command()
@click.argument("chains", metavar="CHAIN...", type=click.IntRange(1), nargs=-1, required=True)
@click.option(
    "--last-serving",
    "last_serving",
    is_flag=True,
    help="Of a chain that waits for the replica that served last: let the next one serve with what it has. "
    "What only the first one had is lost.",
)
@click.option(
    "--target",
    type=click.IntRange(1),
    help="With --last-serving, of one chain: the replica to give up, as in `luciola chain list`; by default one "
    "that is absent.",
)
@click.option(
    "--preferred",
    is_flag=True,
    help="Of a chain that serves: move a replica that stands in another's place to the tail, so that the order "
    "becomes the preferred one, in as many steps as replicas are misplaced.",
)
@cluster_options
@yes_option
@json_option
def rotate(
    cluster: ClusterTarget,
    chains: tuple[int, ...],
    *,
    last_serving: bool,
    target: int | None,
    preferred: bool,
    yes: bool,
    as_json: bool,
) -> None:
    """Change the order of the replicas of one or more chains.

    \b
    Example:
      luciola chain rotate 100001 --preferred --data /var/lib/luciola
    """
    if last_serving == preferred:
        raise click.UsageError("say which rotation: either --preferred or --last-serving")
    if target is not None and (preferred or len(set(chains)) > 1):
        raise click.UsageError("--target goes with --last-serving and one chain")
    routing = cluster.ask(MgmtdClient.routing)
    before = _chosen(describe_chains(routing), chains)
    given_up: dict[int, int] = {}
    if last_serving:
        disabled = {node.id for node in routing.nodes if node.status == pb.DISABLED}
        connected = {node.id for node in routing.nodes if node.status == pb.CONNECTED}
        given_up = {
            each["id"]: target or _given_up(each, connected)
            for each in before
            if each["state"] == "unavailable" and any(one["state"] == "lastsrv" for one in each["targets"])
        }
        losses = [_loss(each, given_up[each["id"]], disabled) for each in before if each["id"] in given_up]
        if losses:
            confirm("\n".join([*losses, "Continue?"]), yes=yes)
    action = Action.ROTATE_LASTSRV if last_serving else Action.ROTATE_PREFERRED

    async def rotate_all(ask: MgmtdClient) -> list[ChainState]:
        return [
            describe_chain(await ask.update_chain(each["id"], action, target=given_up.get(each["id"], 0)))
            for each in before
        ]

    after = cluster.ask(rotate_all)
    _show(after, as_json=as_json)
    unchanged = [
        str(each["id"]) for each, old in zip(after, before, strict=True) if each["version"] == old["version"]
    ]
    if unchanged:
        click.echo(f"nothing to change, the order is the preferred one: {' '.join(unchanged)}", err=True)


@chain.command()
@click.argument("number", metavar="CHAIN", type=click.IntRange(1))
@click.argument("node", type=click.IntRange(1))
@cluster_options
@json_option
def add(
    cluster: ClusterTarget,
    number: int,
    node: int,
    *,
    as_json: bool,
) -> None:
    """Give a chain one more replica, on a storage node that has none of it.

    It begins empty; the replica before it sends it every chunk, and then it serves.

    \b
    Example:
      luciola chain add 100001 204 --data /var/lib/luciola
    """
    changed = cluster.ask(lambda ask: ask.update_chain(number, Action.ADD, node=node))
    _show([describe_chain(changed)], as_json=as_json)


@chain.command()
@click.argument("number", metavar="CHAIN", type=click.IntRange(1))
@click.argument("target", type=click.IntRange(1))
@cluster_options
@yes_option
@json_option
def remove(
    cluster: ClusterTarget,
    number: int,
    target: int,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Take a replica that is OFFLINE out of its chain for good.

    The chain has one copy less from then on. To take a node's replicas offline: `luciola node disable`.

    \b
    Example:
      luciola chain remove 100001 6400065 --data /var/lib/luciola
    """
    (before,) = _chosen(describe_chains(cluster.ask(MgmtdClient.routing)), (number,))
    if target not in {each["target"] for each in before["targets"]}:
        raise NotFound(f"chain {number} has no replica {target}")
    left = len(before["targets"]) - 1
    confirm(f"Chain {number} keeps {left} of {left + 1} replicas. Continue?", yes=yes)
    changed = cluster.ask(lambda ask: ask.update_chain(number, Action.REMOVE, target=target))
    _show([describe_chain(changed)], as_json=as_json)


def _chosen(found: list[ChainState], numbers: tuple[int, ...]) -> list[ChainState]:
    """Those of the chains that are named. Raises: NotFound."""
    unknown = set(numbers) - {each["id"] for each in found}
    if unknown:
        raise NotFound(f"no chain {min(unknown)}; `luciola chain list` shows all of them")
    return [each for each in found if each["id"] in numbers]


def _given_up(chain: ChainState, connected: set[int]) -> int:
    """Return the replica without which the chain makes progress.

    Where one is present, though it may lack writes, it waits for the absent ones, so the first of these is given up.
    Otherwise a replica whose data are gone goes before an absent one, which may return with its data.
    """
    last = [target for target in chain["targets"] if target["state"] == "lastsrv"]
    absent = [target for target in last if target["node"] not in connected]
    present = [target for target in last if target not in absent]
    lost = [target for target in present if target["reported"] not in ("online", "uptodate")]
    order = [*lost, *absent, *last] if present == lost else [*absent, *lost, *last]
    return order[0]["target"]


def _loss(chain: ChainState, target: int, disabled: set[int]) -> str:
    """Return what is lost if the replica is given up."""
    given_up = next((each for each in chain["targets"] if each["target"] == target), None)
    if given_up is None:
        raise NotFound(f"chain {chain['id']} has no replica {target}")
    rest = [each for each in chain["targets"] if each != given_up]
    others = [each for each in rest if each["state"] == "lastsrv"] or rest
    nodes = " or ".join(f"node {each['node']}" for each in others) or "no other node"
    waits = "".join(
        f" Node {each['node']} is disabled: luciola node enable {each['node']} lets it serve."
        for each in others
        if each["node"] in disabled
    )
    return (
        f"Chain {chain['id']} gives up replica {target} on node {given_up['node']}, which served last. Then {nodes} "
        "serves what it has, which is nothing where its disk was replaced: acknowledged writes that only the other "
        f"had are lost for good.{waits}"
    )


def _show(chains: list[ChainState], *, as_json: bool) -> None:
    if as_json:
        print_json(chains)
        return
    rows = [
        (
            str(each["id"]) if place == 0 else "",
            str(each["version"]) if place == 0 else "",
            str(target["target"]),
            str(target["node"]),
            target["state"],
            target["reported"],
            str(target["used_bytes"]),
        )
        for each in chains
        for place, target in enumerate(each["targets"])
    ]
    header = ("CHAIN", "VERSION", "TARGET", "NODE", "STATE", "REPORTED", "BYTES")
    print_table(header, rows, right=(0, 1, 2, 3, 6))


__all__ = ["chain"]
