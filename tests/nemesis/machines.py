"""A cluster of machines on this one: each with a network, a disk, a kernel identity and a boot clock of its own.

A machine is a process that holds a network and a mount namespace. Its disk is ext4 in a file, its kernel's identity a
file that is bound over /proc/sys/kernel/random/boot_id, and what is started on it runs in a time namespace. So a loss
of power is one: processes are killed, the file system is shut down without its journal, and what comes back has
another kernel and another boot clock. Packets between machines are forwarded here, where rules of routing drop them.

The program that makes machines has to run in namespaces of its own (`in_namespaces`): all that it leaves ends with it.
"""

import asyncio
import contextlib
import fcntl
import os
import random
import signal
import struct
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from luciola.cli.datadir import DataDir, Shape
from luciola.errors import Error
from luciola.wire import SERVICE, Cluster, Metadata, RpcClient, create_secret, load_cluster, methods, mint
from luciola.wire.failover import Endpoints
from luciola.wire.pb import mgmtd_pb2
from store_content import Content, replicated_content

WAIT_S: Final = 120.0  # for what happens within seconds on a machine that is not busy
DISK_BYTES: Final = 1 << 30  # sparse; enough for journals whose blocks are taken in advance
TABLE: Final = 1
META_FIRST: Final = 100
STORAGE_FIRST: Final = 201
REPLICAS: Final = 2  # processes of mgmtd, and of meta, with replicated metadata
MEMBERS: Final = 3  # of etcd
STORE: Final = "data"  # of a service, on its machine's disk
ETCD_PORT: Final = 2379  # for clients; members have the next one for each other
RESTART_S: Final = 0.3  # after a service has ended by itself
REFUSED: Final = os.EX_CONFIG  # an operator has to act: never the answer to a fault here
TWIST: Final = "10.77"

SHUTDOWN: Final = 0x8004587D  # FS_IOC_SHUTDOWN (include/uapi/linux/fs.h), as in xfstests' godown
WITHOUT_LOG: Final = 2  # neither data nor journal is flushed
FREEZE, THAW = 0xC0045877, 0xC0045878  # FIFREEZE, FITHAW


def in_namespaces(command: list[str]) -> list[str]:
    """`command` where it may make machines: its processes, mounts and networks end with it."""
    return ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--", *command]


def run(*command: str) -> None:
    """Raises: CalledProcessError, with what the command said."""
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
    except subprocess.CalledProcessError as error:
        error.add_note(error.stderr)
        raise


def until(condition: Callable[[], object], what: str, *, timeout_s: float = WAIT_S) -> None:
    """Return when `condition` holds. Raises: TimeoutError."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"waited {timeout_s:.0f} s for {what}")
        time.sleep(0.05)


class Machine:
    """One machine: `start` runs programs on it, and everything else hurts it."""

    def __init__(self, name: str, number: int, root: Path, choose: random.Random) -> None:
        self.name, self.number = name, number
        self.address = f"{TWIST}.{number}.2"
        self.directory = root / name  # its disk, seen by this machine alone
        self._image, self._boot = root / f"{name}.img", root / f"{name}.boot"
        self._choose = choose
        self._offset_s = 0
        self.directory.mkdir()
        self._holder = subprocess.Popen(
            ["unshare", "--net", "--mount", "--propagation", "slave", "sleep", "infinity"]
        )
        mine = os.readlink("/proc/self/ns/net")
        until(lambda: os.readlink(f"/proc/{self._holder.pid}/ns/net") != mine, f"machine {name}")
        self._connect()
        with self._image.open("wb") as image:
            image.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", str(self._image))
        self.boot()
        self.inside("mount", "--bind", str(self._boot), "/proc/sys/kernel/random/boot_id")
        self.mount_disk()

    def _connect(self) -> None:
        outside, gateway = f"port{self.number}", f"{TWIST}.{self.number}.1"
        holder = str(self._holder.pid)
        run("ip", "link", "add", outside, "type", "veth", "peer", "name", "eth0", "netns", holder)
        run("ip", "address", "add", f"{gateway}/24", "dev", outside)
        run("ip", "link", "set", outside, "up")
        self.inside("ip", "address", "add", f"{self.address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            self.inside("ip", "link", "set", device, "up")
        self.inside("ip", "route", "add", "default", "via", gateway)

    def _command(self, *command: str) -> list[str]:
        return ["nsenter", "-t", str(self._holder.pid), "-n", "-m", "--", *command]

    def inside(self, *command: str) -> None:
        """Run a command to its end, in this machine's network and file systems."""
        run(*self._command(*command))

    def boot(self) -> None:
        """Another kernel, whose boot clock has another time."""
        self._boot.write_text(str(uuid.UUID(int=self._choose.getrandbits(128), version=4)) + "\n")
        up_s = int(time.clock_gettime(time.CLOCK_BOOTTIME))
        self._offset_s = self._choose.choice(
            (self._choose.randrange(60 - up_s, 0), self._choose.randrange(10**7))
        )

    def start(self, command: list[str], log: Path, *, own_clock: bool = True) -> subprocess.Popen[bytes]:
        """A program on this machine; its process is the one that is returned."""
        offset = str(self._offset_s)
        clock = (
            ["unshare", "--time", f"--boottime={offset}", f"--monotonic={offset}", "--"] if own_clock else []
        )
        with log.open("ab") as output:
            return subprocess.Popen(
                self._command(*clock, *command), stdin=subprocess.DEVNULL, stdout=output, stderr=output
            )

    # The disk.

    @property
    def disk(self) -> Path:
        """The machine's disk as this process can name it."""
        return Path(f"/proc/{self._holder.pid}/root{self.directory}")

    def mount_disk(self) -> None:
        self.inside("mount", "-o", "loop", str(self._image), str(self.directory))
        self.disk.chmod(0o700)

    def lose_power_of_disk(self) -> None:
        """Forget what was not flushed. No process has the disk open."""
        self._control(SHUTDOWN, struct.pack("I", WITHOUT_LOG))
        until(lambda: self.does("umount", str(self.directory)), f"the disk of {self.name} to be unmounted")

    def freeze_disk(self) -> None:
        """Block all changes of the disk until `thaw_disk`."""
        self._control(FREEZE, bytes(4))

    def thaw_disk(self) -> None:
        self._control(THAW, bytes(4))

    def fill_disk(self) -> Path:
        """Leave nothing free. Returns the file to be removed."""
        filler = self.disk / "filler"
        with filler.open("wb") as file, contextlib.suppress(OSError):
            for size in (1 << 20, 1 << 12):
                while True:
                    try:
                        os.posix_fallocate(file.fileno(), os.fstat(file.fileno()).st_size, size)
                    except OSError:
                        break
        return filler

    def _control(self, number: int, argument: bytes) -> None:
        directory = os.open(self.disk, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.ioctl(directory, number, argument)
        finally:
            os.close(directory)

    def does(self, *command: str) -> bool:
        """Whether a command that is run on it succeeds."""
        return subprocess.run(self._command(*command), capture_output=True, check=False).returncode == 0


def drop(source: Machine, target: Machine) -> None:
    """From now on no packet from `source` reaches `target`."""
    run("ip", "rule", "add", "from", source.address, "to", target.address, "blackhole")


def heal(source: Machine, target: Machine) -> None:
    """Take `drop` back."""
    run("ip", "rule", "del", "from", source.address, "to", target.address, "blackhole")


@dataclass
class Service:
    """A program that has to run, and is started again whenever it ends."""

    name: str
    machine: Machine
    command: list[str]
    log: Path
    node: int = 0  # its number in the cluster; 0 for what is no node
    is_program: bool = False  # of a user: has the clock of all histories, and never ends by itself
    process: subprocess.Popen[bytes] | None = None
    wanted: bool = False
    restarts: int = 0
    ended_at_s: float = 0.0
    lock: threading.RLock = field(default_factory=threading.RLock)

    def start(self) -> None:
        """Start it, if it does not run."""
        with self.lock:
            self.wanted = True
            if self.process is not None and self.process.poll() is None:
                return
            self.process = self.machine.start(self.command, self.log, own_clock=not self.is_program)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """End it and do not start it again until `start`."""
        with self.lock:
            self.kill_soon(number)
            assert self.process is not None, "it was started"
            self.process.wait(WAIT_S)

    def kill_soon(self, number: int = signal.SIGKILL) -> None:
        """As `kill`, without waiting for its end."""
        with self.lock:
            self.wanted = False
            assert self.process is not None, "it was started"
            self.process.send_signal(number)

    def signal(self, number: int) -> None:
        with self.lock:
            assert self.process is not None, "it was started"
            self.process.send_signal(number)

    def look_after(self) -> None:
        """Start it again if it has ended by itself. Raises: RuntimeError if it refuses to.

        A service that a fault has in hand is passed over: its clean end may have to wait for one that is started here.
        """
        if not self.lock.acquire(blocking=False):
            return
        try:
            if not self.wanted or self.process is None or self.process.poll() is None:
                return
            if self.is_program or self.process.returncode == REFUSED:
                raise RuntimeError(f"{self.name} has ended for good: {last_lines(self.log)}")
            now_s = time.monotonic()
            self.ended_at_s = self.ended_at_s or now_s
            if now_s - self.ended_at_s >= RESTART_S:
                self.ended_at_s = 0.0
                self.restarts += 1
                self.start()
        finally:
            self.lock.release()


def last_lines(log: Path, count: int = 3) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-count:])


class Machines:
    """mgmtd, meta and storage nodes on machines of their own, and mounts. A context manager.

    With replicated metadata there are several of mgmtd and meta, and members of etcd, each on a machine.
    """

    def __init__(
        self,
        root: Path,
        choose: random.Random,
        *,
        nodes: int,
        replicas: int,
        config: str,
        is_replicated: bool = False,
    ) -> None:
        self.root, self.replicas, self.is_replicated = root, replicas, is_replicated
        self.services: dict[str, Service] = {}
        self.failure: BaseException | None = None
        self._ended = threading.Event()
        self._keeper = threading.Thread(target=self._keep, name="keeper")
        run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1")
        run("ip", "link", "set", "lo", "up")
        self.managers = self._names("mgmtd", 1)
        self.metas = self._names("meta", META_FIRST)
        self.members = [f"etcd-{number}" for number in range(1, MEMBERS + 1)] if is_replicated else []
        self.nodes = [f"storage-{STORAGE_FIRST + index}" for index in range(nodes)]
        names = [*self.members, *self.managers, *self.metas, *self.nodes, "client"]
        self.machines = {name: Machine(name, number, root, choose) for number, name in enumerate(names, 1)}
        self.data = DataDir(root / "cluster")
        self.data.create()
        create_secret(self.data.secret)
        self.data.write_shape(Shape(self._describe(), nodes, replicas))
        self.config = root / "config.toml"
        self.config.write_text(config)
        self.cluster = load_cluster(self.data.cluster)
        self._token = mint(self.cluster.secret(), role=SERVICE)
        self._endpoints = Endpoints(self.cluster.mgmtd_grpc)

    def _names(self, kind: str, first: int) -> list[str]:
        """Of the machines of mgmtd or meta, with the numbers of their nodes if there are several."""
        return [f"{kind}-{first + index}" for index in range(REPLICAS)] if self.is_replicated else [kind]

    def _describe(self) -> Cluster:
        """What the cluster file says."""

        def addresses(names: list[str], port: int) -> list[str]:
            return [f"{self.machines[name].address}:{port}" for name in names]

        endpoints = tuple(f"http://{each}" for each in addresses(self.members, ETCD_PORT))
        return Cluster(
            "nemesis",
            ",".join(addresses(self.managers, 7001)),
            ",".join(addresses(self.managers, 7002)),
            str(self.data.secret),
            Metadata(endpoints) if endpoints else None,
        )

    def __enter__(self) -> Self:
        self._start_members()
        for number, name in enumerate(self.managers, 1):
            self._start(name, "luciola.mgmtd", "--create", "--node-id", str(number))
        until(lambda: self.routing() is not None, "mgmtd")
        for name in self.nodes:
            self._start_node(name, "luciola.storage", int(name.rpartition("-")[2]))
        for number, name in enumerate(self.metas, META_FIRST):
            self._start_node(name, "luciola.meta", number, "--create")
        nodes = {service.node for service in self.services.values() if service.node}
        until(lambda: self.connected() >= nodes, "all nodes")
        request = mgmtd_pb2.CreateChainTableRequest(
            table=TABLE, replicas=self.replicas, description="nemesis"
        )
        self.call(methods.Mgmtd.create_chain_table, request)
        until(self.is_healthy, "a healthy cluster")
        for service in self.services.values():
            service.command = [each for each in service.command if each != "--create"]
        self._keeper.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._ended.set()
        if self._keeper.ident is not None:
            self._keeper.join()

    def _start_members(self) -> None:
        """Start etcd, which refuses options that are in its environment too."""
        for name in self.members:
            command = ["env", *(f"--unset={each}" for each in os.environ if each.startswith("ETCD_")), "etcd"]
            command += ["--name", name, "--data-dir", str(self.machines[name].directory / STORE)]
            command += ["--initial-cluster", ",".join(f"{each}={self._peer(each)}" for each in self.members)]
            for option in ("--listen-client-urls", "--advertise-client-urls"):
                command += [option, f"http://{self.machines[name].address}:{ETCD_PORT}"]
            for option in ("--listen-peer-urls", "--initial-advertise-peer-urls"):
                command += [option, self._peer(name)]
            command += ["--logger", "zap", "--log-outputs", "stderr", "--log-level", "error"]
            self._launch(Service(name, self.machines[name], command, self.root / f"{name}.log"))

    def _peer(self, member: str) -> str:
        return f"http://{self.machines[member].address}:{ETCD_PORT + 1}"

    def _start(self, name: str, module: str, *options: str, node: int = 0) -> None:
        machine = self.machines[name]
        command = [sys.executable, "-P", "-u", "-m", module, "--data", str(machine.directory / STORE)]
        command += ["--cluster", str(self.data.cluster), "--config", str(self.config), "--insecure", *options]
        self._launch(Service(name, machine, command, self.root / f"{name}.log", node))

    def _start_node(self, name: str, module: str, node: int, *options: str) -> None:
        address = self.machines[name].address
        self._start(name, module, "--node-id", str(node), "--listen", address, *options, node=node)

    def contents(self, service: str, names: list[str]) -> list[Content]:
        """Stop the processes of "mgmtd" or "meta"; return what the store of each holds after the rest of its log."""
        for name in names:
            self.services[name].kill(signal.SIGTERM)
        stores = [self.machines[name].disk / STORE for name in names]
        return [asyncio.run(replicated_content(store, self.cluster, service)) for store in stores]

    def mount(self, name: str, machine: str, *options: str) -> Path:
        """A mount on a machine. Returns its directory, which is there for programs of that machine alone."""
        place = self.machines[machine]
        mountpoint = self.root / name
        mountpoint.mkdir()
        command = [sys.executable, "-P", "-u", "-m", "luciola", "mount", "--foreground", *options]
        command += [str(self.data.root), str(mountpoint)]
        self._launch(Service(name, place, command, self.root / f"{name}.log"))
        until(lambda: place.does("mountpoint", "-q", str(mountpoint)), f"the mount {name}")
        return mountpoint

    def program(self, name: str, machine: str, command: list[str]) -> None:
        """A program that uses the cluster."""
        self._launch(
            Service(name, self.machines[machine], command, self.root / f"{name}.log", is_program=True)
        )

    def _launch(self, service: Service) -> None:
        self.services[service.name] = service
        service.start()

    def on(self, machine: Machine) -> list[Service]:
        """What runs on a machine, in the order in which it is started."""
        return [service for service in self.services.values() if service.machine is machine]

    def places(self) -> dict[str, str]:
        """The machine of every service."""
        return {name: service.machine.name for name, service in self.services.items()}

    def _keep(self) -> None:
        try:
            while not self._ended.wait(0.1):
                for service in list(self.services.values()):
                    service.look_after()
        except BaseException as error:  # noqa: BLE001 (the run ends by it)
            self.failure = error

    # What mgmtd says.

    def call(self, method: methods.Method, request: object) -> object:
        """Ask the manager that answered last; after an error, the next call asks another.

        Raises: the errors of the call.
        """
        address = self._endpoints.current
        try:
            with RpcClient(address, self._token) as client:
                return client.call(method, request, timeout_s=5.0)
        except Error as error:
            self._endpoints.failed(address, error)
            raise

    def routing(self) -> mgmtd_pb2.Routing | None:
        """None while mgmtd does not answer."""
        try:
            return self.call(methods.Mgmtd.get_routing, mgmtd_pb2.GetRoutingRequest())  # type: ignore[return-value]
        except Error:
            return None

    def connected(self) -> set[int]:
        routing = self.routing()
        return (
            set()
            if routing is None
            else {node.id for node in routing.nodes if node.status == mgmtd_pb2.CONNECTED}
        )

    def states(self) -> list[tuple[int, int]]:
        """Node and state of every replica; empty while mgmtd does not answer."""
        routing = self.routing()
        chains = [] if routing is None else routing.chains
        return [(target.node, target.state) for chain in chains for target in chain.targets]

    def is_healthy(self) -> bool:
        """Whether mgmtd answers, and every replica serves."""
        states = self.states()
        return bool(states) and all(state == mgmtd_pb2.SERVING for _, state in states)

    def report_ended(self, service: Service, pid: int) -> None:
        """Report the end of a process to mgmtd, as a supervisor does, if it answers."""
        routing = self.routing()
        records = (
            [] if routing is None else [n for n in routing.nodes if (n.id, n.pid) == (service.node, pid)]
        )
        for record in records:
            request = mgmtd_pb2.ProcessEndedRequest(
                node=service.node, incarnation=record.incarnation, pid=pid
            )
            with contextlib.suppress(Error):
                self.call(methods.Mgmtd.process_ended, request)
