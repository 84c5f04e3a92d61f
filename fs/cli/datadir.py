"""The directory of a cluster on one machine: which file is where, and who may read it.

DATA/                 0700
  secret              0600  the cluster secret
  tokens              0600  which tokens were made here, without their keys (`token_record`)
  cluster.json        0600  identity, shape and addresses
  tls/                      certificates and keys of a cluster of several machines (`wire.tls`)
  mgmtd/ meta/ storage-N/   what each service keeps; mgmtd-N/ and meta-N/ of further ones
  etcd/ etcd-N/             certificate and members of a private etcd (`private_etcd`)
  log/NAME.log              what each service says
  audit/              0700  who changed the cluster, and what was refused (`wire.audit`)
  migration.json      0600  while a migration of the metadata puts its stores in their places (`metadata_switch`)
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from ..errors import Busy, ConfigError, InvalidArgument, NotFound, Unavailable
from ..wire import (
    Cluster,
    Metadata,
    encode_cluster,
    parse_address,
    parse_addresses,
    parse_cluster,
    read_private,
    write_private,
)
from . import private_etcd
from .metadata_options import PROCESSES, MetadataWanted

CONNECT_S: Final = 1.0  # to a port of this machine
KINDS: Final = ("mgmtd", "meta", "storage")  # of services, in the order of their ports
PORTS_EACH: Final = 2
PORTS: Final = range(20_000, 32_768)  # up to the default of net.ipv4.ip_local_port_range


@dataclass(frozen=True)
class Host:
    """One machine of a cluster of several: where its services listen, and their numbers.

    `first_storage`: on the machine where the cluster was made, how many storage nodes it is laid out over once they
    are there; 0 afterwards, and elsewhere.
    `base_port`: the first of the ports of its services; 0: theirs are free ones, as mgmtd passes them on.
    """

    address: str
    managers: tuple[int, ...] = ()
    metas: tuple[int, ...] = ()
    storage: tuple[int, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()
    insecure: bool = False
    first_storage: int = 0
    base_port: int = 0

    def port(self, kind: str) -> int:
        """Return the first port of a service here; 0 of one that takes free ones. Two belong to each kind."""
        return self.base_port and self.base_port + PORTS_EACH * KINDS.index(kind)


@dataclass(frozen=True)
class Shape:
    """What a cluster was created as. Kept in cluster.json, so that a later `up` need not repeat it.

    `has_stores`: mgmtd and meta have created their stores. They are never created a second time.
    `metas`, `managers`: processes of meta and mgmtd; more than one of each only if metadata are replicated.
    `racks`: over how many racks storage nodes are spread, as far as placement knows; 0: none are named.
    `etcd_peers`: addresses of the members of a private etcd for each other; of none, empty.
    """

    cluster: Cluster
    storage_nodes: int
    replicas: int
    has_stores: bool = False
    metas: int = 1
    managers: int = 1
    etcd_peers: tuple[str, ...] = ()
    racks: int = 0
    host: Host | None = None  # this machine, of a cluster of several


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
    def tls(self) -> Path:
        return self.root / "tls"

    @property
    def tokens(self) -> Path:
        return self.root / "tokens"

    @property
    def audit(self) -> Path:
        return self.root / "audit"

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
        """Make the directories, closed to other users. Raises: InvalidArgument if they may not be made here."""
        if self.root.exists() and not self.root.is_dir():
            raise InvalidArgument("not a directory", path=str(self.root))
        self.root.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = self.root.stat().st_uid
        if owner != os.geteuid():
            raise InvalidArgument(
                f"the data directory belongs to uid {owner}, who could replace what is in it: run this as that user",
                path=str(self.root),
            )
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

        Raises: NotFound with advice when there is no cluster here; InvalidArgument when the file is damaged;
        PermissionDenied if it is another user's.
        """
        try:
            record = json.loads(read_private(self.cluster))
            nodes, replicas = int(record["storage_nodes"]), int(record["replicas"])
            has_stores = bool(record["has_stores"])
            cluster = parse_cluster(self.cluster, record)
            counts = (int(record.get("metas", 1)), int(record.get("managers", 1)))
            peers = tuple(map(str, record.get("etcd_peers", ())))
            racks = int(record.get("racks", 0))
            said = record.get("host")
            host = said and Host(
                address=str(said["address"]),
                managers=tuple(map(int, said["managers"])),
                metas=tuple(map(int, said["metas"])),
                storage=tuple(map(int, said["storage"])),
                labels=tuple((str(level), str(name)) for level, name in said["labels"]),
                insecure=bool(said["insecure"]),
                first_storage=int(said["first_storage"]),
                base_port=int(said.get("base_port", 0)),
            )
        except FileNotFoundError as error:
            raise NotFound(
                "no cluster in this directory; `luciola up --data DIR` creates one", path=str(self.root)
            ) from error
        except (ConfigError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgument(
                f"damaged ({error!r}); restore it or delete it and run `luciola up` with the same options",
                path=str(self.cluster),
            ) from error
        return Shape(cluster, nodes, replicas, has_stores, *counts, peers, racks, host)

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
            except NotADirectoryError:  # a file beside it: of the settings that a node has adopted
                continue
            except (ValueError, KeyError, TypeError) as error:
                raise InvalidArgument(f"damaged ({error!r})", path=str(path)) from error
        return found if any(found) else []

    def write_shape(self, shape: Shape) -> None:
        """Write cluster.json: what every process reads (`wire.Cluster`), and what only `up` needs."""
        write_private(self.cluster, encode_shape(shape))

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


def encode_shape(shape: Shape) -> str:
    """Return the content of cluster.json."""
    cluster = encode_cluster(shape.cluster)
    if shape.host is not None:
        cluster["host"] = asdict(shape.host)
    record = cluster | {
        "storage_nodes": shape.storage_nodes,
        "replicas": shape.replicas,
        "has_stores": shape.has_stores,
        "metas": shape.metas,
        "managers": shape.managers,
        "etcd_peers": list(shape.etcd_peers),
        "racks": shape.racks,
    }
    return json.dumps(record, indent=1) + "\n"


def _has_open(pid: int, path: Path) -> bool:
    """Return whether that process has that file open."""
    wanted = path.stat()
    with contextlib.suppress(OSError), os.scandir(f"/proc/{pid}/fd") as descriptors:  # it may just end
        for descriptor in descriptors:
            with contextlib.suppress(FileNotFoundError):
                if os.path.samestat(descriptor.stat(), wanted):
                    return True
    return False


def choose_shape(
    data: DataDir,
    *,
    storage_nodes: int | None,
    replicas: int | None,
    racks: int | None = None,
    metadata: MetadataWanted = MetadataWanted(),  # noqa: B008 - it is frozen
) -> Shape:
    """Return the shape to start with: the recorded one, or a new one. Ports that are taken are replaced.

    Raises: InvalidArgument when the options contradict what the cluster was created as.
    """
    check_shape(data, storage_nodes=storage_nodes, replicas=replicas, metadata=metadata)
    if data.cluster.exists():
        old = data.read_shape()
        shape = with_free_ports(_with_access(old, metadata))
    else:
        old = None
        records = data.storage_records()
        nodes, copies = _new_counts(records, storage_nodes=storage_nodes, replicas=replicas)
        identity = next(filter(None, records), None) or secrets.token_hex(8)
        # Storage nodes that belong to a cluster outlive a lost cluster.json, and so must its other stores.
        cluster = Cluster(identity, "", "", str(data.secret.absolute()))
        shape = _with_metadata(data.root, Shape(cluster, nodes, copies, bool(records)), metadata)
    shape = replace(
        shape,
        racks=shape.racks if racks is None else racks,
        storage_nodes=max(shape.storage_nodes, storage_nodes or 0),
    )
    if shape != old:
        data.write_shape(shape)
    return shape


def check_shape(
    data: DataDir,
    *,
    storage_nodes: int | None,
    replicas: int | None,
    metadata: MetadataWanted = MetadataWanted(),  # noqa: B008
) -> None:
    """Refuse what `choose_shape` would refuse, before anything is written. Raises: InvalidArgument."""
    if data.cluster.exists():
        shape = data.read_shape()
        if shape.host is not None:
            raise InvalidArgument(
                f"this is one machine of a cluster of several: luciola serve --data {shlex.quote(str(data.root))}"
            )
        _check_recorded(shape, storage_nodes=storage_nodes, replicas=replicas)
        _check_metadata(shape, metadata)
    else:
        _new_counts(data.storage_records(), storage_nodes=storage_nodes, replicas=replicas)
        if not metadata.where and (metadata.metas or 1, metadata.managers or 1) != (1, 1):
            raise InvalidArgument(
                "several processes of meta or mgmtd need replicated metadata: give --metadata etcd or "
                "--metadata etcd://HOST:PORT,…, too"
            )
        if any(data.root.glob("etcd-*")):
            raise InvalidArgument(
                "a private etcd is here, but not what says where it listens: put cluster.json back",
                path=str(data.root),
            )


def _with_metadata(root: Path, shape: Shape, wanted: MetadataWanted) -> Shape:
    """Return a new cluster's shape with addresses, and with replicated metadata if they are wanted."""
    processes = PROCESSES if wanted.where else 1
    metas, managers = wanted.metas or processes, wanted.managers or processes
    members = private_etcd.MEMBERS if wanted.is_private else 0
    addresses = [f"127.0.0.1:{port}" for port in free_ports(2 * managers + 2 * members)]
    lanes, grpcs = addresses[:managers], addresses[managers : 2 * managers]
    clients, peers = addresses[2 * managers :][:members], addresses[2 * managers :][members:]
    cluster = replace(shape.cluster, mgmtd_lane=",".join(lanes), mgmtd_grpc=",".join(grpcs))
    if wanted.is_private:
        access = MetadataWanted(
            ca_file=str(private_etcd.certificate_file(root)),
            certificate_file=str(private_etcd.certificate_file(root)),
            key_file=str(private_etcd.key_file(root)),
        )
        cluster = replace(cluster, metadata=metadata_at(access, clients))
    elif wanted.where:
        cluster = replace(cluster, metadata=metadata_at(wanted, wanted.addresses))
    return replace(shape, cluster=cluster, metas=metas, managers=managers, etcd_peers=tuple(peers))


def migrated_shape(root: Path, shape: Shape, wanted: MetadataWanted) -> Shape:
    """Return the same cluster with its metadata where they are wanted; its first manager listens where it did."""
    lane, grpc = shape.cluster.mgmtd_lane.split(",")[0], shape.cluster.mgmtd_grpc.split(",")[0]
    plain = replace(shape, cluster=replace(shape.cluster, metadata=None))
    moved = _with_metadata(root, plain, wanted)
    cluster = replace(
        moved.cluster,
        mgmtd_lane=",".join((lane, *moved.cluster.mgmtd_lane.split(",")[1:])),
        mgmtd_grpc=",".join((grpc, *moved.cluster.mgmtd_grpc.split(",")[1:])),
    )
    return replace(moved, cluster=cluster)


def metadata_at(wanted: MetadataWanted, addresses: Sequence[str]) -> Metadata:
    """Return what the cluster file says of an etcd."""
    scheme = "https" if wanted.ca_file else "http"
    return Metadata(
        tuple(f"{scheme}://{address}" for address in addresses),
        ca_file=wanted.ca_file,
        certificate_file=wanted.certificate_file,
        key_file=wanted.key_file,
        user=wanted.user,
        password_file=wanted.password_file,
    )


def _with_access(shape: Shape, wanted: MetadataWanted) -> Shape:
    """An etcd elsewhere may have moved, or got other passwords; its log says which cluster it is of."""
    if not wanted.addresses:
        return shape
    return replace(shape, cluster=replace(shape.cluster, metadata=metadata_at(wanted, wanted.addresses)))


def with_free_ports(shape: Shape) -> Shape:
    """Replace ports that are taken, except those by which members of etcd know each other: Busy if one of these is."""
    for number, address in enumerate(shape.etcd_peers, 1):
        if not is_free(address):
            raise Busy(
                f"another program listens on {address}, by which the other members of the private etcd know member "
                f"{number}: end it"
            )
    cluster = shape.cluster
    cluster = replace(
        cluster,
        mgmtd_lane=_free_addresses(cluster.mgmtd_lane),
        mgmtd_grpc=_free_addresses(cluster.mgmtd_grpc),
    )
    if shape.etcd_peers:
        assert cluster.metadata is not None, "a private etcd is for metadata"
        known = [endpoint.removeprefix("https://") for endpoint in cluster.metadata.endpoints]
        clients = _free_addresses(",".join(known))
        endpoints = tuple(f"https://{address}" for address in clients.split(","))
        cluster = replace(cluster, metadata=replace(cluster.metadata, endpoints=endpoints))
    return replace(shape, cluster=cluster)


def _free_addresses(addresses: str) -> str:
    """Return addresses, separated by commas, with other ports where theirs are taken."""
    known = addresses.split(",")
    taken = {address for address in known if not is_free(address)}
    ports = iter(free_ports(len(taken)))
    return ",".join(f"127.0.0.1:{next(ports)}" if address in taken else address for address in known)


def _check_metadata(shape: Shape, wanted: MetadataWanted) -> None:
    """Raises: InvalidArgument when the options contradict how the cluster keeps its metadata."""
    if wanted.where:
        now = _kind(is_replicated=shape.cluster.metadata is not None, is_private=bool(shape.etcd_peers))
        other = _kind(is_replicated=True, is_private=wanted.is_private)
        if now != other:
            raise InvalidArgument(
                f"this cluster has {now}, not {other}: `luciola metadata migrate` moves them while it is stopped"
            )
    for option, count, known in (
        ("--metas", wanted.metas, shape.metas),
        ("--managers", wanted.managers, shape.managers),
    ):
        if count not in (None, known):
            raise InvalidArgument(
                f"this cluster was created with {option} {known}, which cannot be changed here"
            )


def _kind(*, is_replicated: bool, is_private: bool) -> str:
    if not is_replicated:
        return "metadata in one store each"
    return "a private etcd" if is_private else "an etcd that runs elsewhere"


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
    if storage_nodes is not None and storage_nodes < shape.storage_nodes:
        raise InvalidArgument(
            f"this cluster has {shape.storage_nodes} storage nodes, which may become more, not fewer"
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
    if not data.is_supervised() and not any(map(_listens, parse_addresses(shape.cluster.mgmtd_grpc))):
        advice = f"luciola up --data {shlex.quote(str(root))}"
        raise Unavailable(f"the cluster in {str(root)!r} is not running; to start it: {advice}")
    return shape


def _listens(address: str) -> bool:
    try:
        with socket.create_connection(parse_address(address), timeout=CONNECT_S):
            return True
    except OSError:
        return False


__all__ = [
    "DataDir",
    "Host",
    "Shape",
    "check_shape",
    "choose_shape",
    "encode_shape",
    "free_ports",
    "is_free",
    "metadata_at",
    "migrated_shape",
    "running_shape",
    "with_free_ports",
]
