"""What this machine has for RDMA: devices, ports, addresses and limits, as plain data.

Read with pyverbs, Debian's binding of the C library, which is independent of the code that moves Luciola's data: two
that agree are better evidence than one that repeats itself. What is found is judged elsewhere (`rdma_findings`).
"""

import ctypes
import errno
import importlib
import importlib.util
import ipaddress
import os
import resource
import socket
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Final, Protocol

from ..errors import InvalidArgument, Unsupported

SYSFS: Final = Path("/sys/class/infiniband")
NODES: Final = Path("/dev/infiniband")
# Where Debian installs python3-pyverbs; a virtual environment does not look there by itself.
DEBIAN: Final = Path("/usr/lib/python3/dist-packages/pyverbs")
# Bit of CAP_IPC_LOCK, whose holder may lock any amount of memory.
IPC_LOCK: Final = 1 << 14
LIMITS: Final = (
    "max_qp",
    "max_qp_wr",
    "max_sge",
    "max_cq",
    "max_cqe",
    "max_mr",
    "max_mr_size",
    "max_mw",
    "max_pd",
    "max_qp_rd_atom",
    "max_qp_init_rd_atom",
)
ROCE_V2: Final = "RoCE v2"
V4: Final = "0000:0000:0000:0000:0000:ffff:"
LINK_LOCAL: Final = "fe80:"


@dataclass(frozen=True)
class Gid:
    """One address of a port."""

    index: int
    gid: str
    kind: str
    interface: str

    @property
    def text(self) -> str:
        """The address as people write it: that of IPv4 with dots, that of IPv6 without its zeros."""
        if not self.gid.startswith(V4):
            return ipaddress.IPv6Address(self.gid).compressed
        return socket.inet_ntoa(bytes.fromhex(self.gid[-9:].replace(":", "")))


@dataclass(frozen=True)
class Port:
    """One port of a device."""

    number: int
    state: str
    link: str
    lid: int
    mtu: int
    mtu_max: int
    gids: tuple[Gid, ...] = ()
    # Why it could not be asked.
    problem: str = ""

    @property
    def interface(self) -> str:
        """Its network interface, where it has one."""
        return next((gid.interface for gid in self.gids if gid.interface), "")


@dataclass(frozen=True)
class Device:
    """One device."""

    name: str
    firmware: str
    limits: dict[str, int]
    ports: tuple[Port, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class Survey:
    """Everything that was found."""

    # Names that the kernel knows.
    kernel: tuple[str, ...] = ()
    # Why nothing below the C library can be reached; empty: it can.
    library_problem: str = ""
    pyverbs_problem: str = ""
    node_problem: str = ""
    devices: tuple[Device, ...] = ()
    # Bytes that this process may lock; None: any amount.
    memlock: int | None = None
    # Set where the capability makes that limit void.
    may_lock_all: bool = False
    verbs: "Verbs | None" = field(default=None, repr=False, compare=False)


@dataclass(frozen=True)
class Verbs:
    """The modules of pyverbs that are used."""

    addr: ModuleType
    cq: ModuleType
    device: ModuleType
    enums: ModuleType
    mr: ModuleType
    pd: ModuleType
    qp: ModuleType
    wr: ModuleType


class PortAttributes(Protocol):
    """What pyverbs says of a port."""

    state: int
    link_layer: int
    lid: int
    active_mtu: int
    max_mtu: int
    gid_tbl_len: int


class GidEntry(Protocol):
    """What pyverbs says of an address."""

    port_num: int
    gid_index: int
    gid_type: int

    def gid_str(self) -> str: ...


class Context(Protocol):
    """An open device of pyverbs, as far as it is asked here."""

    def query_port(self, number: int) -> PortAttributes: ...
    def query_gid_table(self, length: int) -> Sequence[GidEntry]: ...


def load_verbs() -> Verbs:
    """pyverbs, also Debian's from within a virtual environment. Raises: Unsupported, with what to install."""
    if importlib.util.find_spec("pyverbs") is None:
        if not (DEBIAN / "__init__.py").exists():
            raise Unsupported("pyverbs is not installed; `apt install python3-pyverbs`")
        spec = importlib.util.spec_from_file_location(
            "pyverbs", DEBIAN / "__init__.py", submodule_search_locations=[str(DEBIAN)]
        )
        assert spec is not None, "the file is there"
        assert spec.loader is not None, "a file has a loader"
        module = importlib.util.module_from_spec(spec)
        sys.modules["pyverbs"] = module
        spec.loader.exec_module(module)
    try:
        # The name of the constants' module changed with rdma-core 59.
        enums = "enums" if importlib.util.find_spec("pyverbs.enums") else "libibverbs_enums"
        names = ("addr", "cq", "device", enums, "mr", "pd", "qp", "wr")
        return Verbs(*(importlib.import_module(f"pyverbs.{name}") for name in names))
    except ImportError as error:
        version = ".".join(map(str, sys.version_info[:2]))
        raise Unsupported(
            f"pyverbs cannot be loaded by Python {version} ({error}); "
            "run luciola with the Python that Debian's python3-pyverbs was built for"
        ) from error


def survey() -> Survey:
    """Look at everything; what cannot be reached is named in the result."""
    kernel = tuple(sorted(os.listdir(SYSFS))) if SYSFS.is_dir() else ()
    soft = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    library = _library_problem()
    verbs: Verbs | None = None
    problem = ""
    try:
        verbs = load_verbs()
    except Unsupported as error:
        problem = error.message
    devices: tuple[Device, ...] = ()
    if verbs is not None and kernel and not library:
        devices = _devices(verbs)
    return Survey(
        kernel=kernel,
        library_problem=library,
        pyverbs_problem=problem,
        node_problem=_node_problem(kernel),
        devices=devices,
        memlock=None if soft == resource.RLIM_INFINITY else soft,
        may_lock_all=_may_lock_all(Path("/proc/self/status").read_text()),
        verbs=verbs,
    )


def choose_gid(port: Port, index: int | None = None) -> Gid:
    """Return the address that Luciola uses on a port: on Ethernet RoCE version 2, IPv4 first; or the one at `index`.

    Raises: InvalidArgument if there is none; the message follows on the port's name.
    """
    if index is not None:
        for gid in port.gids:
            if gid.index == index:
                if port.link == "Ethernet" and gid.kind != ROCE_V2:
                    raise InvalidArgument(f"the GID at index {index} is not of RoCE version 2")
                return gid
        raise InvalidArgument(f"its GID table has nothing at index {index}")
    fitting = [gid for gid in port.gids if port.link != "Ethernet" or gid.kind == ROCE_V2]
    if not fitting:
        raise InvalidArgument("it has no GID of RoCE version 2" if port.gids else "its GID table is empty")
    if port.link != "Ethernet":
        return fitting[0]
    return min(fitting, key=lambda gid: (rank(gid.gid), gid.index))


def rank(gid: str) -> int:
    """IPv4 before global IPv6 before link-local."""
    if gid.startswith(V4):
        return 0
    return 2 if gid.startswith(LINK_LOCAL) else 1


def _library_problem() -> str:
    try:
        ctypes.CDLL("libibverbs.so.1")
    except OSError as error:
        return str(error)
    return ""


def _node_problem(kernel: Sequence[str]) -> str:
    """Return why this process cannot open the devices' nodes."""
    if not kernel:
        return ""
    nodes = sorted(NODES.glob("uverbs*")) if NODES.is_dir() else []
    if not nodes:
        return f"there is no {NODES}/uverbs0"
    closed = [str(node) for node in nodes if not os.access(node, os.R_OK | os.W_OK)]
    return f"{', '.join(closed)}: {os.strerror(errno.EACCES)}" if closed else ""


def _may_lock_all(status: str) -> bool:
    """Return whether the process whose /proc/PID/status this is has CAP_IPC_LOCK."""
    for line in status.splitlines():
        name, _, value = line.partition(":")
        if name == "CapEff":
            return bool(int(value, 16) & IPC_LOCK)
    return False


def _devices(verbs: Verbs) -> tuple[Device, ...]:
    try:
        names = [each.name.decode() for each in verbs.device.get_device_list()]
    except verbs.device.PyverbsError:
        return ()
    return tuple(_device(verbs, name) for name in sorted(names))


def _device(verbs: Verbs, name: str) -> Device:
    try:
        with verbs.device.Context(name=name) as context:
            attributes = context.query_device()
            limits = {limit: int(getattr(attributes, limit)) for limit in LIMITS}
            numbers = range(1, attributes.phys_port_cnt + 1)
            ports = tuple(_port(verbs, context, name, number, count=len(numbers)) for number in numbers)
            return Device(name, attributes.fw_version, limits, ports)
    except (verbs.device.PyverbsError, OSError) as error:
        return Device(name, "", {}, problem=str(error))


def _port(verbs: Verbs, context: Context, name: str, number: int, *, count: int) -> Port:
    enums = verbs.enums
    try:
        attributes = context.query_port(number)
    except (verbs.device.PyverbsError, OSError) as error:
        return Port(number, "unknown", "unknown", 0, 0, 0, problem=str(error))
    states = {
        enums.IBV_PORT_DOWN: "down",
        enums.IBV_PORT_INIT: "initializing",
        enums.IBV_PORT_ARMED: "armed",
        enums.IBV_PORT_ACTIVE: "active",
        enums.IBV_PORT_ACTIVE_DEFER: "active, deferred",
    }
    is_ethernet = attributes.link_layer == enums.IBV_LINK_LAYER_ETHERNET
    return Port(
        number=number,
        state=states.get(attributes.state, "unknown"),
        link="Ethernet" if is_ethernet else "InfiniBand",
        lid=attributes.lid,
        mtu=128 << attributes.active_mtu,
        mtu_max=128 << attributes.max_mtu,
        gids=_gids(
            verbs, context, name, number, length=attributes.gid_tbl_len * count, is_ethernet=is_ethernet
        ),
    )


def _gids(
    verbs: Verbs, context: Context, name: str, port: int, *, length: int, is_ethernet: bool
) -> tuple[Gid, ...]:
    directory = SYSFS / name / "ports" / str(port) / "gid_attrs" / "ndevs"
    found = []
    # The table is the whole device's; what is not set is not in it.
    for entry in context.query_gid_table(length):
        if entry.port_num != port:
            continue
        kind = "InfiniBand"
        if is_ethernet:
            kind = ROCE_V2 if entry.gid_type == verbs.enums.IBV_GID_TYPE_ROCE_V2 else "RoCE v1"
        try:
            interface = (directory / str(entry.gid_index)).read_text().strip()
        except OSError:
            interface = ""
        found.append(Gid(entry.gid_index, entry.gid_str(), kind, interface))
    return tuple(sorted(found, key=lambda each: each.index))


__all__ = [
    "ROCE_V2",
    "Device",
    "Gid",
    "Port",
    "Survey",
    "Verbs",
    "choose_gid",
    "load_verbs",
    "rank",
    "survey",
]
