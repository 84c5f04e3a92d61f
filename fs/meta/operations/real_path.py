"""Where a directory is."""

from ...errors import InvalidArgument, NotADirectory, NotFound
from ...ids import ROOT_INODE
from ...wire.pb.meta_pb2 import DIRECTORY, RealPathReply, RealPathRequest
from ..context import OperationContext
from ..permissions import EXECUTE, require
from ..resolve import ENAMETOOLONG, PATH_BYTES_MAX


def real_path(context: OperationContext, request: RealPathRequest) -> RealPathReply:
    """Return the absolute path of a directory. Files may have many names, and do not know them.

    Raises: NotFound if it or an ancestor has been removed; NotADirectory; InvalidArgument (ENAMETOOLONG);
    PermissionDenied if the caller may not search one of its ancestors, whose names this would show.
    """
    inode = context.load(request.inode or ROOT_INODE)
    if inode.type != DIRECTORY:
        raise NotADirectory("only directories know their path", inode=inode.id)
    names: list[bytes] = []
    size_bytes = 0
    while inode.id != ROOT_INODE:
        if not inode.link_count:
            raise NotFound("the directory has been removed", inode=inode.id)
        names.append(inode.name)
        size_bytes += len(inode.name) + 1
        if size_bytes > PATH_BYTES_MAX:
            raise InvalidArgument("the path is too long", errno=ENAMETOOLONG)
        inode = context.directory(inode.parent)
        require(context.user, inode, EXECUTE)
    return RealPathReply(path=b"/" + b"/".join(reversed(names)))


__all__ = ["real_path"]
