"""FIFOs, sockets, devices, and regular files without opening them."""

from ...errors import PermissionDenied
from ...wire.pb.meta_pb2 import BLOCK_DEVICE, CHAR_DEVICE, REGULAR, MknodRequest
from ..context import OperationContext
from ..replies import AnyInodeReply
from .make import attach, check_kind, free_place, new_file, new_inode


def mknod(context: OperationContext, request: MknodRequest) -> AnyInodeReply:
    """Make an inode of the type asked for. Devices are made by root only.

    Raises: AlreadyExists, NotFound, NotADirectory, PermissionDenied (EPERM for devices), InvalidArgument.
    """
    check_kind(request.type)
    if request.type in (CHAR_DEVICE, BLOCK_DEVICE) and context.user.uid != 0:
        raise PermissionDenied("only root makes devices", errno=1)
    directory, name = free_place(context, request.path)
    if request.type == REGULAR:
        inode = new_file(context, directory, permissions=request.permissions, layout=None)
    else:
        inode = new_inode(context, directory, kind=request.type, permissions=request.permissions)
        inode.device = request.device
    attach(context, directory, name, inode)
    return context.reply(inode)


__all__ = ["mknod"]
