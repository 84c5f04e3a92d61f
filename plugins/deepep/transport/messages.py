"""Any hosts: gloo connections carry what was written into a peer's outbox to the peer's region.

Connections are this transport's own, so that a failure does not hurt the user's process group. A signal is a header of
64-bit words (epoch, number of spans, start and length of each) and the bytes of each span; it travels under a tag made
of its slot, is received when its peer waits for that slot, and goes straight into the region.

Sends are not waited for: gloo completes one when its peer has received it, which the peer's answer tells (T5). A failed
rank leaves its reason in the store that the process group was made with.
"""

import contextlib
import time
import uuid
from collections import deque
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final, NamedTuple, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store  # torch.distributed hides it from type checkers

from ..failure import CommunicationError, PeerLost, PeerTimeout, decode, first_line
from .interface import BARRIER_SLOT, SLOTS, SPANS_MAX, NotUsable, Span
from .members import Members
from .outboxes import Outboxes

HEADER_WORDS: Final = 2 + 2 * SPANS_MAX
SENDS_MAX: Final = 32
"""Signals of one slot to one peer that may be on their way: each is answered long before."""
GRACE_S: Final = 2.0
"""How long the reason of a peer that has cut its connections is waited for: it tells first and cuts then."""
CLOSED: Final = b"closed"


class _Patience(NamedTuple):
    """How long a wait goes on, and what for."""

    what: str
    limit_s: float
    deadline: float


class Messages(Outboxes):
    """Outboxes for each peer, and gloo connections."""

    name: ClassVar[str] = "messages"
    devices: ClassVar[tuple[str, ...]] = ("cpu", "cuda")

    def __init__(  # noqa: PLR0913 (what `open` has found)
        self,
        members: Members,
        mesh: Any,
        notes: Store,
        *,
        num_bytes: int,
        timeout_s: float,
        own: Tensor | None = None,
    ) -> None:
        super().__init__(
            members.rank, members.size, num_bytes=num_bytes, device=torch.device("cpu"), timeout_s=timeout_s
        )
        self._mesh = mesh
        self._notes = notes
        if own is not None:
            self._regions[self.rank] = own
        self._sends: dict[tuple[int, int], deque[tuple[Tensor, list[Any]]]] = {}

    @classmethod
    def open(
        cls,
        members: Members,
        num_bytes: int,
        *,
        device: torch.device,  # noqa: ARG003 (its regions are on the CPU)
        timeout_s: float,
        own: Tensor | None = None,
    ) -> Self:
        """All ranks together. `own`: memory for this rank's region. Raises: NotUsable on all of them."""
        name = members.gather(f"luciola-deepep-{uuid.uuid4()}")[0]
        notes, mesh, problem = members.store(name), None, ""
        if notes is None:
            problem = "a communicator of MPI has no store: give a torch.distributed process group"
        elif members.size > 1:
            try:
                mesh = dist.ProcessGroupGloo(notes, members.rank, members.size, timedelta(seconds=timeout_s))
            except RuntimeError as error:
                problem = f"rank {members.rank} cannot connect: {first_line(error)}"
        problems = [each for each in members.gather(problem) if each]
        if problems or notes is None:
            raise NotUsable(problems[0])
        return cls(members, mesh, notes, num_bytes=num_bytes, timeout_s=timeout_s, own=own)

    def signal(self, peer: int, slot: int, epoch: int, *, spans: Sequence[Span] = ()) -> None:
        """As Transport.signal."""
        self._require_usable()
        assert len(spans) <= SPANS_MAX, "a signal has few spans"
        if peer == self.rank:
            self._epochs[peer][slot] = epoch
            return
        spans = [each for each in spans if each[1]]
        header = torch.zeros(HEADER_WORDS, dtype=torch.int64)
        header[: 2 + 2 * len(spans)] = torch.tensor(
            [epoch, len(spans), *(word for each in spans for word in each)]
        )
        parts = [header, *(self._regions[peer][start : start + length] for start, length in spans)]
        phase = f"signal of slot {slot}"
        try:
            works = [self._mesh.send([part], peer, slot) for part in parts]
        except RuntimeError as error:
            if not spans:  # it would have said that the peer may go on, and the peer has left
                return
            raise self._lost(peer, phase, error) from error
        sends = self._sends.setdefault((peer, slot), deque())
        sends.append((header, works))
        if len(sends) > SENDS_MAX:
            for work in sends.popleft()[1]:
                self._finish(work, peer, self._patient(phase))

    def wait(  # noqa: PLR0913
        self,
        peer: int,
        slot: int,
        epoch: int,
        *,
        what: str,
        timeout_s: float | None = None,
        fatal: bool = True,  # noqa: ARG002 (its connections cannot go on)
    ) -> None:
        """As Transport.wait."""
        self._require_usable()
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        patience = _Patience(what, limit_s, time.monotonic() + limit_s)
        while self._epochs[peer][slot] < epoch:
            if peer == self.rank:
                raise ValueError(f"rank {peer} waits for a signal of its own that it has not given")
            header = torch.zeros(HEADER_WORDS, dtype=torch.int64)
            self._receive(header, peer, slot, patience)
            seen, count, *words = header.tolist()
            for start, length in zip(words[: 2 * count : 2], words[1 : 2 * count : 2], strict=True):
                self._receive(self._regions[self.rank][start : start + length], peer, slot, patience)
            self._epochs[peer][slot] = seen

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail. The connections are cut, so that peers that wait for this rank look for the reason."""
        if self._failure is None and self._mesh is not None:
            self._failure = error
            self._tell(error.encode())
            self._cut()

    def close(self) -> None:
        """As Transport.close. Bytes and barriers that were sent are received first, if their peers live.

        A signal alone may get lost: it says that its receiver may go on, which it cannot without this rank.
        """
        if self._mesh is None:
            return
        for (peer, slot), sends in self._sends.items():
            works = [work for _, sent in sends if len(sent) > 1 or slot == BARRIER_SLOT for work in sent]
            with contextlib.suppress(CommunicationError):
                for work in works if self._failure is None else ():
                    self._finish(work, peer, self._patient(f"close: slot {slot}"))
        if self._failure is None:
            self._tell(CLOSED)
        self._cut()
        self._mesh = None
        self._regions.clear()

    def _receive(self, into: Tensor, peer: int, slot: int, patience: _Patience) -> None:
        try:
            work = self._mesh.recv([into], peer, slot)
        except RuntimeError as error:
            raise self._lost(peer, patience.what, error) from error
        self._finish(work, peer, patience)

    def _finish(self, work: Any, peer: int, patience: _Patience) -> None:
        try:
            work.wait(timedelta(seconds=max(patience.deadline - time.monotonic(), 0.001)))
        except RuntimeError as error:
            if time.monotonic() < patience.deadline:
                raise self._lost(peer, patience.what, error) from error
            text = f"timeout: rank {peer} did not come within {patience.limit_s:g} s"
            late = PeerTimeout(text, rank=self.rank, phase=patience.what, peer=peer)
            self.fail(late)
            raise late from error

    def _patient(self, what: str) -> _Patience:
        return _Patience(what, self.timeout_s, time.monotonic() + self.timeout_s)

    def _lost(self, peer: int, what: str, error: RuntimeError) -> CommunicationError:
        reason = self._reason_of(peer)
        if reason is None:
            text = f"the connection to rank {peer} is lost ({first_line(error)}): its process has ended"
        else:
            text = f"rank {peer} has closed its buffer"
        lost: CommunicationError = PeerLost(text, rank=self.rank, phase=what, peer=peer)
        if reason is not None and reason != CLOSED:
            lost = decode(reason)
        self.fail(lost)
        return lost

    def _reason_of(self, peer: int) -> bytes | None:
        deadline = time.monotonic() + GRACE_S
        with contextlib.suppress(RuntimeError):  # the store's host may be the one that is lost
            while True:
                if self._notes.check([f"reason/{peer}"]):
                    return bytes(self._notes.get(f"reason/{peer}"))
                if time.monotonic() > deadline:
                    break
                time.sleep(0.02)
        return None

    def _tell(self, reason: bytes) -> None:
        with contextlib.suppress(RuntimeError):
            self._notes.set(f"reason/{self.rank}", reason.decode())

    def _cut(self) -> None:
        """Gloo has no other way to close a connection than a wait that runs out."""
        for peer in self.peers:
            with contextlib.suppress(RuntimeError):
                self._mesh.recv([torch.zeros(1)], peer, SLOTS).wait(timedelta(milliseconds=1))


__all__ = ["Messages"]
