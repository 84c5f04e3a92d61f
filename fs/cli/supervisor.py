"""A whole cluster on one machine under one supervisor.

Start order: a private etcd, mgmtd, then storage nodes and meta, then the chain table (once), then the mount. Without
mgmtd, meta and the mount there is nothing to use, so the start fails. A storage node that stays away, is disabled, or
has lost its disk takes only its chains with it: it is reported, with the command that helps, and the rest runs. A
service that ends is reported to mgmtd (its lease need not be waited for) and started again. The stop begins with the
mount, so that it can flush what it holds, and ends with the storage nodes: mgmtd does not see them end one after the
other, so the last one does not count as the only one that has everything. A private etcd outlives what writes to it.

With replicated metadata there are several mgmtd and meta processes: one of each kind is enough.

State is written to DATA/run/state.json whenever it changes; `luciola status` reads it and asks mgmtd for the chains.
"""

import asyncio
import contextlib
import json
import logging
import os
import signal
import sys
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Final, TypedDict

from ..errors import AlreadyExists, ConfigError, Error, Timeout, Unavailable
from ..fuse import check_mountpoint, clean_stale_mount, is_mounted, read_records, source_of, stale_mounts
from ..ids import MANAGER_NODE, META_NODE, STORAGE_NODE
from ..wire import create_secret, write_private
from ..wire.etcd import EtcdClient
from ..wire.pb import mgmtd_pb2 as pb
from . import private_etcd, processes
from .certificate import keep_certificate
from .datadir import DataDir, Host, Shape
from .health import NAMED_MAX, awaited, describe_trouble
from .mgmtd_client import MgmtdClient
from .processes import Child, Service, ServiceState, python

log = logging.getLogger(__name__)

CHAIN_TABLE: Final = 1
CREATE: Final = "--create"  # given to mgmtd and meta until the cluster has been created
ACCEPT_LOSS: Final = "--accept-loss"  # given to meta until it serves
START_S: Final = 150.0  # a service that has not answered by then will not, on the slowest machine
SETTLE_S: Final = 20.0  # without progress; a node that opens a large disk reports later, and takes part then
NOTE_S: Final = 2.0  # of waiting without a word
START_CRASHES_MAX: Final = 4  # of one service before the cluster is up: what it says will not change
NEEDED: Final = ("etcd", "mgmtd", "meta", "mount")  # services without which nothing can be used
ETCD_S: Final = 15.0  # for an etcd that runs elsewhere: its members may just be electing a leader
ALL: Final = (*NEEDED, "storage")
# gRPC has no option for it. Certificates have keys of elliptic curves, so that TLS 1.2 has no cipher if that is allowed
# only one for RSA keys; the ciphers of 1.3 are others.
ONLY_TLS_1_3: Final = "GRPC_SSL_CIPHER_SUITES=ECDHE-RSA-AES256-GCM-SHA384"
POLL_S: Final = 0.05
WATCH_S: Final = 0.5
HUNG_S: Final = 2.0  # beyond its lease; a process that was merely late has reported by then


@dataclass
class Supervisor:
    """Runs the services of `data` until `stop` is called."""

    data: DataDir
    shape: Shape
    config_file: Path | None = None
    mountpoint: Path | None = None
    accept_metadata_loss: bool = False
    rebuild_mgmtd: bool = False
    on_change: Callable[["Supervisor"], None] = lambda _: None
    on_note: Callable[[str], None] = lambda _: None
    children: list[Child] = field(default_factory=list)
    stopping: asyncio.Event = field(default_factory=asyncio.Event)
    phase: str = "starting"
    _watchers: list[asyncio.Task[None]] = field(default_factory=list)
    _unwritten: OSError | None = None  # why run/state.json is out of date

    async def run(self, *, on_ready: Callable[["Supervisor"], None]) -> None:
        """Start everything, call `on_ready`, and stop everything once `stopping` is set."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, self.stopping.set)
        try:
            ready = asyncio.ensure_future(self._start())
            stop = asyncio.ensure_future(self.stopping.wait())
            await asyncio.wait((ready, stop), return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                await ready
                self._set_phase("running")
                self._watchers.append(asyncio.create_task(self._end_hung()))
                on_ready(self)
                await stop
            else:
                ready.cancel()
        finally:
            self.stopping.set()
            self._set_phase("stopping")
            await self._stop()
            self._set_phase("stopped")

    @contextlib.asynccontextmanager
    async def etcd_alone(self) -> AsyncGenerator[None]:
        """Run the private etcd, if there is one, inside the block, and no other service.

        Raises: as `up` where an etcd does not answer.
        """
        try:
            await self._start_etcd()
            yield
        finally:
            self.stopping.set()
            stops = (processes.stop(child, patience_s=private_etcd.STOP_S) for child in self.children)
            await asyncio.gather(*stops)
            await asyncio.gather(*self._watchers, return_exceptions=True)
            self._set_phase("stopped")

    async def _start(self) -> None:
        if self.mountpoint is not None:
            self._prepare_mountpoint(self.mountpoint)
        if self.shape.host is None:
            self._create_secret()
        await self._start_etcd()
        if self.rebuild_mgmtd:
            from . import stores

            await stores.rebuild_mgmtd(self.data, self.shape.cluster)
        if self.shape.host is not None:
            keep = keep_certificate(self.shape.cluster, self.shape.host.address, self.stopping)
            self._watchers.append(asyncio.create_task(keep))
        async with MgmtdClient.connect(self.shape.cluster) as manager:
            await self._launch_nodes(manager)
            if self.shape.host is not None:
                await self._settle_here(manager)
                return
            if not self.shape.has_stores:
                await self._create_chains(manager)
            await self._wait("meta", manager.has_meta)
            self._settle_stores()
            if self.mountpoint is not None:
                await self._start_mount(self.mountpoint)
            await self._settle(manager)

    async def _launch_nodes(self, manager: MgmtdClient) -> None:
        for node in manager_nodes(self.shape):
            await self._launch(
                self._service("mgmtd", str(node), node, _directory("mgmtd", node, MANAGER_NODE))
            )
        await self._wait("mgmtd", manager.answers)
        for node in storage_nodes(self.shape):
            await self._launch(self._service("storage", str(node), node, f"storage-{node}"))
        for node in meta_nodes(self.shape):
            await self._launch(self._service("meta", str(node), node, _directory("meta", node, META_NODE)))

    async def _settle_here(self, manager: MgmtdClient) -> None:
        """Wait for the services of this machine of several. What runs on others is not waited for."""
        ours = {*meta_nodes(self.shape), *storage_nodes(self.shape)}
        await self._wait(
            "the services of this machine",
            lambda: manager.are_connected(ours),
            kinds=("mgmtd", "meta", "storage"),
        )
        self._settle_stores()
        if not self.shape.has_stores:
            self._keep(replace(self.shape, has_stores=True))
        if self.shape.host is not None and self.shape.host.first_storage:
            self._watchers.append(asyncio.create_task(self._lay_out(self.shape.host)))

    async def _lay_out(self, host: Host) -> None:
        """Create the chain table of a new cluster when as many storage nodes are there as it begins with."""
        async with MgmtdClient.connect(self.shape.cluster) as manager:
            while not self.stopping.is_set():
                try:
                    if await manager.has_storage(host.first_storage) and await manager.has_table(
                        CHAIN_TABLE, replicas=self.shape.replicas
                    ):
                        self._keep(replace(self.shape, host=replace(host, first_storage=0)))
                        log.info("the cluster is laid out over its storage nodes, and can be used")
                        return
                except Error as error:
                    log.warning("the cluster cannot be laid out yet: %s", error)
                await asyncio.sleep(WATCH_S)

    def _keep(self, shape: Shape) -> None:
        self.shape = shape
        self.data.write_shape(shape)

    async def _start_etcd(self) -> None:
        """Return when the etcd of replicated metadata answers, if services here use one."""
        options = self.shape.cluster.metadata_options()
        if options is None or not (manager_nodes(self.shape) or meta_nodes(self.shape)):
            return
        if self.shape.etcd_peers:
            await self._launch_etcd(options.endpoints)
        where = ", ".join(options.endpoints)
        async with EtcdClient(options) as client:
            answers = partial(_etcd_answers, client)
            if self.shape.etcd_peers:
                await self._wait("the private etcd", answers, kinds=("etcd",))
                return
            try:
                await self._wait(f"etcd at {where}", answers, patience_s=ETCD_S)
            except Timeout as error:
                raise Unavailable(
                    f"etcd at {where} does not answer, or has no majority: start it, or say with --metadata where it is"
                ) from error

    async def _launch_etcd(self, clients: Sequence[str]) -> None:
        root = self.data.root
        private_etcd.require_programs()
        private_etcd.certify(root)
        members = range(1, private_etcd.MEMBERS + 1)
        present = private_etcd.present_members(root) if self.shape.has_stores else members
        for member in members:
            if member not in present:
                self._note(private_etcd.describe_lost(root, member))
                continue
            identity = self.shape.cluster.cluster_id
            peers = self.shape.etcd_peers
            service = private_etcd.service(root, member, cluster_id=identity, clients=clients, peers=peers)
            await self._launch(service)

    def _create_secret(self) -> None:
        try:
            create_secret(self.data.secret)
        except AlreadyExists:
            return
        if self.shape.has_stores:
            self._note(
                "the cluster secret was missing, and a new one was made: tokens are void, and mounts on other "
                f"machines need a copy of {self.data.secret}"
            )

    def _note(self, text: str) -> None:
        """Report to the command that started the cluster, and in the log."""
        log.warning("%s", text)
        self.on_note(text)

    async def _create_chains(self, manager: MgmtdClient) -> None:
        """A new cluster is laid out over all of its nodes, so it needs all of them."""
        nodes = {*meta_nodes(self.shape), *storage_nodes(self.shape)}
        await self._wait("the storage nodes and meta", lambda: manager.are_connected(nodes), kinds=ALL)
        await self._wait(
            "the chain table",
            lambda: manager.has_table(CHAIN_TABLE, replicas=self.shape.replicas),
            kinds=ALL,
        )
        self._keep(replace(self.shape, has_stores=True))

    async def _settle(self, manager: MgmtdClient) -> None:
        """Wait until every chain serves; report what does not come."""
        loop = asyncio.get_running_loop()
        began_s = progress_s = loop.time()
        best = sys.maxsize
        noted = False
        while True:
            self._raise_failed(NEEDED)
            try:
                routing = await manager.routing()
            except (Unavailable, Timeout):
                routing = None
            if routing is not None:
                waiting = awaited(routing, self._running_storage_nodes())
                if not waiting:
                    break
                if len(waiting) < best:
                    best, progress_s = len(waiting), loop.time()
                if not noted and loop.time() - began_s > NOTE_S:
                    noted = True
                    self.on_note(f"waiting for {', '.join(sorted(waiting)[:NAMED_MAX])}")
            if loop.time() - progress_s > SETTLE_S:
                break
            await asyncio.sleep(POLL_S)
        if routing is not None:
            for line in self._trouble(routing):
                self._note(line)

    def _running_storage_nodes(self) -> set[int]:
        """Those that may still report."""
        nodes = [child for child in self.children if child.service.kind == "storage"]
        running = {child.service.node for child in nodes if _failure(child) is None}
        if not running:
            self._raise_failed(("storage",))
        return running

    def _trouble(self, routing: pb.Routing) -> list[str]:
        failures = [_failure(child) for child in self.children]
        failed = {child.service.node for child in self.children if _failure(child) is not None}
        nodes = set(storage_nodes(self.shape)) - failed
        return [*(str(each) for each in failures if each is not None), *describe_trouble(routing, nodes)]

    def _raise_failed(self, kinds: Collection[str]) -> None:
        """Raise why a kind of service will not work; a standby that fails is no reason."""
        for kind in kinds:
            failures = [_failure(child) for child in self.children if child.service.kind == kind]
            reasons = [failure for failure in failures if failure is not None]
            working = len(failures) - len(reasons)
            if reasons and working < (len(failures) if kind == "storage" else _enough(kind)):
                raise reasons[0]

    def _settle_stores(self) -> None:
        """From now on mgmtd and meta only open their stores: one that is missing is lost, not new."""
        for child in self.children:
            command = tuple(each for each in child.service.command if each not in (CREATE, ACCEPT_LOSS))
            child.service = replace(child.service, command=command)

    def _prepare_mountpoint(self, mountpoint: Path) -> None:
        """What is wrong with the place is said before anything is started."""
        clean_stale_mount(mountpoint)
        mountpoint.mkdir(parents=True, exist_ok=True)
        check_mountpoint(mountpoint)

    async def _start_mount(self, mountpoint: Path) -> None:
        arguments = ["--foreground", "--rotate-log", str(self.data.root), str(mountpoint)]
        arguments += ["--secret-file", str(self.data.secret)]  # whatever the environment says
        if self.config_file is not None:
            arguments += ["--config", str(self.config_file)]
        command = python("-m", "luciola", "mount", *arguments)
        await self._launch(Service("mount", str(mountpoint), 0, command, self.data.log("mount")))
        child = self.children[-1]

        async def answers() -> bool:
            # Another program may have mounted something there meanwhile.
            ours = child.pid in {record.pid for record in read_records(str(self.data.root))}
            return ours and is_mounted(mountpoint)

        await self._wait(f"the mount on {mountpoint}", answers)

    def _service(self, kind: str, identity: str, node: int, directory: str) -> Service:
        arguments = ["-m", f"luciola.{kind}", "--data", str(self.data.root / directory)]
        arguments += ["--cluster", str(self.data.cluster), "--rotate-log", "--audit", str(self.data.audit)]
        if kind != "storage" and not self.shape.has_stores:
            arguments.append(CREATE)
        if kind == "meta" and self.accept_metadata_loss:
            arguments.append(ACCEPT_LOSS)
        if kind == "storage" and self.shape.racks:
            arguments += ["--label", f"rack={1 + (node - STORAGE_NODE) % self.shape.racks}"]
        arguments += self._place(kind)
        arguments += ["--node-id", str(node)]
        if self.config_file is not None:
            arguments += ["--config", str(self.config_file)]
        command = python(*arguments)
        if self.shape.cluster.tls_directory:
            command = ("env", ONLY_TLS_1_3, *command)
        return Service(kind, identity, node, command, self.data.log(directory))

    def _place(self, kind: str) -> list[str]:
        """Return what a service of one machine of several is given about it."""
        host = self.shape.host
        if host is None:
            return []
        arguments = ["--insecure"] if host.insecure else []
        if kind != "mgmtd":  # the cluster file says where managers listen
            arguments += ["--listen", host.address, "--port", str(host.port(kind))]
        if kind == "storage":
            arguments += [f"--label={level}={name}" for level, name in host.labels]
        return arguments

    async def _launch(self, service: Service) -> None:
        child = Child(service)
        self.children.append(child)
        await processes.start(child)
        self._changed()
        self._watchers.append(
            asyncio.create_task(
                processes.keep_running(
                    child, on_end=self._ended, on_start=self._started, stopping=self.stopping
                )
            )
        )

    async def _ended(self, child: Child, pid: int) -> None:
        assert child.process is not None, "it has ended, so it ran"
        log.warning("%s (process %d) ended with status %s", child.service.name, pid, child.process.returncode)
        self._changed()
        if child.service.kind == "mount":
            clean_stale_mount(Path(child.service.id))
        elif child.service.kind in ("meta", "storage"):
            try:
                async with MgmtdClient.connect(self.shape.cluster) as manager:
                    await asyncio.wait_for(manager.report_ended(child.service.node, pid), 1.0)
            except (Error, TimeoutError) as error:
                # mgmtd will notice by the lease.
                log.info(
                    "reporting the end of process %d to mgmtd failed: %s; its lease will expire", pid, error
                )

    async def _end_hung(self) -> None:
        """End services that run and send no heartbeats, so that they are started again.

        Others have taken over by then, but clients whose memory is registered with such a process wait for it.
        """
        loop = asyncio.get_running_loop()
        silent_since: dict[tuple[int, int], float] = {}
        async with MgmtdClient.connect(self.shape.cluster) as manager:
            while not self.stopping.is_set():
                await asyncio.sleep(WATCH_S)
                try:
                    silent = await manager.silent_processes()
                except Error:  # mgmtd itself is away
                    silent = set()
                silent_since = {each: silent_since.get(each, loop.time()) for each in silent}
                for child in self.children:
                    since_s = None if child.pid is None else silent_since.get((child.service.node, child.pid))
                    if child.process is None or since_s is None:
                        continue
                    if loop.time() - since_s >= HUNG_S:
                        log.error(
                            "%s (process %d): no heartbeat within %.0f s; killed",
                            child.service.name,
                            child.pid,
                            HUNG_S,
                        )
                        child.process.kill()

    async def _started(self, child: Child) -> None:
        log.info("%s: restarted as process %s", child.service.name, child.pid)
        self._changed()

    async def _wait(
        self,
        what: str,
        condition: Callable[[], Awaitable[bool]],
        *,
        kinds: Collection[str] = NEEDED,
        patience_s: float = START_S,
    ) -> None:
        """Return when `condition` holds. Raises: Timeout, and Unavailable if a service of `kinds` cannot start."""
        loop = asyncio.get_running_loop()
        began_s = loop.time()
        noted = False
        while not await condition():
            if self._unwritten is not None:
                raise self._unwritten
            self._raise_failed(kinds)
            if not noted and loop.time() - began_s > NOTE_S:
                noted = True
                self.on_note(f"waiting for {what}")
            if loop.time() - began_s > patience_s:
                raise Timeout(
                    f"{what} did not come up within {patience_s:.0f} s; see {self.data.root / 'log'}"
                )
            await asyncio.sleep(POLL_S)

    async def _stop(self) -> None:
        end_extra_mounts(self.data, except_pids={child.pid for child in self.children if child.pid})
        for kind in ("mount", "meta", "mgmtd", "storage", "etcd"):
            patience_s = private_etcd.STOP_S if kind == "etcd" else processes.STOP_S
            await asyncio.gather(
                *(
                    processes.stop(child, patience_s=patience_s)
                    for child in self.children
                    if child.service.kind == kind
                )
            )
            self._changed()
        if self.mountpoint is not None:
            clean_stale_mount(self.mountpoint)
        await asyncio.gather(*self._watchers, return_exceptions=True)

    def _set_phase(self, phase: str) -> None:
        self.phase = phase
        self._changed()

    def _changed(self) -> None:
        record: State = {
            "pid": os.getpid(),
            "phase": self.phase,
            "mountpoint": None if self.mountpoint is None else str(self.mountpoint),
            "services": [child.describe() for child in self.children],
        }
        try:
            write_private(self.data.state, json.dumps(record, indent=1) + "\n")
            self._unwritten = None
        except OSError as error:
            # A full disk must not end services that run; a cluster does not start on it (`_wait`).
            log.warning("writing the state of the cluster failed: %s", error)
            self._unwritten = error
        self.on_change(self)


def storage_nodes(shape: Shape) -> Sequence[int]:
    """Numbers of the storage nodes of a cluster on this machine."""
    if shape.host is not None:
        return shape.host.storage
    return range(STORAGE_NODE, STORAGE_NODE + shape.storage_nodes)


def manager_nodes(shape: Shape) -> Sequence[int]:
    """Numbers of the mgmtd processes of a cluster on this machine."""
    if shape.host is not None:
        return shape.host.managers
    return range(MANAGER_NODE, MANAGER_NODE + shape.managers)


def meta_nodes(shape: Shape) -> Sequence[int]:
    """Numbers of the metadata services of a cluster on this machine."""
    if shape.host is not None:
        return shape.host.metas
    return range(META_NODE, META_NODE + shape.metas)


def store_names(shape: Shape, kind: str) -> list[str]:
    """Names of the directories in which the processes of mgmtd or meta have their stores."""
    if kind == "meta":
        return [_directory(kind, node, META_NODE) for node in meta_nodes(shape)]
    return [_directory(kind, node, MANAGER_NODE) for node in manager_nodes(shape)]


def directory_of(kind: str, identity: str) -> str:
    """Return the name of the directory of a service of `kind`, which `luciola status` calls `identity`."""
    first = {"mgmtd": MANAGER_NODE, "meta": META_NODE}
    return _directory(kind, int(identity), first.get(kind, 0))


def _directory(kind: str, number: int, first: int) -> str:
    """Name of the directory, and of the log, of one of several processes of a kind."""
    return kind if number == first else f"{kind}-{number}"


def _enough(kind: str) -> int:
    """How many services of a kind have to work."""
    return private_etcd.MAJORITY if kind == "etcd" else 1


async def _etcd_answers(client: EtcdClient) -> bool:
    """Return whether most members agree. Raises: Unauthenticated, PermissionDenied."""
    try:
        await client.range(b"luciola/", limit=1)
    except (Unavailable, Timeout):
        return False
    return True


def _failure(child: Child) -> Error | None:
    """Return why the service will not run, however long one waits."""
    if child.state == "refused":
        return ConfigError(f"{child.service.name} refuses to start: {child.last_log_line()}")
    if child.restarts >= START_CRASHES_MAX:
        return Unavailable(f"{child.service.name} has ended {child.restarts} times: {child.last_log_line()}")
    return None


class State(TypedDict, total=False):
    """What a supervisor writes of itself for other commands."""

    pid: int
    phase: str
    mountpoint: str | None
    services: list[ServiceState]


def read_state(data: DataDir) -> State:
    """Return what the last supervisor of `data` wrote; empty if there was none."""
    try:
        state: State = json.loads(data.state.read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return {}
    return state


def end_leftovers(data: DataDir) -> None:
    """End services that outlived a killed supervisor: they hold the ports and the directories."""
    pids = [service["pid"] for service in read_state(data).get("services", []) if service["pid"]]
    left = [pid for pid in pids if processes.belongs(pid, data.root)]
    for pid in left:
        _signal(pid, signal.SIGTERM)
    _await_end(left, patience_s=processes.STOP_S)
    for pid in left:
        if processes.is_alive(pid):
            _signal(pid, signal.SIGKILL)
    _await_end(left, patience_s=processes.STOP_S)


def end_extra_mounts(data: DataDir, *, except_pids: set[int | None]) -> None:
    """Unmount what `luciola mount` has mounted of this cluster beside the supervisor's own mount."""
    pids = [record.pid for record in read_records(str(data.root)) if record.pid not in except_pids]
    for pid in pids:
        _signal(pid, signal.SIGTERM)
    _await_end(pids, patience_s=processes.STOP_S)


def clean_stale_mounts(data: DataDir) -> None:
    """Take off mounts of this cluster whose processes were killed. Raises: Busy if one cannot be taken off."""
    for mountpoint in stale_mounts(source_of(str(data.root))):
        clean_stale_mount(mountpoint)


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _await_end(pids: list[int], *, patience_s: float) -> None:
    import time

    deadline = time.monotonic() + patience_s
    while any(processes.is_alive(pid) for pid in pids) and time.monotonic() < deadline:
        time.sleep(POLL_S)


__all__ = [
    "CHAIN_TABLE",
    "Supervisor",
    "clean_stale_mounts",
    "end_extra_mounts",
    "end_leftovers",
    "manager_nodes",
    "meta_nodes",
    "read_state",
    "storage_nodes",
    "store_names",
]
