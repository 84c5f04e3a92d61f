"""Every operation on names, attributes and open files, one row a verb.

The service in `proto/meta.proto` says of each method what messages it has, and whether it reads, writes, or has its
reply recorded: client and service both follow that. A row here adds which function carries it out, and how exact the
lengths of files must be that other clients are writing. `service.MetaService` derives its handlers from the table,
`execution.Execution` runs the rows and reads recorded replies by them. What is not a transaction (read holds, space,
scans, dumps, loads) is in `service`.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, cast

from google.protobuf.message import Message

from ..wire.methods import Meta, Method, Mode, Sent
from ..wire.pb import meta_pb2 as pb
from .context import OperationContext
from .operations.apply import apply
from .operations.close import close
from .operations.close import reports as reports_close
from .operations.create import create
from .operations.link import link
from .operations.list import list_directory
from .operations.lookup import lookup
from .operations.mkdir import mkdir
from .operations.mknod import mknod
from .operations.open import open_path
from .operations.real_path import real_path
from .operations.remove_tree import remove_tree
from .operations.rename import rename
from .operations.reserve_inodes import reserve_inodes
from .operations.rmdir import rmdir
from .operations.set_attr import set_attr
from .operations.stat import stat
from .operations.symlink import symlink
from .operations.sync import reports as reports_sync
from .operations.sync import sync
from .operations.unlink import unlink
from .operations.xattr import get_xattr, list_xattr, remove_xattr, set_xattr

Body = TypeVar("Body", bound=Message)
Reply = TypeVar("Reply", bound=Message)


class Length(enum.Enum):
    """The length that a reply shows of a file in chunks that another client has open for writing."""

    BEST_EFFORT = "best effort"  # as `RECENT`; the stored one where the chains do not answer
    RECENT = "recent"  # as the chains said at most `lengths.FRESH_S` ago
    EXACT = "exact"  # as the chains say when asked after the request came


READ: Final = Mode.READ
WRITE: Final = Mode.WRITE
RECORDED: Final = Mode.RECORDED


@dataclass(frozen=True, slots=True)
class Verb(Generic[Body, Reply]):
    """One row."""

    method: Method[Body, Reply]
    operation: Callable[[OperationContext, Body], Sent[Reply]]
    length: Length | Callable[[Body], Length] = Length.BEST_EFFORT
    opens_session: Callable[[Body], bool] | None = None  # a write session, whose number the service chooses
    mode: Callable[[Body], Mode] | None = None  # where some requests do less than the method's mode says
    has_name: bool | Callable[[Body], bool] = False  # the caller found each inode of the reply by a name
    changes: Callable[[Body], bool] | None = (
        None  # where a request that does not only read may change nothing
    )

    def mode_of(self, request: Body) -> Mode:
        """Return what the transaction of `request` does."""
        return self.method.mode if self.mode is None else self.mode(request)

    def changes_of(self, request: Body) -> bool:
        """Return whether `request` may change something, which a token that is read-only must not."""
        return self.mode_of(request) is not READ if self.changes is None else self.changes(request)

    def has_name_of(self, request: Body) -> bool:
        """Return whether `request` has a name of each inode in its reply, where it might have a guessed number."""
        return self.has_name if isinstance(self.has_name, bool) else self.has_name(request)

    def length_of(self, request: Body) -> Length:
        """How exact lengths must be in the reply to `request`."""
        return self.length if isinstance(self.length, Length) else self.length(request)


def _open_mode(request: pb.OpenRequest) -> Mode:
    return RECORDED if request.write or request.truncate else READ


def _close_mode(request: pb.CloseRequest) -> Mode:
    if any(reports_close(one) for one in request.closes):
        return RECORDED
    return WRITE if any(one.session for one in request.closes) else READ


def _sync_mode(request: pb.SyncRequest) -> Mode:
    return RECORDED if reports_sync(request) else WRITE


def _stat_length(request: pb.StatRequest) -> Length:
    return Length.EXACT if request.exact else Length.RECENT


def _writes(request: pb.CreateRequest | pb.OpenRequest) -> bool:
    return request.write


def _writes_any(request: pb.ApplyRequest) -> bool:
    return any(change.create.write for change in request.changes)


def _has_path(request: pb.StatRequest | pb.OpenRequest | pb.SetAttrRequest) -> bool:
    return bool(request.path.path)


def _has_source_path(request: pb.LinkRequest) -> bool:
    return bool(request.source.path)


# Without an annotation mypy checks each row: the function takes the method's request, and returns its reply.
_ROWS: Final = (
    Verb(Meta.lookup, lookup, Length.RECENT, has_name=True),
    Verb(Meta.stat, stat, _stat_length, has_name=_has_path),
    Verb(Meta.list, list_directory, has_name=True),  # shows stored lengths rather than nothing
    Verb(Meta.real_path, real_path),
    Verb(Meta.get_xattr, get_xattr),
    Verb(Meta.list_xattr, list_xattr),
    Verb(Meta.create, create, Length.EXACT, _writes, has_name=True),
    Verb(Meta.open, open_path, Length.EXACT, _writes, _open_mode, has_name=_has_path),
    Verb(Meta.close, close, mode=_close_mode),
    Verb(Meta.sync, sync, mode=_sync_mode, changes=reports_sync),
    Verb(Meta.mknod, mknod, has_name=True),
    Verb(Meta.mkdir, mkdir, has_name=True),
    Verb(Meta.symlink, symlink, has_name=True),
    Verb(Meta.link, link, has_name=_has_source_path),
    Verb(Meta.unlink, unlink, has_name=True),
    Verb(Meta.rmdir, rmdir),
    Verb(Meta.rename, rename, has_name=True),
    Verb(Meta.remove_tree, remove_tree),
    Verb(Meta.set_attr, set_attr, has_name=_has_path),
    Verb(Meta.set_xattr, set_xattr),
    Verb(Meta.remove_xattr, remove_xattr),
    Verb(Meta.apply, apply, opens_session=_writes_any, has_name=True),
    Verb(Meta.reserve_inodes, reserve_inodes),
)
VERBS: Final = cast("tuple[Verb[Message, Message], ...]", _ROWS)
_BY_PATH: Final = {verb.method.path: verb for verb in VERBS}

assert len(_BY_PATH) == len(VERBS), "a method has one row"
assert all(verb.method.lane for verb in VERBS), "replies are recorded under the lane's numbers"
assert all(verb.method.mode is RECORDED for verb in VERBS if verb.mode), (
    "a request does at most what its method says"
)


def verb_of(method: Method[Body, Reply]) -> Verb[Body, Reply]:
    """Return the row of `method`, which must have one."""
    return cast("Verb[Body, Reply]", _BY_PATH[method.path])


__all__ = ["READ", "RECORDED", "VERBS", "WRITE", "Length", "Mode", "Verb", "verb_of"]
