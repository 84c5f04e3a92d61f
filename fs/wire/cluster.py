"""The cluster file: the addresses of a cluster's managers, the paths of secrets, and where its metadata is.

Written by `luciola up`. Each manager process has one entry in `mgmtd_lane` and in `mgmtd_grpc`; entries are separated
by commas. `metadata` names the etcd that holds the logs of mgmtd and meta; without it each has a store of its own.
`tls_directory` is where certificates are (tls.py); without it services listen on one machine.
"""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

from ..errors import ConfigError, Error, NotFound, PermissionDenied
from .addresses import parse_addresses
from .atomic_write import read_private, write_private
from .credentials import SERVICE, Minter, load_secret
from .tls import Tls, tls_of

if TYPE_CHECKING:
    from .etcd import EtcdOptions
    from .rpc import RpcClients

FILE_NAME: Final = "cluster.json"
_NAMES: Final = ("cluster_id", "mgmtd_lane", "mgmtd_grpc", "secret_file")
_FILES: Final = ("ca_file", "certificate_file", "key_file", "password_file")


@dataclass(frozen=True, slots=True)
class Metadata:
    """The etcd that holds the metadata logs. Files that are not needed are empty."""

    endpoints: tuple[str, ...]
    ca_file: str = ""
    certificate_file: str = ""
    key_file: str = ""
    user: str = ""
    password_file: str = ""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What every process reads at its start."""

    cluster_id: str
    mgmtd_lane: str
    mgmtd_grpc: str
    secret_file: str
    metadata: Metadata | None = None
    tls_directory: str = ""

    def secret(self) -> bytes:
        """Return the cluster secret. Raises as `load_secret`."""
        return load_secret(Path(self.secret_file))

    def tls(self) -> Tls | None:
        """Return what protects gRPC of a cluster of several machines; None on one machine."""
        return tls_of(Path(self.tls_directory), self.cluster_id) if self.tls_directory else None

    def clients(self) -> "RpcClients":
        """Return channels to services, as a service of this cluster. Raises: as `secret`."""
        from .rpc import RpcClients  # as below

        return RpcClients(Minter(self.secret(), role=SERVICE), tls=self.tls())

    def manager_addresses(self, number: int) -> tuple[str, str]:
        """Return where manager `number`, from 1, listens: (lane, gRPC). Raises: ConfigError."""
        lanes, rpcs = self.mgmtd_lane.split(","), self.mgmtd_grpc.split(",")
        if not 0 < number <= len(lanes):
            raise ConfigError(f"the cluster file has no entry for manager {number}: it has {len(lanes)}")
        return lanes[number - 1], rpcs[number - 1]

    def metadata_options(self) -> "EtcdOptions | None":
        """Return how to reach the metadata's etcd; None if each service has a store of its own.

        Raises: ConfigError.
        """
        if self.metadata is None:
            return None
        from .etcd import EtcdOptions  # needs gRPC: programs that only connect do not wait for it

        return EtcdOptions(
            tuple(each.partition("://")[2] or each for each in self.metadata.endpoints),
            ca=_path(self.metadata.ca_file),
            certificate=_path(self.metadata.certificate_file),
            key=_path(self.metadata.key_file),
            user=self.metadata.user,
            password=_password(self.metadata.password_file),
        )

    def log_prefix(self, service: str) -> str:
        """Return where the log of `service` is in etcd."""
        return f"luciola/{self.cluster_id}/{service}/"


def load_cluster(path: Path) -> Cluster:
    """Return the cluster described in the file at `path`; relative paths in it start at its directory.

    Raises: NotFound, PermissionDenied, ConfigError.
    """
    try:
        table = json.loads(read_private(path))
    except FileNotFoundError as error:
        raise NotFound("no cluster file; is the cluster running?", path=str(path)) from error
    except PermissionDenied:
        raise
    except PermissionError as error:
        raise PermissionDenied("the cluster file may be read by its owner only", path=str(path)) from error
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: not a cluster file: {error}") from error
    cluster = parse_cluster(path, table)
    secret_file = str(path.parent / cluster.secret_file)  # an absolute one stays as it is
    tls_directory = str(path.parent / cluster.tls_directory) if cluster.tls_directory else ""
    return replace(cluster, secret_file=secret_file, tls_directory=tls_directory)


def parse_cluster(path: Path, table: object) -> Cluster:
    """Return the cluster that `table`, the content of the file at `path`, describes. Raises: ConfigError."""
    if not isinstance(table, dict) or not all(isinstance(table.get(name), str) for name in _NAMES):
        raise ConfigError(f"{path}: must be an object with the strings {', '.join(_NAMES)}")
    _check_managers(path, table)
    tls_directory = table.get("tls_directory", "")
    if not isinstance(tls_directory, str):
        raise ConfigError(f"{path}: tls_directory: must be a string")
    return Cluster(
        **{name: table[name] for name in _NAMES},
        metadata=_metadata(path, table.get("metadata")),
        tls_directory=tls_directory,
    )


def save_cluster(path: Path, cluster: Cluster) -> None:
    """Write the cluster file (0600) in one step: a reader sees the old one or the new one."""
    write_private(path, json.dumps(encode_cluster(cluster), indent=1) + "\n")


def encode_cluster(cluster: Cluster) -> dict[str, object]:
    """Return the inverse of `parse_cluster`: what is not there is not named."""
    table: dict[str, object] = asdict(cluster)
    if cluster.metadata is None:
        del table["metadata"]
    if not cluster.tls_directory:
        del table["tls_directory"]
    return table


def _check_managers(path: Path, table: dict[str, str]) -> None:
    counts = set()
    for name in ("mgmtd_lane", "mgmtd_grpc"):
        try:
            counts.add(len(parse_addresses(table[name])))
        except Error as error:
            raise ConfigError(f"{path}: {name}: {error}") from error
    if len(counts) > 1:
        raise ConfigError(f"{path}: mgmtd_lane and mgmtd_grpc: one entry each for every manager is expected")


def _metadata(path: Path, found: object) -> Metadata | None:
    if found is None:
        return None
    if not isinstance(found, dict):
        raise ConfigError(f"{path}: metadata: must be an object")
    endpoints = found.get("endpoints")
    if not isinstance(endpoints, list) or not all(isinstance(each, str) for each in endpoints):
        raise ConfigError(f"{path}: metadata.endpoints: must be a list of strings")
    texts = {name: found.get(name, "") for name in (*_FILES, "user")}
    for name, text in texts.items():
        if not isinstance(text, str):
            raise ConfigError(f"{path}: metadata.{name}: must be a string")
    if unknown := found.keys() - texts.keys() - {"endpoints"}:
        raise ConfigError(f"{path}: metadata: unknown keys {', '.join(sorted(unknown))}")
    files = {name: str(path.parent / texts[name]) for name in _FILES if texts[name]}
    return Metadata(tuple(endpoints), **{**texts, **files})


def _path(name: str) -> Path | None:
    return Path(name) if name else None


def _password(name: str) -> str:
    if not name:
        return ""
    try:
        return Path(name).read_text(encoding="utf-8").rstrip("\n")
    except (OSError, ValueError) as error:
        raise ConfigError(f"metadata.password_file: {name} cannot be read: {error}") from error


__all__ = [
    "FILE_NAME",
    "Cluster",
    "Metadata",
    "encode_cluster",
    "load_cluster",
    "parse_cluster",
    "save_cluster",
]
