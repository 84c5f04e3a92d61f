"""Which cluster a command speaks to, and which file on it."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Concatenate, Final

import click

from ..errors import InvalidArgument
from .datadir import running_shape
from .options import (
    NO_CREDENTIAL,
    Credential,
    Parameters,
    Result,
    address_option,
    data_option,
    pop_path,
    pop_text,
    prevailing,
    secret_option,
    token_option,
)

if TYPE_CHECKING:
    from ..client import FileSystem

PREFIX: Final = "lu:"


@dataclass(frozen=True)
class FilesTarget:
    """A cluster as somebody names it who wants its files."""

    data_path: Path | None = None
    address: str | None = None
    credential: Credential = NO_CREDENTIAL

    def open(self) -> "FileSystem":
        """Return its file system. Raises: click.UsageError when none or two clusters are named; as `connect`."""
        from ..client import connect

        named = prevailing(data_path=self.data_path, address=self.address)
        if len(named) != 1:
            raise click.UsageError(
                "name the cluster: either --data DIR (or LUCIOLA_DATA), or --address HOST:PORT with --token-file "
                "or --secret-file"
            )
        token_file = self.credential.token_file
        if named == ["data_path"]:
            assert self.data_path is not None, "a named option was given"
            running_shape(self.data_path)
            return connect(str(self.data_path), token_file=token_file)
        assert self.address is not None, "a named option was given"
        return connect(self.address, secret_file=self.credential.secret_file, token_file=token_file)


def cluster_options(
    command: Callable[Concatenate[FilesTarget, Parameters], Result],
) -> Callable[Parameters, Result]:
    """Add --data, --address, --secret-file and --token-file to a command, which takes a `FilesTarget` first."""

    @wraps(command)
    def with_target(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
        data_path, address = pop_path(named, "data_path"), pop_text(named, "address")
        return command(FilesTarget(data_path, address, Credential.pop(named)), *arguments, **named)

    decorated: Callable[Parameters, Result] = with_target
    options = (
        token_option(where="before --secret-file"),
        secret_option(where="--address"),
        address_option,
        data_option(required=False),
    )
    for option in options:
        decorated = option(decorated)
    return decorated


def cluster_path(text: str) -> str:
    """Return the absolute path on the cluster that `text` names, with or without the prefix.

    Raises: InvalidArgument for a relative path.
    """
    path = text.removeprefix(PREFIX)
    if not path.startswith("/"):
        raise InvalidArgument("paths on the cluster are absolute: write /dir/file", path=text)
    return path


__all__ = ["PREFIX", "FilesTarget", "cluster_options", "cluster_path"]
