"""FIFOs, sockets, devices, and regular files without opening them."""

from ...errors import PermissionDenied
from ...wire.pb.meta_pb2 import BLOCK_DEVICE, CHAR_DEVICE, REGULAR, MknodRequest
from ..replies import AnyInodeReply
from ..work import Work
from .make import attach, check_kind, free_place, new_file, new_inode


def mknod(work: Work, request: MknodRequest) -> AnyInodeReply:
    """A new inode of the type asked for. Devices are made by root only.

    Raises: AlreadyExists, NotFound, NotADirectory, PermissionDenied (EPERM for devices), InvalidArgument.
    """
    check_kind(request.type)
    if request.type in (CHAR_DEVICE, BLOCK_DEVICE) and work.user.uid != 0:
        raise PermissionDenied("only root makes devices", errno=1)
    directory, name = free_place(work, request.path)
    if request.type == REGULAR:
        inode = new_file(work, directory, permissions=request.permissions, layout=None)
    else:
        inode = new_inode(work, directory, kind=request.type, permissions=request.permissions)
        inode.device = request.device
    attach(work, directory, name, inode)
    return work.reply(inode)


__all__ = ["mknod"]
