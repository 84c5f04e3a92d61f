"""Configuration: frozen dataclasses, read once from TOML, passed to constructors.

Every field has its unit in its name, a default, and the reason for it beside it. Unknown keys are refused.
A file holds only what differs from the defaults:

    [mgmtd]
    lease_ms = 5000
"""

import ipaddress
import re
import tomllib
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from math import ceil
from pathlib import Path
from typing import Final, TypedDict, TypeVar

from .errors import ConfigError
from .units import GIB, KIB, MIB

T = TypeVar("T")

UNIX: Final = "unix"  # of `metrics.listen`
OFF: Final = "off"
PORT_MAX: Final = 65_535


@dataclass(frozen=True)
class MgmtdConfig:
    """The cluster manager."""

    heartbeat_interval_ms: int = 1000  # one lost packet must not cost a node its lease
    lease_ms: int = 3000  # three heartbeats; also the longest pause an application sees after a failure
    lease_drift_percent: int = 5  # how much faster a node's boot clock may run than ours
    chain_check_interval_ms: int = 100  # how soon a change of state becomes a change of chain
    # After this long without a report the replicas of a node are made on others. Restarts take less. 0: never.
    down_out_s: int = 600
    bootstrap_ms: int = 4000  # after a start chains are frozen this long: every node can heartbeat once
    client_session_timeout_ms: int = 60_000  # silent clients lose their write sessions
    client_extend_interval_ms: int = 5000


@dataclass(frozen=True)
class MetaConfig:
    """The metadata service."""

    chunk_bytes: int = 1 * MIB  # one FUSE request, and enough chunks to spread over chains
    stripe: int = 8  # chains a file is spread over, bounded by the table
    inline_bytes: int = 4 * KIB  # smaller files cost no storage round trip
    gc_delay_ms: int = 60_000  # time for readers of a removed file to register their holds again
    gc_interval_ms: int = 500
    gc_batch: int = 512  # removed files, and contents, looked at per round
    sync_interval_ms: int = 50  # acknowledged operations are durable against power loss after this long
    # "write": a reply means that kill -9 loses nothing; "sync": nor does power loss, at one WAL sync per reply.
    durability: str = "write"
    list_limit: int = 1024  # entries in one page of a listing
    path_depth_max: int = 256
    cache_bytes: int = (
        64 * MIB
    )  # of the store kept in memory: names and inodes in use, and what finds the others
    idempotence_ms: int = 1_800_000  # silence of a client that is gone, after which its answers are deleted


@dataclass(frozen=True)
class MetadataConfig:
    """Stores that follow a log in etcd, those of mgmtd and meta: their checkpoints, and what the log keeps."""

    # A checkpoint is made when one of these is reached; the interval only if something has changed.
    checkpoint_records: int = 10_000  # a service that is busy makes so many in a minute
    checkpoint_bytes: int = (
        256 * MIB
    )  # of records: far less than etcd's quota (2 GiB), as each is made a bit later
    checkpoint_interval_s: int = 900
    checkpoints: int = 2  # that each service keeps: who fetches the last but one has time to finish
    # Services that must have a record in a checkpoint before the log forgets it. 1 for a service that has no standby.
    copies: int = 2
    # Records behind the checkpoints, for a service that was away for a short time: the smaller of the two.
    kept_records: int = 1024
    kept_bytes: int = 128 * MIB
    # How far back `luciola metadata restore` reaches. It takes disk space: records and checkpoints are archived beside
    # each store of meta, and chunks of removed files stay for so long. 0: not at all.
    history_s: int = 0


@dataclass(frozen=True)
class StorageConfig:
    """One storage node."""

    threads_max: int = 512  # connections served at once; each costs one thread
    reserve_bytes: int = 256 * MIB  # the disk is full for clients when less than this is free
    # "write": acknowledged means in every replica's page cache; "sync": on every replica's disk.
    durability: str = "write"
    resync_batch: int = 64  # chunks in flight to a returning replica
    resync_interval_ms: int = 200
    # A disk that does not complete a write of one block for so long counts as failed. This is the kernel's own limit
    # for a command, shorter than clients retry, and longer than such a write takes on a loaded disk.
    disk_timeout_ms: int = 30_000
    resync_bytes_per_s: int = 0  # that this node sends to returning replicas, all together; 0: no limit
    # How long a returning replica keeps the bytes of chunks that its chain never had.
    quarantine_s: int = 7 * 86_400
    scrub_interval_s: int = 86_400  # every chunk is read and verified once a day
    index_cache_bytes: int = 128 * MIB  # chunk index kept in memory
    # How other nodes are reached, and what clients are offered: auto | shm | tcp | rdma. "auto" offers RDMA where there
    # is a device, "rdma" does not start without one.
    transport: str = "auto"
    rdma_devices: str = ""  # "mlx5_0, mlx5_1:1": only these devices or ports; empty: all that are up
    rdma_gid_index: int = -1  # of every port; -1: RoCE version 2, IPv4 before IPv6
    # What protects the bytes that other machines read and write here over TCP: encrypt | mac | none. "mac" shows them
    # to who reads the network, and lets no one change them; "none" does neither, and RDMA needs it.
    wire: str = "encrypt"
    # Where the node stands: what fails together (docs/operations.md, "Failure domains"). Empty: not said; of the host,
    # its own name.
    room: str = ""
    rack: str = ""
    host: str = ""

    def __post_init__(self) -> None:
        for level in LABELS:
            name = getattr(self, level)
            if name and not is_label(name):
                raise ConfigError(f"storage.{level}: must be {LABEL_RULE}, not {name!r}")


@dataclass(frozen=True)
class ClientConfig:
    """What programs and mounts hold."""

    deadline_ms: int = 60_000  # a request is retried this long before its error reaches the caller
    retry_first_ms: int = 10
    retry_max_ms: int = 1000
    connections_per_node: int = 16
    write_buffer_bytes: int = 64 * MIB  # dirty bytes of all files together before writers wait
    read_ahead_bytes: int = 8 * MIB
    attribute_timeout_ms: int = 1000  # how stale names and attributes of other clients may be
    # auto | shm | tcp | rdma. "auto": shared memory on this host, else RDMA where both ends have it, else TCP.
    transport: str = "auto"
    rdma_devices: str = ""  # as for storage
    rdma_gid_index: int = -1
    # Transmissions that servers may make to this process at once, against many answering together; 0: they do not ask.
    rdma_transmissions: int = 0


class RdmaOptions(TypedDict):
    """Arguments of `luciola_core.Client` and `StorageNode`."""

    transport: str
    rdma_devices: list[str]
    rdma_gid_index: int | None


@dataclass(frozen=True)
class MountConfig:
    """The FUSE session."""

    threads: int = 16  # requests worked on at once; started as needed, more only while all of them hang
    request_bytes: int = 1 * MIB  # the kernel's largest
    read_ahead_bytes: int = 4 * MIB  # by the kernel: four requests in flight for a sequential reader
    consistency: str = "close-to-open"  # or "strict": no kernel page cache
    allow_other: bool = True
    grace_ms: int = 10_000  # after an unmount, how long programs that still use the mount may continue
    # never | auto | always: whether requests come over io_uring. "auto": where the kernel allows it; "always": a mount
    # without is an error. Not unasked, because large requests are slower: docs/decisions/0041-fuse-over-io-uring.md.
    fuse_io_uring: str = "never"


@dataclass(frozen=True)
class MetricsConfig:
    """Where each process shows its metrics to Prometheus."""

    # "unix": a Unix socket beside the process's data, for its own user and root; "HOST:PORT": HTTP for every program
    # that reaches the port, 0: a free one, which is written beside the data; "off": nowhere.
    listen: str = UNIX
    allow_remote: bool = (
        False  # whether HOST may be another than a loopback address: nothing is protected there
    )

    def __post_init__(self) -> None:
        if self.listen in (UNIX, OFF):
            return
        host, colon, port = self.listen.rpartition(":")
        try:
            address = ipaddress.ip_address(host.strip("[]"))
        except ValueError:
            address = None
        if address is None or not colon or not (port.isascii() and port.isdecimal()) or int(port) > PORT_MAX:
            raise ConfigError(
                f"metrics.listen: must be {UNIX}, {OFF}, or an IP address and a port, not {self.listen!r}"
            )
        if not address.is_loopback and not self.allow_remote:
            raise ConfigError(
                f"metrics.listen: {host} can be reached by other machines, and metrics are not protected: set "
                "metrics.allow_remote = true if that is meant"
            )


@dataclass(frozen=True)
class ClusterConfig:
    """All components; what `luciola up --config FILE` reads."""

    mgmtd: MgmtdConfig = field(default_factory=MgmtdConfig)
    meta: MetaConfig = field(default_factory=MetaConfig)
    metadata: MetadataConfig = field(default_factory=MetadataConfig)
    storage: StorageConfig = field(default_factory=StorageConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    mount: MountConfig = field(default_factory=MountConfig)
    metrics: MetricsConfig = field(default_factory=MetricsConfig)


LABELS: Final = ("room", "rack", "host")
LABEL_CHARS_MAX: Final = 64
LABEL_RULE: Final = f"1 to {LABEL_CHARS_MAX} letters, digits, dots, dashes or underscores"
TRANSPORTS: Final = ("auto", "shm", "tcp", "rdma")
FUSE_IO_URING: Final = ("never", "auto", "always")

CHOICES: dict[tuple[type, str], tuple[str, ...]] = {
    (MetaConfig, "durability"): ("write", "sync"),
    (StorageConfig, "durability"): ("write", "sync"),
    (StorageConfig, "transport"): TRANSPORTS,
    (StorageConfig, "wire"): ("encrypt", "mac", "none"),
    (ClientConfig, "transport"): TRANSPORTS,
    (MountConfig, "consistency"): ("close-to-open", "strict"),
    (MountConfig, "fuse_io_uring"): FUSE_IO_URING,
}

MINUTE_MS: Final = 60_000
DAY_MS: Final = 1440 * MINUTE_MS
DRIFT_PERCENT_MAX: Final = 50  # clocks that differ by more are broken
assert DRIFT_PERCENT_MAX < 100, "clocks run"

# Numbers outside these bounds are mistakes, not choices. Every number has its own.
BOUNDS: dict[tuple[type, str], tuple[int, int]] = {
    (MgmtdConfig, "heartbeat_interval_ms"): (1, 10 * MINUTE_MS),
    (MgmtdConfig, "lease_ms"): (2, 60 * MINUTE_MS),
    (MgmtdConfig, "lease_drift_percent"): (0, DRIFT_PERCENT_MAX),
    (MgmtdConfig, "chain_check_interval_ms"): (1, MINUTE_MS),
    (MgmtdConfig, "down_out_s"): (0, 30 * 86_400),
    (MgmtdConfig, "bootstrap_ms"): (0, 120 * MINUTE_MS),
    (MgmtdConfig, "client_session_timeout_ms"): (1000, DAY_MS),
    (MgmtdConfig, "client_extend_interval_ms"): (1, 60 * MINUTE_MS),
    (MetaConfig, "chunk_bytes"): (64 * KIB, 64 * MIB),
    (MetaConfig, "stripe"): (1, 1024),
    (MetaConfig, "inline_bytes"): (0, 64 * KIB),
    # Twice as long as an open file is read without asking for it: what it was before is there until then.
    (MetaConfig, "gc_delay_ms"): (20_000, 30 * DAY_MS),
    (MetaConfig, "gc_interval_ms"): (1, 60 * MINUTE_MS),
    (MetaConfig, "gc_batch"): (1, 65_536),
    (MetaConfig, "sync_interval_ms"): (1, MINUTE_MS),
    (MetaConfig, "list_limit"): (1, 8192),  # as a page may have at most
    (MetaConfig, "path_depth_max"): (1, 2048),  # parts of a path of PATH_MAX bytes
    (MetaConfig, "cache_bytes"): (4 * MIB, 1024 * GIB),
    (MetaConfig, "idempotence_ms"): (10 * MINUTE_MS, 30 * DAY_MS),  # not shorter than clients retry
    (MetadataConfig, "checkpoint_records"): (1, 100_000),
    (MetadataConfig, "checkpoint_bytes"): (1 * MIB, 4 * GIB),  # etcd is not made for more than 8 GiB
    (MetadataConfig, "checkpoint_interval_s"): (1, 365 * 86_400),
    (MetadataConfig, "checkpoints"): (1, 100),
    (MetadataConfig, "copies"): (1, 64),
    (MetadataConfig, "kept_records"): (0, 20_000),
    (MetadataConfig, "kept_bytes"): (0, 4 * GIB),
    (MetadataConfig, "history_s"): (0, 366 * 86_400),
    (StorageConfig, "reserve_bytes"): (0, 1024 * GIB),
    (StorageConfig, "threads_max"): (4, 65_536),
    (StorageConfig, "resync_batch"): (1, 4096),
    (StorageConfig, "resync_interval_ms"): (1, MINUTE_MS),
    (StorageConfig, "resync_bytes_per_s"): (0, 1024 * GIB),
    (StorageConfig, "quarantine_s"): (60, 3650 * 86_400),
    (StorageConfig, "disk_timeout_ms"): (1000, 60 * MINUTE_MS),
    (StorageConfig, "scrub_interval_s"): (1, 365 * 86_400),
    (StorageConfig, "index_cache_bytes"): (1 * MIB, 1024 * GIB),
    (StorageConfig, "rdma_gid_index"): (-1, 255),
    (ClientConfig, "deadline_ms"): (100, 10 * MINUTE_MS),
    (ClientConfig, "retry_first_ms"): (1, MINUTE_MS),
    (ClientConfig, "retry_max_ms"): (1, 10 * MINUTE_MS),
    (ClientConfig, "connections_per_node"): (1, 1024),
    (ClientConfig, "write_buffer_bytes"): (
        1 * MIB,
        2048 * MIB,
    ),  # one region of memory holds it, and what is read ahead
    (ClientConfig, "read_ahead_bytes"): (0, 512 * MIB),
    (ClientConfig, "attribute_timeout_ms"): (0, 60 * MINUTE_MS),
    (ClientConfig, "rdma_gid_index"): (-1, 255),
    (ClientConfig, "rdma_transmissions"): (0, 65_536),
    (MountConfig, "threads"): (1, 256),
    (MountConfig, "request_bytes"): (128 * KIB, 1 * MIB),
    (MountConfig, "read_ahead_bytes"): (0, 1024 * MIB),
    (MountConfig, "grace_ms"): (0, 3_600_000),
}


def is_label(text: str) -> bool:
    """Return whether `text` may name a room, a rack or a host."""
    return re.fullmatch(rf"[A-Za-z0-9._-]{{1,{LABEL_CHARS_MAX}}}", text) is not None


def longest_lease_ms(config: MgmtdConfig) -> float:
    """Return a lease as the slowest clock that is allowed measures it."""
    return config.lease_ms * 100 / (100 - config.lease_drift_percent)


def check_times(config: MgmtdConfig) -> None:
    """Raises: ConfigError for times that would break the lease rules."""
    if config.lease_drift_percent > DRIFT_PERCENT_MAX:
        raise ConfigError(f"mgmtd.lease_drift_percent: must be at most {DRIFT_PERCENT_MAX}")
    longest_ms = ceil(longest_lease_ms(config))
    if config.bootstrap_ms < longest_ms:
        raise ConfigError(
            f"mgmtd.bootstrap_ms: must be at least {longest_ms}, the longest lease that an earlier manager granted"
        )
    if config.lease_ms < 2 * config.heartbeat_interval_ms:
        raise ConfigError("mgmtd.lease_ms: must be at least two heartbeat intervals")
    if config.client_session_timeout_ms < 2 * config.client_extend_interval_ms:
        raise ConfigError("mgmtd.client_session_timeout_ms: must be at least two intervals of extension")
    for name in ("heartbeat_interval_ms", "chain_check_interval_ms", "client_extend_interval_ms"):
        if getattr(config, name) < 1:
            raise ConfigError(f"mgmtd.{name}: must be at least 1")


def rdma_options(config: StorageConfig | ClientConfig) -> RdmaOptions:
    """Return the RDMA options as the native module takes them."""
    index = config.rdma_gid_index
    return {
        "transport": config.transport,
        "rdma_devices": [name.strip() for name in config.rdma_devices.split(",") if name.strip()],
        "rdma_gid_index": None if index < 0 else index,
    }


def load(path: Path) -> ClusterConfig:
    """Return the configuration in the TOML file at `path`.

    Raises: ConfigError naming the file, and the key by its full path.
    """
    text = read_text(path)
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    return from_table(ClusterConfig, table, where="")


def read_text(path: Path) -> str:
    """Return the text of a configuration file, unread. Raises: ConfigError."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such configuration file") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: not valid TOML: {error}") from error
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from error


def loads(text: str) -> ClusterConfig:
    """Return the configuration in TOML `text`. Raises: ConfigError."""
    try:
        table = parse_toml(text)
    except ValueError as error:
        raise ConfigError(f"not valid TOML: {error}") from error
    return from_table(ClusterConfig, table, where="")


def parse_toml(text: str) -> dict[str, object]:
    """Raises: ValueError: TOMLDecodeError is one, and so is the refusal of a number of thousands of digits."""
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise ValueError("arrays or tables are too deep in one another") from error


def from_table(cls: type[T], table: Mapping[str, object], *, where: str) -> T:
    """Return an instance of dataclass `cls` from a TOML table; `where` is the table's path for messages."""
    assert is_dataclass(cls), "configuration is made of dataclasses"
    hints = typing.get_type_hints(cls)
    known = {entry.name for entry in fields(cls)}
    values: dict[str, object] = {}
    for key, value in table.items():
        path = f"{where}.{key}" if where else key
        if key not in known:
            raise ConfigError(f"{path}: unknown key (known here: {', '.join(sorted(known))})")
        values[key] = _convert(cls, key, hints[key], value, path)
    return cls(**values)


def checked(config: T, *, where: str) -> T:
    """`config`, if a file could have said the same. Raises: ConfigError, as for a file with a table `where`."""
    assert is_dataclass(config), "configuration is made of dataclasses"
    return from_table(type(config), vars(config), where=where)


def _convert(cls: type, key: str, hint: object, value: object, path: str) -> object:
    if isinstance(hint, type) and is_dataclass(hint):
        if not isinstance(value, dict):
            raise ConfigError(f"{path}: must be a table")
        return from_table(hint, value, where=path)
    optional = isinstance(hint, types.UnionType)
    kinds = typing.get_args(hint) if optional else (hint,)
    # bool is an int in Python; a flag where a number belongs is a mistake.
    if isinstance(value, bool) != (bool in kinds) or not isinstance(value, kinds):
        names = " or ".join(kind.__name__ for kind in kinds)
        raise ConfigError(f"{path}: must be {names}, not {value!r}")
    choices = CHOICES.get((cls, key))
    if choices is not None and value not in choices:
        raise ConfigError(f"{path}: must be one of {', '.join(choices)}, not {value!r}")
    if isinstance(value, int) and not isinstance(value, bool):
        low, high = BOUNDS[cls, key]
        if not low <= value <= high:
            raise ConfigError(f"{path}: must be between {low} and {high}, not {value}")
    if key in ("chunk_bytes", "request_bytes") and value & (value - 1):
        raise ConfigError(f"{path}: must be a power of two, not {value}")
    return value


__all__ = [
    "BOUNDS",
    "CHOICES",
    "FUSE_IO_URING",
    "LABELS",
    "LABEL_RULE",
    "OFF",
    "TRANSPORTS",
    "UNIX",
    "ClientConfig",
    "ClusterConfig",
    "MetaConfig",
    "MetadataConfig",
    "MetricsConfig",
    "MgmtdConfig",
    "MountConfig",
    "RdmaOptions",
    "StorageConfig",
    "check_times",
    "checked",
    "from_table",
    "is_label",
    "load",
    "loads",
    "longest_lease_ms",
    "rdma_options",
    "read_text",
]
