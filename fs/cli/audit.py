"""`luciola audit`: who changed the cluster, and what was refused, as the services of this machine wrote it down."""

import json
import os
from collections import deque
from collections.abc import Iterable, Mapping
from pathlib import Path

import click

from ..errors import NotFound
from ..wire.audit import CHANGES, REFUSED, AuditLog, read_entries
from .datadir import DataDir
from .options import data_option, json_option
from .output import print_json, print_table

OWN_NAME = "luciola"  # what commands write down themselves


def note(data: DataDir, what: str, request: object) -> None:
    """Write down what this command did without a service; with `sudo` also who asked for it."""
    who: dict[str, object] = {"role": "owner", "uid": os.getuid()}
    if caller := os.environ.get("SUDO_UID", ""):
        who["sudo_uid"] = caller
    AuditLog(data.audit, OWN_NAME).changed(what, "done", who=who, request=request)


@click.command()
@data_option(required=True)
@click.option("--refused", is_flag=True, help="What was refused, instead of what was changed.")
@click.option(
    "-n",
    "--lines",
    type=click.IntRange(1),
    default=100,
    show_default=True,
    help="The last so many.",
)
@json_option
def audit(data_path: Path, *, refused: bool, lines: int, as_json: bool) -> None:
    """Show who changed the cluster, or with --refused who was not let in, as far as this machine's services know.

    Each machine of a cluster has what its own services were asked. Times are UTC.

    \b
    Example:
      luciola audit --data /var/lib/luciola
      luciola audit --data /var/lib/luciola --refused -n 20 --json
    """
    data = DataDir(data_path)
    if not data.root.is_dir():
        raise NotFound("no data directory of a cluster here", path=str(data.root))
    found = deque(read_entries(data.audit, [REFUSED if refused else CHANGES]), maxlen=lines)
    if as_json:
        print_json(list(found))
        return
    print_table(("TIME", "SERVICE", "WHO", "HOST", "WHAT", "OUTCOME"), [_row(each) for each in found])


def _row(entry: Mapping[str, object]) -> tuple[str, ...]:
    what = str(entry.get("what", "?"))
    if "request" in entry:
        what += f" {json.dumps(entry['request'])}"
    outcome = ": ".join(str(entry[each]) for each in ("outcome", "why") if each in entry)
    if "unwritten_before" in entry:
        outcome += f" ({entry['unwritten_before']} before it are not written down)"
    texts: Iterable[object] = (
        entry["time"],
        entry.get("by", "?"),
        _who(entry.get("who")),
        entry.get("host", "-"),
        what,
        outcome,
    )
    # Strangers choose some of it: nothing that moves the cursor.
    return tuple(str(text).encode("unicode_escape").decode() for text in texts)


def _who(who: object) -> str:
    if not isinstance(who, dict):
        return "stranger"
    by = f" by sudo of uid {who['sudo_uid']}" if "sudo_uid" in who else ""
    return f"{who.get('role', '?')} uid {who.get('uid', '?')}{by}"


__all__ = ["audit", "note"]
