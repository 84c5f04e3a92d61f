"""Making a regular file, or opening the one that has the name already."""

from ...errors import AlreadyExists, IsADirectory
from ...wire.pb.meta_pb2 import CreateRequest
from ..context import OperationContext
from ..replies import AnyInodeReply
from ..resolve import locate
from .make import attach, claim, new_file, refuse_slash
from .open import open_inode


def create(context: OperationContext, request: CreateRequest) -> AnyInodeReply:
    """Create a file under a free name; else, unless `exclusive`, open the existing one.

    Reads with conflict: the directory, the entry. Writes: entry, inode, the directory's entry time, a
    session. Creates in one directory do not conflict with each other; with its removal they do.
    Raises: AlreadyExists, IsADirectory, NotFound, NotADirectory, PermissionDenied, InvalidArgument,
    Unavailable.
    """
    place = locate(context, request.path, follow=not request.exclusive)
    if place.entry is not None:
        if request.exclusive:
            raise AlreadyExists("the name exists already", name=place.name)
        if place.directory is None and not request.path.path:
            raise IsADirectory("a name is needed to create a file")
        if place.directory is not None:
            context.add_read_conflict(place.directory.id, place.name)
        return open_inode(
            context, place.entry.inode, read=request.read, write=request.write, truncate=request.truncate
        )
    refuse_slash(place)
    directory = claim(context, place)
    layout = request.layout if request.HasField("layout") else None
    inode = new_file(context, directory, permissions=request.permissions, layout=layout)
    inode.is_inline = inode.is_inline and not request.in_chunks
    attach(context, directory, place.name, inode)
    session = context.open_session(inode.id) if request.write else 0
    return context.reply(inode, session=session, created=True)


__all__ = ["create"]
