"""`luciola watch`: a line for each change below a directory, as it is committed."""

import json
import os
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from .options import json_option, manager_option
from .output import UNDECODED, shown
from .target import FilesTarget, cluster_options, cluster_path

if TYPE_CHECKING:
    from ..client import Change


@click.command()
@cluster_options
@manager_option
@json_option
@click.option("--after", metavar="POSITION", help="Continue after this position (default: from now on).")
@click.option("--no-recursive", is_flag=True, help="Nothing of what is below its subdirectories.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="End after N changes.")
@click.argument("directory", metavar="PATH")
def watch(
    cluster: FilesTarget,
    manager: str | None,
    as_json: bool,
    after: str | None,
    no_recursive: bool,
    limit: int | None,
    directory: str,
) -> None:
    """Print what is created, changed, renamed and removed below PATH, as soon as it is committed.

    Needs a cluster whose metadata has a log. Each change has a position, from which `--after` continues. With --json,
    each line is one JSON object; the first one has the position from which on changes are seen. It ends when PATH is
    removed. A cluster at an address needs --manager too.

    \b
    Examples:
      luciola watch --data /var/lib/luciola /datasets
      luciola watch --data /var/lib/luciola --json /datasets | jq -r 'select(.kind == "create") | .path'
    """
    with (
        cluster.open() as fs,
        fs.watch(
            cluster_path(directory), after=after, recursive=not no_recursive, manager=manager
        ) as watching,
    ):
        _print_start(directory, watching.position, as_json=as_json)
        for count, change in enumerate(watching, start=1):
            _print_change(change, as_json=as_json)
            if count == limit:
                return


def _print_start(directory: str, position: str, *, as_json: bool) -> None:
    if as_json:
        _print_line({"kind": "start", "path": os.fspath(directory), "position": position})
    else:
        click.echo(f"watching {shown(directory)} from position {position}", err=True)


def _print_change(change: "Change", *, as_json: bool) -> None:
    if as_json:
        _print_line(asdict(change))
        return
    names = [_shown(change.path)]
    if change.kind == "rename":
        names = [_shown(change.old_path), "<->" if change.exchanged else "->", _shown(change.path)]
    click.echo(f"{change.kind:7} {' '.join(names)}")


def _print_line(value: object) -> None:
    text = json.dumps(value, ensure_ascii=False)
    click.echo(UNDECODED.sub(lambda found: f"\\u{ord(found[0]):04x}", text))


def _shown(path: str | None) -> str:
    return "(elsewhere)" if path is None else shown(path)


__all__ = ["watch"]
