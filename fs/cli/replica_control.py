"""What an administrator has the replicas of a log do."""

import asyncio
from collections.abc import Sequence
from typing import Final

from ..errors import Busy, NotFound, Timeout, Unavailable
from ..wire import RpcClients, methods
from ..wire.pb import replicas_pb2 as pb
from ..wire.pb.common_pb2 import Empty
from .metadata_status import LogState, ReplicaState

CALL_S: Final = 10.0
CHECKPOINT_S: Final = 600.0  # of a store of many GiB: its files are linked and read once
HOLD_BACK_S: Final = 10.0  # for which the others leave the log to the one that is to lead: three leases
LAG_MAX: Final = (
    1000  # records, which are carried out in less than a second; one that is far behind takes no log
)
POLL_S: Final = 0.1


def find_replica(logs: Sequence[LogState], name: str) -> tuple[LogState, ReplicaState]:
    """Return the replica of that name, and its log. Raises: NotFound."""
    for log in logs:
        for replica in log["replicas"]:
            if replica["id"] == name:
                return log, replica
    known = ", ".join(f"{log['log']} {each['id']}" for log in logs for each in log["replicas"])
    raise NotFound(f"no process {name} follows a log; these do: {known or 'none'}")


def check_able(replica: ReplicaState) -> None:
    """Raises: Unavailable if it does not answer, or is too far behind to lead."""
    if replica["lag"] is None:
        raise Unavailable(f"{replica['id']} does not answer at {replica['address']}")
    if replica["lag"] > LAG_MAX:
        raise Unavailable(
            f"{replica['id']} is {replica['lag']} records behind the log: it cannot lead before it has come up with it"
        )


def check_absent(replica: ReplicaState) -> None:
    """Raises: Busy if it answers: it has checkpoints, and would announce them again."""
    if replica["position"] is not None:
        raise Busy(f"{replica['id']} runs, and answers at {replica['address']}: stop it first")


async def lead(clients: RpcClients, log: LogState, wanted: ReplicaState, *, patience_s: float = 60.0) -> None:
    """Return when `wanted` leads: the others hold back, standbys first. Raises: Unavailable, Timeout."""
    check_able(wanted)
    others = [each for each in log["replicas"] if each["id"] != wanted["id"] and each["lag"] is not None]
    await _hold_back(clients, wanted, 0.0)  # it may do so itself, since a moment ago
    for other in sorted(others, key=lambda each: each["leads"]):
        await _hold_back(clients, other, HOLD_BACK_S)
    try:
        async with asyncio.timeout(patience_s):
            await _wait_for_lead(clients, wanted)
    except TimeoutError as error:
        raise Timeout(f"{wanted['id']} does not lead within {patience_s:.0f} s: its log says why") from error


async def _hold_back(clients: RpcClients, replica: ReplicaState, duration_s: float) -> None:
    request = pb.HoldBackRequest(duration_ms=int(duration_s * 1000))
    await clients.call(replica["address"], methods.Replicas.hold_back, request, timeout_s=CALL_S)


async def _wait_for_lead(clients: RpcClients, replica: ReplicaState) -> None:
    while True:
        state = await clients.call(replica["address"], methods.Replicas.state, Empty(), timeout_s=CALL_S)
        if state.leads:
            return
        await asyncio.sleep(POLL_S)


async def make_checkpoint(clients: RpcClients, replica: ReplicaState) -> pb.ReplicaState:
    """Have a replica make a checkpoint, and trim the log as far as it may."""
    return await clients.call(
        replica["address"], methods.Replicas.make_checkpoint, Empty(), timeout_s=CHECKPOINT_S
    )


__all__ = ["check_able", "check_absent", "find_replica", "lead", "make_checkpoint"]
