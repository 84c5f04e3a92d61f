"""`luciola plugins`: what is installed, and what each can use on this machine."""

from importlib.metadata import entry_points
from typing import Final

import click

from .options import json_option
from .output import print_json, print_table

GROUP: Final = "luciola.plugins"


@click.command()
@json_option
def plugins(as_json: bool) -> None:
    """List the installed plugins.

    \b
    Example:
      luciola plugins
    """
    found = []
    for entry in sorted(entry_points(group=GROUP), key=lambda each: each.name):
        try:
            describe = entry.load()
            found.append({"name": entry.name, "module": entry.value, **describe()})
        except ImportError as error:
            state = f"not usable: {error} (pip install 'luciola[plugins]')"
            found.append({"name": entry.name, "module": entry.value, "state": state})
    if as_json:
        print_json(found)
    elif not found:
        click.echo("no plugins are installed")
    else:
        print_table(
            ("PLUGIN", "LAYER", "RUN ON THIS CARD", "STATE", "GATE"),
            [
                [each.get(key, "-") for key in ("name", "layer", "run_on_this_card", "state", "gate")]
                for each in found
            ],
        )


__all__ = ["plugins"]
