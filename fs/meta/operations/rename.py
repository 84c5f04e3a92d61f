"""Moving a name, with what it replaces."""

from typing import Final

from ...errors import AlreadyExists, InvalidArgument, IsADirectory, NotADirectory, NotFound
from ...ids import ROOT_INODE
from ...wire.pb.meta_pb2 import DIRECTORY, Inode, Path, RenameReply, RenameRequest
from .. import schema
from ..context import OperationContext
from ..permissions import EXECUTE, WRITE, require, require_removal
from ..replies import FIRST, INLINE_DATA_TAG, SECOND, StoredReply, by_id
from ..resolve import EBUSY, ELOOP, Place, locate
from ..schema import Entry
from .detach import drop, require_empty

ANCESTORS_MAX: Final = 16_384  # deeper trees than this cannot be moved


def rename(context: OperationContext, request: RenameRequest) -> RenameReply | StoredReply[RenameReply]:
    """Give what the source names the target's name, replacing what had it; or exchange the two.

    Reads with conflict: both parents, both entries, both inodes; if a directory moves to another one, every
    ancestor of the target; if a directory is replaced, the range of its entries.
    Raises: NotFound, AlreadyExists, NotEmpty, NotADirectory, IsADirectory, PermissionDenied,
    InvalidArgument (EBUSY: no name that could be moved; EINVAL: into itself; ELOOP: too deep).
    """
    if request.no_replace and request.exchange:
        raise InvalidArgument("no_replace and exchange exclude each other")
    source = _place(context, request.source)
    target = _place(context, request.target)
    moved = _existing(context, source)
    replaced = _occupant(context, target)
    if replaced is not None and request.no_replace:
        raise AlreadyExists("the name exists already", name=target.name)
    if replaced is None and request.exchange:
        raise NotFound("no such file or directory", name=target.name)
    if (source.as_directory or target.as_directory) and moved.type != DIRECTORY:
        raise NotADirectory("not a directory", name=source.name)
    _require_move(context, source, moved, into=target)
    if request.exchange:
        assert replaced is not None, "checked above"
        _require_move(context, target, replaced, into=source)
        return _exchange(context, source, moved, target, replaced)
    if replaced is not None:
        require_removal(context.user, _parent(target), replaced)
        if replaced.id == moved.id:
            return _reply(context, moved)
        _require_replaceable(context, moved, replaced)
    return _move(context, source, moved, target, replaced)


def _place(context: OperationContext, path: Path) -> Place:
    place = locate(context, path, follow=False)
    if place.directory is None:
        raise InvalidArgument("this name cannot be moved or replaced", errno=EBUSY, name=place.name)
    if not place.directory.link_count:
        raise NotFound("the directory has been removed", inode=place.directory.id)
    context.txn.add_read_conflict(schema.inode_key(place.directory.id))
    require(context.user, place.directory, WRITE | EXECUTE)
    return place


def _parent(place: Place) -> Inode:
    assert place.directory is not None, "`_place` refuses paths without a parent"
    return place.directory


def _entry(place: Place) -> Entry:
    assert place.entry is not None, "only a name that exists can be moved or exchanged"
    return place.entry


def _existing(context: OperationContext, place: Place) -> Inode:
    inode = _occupant(context, place)
    if inode is None:
        raise NotFound("no such file or directory", name=place.name)
    return inode


def _occupant(context: OperationContext, place: Place) -> Inode | None:
    context.add_read_conflict(_parent(place).id, place.name)
    return None if place.entry is None else context.get_for_update(place.entry.inode)


def _require_move(context: OperationContext, source: Place, inode: Inode, *, into: Place) -> None:
    """Raise unless the inode may leave its directory and go to the other one."""
    require_removal(context.user, _parent(source), inode)
    if inode.type != DIRECTORY or _parent(source).id == _parent(into).id:
        return
    require(context.user, inode, WRITE)  # its ".." changes
    _refuse_loop(context, inode, below=_parent(into))


def _refuse_loop(context: OperationContext, inode: Inode, *, below: Inode) -> None:
    """Raises: InvalidArgument if `below` is inside `inode`. The commit fails if an ancestor moves."""
    ancestor = below
    for _ in range(ANCESTORS_MAX):
        if ancestor.id == inode.id:
            raise InvalidArgument("a directory cannot be moved into itself", inode=inode.id)
        if ancestor.id == ROOT_INODE:
            return
        ancestor = context.get_for_update(ancestor.parent)
    raise InvalidArgument("the directory is too deep", errno=ELOOP)


def _require_replaceable(context: OperationContext, moved: Inode, replaced: Inode) -> None:
    if moved.type == DIRECTORY:
        require_empty(context, replaced)
    elif replaced.type == DIRECTORY:
        raise IsADirectory("is a directory", inode=replaced.id)


def _move(
    context: OperationContext, source: Place, moved: Inode, target: Place, replaced: Inode | None
) -> RenameReply | StoredReply[RenameReply]:
    if replaced is not None:
        drop(context, target, replaced)
    context.remove_entry(_parent(source).id, source.name, _entry(source))
    if moved.type == DIRECTORY and _parent(source).id != _parent(target).id:
        context.count_subdirectories(_parent(source).id, -1)
        context.count_subdirectories(_parent(target).id, +1)
    # A name that was there keeps its cookie: a listing in progress must have it once. A new one gets the file's: else
    # the listing would have the file once more.
    _settle(context, moved, target, _entry(source if replaced is None else target).cookie)
    return _reply(context, moved, replaced)


def _exchange(
    context: OperationContext, source: Place, moved: Inode, target: Place, replaced: Inode
) -> RenameReply | StoredReply[RenameReply]:
    if moved.id == replaced.id:
        return _reply(context, moved, replaced)
    shift = (replaced.type == DIRECTORY) - (moved.type == DIRECTORY)
    if shift and _parent(source).id != _parent(target).id:
        context.count_subdirectories(_parent(source).id, shift)
        context.count_subdirectories(_parent(target).id, -shift)
    _settle(context, moved, target, _entry(target).cookie)
    _settle(context, replaced, source, _entry(source).cookie)
    return _reply(context, moved, replaced)


def _reply(
    context: OperationContext, moved: Inode, replaced: Inode | None = None
) -> RenameReply | StoredReply[RenameReply]:
    if moved.type == DIRECTORY or (replaced is not None and replaced.type == DIRECTORY):
        return RenameReply(
            moved=context.visible(moved), replaced=None if replaced is None else context.visible(replaced)
        )
    stored = context.stored(moved.id)
    encoded = FIRST[len(stored)] + stored
    if replaced is None:
        return StoredReply(
            RenameReply,
            encoded,
            (moved.id,),
            has_data=INLINE_DATA_TAG in stored,
            recorded=by_id(moved.id),
        )
    stored = context.stored(replaced.id)
    encoded += SECOND[len(stored)] + stored
    return StoredReply(RenameReply, encoded, (moved.id, replaced.id), has_data=INLINE_DATA_TAG in encoded)


def _settle(context: OperationContext, inode: Inode, place: Place, cookie: int) -> None:
    """Put the inode under its new name."""
    directory = _parent(place)
    inode.parent = directory.id
    if inode.type == DIRECTORY:
        inode.name = place.name
    else:
        inode.cookie = 0 if cookie == inode.id else cookie
    context.change(inode)
    context.add_entry(directory.id, place.name, Entry(inode.id, inode.type, cookie))


__all__ = ["ANCESTORS_MAX", "rename"]
