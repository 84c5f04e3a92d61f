"""Move tensors between the ranks of a pipeline: gloo on a CPU, NCCL on a GPU.

Gloo messages have tags made of what they carry, so a message cannot arrive in another one's place. NCCL has no tags and
matches by order; there the order is safe because both ends execute one verified schedule (its invariant I2) and have
compared their steps before the first message.

`MeshTransport` has connections of its own, so that a failure never hurts the user's process group, and a new mesh can
be made after it. Gloo has no wait that runs out and leaves the rest usable: it cuts all connections of the mesh. `cut`
uses just this, from another thread, to end every wait of this rank; the peers see their connections close.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, ClassVar, Final, Protocol

import torch
import torch.distributed as dist
from torch import Tensor

from ..kernels.ranks import first_line
from .failure import LinkLost
from .rendezvous import Rendezvous

NEVER: Final = (1 << 31) - 1
"""A tag that no message has."""


@dataclass(frozen=True, slots=True)
class Message:
    """One tensor on its way to or from `peer`."""

    outgoing: bool
    peer: int
    tag: int
    tensor: Tensor
    """Contiguous. Filled by an incoming message."""
    what: str
    """For error messages."""


class Transport(Protocol):
    """How tensors travel."""

    together: ClassVar[bool]
    """Messages between two ranks must start in one batch, in one order on both."""

    def start(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Start all messages, in this order; the result waits for them."""

    def cut(self) -> None:
        """End all waits of this rank and the connections to the others. Any thread may call it, more than once."""


class MeshTransport:
    """Gloo connections between all ranks of one pipeline.

    Making one needs all ranks: each connects to each.
    """

    together: ClassVar[bool] = False  # tags match messages

    def __init__(self, rendezvous: Rendezvous, *, ranks: int) -> None:
        self._timeout_s = rendezvous.timeout_s
        self._ranks = ranks
        self._rank = rendezvous.rank
        self._group: Any = dist.ProcessGroupGloo(
            rendezvous.prefixed("mesh"), rendezvous.rank, ranks, timedelta(seconds=rendezvous.timeout_s)
        )

    def start(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Start all; the result waits for them and raises LinkLost."""
        works = [(each, self._start(each)) for each in messages]

        def wait() -> None:
            deadline = time.monotonic() + self._timeout_s
            for message, work in works:
                self._wait(message, work, deadline)

        return wait

    def cut(self) -> None:
        """Cut all connections, as Transport.cut: a wait that runs out at once closes every connection of the mesh."""
        for peer in range(self._ranks):
            if peer != self._rank:
                try:
                    self._group.recv([torch.zeros(1)], peer, NEVER).wait(timedelta(milliseconds=1))
                except RuntimeError:
                    return

    def _start(self, message: Message) -> Any:
        operation = self._group.send if message.outgoing else self._group.recv
        try:
            return operation([message.tensor], message.peer, message.tag)
        except RuntimeError as error:
            raise LinkLost(message.peer, f"{message.what}: {first_line(error)}") from error

    def _wait(self, message: Message, work: Any, deadline: float) -> None:
        rest_s = max(deadline - time.monotonic(), 0.001)
        try:
            work.wait(timedelta(seconds=rest_s))
        except RuntimeError as error:
            if time.monotonic() >= deadline:
                raise LinkLost(message.peer, f"{message.what}: waited {self._timeout_s:g} s") from error
            raise LinkLost(message.peer, f"{message.what}: {first_line(error)}") from error


class GroupTransport:
    """The user's process group. With NCCL its communicator carries the messages on the current stream."""

    together: ClassVar[bool] = True  # NCCL matches by order

    def __init__(self, group: dist.ProcessGroup, global_ranks: Sequence[int], device: torch.device) -> None:
        self._group = group
        self._global_ranks = global_ranks
        """By pipeline rank."""
        # A communicator is made at its first use, by all ranks together. Were this the first batch of messages, a rank
        # would wait in there for one that waits for the spec of the boundary between them.
        dist.all_reduce(torch.zeros(1, device=device), group=group)

    def start(self, messages: Sequence[Message]) -> Callable[[], None]:
        """Start all in one batch; the result makes the current stream wait.

        Raises: LinkLost if the group already knows that a peer has gone.
        """
        if not messages:
            return lambda: None
        operations = [
            dist.P2POp(
                dist.isend if each.outgoing else dist.irecv,
                each.tensor,
                self._global_ranks[each.peer],
                self._group,
            )
            for each in messages
        ]

        def guarded(call: Callable[[], Any]) -> Any:
            try:
                return call()
            except RuntimeError as error:
                raise LinkLost(messages[0].peer, f"{messages[0].what}: {first_line(error)}") from error

        works = guarded(lambda: dist.batch_isend_irecv(operations))

        def wait() -> None:
            for work in works:
                guarded(work.wait)

        return wait

    def cut(self) -> None:
        """Abort the communicator, which ends its kernels. The group can then only be destroyed."""
        self._group.abort()


__all__ = ["GroupTransport", "MeshTransport", "Message", "Transport"]
