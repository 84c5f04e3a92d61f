"""Which cluster a command speaks to, and which file on it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from ..errors import InvalidArgument
from .datadir import running_shape
from .options import Parameters, Result, address_option, data_option, prevailing, secret_option

if TYPE_CHECKING:
    from ..client import FileSystem

PREFIX: Final = "lu:"


def cluster_options(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Add --data, --address and --secret-file to a command; `open_cluster` takes their values."""
    for option in (secret_option(where="--address"), address_option, data_option(required=False)):
        command = option(command)
    return command


def open_cluster(data_path: Path | None, address: str | None, secret_file: Path | None) -> "FileSystem":
    """Return the file system that the options name.

    Raises: click.UsageError when they name none or two.
    """
    from ..client import connect

    named = prevailing(data_path=data_path, address=address)
    if len(named) != 1:
        raise click.UsageError(
            "name the cluster: either --data DIR (or LUCIOLA_DATA), or --address HOST:PORT with --secret-file"
        )
    if named == ["data_path"]:
        assert data_path is not None, "a named option was given"
        running_shape(data_path)
        return connect(str(data_path))
    assert address is not None, "a named option was given"
    return connect(address, secret_file=None if secret_file is None else str(secret_file))


def cluster_path(text: str) -> str:
    """Return the absolute path on the cluster that `text` names, with or without the prefix.

    Raises: InvalidArgument for a relative path.
    """
    path = text.removeprefix(PREFIX)
    if not path.startswith("/"):
        raise InvalidArgument("paths on the cluster are absolute: write /dir/file", path=text)
    return path


__all__ = ["PREFIX", "cluster_options", "cluster_path", "open_cluster"]
