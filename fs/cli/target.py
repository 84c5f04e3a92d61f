"""Which cluster a command speaks to, and which file on it."""

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import click

from ..errors import InvalidArgument
from .datadir import DataDir

if TYPE_CHECKING:
    from ..client import FileSystem

PREFIX: Final = "lu:"


def cluster_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --data, --address and --secret-file to a command; `open_cluster` takes their values."""
    for option in (
        click.option(
            "--secret-file",
            type=click.Path(path_type=Path, dir_okay=False),
            envvar="LUCIOLA_SECRET_FILE",
            help="File with the cluster secret, for --address.",
        ),
        click.option("--address", envvar="LUCIOLA_ADDRESS", help="mgmtd of a cluster elsewhere, HOST:PORT."),
        click.option(
            "--data",
            "data_path",
            type=click.Path(path_type=Path, file_okay=False),
            envvar="LUCIOLA_DATA",
            help="Data directory of a cluster on this machine.",
        ),
    ):
        command = option(command)
    return command


def open_cluster(data_path: Path | None, address: str | None, secret_file: Path | None) -> "FileSystem":
    """The file system that the options name.

    Raises: click.UsageError when they name none or two.
    """
    from ..client import connect

    if (data_path is None) == (address is None):
        raise click.UsageError(
            "name the cluster: either --data DIR (or LUCIOLA_DATA), or --address HOST:PORT with --secret-file"
        )
    if data_path is not None:
        DataDir(data_path).read_shape()
        return connect(str(data_path))
    assert address is not None, "one of the two is set"
    return connect(address, secret_file=None if secret_file is None else str(secret_file))


def cluster_path(text: str) -> str:
    """The absolute path on the cluster that `text` names, with or without the prefix.

    Raises: InvalidArgument for a relative path.
    """
    path = text.removeprefix(PREFIX)
    if not path.startswith("/"):
        raise InvalidArgument("paths on the cluster are absolute: write /dir/file", path=text)
    return path


__all__ = ["PREFIX", "cluster_options", "cluster_path", "open_cluster"]
