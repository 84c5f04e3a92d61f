"""What a token opens that names a directory: that, and everything below it.

Every inode that such a request reads passes through its context. Allowed are

    inside     the directory itself, and what has a parent inside by its own record: a file with several names is inside
               where the last of its renames put it, or where it was made
    reached    what an entry of a directory inside names, however it got there
    above      the directories from the root to that one, to be looked at, and in each the one entry on the way: so
               paths begin at the root, and a mount shows the way

and to be changed only what is inside or reached. Everything else looks as if it did not exist, or is refused.
"""

from typing import Final

from google.protobuf.message import Message

from ..errors import PermissionDenied
from ..ids import ROOT_INODE
from ..kv import Transaction
from ..wire.pb.meta_pb2 import Inode
from .context import OperationContext, Request, SharedState
from .schema import Entry
from .sessions import SESSIONS_MAX

DEPTH_MAX: Final = 16_384  # directories between an inode and the root, as `rename` bounds them


class ConfinedContext(OperationContext):
    """An attempt at an operation whose caller may use one directory and what is below it."""

    __slots__ = ("_above", "_inside", "_reached")

    def __init__(
        self,
        shared: SharedState,
        txn: Transaction,
        request: Request[Message],
        *,
        now_ns: int,
        sessions_left: int = SESSIONS_MAX,
    ) -> None:
        super().__init__(shared, txn, request, now_ns=now_ns, sessions_left=sessions_left)
        assert request.root, "the token names a directory"
        self._inside = {request.root}
        self._reached: set[int] = set()
        self._above = self._ways(request.root)

    def _ways(self, root: int) -> dict[int, int]:
        """Return for each directory above `root` the one to go to; nothing if the directory is gone."""
        ways: dict[int, int] = {}
        found = super().find(root)
        number = root
        while found is not None and found.link_count and number != ROOT_INODE and len(ways) < DEPTH_MAX:
            ways[found.parent] = number
            number = found.parent
            found = super().find(number)
        return ways

    def is_inside(self, inode: Inode) -> bool:
        """Return whether the inode is below the token's directory, or that, or was reached from there."""
        if inode.id in self._inside or inode.id in self._reached:
            return True
        seen = [inode.id]
        number = inode.parent
        for _ in range(DEPTH_MAX):
            if number in self._inside:
                self._inside.update(seen)
                return True
            above = None if number in self._above else super().find(number)
            if above is None or number == ROOT_INODE:
                return False
            seen.append(number)
            number = above.parent
        return False

    def require_inside(self, number: int) -> None:
        """Raises: PermissionDenied."""
        found = super().find(number)
        if found is None or not self.is_inside(found):
            raise _refusal(number)

    # Reading.

    def find(self, inode: int) -> Inode | None:
        found = super().find(inode)
        return found if found is not None and self._may_see(found) else None

    def load(self, inode: int) -> Inode:
        return self._seen(super().load(inode))

    def get_for_update(self, inode: int) -> Inode:
        return self._seen(super().get_for_update(inode))

    def _seen(self, inode: Inode) -> Inode:
        if not self._may_see(inode):
            raise _refusal(inode.id)
        return inode

    def _may_see(self, inode: Inode) -> bool:
        return inode.id in self._above or self.is_inside(inode)

    def entry(self, directory: int, name: bytes) -> Entry | None:
        self.require_inside(directory)
        return self._shown(directory, super().entry(directory, name))

    def peek(self, directory: int, name: bytes) -> Entry | None:
        return self._shown(directory, super().peek(directory, name))

    def _shown(self, directory: int, entry: Entry | None) -> Entry | None:
        if entry is None:
            return None
        if directory in self._above and directory not in self._inside:
            return entry if entry.inode == self._above[directory] else None
        self.require_inside(directory)
        self._reached.add(entry.inode)
        return entry

    def only_entry(self, directory: int) -> int | None:
        if directory in self._inside:
            return None
        return self._above.get(directory)

    # Writing.

    def add_read_conflict(self, directory: int, name: bytes) -> None:
        self.require_inside(directory)  # every operation on a name begins so, before it has written anything
        super().add_read_conflict(directory, name)

    def put(self, inode: Inode) -> None:
        if not self.is_inside(inode):
            raise _refusal(inode.id)
        super().put(inode)

    def add_entry(self, directory: int, name: bytes, entry: Entry) -> None:
        self.require_inside(directory)
        super().add_entry(directory, name, entry)

    def remove_entry(self, directory: int, name: bytes, entry: Entry) -> None:
        self.require_inside(directory)
        super().remove_entry(directory, name, entry)


def context_of(
    shared: SharedState,
    txn: Transaction,
    request: Request[Message],
    *,
    now_ns: int,
    sessions_left: int = SESSIONS_MAX,
) -> OperationContext:
    """Return the context of one attempt at `request`."""
    kind = ConfinedContext if request.root else OperationContext
    return kind(shared, txn, request, now_ns=now_ns, sessions_left=sessions_left)


def _refusal(number: int) -> PermissionDenied:
    return PermissionDenied("the token does not open this: it is not below its path", inode=number)


__all__ = ["ConfinedContext", "context_of"]
