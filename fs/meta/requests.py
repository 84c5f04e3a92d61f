"""What each client has settled, and which answers are stored for it.

A client numbers its requests and says with each one below which number all are *settled*: answered, or given up.

Q1  A request below the highest such mark that this process has seen is void: it is refused, wherever it was delayed,
    and whether it was seen before or not. This holds again at each attempt, so a request that waits inside this
    service ends when its client has given it up.
Q2  The answer to a settled request is deleted with the next request of its client, in the same transaction, by its
    key: nothing is scanned. An idle client leaves the answers to its last few requests.
Q3  What a client that is gone has left is deleted when the cluster manager has not known it for a session's timeout
    and it has been silent here for `idempotence_ms`. No wall clock is involved.

Marks are in memory only, and that is enough: a late request comes over a connection of *this* process. If its client
had settled it before this process started, it was sent before, over a connection that ended with the process before.
"""

from bisect import bisect_left, insort
from collections.abc import Collection, Sequence
from typing import Final

from ..errors import Busy, InvalidArgument
from ..kv import Engine
from ..wire.pb.common_pb2 import Caller
from . import schema

CLIENTS_MAX: Final = 1 << 18  # of which something is remembered: 100 MiB of memory
DROPPED_MAX: Final = 64  # answers deleted along with one request: a tenth of a millisecond
PAGE: Final = 10_000


class _Client:
    __slots__ = ("heard_s", "settled_below", "stored")

    def __init__(self, heard_s: float) -> None:
        self.settled_below = 0
        self.stored: list[int] = []  # sequences whose answers are in the store, ascending
        self.heard_s = heard_s


class Requests:
    """Marks and stored answers of all clients."""

    def __init__(self) -> None:
        self._clients: dict[int, _Client] = {}
        self._gone: dict[int, None] = {}  # clients whose answers are to be deleted

    def load(self, engine: Engine, *, now_s: float) -> None:
        """Finds all answers in the store."""
        self._clients.clear()
        self._gone.clear()
        begin, end = schema.kind_range(b"R")
        while True:
            pairs = engine.begin().snapshot_range(begin, end, limit=PAGE)
            for key, _ in pairs:
                client, sequence = schema.split_two(key)
                self._clients.setdefault(client, _Client(now_s)).stored.append(sequence)
            if len(pairs) < PAGE:
                return
            begin = pairs[-1][0] + b"\x00"

    def admit(self, caller: Caller, *, now_s: float) -> None:
        """Takes note of a numbered request. Raises: InvalidArgument if it is void or makes no sense; Busy."""
        known = self._clients.get(caller.client)
        if known is None:
            if len(self._clients) >= CLIENTS_MAX:
                raise Busy(f"requests of {CLIENTS_MAX} clients are remembered; try again later")
            known = self._clients[caller.client] = _Client(now_s)
        known.heard_s = now_s
        if self._gone:
            self._gone.pop(caller.client, None)
        if caller.settled_below > caller.sequence:
            raise InvalidArgument(
                "a request cannot be settled when it is sent: settled_below is above sequence"
            )
        if caller.sequence < known.settled_below:
            raise _void(caller.sequence)
        known.settled_below = max(known.settled_below, caller.settled_below)

    def check(self, client: int, sequence: int) -> None:
        """Raises: InvalidArgument if the request has become void (Q1)."""
        known = self._clients.get(client)
        if known is not None and sequence < known.settled_below:
            raise _void(sequence)

    def settled(self, client: int) -> Sequence[int]:
        """Settled requests of the client whose answers are stored: at most `DROPPED_MAX`, the oldest first."""
        known = self._clients.get(client)
        if known is None or not known.stored or known.stored[0] >= known.settled_below:
            return ()
        return known.stored[: min(DROPPED_MAX, bisect_left(known.stored, known.settled_below))]

    def stored(self, client: int, sequence: int) -> None:
        """The answer to this request is in the store, or may be."""
        known = self._clients[
            client
        ]  # it was admitted, and does not end while requests of it are carried out
        if not known.stored or known.stored[-1] < sequence:
            known.stored.append(sequence)
        elif known.stored[bisect_left(known.stored, sequence)] != sequence:
            insort(known.stored, sequence)

    def dropped(self, client: int, sequences: Sequence[int]) -> None:
        """The oldest answers of the client are not in the store any more."""
        known = self._clients.get(client)
        if known is None or not sequences:
            return
        count = len(sequences)
        if known.stored[:count] == sequences:
            del known.stored[:count]
        else:  # another request of the client has dropped some of them
            known.stored = [each for each in known.stored if each not in sequences]

    # Clients that are gone (Q3).

    def silent_outside(self, known: Collection[int], *, before_s: float) -> set[int]:
        """Clients that are not in `known`, and have sent nothing since `before_s`."""
        return {
            number
            for number, client in self._clients.items()
            if number not in known and client.heard_s <= before_s
        }

    def end(self, clients: Collection[int]) -> None:
        """These clients are gone."""
        self._gone.update((client, None) for client in clients if client in self._clients)

    def left_behind(self, *, limit: int) -> tuple[int, Sequence[int]] | None:
        """A client that is gone, and up to `limit` of its answers; None if there is no such client."""
        while self._gone:
            number = next(iter(self._gone))
            client = self._clients.get(number)
            if client is not None and client.stored:
                return number, client.stored[:limit]
            self._clients.pop(number, None)
            del self._gone[number]
        return None


def _void(sequence: int) -> InvalidArgument:
    return InvalidArgument(f"request {sequence} is void: its client has given it up")


__all__ = ["CLIENTS_MAX", "Requests"]
