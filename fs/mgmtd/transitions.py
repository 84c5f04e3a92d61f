"""How one chain changes when its replicas come and go: the whole table, as one pure function.

What everybody is told of a replica is its *public* state; what its own node says of it is its *local* state.

    old public        local               condition                          new public
    SERVING           ONLINE, UPTODATE    -                                  SERVING
    SERVING           OFFLINE             nobody serves afterwards           LASTSRV
    SERVING           OFFLINE             somebody serves afterwards         OFFLINE
    LASTSRV           ONLINE, UPTODATE    nobody serves so far               SERVING
    LASTSRV           OFFLINE             nobody serves afterwards           LASTSRV
    LASTSRV           any                 somebody serves so far/afterwards  OFFLINE
    SYNCING           UPTODATE            -                                  SERVING
    SYNCING           ONLINE              somebody serves                    SYNCING
    SYNCING           ONLINE              nobody serves                      WAITING
    SYNCING           OFFLINE             -                                  OFFLINE
    WAITING, OFFLINE  ONLINE              somebody serves, nobody syncs      SYNCING
    WAITING, OFFLINE  ONLINE, UPTODATE    otherwise                          WAITING
    WAITING, OFFLINE  OFFLINE             -                                  OFFLINE

"So far" means: in this order of groups, and within a group in the order of the chain.

    C1  at most one replica is SYNCING
    C2  a replica becomes SERVING only if it was SERVING when the chain fell, or has been synchronised
    C3  while nobody serves, every replica that served last is LASTSRV: each has all that was acknowledged, because
        an acknowledgement needs all of them. The first that returns serves; the others then have to be compared
        with it, because it may have finished writes that they have not seen
    C4  order: SERVING, LASTSRV, SYNCING, WAITING, OFFLINE; stable within a group
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from ..ids import TargetId
from ..states import Local, Public


@dataclass(frozen=True, slots=True)
class Member:
    """One replica's place in a chain."""

    target: TargetId
    node: int
    state: Public


def advance(members: Sequence[Member], local: Mapping[TargetId, Local]) -> tuple[Member, ...]:
    """The chain after one look at the local states of all its members."""
    assert all(member.target in local for member in members), "a chain with unknown members is not looked at"
    after: dict[TargetId, Public] = {}
    for member in _of(members, Public.SERVING):
        after[member.target] = Public.LASTSRV if local[member.target] is Local.OFFLINE else Public.SERVING
    for member in _of(members, Public.LASTSRV):
        after[member.target] = _last_served(local[member.target], served=_serves(after))
    for member in _of(members, Public.SYNCING):
        after[member.target] = _syncing(local[member.target], served=_serves(after))
    for member in (*_of(members, Public.WAITING), *_of(members, Public.OFFLINE)):
        may_sync = _serves(after) and Public.SYNCING not in after.values()
        after[member.target] = _returning(local[member.target], may_sync=may_sync)
    if _serves(after):
        after = {
            target: Public.OFFLINE if state is Public.LASTSRV else state for target, state in after.items()
        }
    return ordered([Member(member.target, member.node, after[member.target]) for member in members])


def ordered(members: Sequence[Member]) -> tuple[Member, ...]:
    """By group, stable within each (C4)."""
    return tuple(sorted(members, key=lambda member: member.state))


def _of(members: Sequence[Member], state: Public) -> list[Member]:
    return [member for member in members if member.state is state]


def _serves(after: Mapping[TargetId, Public]) -> bool:
    return Public.SERVING in after.values()


def _last_served(local: Local, *, served: bool) -> Public:
    if served:
        return Public.OFFLINE
    return Public.LASTSRV if local is Local.OFFLINE else Public.SERVING


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


__all__ = ["Member", "advance", "ordered"]
