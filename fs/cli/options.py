"""Options that several commands have, and which of them counts where only one may be given."""

from collections.abc import Callable
from dataclasses import dataclass
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


def token_option(*, where: str) -> Decorator:
    """--token-file: instead of the cluster's secret, `where`."""
    return click.option(
        "--token-file",
        type=click.Path(path_type=Path, dir_okay=False),
        envvar="LUCIOLA_TOKEN_FILE",
        show_envvar=True,
        help=f"File with a token (`luciola token create`), {where}; the secret is not needed then.",
    )


@dataclass(frozen=True)
class Credential:
    """What a command shows to a cluster. Neither: the secret that its data directory has."""

    secret_file: Path | None = None
    token_file: Path | None = None

    @classmethod
    def given(cls, secret_file: Path | None, token_file: Path | None) -> "Credential":
        """The one on the command line, or else the environment's, the token first.

        Raises: click.UsageError if both are on the command line.
        """
        named = prevailing(secret_file=secret_file, token_file=token_file)
        if len(named) == 2:
            context = click.get_current_context()
            if context.get_parameter_source("token_file") is ParameterSource.COMMANDLINE:
                raise click.UsageError("give either --token-file or --secret-file")
            return cls(token_file=token_file)
        return cls(secret_file) if named == ["secret_file"] else cls(token_file=token_file)

    @classmethod
    def pop(cls, named: dict[str, object]) -> "Credential":
        """Take `given` from the values of a command's options."""
        return cls.given(pop_path(named, "secret_file"), pop_path(named, "token_file"))


NO_CREDENTIAL: Final = Credential()


def pop_path(named: dict[str, object], name: str) -> Path | None:
    """Take a path from the values of a command's options."""
    value = named.pop(name)
    assert value is None or isinstance(value, Path), f"{name} is a path"
    return value


def pop_text(named: dict[str, object], name: str) -> str | None:
    """Take a text from the values of a command's options."""
    value = named.pop(name)
    assert value is None or isinstance(value, str), f"{name} is text"
    return value


def prevailing(**given: object) -> list[str]:
    """Return which options of those count that exclude one another: one on the command line before the environment's.

    All that are given if none or several are on the command line.
    """
    context = click.get_current_context()
    known = [name for name, value in given.items() if value is not None]
    said = [name for name in known if context.get_parameter_source(name) is ParameterSource.COMMANDLINE]
    return said if len(said) == 1 else known


__all__ = [
    "NO_CREDENTIAL",
    "Credential",
    "address_option",
    "config_option",
    "data_option",
    "json_option",
    "manager_option",
    "pop_path",
    "pop_text",
    "prevailing",
    "secret_option",
    "token_option",
    "yes_option",
]
