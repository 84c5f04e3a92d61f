"""The directory of a cluster on one machine: which file is where, and who may read it.

DATA/                 0700
  secret              0600  the cluster secret
  cluster.json        0600  identity, shape and addresses
  mgmtd/ meta/ storage-N/   what each service keeps
  log/NAME.log              what each service says
  run/lock                  held by the supervisor while it runs; its process id
  run/state.json            services as the supervisor sees them
  run/mounts/*.json         one per mount of this cluster on this machine
"""

import contextlib
import fcntl
import json
import os
import secrets
import shlex
import signal
import socket
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import Busy, ConfigError, InvalidArgument, NotFound, Unavailable
from ..wire import Cluster, parse_address, parse_cluster, write_private

CONNECT_S: Final = 1.0  # to a port of this machine
PORTS: Final = range(20_000, 32_768)  # up to the default of net.ipv4.ip_local_port_range


@dataclass(frozen=True)
class Shape:
    """What a cluster was created as. Kept in cluster.json, so that a later `up` need not repeat it.

    `has_stores`: mgmtd and meta have created their stores. They are never created a second time.
    """

    cluster: Cluster
    storage_nodes: int
    replicas: int
    has_stores: bool = False


@dataclass(frozen=True)
class DataDir:
    """Names of everything in a data directory."""

    root: Path

    @property
    def secret(self) -> Path:
        return self.root / "secret"

    @property
    def cluster(self) -> Path:
        return self.root / "cluster.json"

    @property
    def lock(self) -> Path:
        return self.root / "run" / "lock"

    @property
    def state(self) -> Path:
        return self.root / "run" / "state.json"

    @property
    def mounts(self) -> Path:
        return self.root / "run" / "mounts"

    def log(self, name: str) -> Path:
        return self.root / "log" / f"{name}.log"

    def create(self) -> None:
        """Make the directories, closed to other users."""
        if self.root.exists() and not self.root.is_dir():
            raise InvalidArgument("not a directory", path=str(self.root))
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        foreign = {entry.name for entry in self.root.iterdir()} - {"lost+found"}
        if foreign and not self.cluster.exists() and not {"secret", "run"} & foreign:
            raise InvalidArgument(
                "the data directory is not empty and holds no cluster; name an empty or a new one",
                path=str(self.root),
            )
        for directory in (self.root, self.root / "log", self.root / "run", self.mounts):
            directory.mkdir(mode=0o700, exist_ok=True)
        self.root.chmod(0o700)

    def read_shape(self) -> Shape:
        """Return the cluster's shape.

        Raises: NotFound with advice when there is no cluster here; InvalidArgument when the file is damaged.
        """
        try:
            record = json.loads(self.cluster.read_text())
            nodes, replicas = int(record["storage_nodes"]), int(record["replicas"])
            has_stores = bool(record["has_stores"])
            cluster = parse_cluster(self.cluster, record)
        except FileNotFoundError as error:
            raise NotFound(
                "no cluster in this directory; `luciola up --data DIR` creates one", path=str(self.root)
            ) from error
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(
                f"damaged ({error!r}); restore it or delete it and run `luciola up` with the same options",
                path=str(self.cluster),
            ) from error
        return Shape(cluster, nodes, replicas, has_stores)

    def storage_records(self) -> list[str | None]:
        """Return the cluster that each storage directory here belongs to: what is left where cluster.json was lost.

        None for one that is empty; nothing at all if all are: disks that wait for their cluster.
        Raises: InvalidArgument when one is damaged.
        """
        found: list[str | None] = []
        for directory in sorted(self.root.glob("storage-*")):
            path = directory / "node.json"
            try:
                found.append(str(json.loads(path.read_text())["cluster"]))
            except FileNotFoundError:
                found.append(None)
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidArgument(f"damaged ({error!r})", path=str(path)) from error
        return found if any(found) else []

    def write_shape(self, shape: Shape) -> None:
        """Write cluster.json: what every process reads (`wire.Cluster`), and what only `up` needs."""
        record = asdict(shape.cluster) | {
            "storage_nodes": shape.storage_nodes,
            "replicas": shape.replicas,
            "has_stores": shape.has_stores,
        }
        write_private(self.cluster, json.dumps(record, indent=1) + "\n")

    @contextlib.contextmanager
    def supervised(self) -> Iterator[None]:
        """Hold the supervisor's lock. Raises: Busy when another supervisor runs."""
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise Busy(
                    "this cluster is running already; "
                    f"`luciola status --data {shlex.quote(str(self.root))}` shows it"
                ) from error
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
            yield
        finally:
            os.close(descriptor)

    def signal_supervisor(self, number: signal.Signals) -> bool:
        """Signal the process that holds the lock. False if none does, or it has not written its id there yet."""
        with contextlib.suppress(FileNotFoundError):
            text = self.lock.read_text().strip()
            return text.isdecimal() and self._signal_holder(int(text), number)
        return False

    def _signal_holder(self, pid: int, number: signal.Signals) -> bool:
        """Signal that process if it has the lock open: an id of an earlier supervisor may be another's by now."""
        try:
            process = os.pidfd_open(pid)
        except (OSError, OverflowError):
            return False
        try:
            # What this process has open is looked at after it was opened itself: the id is not reused in between.
            if not _has_open(pid, self.lock):
                return False
            signal.pidfd_send_signal(process, number)
        except ProcessLookupError:
            return False
        finally:
            os.close(process)
        return True

    def is_supervised(self) -> bool:
        """Return whether a supervisor holds the lock."""
        try:
            descriptor = os.open(self.lock, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False


def _has_open(pid: int, path: Path) -> bool:
    """Return whether that process has that file open."""
    wanted = path.stat()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:  # it may just end
        for descriptor in descriptors:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), wanted):
                    return True
    return False


def choose_shape(data: DataDir, *, storage_nodes: int | None, replicas: int | None) -> Shape:
    """Return the shape to start with: the recorded one, or a new one. Ports that are taken are replaced.

    Raises: InvalidArgument when the options contradict what the cluster was created as.
    """
    if not data.cluster.exists():
        records = data.storage_records()
        nodes, copies = _new_counts(records, storage_nodes=storage_nodes, replicas=replicas)
        lane, grpc = free_ports(2)
        cluster = Cluster(
            cluster_id=next(filter(None, records), None) or secrets.token_hex(8),
            mgmtd_lane=f"127.0.0.1:{lane}",
            mgmtd_grpc=f"127.0.0.1:{grpc}",
            secret_file=str(data.secret.absolute()),
        )
        # Storage nodes that belong to a cluster outlive a lost cluster.json, and so must its other stores.
        shape = Shape(cluster, nodes, copies, has_stores=bool(records))
        data.write_shape(shape)
        return shape
    old = data.read_shape()
    _check_recorded(old, storage_nodes=storage_nodes, replicas=replicas)
    known = old.cluster
    taken = [address for address in (known.mgmtd_lane, known.mgmtd_grpc) if not is_free(address)]
    if not taken:
        return old
    lane, grpc = free_ports(2)
    moved = replace(known, mgmtd_lane=f"127.0.0.1:{lane}", mgmtd_grpc=f"127.0.0.1:{grpc}")
    shape = replace(old, cluster=moved)
    data.write_shape(shape)
    return shape


def check_shape(data: DataDir, *, storage_nodes: int | None, replicas: int | None) -> None:
    """Refuse what `choose_shape` would refuse, before anything is written. Raises: InvalidArgument."""
    if data.cluster.exists():
        _check_recorded(data.read_shape(), storage_nodes=storage_nodes, replicas=replicas)
    else:
        _new_counts(data.storage_records(), storage_nodes=storage_nodes, replicas=replicas)


def _new_counts(
    records: list[str | None], *, storage_nodes: int | None, replicas: int | None
) -> tuple[int, int]:
    """Storage nodes and copies of a new cluster. Raises: InvalidArgument."""
    if records and storage_nodes not in (None, len(records)):
        raise InvalidArgument(
            f"this cluster was created with {len(records)} storage nodes, which cannot be changed here"
        )
    nodes = len(records) or (3 if storage_nodes is None else storage_nodes)
    copies = min(2, nodes) if replicas is None else replicas
    if copies > nodes:
        raise InvalidArgument(
            f"{copies} replicas need at least {copies} storage nodes, not {nodes}: replicas of a chunk "
            "never share a node"
        )
    return nodes, copies


def _check_recorded(shape: Shape, *, storage_nodes: int | None, replicas: int | None) -> None:
    """Raises: InvalidArgument when the options contradict what the cluster was created as."""
    if replicas is not None and replicas != shape.replicas:
        raise InvalidArgument(
            f"this cluster was created with {shape.replicas} replicas, which cannot be changed here"
        )
    if storage_nodes is not None and storage_nodes != shape.storage_nodes:
        raise InvalidArgument(
            f"this cluster was created with {shape.storage_nodes} storage nodes, which cannot be changed here"
        )


def free_ports(count: int) -> list[int]:
    """Return loopback ports on which no program listens now.

    They are below those that the kernel gives to connections by itself: one of these could take the port of a
    service while that is being restarted (a client that calls it may even connect to itself).
    """
    found: list[int] = []
    for port in secrets.SystemRandom().sample(PORTS, len(PORTS)):
        if len(found) == count:
            break
        if is_free(f"127.0.0.1:{port}"):
            found.append(port)
    return found


def is_free(address: str) -> bool:
    """Return whether one could listen on `address`, "host:port"."""
    host, _, port = address.rpartition(":")
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, int(port)))
        except OSError:
            return False
    return True


def running_shape(root: Path) -> Shape:
    """Return the cluster of a data directory, which runs or is starting.

    Raises: as `read_shape`; Unavailable at once if it is stopped, instead of waiting for an answer.
    """
    data = DataDir(root)
    shape = data.read_shape()
    # Without a supervisor its services may still run, started by other means.
    if not data.is_supervised() and not _listens(shape.cluster.mgmtd_grpc):
        advice = f"luciola up --data {shlex.quote(str(root))}"
        raise Unavailable(f"the cluster in {str(root)!r} is not running; to start it: {advice}")
    return shape


def _listens(address: str) -> bool:
    try:
        with socket.create_connection(parse_address(address), timeout=CONNECT_S):
            return True
    except OSError:
        return False


__all__ = ["DataDir", "Shape", "check_shape", "choose_shape", "free_ports", "is_free", "running_shape"]
