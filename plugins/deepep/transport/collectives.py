"""Any hosts: the collectives of the backend that the process group has, NCCL for tensors on GPUs and gloo on CPUs.

What is signalled waits, with the bytes that belong to it, until its rank has to wait for something itself. Then all
ranks exchange all that they have, in a round of two all-to-alls: what is coming, then the bytes.

    C1  All ranks call the same methods in the same order, so they make the same rounds. Receive hooks are called in the
        same order too. Ranks are one node: a round is for all of them, and those of two hops would not be.
    C2  The group is this transport's own, made over the store of the user's, so that a failure does not hurt that one.
    C3  A round that fails is the end. Who is to blame is found in the store: a rank that has left a reason there, else
        one that has not come to leave a note.
"""

import contextlib
import time
import uuid
from collections.abc import Sequence
from datetime import timedelta
from typing import Any, ClassVar, Final, Self

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import Store  # torch.distributed hides it from type checkers

from ..failure import CommunicationError, PeerLost, PeerTimeout, decode, first_line
from .interface import SPANS_MAX, NotUsable, Span
from .members import Members
from .outboxes import Outboxes

CARRIERS: Final = {"cpu": ("gloo", "ProcessGroupGloo"), "cuda": ("nccl", "ProcessGroupNCCL")}
"""For tensors of a device: the backend, and torch's class of its groups."""
SIGNALS_MAX: Final = 16
"""To one peer in one round: each call has two or three."""
SIGNAL_WORDS: Final = 3 + 2 * SPANS_MAX
HEADER_WORDS: Final = 1 + SIGNALS_MAX * SIGNAL_WORDS
GRACE_S: Final = 30.0
"""How long other ranks may take to notice that a round has failed. Once all but one have, that one is to blame."""
SPARE_S: Final = 60.0
"""The backend waits longer than this transport does, which then knows why a round has failed: so long, or twice as long
if that is less, for a process cannot end while its backend waits."""
CLOSED: Final = b"closed"
LATE: Final = b"late"
"""What a rank notes for which a round has taken too long: it ends the round of others, for whom it has not yet."""


class Collectives(Outboxes):
    """Outboxes for each peer on the device, and all-to-alls."""

    name: ClassVar[str] = "collectives"
    devices: ClassVar[tuple[str, ...]] = ("cuda",)
    signals_alone: ClassVar[bool] = False
    crosses_nodes: ClassVar[bool] = False

    def __init__(  # noqa: PLR0913 (what `open` has found)
        self, members: Members, mesh: Any, notes: Store, *, num_bytes: int, device: torch.device, timeout_s: float,
    ) -> None:  # fmt: skip
        super().__init__(members.rank, members.size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        self._mesh = mesh
        self._notes = notes
        self.carrier = CARRIERS[device.type][0]
        """The backend."""
        self._queues: list[list[tuple[int, int, list[Span]]]] = [[] for _ in range(self.size)]
        self._is_closed = False

    @classmethod
    def open(cls, members: Members, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        problem, notes, mesh = "", members.store(members.gather(f"luciola-deepep-{uuid.uuid4()}")[0]), None
        backend, group = CARRIERS[device.type]
        if notes is None:
            problem = (
                "a communicator of MPI has no collectives of torch: give a torch.distributed process group"
            )
        elif members.backend(device.type) != backend:
            problem = f"the process group has no {backend} for {device.type} tensors"
        else:
            try:
                limit = timedelta(seconds=timeout_s + min(timeout_s, SPARE_S))
                mesh = getattr(dist, group)(notes, members.rank, members.size, limit)
            except RuntimeError as error:
                problem = f"rank {members.rank} cannot connect: {first_line(error)}"
        problems = [each for each in members.gather(problem) if each]
        if problems or notes is None:
            raise NotUsable(problems[0])
        return cls(members, mesh, notes, num_bytes=num_bytes, device=device, timeout_s=timeout_s)

    def signal(self, peer: int, slot: int, epoch: int, *, spans: Sequence[Span] = ()) -> None:
        """As Transport.signal: it travels with the next round."""
        self._require_usable()
        if peer == self.rank:
            self._epochs[peer][slot] = epoch
            return
        assert len(spans) <= SPANS_MAX, "a signal has few spans"
        assert len(self._queues[peer]) < SIGNALS_MAX, "whoever signals waits now and then"
        self._queues[peer].append((slot, epoch, [each for each in spans if each[1]]))

    def wait(  # noqa: PLR0913
        self,
        peer: int,
        slot: int,
        epoch: int,
        *,
        what: str,
        timeout_s: float | None = None,
        fatal: bool = True,  # noqa: ARG002 (its rounds cannot go on)
    ) -> None:
        """As Transport.wait."""
        self._require_usable()
        limit_s = self.timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + limit_s
        while self._epochs[peer][slot] < epoch:
            if peer == self.rank:
                raise ValueError(f"rank {peer} waits for a signal of its own that it has not given")
            late = time.monotonic() >= deadline
            try:
                if not late:
                    self._round(deadline)
                    continue
                reason = "rounds came and went without it"
            except RuntimeError as error:
                reason = first_line(error)
                late = time.monotonic() >= deadline
            raise self._lost(peer, what, reason, limit_s, late=late)

    def fail(self, error: CommunicationError) -> None:
        """As Transport.fail."""
        if self._failure is None and not self._is_closed:
            self._failure = error
            self._leave(error.encode())

    def close(self) -> None:
        """As Transport.close. What was signalled and not yet carried gets lost: its receivers do not wait for it."""
        if self._is_closed:
            return
        self._is_closed = True
        if self._failure is None:
            self._leave(CLOSED)
        self._mesh = None
        self._regions.clear()

    def _round(self, deadline: float) -> None:
        """Everything that all ranks have signalled. Raises: RuntimeError."""
        queues, self._queues = self._queues, [[] for _ in range(self.size)]
        ours = torch.tensor([_header(queue) for queue in queues], device=self.device)
        theirs = torch.empty_like(ours)
        self._all_to_all(theirs, ours, [1] * self.size, [1] * self.size, deadline)
        came = [_signals(header) for header in theirs.tolist()]
        parts = [
            self._regions[peer][start : start + length]
            for peer, queue in enumerate(queues)
            for *_, spans in queue
            for start, length in spans
        ]
        sent, coming = _sizes(queues), _sizes(came)
        data = torch.empty(sum(coming), dtype=torch.uint8, device=self.device)
        self._all_to_all(data, torch.cat([data[:0], *parts]), coming, sent, deadline)
        at = 0
        for peer, signals in enumerate(came):
            for slot, epoch, spans in signals:
                for start, length in spans:
                    self._regions[self.rank][start : start + length] = data[at : at + length]
                    at += length
                self._epochs[peer][slot] = epoch

    def _all_to_all(
        self, into: Tensor, source: Tensor, came: list[int], sent: list[int], deadline: float
    ) -> None:
        work = self._mesh.alltoall_base(into, source, came, sent)
        # In whole milliseconds: one more, so that who has waited for the whole time knows that it was the whole time.
        work.wait(timedelta(seconds=max(deadline - time.monotonic(), 0.0) + 0.001))

    def _lost(self, peer: int, what: str, reason: str, limit_s: float, *, late: bool) -> CommunicationError:
        """Fails with who is to blame: all others notice, and say so, when this one leaves."""
        found: CommunicationError | None = None
        error: CommunicationError
        silent = list(self.peers)
        with contextlib.suppress(RuntimeError):  # the store may have gone with its rank
            self._notes.set(f"noticed/{self.rank}", LATE.decode() if late else reason)
            self._mesh.abort()
            deadline = time.monotonic() + GRACE_S
            while found is None and len(silent) > 1 and time.monotonic() < deadline:
                time.sleep(0.01)
                found = self._reason_of(silent, what)
                came = [each for each in silent if self._notes.check([f"noticed/{each}"])]
                late = late or any(bytes(self._notes.get(f"noticed/{each}")) == LATE for each in came)
                silent = [each for each in silent if each not in came]
        blamed = peer if peer in silent or not silent else min(silent)
        if late:
            text = f"timeout: rank {blamed} did not come within {limit_s:g} s"
            error = found or PeerTimeout(text, rank=self.rank, phase=what, peer=blamed)
        else:
            text = f"lost rank {blamed}: {reason}"
            error = found or PeerLost(text, rank=self.rank, phase=what, peer=blamed)
        self.fail(error)
        return error

    def _reason_of(self, peers: Sequence[int], what: str) -> CommunicationError | None:
        for peer in peers:
            if self._notes.check([f"reason/{peer}"]):
                reason = bytes(self._notes.get(f"reason/{peer}"))
                if reason != CLOSED:
                    return decode(reason)
                text = f"rank {peer} has closed its buffer"
                return PeerLost(text, rank=self.rank, phase=what, peer=peer)
        return None

    def _leave(self, reason: bytes) -> None:
        with contextlib.suppress(RuntimeError):
            self._notes.set(f"reason/{self.rank}", reason.decode())
        with contextlib.suppress(RuntimeError):
            self._mesh.abort()

    def __str__(self) -> str:
        return f"{self.name} of {self.carrier}" + (f" ({self.why})" if self.why else "")


def _header(queue: Sequence[tuple[int, int, list[Span]]]) -> list[int]:
    """How many signals there are, then each: slot, epoch, number of spans, start and length of each."""
    words = [len(queue)]
    for slot, epoch, spans in queue:
        words += [slot, epoch, len(spans), *(word for span in spans for word in span)]
    return words + [0] * (HEADER_WORDS - len(words))


def _sizes(signals: Sequence[Sequence[tuple[int, int, list[Span]]]]) -> list[int]:
    """Bytes that travel to or from each peer."""
    return [sum(length for *_, spans in each for _, length in spans) for each in signals]


def _signals(words: Sequence[int]) -> list[tuple[int, int, list[Span]]]:
    """What a header says."""
    signals, at = [], 1
    for _ in range(words[0]):
        slot, epoch, count = words[at : at + 3]
        spans = [(words[at + 3 + 2 * each], words[at + 4 + 2 * each]) for each in range(count)]
        signals.append((slot, epoch, spans))
        at += 3 + 2 * count
    return signals


__all__ = ["CARRIERS", "Collectives"]
