"""The cluster file: the addresses of a cluster's manager and the path of its secret. Written by `luciola up`."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from ..errors import ConfigError, Error, NotFound, PermissionDenied
from .addresses import parse_address
from .atomic_write import write_private
from .credentials import load_secret

FILE_NAME: Final = "cluster.json"


@dataclass(frozen=True, slots=True)
class Cluster:
    """What every process reads at its start."""

    cluster_id: str
    mgmtd_lane: str
    mgmtd_grpc: str
    secret_file: str

    def secret(self) -> bytes:
        """Return the cluster secret. Raises as `load_secret`."""
        return load_secret(Path(self.secret_file))


def load_cluster(path: Path) -> Cluster:
    """Return the cluster described in the file at `path`; a relative `secret_file` starts at its directory.

    Raises: NotFound, PermissionDenied, ConfigError.
    """
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise NotFound("no cluster file; is the cluster running?", path=str(path)) from error
    except PermissionError as error:
        raise PermissionDenied("the cluster file may be read by its owner only", path=str(path)) from error
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: not a cluster file: {error}") from error
    names = tuple(Cluster.__dataclass_fields__)
    if not isinstance(table, dict) or not all(isinstance(table.get(name), str) for name in names):
        raise ConfigError(f"{path}: must be an object with the strings {', '.join(names)}")
    cluster = Cluster(**{name: table[name] for name in names})
    for name in ("mgmtd_lane", "mgmtd_grpc"):
        try:
            parse_address(table[name])
        except Error as error:
            raise ConfigError(f"{path}: {name}: {error}") from error
    secret_file = str(path.parent / cluster.secret_file)  # an absolute one stays as it is
    return Cluster(cluster.cluster_id, cluster.mgmtd_lane, cluster.mgmtd_grpc, secret_file)


def save_cluster(path: Path, cluster: Cluster) -> None:
    """Write the cluster file (0600) in one step: a reader sees the old one or the new one."""
    write_private(path, json.dumps(asdict(cluster), indent=1) + "\n")


__all__ = ["FILE_NAME", "Cluster", "load_cluster", "save_cluster"]
