"""Options that several commands have, and which of them counts where only one may be given."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, Protocol, TypeVar

import click
from click.core import ParameterSource

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")
Target = TypeVar("Target")
Value = TypeVar("Value")


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
    return _file_option("--secret-file", "LUCIOLA_SECRET_FILE", f"File with the cluster secret, for {where}.")


def token_option(*, where: str) -> Decorator:
    """--token-file: instead of the cluster's secret, `where`."""
    text = f"File with a token (`luciola token create`), {where}; the secret is not needed then."
    return _file_option("--token-file", "LUCIOLA_TOKEN_FILE", text)


def _file_option(name: str, variable: str, text: str) -> Decorator:
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option(name, type=kind, envvar=variable, show_envvar=True, help=text)


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


NO_CREDENTIAL: Final = Credential()


def target_options(
    make: Callable[[Path | None, str | None, Credential], Target],
    place: Decorator,
    name: str,
    *,
    where: str,
) -> Callable[[Callable[Concatenate[Target, Parameters], Result]], Callable[Parameters, Result]]:
    """Add --data, `place`, which is --`name`, --secret-file and --token-file to a command.

    The command takes first what `make` returns of the data directory, the value of `place` and the credential.
    """

    def decorate(command: Callable[Concatenate[Target, Parameters], Result]) -> Callable[Parameters, Result]:
        @wraps(command)
        def with_target(*arguments: Parameters.args, **named: Parameters.kwargs) -> Result:
            secret_file, token_file = _pop(named, "secret_file", Path), _pop(named, "token_file", Path)
            credential = Credential.given(secret_file, token_file)
            target = make(_pop(named, "data_path", Path), _pop(named, name, str), credential)
            return command(target, *arguments, **named)

        decorated: Callable[Parameters, Result] = with_target
        options = (
            token_option(where=where),
            secret_option(where=f"--{name}"),
            place,
            data_option(required=False),
        )
        for option in options:
            decorated = option(decorated)
        return decorated

    return decorate


def _pop(named: dict[str, object], name: str, kind: type[Value]) -> Value | None:
    value = named.pop(name)
    assert value is None or isinstance(value, kind), f"{name} is a {kind.__name__}"
    return value


def is_on_this_machine(data_path: Path | None, **elsewhere: str | None) -> bool:
    """Return whether --data names the cluster, and not the option of `elsewhere`.

    Raises: click.UsageError when none or both do.
    """
    named = prevailing(data_path=data_path, **elsewhere)
    if len(named) != 1:
        (option,) = elsewhere
        raise click.UsageError(
            f"name the cluster: either --data DIR (or LUCIOLA_DATA), or --{option} HOST:PORT with --token-file or "
            "--secret-file"
        )
    return named == ["data_path"]


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
    "is_on_this_machine",
    "json_option",
    "manager_option",
    "prevailing",
    "secret_option",
    "target_options",
    "token_option",
    "yes_option",
]
