"""What a survey of RDMA means, and what to do about it. Pure.

Levels: `ok`; `note`, which costs speed or certainty; `problem`, without whose remedy a device, or all, cannot be used.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, Literal

from ..errors import InvalidArgument
from .rdma_survey import Device, Gid, Port, Survey, choose_gid

Level = Literal["ok", "note", "problem"]

# Buffers that a busy process registers: its pools are of this order.
MEMLOCK_WANTED: Final = 1 << 30
# Work requests of one connection: messages on their way, and enough transfers to keep a link busy.
WORK_REQUESTS_WANTED: Final = 128
MTU_WANTED: Final = 4096


@dataclass(frozen=True)
class Finding:
    """One thing that was found, and its remedy."""

    level: Level
    about: str
    what: str
    remedy: str = ""


@dataclass(frozen=True)
class Usable:
    """A port that can be used, by the address it is used with."""

    device: Device
    port: Port
    gid: Gid

    @property
    def name(self) -> str:
        """As `[client] rdma_devices` names it."""
        return f"{self.device.name}:{self.port.number}"


def judge(
    found: Survey, *, wanted: str = "", gid_index: int | None = None
) -> tuple[list[Finding], list[Usable]]:
    """Return all findings, and the ports that can be used. `wanted` is a device or DEVICE:PORT; empty: all."""
    findings = list(_machine(found))
    usable: list[Usable] = []
    for device in found.devices:
        findings += _device(device)
        for port in device.ports:
            name = f"{device.name}:{port.number}"
            if wanted not in ("", device.name, name):
                continue
            remarks, gid = _port(name, port, gid_index)
            findings += remarks
            if gid is not None:
                usable.append(Usable(device, port, gid))
    if found.kernel:
        findings += _memlock(found)
    if (
        found.devices
        and wanted
        and not any(each.about.startswith(wanted + ":") or each.about == wanted for each in findings)
    ):
        names = ", ".join(f"{device.name}:{port.number}" for device in found.devices for port in device.ports)
        findings.append(Finding("problem", wanted, "there is no such port", f"there are: {names}"))
    return findings, usable


def _machine(found: Survey) -> Iterator[Finding]:
    if not found.kernel:
        yield Finding(
            "problem",
            "kernel",
            "it knows no RDMA device, so Luciola uses TCP (and shared memory on one host)",
            "a NIC needs its driver (ConnectX: `modprobe mlx5_ib`), and a container the devices of its host; "
            "`modprobe rdma_rxe && rdma link add rxe0 type rxe netdev INTERFACE` makes one in software",
        )
    if found.library_problem:
        yield Finding(
            "problem",
            "libibverbs",
            found.library_problem,
            "`apt install libibverbs1 ibverbs-providers`; Luciola loads it when it is needed",
        )
    if found.pyverbs_problem:
        what, _, remedy = found.pyverbs_problem.partition("; ")
        yield Finding("problem", "pyverbs", f"{what}: this check needs it, moving data does not", remedy)
    if found.node_problem:
        yield Finding(
            "problem",
            "device nodes",
            found.node_problem,
            "`modprobe ib_uverbs`; rights come from rdma-core's udev rules (`apt install rdma-core`); "
            "a container needs `--device /dev/infiniband`",
        )
    if found.kernel and not (found.library_problem or found.pyverbs_problem):
        for name in sorted(set(found.kernel) - {device.name for device in found.devices}):
            yield Finding(
                "problem",
                name,
                "the kernel knows it, libibverbs has no driver for it",
                "`apt install ibverbs-providers` (in a container the version that fits the host's kernel)",
            )


def _device(device: Device) -> Iterator[Finding]:
    if device.problem:
        yield Finding(
            "problem", device.name, f"it cannot be opened: {device.problem}", "see the kernel's log (`dmesg`)"
        )
        return
    depth = device.limits["max_qp_wr"]
    if depth < WORK_REQUESTS_WANTED:
        yield Finding(
            "note",
            device.name,
            f"a queue pair holds {depth} work requests; {WORK_REQUESTS_WANTED} keep a link busy",
            "transfers will wait for each other; newer firmware may allow more",
        )
    if min(device.limits["max_qp_rd_atom"], device.limits["max_qp_init_rd_atom"]) < 1:
        yield Finding(
            "problem",
            device.name,
            "it does no RDMA READ, with which servers fetch what is written",
            "leave it out (`rdma_devices` in [client] and [storage])",
        )


def _port(name: str, port: Port, gid_index: int | None) -> tuple[list[Finding], Gid | None]:
    """Remarks about one port, and the address to use, if it can be used."""
    if port.problem:
        return [Finding("problem", name, f"it cannot be asked: {port.problem}", "see the kernel's log")], None
    if port.state != "active":
        return [Finding("problem", name, f"it is {port.state}", _wake(port))], None
    try:
        gid = choose_gid(port, gid_index)
    except InvalidArgument as error:
        remedy = (
            "leave out --gid-index (and `rdma_gid_index`), or take an index that `--json` lists"
            if gid_index is not None
            else "give its network interface an address: `ip addr add ADDRESS/BITS dev INTERFACE`"
        )
        return [Finding("problem", name, error.message, remedy)], None
    remarks = [
        Finding("ok", name, f"usable: {port.link}, GID {gid.index} ({gid.text}, {gid.kind}), MTU {port.mtu}")
    ]
    if port.link == "Ethernet" and gid.gid.startswith("fe80:"):
        remarks.append(
            Finding(
                "note",
                name,
                "only a link-local address: peers behind a router are out of reach",
                f"give {port.interface or 'its interface'} an IPv4 or global IPv6 address",
            )
        )
    if port.mtu < min(MTU_WANTED, port.mtu_max):
        remedy = (
            f"`ip link set {port.interface or 'INTERFACE'} mtu 4200` or more, on both ends and every switch between"
            if port.link == "Ethernet"
            else "raise the subnet manager's MTU"
        )
        remarks.append(
            Finding("note", name, f"packets carry {port.mtu} bytes, the device could {port.mtu_max}", remedy)
        )
    return remarks, gid


def _wake(port: Port) -> str:
    if port.link == "InfiniBand":
        return "look at the cable and the switch; a port that stays initializing waits for a subnet manager (opensm)"
    return f"`ip link set {port.interface or 'INTERFACE'} up`; look at the cable and the switch"


def _memlock(found: Survey) -> Iterator[Finding]:
    if found.memlock is None or found.may_lock_all:
        reason = "no limit" if found.memlock is None else "no limit for this process (CAP_IPC_LOCK)"
        yield Finding("ok", "memlock", reason)
        return
    level: Level = "note" if found.memlock >= MEMLOCK_WANTED // 16 else "problem"
    if found.memlock < MEMLOCK_WANTED:
        yield Finding(
            level,
            "memlock",
            f"{found.memlock >> 10} KiB may be locked; registered buffers count, {MEMLOCK_WANTED >> 20} MiB are wanted",
            "`LimitMEMLOCK=infinity` in the systemd unit, `* - memlock unlimited` in /etc/security/limits.conf "
            "and a new login, or `--ulimit memlock=-1` for a container",
        )
    else:
        yield Finding("ok", "memlock", f"{found.memlock >> 20} MiB may be locked")


__all__ = ["Finding", "Level", "Usable", "judge"]
