"""Reserving ids of inodes."""

from ...errors import InvalidArgument
from ...wire.pb.meta_pb2 import ReserveInodesReply, ReserveInodesRequest
from ..context import OperationContext
from ..reservations import reserve


def reserve_inodes(context: OperationContext, request: ReserveInodesRequest) -> ReserveInodesReply:
    """Reserve ids that the client gives to inodes it makes (`Change.new_inode`).

    Raises: InvalidArgument for a count out of bounds, or for a client without a number.
    """
    if not context.request.client:
        raise InvalidArgument("ids are reserved for a client, and this request names none")
    reserved = reserve(context.txn, context.request.client, context.shared.inodes, count=request.count)
    return ReserveInodesReply(first=reserved.start, count=len(reserved))


__all__ = ["reserve_inodes"]
