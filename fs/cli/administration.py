"""What commands of administrators share: how the cluster is named, and consent."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TypeVar

import click

from ..errors import InvalidArgument
from ..wire import Cluster, parse_addresses
from .datadir import running_shape
from .mgmtd_client import MgmtdClient
from .options import Parameters, Result, data_option, manager_option, prevailing, secret_option

R = TypeVar("R")


@dataclass(frozen=True)
class ClusterTarget:
    """A cluster as its administrator names it."""

    data_path: Path | None
    manager: str | None
    secret_file: Path | None

    def cluster(self) -> Cluster:
        """Raises: click.UsageError when none or two are named; NotFound, InvalidArgument."""
        named = prevailing(data_path=self.data_path, manager=self.manager)
        if len(named) != 1:
            raise click.UsageError(
                "name the cluster: either --data DIR (or LUCIOLA_DATA), or --manager HOST:PORT with --secret-file"
            )
        if named == ["data_path"]:
            assert self.data_path is not None, "a named option was given"
            return running_shape(self.data_path.absolute()).cluster
        if self.secret_file is None:
            raise InvalidArgument("a cluster at an address needs --secret-file")
        assert self.manager is not None, "a named option was given"
        parse_addresses(self.manager)
        return Cluster("", "", self.manager, str(self.secret_file))

    def ask(self, what: Callable[[MgmtdClient], Coroutine[object, None, R]]) -> R:
        """Return the answer of the cluster's manager."""

        async def connected() -> R:
            async with MgmtdClient.connect(self.cluster()) as manager:
                return await what(manager)

        return asyncio.run(connected())


def cluster_options(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Add --data, --manager and --secret-file to a command, which takes their values for a `ClusterTarget`."""
    for option in (secret_option(where="--manager"), manager_option, data_option(required=False)):
        command = option(command)
    return command


class Unanswered(click.ClickException):
    """A question that could not be asked. The usage was right, so it is not shown."""

    exit_code = 2

    def show(self, file: IO[str] | None = None) -> None:
        """Print the question."""
        click.echo(f"luciola: {self.message}", file=file, err=file is None)


def confirm(question: str, *, yes: bool) -> None:
    """Raises: Unanswered without a terminal; click.Abort when the answer is no."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise Unanswered(f"{question} There is no terminal to ask on: repeat with --yes.")
    click.confirm(question, abort=True)


__all__ = ["ClusterTarget", "Unanswered", "cluster_options", "confirm"]
