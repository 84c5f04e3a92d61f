"""Several processes of the metadata service over one log, in trouble, in virtual time.

Clients make, write, cut, rename and remove files. Each request is sent, with its number, to one process after another
until one answers; a process may be killed, paused or cut off from the log at any moment, and an answer may not arrive.

    T1  no request is refused, and none is carried out twice: names are made that must not exist, and renamed from names
        that must
    T2  what was acknowledged is found from then on, by whichever process answers, with its length
    T3  write sessions are known after a take-over, and truncations that had begun are completed
    T4  a process that serves is published with an epoch above those before; one that does not, as a standby

A failure names its seed.
"""

import asyncio
import inspect
from functools import partial

import pytest

import replica_world
from luciola.config import ClusterConfig, MetaConfig
from luciola.errors import ConfigError, Error, NotFound
from luciola.ids import EMBEDDED_EPOCH, STANDBY_EPOCH
from luciola.kv.replica import PrimaryEngine
from luciola.meta import schema
from luciola.meta.cluster import Cluster
from luciola.meta.fake_control import FakeControl
from luciola.meta.layout import Placer, chains_of
from luciola.meta.terms import Settings, Terms, standby
from luciola.wire import TRUSTED, Identity
from luciola.wire.current_service import CurrentService
from luciola.wire.methods import Meta
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller
from luciola.wire.pb.mgmtd_pb2 import ChainTable, HeartbeatReply, HeartbeatRequest, Node, StoreMark
from luciola.wire.preserialized import Preserialized
from virtual_loop import LoopClock, simulate

CHAINS = tuple(range(100, 104))
CHUNK = 64 * 1024
LAYOUT = pb.Layout(chunk_bytes=CHUNK, stripe=4, inline_bytes=0)
PATIENCE_S = 4.0  # for an answer: a call to a process that is paused is sent to another after that
SEEDS = 12
SEEDS_MAX = 30  # in which a planted mistake has to be found
CONFIG = ClusterConfig(meta=MetaConfig(chunk_bytes=CHUNK, stripe=4, gc_delay_ms=1000, gc_interval_ms=500))


class Manager:
    """mgmtd, as one process of the metadata service sees it."""

    def __init__(self, world: "MetaWorld", node: Node) -> None:
        self.world = world
        self.node = node

    async def check_store(self, mark: StoreMark) -> None:
        self.world.compare(mark)

    def hurry(self) -> None:
        self.world.publish(self.node)

    async def clients(self) -> None:
        return None


class SlowControl(FakeControl):
    """Storage nodes that take time: take-overs happen while chunks are removed."""

    def __init__(self, dice) -> None:
        super().__init__()
        self._dice = dice

    async def remove_chunks(self, *arguments, **options):
        await asyncio.sleep(self._dice.choice([0.01, 0.3]))
        return await super().remove_chunks(*arguments, **options)

    async def truncate_chunk(self, *arguments, **options):
        await asyncio.sleep(self._dice.choice([0.01, 0.3]))
        return await super().truncate_chunk(*arguments, **options)


class MetaWorld(replica_world.World):
    """See the module. `terms`: a class, which may have a mistake."""

    def __init__(self, seed: int, *, terms: type[Terms] = Terms) -> None:
        super().__init__(seed)
        self._terms = terms
        self.control = SlowControl(self.dice)
        self.serving: dict[int, CurrentService] = {}
        self.epoch = STANDBY_EPOCH
        self.mark = StoreMark()
        self.files: dict[bytes, int] = {}  # what is acknowledged: name → length
        self.working_on: dict[int, bytes] = {}  # by client
        self.late: set[asyncio.Task[object]] = set()
        self.attempts = 0

    async def serve(self, node: replica_world.Node, engine: PrimaryEngine) -> None:
        assert node.clock is not None
        placer = Placer(CONFIG.meta, seed=1)
        placer.set_tables([ChainTable(id=1, version=1, chains=CHAINS, replicas=1)])
        settings = Settings(CONFIG, "test", placer, control=lambda _until_s: self.control, create=True)
        current = self.serving[node.number] = CurrentService(Meta, standby)
        record = Node(id=100 + node.number)
        terms = self._terms(settings, current, Manager(self, record), record, node.clock)
        try:
            await terms.serve(engine)
        finally:
            self.serving.pop(node.number, None)

    def publish(self, node: Node) -> None:
        if node.epoch == STANDBY_EPOCH:
            return
        if node.epoch <= max(self.epoch, EMBEDDED_EPOCH):
            self.wrong.append(f"T4: epoch {node.epoch} was published after {self.epoch}")
        self.epoch = node.epoch

    def compare(self, mark: StoreMark) -> None:
        if self.mark.store and (mark.store != self.mark.store or mark.position < self.mark.position):
            self.wrong.append(f"T2: the store has come to {mark}, and was at {self.mark}")
        self.mark = mark

    # Clients.

    async def client(self, name: int) -> None:
        number = 0
        while True:
            number += 1
            await asyncio.sleep(self.dice.uniform(0.0, 0.05))
            file = self.working_on[name] = b"%d.%d" % (name, number)
            try:
                await Work(self, name, file).run(remove=number % 3 == 0)
            except (Error, AssertionError) as error:
                self.wrong.append(f"T1: {file!r}: {error!r}")
            self.history.acknowledged[file] = number

    async def answer(self, method: str, request):
        """From the first process that has one."""
        while True:
            await asyncio.sleep(self.dice.uniform(0.001, 0.1))
            node = self.dice.choice(self.nodes)
            current = self.serving.get(node.number)
            if current is None or node.clock is None or not node.clock.running.is_set():
                continue
            self.attempts += 1
            task = asyncio.ensure_future(self._ask(getattr(current, method), request))
            self.late.add(task)
            task.add_done_callback(self._end)
            await asyncio.wait((task,), timeout=PATIENCE_S)
            if not task.done() or self.serving.get(node.number) is not current:
                continue  # its answer comes too late, or not at all
            try:
                return task.result()
            except Error as error:
                if not error.retryable:
                    raise

    async def _ask(self, handler, request):
        reply = handler(request, Identity(TRUSTED, 0, 0, ()))
        if inspect.isawaitable(reply):
            reply = await reply
        return reply.message() if isinstance(reply, Preserialized) else reply

    def _end(self, task: "asyncio.Task[object]") -> None:
        self.late.discard(task)
        if not task.cancelled():
            task.exception()

    async def settle(self) -> None:
        for task in tuple(self.late):
            task.cancel()
        await asyncio.gather(*self.late, return_exceptions=True)
        await asyncio.sleep(
            replica_world.QUIET_S
        )  # clients were interrupted: what they had begun is completed
        await super().settle()

    # Checks.

    def _check_requests(self, stored: dict[bytes, bytes]) -> None:
        begin, end = schema.kind_range(b"D")
        found = {
            schema.decode_dentry(value).name: schema.decode_inode(
                stored[schema.inode_key(schema.decode_dentry(value).inode)]
            ).length
            for key, value in stored.items()
            if begin <= key < end
        }
        unknown = tuple(self.working_on.values())
        names = {name for name in found.keys() | self.files.keys() if not name.startswith(unknown)}
        for name in sorted(names):
            if found.get(name) != self.files.get(name):
                self.wrong.append(
                    f"T2: {name!r} has length {found.get(name)}, acknowledged was {self.files.get(name)}"
                )
        begin, end = schema.kind_range(b"P")
        if any(begin <= key < end for key in stored):
            self.wrong.append("T3: a truncation was not completed")


class Work:
    """What one client does with one file."""

    def __init__(self, world: MetaWorld, client: int, file: bytes) -> None:
        self.world = world
        self.client_id = client + 1
        self.file = file
        self.sequence = int(file.split(b".")[1]) * 100

    async def call(self, method: str, request, *, numbered: bool = True):
        self.sequence += 1
        sequence = self.sequence if numbered else 0
        request.caller.CopyFrom(Caller(client=self.client_id, sequence=sequence, settled_below=sequence))
        return await self.world.answer(method, request)

    async def run(self, *, remove: bool) -> None:
        world, file = self.world, self.file
        made = await self.call(
            "create",
            pb.CreateRequest(path=path(file), permissions=0o644, write=True, exclusive=True, layout=LAYOUT),
        )
        await self.expect(file, 0)
        chain = chains_of(made.inode.layout, CHAINS)[0]
        world.control.write(chain, made.inode.content, index=0, data=b"x" * 1000)
        held = await self.call(
            "hold",
            pb.HoldRequest(
                keep_holds=True, sessions=[pb.WriteSession(inode=made.inode.id, session=made.session)]
            ),
        )
        assert not held.lost, "T3: a write session was lost"
        close = pb.CloseOne(inode=made.inode.id, session=made.session, length=pb.LengthHint(length=1000))
        closed = await self.call("close", pb.CloseRequest(closes=[close]))
        assert not closed.errors[0].code, f"close: {closed.errors[0]}"
        await self.expect(file, 1000)
        await self.call("set_attr", pb.SetAttrRequest(path=path(file), length=600))
        assert len(world.control.read(chain, made.inode.content, index=0)) == 600, "T3: not cut"
        await self.expect(file, 600)
        world.control.write(chain, made.inode.content, index=0, data=b"y" * 700)
        new = file + b".r"
        await self.call("rename", pb.RenameRequest(source=path(file), target=path(new), no_replace=True))
        await self.expect(new, 600)
        assert len(world.control.read(chain, made.inode.content, index=0)) == 700, "T3: cut again"
        world.files[new] = 600
        if remove:
            del world.files[new]
            await self.call("unlink", pb.UnlinkRequest(path=path(new)))

    async def expect(self, file: bytes, length: int) -> None:
        try:
            found = await self.call("stat", pb.StatRequest(path=path(file)), numbered=False)
        except NotFound:
            raise AssertionError("T2: it is not found") from None
        assert found.inode.length == length, f"T2: length {found.inode.length}, not {length}"


def path(name: bytes) -> pb.Path:
    return pb.Path(at=1, path=name)


class Refusing:
    """A manager that has seen a newer store; it is what `Cluster` sees of `RpcClients`."""

    def __init__(self) -> None:
        self.heard: list[HeartbeatRequest] = []
        self.again = asyncio.Event()

    async def call(self, address, method, request, *, timeout_s):
        self.heard.append(request)
        if len(self.heard) > 1:
            self.again.set()
            return HeartbeatReply(interval_ms=1000)
        raise ConfigError("meta's store is older than the cluster", older="meta")


@pytest.mark.parametrize("has_ended", [True, False])
def test_heartbeat_that_is_refused_ends_a_process_only_in_its_term(has_ended):
    """A process that was paused sends the mark of a term that another has followed."""

    async def scenario() -> None:
        manager = Refusing()
        cluster = Cluster(manager, "mgmtd", LoopClock())
        marks = iter([StoreMark(store=1, position=5), None if has_ended else StoreMark(store=1, position=5)])
        beating = asyncio.ensure_future(cluster.beat(Node(id=100), lambda: next(marks, None)))
        waiting = asyncio.ensure_future(manager.again.wait())
        await asyncio.wait((beating, waiting), return_when=asyncio.FIRST_COMPLETED)
        refused = beating.done()
        for task in (beating, waiting):
            task.cancel()
        outcomes = await asyncio.gather(beating, waiting, return_exceptions=True)
        assert refused == isinstance(outcomes[0], ConfigError) == (not has_ended)
        assert [each.HasField("meta_store") for each in manager.heard] == [True, False][: 1 + has_ended]

    simulate(scenario())


@pytest.mark.parametrize("seed", range(SEEDS))
def test_requests_survive_take_overs(seed):
    world = simulate(replica_world.live(MetaWorld(seed)))
    assert world.wrong == []
    assert len(world.history.acknowledged) > 20
    assert world.epoch > EMBEDDED_EPOCH


# Planted mistakes.


class AnswersBeforeStored(Terms):
    """Replies do not wait for the log."""

    def _answering(self, service, engine):
        return service


class ForgetsTruncations(Terms):
    """What an earlier term has begun to cut is not looked at."""

    async def _build(self, engine):
        built = await super()._build(engine)
        built[2].truncations._pending.clear()
        return built


class ForgetsSessions(Terms):
    """Write sessions of earlier terms are not read."""

    async def _build(self, engine):
        built = await super()._build(engine)
        for inode, session, _client in list(built[2].writers.of_clients_outside(())):
            built[2].writers.remove(inode, session)
        return built


class PublishesOneEpoch(Terms):
    """The epoch does not say which term it is."""

    def _publish(self, epoch):
        super()._publish(min(epoch, EMBEDDED_EPOCH + 1))


@pytest.mark.parametrize(
    "terms", [AnswersBeforeStored, ForgetsTruncations, ForgetsSessions, PublishesOneEpoch]
)
def test_planted_mistake_is_found(terms):
    world = partial(MetaWorld, terms=terms)
    assert any(simulate(replica_world.live(world(seed))).wrong for seed in range(SEEDS_MAX))
