"""A private etcd of three members on this machine, for `luciola up --metadata etcd`.

    DATA/etcd/certificate.pem, key.pem   of every member and of every client
    DATA/etcd-1 … DATA/etcd-3            what each member keeps

Metadata are protected as well as in the data directory: members listen on loopback only, and refuse connections, of
clients and of each other, without the certificate and its key. All three are on one machine, and survive the
loss of a process; what shall survive the loss of a machine needs an etcd on three (`--metadata etcd://…`).

A member without its data is not started: under the same name it would vote again on what it has forgotten.
"""

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from ..errors import InvalidArgument, NotFound, Unavailable
from .processes import Service

MEMBERS: Final = 3  # the fewest that survive the loss of one
MAJORITY: Final = MEMBERS // 2 + 1
HOST: Final = "127.0.0.1"
# The most that etcd's authors suggest; its own default is 2 GiB. A full etcd takes no write at all.
QUOTA_BYTES: Final = 8 << 30
# Of revisions: each append leaves one of the key `last`. The leader of a log compacts now and then; this is for bursts.
RETAINED_REVISIONS: Final = 10_000
# Entries of etcd's own log between two of its snapshots. It holds them in memory, and one may be a record of 1 MiB:
# the 100,000 of etcd 3.4 would not fit.
SNAPSHOT_ENTRIES: Final = 2_000
CERTIFICATE_DAYS: Final = 36_500  # it is trusted by its own cluster only, as long as that lives
OPENSSL_S: Final = 60.0
# For a member to stop before it is killed, which costs nothing: its data are synced. The leader of three that stop
# together would try for 8 s to hand over to the others.
STOP_S: Final = 1.0


def require_programs() -> None:
    """Raises: NotFound, with the package, if etcd or what makes its certificate is not installed."""
    for program, package in (("etcd", "etcd-server"), ("openssl", "openssl")):
        if shutil.which(program) is None:
            raise NotFound(
                f"{program} is not installed, which `--metadata etcd` needs: install the package {package} (Debian, "
                "Ubuntu), or name an etcd that runs elsewhere with `--metadata etcd://HOST:PORT,…`"
            )


def certificate_file(root: Path) -> Path:
    """Where the certificate of the private etcd in data directory `root` is."""
    return root / "etcd" / "certificate.pem"


def key_file(root: Path) -> Path:
    """Where its key is; 0600."""
    return root / "etcd" / "key.pem"


def member_directory(root: Path, member: int) -> Path:
    """Where member `member` (from 1) keeps its data."""
    return root / f"etcd-{member}"


def certify(root: Path) -> None:
    """Make the certificate and its key if they are not there."""
    certificate, key = certificate_file(root), key_file(root)
    if certificate.exists() and key.exists():
        return
    certificate.parent.mkdir(mode=0o700, exist_ok=True)
    made = certificate.with_suffix(".new")
    result = subprocess.run(
        [
            *("openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"),
            *("-nodes", "-days", str(CERTIFICATE_DAYS), "-subj", "/CN=luciola"),
            *("-addext", f"subjectAltName=IP:{HOST}", "-keyout", str(key), "-out", str(made)),
        ],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=OPENSSL_S,
        check=False,
        umask=0o077,
    )
    if result.returncode != 0:
        raise Unavailable(f"openssl made no certificate for etcd: {result.stderr.strip()[-300:]}")
    made.replace(certificate)  # the pair is complete when the certificate is there


def present_members(root: Path) -> list[int]:
    """Return the members whose data are there. Raises: InvalidArgument if they are no majority."""
    members = range(1, MEMBERS + 1)
    present = [member for member in members if (member_directory(root, member) / "member").is_dir()]
    if len(present) < MAJORITY:
        gone = ", ".join(f"etcd-{member}" for member in members if member not in present)
        raise InvalidArgument(
            f"the data of most members of the private etcd are missing ({gone}): put them back",
            path=str(root),
        )
    return present


def describe_lost(root: Path, member: int) -> str:
    """Return what an administrator has to know of a member without data."""
    return (
        f"the data of member {member} of the private etcd are gone ({member_directory(root, member)}): the other two "
        "run, and without one of them nothing will; docs/operations.md says how to replace it"
    )


def service(
    root: Path, member: int, *, cluster_id: str, clients: Sequence[str], peers: Sequence[str]
) -> Service:
    """Return what to run as member `member`. `clients`, `peers`: addresses of all members."""
    client, peer = f"https://{clients[member - 1]}", f"https://{peers[member - 1]}"
    certificate, key = str(certificate_file(root)), str(key_file(root))
    cluster = ",".join(f"etcd-{number}=https://{address}" for number, address in enumerate(peers, 1))
    command = [
        *_clean_environment(),
        *("etcd", "--name", f"etcd-{member}", "--data-dir", str(member_directory(root, member))),
        *("--listen-client-urls", client, "--advertise-client-urls", client),
        *("--listen-peer-urls", peer, "--initial-advertise-peer-urls", peer),
        *("--initial-cluster", cluster, "--initial-cluster-token", f"luciola-{cluster_id}"),
        *("--cert-file", certificate, "--key-file", key),
        *("--client-cert-auth", "--trusted-ca-file", certificate),
        *("--peer-cert-file", certificate, "--peer-key-file", key),
        *("--peer-client-cert-auth", "--peer-trusted-ca-file", certificate),
        *("--quota-backend-bytes", str(QUOTA_BYTES)),
        *("--auto-compaction-mode", "revision", "--auto-compaction-retention", str(RETAINED_REVISIONS)),
        *("--snapshot-count", str(SNAPSHOT_ENTRIES)),
        # 3.4 has another logger, which knows no levels. Warnings are of each request that takes 100 ms: too many.
        *("--logger", "zap", "--log-outputs", "stderr", "--log-level", "error"),
    ]
    return Service("etcd", str(member), 0, tuple(command), root / "log" / f"etcd-{member}.log")


def _clean_environment() -> tuple[str, ...]:
    """etcd refuses to run with options in its environment that are given as arguments, too."""
    kept = "ETCD_UNSUPPORTED_ARCH"  # without it etcd does not run on some processors
    names = [name for name in os.environ if name.startswith("ETCD_") and name != kept]
    return ("env", *(f"--unset={name}" for name in names)) if names else ()


__all__ = [
    "HOST",
    "MAJORITY",
    "MEMBERS",
    "STOP_S",
    "certificate_file",
    "certify",
    "describe_lost",
    "key_file",
    "member_directory",
    "present_members",
    "require_programs",
    "service",
]
