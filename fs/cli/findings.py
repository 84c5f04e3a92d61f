"""What may be wrong with a cluster: one stable code for each cause, how bad it is, and what helps."""

from collections.abc import Iterable
from dataclasses import dataclass
from enum import IntEnum
from typing import Final, TypedDict


class Severity(IntEnum):
    """How bad a finding is; the exit code of commands that look for them."""

    OK = 0
    WARNING = 1  # all data can be read and written; the next failure may change that
    ERROR = 2  # something cannot be read or written, or is lost


@dataclass(frozen=True)
class Code:
    """One cause. `remedy`: what helps in general; a finding may say it with names and numbers."""

    severity: Severity
    meaning: str
    remedy: str


def _warning(meaning: str, remedy: str) -> Code:
    return Code(Severity.WARNING, meaning, remedy)


def _error(meaning: str, remedy: str) -> Code:
    return Code(Severity.ERROR, meaning, remedy)


# Names are never changed, and never used again: alerts name them. The table is in docs/operations.md too.
CODES: Final = {
    "CLUSTER_STOPPED": _error("nothing runs", "luciola up --data DIR"),
    "SERVICE_DOWN": _error("a process of the cluster does not run", "its log says why: log/*.log"),
    "SERVICE_STARTING": _warning(
        "a process has not reported yet", "wait; if it lasts, see its log: log/*.log"
    ),
    "MOUNT_DOWN": _warning("the process of a mount is gone", "luciola umount MOUNTPOINT, and mount again"),
    "MGMTD_DOWN": _error("no mgmtd answers", "luciola up --data DIR; log/mgmtd.log"),
    "MGMTD_STARTING": _warning("mgmtd waits for nodes to report", "wait for some seconds"),
    "MGMTD_NO_STANDBY": _warning(
        "no other mgmtd would follow the one that manages",
        "start it; its log says why it ended: log/mgmtd-*.log",
    ),
    "META_DOWN": _error("no metadata service serves", "its log says why: log/meta*.log"),
    "META_NO_STANDBY": _warning(
        "no other metadata service would follow the one that serves",
        "start it; its log says why it ended: log/meta-*.log",
    ),
    "META_BEHIND": _warning(
        "a standby lacks many records of the log", "wait; if it grows, see the load of its machine and disk"
    ),
    "MGMTD_BEHIND": _warning(
        "a standby of mgmtd lacks many records of the log",
        "wait; if it grows, see the load of its machine and disk",
    ),
    "META_LOADING": _error("a dump is being loaded", "let `luciola load` end, or luciola load --discard"),
    "ETCD_MEMBER_DOWN": _warning("a member of etcd does not answer", "start it; log/etcd-*.log"),
    "ETCD_NO_QUORUM": _error(
        "too few members of etcd answer", 'docs/operations.md, "When etcd has lost its majority"'
    ),
    "ETCD_NO_LEADER": _error("etcd has no leader", "see the network between its members"),
    "ETCD_FULL": _error("etcd takes no writes", 'luciola metadata trim; docs/operations.md, "A full etcd"'),
    "ETCD_CORRUPT": _error("a member of etcd found its data damaged", "replace that member"),
    "NODE_DOWN": _warning("a storage node does not report", "its log says why: log/storage-N.log"),
    "NODE_OUT": _warning(
        "a node has been away for longer than down_out_s: its replicas are made on others",
        "start it, or luciola node forget N when it has no replicas",
    ),
    "HEALING_WAITS": _warning(
        "replicas of a node that is drained or away cannot be made on others", "luciola rebalance status"
    ),
    "NODE_DISABLED": _warning("an administrator has disabled a node", "luciola node enable N"),
    "REPLICA_OFFLINE": _warning(
        "a node that reports cannot use replicas of its own", "its log says why: log/storage-N.log"
    ),
    "CHAIN_UNAVAILABLE": _error("files cannot be read or written", "luciola chain list --incomplete"),
    "CHAIN_DEGRADED": _warning(
        "chunks have fewer copies than they should", "luciola chain list --incomplete"
    ),
    "CHAIN_SYNCING": _warning(
        "a replica is being brought up to date", "wait; luciola chain list --incomplete"
    ),
    "DOMAIN_SHARED": _warning(
        "copies of a chunk may be lost together",
        'start nodes in other rooms, racks or hosts; docs/operations.md, "Failure domains"',
    ),
    "DISK_FULL": _error("writes fail with ENOSPC", "remove files, or enlarge the disk"),
    "DISK_NEARLY_FULL": _warning("a disk is nearly full", "remove files, or add space"),
    "DISK_ERRORS": _warning(
        "reads or writes of a disk have failed", 'docs/operations.md, "A disk that fails"; the kernel log'
    ),
    "CHUNK_DAMAGED": _error(
        "no replica had a good copy of a damaged chunk",
        "luciola fsck --scrub names the file; luciola restore",
    ),
    "DISK_READ_ONLY": _error("a disk takes no writes", "see the kernel log, and mount it for writing again"),
    "DISK_SLOW": _warning(
        "a disk takes long to store a block",
        "see what else uses it (iostat -x); a failing disk is slow first",
    ),
    "ADDRESS_UNREACHABLE": _error(
        "an address of a service cannot be reached from here",
        "start the service, or open the port in the firewall",
    ),
    "ADDRESS_SLOW": _warning(
        "connecting to a service takes long", "see the network path: ping, mtr, ip -s link"
    ),
    "FUSE_MISSING": _warning(
        "this machine cannot mount", "modprobe fuse, and give this user access to /dev/fuse"
    ),
    "FUSERMOUNT_MISSING": _warning("this user cannot mount", "apt install fuse3, or mount as root"),
    "FUSE_ALLOW_OTHER": _warning(
        "mounts of this user cannot be used by other users", "add the line user_allow_other to /etc/fuse.conf"
    ),
    "DESCRIPTORS_FEW": _warning(
        "services may run out of file descriptors",
        "raise the hard limit: ulimit -Hn, or LimitNOFILE= of the unit",
    ),
    "MEMLOCK_LOW": _warning(
        "RDMA can register little memory", "raise the limit: ulimit -l unlimited; luciola rdma check"
    ),
    "CLOCK_SKEW": _warning(
        "clocks of machines differ: tokens expire early or late, times of files go back",
        "synchronize the clocks (chrony, systemd-timesyncd)",
    ),
    "RELEASES_DIFFER": _warning("services are of different releases", "restart those of the older release"),
}


class Found(TypedDict):
    """A finding, as commands print it."""

    code: str
    severity: str
    what: str
    where: str
    remedy: str


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. `where`: the node, chains, disk or process. `helps`: instead of what its code says."""

    code: str
    what: str
    where: str
    helps: str = ""

    @classmethod
    def of(cls, found: Found) -> "Finding":
        """Return what `as_found` was made of."""
        return cls(found["code"], found["what"], found["where"], found["remedy"])

    def __post_init__(self) -> None:
        assert self.code in CODES, f"{self.code} is in the table"

    @property
    def severity(self) -> Severity:
        return CODES[self.code].severity

    @property
    def remedy(self) -> str:
        return self.helps or CODES[self.code].remedy

    @property
    def line(self) -> str:
        """In one line, with its remedy."""
        return f"{self.what}; {self.remedy}"

    def as_found(self) -> Found:
        """As JSON has it."""
        return {
            "code": self.code,
            "severity": self.severity.name.lower(),
            "what": self.what,
            "where": self.where,
            "remedy": self.remedy,
        }


def worst(findings: Iterable[Finding]) -> Severity:
    """Return the highest severity among them."""
    return max((finding.severity for finding in findings), default=Severity.OK)


def in_order(findings: Iterable[Finding]) -> list[Finding]:
    """The worst first; those of one severity as they are in the table, then as they came."""
    places = {code: place for place, code in enumerate(CODES)}
    return sorted(findings, key=lambda finding: (-finding.severity, places[finding.code]))


__all__ = ["CODES", "Code", "Finding", "Found", "Severity", "in_order", "worst"]
