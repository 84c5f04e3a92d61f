"""The rules of heartbeats and leases, one a test; test_simulation.py explores their combinations."""

from dataclasses import replace

import pytest

from luciola.config import MgmtdConfig, longest_lease_ms
from luciola.errors import AlreadyExists, Busy, ConfigError, Conflict, InvalidArgument, NotFound
from luciola.ids import EMBEDDED_EPOCH, ChainId, NodeId, TargetId
from luciola.mgmtd.model import MARK_INTERVAL_S, Model
from luciola.mgmtd.records import Change, Labels, Move, NodeRecord, Records, StoreMark
from luciola.states import Public
from luciola.wire.pb import mgmtd_pb2 as pb

CONFIG = MgmtdConfig()
LEASE_S = longest_lease_ms(CONFIG) / 1000
UPTODATE, ONLINE, OFFLINE = pb.LOCAL_UPTODATE, pb.LOCAL_ONLINE, pb.LOCAL_OFFLINE
HEAD, TAIL = 1000, 1001
CHAIN = 100_001


class Manager:
    """A model whose changes are stored at once."""

    def __init__(self, records: Records | None = None, *, now_s: float = 100.0) -> None:
        self.now_s = now_s
        self.stored = records or Records()
        self.model = Model(CONFIG, self.stored, now_s=now_s)
        self.sequence = 0

    def keep(self, change: Change) -> Change:
        self.model.apply(change)
        return change

    def wait(self, duration_s: float) -> None:
        end = self.now_s + duration_s
        while self.now_s < end:
            self.now_s = min(end, self.now_s + 0.1)
            self.keep(self.model.look(now_s=self.now_s))

    def beat(
        self,
        node: int,
        *reports: tuple,
        incarnation: int = 1,
        kind: int = pb.NODE_STORAGE,
        epoch: int = 0,
        **fields,
    ):
        self.sequence += 1
        sender = pb.Node(id=node, kind=kind, incarnation=incarnation, epoch=epoch)
        request = pb.HeartbeatRequest(**{"sequence": self.sequence, **fields}, node=sender)
        for target, version, state, *held in reports:
            data = dict(zip(("data", "updates"), held, strict=False))
            request.targets.add(id=target, chain=target // 1000, chain_version=version, state=state, **data)
        self.keep(self.model.registration(request.node))
        return self.model.receive(request, now_s=self.now_s)

    @property
    def states(self) -> dict[int, Public]:
        return {member.node: member.state for member in self.model.records.chains[CHAIN].members}

    @property
    def version(self) -> int:
        return self.model.records.chains[CHAIN].version

    def restart(self) -> "Manager":
        return Manager(self.stored, now_s=self.now_s)


def target(node: int) -> int:
    return CHAIN * 1000 + 1 + (node - HEAD)


@pytest.fixture
def manager() -> Manager:
    """One chain on two healthy nodes."""
    made = Manager()
    for node in (HEAD, TAIL):
        made.beat(node)
    request = pb.CreateChainTableRequest(table=1, replicas=2)
    made.keep(made.model.new_table(request, [(HEAD, TAIL)], now_s=made.now_s))
    for node in (HEAD, TAIL):
        made.beat(node, (target(node), 1, UPTODATE))
    made.wait(0.1)
    assert made.states == {HEAD: Public.SERVING, TAIL: Public.SERVING}
    return made


# Leases.


def test_heartbeat_grants_a_lease(manager):
    assert manager.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms == CONFIG.lease_ms


def test_silent_node_keeps_its_place_until_its_lease_has_run_out_on_the_slowest_clock(manager):
    manager.beat(TAIL, (target(TAIL), 1, UPTODATE))
    for _ in range(30):
        manager.wait(0.1)
        manager.beat(HEAD, (target(HEAD), 1, UPTODATE))
    manager.wait(LEASE_S - 3.0 - 0.05)
    assert manager.states[TAIL] is Public.SERVING
    manager.wait(0.2)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}
    assert manager.model.lives[TAIL].status == pb.FAILED


def test_node_that_has_not_received_its_removal_gets_no_lease(manager):
    manager.model.end(TAIL)
    manager.wait(0.1)
    manager.beat(TAIL, incarnation=2)
    assert manager.beat(TAIL, (target(TAIL), 1, UPTODATE), incarnation=2).lease_ms == 0
    assert manager.beat(TAIL, (target(TAIL), manager.version, ONLINE), incarnation=2).lease_ms > 0


def test_no_lease_is_granted_while_the_removal_is_being_stored(manager):
    for _ in range(35):
        manager.now_s += 0.1
        manager.beat(HEAD, (target(HEAD), 1, UPTODATE))
        change = manager.model.look(now_s=manager.now_s)
        if change:
            break
        manager.keep(change)
    assert change, "the tail should have been found dead"
    assert manager.beat(TAIL, (target(TAIL), 1, UPTODATE)).lease_ms == 0
    manager.keep(change)
    assert manager.states[TAIL] is Public.OFFLINE


def test_report_of_a_replica_of_another_node_that_is_falling_is_no_mistake_of_the_manager(manager):
    manager.now_s += LEASE_S + 0.1
    manager.model.looked_s = manager.now_s
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE))
    change = manager.model.look(now_s=manager.now_s)
    assert change.chains, "the tail should have been found dead"
    stranger = (target(TAIL), 1, ONLINE)
    assert manager.beat(HEAD, (target(HEAD), 1, UPTODATE), stranger).lease_ms == 0
    manager.keep(change)
    assert manager.beat(HEAD, (target(HEAD), 1, UPTODATE), stranger).lease_ms > 0


def test_replica_that_was_removed_from_its_chain_denies_the_lease_to_a_node_that_still_serves_it(manager):
    manager.model.end(TAIL)
    manager.wait(0.1)
    request = pb.UpdateChainRequest(chain=CHAIN, action=pb.UpdateChainRequest.REMOVE, target=target(TAIL))
    manager.keep(manager.model.updated_chain(request, now_s=manager.now_s))
    assert manager.beat(TAIL, (target(TAIL), 1, UPTODATE), incarnation=2).lease_ms == 0
    assert manager.beat(TAIL, incarnation=2).lease_ms > 0


def test_manager_that_was_stopped_itself_declares_no_node_failed(manager):
    manager.now_s += 10
    assert not manager.keep(manager.model.look(now_s=manager.now_s)).chains
    manager.wait(LEASE_S - 0.3)
    assert manager.states[TAIL] is Public.SERVING


def test_disabled_node_gets_no_lease_and_falls_when_the_last_one_has_run_out(manager):
    manager.keep(manager.model.disabled_node(TAIL, disabled=True))
    assert manager.beat(TAIL, (target(TAIL), 1, UPTODATE)).lease_ms == 0
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE))
    manager.wait(2.0)
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE))
    assert manager.states[TAIL] is Public.SERVING
    manager.wait(LEASE_S - 2.0 + 0.1)
    assert manager.states[TAIL] is Public.OFFLINE
    assert manager.model.lives[TAIL].status == pb.DISABLED
    manager.keep(manager.model.disabled_node(TAIL, disabled=False))
    manager.beat(TAIL, (target(TAIL), manager.version, ONLINE))
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SYNCING


# Ends of processes.


def test_clean_stop_hands_over_at_once(manager):
    assert manager.beat(HEAD, (target(HEAD), 1, OFFLINE), leaving=True).lease_ms == 0
    manager.wait(0.1)
    assert manager.states == {TAIL: Public.SERVING, HEAD: Public.OFFLINE}
    with pytest.raises(InvalidArgument, match="has ended"):
        manager.beat(HEAD, (target(HEAD), 1, UPTODATE))


def test_reaped_process_is_not_waited_for(manager):
    assert manager.model.ended(pb.ProcessEndedRequest(node=HEAD, incarnation=1))
    manager.wait(0.1)
    assert manager.states == {TAIL: Public.SERVING, HEAD: Public.OFFLINE}


def test_report_of_an_older_process_that_ended_changes_nothing(manager):
    manager.beat(HEAD, incarnation=2)
    manager.wait(0.1)
    version = manager.version
    assert not manager.model.ended(pb.ProcessEndedRequest(node=HEAD, incarnation=1))
    assert not manager.model.ended(pb.ProcessEndedRequest(node=77, incarnation=1))
    manager.wait(0.1)
    assert manager.version == version


def test_new_incarnation_passes_through_offline_with_any_report(manager):
    manager.beat(TAIL, (target(TAIL), 1, UPTODATE), incarnation=2)
    manager.beat(TAIL, (target(TAIL), 1, UPTODATE), incarnation=2)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}
    assert manager.version == 2
    manager.beat(TAIL, (target(TAIL), 1, ONLINE), incarnation=2)  # about an older version: ignored
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.OFFLINE
    manager.beat(TAIL, (target(TAIL), 2, ONLINE), incarnation=2)
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SYNCING


def test_manager_that_crashes_remembers_that_a_new_process_has_to_fall(manager):
    manager.beat(
        TAIL, (target(TAIL), 1, UPTODATE), incarnation=2
    )  # stored, but no look at the chains follows
    after = manager.restart()
    after.sequence = 100
    after.beat(HEAD, (target(HEAD), 1, UPTODATE))
    assert after.beat(TAIL, (target(TAIL), 1, UPTODATE), incarnation=2).lease_ms == 0
    after.wait(0.1)
    assert after.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}
    after.wait(0.1)
    assert not after.model.records.nodes[TAIL].unsettled


def test_late_message_of_an_earlier_process_does_not_replace_a_live_one(manager):
    manager.beat(HEAD, incarnation=5)
    with pytest.raises(InvalidArgument, match="was replaced"):
        manager.beat(HEAD, incarnation=4)
    manager.wait(LEASE_S + 0.1)  # the later one is silent: that machine's clock was set back
    manager.beat(HEAD, incarnation=4)
    assert manager.model.records.nodes[HEAD].incarnation == 4


def test_everybody_who_falls_together_may_come_back_first(manager):
    for node in (HEAD, TAIL):
        manager.model.end(node)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.LASTSRV}
    manager.beat(TAIL, (target(TAIL), 2, ONLINE), incarnation=2)
    manager.wait(0.1)
    assert manager.states == {TAIL: Public.SERVING, HEAD: Public.OFFLINE}


# Reports.


def test_replica_that_is_not_reported_any_more_is_offline(manager):
    manager.beat(TAIL)
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.OFFLINE


def test_unfinished_synchronisation_under_an_older_version_does_not_count(manager):
    manager.beat(TAIL, (target(TAIL), 1, OFFLINE))
    manager.wait(0.1)
    manager.beat(TAIL, (target(TAIL), 2, ONLINE))
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SYNCING
    manager.beat(TAIL, (target(TAIL), 2, UPTODATE))
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SYNCING
    manager.beat(TAIL, (target(TAIL), 3, UPTODATE))
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SERVING


def test_reports_about_replicas_of_other_nodes_and_unknown_ones_are_ignored(manager):
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE), (target(TAIL), 1, OFFLINE), (999, 1, OFFLINE))
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SERVING}


def test_malformed_heartbeats_are_refused(manager):
    with pytest.raises(InvalidArgument, match="twice"):
        manager.beat(HEAD, (target(HEAD), 1, UPTODATE), (target(HEAD), 1, ONLINE))
    with pytest.raises(InvalidArgument, match="no valid state"):
        manager.beat(HEAD, (target(HEAD), 1, pb.LOCAL_INVALID))
    with pytest.raises(InvalidArgument, match="neither of which"):
        manager.beat(0)
    with pytest.raises(InvalidArgument, match="neither of which"):
        manager.beat(HEAD, incarnation=0)
    with pytest.raises(InvalidArgument, match="is a NODE_STORAGE"):
        manager.beat(HEAD, kind=pb.NODE_META)
    assert manager.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms > 0


def test_stale_heartbeat_is_refused_with_the_sequence_to_continue_from(manager):
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE), sequence=50)
    for sequence in (49, 50):
        with pytest.raises(Conflict) as caught:
            manager.beat(HEAD, (target(HEAD), 1, OFFLINE), sequence=sequence)
        assert caught.value.fields == {"sequence": "50"}
    manager.wait(0.1)
    assert manager.states[HEAD] is Public.SERVING


# Starting.


def test_restarted_manager_waits_for_leases_it_did_not_grant(manager):
    after = manager.restart()
    after.sequence = 100
    after.beat(HEAD, (target(HEAD), 1, UPTODATE))
    for _ in range(39):
        after.wait(0.1)
        after.beat(HEAD, (target(HEAD), 1, UPTODATE))
        assert after.states[TAIL] is Public.SERVING
    after.wait(0.2)
    assert after.states[TAIL] is Public.OFFLINE


def test_bootstrap_ends_when_all_nodes_have_reported(manager):
    after = manager.restart()
    after.sequence = 100
    after.wait(0.1)
    assert after.model.is_bootstrapping(after.now_s)
    for node in (HEAD, TAIL):
        after.beat(node, (target(node), 1, UPTODATE))
    after.wait(0.1)
    assert not after.model.is_bootstrapping(after.now_s)
    assert after.version == 1


def test_disabled_node_with_a_lease_is_waited_for_after_a_restart(manager):
    manager.keep(manager.model.disabled_node(TAIL, disabled=True))
    after = manager.restart()
    after.sequence = 100
    for _ in range(39):
        after.beat(HEAD, (target(HEAD), 1, UPTODATE))
        after.wait(0.1)
        assert after.states[TAIL] is Public.SERVING
    after.wait(0.2)
    assert after.states[TAIL] is Public.OFFLINE


def test_new_chain_waits_for_its_nodes_before_it_changes(manager):
    request = pb.CreateChainTableRequest(table=2, replicas=2)
    manager.keep(manager.model.new_table(request, [(HEAD, TAIL)], now_s=manager.now_s))
    new = manager.model.records.chains[200_001]
    for _ in range(5):
        manager.wait(0.5)
        for node in (HEAD, TAIL):
            manager.beat(node, (target(node), 1, UPTODATE))
    assert manager.model.records.chains[200_001] == new


def test_chain_that_serves_nowhere_needs_no_waiting(manager):
    """No node of it can be alive and serving, so the first that comes is enough."""
    for node in (HEAD, TAIL):
        manager.model.end(node)
    manager.wait(0.1)
    after = manager.restart()
    after.beat(TAIL, (target(TAIL), 2, ONLINE), incarnation=2)
    after.wait(0.1)
    assert after.states == {TAIL: Public.SERVING, HEAD: Public.OFFLINE}


# Administration.


def rotate(manager: Manager, action=pb.UpdateChainRequest.ROTATE_PREFERRED, *, target: int = 0) -> None:
    request = pb.UpdateChainRequest(chain=CHAIN, action=action, target=target)
    manager.keep(manager.model.updated_chain(request, now_s=manager.now_s))


def swapped(manager: Manager) -> None:
    """The head falls and comes back as the tail."""
    manager.beat(HEAD, (target(HEAD), 1, OFFLINE))
    manager.wait(0.1)
    manager.beat(HEAD, (target(HEAD), 2, ONLINE))
    manager.wait(0.1)
    manager.beat(HEAD, (target(HEAD), 3, UPTODATE))
    manager.wait(0.1)
    manager.beat(TAIL, (target(TAIL), 4, UPTODATE))
    assert list(manager.states) == [TAIL, HEAD]
    assert manager.version == 4


def test_rotation_restores_the_preferred_order(manager):
    swapped(manager)
    rotate(manager)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SYNCING}
    manager.beat(TAIL, (target(TAIL), 4, UPTODATE))  # has not received it: that it is up to date is stale
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SYNCING
    manager.beat(TAIL, (target(TAIL), 5, ONLINE))
    manager.beat(TAIL, (target(TAIL), 5, UPTODATE))
    manager.wait(0.1)
    assert list(manager.states.items()) == [(HEAD, Public.SERVING), (TAIL, Public.SERVING)]
    version = manager.version
    rotate(manager)
    assert manager.version == version


def test_rotated_replica_takes_writes_until_its_node_knows(manager):
    swapped(manager)
    rotate(manager)
    assert manager.beat(TAIL, (target(TAIL), 4, UPTODATE)).lease_ms == 0
    manager.model.end(HEAD)  # now none serves; the rotated one may still believe that it does
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SYNCING}
    manager.beat(TAIL, (target(TAIL), 5, ONLINE))
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.WAITING}


def test_rotated_replica_is_not_waited_for_longer_than_its_lease(manager):
    swapped(manager)
    rotate(manager)
    manager.model.end(HEAD)
    manager.wait(LEASE_S - 0.1)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SYNCING}
    manager.wait(0.3)
    assert manager.states[HEAD] is Public.LASTSRV


def test_replica_whose_process_ends_while_its_rotation_is_stored_falls_and_comes_back(manager):
    swapped(manager)
    request = pb.UpdateChainRequest(chain=CHAIN, action=pb.UpdateChainRequest.ROTATE_PREFERRED)
    change = manager.model.updated_chain(request, now_s=manager.now_s)
    manager.model.end(TAIL)
    manager.keep(change)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}
    assert manager.beat(TAIL, (target(TAIL), manager.version, ONLINE), incarnation=2).lease_ms > 0
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SYNCING


def test_replica_of_a_disabled_node_that_is_rotated_after_a_restart_falls(manager):
    swapped(manager)
    manager.keep(manager.model.disabled_node(TAIL, disabled=True))
    again = manager.restart()
    again.beat(HEAD, (target(HEAD), 4, UPTODATE))
    request = pb.UpdateChainRequest(chain=CHAIN, action=pb.UpdateChainRequest.ROTATE_PREFERRED)
    again.keep(again.model.updated_chain(request, now_s=again.now_s))
    again.beat(HEAD, (target(HEAD), again.version, OFFLINE))
    again.wait(CONFIG.bootstrap_ms / 1000 + 0.1)
    assert again.states == {HEAD: Public.LASTSRV, TAIL: Public.OFFLINE}
    again.beat(HEAD, (target(HEAD), again.version, ONLINE))
    again.wait(0.1)
    assert again.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}


def test_rotation_needs_a_chain_that_serves_everywhere(manager):
    manager.beat(TAIL, (target(TAIL), 1, OFFLINE))
    manager.wait(0.1)
    with pytest.raises(Busy):
        rotate(manager)


def test_chains_of_all_tables_are_limited(manager, monkeypatch):
    monkeypatch.setattr("luciola.mgmtd.model.CHAINS_MAX", len(manager.model.records.chains) + 1)
    request = pb.CreateChainTableRequest(table=7, replicas=1)
    manager.keep(manager.model.new_table(request, [(HEAD,)], now_s=manager.now_s))
    request.table = 8
    with pytest.raises(InvalidArgument, match="at most"):
        manager.model.new_table(request, [(HEAD,)], now_s=manager.now_s)


def test_chain_whose_replicas_lost_power_waits_for_all_or_until_one_is_given_up(manager):
    manager.model.end(TAIL)
    manager.model.end(HEAD)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.LASTSRV}
    partial = (target(HEAD), manager.version, ONLINE, pb.DATA_PARTIAL, 3)
    manager.beat(HEAD, partial, incarnation=2)
    manager.wait(LEASE_S / 2)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.LASTSRV}
    rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.OFFLINE}, "the one that is not there"
    manager.beat(HEAD, (target(HEAD), manager.version, *partial[2:]), incarnation=2)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}


@pytest.mark.parametrize(
    ("head", "tail", "serves"),
    [
        ((pb.DATA_PARTIAL, 3), (pb.DATA_PARTIAL, 4), TAIL),
        ((pb.DATA_PARTIAL, 4), (pb.DATA_PARTIAL, 4), HEAD),
        ((pb.DATA_PARTIAL, 9), (pb.DATA_COMPLETE,), TAIL),
    ],
)
def test_chain_resumes_with_what_its_replicas_report_of_their_data(manager, head, tail, serves):
    manager.model.end(TAIL)
    manager.model.end(HEAD)
    manager.wait(0.1)
    version = manager.version
    manager.beat(HEAD, (target(HEAD), version, ONLINE, *head), incarnation=2)
    manager.beat(TAIL, (target(TAIL), version, ONLINE, *tail), incarnation=2)
    manager.wait(0.1)
    assert [node for node, state in manager.states.items() if state is Public.SERVING] == [serves]


def test_what_a_replica_lacked_is_forgotten_with_its_process(manager):
    manager.model.end(TAIL)
    manager.model.end(HEAD)
    manager.wait(0.1)
    manager.beat(HEAD, (target(HEAD), manager.version, OFFLINE, pb.DATA_LOST), incarnation=2)
    manager.model.end(HEAD)  # perhaps it comes back with its disk
    manager.beat(TAIL, (target(TAIL), manager.version, ONLINE, pb.DATA_PARTIAL, 1), incarnation=2)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.LASTSRV}


def test_rotation_gives_up_the_replica_that_is_named(manager):
    manager.model.end(TAIL)
    manager.model.end(HEAD)
    manager.wait(0.1)
    with pytest.raises(InvalidArgument, match="not one that served last"):
        rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV, target=9999)
    rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV, target=target(TAIL))
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.OFFLINE}


def test_chain_whose_disks_were_all_replaced_serves_again_after_rotations(manager):
    manager.model.end(TAIL)
    manager.model.end(HEAD)
    manager.wait(0.1)
    for node in (HEAD, TAIL):
        manager.beat(node, (target(node), manager.version, OFFLINE, pb.DATA_LOST), incarnation=2)
    manager.wait(0.1)
    rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV)
    assert manager.states == {TAIL: Public.LASTSRV, HEAD: Public.OFFLINE}
    with pytest.raises(Busy, match="disks of all replicas"):
        rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV)
    manager.beat(HEAD, (target(HEAD), manager.version, ONLINE, pb.DATA_LOST), incarnation=2)
    manager.wait(0.1)
    rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.OFFLINE}
    manager.beat(HEAD, (target(HEAD), manager.version, UPTODATE), incarnation=2)
    manager.wait(0.1)
    assert manager.states[HEAD] is Public.SERVING


@pytest.mark.parametrize(
    ("known", "may_register"),
    [
        ((1, 3), True),  # killed, or stopped, after the last acknowledgement
        ((2, 1, 3), True),  # the clock of its machine was set back
        ((0, 3), True),  # a new directory: it says itself that its replicas are lost
        ((), True),  # a node without a directory
        ((2, 3), False),
        ((3,), False),
    ],
)
def test_directory_that_does_not_know_the_last_incarnation_is_refused(manager, known, may_register):
    after = manager.restart()
    node = pb.Node(id=HEAD, kind=pb.NODE_STORAGE, incarnation=3)
    if may_register:
        assert after.model.registration(node, known).nodes[0].incarnation == 3
    else:
        with pytest.raises(ConfigError, match=f"node {HEAD} is an older copy") as refused:
            after.model.registration(node, known)
        assert refused.value.fields == {"older": "storage"}
        after.beat(TAIL, (target(TAIL), after.version, ONLINE), incarnation=2)
        after.wait(2 * LEASE_S)
        after.beat(TAIL, (target(TAIL), after.version, ONLINE), incarnation=2)
        after.wait(0.1)
        assert after.states == {TAIL: Public.SERVING, HEAD: Public.OFFLINE}


def engine(round_: int, opened: int = 0, identity: str = "e") -> pb.EngineMark:
    return pb.EngineMark(identity=identity, opened=opened, round=round_)


@pytest.mark.parametrize(
    ("mark", "may_register"),
    [
        (engine(9, opened=7), True),
        (engine(9, opened=8), True),
        (engine(9, opened=6), False),
        (engine(2, opened=0, identity="of a new disk"), True),
        (pb.EngineMark(), True),  # a node without a disk
    ],
)
@pytest.mark.parametrize("ends", ["leaves", "is killed"])
def test_chunks_that_lack_rounds_of_sync_that_were_seen_are_refused(manager, mark, may_register, ends):
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE), engine=engine(6))
    if ends == "leaves":
        request = pb.HeartbeatRequest(
            node=pb.Node(id=HEAD, kind=pb.NODE_STORAGE, incarnation=1), leaving=True, engine=engine(7)
        )
        manager.keep(Change(engines=manager.model.due_engine(request)))
    else:
        manager.beat(HEAD, (target(HEAD), 1, UPTODATE), engine=engine(7))
        manager.wait(MARK_INTERVAL_S)
    after = manager.restart()
    node = pb.Node(id=HEAD, kind=pb.NODE_STORAGE, incarnation=3)
    if may_register:
        assert after.model.registration(node, (1, 3), mark).nodes[0].incarnation == 3
    else:
        with pytest.raises(ConfigError, match="chunks are of round 6, but round 7 was seen") as refused:
            after.model.registration(node, (1, 3), mark)
        assert refused.value.fields == {"older": "storage"}


def test_marks_of_engines_are_stored_together_and_not_with_every_heartbeat(manager):
    manager.wait(MARK_INTERVAL_S)
    manager.beat(HEAD, engine=engine(6))
    manager.beat(TAIL, engine=engine(8))
    manager.beat(HEAD, engine=engine(7))
    manager.now_s += 0.1
    change = manager.keep(manager.model.look(now_s=manager.now_s))
    assert {node: mark.round for node, mark in change.engines} == {HEAD: 7, TAIL: 8}
    for round_ in (8, 9):
        manager.beat(HEAD, engine=engine(round_))
        manager.now_s += 0.1
        assert not manager.keep(manager.model.look(now_s=manager.now_s)).engines
    manager.beat(HEAD, engine=engine(5))  # late on its way
    manager.now_s += MARK_INTERVAL_S
    change = manager.keep(manager.model.look(now_s=manager.now_s))
    assert [(node, mark.round) for node, mark in change.engines] == [(HEAD, 9)]
    manager.beat(HEAD, engine=engine(1, identity="of a new disk"))
    manager.wait(MARK_INTERVAL_S)
    assert manager.model.records.engines[HEAD].identity == "of a new disk"


def test_directory_is_not_asked_where_no_incarnation_is_known(manager):
    head = manager.stored.nodes[HEAD]
    manager.stored.nodes[HEAD] = replace(head, incarnation=0)  # a store that was made again of marks
    after = manager.restart()
    assert after.model.registration(pb.Node(id=HEAD, kind=pb.NODE_STORAGE, incarnation=3), (2, 3))


def test_role_of_the_last_replica_can_be_given_to_the_next(manager):
    with pytest.raises(Busy):
        rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV)
    manager.model.end(TAIL)
    manager.wait(0.1)
    manager.model.end(HEAD)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.LASTSRV, TAIL: Public.OFFLINE}
    rotate(manager, pb.UpdateChainRequest.ROTATE_LASTSRV)
    assert manager.states == {TAIL: Public.LASTSRV, HEAD: Public.OFFLINE}
    manager.beat(TAIL, (target(TAIL), manager.version, ONLINE), incarnation=2)
    manager.wait(0.1)
    assert manager.states[TAIL] is Public.SERVING


def test_replicas_are_added_and_removed(manager):
    def update(action, **fields) -> None:
        request = pb.UpdateChainRequest(chain=CHAIN, action=action, **fields)
        manager.keep(manager.model.updated_chain(request, now_s=manager.now_s))

    add, remove = pb.UpdateChainRequest.ADD, pb.UpdateChainRequest.REMOVE
    with pytest.raises(NotFound):
        update(add, node=1002)
    with pytest.raises(InvalidArgument, match="already"):
        update(add, node=HEAD)
    manager.beat(1002)
    update(add, node=1002)
    assert manager.states[1002] is Public.OFFLINE
    manager.beat(1002, (target(1002), 2, ONLINE))
    manager.wait(0.1)
    assert manager.states[1002] is Public.SYNCING
    with pytest.raises(Busy, match="SYNCING"):
        update(remove, target=target(1002))
    with pytest.raises(NotFound):
        update(remove, target=1)
    manager.beat(1002, (target(1002), 3, OFFLINE))
    manager.wait(0.1)
    update(remove, target=target(1002))
    assert 1002 not in manager.states
    update(add, node=1002)
    targets = [member.target for member in manager.model.records.chains[CHAIN].members]
    assert targets[-1] == target(1002) + 1, "a target id is never used twice"


def test_number_that_is_reserved_is_the_next_of_its_kind(manager):
    first, other = (manager.model.reserved(kind, "host") for kind in (pb.NODE_META, pb.NODE_STORAGE))
    assert (first.id, other.id) == (100, max(manager.model.records.nodes, default=200) + 1)
    manager.model.apply(Change(nodes=(first, other)))
    again = manager.model.reserved(pb.NODE_STORAGE, "host")
    assert again.id == other.id + 1
    manager.model.apply(Change(removed_nodes=(other.id,)))
    assert manager.model.reserved(pb.NODE_META, "host").id == 101


def test_number_is_reserved_for_services_that_mgmtd_numbers_alone(manager):
    for kind in (pb.NODE_MGMTD, pb.NODE_MOUNT, 77):
        with pytest.raises(InvalidArgument):
            manager.model.reserved(kind, "host")
    with pytest.raises(InvalidArgument):
        manager.model.reserved(pb.NODE_STORAGE, "")


def test_metadata_services_have_the_numbers_below_those_of_storage_nodes(manager):
    node = NodeRecord(NodeId(200), pb.NODE_META, host="host")
    manager.model.apply(Change(nodes=(node,)))
    with pytest.raises(Busy):
        manager.model.reserved(pb.NODE_META, "host")


def test_nodes_are_forgotten_only_when_dead_and_empty(manager):
    manager.beat(1002)
    with pytest.raises(Busy, match="may be alive"):
        manager.model.unregistered(1002)
    manager.wait(LEASE_S + 0.1)
    manager.keep(manager.model.unregistered(1002))
    assert 1002 not in manager.model.records.nodes
    with pytest.raises(NotFound):
        manager.model.unregistered(1002)
    with pytest.raises(Busy, match="replicas"):
        manager.model.unregistered(TAIL)


def test_tables_are_created_once(manager):
    request = pb.CreateChainTableRequest(table=1, replicas=1)
    with pytest.raises(AlreadyExists):
        manager.model.new_table(request, [(HEAD,)], now_s=manager.now_s)
    with pytest.raises(InvalidArgument):
        manager.model.new_table(pb.CreateChainTableRequest(table=0), [(HEAD,)], now_s=manager.now_s)


# Stores that are older than the cluster.


def test_no_lease_is_granted_after_a_start_before_every_holder_of_replicas_has_reported(manager):
    again = manager.restart()
    assert again.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms == 0
    assert again.model.silent_nodes(again.now_s) == [TAIL]
    assert again.beat(TAIL, (target(TAIL), 1, UPTODATE)).lease_ms > 0
    assert again.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms > 0


def test_node_that_does_not_report_after_a_start_delays_leases_for_the_bootstrap_only(manager):
    again = manager.restart()
    again.wait(CONFIG.bootstrap_ms / 1000 - 0.1)
    assert again.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms == 0
    again.wait(0.2)
    assert again.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms > 0


@pytest.mark.parametrize("gone", ["disabled", "ended"])
def test_node_that_is_known_to_be_away_is_not_waited_for_after_a_start(manager, gone):
    if gone == "disabled":
        manager.keep(manager.model.disabled_node(TAIL, disabled=True))
    again = manager.restart()
    if gone == "ended":
        again.model.end(TAIL)
    assert again.beat(HEAD, (target(HEAD), 1, UPTODATE)).lease_ms > 0


def meta(*, position: int, store: int = 7, generation: int = 1, **fields) -> pb.HeartbeatRequest:
    node = pb.Node(id=100, kind=pb.NODE_META, incarnation=1)
    mark = pb.StoreMark(store=store, generation=generation, position=position)
    return pb.HeartbeatRequest(node=node, meta_store=mark, **fields)


def test_mark_of_the_metadata_store_is_stored_at_once_then_now_and_then_and_at_its_end(manager):
    def hear(request: pb.HeartbeatRequest) -> StoreMark | None:
        due = manager.model.due_mark(request, now_s=manager.now_s)
        manager.keep(Change(meta_store=due))
        return due

    assert hear(meta(position=10)) == StoreMark(7, 1, 10)
    assert hear(meta(position=11)) is None
    assert hear(meta(position=12, leaving=True)) == StoreMark(7, 1, 12)
    manager.wait(MARK_INTERVAL_S + 0.1)
    assert hear(meta(position=12)) is None
    assert hear(meta(position=13)) == StoreMark(7, 1, 13)
    assert hear(meta(position=1, store=8, generation=2)) == StoreMark(8, 2, 1)


@pytest.mark.parametrize(
    ("store", "generation", "position", "message"),
    [
        (7, 2, 99, "position 99, but 100 was seen"),
        (7, 1, 500, "generation 1, but an operator accepted its loss in generation 2"),
        (8, 2, 500, "store 0x8, but the cluster's is 0x7"),
    ],
)
def test_older_or_foreign_metadata_store_is_refused(manager, store, generation, position, message):
    manager.keep(Change(meta_store=StoreMark(7, 2, 100)))
    for mark in (StoreMark(7, 2, 100), StoreMark(7, 2, 101), StoreMark(9, 3, 0)):
        manager.model.check_meta_store(mark)
    with pytest.raises(ConfigError, match=f"older than the cluster: {message}") as refused:
        manager.model.check_meta_store(StoreMark(store, generation, position))
    assert refused.value.fields == {"older": "meta", "generation": "2"}


def test_what_a_storage_node_has_seen_of_the_metadata_store_counts(manager):
    """mgmtd's own store may have been put back from a copy together with meta's."""
    manager.keep(Change(meta_store=StoreMark(7, 1, 10)))
    request = pb.HeartbeatRequest(node=pb.Node(id=HEAD, kind=pb.NODE_STORAGE, incarnation=1))
    request.meta_store.CopyFrom(pb.StoreMark(store=7, generation=1, position=90))
    manager.keep(Change(meta_store=manager.model.due_mark(request, now_s=manager.now_s)))
    with pytest.raises(ConfigError, match="position 10, but 90 was seen"):
        manager.model.due_mark(meta(position=10), now_s=manager.now_s)
    request.meta_store.position = 80
    assert manager.model.due_mark(request, now_s=manager.now_s) is None


def test_second_metadata_service_is_refused_while_the_first_lives(manager):
    node = {"kind": pb.NODE_META, "epoch": EMBEDDED_EPOCH}
    manager.beat(100, **node)
    with pytest.raises(Busy, match="runs as process"):
        manager.beat(100, incarnation=2, **node)
    for epoch in (EMBEDDED_EPOCH, 0, 7):
        with pytest.raises(Busy, match="node 100 runs the metadata service"):
            manager.beat(101, kind=pb.NODE_META, epoch=epoch)
    manager.model.end(100)
    manager.beat(100, incarnation=2, **node)


def test_metadata_services_that_follow_a_log_live_together_and_their_terms_are_published(manager):
    node = {"kind": pb.NODE_META}
    manager.beat(100, epoch=7, **node)
    manager.beat(101, epoch=0, **node)
    manager.beat(100, incarnation=2, epoch=0, **node)  # killed and started again: the log says who leads
    manager.beat(101, epoch=9, **node)
    assert {number: manager.model.records.nodes[number].epoch for number in (100, 101)} == {100: 0, 101: 9}
    with pytest.raises(Busy, match="runs the metadata service"):
        manager.beat(102, epoch=EMBEDDED_EPOCH, **node)


# Nodes that are disabled.


def test_second_node_of_a_chain_is_not_disabled_unasked_while_the_first_still_has_its_lease(manager):
    manager.keep(manager.model.disabled_node(HEAD, disabled=True, accept_unavailable=False))
    assert manager.states[HEAD] is Public.SERVING, "its lease still runs"
    with pytest.raises(
        InvalidArgument, match="only replica that serves of 1 chains, such as 100001"
    ) as refused:
        manager.model.disabled_node(TAIL, disabled=True, accept_unavailable=False)
    assert refused.value.fields == {"unavailable": "1"}
    manager.keep(manager.model.disabled_node(TAIL, disabled=True, accept_unavailable=True))
    manager.keep(manager.model.disabled_node(TAIL, disabled=False, accept_unavailable=False))


def test_manager_is_not_disabled(manager):
    """Nothing would end, and it would not be `connected` any more: it sends itself no heartbeats."""
    manager.keep(Change(nodes=(NodeRecord(NodeId(1), pb.NODE_MGMTD),)))
    with pytest.raises(InvalidArgument, match="node 1 is a manager, which has no lease"):
        manager.model.disabled_node(1, disabled=True)
    assert not manager.model.disabled_node(1, disabled=False)


def test_labels_are_stored_and_change_with_the_process(manager):
    labels = Labels("r1", "k7", "h3")
    for incarnation, said in ((2, labels), (3, Labels(rack="k8"))):
        sender = pb.Node(id=HEAD, kind=pb.NODE_STORAGE, incarnation=incarnation, labels=said.to_pb())
        change = manager.keep(manager.model.registration(sender))
        assert [NodeRecord.from_pb(node.to_pb()).labels for node in change.nodes] == [said]
    assert not manager.model.registration(sender)


def test_size_of_the_disk_is_known_from_heartbeats(manager):
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE), disk=pb.DiskSpace(capacity_bytes=100, free_bytes=40))
    life = manager.model.lives[NodeId(HEAD)]
    assert (life.capacity_bytes, life.free_bytes) == (100, 40)
    manager.beat(HEAD, (target(HEAD), 1, UPTODATE))
    assert life.free_bytes == 40, "a disk that hangs reports nothing"


# Moves.

NEW = 1002


def moving(manager: Manager, target_leaves: int = 0) -> Move:
    """A third node, to which the tail is to go."""
    manager.beat(NEW)
    leaves = TargetId(target_leaves or target(TAIL))
    request = pb.StartMovesRequest(moves=[pb.Move(chain=CHAIN, target=leaves, node=NEW)])
    manager.keep(manager.model.moves.started(request))
    manager.wait(0.1)
    return manager.model.records.moves[ChainId(CHAIN)]


def report_all(manager: Manager, **locals_: int) -> None:
    for member in manager.model.records.chains[CHAIN].members:
        public = member.state
        local = locals_.get(f"n{member.node}", UPTODATE if public is Public.SERVING else ONLINE)
        manager.beat(member.node, (member.target, manager.version, local))
    manager.wait(0.1)


def test_replica_moves_by_being_added_synced_and_then_removed(manager):
    moving(manager)
    assert manager.states[NEW] is Public.OFFLINE
    report_all(manager)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SERVING, NEW: Public.SYNCING}
    report_all(manager, n1002=UPTODATE)
    assert manager.states == dict.fromkeys((HEAD, TAIL, NEW), Public.SERVING)
    manager.wait(0.1)
    assert manager.states == {HEAD: Public.SERVING, NEW: Public.SERVING, TAIL: Public.SYNCING}
    manager.wait(0.5)
    assert TAIL in manager.states, "its node has not received that it does not serve"
    report_all(manager)
    assert manager.states == {HEAD: Public.SERVING, NEW: Public.SERVING}
    manager.beat(TAIL)
    report_all(manager)
    assert manager.model.records.moves == {}
    assert manager.model.records.rebalance.done == 1


def test_old_replica_stays_while_the_new_one_does_not_serve(manager):
    moving(manager)
    report_all(manager)
    for _ in range(5):
        report_all(manager)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SERVING, NEW: Public.SYNCING}


def test_move_of_a_head_ends_with_the_new_replica_as_head(manager):
    moving(manager, target(HEAD))
    for _ in range(12):
        syncing = {node for node, state in manager.states.items() if state is Public.SYNCING}
        report_all(manager, **{f"n{node}": UPTODATE for node in syncing - {HEAD}})
        if HEAD not in manager.states:
            manager.beat(HEAD)
    assert list(manager.states) == [NEW, TAIL]
    assert manager.model.records.moves == {}


def test_move_continues_with_another_manager(manager):
    moving(manager)
    report_all(manager)
    other = manager.restart()
    other.sequence = manager.sequence
    report_all(other)
    report_all(other, n1002=UPTODATE)
    other.wait(0.1)
    assert other.states[TAIL] is Public.SYNCING
    report_all(other)
    assert TAIL not in other.states


def test_cancelled_move_is_undone_before_the_new_replica_serves(manager):
    moving(manager)
    report_all(manager)
    manager.keep(manager.model.moves.controlled(pb.ControlMovesRequest.CANCEL))
    for _ in range(3):
        report_all(manager)
        if NEW not in manager.states:
            manager.beat(NEW)
    assert manager.states == {HEAD: Public.SERVING, TAIL: Public.SERVING}
    assert manager.model.records.moves == {}


def test_paused_moves_do_not_begin(manager):
    manager.keep(manager.model.moves.controlled(pb.ControlMovesRequest.PAUSE))
    manager.beat(NEW)
    manager.keep(Change(moves=(Move(ChainId(CHAIN), TargetId(target(TAIL)), NodeId(NEW)),)))
    manager.wait(1.0)
    assert NEW not in manager.states
    manager.keep(manager.model.moves.controlled(pb.ControlMovesRequest.RESUME))
    manager.wait(0.1)
    assert NEW in manager.states


@pytest.mark.parametrize(
    ("move", "error", "message"),
    [
        ({"chain": 5, "target": 1, "node": NEW}, NotFound, "no replica 1 of a chain 5"),
        ({"chain": CHAIN, "target": 7, "node": NEW}, NotFound, "no replica 7"),
        ({"chain": CHAIN, "target": target(TAIL), "node": 9}, NotFound, "no storage node 9"),
        ({"chain": CHAIN, "target": target(TAIL), "node": HEAD}, InvalidArgument, "holds a replica"),
        ({"chain": CHAIN}, InvalidArgument, "names no replica and no node"),
    ],
)
def test_impossible_moves_are_refused(manager, move, error, message):
    manager.beat(NEW)
    with pytest.raises(error, match=message):
        manager.model.moves.started(pb.StartMovesRequest(moves=[pb.Move(**move)]))


def test_full_node_gets_no_replica(manager):
    manager.beat(NEW, disk=pb.DiskSpace(capacity_bytes=100, free_bytes=5))
    request = pb.StartMovesRequest(moves=[pb.Move(chain=CHAIN, target=target(TAIL), node=NEW)])
    manager.keep(manager.model.moves.started(request))
    manager.wait(0.1)
    assert NEW not in manager.states
    assert manager.model.moves.status().obstacle == f"the disk of node {NEW} is full"
