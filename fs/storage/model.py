"""What a storage node says of its own replicas, as a pure machine: `step(state, event) -> (state, effects)`.

mgmtd decides what each replica may do (its public state, in routing); the node reports what it can do (its local
state, in heartbeats). Invariants:

    I1  After a start nothing is reported but OFFLINE until no replica of this node is publicly SERVING or
        SYNCING: mgmtd has then noticed that the process was away, and all that it missed will be sent to it.
    I2  A SYNCING replica is UPTODATE only if its predecessor said so under the very same chain version.
    I3  A replica whose data is gone (a replaced disk) never comes back as the last one that served: an operator
        decides that the data is lost, not an empty directory. One that is PARTIAL says so until it serves again, which
        makes what it has the truth, or is up to date.
    I4  A failed disk stays OFFLINE until the process is started again.
    I5  An older chain version than one already seen changes nothing.
    I6  The lease is not used while a replica is publicly SERVING and reported OFFLINE: mgmtd may give its role to
        others as soon as that report has come.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Final, TypeAlias

from ..ids import ChainId, ChainVersion, TargetId
from ..states import Data, Local, Public


@dataclass(frozen=True, slots=True)
class Seen:
    """One replica of this node, as routing shows it."""

    chain: ChainId
    chain_version: ChainVersion
    public: Public


@dataclass(frozen=True, slots=True)
class Target:
    """One replica of this node. `data`: what there is of the chunks it once held."""

    chain: ChainId
    chain_version: ChainVersion
    public: Public
    local: Local
    data: Data = Data.COMPLETE


@dataclass(frozen=True, slots=True)
class State:
    """All of it. `is_back`: mgmtd has noticed our absence (I1)."""

    is_back: bool = False
    has_failed: bool = False
    targets: Mapping[TargetId, Target] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class RoutingChanged:
    """Routing now shows these replicas of this node. `data`: of those whose data is not complete."""

    seen: Mapping[TargetId, Seen]
    data: Mapping[TargetId, Data] = field(default_factory=lambda: MappingProxyType({}))


@dataclass(frozen=True, slots=True)
class SyncDone:
    """The predecessor has compared every chunk of this chain and sent what differed."""

    chain: ChainId
    chain_version: ChainVersion


@dataclass(frozen=True, slots=True)
class DiskFailed:
    """Reading or writing the disk gives errors."""


@dataclass(frozen=True, slots=True)
class Report:
    """The heartbeat would now say something new of the target."""

    target: TargetId


@dataclass(frozen=True, slots=True)
class Restored:
    """The target has its data again; it need not be remembered as LOST or PARTIAL."""

    target: TargetId


@dataclass(frozen=True, slots=True)
class DataMissing:
    """The target was the last one that served, and its data is LOST or PARTIAL: the chain may wait for others."""

    target: TargetId
    chain: ChainId
    data: Data


Event: TypeAlias = RoutingChanged | SyncDone | DiskFailed
Effect: TypeAlias = Report | Restored | DataMissing

ACTIVE: Final = (Public.SERVING, Public.SYNCING)


def step(state: State, event: Event) -> tuple[State, list[Effect]]:
    """Return the state after `event`, and what must be done about it."""
    after, effects = _next(state, event)
    _check(state, event, after)
    return after, effects


def _check(before: State, event: Event, after: State) -> None:
    """Assert I1 to I5 of a step."""
    reported = [target for target in after.targets.values() if target.local is not Local.OFFLINE]
    assert after.is_back or not reported, "I1: nothing is reported before mgmtd has noticed the restart"
    assert not after.has_failed or not reported, "I4: a failed disk stays OFFLINE"
    assert after.has_failed or not before.has_failed, "I4: until the process is started again"
    for id_, target in after.targets.items():
        known = before.targets.get(id_)
        if target.public is Public.SYNCING and target.local is Local.UPTODATE:
            is_old = known is not None and (known.local, known.chain_version) == (
                Local.UPTODATE,
                target.chain_version,
            )
            assert is_old or isinstance(event, SyncDone), "I2: the predecessor said so under this version"
        is_last = target.public is Public.LASTSRV and target.local is not Local.OFFLINE
        assert target.data is not Data.LOST or not is_last, (
            "I3: a replica whose data is gone is not the last one"
        )
        assert known is None or target.chain_version >= known.chain_version, "I5: chain versions grow"


def _next(state: State, event: Event) -> tuple[State, list[Effect]]:
    match event:
        case RoutingChanged():
            return _routing_changed(state, event)
        case SyncDone():
            return _sync_done(state, event)
        case DiskFailed():
            targets = {id_: replace(target, local=Local.OFFLINE) for id_, target in state.targets.items()}
            effects: list[Effect] = [
                Report(id_) for id_, target in targets.items() if target != state.targets[id_]
            ]
            return replace(state, has_failed=True, targets=MappingProxyType(targets)), effects


def may_serve(state: State) -> bool:
    """Return whether the lease may be used (I6)."""
    return not state.has_failed and not any(
        target.public == Public.SERVING and target.local == Local.OFFLINE for target in state.targets.values()
    )


def may_sync(state: State, chain: ChainId, chain_version: ChainVersion) -> bool:
    """Return whether a predecessor may now compare its chunks of `chain` with ours."""
    found = _find(state, chain)
    if found is None:
        return False
    target = found[1]
    return (
        target.public == Public.SYNCING
        and target.local != Local.OFFLINE
        and target.chain_version == chain_version
    )


def _routing_changed(state: State, event: RoutingChanged) -> tuple[State, list[Effect]]:
    seen = {id_: _newest(state.targets.get(id_), now) for id_, now in event.seen.items()}
    is_back = state.is_back or not any(now.public in ACTIVE for now in seen.values())
    base = replace(state, is_back=is_back)
    targets: dict[TargetId, Target] = {}
    effects: list[Effect] = []
    for id_, now in seen.items():
        before = state.targets.get(id_)
        data = event.data.get(id_, Data.COMPLETE) if before is None else before.data
        after = _target(base, before, now, data=data)
        targets[id_] = after
        if before is None or (before.local, before.chain_version) != (after.local, after.chain_version):
            effects.append(Report(id_))
        if data != after.data:
            effects.append(Restored(id_))
        is_new = before is None or before.public != now.public
        if after.data != Data.COMPLETE and now.public == Public.LASTSRV and is_new:
            effects.append(DataMissing(id_, now.chain, after.data))
    return replace(base, targets=MappingProxyType(targets)), effects


def _newest(before: Target | None, now: Seen) -> Seen:
    if before is None or now.chain_version >= before.chain_version:
        return now
    return Seen(before.chain, before.chain_version, before.public)


def _target(state: State, before: Target | None, now: Seen, *, data: Data) -> Target:
    """Return the target after routing showed `now` of it."""
    is_synced = (
        before is not None
        and before.local == Local.UPTODATE
        and before.public == Public.SYNCING
        and before.chain_version == now.chain_version
    )
    # What was declared UPTODATE, or is SERVING, has its data.
    if is_synced or (now.public == Public.SERVING and state.is_back):
        data = Data.COMPLETE
    if state.has_failed or not state.is_back or (data == Data.LOST and now.public == Public.LASTSRV):
        local = Local.OFFLINE
    elif now.public == Public.SERVING or (now.public == Public.SYNCING and is_synced):
        local = Local.UPTODATE
    else:
        local = Local.ONLINE
    return Target(now.chain, now.chain_version, now.public, local, data)


def _sync_done(state: State, event: SyncDone) -> tuple[State, list[Effect]]:
    found = _find(state, event.chain)
    if found is None or not may_sync(state, event.chain, event.chain_version):
        return state, []
    id_, target = found
    assert target.public is Public.SYNCING, "I2: only a SYNCING replica is brought up to date"
    after = replace(target, local=Local.UPTODATE, data=Data.COMPLETE)
    effects: list[Effect] = [Report(id_)] if after.local != target.local else []
    if target.data != after.data:
        effects.append(Restored(id_))
    return replace(state, targets=MappingProxyType({**state.targets, id_: after})), effects


def _find(state: State, chain: ChainId) -> tuple[TargetId, Target] | None:
    for id_, target in state.targets.items():
        if target.chain == chain:
            return id_, target
    return None


__all__ = [
    "DataMissing",
    "DiskFailed",
    "Effect",
    "Event",
    "Report",
    "Restored",
    "RoutingChanged",
    "Seen",
    "State",
    "SyncDone",
    "Target",
    "may_serve",
    "may_sync",
    "step",
]
