"""Room in etcd: what removed records and old revisions take is given back, and full members take writes again."""

from collections.abc import AsyncIterator
from typing import Final, TypedDict

from ..wire.etcd import EtcdClient, EtcdOptions
from ..wire.pb import etcd_pb2 as pb
from .metadata_status import MemberState, members_of

DEFRAGMENT_S: Final = 600.0  # of a member's file: 8 GiB at the most, which it copies


class RoomMade(TypedDict):
    """What a member's file had and has. `state`: of the member, as in `MemberState`, before."""

    address: str
    state: str
    before_bytes: int
    after_bytes: int


async def make_room(options: EtcdOptions) -> AsyncIterator[RoomMade]:
    """Forget all old revisions, make each member's file small, and end the alarms of full ones; yield each member.

    One after the other, the leader last: a member serves nothing meanwhile. One that does not answer is left out.
    Raises: Unavailable, Timeout; PermissionDenied if the user may not do this.
    """
    async with EtcdClient(options) as client:
        now = await client.range(b"luciola/", limit=1)
        await client.compact(now.header.revision)
        members = await members_of(options)
        for member in sorted(members, key=lambda each: each["leads"]):
            yield await _defragment(client, member)
        for alarm in await client.alarms():
            if alarm.alarm == pb.NOSPACE:
                await client.disarm(alarm)


async def _defragment(client: EtcdClient, member: MemberState) -> RoomMade:
    address, state, before = member["address"], member["state"], member["size_bytes"]
    if state == "unreachable":
        return {"address": address, "state": state, "before_bytes": 0, "after_bytes": 0}
    await client.defragment(address, timeout_s=DEFRAGMENT_S)
    after = (await client.status(address)).size_bytes
    return {"address": address, "state": state, "before_bytes": before, "after_bytes": after}


__all__ = ["RoomMade", "make_room"]
