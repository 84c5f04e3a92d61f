"""`luciola config`: what all services run with, set while they run."""

from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

import click

from .. import settings
from ..config import read_text
from ..errors import NotFound
from ..mgmtd.metrics import NODE_KINDS
from ..settings import DEFAULTS, SECTIONS, Settings, to_literal
from ..wire.credentials import format_unix_s
from ..wire.pb import mgmtd_pb2 as pb
from .administration import ClusterTarget, cluster_options
from .options import json_option
from .output import print_json, print_table


class Change(TypedDict):
    """What a version did to one key; None: its default."""

    key: str
    before: settings.Value | None
    after: settings.Value | None


@click.group()
def config() -> None:
    """Show and set what the services of a cluster run with. mgmtd keeps it, and every service adopts it.

    A key that a service's own file (--config) sets keeps the value of that file in that service.

    \b
    Example:
      luciola config set storage.resync_bytes_per_s=200000000 --data /var/lib/luciola
      luciola config diff --data /var/lib/luciola
    """


@config.command()
@click.argument("key", required=False)
@cluster_options
@json_option
def get(cluster: ClusterTarget, key: str | None, *, as_json: bool) -> None:
    """Show the value of KEY, a section, or everything, and where it comes from: default, cluster or file.

    \b
    Example:
      luciola config get mgmtd.down_out_s --data /var/lib/luciola
    """
    keys = [each for each in DEFAULTS if each.partition(".")[0] in SECTIONS and _names(key, each)]
    if not keys:
        settings.require_known([key or ""])
        raise NotFound(f"{key}: no such key; `luciola config get` shows all")
    status, _, shared = _asked(cluster)
    files = [(_process(node), settings.parse(node.state.own_toml)) for node in status.nodes]
    rows: list[dict[str, object]] = []
    for each in keys:
        source = "cluster" if each in shared else "default"
        rows.append({"key": each, "value": shared.get(each, DEFAULTS[each]), "source": source, "process": ""})
        rows += [
            {"key": each, "value": own[each], "source": "file", "process": process}
            for process, own in files
            if each in own
        ]
    if as_json:
        print_json(rows)
        return
    print_table(
        ("KEY", "VALUE", "SOURCE", "PROCESS"),
        [
            (str(row["key"]), str(row["value"]), str(row["source"]), str(row["process"] or "all"))
            for row in rows
        ],
    )


@config.command("set")
@click.argument("assignments", metavar="KEY=VALUE…", nargs=-1)
@click.option(
    "--file",
    "file",
    type=click.Path(path_type=Path, dir_okay=False),
    help="TOML with keys to set, before those on the command line.",
)
@click.option(
    "--to", "version", type=click.IntRange(0), help="Go back to what this version said; 0: the defaults."
)
@cluster_options
def set_keys(
    cluster: ClusterTarget, assignments: tuple[str, ...], file: Path | None, version: int | None
) -> None:
    """Set keys for all services, all of them or none. Bad keys and values are refused before anything is stored.

    \b
    Example:
      luciola config set mgmtd.down_out_s=1800 storage.scrub_interval_s=604800 --data /var/lib/luciola
      luciola config set --to 4 --data /var/lib/luciola
    """
    if (version is None) == (not assignments and file is None):
        raise click.UsageError("give KEY=VALUE, --file or both; or --to VERSION alone")
    if version is not None:
        _store(cluster, pb.SetConfigRequest(revert_to=version))
        return
    wanted = settings.parse(read_text(file)) if file is not None else {}
    wanted |= settings.assigned(assignments)
    settings.check_each(wanted)
    _store(cluster, pb.SetConfigRequest(toml=settings.to_toml(wanted)))


@config.command()
@click.argument("keys", metavar="KEY…", nargs=-1, required=True)
@cluster_options
def unset(cluster: ClusterTarget, keys: tuple[str, ...]) -> None:
    """Give keys their defaults again.

    \b
    Example:
      luciola config unset mgmtd.down_out_s --data /var/lib/luciola
    """
    _store(cluster, pb.SetConfigRequest(unset=keys))


@config.command()
@cluster_options
@json_option
def diff(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Show what the cluster sets other than the defaults, and what each process has not adopted.

    \b
    Example:
      luciola config diff --data /var/lib/luciola
    """
    status, version, shared = _asked(cluster)
    changes = _changes({}, shared)
    if as_json:
        processes = [
            {
                "process": _process(node),
                "version": node.state.version,
                "waiting": list(node.state.waiting),
                "file": sorted(settings.parse(node.state.own_toml)),
                "problem": node.state.problem,
                "state": _state(node, version),
            }
            for node in status.nodes
        ]
        print_json({"version": version, "settings": shared, "processes": processes})
        return
    click.echo(f"version {version}")
    print_table(
        ("KEY", "DEFAULT", "CLUSTER"),
        [(each["key"], str(DEFAULTS[each["key"]]), str(each["after"])) for each in changes],
    )
    print_table(
        ("PROCESS", "VERSION", "STATE"),
        [(_process(node), str(node.state.version), _state(node, version)) for node in status.nodes],
        right=(1,),
    )


@config.command()
@cluster_options
@json_option
def history(cluster: ClusterTarget, *, as_json: bool) -> None:
    """Show the versions that are kept: who set them, when, and what changed. Times are UTC.

    \b
    Example:
      luciola config history --data /var/lib/luciola
    """
    status = cluster.ask(lambda ask: ask.config())
    found = list(_versions(status))
    if as_json:
        print_json([{**_about(version), "changes": changes} for version, changes in found])
        return
    rows = [
        (str(version.version), format_unix_s(version.unix_ms // 1000), version.author, _described(changes))
        for version, changes in found
    ]
    print_table(("VERSION", "TIME", "WHO", "CHANGE"), rows, right=(0,))


def _asked(cluster: ClusterTarget) -> tuple[pb.ConfigStatus, int, Settings]:
    """What mgmtd knows, and number and settings of the newest version: 0 and none, if none was set."""
    status = cluster.ask(lambda ask: ask.config())
    newest = status.history[-1] if status.history else pb.ConfigVersion()
    return status, newest.version, _settings(newest)


def _store(cluster: ClusterTarget, request: pb.SetConfigRequest) -> None:
    version = cluster.ask(lambda ask: ask.set_config(request)).version
    click.echo(f"version {version}; luciola config diff shows which services have adopted it")


def _names(wanted: str | None, key: str) -> bool:
    return wanted is None or key == wanted or key.startswith(f"{wanted}.")


def _settings(version: pb.ConfigVersion) -> Settings:
    return settings.parse(version.toml)


def _process(node: pb.NodeConfig) -> str:
    return f"{NODE_KINDS.get(node.kind, '?')} {node.node}"


def _state(node: pb.NodeConfig, version: int) -> str:
    if node.status != pb.CONNECTED or not node.HasField("state"):
        return "not reported: away, or of an earlier release"
    if node.state.problem:
        return f"not adopted: {node.state.problem}"
    if node.state.version != version and version:
        return "not adopted yet"
    shown = [f"at the next start: {', '.join(node.state.waiting)}"] if node.state.waiting else []
    own = settings.parse(node.state.own_toml)
    shown += [f"of its file: {', '.join(own)}"] if own else []
    return "; ".join(shown) or "adopted"


def _versions(status: pb.ConfigStatus) -> Iterator[tuple[pb.ConfigVersion, list[Change] | None]]:
    """Each version with what it changed; None of the oldest that is kept, if others were before it."""
    before: Settings | None = {} if status.history and status.history[0].version == 1 else None
    for version in status.history:
        after = _settings(version)
        yield version, None if before is None else _changes(before, after)
        before = after


def _changes(before: Settings, after: Settings) -> list[Change]:
    return [
        {"key": key, "before": before.get(key), "after": after.get(key)}
        for key in DEFAULTS
        if before.get(key) != after.get(key)
    ]


def _described(changes: list[Change] | None) -> str:
    if changes is None:
        return "(what was before it is not kept)"
    return ", ".join(
        f"unset {each['key']}" if each["after"] is None else f"{each['key']} = {to_literal(each['after'])}"
        for each in changes
    )


def _about(version: pb.ConfigVersion) -> dict[str, object]:
    return {
        "version": version.version,
        "unix_ms": version.unix_ms,
        "author": version.author,
        "settings": _settings(version),
    }


__all__ = ["config"]
