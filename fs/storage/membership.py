"""What this node may do now: its lease, its routing, and what it reports to mgmtd in heartbeats.

M1  A lease is counted from before the heartbeat was sent, on the boot clock, and shortened by the drift
    that two clocks may have: mgmtd, which counts from when it received it, never thinks that it ended earlier.
M2  A lease is used only while the model allows it (I6 there), and dropped before OFFLINE is reported of a
    replica that serves.
M3  Routing reaches the data server before the model, and the model before the next heartbeat: a report is
    always about a chain version that the data server already knows.
M4  Routing is adopted only after `marks` has it on disk, and never below a mark: the next heartbeat reports it, and
    mgmtd ends.
M5  The directory has this incarnation before mgmtd hears of it, and that mgmtd has stored it before a lease is used.
    A directory that mgmtd calls an older copy serves nothing: an operator has to put back the newest.
M6  mgmtd hears how far the chunk engine has come only after the engine has noted that it is the newest: an engine of
    which that is not known reports what it had when it was opened first, however often it is opened.
"""

import asyncio
import errno
import logging
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Final

from ..clock import boot_s
from ..errors import ConfigError, Error, InvalidArgument
from ..ids import ChainId, ChainVersion, TargetId
from ..states import Data, Local, Public
from ..wire import RoutingTable, RpcClients, methods
from ..wire.adoption import AdoptedConfig
from ..wire.pb import mgmtd_pb2
from ..wire.pb.mgmtd_pb2 import (
    DiskSpace,
    EngineMark,
    HeartbeatReply,
    HeartbeatRequest,
    LocalTarget,
    Revocations,
    Routing,
)
from . import model
from .directory import Directory
from .engine import Engine, is_full

log = logging.getLogger(__name__)

SPACING_S: Final = 0.05  # between heartbeats that changes ask for
RETRY_S: Final = 0.2  # after a failed heartbeat
FIRST_INTERVAL_S: Final = 1.0  # until mgmtd has said its own
FIRST_TIMEOUT_S: Final = 5.0  # of heartbeats until mgmtd has granted a lease; later half a lease each
LEAVE_TIMEOUT_S: Final = 2.0
FREE_AGAIN_BYTES: Final = 16 << 20  # so that a disk at its limit does not fill the log with changes
SPACE_TIMEOUT_S: Final = 1.0  # of asking for free space: on a disk that hangs heartbeats are sent without
MARK_INTERVAL_S: Final = 5.0  # between two writes of how far meta's store has come
assert SPACING_S < RETRY_S < FIRST_INTERVAL_S < FIRST_TIMEOUT_S, "heartbeats are spaced, and sent again"
MARK_TIMEOUT_S: Final = (
    2.0  # of writing marks: a disk that hangs must not keep this node from leaving its chains
)


@dataclass(frozen=True, slots=True)
class Options:
    """Where mgmtd is, and how much faster than its clock ours may run. `adopted`: of the cluster's settings."""

    mgmtd: str
    drift_percent: int
    adopted: AdoptedConfig | None = None


class Membership:
    """Keeps mgmtd, the model and the data server of one node in step."""

    def __init__(
        self,
        engine: Engine,
        directory: Directory,
        clients: RpcClients,
        about: mgmtd_pb2.Node,
        options: Options,
    ) -> None:
        self.table: Final = RoutingTable()
        self.state = model.State()
        self._engine = engine
        self._directory = directory
        self._clients = clients
        self._about = about
        directory.begin(about.incarnation)  # M5
        self._options = options
        self._sequence = 0
        self._interval_s = FIRST_INTERVAL_S
        self._timeout_s = FIRST_TIMEOUT_S
        self._seen: dict[int, tuple[TargetId, model.Seen]] = {}  # this node's replica of each chain
        self._outdated = ""  # what mgmtd's store lacks, in words (M4)
        self._saving: asyncio.Task[None] | None = None
        self._saving_hangs = False
        self._marked_s = float("-inf")
        self._is_confirmed = False  # the engine knows that it is the newest (M6)
        self._changed = asyncio.Event()
        self._was_answered = True
        self._is_full = False
        self._asked_space: asyncio.Task[tuple[int, int, int]] | None = None
        self._known_space: DiskSpace | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._listeners: list[Callable[[], None]] = []
        self._revocation_listeners: list[Callable[[Revocations], None]] = []

    def on_routing(self, listener: Callable[[], None]) -> None:
        """`listener` is called after each change of routing."""
        self._listeners.append(listener)

    def on_revocations(self, listener: Callable[[Revocations], None]) -> None:
        """`listener` is called with all revoked tokens when they change, and when routing is known first."""
        self._revocation_listeners.append(listener)

    async def admit(self, routing: Routing) -> bool:
        """Return whether to adopt `routing`, once the marks that it raises are on disk (M4)."""
        marks = self._directory.marks
        outdated = marks.outdated(routing)
        if outdated and outdated != self._outdated:
            log.error("mgmtd's store is older than the cluster: this node has seen %s", outdated)
            self._changed.set()
        self._outdated = outdated
        if outdated:
            return False
        if marks.raise_to(routing):
            await self._save_marks()
        return True

    async def _save_marks(self) -> None:
        """Return when the marks are on disk, or after a while: then this node may not recognize an older store."""
        while not self._directory.marks.is_saved:
            if self._saving is None or self._saving.done():
                self._saving_hangs = False
                self._saving = asyncio.create_task(asyncio.to_thread(self._directory.marks.save))
            saving = self._saving  # another caller may begin the next one before this one continues
            done, _ = await asyncio.wait({saving}, timeout=0 if self._saving_hangs else MARK_TIMEOUT_S)
            if not done and self._saving_hangs:
                return
            if not done:
                self._saving_hangs = True
                log.warning("writing marks not done after %s s: the disk is slow or hangs", MARK_TIMEOUT_S)
                return
            error = saving.exception()
            if isinstance(error, OSError):
                log.warning("writing marks failed: %s", error)
                return
            if error is not None:
                raise error

    @property
    def disk(self) -> str:
        """The file system under this node, distinguished from those of other hosts."""
        return self._directory.disk()

    @property
    def directory(self) -> str:
        """The path of the directory of this node, on its host."""
        return str(self._directory.path)

    # Events.

    def routing_changed(self, routing: Routing) -> None:
        """Take in what mgmtd published (already in `table`)."""
        assert routing.version <= self.table.version, "the table has taken it in"
        self._engine.node.set_routing(routing.SerializeToString())  # M3; revoked tokens, too
        if routing.HasField("revocations"):
            for revoked in self._revocation_listeners:
                revoked(routing.revocations)
        if not routing.delta:
            self._seen = {}
        for chain in routing.chains:  # of a delta: those that changed, not all of the cluster's
            self._seen.pop(chain.id, None)
            for target in chain.targets:
                if target.node == self._about.id:
                    now = model.Seen(ChainId(chain.id), ChainVersion(chain.version), Public(target.state))
                    self._seen[chain.id] = (TargetId(target.id), now)
        seen = dict(self._seen.values())
        if not self.state.has_failed:  # else what is suspect stays so until the directory is opened again
            try:
                self._directory.join(seen)
            except OSError as error:
                self.disk_failed(f"noting replicas: {error}")
        self._apply(model.RoutingChanged(seen, self._directory.data))
        for listener in self._listeners:
            listener()

    def sync_done(self, chain: ChainId, chain_version: ChainVersion) -> bool:
        """Note that the predecessor is done with our replica; return whether that is about the present chain."""
        if not model.may_sync(self.state, chain, chain_version):
            return False
        self._apply(model.SyncDone(chain, chain_version))
        return True

    def disk_failed(self, reason: str) -> None:
        """Report every replica OFFLINE until the process is started again, and serve nothing."""
        if not self.state.has_failed:
            log.error(
                "disk failed: %s; every replica here is OFFLINE until this process is started again", reason
            )
            self._engine.node.give_up_disk()
            self._apply(model.DiskFailed())
            # On a thread: the disk may hang. If it takes nothing any more, what it holds shows when it is opened again.
            self._spawn(self._engine.run(self._directory.set_suspect))

    def _apply(self, event: model.Event) -> None:
        was_back = self.state.is_back
        self.state, effects = model.step(self.state, event)
        assert self.state.is_back or not was_back, "I1: mgmtd notices a restart once"
        if self.state.is_back and not was_back:
            log.info("mgmtd has noticed the restart; replicas are reported again")
            self._changed.set()
        for effect in effects:
            self._carry_out(effect)

    def _carry_out(self, effect: model.Effect) -> None:
        match effect:
            case model.Report(target):
                about = self.state.targets[target]
                log.info(
                    "target %d of chain %d version %d: %s, reported %s",
                    *(target, about.chain, about.chain_version, about.public.name, about.local.name),
                )
                self._changed.set()
            case model.Restored(target):
                try:
                    self._directory.restore(target)
                except OSError as error:  # a full disk: after a restart it will be synced once more
                    log.warning("target %d: recording that it is up to date failed: %s", target, error)
            case model.DataMissing(target, chain, Data.LOST):
                log.error(
                    "target %d was the last of chain %d that served, and its data is gone with a replaced disk; "
                    "`luciola chain rotate CHAIN --last-serving` lets another replica serve with what it "
                    "has, which is nothing if the disks of all were replaced (docs/operations.md)",
                    *(target, chain),
                )
            case model.DataMissing(target, chain, _):
                log.warning(
                    "target %d was the last of chain %d that served, and this machine was restarted without a clean "
                    "stop; the chain waits for the other replicas that served last (docs/operations.md)",
                    *(target, chain),
                )

    def _spawn(self, work: Coroutine[object, None, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("background call failed", exc_info=task.exception())

    # Heartbeats.

    async def run(self) -> None:
        """Send heartbeats. Return never."""
        while True:
            self._changed.clear()
            is_answered = await self._beat()
            await asyncio.sleep(SPACING_S)
            try:
                async with asyncio.timeout(self._interval_s if is_answered else RETRY_S):
                    await self._changed.wait()
            except TimeoutError:
                continue

    async def leave(self) -> None:
        """Report to mgmtd that this node has stopped serving, so that failover need not wait for its lease."""
        request = HeartbeatRequest(
            node=self._about,
            sequence=self._next(),
            leaving=True,
            directory_incarnations=self._directory.incarnations,
            engine=self._engine_mark(),
        )
        request.targets.extend(
            self._report(target, about, local=Local.OFFLINE) for target, about in self.state.targets.items()
        )
        try:
            await self._clients.call(
                self._options.mgmtd, methods.Mgmtd.heartbeat, request, timeout_s=LEAVE_TIMEOUT_S
            )
        except Error as error:
            log.warning(
                "shutdown notice to mgmtd failed: %s; failover will wait for the lease to expire", error
            )

    async def _beat(self) -> bool:
        request = await self._request()
        sent_s = boot_s()  # M1
        try:
            reply = await self._clients.call(
                self._options.mgmtd, methods.Mgmtd.heartbeat, request, timeout_s=self._timeout_s
            )
        except Error as error:
            if self._was_answered:
                log.warning(
                    "heartbeat to mgmtd failed: %s; this node stops serving when its lease expires", error
                )
            self._was_answered = False
            if isinstance(error, ConfigError) and error.fields.get("older") == "storage":  # M5
                raise ConfigError(f"{error}; {self._remedy()}") from error
            if isinstance(error, InvalidArgument):
                raise  # another process has this node's id, or a supervisor reported this one's end: end, and restart
            return False
        if not self._was_answered:
            log.info("heartbeats to mgmtd succeed again")
        self._was_answered = True
        if await self._acknowledge():
            self._granted(reply, sent_s)
        return True

    def _remedy(self) -> str:
        return (
            f"put back the newest {self._directory.path.absolute()}, or empty it, and its peers fill it; if it holds "
            "the only copies and there is no newer one, `luciola up --rebuild-mgmtd` takes it as it is"
        )

    def _engine_mark(self) -> EngineMark:
        opened, synced = self._engine.node.rounds()
        identity = f"{self._directory.engine_identity:032x}"
        return EngineMark(identity=identity, opened=opened, round=synced if self._is_confirmed else opened)

    async def _acknowledge(self) -> bool:
        """Note that mgmtd has taken in this process and its directory (M5, M6); whether that is on the disk."""
        try:
            self._directory.acknowledge(self._about.incarnation)
            if not self._is_confirmed:
                await self._engine.quick(self._engine.node.confirm)
                self._is_confirmed = True
        except (OSError, Error) as error:
            log.warning("recording that mgmtd knows this process failed: %s; nothing is served", error)
            return False
        return True

    def _granted(self, reply: HeartbeatReply, sent_s: float) -> None:
        if reply.interval_ms:
            self._interval_s = reply.interval_ms / 1000
        if reply.lease_ms:
            self._timeout_s = reply.lease_ms / 2000  # so that a second try is in time
        if reply.lease_ms and model.may_serve(self.state) and not self._outdated:  # M2, M4
            lease_s = reply.lease_ms / 1000 * (1 - self._options.drift_percent / 100)
            assert 0 < lease_s <= reply.lease_ms / 1000, "M1: a lease is shortened by the drift"
            assert self._is_confirmed, "M5, M6: mgmtd has stored who this is before a lease is used"
            self._engine.node.set_lease(sent_s + lease_s, reply.routing_version)
        if self._options.adopted is not None:
            self._options.adopted.heard(reply.config_version)
        if reply.HasField("meta_store") and sent_s - self._marked_s >= MARK_INTERVAL_S:
            self._marked_s = sent_s
            if self._directory.marks.raise_meta_store(reply.meta_store):
                self._spawn(self._save_marks())

    async def _request(self) -> HeartbeatRequest:
        node = self._engine.node
        sizes: dict[int, tuple[int, int]] = {}
        space: DiskSpace | None = None
        try:
            space = await self._space()
            for target, _, _, _, used, updates, bad in await self._engine.quick(node.targets):
                sizes[target] = used, updates
                if bad:
                    self.disk_failed("the data server gave it up")
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            self.disk_failed(str(error))
        if not model.may_serve(self.state):
            await self._engine.quick(node.drop_lease)  # M2
        request = HeartbeatRequest(
            node=self._about,
            sequence=self._next(),
            outdated=self._outdated,
            directory_incarnations=self._directory.incarnations,
            engine=self._engine_mark(),
            disk=space,
            config=None if self._options.adopted is None else self._options.adopted.state(),
        )
        if self._directory.marks.marks.HasField("meta_store"):
            request.meta_store.CopyFrom(self._directory.marks.marks.meta_store)
        for target, about in self.state.targets.items():
            report = self._report(target, about, local=about.local)
            report.used_bytes, updates = sizes.get(target, (0, 0))
            if about.data == Data.PARTIAL:
                report.updates = updates
            request.targets.append(report)
        return request

    async def _space(self) -> DiskSpace | None:
        """Return the size of the disk and what clients may still write; of a disk that hangs, what it said before."""
        if self._asked_space is None:
            self._asked_space = asyncio.create_task(self._engine.quick(self._engine.node.space))
        done, _ = await asyncio.wait({self._asked_space}, timeout=SPACE_TIMEOUT_S)
        if done:
            asked, self._asked_space = self._asked_space, None
            capacity_bytes, free_bytes, _ = asked.result()
            self._known_space = DiskSpace(capacity_bytes=capacity_bytes, free_bytes=free_bytes)
            self._log_space(free_bytes)
        return self._known_space

    def _log_space(self, free_bytes: int) -> None:
        """Log once when the disk turns full, and once when it takes writes again."""
        if not self._is_full and is_full(free_bytes):
            self._is_full = True
            log.warning("disk full: writes fail with ENOSPC until space is freed; reads and removals work")
        elif self._is_full and free_bytes >= FREE_AGAIN_BYTES:
            self._is_full = False
            log.warning("disk has space again: writes are accepted")

    def _report(self, target: int, about: model.Target, *, local: Local) -> LocalTarget:
        return LocalTarget(
            id=target,
            state=mgmtd_pb2.LocalState.Name(local),
            chain_version=about.chain_version,
            chain=about.chain,
            data=mgmtd_pb2.ReplicaData.Name(about.data),
        )

    def _next(self) -> int:
        self._sequence += 1
        return self._sequence


__all__ = ["Membership", "Options"]
