"""What the ranks of one pipeline share until a failure: a rendezvous, connections, and a count of steps.

A failure ends the session on every rank; the next step begins another one, on all ranks again. Which rank is in which
session needs no agreement: sessions are counted, and a rank that did not notice a failure learns of it at the
rendezvous when it begins its next step.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Final

import torch
import torch.distributed as dist
from torch import Tensor

from .failure import Cause, LinkLost, PipelineError
from .rendezvous import Rendezvous, StoreLost
from .transport import GroupTransport, MeshTransport, Message, Transport
from .watchdog import Watchdog

SPECIAL: Final = 1 << 30
"""From here on tags are for messages that no schedule knows."""

GRACE_S: Final = 1.0
"""How long a rank whose link broke waits for the peer's own report, before it reports that the peer has gone."""
GRACE_PARTS: Final = 50


class Session:
    """One rank's share in a pipeline's session."""

    def __init__(
        self,
        rendezvous: Rendezvous,
        *,
        ranks: int,
        device: torch.device,
        group: dist.ProcessGroup | None,
        global_ranks: Sequence[int],
    ) -> None:
        self.rendezvous = rendezvous
        self.rank = rendezvous.rank
        self.ranks = ranks
        self.device = device
        self.steps = 0
        self.calls = 0
        """Of the functions that exchange special messages."""
        self._group = group
        """Messages travel in it; without one, in connections of this session's own."""
        self._global_ranks = global_ranks
        self._transport: Transport | None = None
        self._old: list[list[str]] = []
        self._keys: list[str] = []
        self._last_event: torch.cuda.Event | None = None

    def transport(self) -> Transport:
        """The connections, made at the first call; then all ranks must call."""
        if self._transport is None:
            self._gather()
            if self._group is not None:
                self._transport = GroupTransport(self._group, self._global_ranks, self.device)
            else:
                self._transport = MeshTransport(self.rendezvous, ranks=self.ranks)
        return self._transport

    def _gather(self) -> None:
        """Wait for all ranks, so that making connections, which cannot be interrupted, does not wait for one of them.

        First for those that have not begun, which names a rank that does not come; then for those whose step may still
        fail before they connect.
        """
        for key, what in (("here", "begin its step"), ("ready", "connect")):
            self.rendezvous.put(f"{key}/{self.rank}", b"1")
            for rank in range(self.ranks):
                self.rendezvous.wait(f"{key}/{rank}", what=f"pipeline rank {rank} to {what}")

    def supervise(self, neighbours: Sequence[int]) -> AbstractContextManager[object]:
        """Supervise what this rank does until the `with` block ends."""
        if self.ranks == 1:
            return nullcontext()
        return Watchdog(self.rendezvous, neighbours=neighbours, cut=self.cut, pending=self._pending)

    def compare(self, neighbours: Sequence[int], facts: Mapping[str, str]) -> None:
        """Make sure that this rank and its neighbours begin the same step. All being equal follows.

        Raises: ValueError that names the difference.
        """
        if self._transport is None:  # it is here, before it waits for any other
            self.rendezvous.put(f"here/{self.rank}", b"1")
        key = f"step/{self.steps}"
        self.rendezvous.put(f"{key}/{self.rank}", json.dumps(dict(facts)).encode())
        for peer in neighbours:
            what = f"pipeline rank {peer} to begin step {self.steps}"
            theirs: dict[str, str] = json.loads(self.rendezvous.wait(f"{key}/{peer}", what=what))
            for name, value in facts.items():
                other = theirs.get(name, "nothing like it")
                if other != value:
                    raise ValueError(
                        f"rank {self.rank} runs this step with {name} = {value}, but rank {peer} with "
                        f"{other}: all ranks must agree"
                    )

    def end_step(self, keys: Sequence[str]) -> None:
        """Count a step. Its keys are deleted when no rank can want them: neighbours are at most one step behind."""
        if self.device.type == "cuda":
            self._last_event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._last_event.record()
        self._old.append([f"step/{self.steps}/{self.rank}", *keys, *self._keys])
        self._keys = []
        if len(self._old) > 2:
            with suppress(StoreLost):  # its host may have ended after its last step
                self.rendezvous.delete(self._old.pop(0))
        self.steps += 1

    def swap(self, peer: int, tensors: Sequence[Tensor], room: Sequence[Tensor], *, what: str) -> None:
        """Send tensors to a peer and take others from it. Both ranks must call, with fitting tensors."""
        what = f"exchange of {what} with pipeline rank {peer}"
        messages = [
            Message(outgoing, peer, SPECIAL + index % (1 << 20), tensor, what)
            for outgoing, group in ((True, tensors), (False, room))
            for index, tensor in enumerate(group)
        ]
        self.transport().start(messages)()

    def agree(self, peer: int, name: str, mine: bytes) -> bytes:
        """Exchange a value with a peer through the store."""
        self.rendezvous.put(f"{name}/{self.rank}", mine)
        theirs = self.rendezvous.wait(
            f"{name}/{peer}", what=f"{name.partition('/')[0]} of pipeline rank {peer}"
        )
        self._keys.append(f"{name}/{self.rank}")
        return theirs

    def cut(self) -> None:
        """End all waits of this rank."""
        if self._transport is not None:
            self._transport.cut()

    def _pending(self) -> bool:
        return self._last_event is not None and not self._last_event.query()  # type: ignore[no-untyped-call]

    def failed(self, error: BaseException, *, where: str, moving: bool) -> Cause:
        """Report to all ranks that this one failed, or learn which one did first.

        `moving` says if messages may be on their way: only then must the user's group be aborted.
        """
        try:
            cause = self._cause(error, where)
        except StoreLost as lost:
            what = f"{_said(error)}; the store is lost too, so the process that hosts it has ended ({lost})"
            cause = Cause(self.rank, where, what.splitlines()[0])
        if moving or self._group is None:
            self.cut()
        self._transport = None
        return cause

    def _cause(self, error: BaseException, where: str) -> Cause:
        if isinstance(error, PipelineError):
            return error.cause
        if isinstance(error, LinkLost):
            reported = self._await_report()
            if reported is not None:
                return reported
            what = f"lost pipeline rank {error.peer} ({error}): its process has ended, or is stuck"
            return self.rendezvous.report(Cause(self.rank, where, what))
        return self.rendezvous.report(Cause(self.rank, where, _said(error)))

    def _await_report(self) -> Cause | None:
        for _ in range(GRACE_PARTS):
            failure = self.rendezvous.failure()
            if failure is not None:
                return failure
            time.sleep(GRACE_S / GRACE_PARTS)
        return None


def _said(error: BaseException) -> str:
    text = str(error)
    return text if isinstance(error, LinkLost | TimeoutError) else f"{type(error).__name__}: {text}"


__all__ = ["Session"]
