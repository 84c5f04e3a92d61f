# ruff: noqa: ARG002 (all handlers have one signature, wire/methods.py)
"""The cluster manager's shell: elections, ticks, writes and handlers around the pure `Model`.

One change is stored at a time, durably, before it becomes true and is published. If a change cannot be stored its
outcome is unknown: this process then stops being primary, and the next one elected reads what is true.

While it is primary it holds a `Term`: model, publisher and client sessions, all of them new in every term.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import dataclass, field, replace
from math import ceil
from typing import Final, TypeVar

from ..clock import Clock, SystemClock
from ..config import ClusterConfig, MgmtdConfig, check_times, longest_lease_ms
from ..errors import ConfigError, CorruptData, Error, Unavailable, Unsupported
from ..ids import ChainId, NodeId, TableId
from ..wire.adoption import AdoptedConfig
from ..wire.audit import NO_AUDIT, AuditLog
from ..wire.authority import Authority
from ..wire.credentials import Identity
from ..wire.pb import mgmtd_pb2 as pb
from ..wire.pb.common_pb2 import Empty
from ..wire.rpc import caller_names
from ..wire.tls import Tls
from . import configs
from .certificates import Certificates
from .domains import domain_of, level_name, widest_level
from .model import Model
from .placement import Site, default_chains, place_aside, weights_of
from .records import Change, NodeRecord, StoreMark
from .revocations import all_revoked, revoke
from .routing import Publisher
from .sessions import Sessions
from .store import Lease, Store

log = logging.getLogger("luciola.mgmtd")

T = TypeVar("T")

PRIMARY_LEASE_S: Final = 5.0  # how long clients wait for a standby when a primary falls silent
PRIMARY_RENEW_S: Final = 1.0  # four renewals may fail
PRIMARY_DRIFT: Final = 0.05  # of the clocks of two managers
STORE_FAILED_S: Final = 10.0  # a store that fails for so long needs the process to be started again
WAIT_MS_MAX: Final = 60_000  # of one long poll
KEEP_ALIVE_S: Final = 20.0  # of a stream without updates: finds out whether a client still listens
UNHEARD_INTERVAL_MS: Final = 100  # between heartbeats while no node has a lease
WAITERS_MAX: Final = 100_000  # polls and streams that wait for changes
assert 4 * PRIMARY_RENEW_S < PRIMARY_LEASE_S * (1 - PRIMARY_DRIFT), "four renewals may fail"
assert PRIMARY_LEASE_S * (1 + PRIMARY_DRIFT) < STORE_FAILED_S, "others take over from one whose store fails"
assert UNHEARD_INTERVAL_MS < PRIMARY_RENEW_S * 1000, "nodes without a lease report soon"


@dataclass
class Term:
    """What a primary has."""

    lease: Lease
    valid_until_s: float
    model: Model
    publisher: Publisher
    sessions: Sessions
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    was_bootstrapping: bool = True
    adopted: dict[int, pb.ConfigState] = field(default_factory=dict)  # by node, as they report


@dataclass(frozen=True)
class Settings:
    """Who this manager is, and what its servers ask about tokens.

    `sole`: no other process can write to the store, so no other holder can be alive.
    `adopted`: where `config` comes from, if it changes while this manager runs.
    `tls`, `certificates`: of a cluster of several machines. `audit`: where calls are written down.
    """

    cluster_id: str
    node: NodeRecord
    config: MgmtdConfig = field(default_factory=MgmtdConfig)
    sole: bool = False
    authority: Authority = field(default_factory=lambda: Authority({}))
    tls: Tls | None = None
    certificates: Certificates | None = None
    audit: AuditLog = NO_AUDIT
    adopted: AdoptedConfig | None = None


class Service:
    """Serves `wire.methods.Mgmtd`. `run` must be running.

    `is_leased`: where the store is this process's only under a lease on its log, whether it is at this moment.
    """

    def __init__(
        self,
        store: Store,
        settings: Settings,
        *,
        is_leased: Callable[[], bool] | None = None,
        clock: Clock | None = None,
    ) -> None:
        adopted = settings.adopted
        config = settings.config if adopted is None else adopted.config.mgmtd
        check_times(config)
        self._store = store
        self._settings = settings
        self._is_leased = is_leased
        self._config = config
        self._clock = clock or SystemClock()
        self._term: Term | None = None
        self._lock = asyncio.Lock()
        self._seen: Lease | None = None
        self._seen_s = self._clock.monotonic()
        self._waiters = 0
        self._is_ending = False
        self._snapshots = asyncio.Lock()
        self._writes: set[asyncio.Task[object]] = set()
        self._refusal: asyncio.Queue[ConfigError] = asyncio.Queue()
        if adopted is not None:
            adopted.on_change(self._configure)

    # Handlers.

    def get_routing(
        self, request: pb.GetRoutingRequest, identity: Identity
    ) -> pb.Routing | Awaitable[pb.Routing]:
        term = self._primary()
        if request.wait_ms and request.known_version == term.publisher.version:
            return self._wait_routing(request)
        if not term.publisher.has_delta(request.known_version):
            return self._whole_routing(request)
        return self._routing(term, request.known_version)

    async def stream_routing(
        self,
        request: pb.GetRoutingRequest,
        identity: Identity,
    ) -> AsyncIterator[pb.Routing]:
        known = request.known_version
        routing = await self._whole_routing(request)
        while True:
            # As of a moment not before that of `routing`: what is newer comes again with the next.
            routing = self._primary().publisher.for_service(routing, known=known)
            known = routing.version
            yield routing
            await self._wait_news(known, KEEP_ALIVE_S)
            routing = self._routing(self._primary(), known)

    def heartbeat(
        self,
        request: pb.HeartbeatRequest,
        identity: Identity,
    ) -> pb.HeartbeatReply | Awaitable[pb.HeartbeatReply]:
        received_s = self._clock.monotonic()
        term = self._primary()
        if request.outdated:
            raise self._refuse(request)
        model = term.model
        registration = model.registration(request.node, request.directory_incarnations, request.engine)
        if registration or model.due_mark(request, now_s=received_s) or model.due_engine(request):
            return self._register(request, received_s)
        return self._hear(term, request, received_s)

    def check_store(self, request: pb.StoreMark, identity: Identity) -> pb.CheckStoreReply:
        model = self._primary().model
        silent_nodes = model.silent_nodes(self._clock.monotonic())
        if not silent_nodes:
            model.check_meta_store(StoreMark.from_pb(request))
        return pb.CheckStoreReply(may_serve=not silent_nodes)

    def extend_client(self, request: pb.ExtendClientRequest, identity: Identity) -> pb.ExtendClientReply:
        term = self._primary()
        now_s = self._clock.monotonic()
        term.sessions.extend(request, identity, now_s=now_s, unix_ms=self._clock.unix_ns() // 1_000_000)
        return pb.ExtendClientReply(
            interval_ms=self._config.client_extend_interval_ms,
            session_timeout_ms=self._config.client_session_timeout_ms,
        )

    def list_clients(self, request: Empty, identity: Identity) -> pb.ListClientsReply:
        unix_ms = self._clock.unix_ns() // 1_000_000
        return self._primary().sessions.list(now_s=self._clock.monotonic(), unix_ms=unix_ms)

    async def create_chain_table(
        self, request: pb.CreateChainTableRequest, identity: Identity
    ) -> pb.ChainTable:
        model = self._primary().model
        model.check_new_table(request)  # placing may take a minute
        nodes = [
            node
            for node in sorted(model.records.nodes.values(), key=lambda node: node.id)
            if node.kind == pb.NODE_STORAGE and not node.leaving
            if model.lives[node.id].status == pb.CONNECTED
        ]
        level = request.domain or widest_level(nodes, domains=request.replicas)
        roomy = [node for node in nodes if not model.is_full(node.id)]
        domains = len({domain_of(node, level) for node in nodes})
        if len(roomy) >= request.replicas and len({domain_of(node, level) for node in roomy}) >= min(
            domains, request.replicas
        ):
            nodes = roomy
        chains = request.chains or default_chains(len(nodes) or 1, request.replicas or 1)
        sites = [
            Site(node.id, domain_of(node, level), weight)
            for node, weight in zip(
                nodes, weights_of([model.room_bytes(node.id) for node in nodes]), strict=True
            )
        ]
        placed = await self._place(sites, replicas=request.replicas, chains=chains)
        term = await self._change(
            lambda model: model.new_table(request, placed, level=level, now_s=self._clock.monotonic())
        )
        log.info(
            "chain table %d: %d chains of %d, each copy on another %s",
            *(request.table, chains, request.replicas, level_name(level)),
        )
        return term.model.records.tables[TableId(request.table), 1].to_pb()

    async def update_chain(self, request: pb.UpdateChainRequest, identity: Identity) -> pb.Chain:
        term = await self._change(lambda model: model.updated_chain(request, now_s=self._clock.monotonic()))
        log.info("chain %d: %s", request.chain, pb.UpdateChainRequest.Action.Name(request.action))
        return term.publisher.chain(ChainId(request.chain))

    async def start_moves(self, request: pb.StartMovesRequest, identity: Identity) -> pb.MovesStatus:
        term = await self._change(lambda model: model.moves.started(request))
        log.info(
            "rebalance: %d moves, %d at once", len(request.moves), term.model.records.rebalance.concurrent
        )
        return term.model.moves.status()

    async def control_moves(self, request: pb.ControlMovesRequest, identity: Identity) -> pb.MovesStatus:
        term = await self._change(lambda model: model.moves.controlled(request.action))
        if request.action != pb.ControlMovesRequest.STATUS:
            log.info("rebalance: %s", pb.ControlMovesRequest.Action.Name(request.action))
        return term.model.moves.status()

    async def set_node_disabled(self, request: pb.SetNodeDisabledRequest, identity: Identity) -> pb.Node:
        node = NodeId(request.node)
        term = await self._change(
            lambda model: model.disabled_node(
                node, disabled=request.disabled, accept_unavailable=request.accept_unavailable
            )
        )
        log.info("node %d: %s", node, "disabled" if request.disabled else "enabled")
        return term.publisher.node(node)

    async def drain_node(self, request: pb.DrainNodeRequest, identity: Identity) -> pb.Node:
        term = await self._change(lambda model: model.healing.drained(request))
        log.info("node %d: %s", request.node, "drained" if request.drained else "not drained any more")
        return term.publisher.node(request.node)

    async def reserve_node(self, request: pb.ReserveNodeRequest, identity: Identity) -> pb.Node:
        reserved: list[NodeRecord] = []

        def decide(model: Model) -> Change:
            reserved[:] = [model.reserved(request.kind, request.host)]
            return Change(nodes=tuple(reserved))

        await self._change(decide)
        log.info("node %d: reserved for %s", reserved[0].id, request.host)
        return reserved[0].to_pb()

    def issue_certificate(
        self, request: pb.IssueCertificateRequest, identity: Identity
    ) -> pb.IssueCertificateReply:
        self._primary()  # one after the other, so that who asks finds one that answers
        if self._settings.certificates is None:
            raise Unsupported("this cluster has no certificates: `luciola init` makes clusters that do")
        return self._settings.certificates.issue(request, caller_names())

    async def unregister_node(self, request: pb.NodeRequest, identity: Identity) -> Empty:
        await self._change(lambda model: model.unregistered(NodeId(request.node)))
        log.info("node %d: unregistered", request.node)
        return Empty()

    def process_ended(self, request: pb.ProcessEndedRequest, identity: Identity) -> Empty:
        term = self._primary()
        if term.model.ended(request):
            log.info("node %d: process %d has ended", request.node, request.pid)
            self._publish(term, Change())
        return Empty()

    async def revoke_tokens(self, request: pb.Revocations, identity: Identity) -> Empty:
        now_unix_s = self._clock.unix_ns() // 1_000_000_000
        await self._change(lambda model: revoke(model.records, request, now_unix_s=now_unix_s))
        for token in request.tokens:
            log.info("token %s: revoked", token.id.hex())
        for each in request.minted_before:
            log.info("key %d: tokens made before %d are revoked", each.key_id, each.minted_unix_s)
        return Empty()

    def list_revoked(self, request: Empty, identity: Identity) -> pb.Revocations:
        return all_revoked(self._primary().model.records)

    async def set_config(self, request: pb.SetConfigRequest, identity: Identity) -> pb.ConfigVersion:
        adopted = self._settings.adopted

        def decide(model: Model) -> Change:
            return configs.changed(
                model.records,
                request,
                own={} if adopted is None else adopted.own,
                author=configs.author_of(identity),
                unix_ms=self._clock.unix_ns() // 1_000_000,
                seen=self._highest_adopted(),
            )

        term = await self._change(decide)
        version = configs.current(term.model.records)
        log.info("settings of the cluster: version %d by %s", version.version, version.author)
        if adopted is not None:
            adopted.take(version)
        return version

    def _highest_adopted(self) -> int:
        """Return the highest version of the settings that a process has, as far as this term has heard (C1)."""
        own = self._settings.adopted
        reported = (state.version for state in self._primary().adopted.values())
        return max(*reported, 0, 0 if own is None else own.state().version)

    def get_config(self, request: Empty, identity: Identity) -> pb.ConfigVersion:
        return configs.current(self._primary().model.records)

    def list_config(self, request: Empty, identity: Identity) -> pb.ConfigStatus:
        term = self._primary()
        records = term.model.records
        states = dict(term.adopted)
        if self._settings.adopted is not None:
            states[self._settings.node.id] = self._settings.adopted.state()
        status = pb.ConfigStatus(history=[records.configs[number] for number in sorted(records.configs)])
        for node in sorted(records.nodes):
            published = term.publisher.node(node)
            status.nodes.add(node=node, kind=published.kind, status=published.status, state=states.get(node))
        return status

    # What handlers share.

    @property
    def is_primary(self) -> bool:
        """Whether this process may decide and grant, by its own clock (E3)."""
        if self._term is None:
            return False
        if self._is_leased is not None:
            return self._is_leased()
        # Where no other process can take the lease, a store that stalls must not end the leases of all nodes.
        return self._settings.sole or self._clock.monotonic() < self._term.valid_until_s

    @property
    def current_term(self) -> Term | None:
        """What this process has while it is primary."""
        return self._term if self.is_primary else None

    def _configure(self, config: ClusterConfig) -> None:
        """Use hot keys from now on."""
        assert longest_lease_ms(config.mgmtd) == longest_lease_ms(self._config), "L3: a lease is not hot"
        self._config = config.mgmtd
        if self._term is not None:
            self._term.model.config = config.mgmtd

    def _primary(self) -> Term:
        if self._term is None or not self.is_primary:
            other = self._seen
            raise Unavailable(
                "this manager is not the primary now",
                primary=other.grpc_address if other is not None else "",
                primary_lane=other.lane_address if other is not None else "",
            )
        return self._term

    async def _place(self, sites: list[Site], *, replicas: int, chains: int) -> list[tuple[int, ...]]:
        return await place_aside(sites, replicas=replicas, chains=chains)

    def _routing(self, term: Term, known: int) -> pb.Routing:
        return term.publisher.since(known, now_s=self._clock.monotonic())

    async def _whole_routing(self, request: pb.GetRoutingRequest) -> pb.Routing:
        """One at a time: after a restart a thousand clients ask at once, and heartbeats must not wait for all."""
        asked_s = self._clock.monotonic()
        async with self._snapshots:
            await asyncio.sleep(0)
            publisher = self._primary().publisher
            return publisher.since(request.known_version, now_s=self._clock.monotonic(), asked_s=asked_s)

    async def _wait_routing(self, request: pb.GetRoutingRequest) -> pb.Routing:
        await self._wait_news(request.known_version, min(request.wait_ms, WAIT_MS_MAX) / 1000)
        return self._routing(self._primary(), request.known_version)

    async def _wait_news(self, known: int, duration_s: float) -> None:
        """Return when the version is not `known` any more, or after `duration_s`. Raises: Unavailable at the end."""
        self._refuse_to_wait_at_end()
        term = self._primary()
        if term.publisher.version != known:
            return
        if self._waiters >= WAITERS_MAX:
            raise Unavailable("too many calls wait for changes of routing; try again later")
        self._waiters += 1
        changed = asyncio.ensure_future(term.changed.wait())
        late = asyncio.ensure_future(self._clock.sleep(duration_s))
        try:
            await asyncio.wait((changed, late), return_when=asyncio.FIRST_COMPLETED)
        finally:
            self._waiters -= 1
            changed.cancel()
            late.cancel()
        self._refuse_to_wait_at_end()

    def _refuse_to_wait_at_end(self) -> None:
        if self._is_ending:
            raise Unavailable("this manager is being stopped")

    async def _register(self, request: pb.HeartbeatRequest, received_s: float) -> pb.HeartbeatReply:
        def decide(model: Model) -> Change:
            registration = model.registration(request.node, request.directory_incarnations, request.engine)
            return replace(
                registration,
                meta_store=model.due_mark(request, now_s=received_s),
                engines=model.due_engine(request),
            )

        term = await self._change(decide)
        return self._hear(term, request, received_s)

    def _refuse(self, request: pb.HeartbeatRequest) -> ConfigError:
        """Stop when a storage node has seen a newer store than ours: nothing may be decided with ours any more."""
        error = ConfigError(
            f"mgmtd's store is older than the cluster: node {request.node.id} has seen {request.outdated}",
            older="mgmtd",
        )
        self._refusal.put_nowait(error)
        return error

    def _hear(self, term: Term, request: pb.HeartbeatRequest, received_s: float) -> pb.HeartbeatReply:
        result = term.model.receive(request, now_s=received_s)
        self._publish(term, Change())
        if self._primary() is not term:
            raise Unavailable("the primary has changed")
        reply = pb.HeartbeatReply(
            routing_version=term.publisher.version,
            lease_ms=result.lease_ms,
            interval_ms=self._config.heartbeat_interval_ms,
            config_version=configs.current(term.model.records).version,
        )
        if request.HasField("config"):
            term.adopted[request.node.id] = request.config
        if term.model.silent_nodes(received_s):  # no lease before all have reported: ask again at once
            reply.interval_ms = min(reply.interval_ms, UNHEARD_INTERVAL_MS)
        if request.node.kind == pb.NODE_STORAGE and term.model.records.meta_store is not None:
            reply.meta_store.CopyFrom(term.model.records.meta_store.to_pb())
        return reply

    # Writing.

    async def _change(self, decide: Callable[[Model], Change]) -> Term:
        """Decide with the model as it is when it is our turn; store, apply and publish. Return the term of that."""
        return await self._undisturbed(self._change_in_turn(decide))

    async def _change_in_turn(self, decide: Callable[[Model], Change]) -> Term:
        async with self._lock:
            term = self._primary()
            change = decide(term.model)
            if change:
                await self._keep(term, change)
            return term

    async def _undisturbed(self, work: Coroutine[object, None, T]) -> T:
        """Finish `work` even if its caller is cancelled: a write must not be stored and not applied."""
        task = asyncio.ensure_future(work)
        self._writes.add(task)
        task.add_done_callback(self._end_write)
        return await asyncio.shield(task)

    def _end_write(self, task: asyncio.Task[T]) -> None:
        self._writes.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def _keep(self, term: Term, change: Change) -> None:
        try:
            await self._store.save(change, term.lease)
        except Error as error:
            self._step_down(term, error)
            raise Unavailable("the change may not have been stored; ask the next primary") from error
        if self._term is not term:
            raise Unavailable("this manager stopped being primary while it stored the change")
        try:
            term.model.apply(change)
            if change.revokes:
                self._settings.authority.set_revocations(all_revoked(term.model.records))
            self._publish(term, change)
        except BaseException as error:
            # The records are right, the model may not be: the next term makes a new one.
            self._step_down(term, repr(error))
            raise

    def _publish(self, term: Term, change: Change) -> None:
        if term.publisher.publish(change):
            self._wake(term)

    def _wake(self, term: Term) -> None:
        term.changed.set()
        term.changed = asyncio.Event()

    def end_term(self) -> None:
        """Refuse everything from now on, also to those who wait for changes: another process may be primary."""
        if self._term is not None:
            self._step_down(self._term, "its term on the log has ended")

    def release_waiting(self) -> None:
        """End the calls that wait for changes: a server that is being stopped would wait for them."""
        self._is_ending = True
        if self._term is not None:
            self._wake(self._term)

    async def finish_writes(self) -> None:
        """Return when nothing is being stored any more; call it before the engine is closed."""
        while self._writes:
            await asyncio.wait(self._writes)

    async def keep_engines(self) -> None:
        """Store how far storage nodes have come, before this process ends; call it when nothing else runs."""
        if self._term is not None and self._term.model.engines:
            change = Change(engines=tuple(self._term.model.engines.items()))
            try:
                await self._store.save(change, self._term.lease)
            except Error as error:
                log.warning(
                    "storing marks of storage nodes failed: %s; tried again with the next heartbeats", error
                )

    # Running.

    async def run(self) -> None:
        """Take part in elections and look at the chains, until it is cancelled.

        Raises: Unavailable if the store has failed for long: the process must be started again; ConfigError if
        the records belong to another cluster, or are older than what a storage node has seen; CorruptData if they are
        missing or cannot be read.
        """
        tasks = [asyncio.ensure_future(work()) for work in (self._campaign, self._watch, self._await_refusal)]
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in done:
                task.result()  # neither ends but by an error
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _await_refusal(self) -> None:
        raise await self._refusal.get()

    async def _campaign(self) -> None:
        failed_since_s: float | None = None
        while True:
            try:
                await self._undisturbed(self._renew_or_take())
                failed_since_s = None
            except (ConfigError, CorruptData):
                raise
            except Error as error:
                now_s = self._clock.monotonic()
                failed_since_s = now_s if failed_since_s is None else failed_since_s
                log.warning("key-value store failed: %s; election is tried again", error)
                if now_s - failed_since_s > STORE_FAILED_S:
                    raise
            await self._clock.sleep(PRIMARY_RENEW_S)

    async def _renew_or_take(self) -> None:
        async with self._lock:
            begun_s = self._clock.monotonic()
            term = self._term
            if term is not None:
                granted_ms = self._granted_ms(term.lease if begun_s < term.model.granted_until_s else None)
                if self._is_leased is not None and granted_ms == term.lease.granted_ms:
                    return  # a record of the log every second would say nothing
                try:
                    term.lease = await self._store.renew(replace(term.lease, granted_ms=granted_ms))
                    assert term.lease.granted_ms >= longest_lease_ms(self._config), "L3: no lease is longer"
                except Error as error:
                    if not self.is_primary or isinstance(error, Unavailable):
                        self._step_down(term, error)
                    raise
                term.valid_until_s = begun_s + PRIMARY_LEASE_S * (1 - PRIMARY_DRIFT)
                return
            found = await self._store.lease()
            if found != self._seen:
                self._seen, self._seen_s = found, begun_s
            silent_s = begun_s - self._seen_s
            if found is None or self._settings.sole or silent_s >= PRIMARY_LEASE_S * (1 + PRIMARY_DRIFT):
                node = self._settings.node
                mine = Lease(
                    node.incarnation,
                    0,
                    granted_ms=self._granted_ms(found),
                    lane_address=node.lane_address,
                    grpc_address=node.grpc_address,
                )
                taken = await self._store.take(found, mine)
                if taken is not None:
                    await self._become_primary(taken, begun_s)

    async def _become_primary(self, lease: Lease, begun_s: float) -> None:
        records = await self._store.load()
        change = Change(nodes=(self._settings.node,))
        await self._store.save(change, lease)
        records.apply(change)
        now_s = self._clock.monotonic()
        model = Model(self._config, records, now_s=now_s, granted_ms=lease.granted_ms)
        own = model.lives[self._settings.node.id]
        own.status, own.reported_s = pb.CONNECTED, float("inf")
        timeout_s = self._config.client_session_timeout_ms / 1000
        self._settings.authority.set_revocations(all_revoked(records))
        self._term = Term(
            lease=lease,
            valid_until_s=begun_s + PRIMARY_LEASE_S * (1 - PRIMARY_DRIFT),
            model=model,
            publisher=Publisher(
                model, cluster_id=self._settings.cluster_id, term=lease.term, manager=lease.holder
            ),
            sessions=Sessions(timeout_s=timeout_s, now_s=now_s),
        )
        self._seen = lease
        if self._settings.adopted is not None:
            self._settings.adopted.take(configs.current(records))
        log.info(
            "primary in term %d: %d nodes, %d chains; chains are frozen until their nodes have reported, or for %d ms",
            *(lease.term, len(records.nodes), len(records.chains), self._config.bootstrap_ms),
        )

    def _granted_ms(self, lease: Lease | None) -> int:
        """The longest lease that a node may have: from this manager, or an earlier one with another configuration."""
        own_ms = ceil(longest_lease_ms(self._config))
        return own_ms if lease is None else max(own_ms, lease.granted_ms)

    def _step_down(self, term: Term, reason: object) -> None:
        if self._term is term:
            log.warning("primary role lost: %s", reason)
            self._term = None
            self._wake(term)

    async def _watch(self) -> None:
        while True:
            if self.is_primary:
                with suppress(Unavailable):  # logged where it stepped down
                    await self._undisturbed(self._look())
            await self._clock.sleep(self._config.chain_check_interval_ms / 1000)

    async def _look(self) -> None:
        async with self._lock:
            term = self._primary()
            now_s = self._clock.monotonic()
            change = term.model.look(now_s=now_s)
            for node in term.model.touched:
                log.info("node %d: %s", node, pb.NodeStatus.Name(term.model.lives[node].status))
            for known in change.nodes:
                if known.leaving == pb.OUT:
                    log.warning("node %d: out, its replicas are moved to other nodes", known.id)
            for chain in change.chains:
                states = " ".join(f"{member.target}={member.state.name}" for member in chain.members)
                log.info("chain %d version %d: %s", chain.id, chain.version, states)
            self._publish(term, Change())
            if change:
                await self._keep(term, change)
            if term.was_bootstrapping and not term.model.is_bootstrapping(now_s):
                term.was_bootstrapping = False
                term.publisher.bump()
                self._wake(term)


__all__ = ["Service", "Settings"]
