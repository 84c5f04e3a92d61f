"""One request, and one attempt at it: the transaction, the caller, and what must happen after the commit.

Operations are functions of an `OperationContext` and the request's message that never wait (`retry` says how one that
would have to wait ends).
"""

from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from typing import Final, Generic, NamedTuple, TypeVar

from google.protobuf.message import Message

from ..config import MetaConfig
from ..errors import InvalidArgument, NotADirectory, NotFound
from ..ids import ROOT_INODE
from ..kv import Transaction
from ..wire.pb.meta_pb2 import DIRECTORY, REGULAR, Inode, InodeReply, Spare
from . import schema
from .allocator import FIRST_ID, Allocator
from .layout import Placer
from .permissions import User
from .removal_clock import RemovalClock
from .replies import AnyInodeReply, of_inode
from .requests import ClientRequests
from .retry import RetryAfterTruncate, RetryAfterWait
from .schema import Entry, TruncateIntent
from .sessions import SESSIONS_MAX

DIRECTORY_LINKS: Final = 2  # its name, and its own "."
NS_PER_MS: Final = 1_000_000
EMFILE: Final = 24

Body_co = TypeVar("Body_co", bound=Message, covariant=True)


class Measured(NamedTuple):
    """What the chains said: the end of the last chunk of `content`, asked at this `truncate_version`."""

    content: int
    truncate_version: int
    length: int


@dataclass(slots=True)
class SharedState:
    """What all operations of a service share."""

    config: MetaConfig
    placer: Placer
    inodes: Allocator
    contents: Allocator
    removal_clock: RemovalClock
    truncating: Container[int] = ()  # inodes with a truncation in progress


@dataclass(slots=True)
class Request(Generic[Body_co]):
    """One request, over all attempts at it."""

    message: Body_co
    user: User
    client: int
    sequence: int = 0  # 0: the client has not numbered it
    is_recorded: bool = False  # the reply is recorded with the operation, if the request is numbered
    client_requests: ClientRequests | None = None  # of a numbered request's client
    session: int = 0  # for a file that is opened for writing
    root: int = 0  # of what the caller's token opens; 0: all
    measured: dict[int, Measured] = field(default_factory=dict)
    intents: dict[int, TruncateIntent] = field(default_factory=dict)  # carried out for this request
    checked: set[int] = field(default_factory=set)  # directories below which the user may remove everything
    uncertain: set[int] = field(default_factory=set)  # inodes whose sessions a commit may have changed
    uncertain_inodes: Sequence[int] = ()  # new inodes of a commit whose outcome was unknown


class OperationContext:
    """One attempt at one operation. The fields after `now_ns` are what the operation asks for after its commit."""

    __slots__ = (
        "abandoned",
        "birth_ns",
        "closed",
        "last_directory",
        "new_inodes",
        "next_inode",
        "now_ns",
        "older",
        "opened",
        "pending_truncate",
        "request",
        "sessions_left",
        "shared",
        "touched",
        "txn",
        "user",
    )

    def __init__(
        self,
        shared: SharedState,
        txn: Transaction,
        request: Request[Message],
        *,
        now_ns: int,
        sessions_left: int = SESSIONS_MAX,
    ) -> None:
        self.shared = shared
        self.txn = txn
        self.request = request
        self.user = request.user
        self.now_ns = now_ns
        self.sessions_left = sessions_left  # so many more files the client may open for writing
        self.next_inode = (
            0  # what the next inode that is made gets as id, which its client has reserved; 0: a new one
        )
        self.birth_ns = 0  # what it gets as its times; 0: `now_ns`
        self.opened: list[tuple[int, int]] = []  # (inode, session)
        self.closed: list[tuple[int, int]] = []
        self.abandoned: list[tuple[int, int]] = []
        self.new_inodes: list[int] = []
        self.pending_truncate: RetryAfterTruncate | None = (
            None  # must be carried out before this attempt commits
        )
        self.last_directory: Inode | None = None  # that was looked up, to be looked at only
        self.touched = 0  # the directory whose entry time was stored last
        self.older: set[int] = set()  # inodes that are stored with a `change` of an earlier boot

    @property
    def now_ms(self) -> int:
        return self.now_ns // NS_PER_MS

    # Reading.

    def find(self, inode: int) -> Inode | None:
        """Return the inode as stored, or None; it may change before the commit."""
        value = self.txn.snapshot_get(schema.inode_key(inode))
        return None if value is None else self._known(value)

    def load(self, inode: int) -> Inode:
        """Return the inode as stored; it may change before the commit. Raises: NotFound."""
        value = self.txn.snapshot_get(schema.inode_key(inode))
        if value is None:
            raise NotFound("no such inode", inode=inode)
        return self._known(value)

    def get_for_update(self, inode: int) -> Inode:
        """Return the inode as stored, to be changed: the commit fails if another transaction changes it.

        Raises: NotFound.
        """
        value = self.txn.get(schema.inode_key(inode))
        if value is None:
            raise NotFound("no such inode", inode=inode)
        return self._known(value)

    def _known(self, value: bytes) -> Inode:
        """Return the inode with a `change` that no client can know of a state which was lost with power."""
        inode = schema.decode_inode(value)
        if inode.change < self.shared.removal_clock.first_change:
            inode.change = self.shared.removal_clock.first_change
            self.older.add(inode.id)
        return inode

    def directory(self, inode: int) -> Inode:
        """Return the directory as stored; it may change before the commit. Raises: NotFound, NotADirectory."""
        last = self.last_directory
        if last is not None and last.id == (inode or ROOT_INODE):  # both ends of a rename
            return last
        found = self.load(inode or ROOT_INODE)
        if found.type != DIRECTORY:
            raise NotADirectory("not a directory", inode=inode)
        self.last_directory = found
        return found

    def entry(self, directory: int, name: bytes) -> Entry | None:
        """Return what the directory says of the name; the commit fails if that changes."""
        value = self.txn.get(schema.entry_key(directory, name))
        return None if value is None else schema.decode_entry(value)

    def peek(self, directory: int, name: bytes) -> Entry | None:
        """As `entry`, but it may change before the commit."""
        value = self.txn.snapshot_get(schema.entry_key(directory, name))
        return None if value is None else schema.decode_entry(value)

    def add_read_conflict(self, directory: int, name: bytes) -> None:
        """The commit fails if what was glanced at has changed."""
        self.txn.add_read_conflict(schema.entry_key(directory, name))

    def visible(self, inode: Inode) -> Inode:
        """Return the inode as callers see it: a directory's times and links are kept beside its record."""
        if inode.type != DIRECTORY:
            return inode
        seen = Inode()
        seen.CopyFrom(inode)
        look = self.txn.snapshot_get
        count = look(schema.subdirectories_key(inode.id)) if inode.link_count else None
        complete_directory(seen, look(schema.time_key(inode.id)), count)
        return seen

    def reply(self, inode: Inode, *, session: int = 0, created: bool = False) -> AnyInodeReply:
        """Return the inode for its caller. It is as it was found, or has been stored since it was changed."""
        if inode.type == DIRECTORY:
            return InodeReply(inode=self.visible(inode), session=session, created=created)
        return of_inode(
            inode.id,
            self.stored(inode.id),
            session=session,
            created=created,
            named=self.request.is_recorded and inode.link_count > 0,
        )

    def stored(self, inode: int) -> bytes:
        """Return the inode, which this attempt has found, as `load` shows it after what the attempt has stored."""
        stored = self.txn.snapshot_get(schema.inode_key(inode))
        assert stored is not None, "it was found, or has been stored"
        if inode in self.older:  # of a field that is there twice the last one counts
            stored += Inode(change=self.shared.removal_clock.first_change).SerializeToString()
        return stored

    def others_write(self, inode: int) -> bool:
        """Return whether another client has the file open for writing; the commit fails if that changes."""
        pairs = self.txn.get_range(*schema.session_range(inode))
        return any(schema.decode_session(value).client != self.request.client for _, value in pairs)

    def is_written(self, inode: int) -> bool:
        """Return whether any client has the file open for writing; the commit fails if that changes."""
        return bool(self.txn.get_range(*schema.session_range(inode), limit=1))

    def owns_session(self, inode: int, session: int) -> bool:
        """Return whether this caller has opened the file for writing as `session`."""
        if not session:
            return False
        value = self.txn.get(schema.session_key(inode, session))
        return value is not None and schema.decode_session(value).client == self.request.client

    def only_entry(self, directory: int) -> int | None:  # noqa: ARG002 (there is one in `confinement`)
        """Return the inode of the only entry that the caller may see in `directory`; None: it may see all."""
        return None

    def pause(self, inode: Inode) -> None:
        """Raises: RetryAfterWait while a truncation other than this operation's own is in progress."""
        if inode.id in self.shared.truncating and inode.id not in self.request.intents:
            raise RetryAfterWait(inode.id)

    # Writing.

    def put(self, inode: Inode) -> None:
        """Store the inode as it is."""
        assert inode.is_inline or not inode.inline_data, "L5: a file in chunks has no inline bytes"
        assert inode.id, "an inode has an id"
        self.older.discard(inode.id)
        self.txn.put(schema.inode_key(inode.id), schema.encode_inode(inode))

    def change(self, inode: Inode) -> None:
        """Store the inode, which the caller has taken and modified."""
        inode.ctime_ns = self.now_ns
        inode.change += 1
        assert inode.change > self.shared.removal_clock.first_change, (
            "clients never saw this change of another boot"
        )
        self.put(inode)

    def end_change(self) -> None:
        """One of several changes of a transaction has ended: the next is another operation, and later."""
        self.txn.end_operation()
        self.now_ns += 1

    def add_entry(self, directory: int, name: bytes, entry: Entry) -> None:
        """Give the directory the entry, which may replace one that has the same name and cookie."""
        assert entry.cookie >= FIRST_ID, "below are the places of . and .. in a listing"
        value = schema.encode_entry(entry, name)
        self.txn.put(schema.entry_key(directory, name), value)
        self.txn.put(schema.cookie_key(directory, entry.cookie), value)
        self.touch(directory)

    def remove_entry(self, directory: int, name: bytes, entry: Entry) -> None:
        """Take the entry out of the directory."""
        self.txn.delete(schema.entry_key(directory, name))
        self.txn.delete(schema.cookie_key(directory, entry.cookie))
        self.touch(directory)

    def touch(self, directory: int) -> None:
        """An entry of the directory came or went."""
        if directory != self.touched:
            self.txn.put(schema.time_key(directory), schema.encode_time(self.now_ns))
            self.touched = directory

    def count_subdirectories(self, directory: int, change: int) -> None:
        """The directory has gained or lost subdirectories."""
        key = schema.subdirectories_key(directory)
        count = schema.decode_count(self.txn.get(key)) + change
        assert count >= 0, "a directory cannot lose a subdirectory that it does not have"
        self.txn.put(key, schema.encode_count(count))

    def require_session(self) -> None:
        """Raises: InvalidArgument (EMFILE) if the caller may open no more files for writing."""
        if len(self.opened) >= self.sessions_left:
            raise InvalidArgument(
                f"this client has {SESSIONS_MAX} files open for writing: close some, or use another client",
                errno=EMFILE,
            )

    def open_session(self, inode: int) -> int:
        """Record that the caller has the file open for writing. Raises: InvalidArgument (EMFILE)."""
        session = self.request.session
        assert session, "the service has chosen a session"
        self.require_session()
        value = schema.encode_session(self.request.client, self.now_ms)
        self.txn.put(schema.session_key(inode, session), value)
        assert (inode, session) not in self.opened, "an attempt opens a file once"
        self.opened.append((inode, session))
        return session

    def reserve_content(self, inode: Inode) -> Spare:
        """Add a new content for the bytes of an inline file; it is garbage until the file claims it."""
        assert inode.is_inline, "L6: only an inline file moves to a spare content"
        content = self.shared.contents.take()
        reserved_ms = self.shared.removal_clock.now_ms()
        self.txn.put(
            schema.garbage_key(reserved_ms, content), schema.encode_spare(inode, content, self.now_ms)
        )
        return Spare(content=content, reserved_ms=reserved_ms)

    def claim_spare(self, inode: Inode, *, content: int, reserved_ms: int) -> bool:
        """Take a content that was reserved for `inode` off the list of garbage. False: it is not there as such."""
        key = schema.garbage_key(reserved_ms, content)
        value = self.txn.get(key)
        if value is None:
            return False
        record = schema.decode_garbage(value)
        if not record.spare or record.inode != inode.id:
            return False
        self.txn.delete(key)
        return True

    def leave_orphan(self, inode: Inode) -> None:
        """Leave an inode that has lost its last name to the collector."""
        assert not inode.link_count, "it has a name"
        assert inode.id != ROOT_INODE, "the root stays"
        self.txn.put(schema.orphan_key(self.shared.removal_clock.now_ms(), inode.id), b"")

    def discard_content(self, inode: Inode, *, length: int) -> None:
        """Leave the chunks of the inode's content, all below `length`, to the collector."""
        assert inode.type == REGULAR, "only regular files have content"
        assert length > 0, "what has no bytes has no chunks"
        self.txn.put(
            schema.garbage_key(self.shared.removal_clock.now_ms(), inode.content),
            schema.encode_garbage(inode, self.now_ms, length=length),
        )


def complete_directory(inode: Inode, changed: bytes | None, subdirectories: bytes | None) -> None:
    """Put into a directory's inode, as stored, what is stored beside it: `T` and `N` (docs/formats.md)."""
    if changed is not None:
        inode.mtime_ns = schema.decode_time(changed)
        inode.ctime_ns = max(inode.ctime_ns, inode.mtime_ns)
    inode.change = inode.ctime_ns
    if inode.link_count:
        inode.link_count += schema.decode_count(subdirectories)


__all__ = [
    "DIRECTORY_LINKS",
    "EMFILE",
    "NS_PER_MS",
    "Measured",
    "OperationContext",
    "Request",
    "SharedState",
    "complete_directory",
]
