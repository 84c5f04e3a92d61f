"""What each client has settled, and which answers are stored for it.

A client numbers its requests and says with each one below which number all are *settled*: answered, or given up.

Q1  A request below the highest such mark that this process has seen is void: it is refused, wherever it was delayed,
    and whether it was seen before or not. This holds again at each attempt, so a request that waits inside this
    service ends when its client has given it up.
Q2  The answer to a settled request is overwritten by one to a later request of its client: each answer has a slot of
    its client's, and the slots of settled requests are used again. Nothing is scanned, and a client that has many
    requests in flight at one time leaves `FREE_MAX` slots more than it uses, the others are deleted.
Q3  What a client that is gone has left is deleted when the cluster manager has not known it for a session's timeout
    and it has been silent here for `idempotence_ms`. No wall clock is involved.
Q4  Memory knows the slots of all stored answers. A request that has none was not carried out, and is not looked up.

Q5  A client's id belongs to who used it first with this process: a request of another principal under that id is
    refused, since it would get what the client may read, end its sessions and get its answers.

Marks are in memory only, and that is enough: a late request comes over a connection of *this* process. If its client
had settled it before this process started, it was sent before, over a connection that ended with the process before.
"""

from bisect import insort
from collections import Counter
from collections.abc import Collection, Sequence
from typing import Final

from ..clock import Clock
from ..errors import Busy, InvalidArgument, PermissionDenied
from ..kv import Engine
from ..shares import may_take
from ..wire.credentials import Principal
from ..wire.pb.common_pb2 import Caller
from . import schema

CLIENTS_MAX: Final = 1 << 18  # of which something is remembered: 100 MiB of memory; each user has a share
FREE_MAX: Final = 64  # slots that a client may have in the store beside those in use
DROPPED_MAX: Final = 64  # answers deleted along with one request: a tenth of a millisecond
PAGE: Final = 10_000


class ClientRequests:
    """The mark and the slots of one client."""

    __slots__ = ("_end", "_free", "_live", "_slots", "has_sent", "owner", "seen_s", "settled_below")

    def __init__(self, seen_s: float) -> None:
        self.settled_below = 0
        self.seen_s = seen_s  # or later, if `has_sent`
        self.has_sent = False
        self.owner: Principal | None = None  # the id was not used since this process started (Q5)
        self._slots: dict[int, int] = {}  # by the sequence of the request whose answer is there, or may be
        self._live: list[int] = []  # the keys of `_slots`, ascending
        self._free: list[int] = []  # slots of settled requests
        self._end = 0  # all slots are below

    def load(self, slots: dict[int, int]) -> None:
        """Take over what is in the store: the slots of answers by sequence."""
        self._slots = slots
        self._live = sorted(slots)
        self._end = max(slots.values()) + 1
        assert len(set(slots.values())) == len(slots), "Q2: each answer has a slot of its own"

    def check(self, sequence: int) -> None:
        """Raises: InvalidArgument if the request has become void (Q1)."""
        if sequence < self.settled_below:
            raise InvalidArgument(f"request {sequence} is void: its client has given it up")

    def settle(self, below: int) -> None:
        """The client's mark."""
        if below <= self.settled_below:
            return
        self.settled_below = below
        live = self._live
        while live and live[0] < below:
            self._free.append(self._slots.pop(live.pop(0)))
        assert len(live) == len(self._slots), "Q2: the slots of settled requests are free"

    def find(self, sequence: int) -> int | None:
        """Return the slot where the answer to this request may be."""
        return self._slots.get(sequence)

    def take(self, sequence: int) -> int:
        """Return a slot for the answer to this request: the same at each of its attempts."""
        slot = self._slots.get(sequence)
        if slot is not None:
            return slot
        if self._free:
            slot = self._free.pop()
        else:
            slot = self._end
            self._end += 1
        self._slots[sequence] = slot
        if not self._live or self._live[-1] < sequence:
            self._live.append(sequence)
        else:
            insort(self._live, sequence)
        assert len(self._live) == len(self._slots), "Q4: each answer has a slot"
        assert slot < self._end, "all slots are below the end"
        return slot

    def surplus(self) -> Sequence[int]:
        """Free slots that the client should not keep in the store, up to `DROPPED_MAX`."""
        more = len(self._free) - FREE_MAX
        surplus = self._free[: min(DROPPED_MAX, more)] if more > 0 else []
        assert not surplus or len(self._free) - len(surplus) >= FREE_MAX, "Q2: some slots are kept"
        return surplus

    def dropped(self, slots: Sequence[int]) -> None:
        """What `surplus` has just said is not in the store any more."""
        assert list(slots) == self._free[: len(slots)], "nothing has used the slots since"
        del self._free[: len(slots)]

    def give(self, limit: int) -> Sequence[int]:
        """Take up to `limit` slots from this client, and return them."""
        if not self._free:
            self._free.extend(self._slots.pop(sequence) for sequence in self._live[:limit])
            del self._live[:limit]
        assert limit > 0, "some slots are asked for"
        slots = self._free[-limit:]
        del self._free[-limit:]
        return slots

    def take_back(self, slots: Sequence[int]) -> None:
        assert set(slots).isdisjoint(self._free), "a slot is free once"
        self._free.extend(slots)


class Requests:
    """Marks and slots of all clients."""

    def __init__(self) -> None:
        self._clients: dict[int, ClientRequests] = {}
        self._counts: Counter[Principal] = (
            Counter()
        )  # of each user's clients, as far as owners are known (Q5)
        self._gone: dict[int, None] = {}  # clients whose answers are to be deleted

    def load(self, engine: Engine, *, now_s: float) -> None:
        """Find all answers in the store."""
        slots: dict[int, dict[int, int]] = {}
        begin, end = schema.kind_range(b"R")
        while True:
            pairs = engine.begin().snapshot_range(begin, end, limit=PAGE)
            for key, value in pairs:
                client, slot = schema.split_two(key)
                slots.setdefault(client, {})[schema.decode_record(value).sequence] = slot
            if len(pairs) < PAGE:
                break
            begin = pairs[-1][0] + b"\x00"
        self._gone.clear()
        self._counts.clear()
        self._clients = {client: ClientRequests(now_s) for client in slots}
        for client, known in self._clients.items():
            known.load(slots[client])

    def require_owner(self, number: int, principal: Principal, clock: Clock) -> None:
        """The client's id is used by `principal` (Q5). Raises: PermissionDenied if it is another's."""
        known = self._clients.get(number)
        if known is None:
            if not may_take(self._counts[principal], used=len(self._clients), limit=CLIENTS_MAX):
                return  # it reads; what is numbered is refused
            known = self._clients[number] = ClientRequests(clock.monotonic())
        known.has_sent = True
        if known.owner is None:
            known.owner = principal
            self._counts[principal] += 1
        elif known.owner != principal:
            raise PermissionDenied(f"client {number:#x} belongs to another token")

    def admit(self, caller: Caller) -> ClientRequests:
        """Take note of a numbered request. Raises: InvalidArgument if it is void or makes no sense; Busy."""
        client, sequence, settled_below = caller.client, caller.sequence, caller.settled_below
        known = self._clients.get(client)
        if known is None:
            raise Busy(
                f"requests of at most {CLIENTS_MAX} clients are remembered, and this user has its share of them; "
                "try again when some clients have ended"
            )
        if self._gone:
            self._gone.pop(client, None)
        if settled_below > sequence:
            raise InvalidArgument(
                "a request cannot be settled when it is sent: settled_below is above sequence"
            )
        known.check(sequence)
        known.settle(settled_below)
        return known

    # Clients that are gone (Q3).

    def silent_outside(self, known: Collection[int], *, now_s: float, for_s: float) -> set[int]:
        """Clients that are not in `known`, and have sent nothing for `for_s`."""
        for client in self._clients.values():
            if client.has_sent:
                client.has_sent, client.seen_s = False, now_s
        return {
            number
            for number, client in self._clients.items()
            if number not in known and client.seen_s <= now_s - for_s
        }

    def end(self, clients: Collection[int]) -> None:
        """These clients are gone."""
        self._gone.update((client, None) for client in clients if client in self._clients)

    def left_behind(self, *, limit: int) -> tuple[int, Sequence[int]] | None:
        """Return a client that is gone, and take up to `limit` of its slots; None if there is none."""
        while self._gone:
            number = next(iter(self._gone))
            client = self._clients.get(number)
            slots = () if client is None else client.give(limit)
            if slots:
                return number, slots
            if client is not None:
                self._forget(number, client)
            del self._gone[number]
        return None

    def _forget(self, number: int, client: ClientRequests) -> None:
        del self._clients[number]
        if client.owner is not None:
            self._counts[client.owner] -= 1
            if not self._counts[client.owner]:
                del self._counts[client.owner]

    def still_there(self, client: int, slots: Sequence[int]) -> None:
        """These slots, of `left_behind`, could not be deleted."""
        known = self._clients.get(client)
        if known is not None:
            known.take_back(slots)


__all__ = ["CLIENTS_MAX", "ClientRequests", "Requests"]
