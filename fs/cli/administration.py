"""What commands of administrators share: how the cluster is named, and consent."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, TypeVar

import click

from ..errors import InvalidArgument
from ..wire import Cluster, parse_address
from .datadir import DataDir
from .manager import Manager

R = TypeVar("R")

JSON_OPTION: Final = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
YES_OPTION: Final = click.option("--yes", is_flag=True, help="Do not ask.")


@dataclass(frozen=True)
class Door:
    """A cluster as its administrator names it."""

    data_path: Path | None
    manager: str | None
    secret_file: Path | None

    def cluster(self) -> Cluster:
        """Raises: click.UsageError when none or two are named; NotFound, InvalidArgument."""
        if (self.data_path is None) == (self.manager is None):
            raise click.UsageError(
                "name the cluster: either --data DIR (or LUCIOLA_DATA), or --manager HOST:PORT with --secret-file"
            )
        if self.data_path is not None:
            return DataDir(self.data_path.absolute()).read_shape().cluster
        assert self.manager is not None, "one of the two is set"
        if self.secret_file is None:
            raise InvalidArgument("a cluster at an address needs --secret-file")
        parse_address(self.manager)
        return Cluster("", "", self.manager, str(self.secret_file))

    def ask(self, what: Callable[[Manager], Coroutine[Any, Any, R]]) -> R:
        """The answer of the cluster's manager."""

        async def connected() -> R:
            async with Manager.connect(self.cluster()) as manager:
                return await what(manager)

        return asyncio.run(connected())


SECRET_OPTION: Final = click.option(
    "--secret-file",
    type=click.Path(path_type=Path, dir_okay=False),
    envvar="LUCIOLA_SECRET_FILE",
    help="File with the cluster secret, for --manager.",
)
MANAGER_OPTION: Final = click.option(
    "--manager",
    metavar="HOST:PORT",
    help="gRPC address of mgmtd, of a cluster elsewhere (mgmtd_grpc in its cluster.json).",
)
DATA_OPTION: Final = click.option(
    "--data",
    "data_path",
    type=click.Path(path_type=Path, file_okay=False),
    envvar="LUCIOLA_DATA",
    help="Data directory of a cluster on this machine.",
)


def door_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --data, --manager and --secret-file to a command, which takes their values for a `Door`."""
    for option in (SECRET_OPTION, MANAGER_OPTION, DATA_OPTION):
        command = option(command)
    return command


def consent(question: str, *, yes: bool) -> None:
    """Raises: click.UsageError without an answer (no terminal); click.Abort when it is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise click.UsageError(f"{question} Nobody is there to answer: repeat with --yes.")
    click.confirm(question, abort=True)


__all__ = ["JSON_OPTION", "YES_OPTION", "Door", "consent", "door_options"]
