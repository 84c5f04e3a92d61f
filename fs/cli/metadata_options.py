"""Options of `luciola up` that say where metadata are kept: in one RocksDB each (the default), or in a log in etcd."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final, TypedDict

import click

from ..errors import InvalidArgument
from ..wire import parse_address
from .options import Decorator, Parameters, Result

PRIVATE: Final = "etcd"  # of --metadata: a private etcd, started beside the services
EMBEDDED: Final = "embedded"  # of `metadata migrate --to`: no etcd
SCHEME: Final = "etcd://"  # of --metadata: one that runs elsewhere
PROCESSES_MAX: Final = 8  # of a kind: each one more is a copy of the store, and another reader of its log
PROCESSES: Final = 2  # of a kind: one serves, one takes over


@dataclass(frozen=True)
class MetadataWanted:
    """What the options say. None and empty: nothing, which is what the cluster was created with, or the default."""

    where: str = ""  # PRIVATE, or addresses after SCHEME
    metas: int | None = None
    managers: int | None = None
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""

    @property
    def is_private(self) -> bool:
        return self.where == PRIVATE

    @property
    def addresses(self) -> tuple[str, ...]:
        """Of an etcd elsewhere."""
        if self.is_private or not self.where:
            return ()
        return tuple(self.where.removeprefix(SCHEME).rstrip("/").split(","))

    def check(self) -> None:
        """Refuse what contradicts itself. Raises: InvalidArgument."""
        if self.where and not self.is_private:
            if not self.where.startswith(SCHEME):
                raise InvalidArgument(
                    f"--metadata is {PRIVATE!r} or '{SCHEME}HOST:PORT,…', not {self.where!r}"
                )
            for address in self.addresses:
                parse_address(address)
        for option, count in (("--metas", self.metas), ("--managers", self.managers)):
            if self.where and count == 1:
                raise InvalidArgument(
                    f"{option} is at least 2 with --metadata: the log of a process that is alone would never be trimmed"
                )
        self._check_access()
        for option, path in self._files():
            if not Path(path).is_file():
                raise InvalidArgument(f"{option}: no such file", path=path)

    def _check_access(self) -> None:
        given = [option for option, _ in self._files()] + (["--metadata-user"] if self.user else [])
        if given and not self.addresses:
            raise InvalidArgument(
                f"{given[0]} is for an etcd that runs elsewhere: --metadata {SCHEME}HOST:PORT,…"
            )
        if bool(self.certificate_file) != bool(self.key_file):
            raise InvalidArgument("--metadata-certificate and --metadata-key are given together")
        if self.certificate_file and not self.ca_file:
            raise InvalidArgument("--metadata-certificate needs --metadata-ca: it is for TLS")
        if bool(self.user) != bool(self.password_file):
            raise InvalidArgument("--metadata-user and --metadata-password-file are given together")

    def _files(self) -> list[tuple[str, str]]:
        """Each option that names a file, with that file."""
        files = {
            "--metadata-ca": self.ca_file,
            "--metadata-certificate": self.certificate_file,
            "--metadata-key": self.key_file,
            "--metadata-password-file": self.password_file,
        }
        return [(option, path) for option, path in files.items() if path]


def metadata_options(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Add the options to a command, which takes their values for `wanted_metadata`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def etcd_options(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Add the same options without `--metadata` itself, which the command calls otherwise."""
    for option in reversed(_OPTIONS[1:]):
        command = option(command)
    return command


class AccessGiven(TypedDict):
    """Values of the options but `--metadata`."""

    metas: int | None
    managers: int | None
    metadata_ca: Path | None
    metadata_certificate: Path | None
    metadata_key: Path | None
    metadata_user: str
    metadata_password: Path | None


class Given(AccessGiven):
    """Values of the options."""

    metadata: str | None


def wanted_metadata(given: Given) -> MetadataWanted:
    """Return what the values say. Raises: InvalidArgument if they contradict each other."""
    wanted = MetadataWanted(
        where=given["metadata"] or "",
        metas=given["metas"],
        managers=given["managers"],
        ca_file=_absolute(given["metadata_ca"]),
        certificate_file=_absolute(given["metadata_certificate"]),
        key_file=_absolute(given["metadata_key"]),
        user=given["metadata_user"],
        password_file=_absolute(given["metadata_password"]),
    )
    wanted.check()
    return wanted


def _absolute(path: Path | None) -> str:
    """The cluster file is read by processes with other working directories."""
    return "" if path is None else str(path.absolute())


def _file_option(name: str, destination: str, text: str) -> Decorator:
    kind = click.Path(path_type=Path, dir_okay=False)
    return click.option(name, destination, type=kind, metavar="FILE", help=text)


def access_options(command: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """Add the options that say where an etcd is, and how to be let in there."""
    for option in reversed((_OPTIONS[0], *_OPTIONS[3:])):
        command = option(command)
    return command


_OPTIONS: Final[tuple[Decorator, ...]] = (
    click.option(
        "--metadata",
        metavar="etcd | etcd://HOST:PORT,…",
        help="Replicate the metadata of a new cluster: with a private etcd, or with one that runs elsewhere.",
    ),
    click.option(
        "--metas",
        type=click.IntRange(1, PROCESSES_MAX),
        help=f"Metadata services of a new cluster with --metadata.  [default: {PROCESSES}]",
    ),
    click.option(
        "--managers",
        type=click.IntRange(1, PROCESSES_MAX),
        help=f"mgmtd processes of a new cluster with --metadata.  [default: {PROCESSES}]",
    ),
    _file_option("--metadata-ca", "metadata_ca", "Speak TLS with that etcd; who signs its certificates."),
    _file_option("--metadata-certificate", "metadata_certificate", "Our own certificate for that etcd."),
    _file_option("--metadata-key", "metadata_key", "The key of that certificate."),
    click.option("--metadata-user", metavar="NAME", default="", help="A user of that etcd."),
    _file_option("--metadata-password-file", "metadata_password", "File with the password of that user."),
)


__all__ = [
    "EMBEDDED",
    "PRIVATE",
    "PROCESSES",
    "SCHEME",
    "AccessGiven",
    "Given",
    "MetadataWanted",
    "access_options",
    "etcd_options",
    "metadata_options",
    "wanted_metadata",
]
