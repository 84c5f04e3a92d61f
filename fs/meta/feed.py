"""The changes below a directory, in the order of the log, for a watcher that asks (`Meta.Watch`).

A watcher asks again and again, each time with the position up to which it knows all; the service keeps nothing of it.
The primary answers from a `Window`, which it keeps while a program watches. When none does, it costs nothing.

    F1  what is shown is in the log: it is committed, and no take-over takes it back
    F2  from one position to the next every change is shown once, in the order of the log, whichever process answers
    F3  a position from which that cannot be done is refused, and the refusal says what to do
    F4  a path is the one that the change had when it was made
    F5  who is not root sees a name only if it may list every directory from the watched one down to the name, as they
        are now

A position is that of a record in the log and the number of changes that are known of the next record.
"""

import asyncio
from collections.abc import Sequence
from typing import Final, NamedTuple, Self

from ..errors import Busy, InvalidArgument, NotFound, Unavailable
from ..ids import ROOT_INODE
from ..kv import Transaction
from ..kv.log import Diverged, Position, Record, Trimmed
from ..kv.log.ordered_log import DIGEST_BYTES
from ..kv.record import Operation, decode_record
from ..kv.replica import PrimaryEngine
from ..wire.pb import meta_pb2 as pb
from . import schema
from .change_window import CHANGES_MAX, RECORDS_MAX, Entry, Window, entry_of
from .changes import RESET, Change, Name
from .permissions import EXECUTE, READ, User, may

WATCHERS_MAX: Final = 256  # that wait at one time: a quarter of the calls that a service answers at once
WAIT_S_MAX: Final = 60.0
IDLE_S: Final = 60.0  # without a question, after which the window is dropped
REPLY_CHANGES_MAX: Final = 1000  # with paths of 4096 bytes less than a message may have
SLICE: Final = 128  # changes looked at, a few milliseconds, before other requests are served
DEPTH_MAX: Final = 4096  # directories between a name and the root
REMEDY: Final = "list the directory again, and watch from now on"


class Cursor(NamedTuple):
    """A position in the feed."""

    record: Position
    number: int = 0  # changes of the next record that are known

    def encode(self) -> str:
        """Return the text form."""
        return f"{self.record.index}-{self.number}-{self.record.digest.hex()}"

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return what `encode` was called on. Raises: InvalidArgument."""
        try:
            index, number, digest = text.split("-")
            found = cls(Position(int(index), bytes.fromhex(digest)), int(number))
        except (ValueError, AssertionError):
            found = None
        if found is None or found.number < 0 or len(found.record.digest) != DIGEST_BYTES:
            raise InvalidArgument(f"not a position of a change feed: {text[:100]!r}")
        return found


class Watched(NamedTuple):
    """A directory that is watched, and by whom."""

    directory: int
    user: User
    children_only: bool = False


class Feed:
    """The feed of one term."""

    def __init__(self, engine: PrimaryEngine) -> None:
        self._engine = engine
        self._applied = engine.applied
        self._log = engine.log
        self._window: Window | None = None
        self._grown = asyncio.Event()  # replaced with each record
        self._extending = asyncio.Lock()
        self._asked_s = 0.0
        self._waiting = 0
        self._ended = False

    def begin(self) -> Transaction:
        """Look at what is stored: what is not in the log yet is not seen (F1)."""
        return self._applied.engine.begin()

    async def changes(self, watched: Watched, after: str, *, wait_s: float) -> pb.WatchReply:
        """Return changes after that position, as soon as there are some, or none; without a position, none of before.

        Raises: InvalidArgument; NotFound with the field `too_old` (F3); Busy for too many watchers; Unavailable.
        """
        if self._waiting >= WATCHERS_MAX:
            raise Busy(f"{WATCHERS_MAX} programs watch for changes already; try again later")
        self._waiting += 1
        try:
            if not after:
                return pb.WatchReply(directory=watched.directory, position=Cursor(self._keep().end).encode())
            return await self._changes(watched, Cursor.parse(after), wait_s=min(wait_s, WAIT_S_MAX))
        finally:
            self._waiting -= 1
            self._asked_s = asyncio.get_running_loop().time()

    def close(self) -> None:
        """The term has ended: who waits asks another process."""
        self._ended = True
        self._window = self._applied.observer = None
        self._grown.set()

    async def _changes(self, watched: Watched, cursor: Cursor, *, wait_s: float) -> pb.WatchReply:
        loop = asyncio.get_running_loop()
        until_s = loop.time() + wait_s
        while True:
            window = await self._reach(cursor.record)
            found, cursor, is_complete = self._collect(window, cursor, watched)
            left_s = until_s - loop.time()
            if found or left_s <= 0:
                return pb.WatchReply(directory=watched.directory, position=cursor.encode(), changes=found)
            if is_complete:
                await _wait(self._grown, left_s)
            else:
                await asyncio.sleep(0)

    def _collect(
        self, window: Window, cursor: Cursor, watched: Watched
    ) -> tuple[Sequence[pb.NamespaceChange], Cursor, bool]:
        """Return what is shown of the next changes, where that ends, and whether it is the end of all."""
        view = View(window, self.begin(), watched)
        found: list[pb.NamespaceChange] = []
        looked_at = 0
        while cursor.record != window.end:
            entry = window.entry_after(cursor.record)
            for number in range(cursor.number, len(entry.changes)):
                change = entry.changes[number]
                if change.kind == RESET:
                    if found:
                        return found, cursor, False
                    raise _too_old("all that was there has been replaced since")
                is_last = number + 1 == len(entry.changes)
                cursor = Cursor(entry.position) if is_last else Cursor(entry.after, number + 1)
                shown = view.show(change, entry, number)
                if shown is not None:
                    shown.position = cursor.encode()
                    found.append(shown)
                looked_at += 1
                if looked_at >= SLICE or len(found) >= REPLY_CHANGES_MAX:
                    return found, cursor, False
            cursor = Cursor(entry.position)
            looked_at += 1
        return found, cursor, True

    # The window.

    def _keep(self) -> Window:
        """Return the window, which follows the store from now on."""
        if self._ended:
            raise Unavailable(
                "this metadata service does not serve any more: another one does, or will in a moment"
            )
        if self._window is None:
            self._window = Window(self._applied.position)
            self._applied.observer = self._carried_out
        assert self._window.end == self._applied.position, "W1: the window ends where the store is"
        return self._window

    def _carried_out(self, record: Record, operations: Sequence[Operation]) -> None:
        window = self._window
        assert window is not None, "the store is observed while there is a window"
        if not self._waiting and asyncio.get_running_loop().time() - self._asked_s > IDLE_S:
            self._window = self._applied.observer = None
            return
        window.append(entry_of(record, operations))
        self._grown.set()
        self._grown = asyncio.Event()

    async def _reach(self, position: Position) -> Window:
        """Return the window, which has what follows `position`. Raises: NotFound (F3); Unavailable."""
        window = self._keep()
        if window.has(position):
            return window
        if position.index > window.end.index and not self._engine.is_leased:
            raise Unavailable(
                "this metadata service does not lead any more"
            )  # who does may have come further
        if position.index >= window.begin.index:
            raise _too_old("the metadata log was restored from an old snapshot, or is another one")
        async with self._extending:
            await self._extend(position)
        window = self._keep()
        if not window.has(position):
            raise _too_old(f"more than {CHANGES_MAX} changes have been made since")
        return window

    async def _extend(self, position: Position) -> None:
        """Read what follows `position` from the log, and put it before the window."""
        entries: list[Entry] = []
        at, count = position, 0
        while at.index < self._keep().begin.index:
            for record in await self._read(at):
                entries.append(entry_of(record, decode_record(record.payload)))
                count += len(entries[-1].changes)
                at = record.position
                await asyncio.sleep(0)
            if count > CHANGES_MAX or len(entries) > RECORDS_MAX:
                raise _too_old(f"more than {CHANGES_MAX} changes have been made since")
        window = self._keep()
        missing = [entry for entry in entries if entry.position.index <= window.begin.index]
        if not missing:
            return  # another watcher has read them
        if missing[-1].position != window.begin:
            raise _too_old("the metadata log was restored from an old snapshot, or is another one")
        if count + window.count > CHANGES_MAX:
            raise _too_old(f"more than {CHANGES_MAX} changes have been made since")
        window.prepend(missing)

    async def _read(self, after: Position) -> Sequence[Record]:
        try:
            records = await self._log.read(after)
        except Trimmed as error:
            raise _too_old("the metadata log has been trimmed since") from error
        except Diverged as error:
            raise _too_old("the metadata log was restored from an old snapshot, or is another one") from error
        if not records:
            raise Unavailable("the metadata log ends before the position of this service")
        return records


class View:
    """What a watcher sees of changes, by the window and the store as they are now."""

    def __init__(self, window: Window, store: Transaction, watched: Watched) -> None:
        self._window = window
        self._store = store
        self._watched = watched
        self._inodes: dict[int, pb.Inode | None] = {}

    def show(self, change: Change, entry: Entry, number: int) -> pb.NamespaceChange | None:
        """Return the change with its paths, if it is below the directory and may be seen."""
        when = (entry.position.index, number)
        if not change.is_shown:
            return None
        shown = pb.NamespaceChange(
            kind=change.kind,  # type: ignore[arg-type]  # an int
            inode=change.inode,
            type=change.type,  # type: ignore[arg-type]
            replaced=change.replaced,
            exchanged=change.exchanged,
        )
        if change.kind == pb.CHANGE_ATTRIBUTES:
            return self._show_attributes(shown, change, when)
        if change.inode == self._watched.directory or self._is_above(change, when):
            shown.path = b""
            if change.kind == pb.CHANGE_RENAME:
                shown.old_path = b""
            return shown
        if change.replaced == self._watched.directory and not change.exchanged:
            return pb.NamespaceChange(
                kind=pb.CHANGE_REMOVE, path=b"", inode=change.replaced, type=pb.DIRECTORY
            )
        path = None if change.at is None else self._path(change.at, when)
        old_path = None if change.before is None else self._path(change.before, when)
        if path is None and old_path is None:
            return None
        if change.kind == pb.CHANGE_REMOVE:
            path, old_path = old_path, None
        if path is not None:
            shown.path = path
        if old_path is not None:
            shown.old_path = old_path
        return shown

    def _show_attributes(
        self, shown: pb.NamespaceChange, change: Change, when: tuple[int, int]
    ) -> pb.NamespaceChange | None:
        if change.inode == self._watched.directory:
            shown.path = b""
            return shown
        name = self._name_of(change, when)
        if name is None:
            watched = self._watched
            sees_all = watched.directory == ROOT_INODE and not watched.user.uid and not watched.children_only
            return shown if sees_all else None
        path = self._path(name, when)
        if path is None:
            return None
        shown.path = path
        return shown

    def _name_of(self, change: Change, when: tuple[int, int]) -> Name | None:
        """Return a name of an inode that was stored; None if it is not known."""
        if change.type == pb.DIRECTORY:
            return Name(change.parent, change.name)
        wanted = Name(change.parent, b"", change.cookie)
        moved = self._window.name_with_cookie(change.inode, wanted, *when)
        if moved is not None:
            return moved
        value = self._store.snapshot_get(schema.cookie_key(change.parent, change.cookie))
        if value is None:
            return None
        entry = schema.decode_dentry(value)
        return Name(change.parent, entry.name) if entry.inode == change.inode else None

    def _is_above(self, change: Change, when: tuple[int, int]) -> bool:
        """Return whether the watched directory went, with one above it."""
        if change.kind != pb.CHANGE_REMOVE or change.type != pb.DIRECTORY:
            return False
        index, number = when
        directory = self._watched.directory
        for _ in range(DEPTH_MAX):
            if directory in (change.inode, ROOT_INODE):
                return directory == change.inode
            name = self._directory_name(directory, (index, number - 1))
            if name is None:
                return False
            directory = name.directory
        return False

    def _path(self, name: Name, when: tuple[int, int]) -> bytes | None:
        """Return the path below the watched directory; None if the name is elsewhere, or must not be seen (F5)."""
        names = [name.name]
        directory = name.directory
        for _ in range(DEPTH_MAX):
            if not self._may_list(directory):
                return None
            if directory == self._watched.directory:
                return b"/".join(reversed(names))
            if directory == ROOT_INODE or self._watched.children_only:
                return None
            above = self._directory_name(directory, when)
            if above is None:
                return None
            names.append(above.name)
            directory = above.directory
        return None

    def _directory_name(self, directory: int, when: tuple[int, int]) -> Name | None:
        """Return the name that the directory had (F4); None if it had none."""
        moved = self._window.name_before(directory, *when)
        if moved is not None:
            return moved
        inode = self._inode(directory)
        return Name(inode.parent, inode.name) if inode is not None and inode.link_count else None

    def _may_list(self, directory: int) -> bool:
        if not self._watched.user.uid:
            return True
        inode = self._inode(directory)
        return inode is not None and may(self._watched.user, inode, READ | EXECUTE)

    def _inode(self, number: int) -> pb.Inode | None:
        if number not in self._inodes:
            value = self._store.snapshot_get(schema.inode_key(number))
            self._inodes[number] = None if value is None else schema.decode_inode(value)
        return self._inodes[number]


async def _wait(event: asyncio.Event, longest_s: float) -> None:
    try:
        async with asyncio.timeout(longest_s):
            await event.wait()
    except TimeoutError:
        return


def _too_old(why: str) -> NotFound:
    return NotFound(f"the change feed cannot continue from this position: {why}; {REMEDY}", too_old=True)


__all__ = ["IDLE_S", "REPLY_CHANGES_MAX", "WATCHERS_MAX", "Cursor", "Feed", "Watched"]
