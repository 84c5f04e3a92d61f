"""How one chain changes when its replicas come and go: the whole table, as one pure function.

What is published of a replica is its *public* state; what its own node reports of it is its *local* state.

    old public        local               condition                          new public
    SERVING           ONLINE, UPTODATE    -                                  SERVING
    SERVING           OFFLINE             none serves afterwards             LASTSRV
    SERVING           OFFLINE             one serves afterwards              OFFLINE
    LASTSRV           ONLINE, UPTODATE    none serves so far, chosen (C5)    SERVING
    LASTSRV           any                 none serves afterwards             LASTSRV
    LASTSRV           any                 one serves so far/afterwards       OFFLINE
    SYNCING           UPTODATE            -                                  SERVING
    SYNCING           ONLINE              one serves                         SYNCING
    SYNCING           ONLINE              none serves                        WAITING
    SYNCING           OFFLINE             -                                  OFFLINE
    WAITING, OFFLINE  ONLINE              one serves, none syncs             SYNCING
    WAITING, OFFLINE  ONLINE, UPTODATE    otherwise                          WAITING
    WAITING, OFFLINE  OFFLINE             -                                  OFFLINE

"So far" means: in this order of groups, and within a group in the order of the chain.

    C1  at most one replica is SYNCING
    C2  a replica becomes SERVING only if it was SERVING when the chain fell, or has been synchronised, or if an
        administrator gave up all that were, the disks of all replicas being replaced (`Model._heir`)
    C3  while none serves, every replica that served last is LASTSRV: each had all that was acknowledged, because
        an acknowledgement needs all of them. One of them serves; the others then have to be compared with it,
        because it may have finished writes that they have not seen
    C4  order: SERVING, LASTSRV, SYNCING, WAITING, OFFLINE; stable within a group
    C5  of the replicas that served last the first serves that is there and COMPLETE. Without one the chain waits
        until all are there whose disks are not LOST; then the one serves whose chunks have seen the most updates.
        All of those have what was synced
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final

from ..ids import TargetId
from ..states import Data, Local, Public


@dataclass(frozen=True, slots=True)
class Member:
    """One replica's place in a chain."""

    target: TargetId
    node: int
    state: Public


@dataclass(frozen=True, slots=True)
class Held:
    """What a replica's node says of its data; of a PARTIAL one also how many updates its chunks have seen."""

    data: Data = Data.COMPLETE
    updates: int = 0


COMPLETE: Final = Held()
ALL_COMPLETE: Final[Mapping[TargetId, Held]] = MappingProxyType({})


def advance(
    members: Sequence[Member], local: Mapping[TargetId, Local], held: Mapping[TargetId, Held] = ALL_COMPLETE
) -> tuple[Member, ...]:
    """Return the chain after one look at the local states of all its members.

    `held`: of those that are not COMPLETE.
    """
    assert all(member.target in local for member in members), "a chain with unknown members is not looked at"
    after: dict[TargetId, Public] = {}
    for member in _of(members, Public.SERVING):
        after[member.target] = Public.LASTSRV if local[member.target] is Local.OFFLINE else Public.SERVING
    chosen = None if _serves(after) else _resumes(_of(members, Public.LASTSRV), local, held)
    for member in _of(members, Public.LASTSRV):
        after[member.target] = Public.SERVING if member.target == chosen else Public.LASTSRV
    for member in _of(members, Public.SYNCING):
        after[member.target] = _syncing(local[member.target], served=_serves(after))
    for member in (*_of(members, Public.WAITING), *_of(members, Public.OFFLINE)):
        may_sync = _serves(after) and Public.SYNCING not in after.values()
        after[member.target] = _returning(local[member.target], may_sync=may_sync)
    if _serves(after):
        after = {
            target: Public.OFFLINE if state is Public.LASTSRV else state for target, state in after.items()
        }
    _check(members, after, local, held)
    return ordered([Member(member.target, member.node, after[member.target]) for member in members])


def _check(
    members: Sequence[Member],
    after: Mapping[TargetId, Public],
    local: Mapping[TargetId, Local],
    held: Mapping[TargetId, Held],
) -> None:
    """Assert C1 to C3 and C5 of a chain that has been advanced."""
    assert len(after) == len(members), "a replica is in a chain once"
    assert list(after.values()).count(Public.SYNCING) <= 1, "C1: at most one replica is SYNCING"
    has_data = (Public.SERVING, Public.LASTSRV, Public.SYNCING)
    assert all(member.state in has_data for member in members if after[member.target] is Public.SERVING), (
        "C2: a replica serves that served last, or was synchronised"
    )
    assert all(
        held.get(m.target, COMPLETE).data is not Data.LOST and local[m.target] is not Local.OFFLINE
        for m in members
        if m.state is Public.LASTSRV and after[m.target] is Public.SERVING
    ), "C5: one that serves again is there, with its data"
    if not _serves(after):
        last = (Public.SERVING, Public.LASTSRV)
        assert all(after[member.target] is Public.LASTSRV for member in members if member.state in last), (
            "C3: while none serves, every replica that served last is kept"
        )


def ordered(members: Sequence[Member]) -> tuple[Member, ...]:
    """By group, stable within each (C4)."""
    return tuple(sorted(members, key=lambda member: member.state))


def _of(members: Sequence[Member], state: Public) -> list[Member]:
    return [member for member in members if member.state is state]


def _serves(after: Mapping[TargetId, Public]) -> bool:
    return Public.SERVING in after.values()


def _resumes(
    last: Sequence[Member], local: Mapping[TargetId, Local], held: Mapping[TargetId, Held]
) -> TargetId | None:
    """Return which of the replicas that served last serves again; None while the chain waits (C5)."""
    kept = [m.target for m in last if held.get(m.target, COMPLETE).data is not Data.LOST]
    present = [target for target in kept if local[target] is not Local.OFFLINE]
    for target in present:
        if held.get(target, COMPLETE).data is Data.COMPLETE:
            return target
    if present != kept:
        return None
    return max(present, key=lambda target: held[target].updates, default=None)


def _syncing(local: Local, *, served: bool) -> Public:
    match local:
        case Local.UPTODATE:
            return Public.SERVING
        case Local.ONLINE:
            return Public.SYNCING if served else Public.WAITING
        case Local.OFFLINE:
            return Public.OFFLINE


def _returning(local: Local, *, may_sync: bool) -> Public:
    if local is Local.OFFLINE:
        return Public.OFFLINE
    return Public.SYNCING if local is Local.ONLINE and may_sync else Public.WAITING


__all__ = ["COMPLETE", "Held", "Member", "advance", "ordered"]
