"""Every operation on names, attributes and open files, one row a verb.

A row says which method asks for it, which function carries it out, and how: what its transaction may do, whether the
reply is recorded, and how exact the lengths of files must be that other clients are writing. `service.MetaService`
derives its handlers from the table, `execution.Execution` runs the rows and reads recorded replies by them. What is
not a transaction (read holds, space, scans, dumps, loads) is in `service`.

To add a verb: its messages and lane number in `proto/`, its method in `wire/methods.py`, a function in `operations/`,
and a row here.
"""

import enum
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, Generic, TypeVar, cast

from google.protobuf.message import Message

from ..wire.methods import Meta, Method, Sent
from ..wire.pb import meta_pb2 as pb
from .context import OperationContext
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


class Mode(enum.Enum):
    """What the transaction of an operation does."""

    READ = "read"  # nothing is committed
    WRITE = "write"  # carried out twice it does no harm
    RECORDED = "recorded"  # the reply is recorded with it, and sent again if the request comes again


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
    """One row. Where `mode` or `length` depend on the request, they are functions of it."""

    method: Method[Body, Reply]
    operation: Callable[[OperationContext, Body], Sent[Reply]]
    mode: Mode | Callable[[Body], Mode]
    length: Length | Callable[[Body], Length] = Length.BEST_EFFORT
    opens_session: Callable[[Body], bool] | None = None  # a write session, whose number the service chooses

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


# Without an annotation mypy checks each row: the function takes the method's request, and returns its reply.
_ROWS: Final = (
    Verb(Meta.lookup, lookup, READ, Length.RECENT),
    Verb(Meta.stat, stat, READ, _stat_length),
    Verb(Meta.list, list_directory, READ),  # shows stored lengths rather than nothing
    Verb(Meta.real_path, real_path, READ),
    Verb(Meta.get_xattr, get_xattr, READ),
    Verb(Meta.list_xattr, list_xattr, READ),
    Verb(Meta.create, create, RECORDED, Length.EXACT, _writes),
    Verb(Meta.open, open_path, _open_mode, Length.EXACT, _writes),
    Verb(Meta.close, close, _close_mode),
    Verb(Meta.sync, sync, _sync_mode),
    Verb(Meta.mknod, mknod, RECORDED),
    Verb(Meta.mkdir, mkdir, RECORDED),
    Verb(Meta.symlink, symlink, RECORDED),
    Verb(Meta.link, link, RECORDED),
    Verb(Meta.unlink, unlink, RECORDED),
    Verb(Meta.rmdir, rmdir, RECORDED),
    Verb(Meta.rename, rename, RECORDED),
    Verb(Meta.remove_tree, remove_tree, RECORDED),
    Verb(Meta.set_attr, set_attr, RECORDED),
    Verb(Meta.set_xattr, set_xattr, RECORDED),
    Verb(Meta.remove_xattr, remove_xattr, RECORDED),
)
VERBS: Final = cast("tuple[Verb[Message, Message], ...]", _ROWS)
_BY_PATH: Final = {verb.method.path: verb for verb in VERBS}

assert len(_BY_PATH) == len(VERBS), "a method has one row"
assert all(verb.method.lane for verb in VERBS), "replies are recorded under the lane's numbers"


def verb_of(method: Method[Body, Reply]) -> Verb[Body, Reply]:
    """Return the row of `method`, which must have one."""
    return cast("Verb[Body, Reply]", _BY_PATH[method.path])


__all__ = ["READ", "RECORDED", "VERBS", "WRITE", "Length", "Mode", "Verb", "verb_of"]
