"""Options that several commands have, and which of them counts where only one may be given."""

from collections.abc import Callable
from pathlib import Path
from typing import Final, ParamSpec, Protocol, TypeVar

import click
from click.core import ParameterSource

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


class Decorator(Protocol):
    """Adds an option to a command."""

    def __call__(self, command: Callable[Parameters, Result], /) -> Callable[Parameters, Result]: ...


json_option: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
yes_option: Final = click.option("--yes", is_flag=True, help="Do not ask.")
config_option: Final = click.option(
    "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False), help="A TOML file."
)
address_option: Final = click.option(
    "--address",
    metavar="HOST:PORT,…",
    envvar="LUCIOLA_ADDRESS",
    show_envvar=True,
    help="mgmtd of a cluster elsewhere (mgmtd_lane in its cluster.json).",
)
manager_option: Final = click.option(
    "--manager",
    metavar="HOST:PORT,…",
    help="gRPC addresses of mgmtd, of a cluster elsewhere (mgmtd_grpc in its cluster.json).",
)


def data_option(*, required: bool) -> Decorator:
    """--data: the cluster whose data directory is on this machine."""
    return click.option(
        "--data",
        "data_path",
        type=click.Path(path_type=Path, file_okay=False),
        required=required,
        envvar="LUCIOLA_DATA",
        show_envvar=True,
        help="The cluster's data directory." if required else "Data directory of a cluster on this machine.",
    )


def secret_option(*, where: str) -> Decorator:
    """--secret-file, `where`: the other way to name the cluster that needs it."""
    return click.option(
        "--secret-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="LUCIOLA_SECRET_FILE",
        show_envvar=True,
        help=f"File with the cluster secret, for {where}.",
    )


def prevailing(**given: object) -> list[str]:
    """Return which options of those count that exclude one another: one on the command line before the environment's.

    All that are given if none or several are on the command line.
    """
    context = click.get_current_context()
    known = [name for name, value in given.items() if value is not None]
    said = [name for name in known if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return said if len(said) == 1 else known


__all__ = [
    "address_option",
    "config_option",
    "data_option",
    "json_option",
    "manager_option",
    "prevailing",
    "secret_option",
    "yes_option",
]
