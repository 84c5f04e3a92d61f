"""Several manager processes over one log, in trouble, in virtual time.

Storage nodes send heartbeats and obey their leases, clients extend their sessions, an administrator creates chain
tables, and somebody asks who lives. All of them call the managers as `RpcClients` does. A manager may be killed, paused
or cut off from the log at any moment, storage nodes are cut off from managers, and restarted.

    T1  no node falls from its chain while it may serve by a lease of any manager
    T2  what is published never goes back: no reply has an older version of routing than one before
    T3  a client that extended its session in time is in every list of clients that is complete
    T4  a table that was acknowledged is there in the end, with its chains

A failure names its seed.
"""

import asyncio
import inspect
from dataclasses import dataclass, field
from functools import partial

import pytest

import replica_world
from luciola.config import MgmtdConfig
from luciola.errors import AlreadyExists, Conflict, Error, InvalidArgument, Timeout, Unavailable
from luciola.ids import NodeId, TableId
from luciola.kv import MemoryEngine
from luciola.kv.replica import PrimaryEngine
from luciola.mgmtd.placement import place
from luciola.mgmtd.records import Change, NodeRecord, Records
from luciola.mgmtd.routing import Publisher
from luciola.mgmtd.service import Service, Settings
from luciola.mgmtd.store import Store, _load
from luciola.mgmtd.terms import Terms
from luciola.states import Public
from luciola.wire import SERVICE, RoutingTable, RpcClients, methods, mint
from luciola.wire.credentials import Identity
from luciola.wire.pb import mgmtd_pb2 as pb
from luciola.wire.pb.common_pb2 import Empty
from virtual_loop import LoopClock, simulate

CONFIG = MgmtdConfig(client_session_timeout_ms=8000, client_extend_interval_ms=1000)
MANAGERS = "m:1,m:2,m:3"
STORAGE = (1001, 1002, 1003)
CLIENTS = 6  # tasks: the storage nodes, the administrator, a client, and who asks for it
TABLES = 20  # at most: each makes every change of a node larger
WHO = Identity(SERVICE, 0, 0, ())
TROUBLE_S = 80.0
SEEDS = 12
SEEDS_MAX = 40  # in which a planted mistake has to be found


class ObservedService(Service):
    """Shows the world what becomes true."""

    world: "MgmtdWorld"

    async def _place(self, sites, *, replicas, chains):
        return place(sites, replicas=replicas, chains=chains)

    def _publish(self, term, change):
        self.world.changed(change, self)
        super()._publish(term, change)


class ObservedTerms(Terms):
    """As `Terms`, with services that are observed."""

    world: "MgmtdWorld"
    service_class: type[ObservedService] = ObservedService

    def _new_service(self, engine):
        store = Store(engine, cluster_id=self._settings.cluster_id, create=self._create)
        service = self.service_class(
            store, self._settings, is_leased=self._lease_of(engine), clock=self._clock
        )
        service.world = self.world
        return service


class SimulatedClients(RpcClients):
    """Calls of one process to managers of the world. `is_cut`: none of them arrives."""

    def __init__(self, world: "MgmtdWorld") -> None:
        super().__init__(mint(b"s" * 32, role=SERVICE))
        self.world = world
        self.is_cut = False

    async def _call(self, address, method, request, *, timeout_s):
        answer = asyncio.ensure_future(self.world.answer(self, address, method, request))
        try:
            done, _ = await asyncio.wait((answer,), timeout=timeout_s)
            if not done:
                raise Timeout(f"{address}: no answer")
            return answer.result()
        finally:
            answer.cancel()
            await asyncio.gather(answer, return_exceptions=True)


@dataclass
class Storage:
    """A storage node. Its lease is on its own clock."""

    id: int
    clock: LoopClock
    clients: SimulatedClients
    incarnation: int = 1
    sequence: int = 0
    leased_until_s: float = float("-inf")
    table: RoutingTable = field(default_factory=RoutingTable)
    is_back: bool = True  # it knows that none of its replicas counts as serving since an earlier process

    def targets(self, chain: int | None = None) -> list[tuple[pb.Chain, pb.Target]]:
        return [
            (each, target)
            for each in self.table.chains.values()
            for target in each.targets
            if target.node == self.id and chain in (None, each.id)
        ]

    def serves(self, chain: int) -> bool:
        """Whether it serves reads of `chain` by what it knows."""
        may_serve = self.is_back and self.clock.monotonic() < self.leased_until_s
        return may_serve and any(target.state == pb.SERVING for _, target in self.targets(chain))

    def restart(self) -> None:
        self.incarnation += 1
        self.sequence = 0
        self.leased_until_s = float("-inf")
        self.table = RoutingTable()
        self.is_back = False

    def take(self, routing: pb.Routing) -> bool:
        """False: it is older than what is known."""
        was_taken = self.table.apply(routing)
        states = {target.state for _, target in self.targets()}
        self.is_back = self.is_back or not states & {pb.SERVING, pb.SYNCING}
        return was_taken

    def reported(self, state: int) -> int:
        """What it says of a replica in that state. Everything is synchronized at once."""
        if not self.is_back:
            return pb.LOCAL_OFFLINE
        return pb.LOCAL_UPTODATE if state in (pb.SERVING, pb.SYNCING) else pb.LOCAL_ONLINE


class MgmtdWorld(replica_world.World):
    """See the module. `terms`: a class, which may have a mistake."""

    def __init__(self, seed: int, *, terms: type[ObservedTerms] = ObservedTerms) -> None:
        super().__init__(seed)
        self._terms = terms
        self.terms: dict[int, Terms] = {}
        self.reports: dict[int, asyncio.Task[None]] = {}
        drift = CONFIG.lease_drift_percent / 100
        self.storage = {
            number: Storage(
                number, LoopClock(rate=1 + self.dice.uniform(-drift, drift) / 2), SimulatedClients(self)
            )
            for number in STORAGE
        }
        self.records = Records()
        self.acknowledged: set[int] = set()
        self.extended_s = float("-inf")
        self.count = {"leases": 0, "falls": 0, "lists": 0, "take-overs": 0}

    # Managers.

    def start(self, node: replica_world.Node) -> None:
        super().start(node)
        number = node.number + 1
        record = NodeRecord(
            NodeId(number),
            pb.NODE_MGMTD,
            incarnation=self.dice.getrandbits(40) | 1,
            lane_address=f"l:{number}",
            grpc_address=f"m:{number}",
        )
        settings = Settings("c", record, CONFIG, sole=True)
        terms = self.terms[node.number] = self._terms(
            settings, lambda: node.engine, clock=node.clock, create=True
        )
        terms.world = self
        report = terms.report(SimulatedClients(self), MANAGERS)
        self.reports[node.number] = asyncio.ensure_future(report)

    async def kill(self, node: replica_world.Node) -> None:
        await super().kill(node)
        terms = self.terms.pop(node.number, None)
        if terms is not None:
            report = self.reports.pop(node.number)
            report.cancel()
            await asyncio.gather(report, return_exceptions=True)
            await terms.finish()

    async def serve(self, node: replica_world.Node, engine: PrimaryEngine) -> None:
        self.count["take-overs"] += 1
        await self.terms[node.number].serve(engine)

    async def answer(self, clients: SimulatedClients, address: str, method, request):
        """What the manager at `address` replies. A process that is paused replies when it continues."""
        await asyncio.sleep(self.dice.uniform(0.0, 0.02))
        node = self.nodes[int(address.partition(":")[2]) - 1]
        if clients.is_cut:
            await asyncio.Event().wait()
        if not node.is_up or node.number not in self.terms:
            raise Unavailable(f"{address}: connection refused")
        terms, running = self.terms[node.number], node.clock.running
        await running.wait()
        sent = type(request).FromString(request.SerializeToString())
        reply = getattr(terms.current, method.attribute)(sent, WHO)
        if inspect.isawaitable(reply):
            reply = await reply
        await running.wait()
        if self.terms.get(node.number) is not terms or clients.is_cut:
            await asyncio.Event().wait()
        await asyncio.sleep(self.dice.uniform(0.0, 0.02))
        return reply

    def changed(self, change: Change, service: Service) -> None:
        """Note what has become true (T1)."""
        for chain in change.chains:
            before = self.records.chains.get(chain.id)
            if before is not None and before.version >= chain.version:
                if not service.is_primary:  # it was paused between storing and publishing
                    return
                self.wrong.append(f"T2: chain {chain.id} has version {chain.version} after {before.version}")
            if before is not None:
                self._check_fallen(before, chain)
        self.records.apply(change)

    def _check_fallen(self, before, chain) -> None:
        still = {member.target for member in chain.serving}
        for member in before.serving:
            if member.target not in still:
                self.count["falls"] += 1
                if self.storage[member.node].serves(chain.id):
                    self.wrong.append(f"T1: node {member.node} fell from chain {chain.id}, and serves")

    # Those who call managers.

    async def client(self, name: int) -> None:
        works = [*(partial(self._store, self.storage[each]) for each in STORAGE)]
        works += [self._administrate, self._extend, self._list_clients]
        await works[name]()

    async def _store(self, node: Storage) -> None:
        interval_s = 0.1
        while True:
            await node.clock.sleep(interval_s)
            node.clients.is_cut = not self.calm and self.dice.random() < (0.8 if node.clients.is_cut else 0.1)
            if not self.calm and self.dice.random() < 0.03:
                node.restart()
            try:
                interval_s = await self._beat(node)
            except (Unavailable, Timeout, Conflict):
                interval_s = 0.2
            except Error as error:
                self.wrong.append(f"node {node.id} ended with {error!r}")
                return

    async def _beat(self, node: Storage) -> float:
        node.sequence += 1
        request = pb.HeartbeatRequest(
            node=pb.Node(id=node.id, kind=pb.NODE_STORAGE, incarnation=node.incarnation),
            sequence=node.sequence,
        )
        for chain, target in node.targets():
            request.targets.add(
                id=target.id,
                chain=chain.id,
                chain_version=chain.version,
                state=node.reported(target.state),
            )
        sent_s = node.clock.monotonic()
        timeout_s = CONFIG.lease_ms / 2000
        reply = await node.clients.call(MANAGERS, methods.Mgmtd.heartbeat, request, timeout_s=timeout_s)
        if reply.lease_ms:
            self.count["leases"] += 1
            lease_s = reply.lease_ms / 1000 * (1 - CONFIG.lease_drift_percent / 100)
            node.leased_until_s = max(node.leased_until_s, sent_s + lease_s)
            self.history.acknowledged[b"%d.%d.%d" % (node.id, node.incarnation, node.sequence)] = 1
        if reply.routing_version != node.table.version:
            await self._take_routing(node, timeout_s=timeout_s)
            return 0.05
        return reply.interval_ms / 1000

    async def _take_routing(self, node: Storage, *, timeout_s: float) -> None:
        request = pb.GetRoutingRequest(known_version=node.table.version)
        routing = await node.clients.call(MANAGERS, methods.Mgmtd.get_routing, request, timeout_s=timeout_s)
        known = node.table.version
        if not node.take(routing):
            self.wrong.append(f"T2: node {node.id} got routing {routing.version} after {known}")

    async def _administrate(self) -> None:
        clients = SimulatedClients(self)
        for table in range(1, TABLES + 1):
            request = pb.CreateChainTableRequest(table=table, replicas=2, chains=1)
            while table not in self.acknowledged:
                await asyncio.sleep(self.dice.uniform(0.1, 3.0))
                try:
                    await clients.call(MANAGERS, methods.Mgmtd.create_chain_table, request, timeout_s=2.0)
                except AlreadyExists:
                    self.acknowledged.add(table)
                except (Unavailable, Timeout, InvalidArgument):  # invalid: not all nodes are known yet
                    continue
                else:
                    self.acknowledged.add(table)
        await asyncio.Event().wait()

    async def _extend(self) -> None:
        clients = SimulatedClients(self)
        request = pb.ExtendClientRequest(client=7, kind=pb.NODE_CLIENT, pid=1)
        while True:
            sent_s = asyncio.get_running_loop().time()
            try:
                await clients.call(MANAGERS, methods.Mgmtd.extend_client, request, timeout_s=2.0)
            except (Unavailable, Timeout):
                await asyncio.sleep(0.1)
                continue
            self.extended_s = sent_s
            await asyncio.sleep(CONFIG.client_extend_interval_ms / 1000)

    async def _list_clients(self) -> None:
        clients = SimulatedClients(self)
        # Both clocks may be wrong, and an answer is under way for some time.
        timeout_s = CONFIG.client_session_timeout_ms / 1000 * 0.95 - 1.0
        while True:
            await asyncio.sleep(self.dice.uniform(0.1, 1.0))
            asked_s = asyncio.get_running_loop().time()
            try:
                found = await clients.call(MANAGERS, methods.Mgmtd.list_clients, Empty(), timeout_s=1.0)
            except (Unavailable, Timeout):
                continue
            if found.bootstrapping:
                continue
            self.count["lists"] += 1
            if asked_s - self.extended_s < timeout_s and not found.clients:
                self.wrong.append(
                    f"T3: a client that extended its session at {self.extended_s} is not listed"
                )

    # Checks.

    def _check_requests(self, stored: dict[bytes, bytes]) -> None:
        engine = MemoryEngine()
        transaction = engine.begin()
        for key, value in stored.items():
            if key.startswith(b"mgmtd/"):
                transaction.put(key, value)
        transaction.commit()
        records = _load(engine.begin())
        for table in sorted(self.acknowledged):
            found = records.tables.get((TableId(table), 1))
            if found is None or not all(chain in records.chains for chain in found.chains):
                self.wrong.append(f"T4: table {table} was acknowledged, and is gone")
        for chain in self.records.chains.values():  # what a term stored last, it may not have published
            if records.chains[chain.id].version < chain.version:
                self.wrong.append(f"T4: chain {chain.id} was published in a version that is not stored")
        for chain in records.chains.values():
            if any(member.state is not Public.SERVING for member in chain.members):
                self.wrong.append(f"T4: chain {chain.id} does not recover")


async def live(world: MgmtdWorld) -> MgmtdWorld:
    return await replica_world.live(world, duration_s=TROUBLE_S, clients=CLIENTS)


@pytest.mark.parametrize("seed", range(SEEDS))
def test_leases_and_records_survive_take_overs(seed):
    world = simulate(live(MgmtdWorld(seed)))
    assert world.wrong == []
    assert all(world.count.values()), world.count
    assert world.acknowledged


# Planted mistakes.


class GrantsForever(ObservedTerms):
    """A manager that another has deposed answers from memory."""

    def _lease_of(self, engine):
        return lambda: True


class StaysInUse(GrantsForever):
    """Both lead: what was primary is asked after its term has ended, too."""

    def _new_service(self, engine):
        service = super()._new_service(engine)
        service.end_term = lambda: None
        return service

    async def serve(self, engine):
        try:
            await super().serve(engine)
        finally:
            self.current.service = self._service


class WithoutWait(ObservedService):
    """Leases that earlier terms granted are not waited for."""

    async def _become_primary(self, lease, begun_s):
        await super()._become_primary(lease, begun_s)
        model = self._term.model
        model.bootstrap_until_s = model.granted_until_s = begun_s
        model.newborn_until = dict.fromkeys(model.records.chains, begun_s)


class VersionsOfOneTerm(ObservedService):
    """Versions of routing begin again with each term."""

    async def _become_primary(self, lease, begun_s):
        await super()._become_primary(lease, begun_s)
        self._term.publisher = Publisher(self._term.model, cluster_id="c", term=1, manager=lease.holder)


class KnowsAllClients(ObservedService):
    """The list of clients is called complete from the beginning of a term."""

    async def _become_primary(self, lease, begun_s):
        await super()._become_primary(lease, begun_s)
        self._term.sessions._started_s = float("-inf")


def _serving_with(service: type[ObservedService]) -> type[ObservedTerms]:
    return type(service.__name__, (ObservedTerms,), {"service_class": service})


@pytest.mark.parametrize(
    "terms",
    [GrantsForever, StaysInUse, *map(_serving_with, (WithoutWait, VersionsOfOneTerm, KnowsAllClients))],
)
def test_planted_mistake_is_found(terms):
    world = partial(MgmtdWorld, terms=terms)
    assert any(simulate(live(world(seed))).wrong for seed in range(SEEDS_MAX))
