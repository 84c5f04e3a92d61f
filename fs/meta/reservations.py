"""Ids of inodes that a client gives to what it makes, so that it knows them before this service does.

    Y1  a reserved id is its client's only, and used once: a client uses each range in ascending order, and what is
        used, or passed over, is stored with what was made
    Y2  a reservation is on disk before the client knows it, and is known to the next primary
    Y3  reservations go with their client, as answers do (`requests`, Q3), and before a dump is loaded

An id that is never used is lost, as one of an interrupted operation is.
"""

from typing import Final

from ..errors import InvalidArgument
from ..kv import Transaction
from . import schema
from .allocator import LOW, Allocator

COUNT_MAX: Final = 4096  # at one time: as many files as a client makes in about a second
RANGES_MAX: Final = 2  # of one client: the one in use, and the next
assert COUNT_MAX <= LOW, "a refill of the allocator brings enough"


def reserve(txn: Transaction, client: int, allocator: Allocator, *, count: int) -> range:
    """Reserve ids for the client, besides the youngest range that it has. Raises: InvalidArgument; RetryAfterRefill."""
    if not 0 < count <= COUNT_MAX:
        raise InvalidArgument(f"1 to {COUNT_MAX} inodes are reserved in one request, not {count}")
    key = schema.reservation_key(client)
    first = allocator.take_range(count)
    reserved = range(first, first + count)
    ranges = [each for each in schema.decode_reservations(txn.get(key)) if each]
    txn.put(key, schema.encode_reservations([*ranges, reserved][-RANGES_MAX:]))
    return reserved


class ReservedInodes:
    """What of its client's reservations one transaction uses."""

    def __init__(self, txn: Transaction, client: int) -> None:
        self._txn = txn
        self._key = schema.reservation_key(client)
        self._ranges: list[range] | None = None  # as they were, without what is used here
        self._is_changed = False

    def require(self, inode: int) -> None:
        """Raises: InvalidArgument unless the client has reserved the id, and used none from it on in its range."""
        if self._find(inode) is None:
            raise InvalidArgument("this client has not reserved the inode, or has used it", inode=inode)
        assert self._txn.get(schema.inode_key(inode)) is None, "Y1: no other inode is overwritten"

    def use(self, inode: int) -> None:
        """An inode with the id is made."""
        found = self._find(inode)
        assert found is not None, "`require` has looked"
        assert self._ranges is not None, "`_find` has read them"
        place, ids = found
        self._ranges[place] = range(inode + 1, ids.stop)
        self._is_changed = True

    def store(self) -> None:
        """Store what is left (Y1)."""
        if self._is_changed:
            assert self._ranges is not None, "what is changed was read"
            self._txn.put(self._key, schema.encode_reservations([each for each in self._ranges if each]))

    def _find(self, inode: int) -> tuple[int, range] | None:
        if self._ranges is None:
            self._ranges = schema.decode_reservations(self._txn.get(self._key))
        return next(((place, ids) for place, ids in enumerate(self._ranges) if inode in ids), None)


__all__ = ["COUNT_MAX", "RANGES_MAX", "ReservedInodes", "reserve"]
