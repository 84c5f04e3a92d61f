"""What commands of administrators share: how the cluster is named, and consent."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Final, TypeVar

import click

from ..errors import InvalidArgument
from ..wire import Cluster, Tls, Token, load_current_token, parse_addresses
from ..wire.credentials import load_tls
from .datadir import running_shape
from .mgmtd_client import MgmtdClient
from .options import NO_CREDENTIAL, Credential, is_on_this_machine, manager_option, target_options

R = TypeVar("R")


@dataclass(frozen=True)
class ClusterTarget:
    """A cluster as its administrator names it."""

    data_path: Path | None
    manager: str | None
    credential: Credential = NO_CREDENTIAL

    def cluster(self) -> Cluster:
        """Raises: click.UsageError when none or two are named; NotFound, InvalidArgument."""
        if is_on_this_machine(self.data_path, manager=self.manager):
            assert self.data_path is not None, "a named option was given"
            return running_shape(self.data_path.absolute()).cluster
        secret_file, token_file = self.credential.secret_file, self.credential.token_file
        if secret_file is token_file is None:
            raise InvalidArgument("a cluster at an address needs --token-file or --secret-file")
        assert self.manager is not None, "a named option was given"
        parse_addresses(self.manager)
        return Cluster("", "", self.manager, str(secret_file or ""))

    def tls(self) -> Tls | None:
        """Return what protects the calls. Raises: as `cluster`, `load_tls`."""
        if self.credential.token_file is not None and self.manager is not None:
            return load_tls(self.credential.token_file)
        return self.cluster().tls()

    def ask(self, what: Callable[[MgmtdClient], Coroutine[object, None, R]]) -> R:
        """Return the answer of the cluster's manager."""

        async def connected() -> R:
            async with MgmtdClient.connect(self.cluster(), self._token(), tls=self.tls()) as manager:
                return await what(manager)

        return asyncio.run(connected())

    def _token(self) -> Token | None:
        path = self.credential.token_file
        return None if path is None else load_current_token(path)


cluster_options: Final = target_options(
    ClusterTarget, manager_option, "manager", where="of role admin, before --secret-file"
)


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
