"""What commands of administrators share: how the cluster is named, and consent."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import IO, Concatenate, TypeVar

import click

from ..errors import InvalidArgument
from ..wire import Cluster, Token, load_token, parse_addresses
from ..wire.credentials import require_current
from .datadir import running_shape
from .mgmtd_client import MgmtdClient
from .options import (
    NO_CREDENTIAL,
    Credential,
    Parameters,
    Result,
    data_option,
    manager_option,
    pop_path,
    pop_text,
    prevailing,
    secret_option,
    token_option,
)

R = TypeVar("R")


@dataclass(frozen=True)
class ClusterTarget:
    """A cluster as its administrator names it."""

    data_path: Path | None
    manager: str | None
    credential: Credential = NO_CREDENTIAL

    def cluster(self) -> Cluster:
        """Raises: click.UsageError when none or two are named; NotFound, InvalidArgument."""
        named = prevailing(data_path=self.data_path, manager=self.manager)
        if len(named) != 1:
            raise click.UsageError(
                "name the cluster: either --data DIR (or LUCIOLA_DATA), or --manager HOST:PORT with --token-file "
                "or --secret-file"
            )
        if named == ["data_path"]:
            assert self.data_path is not None, "a named option was given"
            return running_shape(self.data_path.absolute()).cluster
        secret_file, token_file = self.credential.secret_file, self.credential.token_file
        if secret_file is token_file is None:
            raise InvalidArgument("a cluster at an address needs --token-file or --secret-file")
        assert self.manager is not None, "a named option was given"
        parse_addresses(self.manager)
        return Cluster("", "", self.manager, str(secret_file or ""))

    def ask(self, what: Callable[[MgmtdClient], Coroutine[object, None, R]]) -> R:
        """Return the answer of the cluster's manager."""

        async def connected() -> R:
            async with MgmtdClient.connect(self.cluster(), self._token()) as manager:
                return await what(manager)

        return asyncio.run(connected())

    def _token(self) -> Token | None:
        path = self.credential.token_file
        return None if path is None else require_current(load_token(path), path=str(path))


def cluster_options(
    command: Callable[Concatenate[ClusterTarget, Parameters], Result],
) -> Callable[Parameters, Result]:
    """Add --data, --manager, --secret-file and --token-file to a command, which takes a `ClusterTarget` first."""

    @wraps(command)
    def with_target(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        data_path, manager = pop_path(named, "data_path"), pop_text(named, "manager")
        return command(ClusterTarget(data_path, manager, Credential.pop(named)), *arguments, **named)

    decorated: Callable[Parameters, Result] = with_target
    options = (
        token_option(where="of role admin, before --secret-file"),
        secret_option(where="--manager"),
        manager_option,
        data_option(required=False),
    )
    for option in options:
        decorated = option(decorated)
    return decorated


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
