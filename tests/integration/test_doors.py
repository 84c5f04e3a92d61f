"""No access without the secret: every address of a running cluster, tried as another user of the same machine.

Doors are not listed by hand: they are found by looking at what the cluster's processes hold open.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path

import pytest

from cluster import LocalCluster
from luciola.wire import format_address

NOBODY = 65534
INTRUDER = Path(__file__).parents[1] / "intruder.py"
SHARED_MEMORY = Path("/dev/shm")
OF_OTHERS = frozenset(SHARED_MEMORY.iterdir())  # what was there before any cluster of these tests

pytestmark = [pytest.mark.mount, pytest.mark.root, pytest.mark.slow]


@dataclass(frozen=True)
class Doors:
    """What the processes `pids` can be reached by."""

    pids: list[int]
    ports: list[str]
    sockets: list[str]
    abstract: list[str]


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    """A cluster in a directory whose parents everybody may enter: its own modes must protect it."""
    root = Path(tempfile.mkdtemp(prefix="luciola-doors-", dir="/tmp"))
    root.chmod(0o755)
    with LocalCluster(root, mount=True) as running:
        yield running
    shutil.rmtree(root)


@pytest.fixture(scope="module")
def doors(cluster: LocalCluster) -> Doors:
    state = json.loads((cluster.data / "run" / "state.json").read_text())
    pids = [state["pid"], *(service["pid"] for service in state["services"] if service["pid"])]
    pids += [child for pid in pids for child in children_of(pid) if child not in pids]
    inodes = {inode for pid in pids for inode in sockets_of(pid)}
    found = doors_of(inodes)
    return Doors(sorted(set(pids)), *found)


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found += [int(child) for child in (task / "children").read_text().split()]
    return found + [grandchild for child in found for grandchild in children_of(child)]


def sockets_of(pid: int) -> set[str]:
    inodes = set()
    for entry in os.scandir(f"/proc/{pid}/fd"):
        try:
            target = os.readlink(entry.path)
        except FileNotFoundError:
            continue
        if match := re.fullmatch(r"socket:\[(\d+)\]", target):
            inodes.add(match[1])
    return inodes


def doors_of(inodes: set[str]) -> tuple[list[str], list[str], list[str]]:
    """(ports, sockets with a path, abstract sockets) that listen."""
    ports, paths, abstract = [], set(), set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                address, port = fields[1].split(":")
                ports.append(format_address(host_of(address), int(port, 16)))
    for line in Path("/proc/net/unix").read_text().splitlines()[1:]:
        fields = line.split(maxsplit=7)
        if len(fields) == 8 and fields[6] in inodes:
            (abstract if fields[7].startswith("@") else paths).add(fields[7].lstrip("@"))
    return ports, sorted(paths), sorted(abstract)


def host_of(kernel: str) -> str:
    """The address that /proc/net writes as little-endian words; a mapped one as the IPv4 address that it is."""
    words = [bytes.fromhex(kernel[start : start + 8])[::-1] for start in range(0, len(kernel), 8)]
    address = ip_address(b"".join(words))
    return str(getattr(address, "ipv4_mapped", None) or address)


def intrude(cluster: LocalCluster, doors: Doors, *, uid: int, secret: str = "", paths: bool = True) -> dict:
    everything = [str(path) for path in [cluster.data, *cluster.data.rglob("*")]] if paths else []
    if paths:
        shared = set(SHARED_MEMORY.iterdir()) - OF_OTHERS
        everything += [str(path) for path in shared if path.stat().st_uid == 0]
    plan = {
        "uid": uid,
        "secret": secret,
        "ports": doors.ports,
        "sockets": doors.sockets if uid else with_handshake(doors.sockets),
        "abstract": doors.abstract,
        "paths": everything,
        "pids": doors.pids if paths else [],
    }
    result = subprocess.run(
        [sys.executable, str(INTRUDER)],
        input=json.dumps(plan),
        capture_output=True,
        text=True,
        timeout=250,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return json.loads(result.stdout)


def with_handshake(sockets: list[str]) -> list[str]:
    """Those where root needs the secret, too: the others show metrics to their owner and to root."""
    return [path for path in sockets if not path.endswith(".metrics.sock")]


def test_cluster_listens_on_loopback_only(doors):
    assert doors.ports
    assert all(port.startswith("127.") for port in doors.ports), doors.ports


def test_every_service_has_an_address(doors):
    # mgmtd: gRPC and lane; meta: gRPC and lane; three storage nodes: gRPC, data port and data socket.
    assert len(doors.ports) >= 2 + 2 + 3 * 2
    assert len([path for path in doors.sockets if path.endswith("data.sock")]) == 3
    assert len([path for path in doors.sockets if path.endswith(".metrics.sock")]) == 2 + 3 + 1


def test_other_user_opens_nothing_without_the_secret(cluster, doors):
    assert intrude(cluster, doors, uid=NOBODY) == {}


def test_root_without_the_secret_opens_no_port(cluster, doors):
    assert intrude(cluster, doors, uid=0, paths=False) == {}


def test_real_token_opens_every_address(cluster, doors):
    """The control: the attempts above fail for want of the secret, not for being wrong."""
    secret = (cluster.data / "secret").read_text().strip()
    opened = intrude(cluster, doors, uid=0, secret=secret, paths=False)
    wanted = [f"port {port}" for port in doors.ports]
    wanted += [f"socket {path}" for path in with_handshake(doors.sockets)]
    for door in wanted:
        assert any("real token" in attempt for attempt in opened.get(door, [])), f"{door}: {opened.get(door)}"


def test_no_command_line_or_environment_shows_the_secret(cluster, doors):
    secret = (cluster.data / "secret").read_text().strip().encode()
    for pid in doors.pids:
        for name in ("cmdline", "environ"):
            content = Path(f"/proc/{pid}/{name}").read_bytes()
            assert secret not in content, f"{name} of {pid}"
            assert b"Bearer" not in content


def test_no_file_of_the_cluster_is_open_to_others(cluster):
    for path in cluster.data.rglob("*"):
        if not path.is_symlink():
            mode = path.stat().st_mode
            inside_private = path.parent != cluster.data
            assert inside_private or not mode & 0o077, f"{path}: {mode:o}"
    assert not cluster.data.stat().st_mode & 0o077


def test_nothing_is_left_in_shared_memory_by_name(doors):
    for pid in doors.pids:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            try:
                target = os.readlink(entry.path)
            except FileNotFoundError:
                continue
            assert not target.startswith("/dev/shm/"), f"{pid} holds {target}"
