"""Any hosts: the collectives of the backend that the process group has, NCCL for tensors on GPUs and gloo on CPUs.

C1  All ranks call the same methods in the same order.
C2  The group is this link's own, made over the store of the user's, so that a failure does not hurt that one.
C3  A collective that fails is the end. The rank to blame is found in the store: one that has left a reason there, else
    one that has not reported the failure.
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

from ...kernels.ranks import first_line
from .bootstrap import Bootstrap, NotUsable, all_or_none
from .errors import CommunicationError, PeerLost, decode
from .interface import Link

CARRIERS: Final = {"cpu": ("gloo", "ProcessGroupGloo"), "cuda": ("nccl", "ProcessGroupNCCL")}
"""For tensors of a device: the backend, and torch's class of its groups."""
GRACE_S: Final = 30.0
"""How long other ranks may take to notice a failure. Once all but one have, that one is to blame."""
SPARE_S: Final = 60.0
"""How much longer than this link the backend waits, but at most twice as long: this link then knows why a collective
has failed, and a process cannot end while its backend waits."""
CLOSED: Final = b"closed"
LATE: Final = b"late"
"""What a rank reports that has waited for the whole time: others may notice its end before they have."""


class Collectives(Link):
    """All-gathers and all-to-alls."""

    name: ClassVar[str] = "collectives"
    device_type: ClassVar[str | None] = None

    def __init__(  # noqa: PLR0913 (what `open` has found)
        self, ranks: Bootstrap, group: Any, store: Store, *, num_bytes: int, device: torch.device, timeout_s: float,
    ) -> None:  # fmt: skip
        super().__init__(ranks.rank, ranks.size, num_bytes=num_bytes, device=device, timeout_s=timeout_s)
        self._group, self._store = group, store
        self.carrier = CARRIERS[device.type][0]
        """The backend."""

    @classmethod
    def open(cls, ranks: Bootstrap, num_bytes: int, *, device: torch.device, timeout_s: float) -> Self:
        """All ranks together. Raises: NotUsable on all of them."""
        store, group = ranks.store(ranks.gather(f"luciola-deepep-{uuid.uuid4()}")[0]), None
        backend, kind = CARRIERS[device.type]
        if store is None:
            raise NotUsable(
                "a communicator of MPI has no collectives of torch: give a torch.distributed process group"
            )
        if ranks.backend(device.type) != backend:
            raise NotUsable(f"the process group has no {backend} for {device.type} tensors")
        with all_or_none(ranks):
            limit = timedelta(seconds=timeout_s + min(timeout_s, SPARE_S))
            try:
                group = getattr(dist, kind)(store, ranks.rank, ranks.size, limit)
            except RuntimeError as error:
                raise RuntimeError(f"cannot connect: {first_line(error)}") from error
        return cls(ranks, group, store, num_bytes=num_bytes, device=device, timeout_s=timeout_s)

    def all_gather(self, row: Tensor, *, what: str) -> Tensor:
        """Shapes: row (n,), as long on all ranks; result (size, n)."""
        everyone = row.expand(self.size, -1).contiguous()
        return self.all_to_all(everyone, [1] * self.size, [1] * self.size, what=what)

    def all_to_all(self, rows: Tensor, sent: Sequence[int], coming: Sequence[int], *, what: str) -> Tensor:
        """Send `sent` rows to rank 0, 1, …; returns the `coming` rows of each rank, in the same order. Any dtype.

        Raises: PeerLost, PeerTimeout; or the failure that a peer has reported.
        """
        self._require_usable()
        assert (len(sent), len(coming), sum(sent)) == (self.size, self.size, len(rows)), (
            "a count for each rank"
        )
        data = rows.contiguous().view(len(rows), -1) if rows.numel() else rows.new_empty(rows.shape)
        result = data.new_empty((sum(coming), *data.shape[1:]))
        deadline = time.monotonic() + self.timeout_s
        try:
            work = self._group.alltoall_base(
                result.view(torch.uint8), data.view(torch.uint8), list(coming), list(sent)
            )
            # One millisecond more, its unit, so that a rank that has waited for the whole time knows that it was that.
            work.wait(timedelta(seconds=self.timeout_s + 0.001))
        except RuntimeError as error:
            late = time.monotonic() >= deadline
            raise self._lost(what, first_line(error), late=late) from error
        return result.view(sum(coming), *rows.shape[1:])

    def fail(self, error: CommunicationError) -> None:
        """As Link.fail."""
        if self._failure is None and not self._is_closed:
            self._failure = error
            self._leave(error.encode())

    def close(self) -> None:
        """As Link.close."""
        if not self._is_closed:
            self._is_closed = True
            if self._failure is None:
                self._leave(CLOSED)
            self._group = None

    def _lost(self, what: str, reason: str, *, late: bool) -> CommunicationError:
        """Fail with the rank to blame: all others notice, and report so, when this one leaves."""
        found: CommunicationError | None = None
        silent = list(self.peers)
        with contextlib.suppress(RuntimeError):  # the store may have gone with its rank
            self._store.set(f"noticed/{self.rank}", LATE.decode() if late else reason)
            self._group.abort()
            deadline = time.monotonic() + GRACE_S
            while found is None and len(silent) > 1 and time.monotonic() < deadline:
                time.sleep(0.01)
                found = self._reason_of(silent, what)
                came = [each for each in silent if self._store.check([f"noticed/{each}"])]
                late = late or any(bytes(self._store.get(f"noticed/{each}")) == LATE for each in came)
                silent = [each for each in silent if each not in came]
            found = found or self._reason_of(silent, what)
        blamed = min(silent, default=self.peers[0])
        if found is None and late:
            found = self._timeout(blamed, what)
        error = found or PeerLost(f"lost rank {blamed}: {reason}", rank=self.rank, phase=what, peer=blamed)
        self.fail(error)
        return error

    def _reason_of(self, peers: Sequence[int], what: str) -> CommunicationError | None:
        for peer in peers:
            if self._store.check([f"reason/{peer}"]):
                reason = bytes(self._store.get(f"reason/{peer}"))
                if reason != CLOSED:
                    return decode(reason)
                text = f"rank {peer} has closed its buffer"
                return PeerLost(text, rank=self.rank, phase=what, peer=peer)
        return None

    def _leave(self, reason: bytes) -> None:
        with contextlib.suppress(RuntimeError):
            self._store.set(f"reason/{self.rank}", reason.decode())
        with contextlib.suppress(RuntimeError):
            self._group.abort()

    def __str__(self) -> str:
        return f"{self.name} of {self.carrier}" + (f" ({self.why})" if self.why else "")


__all__ = ["CARRIERS", "Collectives"]
