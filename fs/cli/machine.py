"""Whether this machine suits a cluster or a mount: what `luciola doctor` finds without asking any service."""

import contextlib
import os
import resource
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ..units import format_bytes
from .findings import Finding
from .health import SPACE_WARNING

DEVICE: Final = Path("/dev/fuse")
FUSE_CONF: Final = Path("/etc/fuse.conf")
FABRIC: Final = Path("/sys/class/infiniband")
DESCRIPTORS_MIN: Final = (
    65_536  # of a service with thousands of clients, each with some connections, and its store
)
MEMLOCK_MIN_BYTES: Final = 1 << 30  # regions that one client registers
SYNC_SLOW_S: Final = 0.1  # of 4 KiB: a hard disk takes 10 to 20 ms
SYNCS: Final = 5  # of which the median counts: the first may wait for others
BLOCK: Final = bytes(4096)


@dataclass(frozen=True)
class Check:
    """One thing that was looked at. `finding`: what is wrong with it, if anything is."""

    name: str
    what: str
    finding: Finding | None = None


@dataclass(frozen=True)
class Disk:
    """What a directory is on. `sync_s`: to store a block; None: it was not tried, or cannot be."""

    directory: Path
    is_read_only: bool
    size_bytes: int
    free_bytes: int
    sync_s: float | None


def check_machine() -> list[Check]:
    """Look at limits and FUSE."""
    soft, hard = resource.getrlimit(resource.RLIMIT_MEMLOCK)
    checks = [judge_descriptors(resource.getrlimit(resource.RLIMIT_NOFILE)[1])]
    if FABRIC.is_dir() and any(FABRIC.iterdir()):
        checks.append(judge_memlock(max(soft, hard) if resource.RLIM_INFINITY in (soft, hard) else soft))
    is_root = os.geteuid() == 0
    checks.append(judge_device(DEVICE))
    if not is_root:
        has_helper = shutil.which("fusermount3") is not None
        conf = FUSE_CONF.read_text() if FUSE_CONF.is_file() else ""
        checks += judge_unprivileged(has_helper=has_helper, conf=conf)
    return checks


def judge_descriptors(hard: int) -> Check:
    """Judge the hard limit of open files, which services take."""
    if hard == resource.RLIM_INFINITY or hard >= DESCRIPTORS_MIN:
        return Check("descriptors", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard}")
    what = f"at most {hard} open files, fewer than {DESCRIPTORS_MIN}"
    return Check("descriptors", what, Finding("DESCRIPTORS_FEW", what, "this machine"))


def judge_memlock(soft: int) -> Check:
    """Judge how much memory may be locked, on a machine with RDMA."""
    if soft == resource.RLIM_INFINITY or soft >= MEMLOCK_MIN_BYTES:
        return Check("locked memory", "no limit" if soft == resource.RLIM_INFINITY else format_bytes(soft))
    what = f"at most {format_bytes(soft)} may be locked"
    return Check("locked memory", what, Finding("MEMLOCK_LOW", what, "this machine"))


def judge_device(device: Path) -> Check:
    """Judge whether mounts can be served at all."""
    try:
        os.close(os.open(device, os.O_RDWR | os.O_CLOEXEC))
    except OSError as error:
        what = f"{device} cannot be opened: {error.strerror}"
        return Check("fuse", what, Finding("FUSE_MISSING", what, "this machine"))
    return Check("fuse", f"{device} can be opened")


def judge_unprivileged(*, has_helper: bool, conf: str) -> Iterator[Check]:
    """Judge whether a user other than root can mount, for others too."""
    if has_helper:
        yield Check("fusermount3", "found")
    else:
        what = "fusermount3 is not installed"
        yield Check("fusermount3", what, Finding("FUSERMOUNT_MISSING", what, "this machine"))
    if "user_allow_other" in (line.strip() for line in conf.splitlines()):
        yield Check("fuse.conf", "user_allow_other is set")
    else:
        what = "user_allow_other is not set"
        yield Check("fuse.conf", what, Finding("FUSE_ALLOW_OTHER", what, str(FUSE_CONF)))


def look_at(directory: Path) -> Disk:
    """Return what the directory is on. Writes blocks into a file without a name. Raises: OSError."""
    about = os.statvfs(directory)
    is_read_only = bool(about.f_flag & os.ST_RDONLY)
    return Disk(
        directory=directory,
        is_read_only=is_read_only,
        size_bytes=about.f_blocks * about.f_frsize,
        free_bytes=about.f_bavail * about.f_frsize,
        sync_s=None if is_read_only else _sync_s(directory),
    )


def _sync_s(directory: Path) -> float | None:
    """Return the median time of storing a block; None where files without a name cannot be, or nothing fits."""
    times = []
    with contextlib.suppress(OSError):
        descriptor = os.open(directory, os.O_TMPFILE | os.O_WRONLY | os.O_CLOEXEC, 0o600)
        try:
            for index in range(SYNCS):
                began_s = time.monotonic()
                os.pwrite(descriptor, BLOCK, index * len(BLOCK))
                os.fdatasync(descriptor)
                times.append(time.monotonic() - began_s)
        finally:
            os.close(descriptor)
    return sorted(times)[len(times) // 2] if times else None


def judge_disk(disk: Disk) -> Check:
    """Judge a disk by the worst that is wrong with it."""
    name, where = f"disk of {disk.directory}", str(disk.directory)
    used = 1 - disk.free_bytes / disk.size_bytes if disk.size_bytes else 1.0
    space = f"{format_bytes(disk.free_bytes)} of {format_bytes(disk.size_bytes)} free"
    sync = "" if disk.sync_s is None else f", a block is stored in {disk.sync_s * 1000:.1f} ms"
    what = f"{where}: {space}{sync}"
    if disk.is_read_only:
        what = f"{where}: mounted read-only"
        return Check(name, what, Finding("DISK_READ_ONLY", what, where))
    if disk.sync_s is not None and disk.sync_s > SYNC_SLOW_S:
        return Check(name, what, Finding("DISK_SLOW", what, where))
    if used > SPACE_WARNING:
        return Check(name, what, Finding("DISK_NEARLY_FULL", what, where))
    return Check(name, what)


__all__ = [
    "DESCRIPTORS_MIN",
    "SYNC_SLOW_S",
    "Check",
    "Disk",
    "check_machine",
    "judge_descriptors",
    "judge_device",
    "judge_disk",
    "judge_memlock",
    "judge_unprivileged",
    "look_at",
]
