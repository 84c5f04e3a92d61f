"""A service for the tests of both carriers: it serves Meta with answers that show what arrived."""

import asyncio
from collections.abc import AsyncIterator

from luciola.errors import NotFound
from luciola.wire import methods
from luciola.wire.pb.common_pb2 import Empty
from luciola.wire.pb.meta_pb2 import Dentry, Inode, InodeReply, ListReply, MetaStatus
from luciola.wire.preserialized import Preserialized

SECRET = bytes(range(32))


class Service:
    """`lookup` echoes, `list` waits for `gate` and sends bytes, `stat` fails, `rmdir` breaks, `scan_inodes`
    streams."""

    def __init__(self) -> None:
        self.loop = asyncio.get_running_loop()
        self.gate = asyncio.Event()
        self.waiting = 0
        self.has_waiter = asyncio.Event()
        self.calls = 0
        self.closed_streams = 0

    def lookup(self, request, identity):
        self.calls += 1
        return InodeReply(inode=Inode(id=request.parent, uid=identity.uid, name=request.name))

    async def list(self, request, identity):
        self.waiting += 1
        self.has_waiter.set()
        await self.gate.wait()
        reply = ListReply(parent=request.inode, entries=[Dentry(name=b"x" * request.limit)])
        return Preserialized(ListReply, reply.SerializeToString())

    def stat(self, request, identity):
        raise NotFound("no such file", path="/no/such", inode=5)

    def rmdir(self, request, identity):
        raise ZeroDivisionError("a mistake")

    def status(self, request, identity):
        return MetaStatus(operations=self.calls)

    def mkdir(self, request, identity):
        future = asyncio.get_running_loop().create_future()
        future.get_loop().call_soon(future.set_result, InodeReply(inode=Inode(id=9)))
        return future

    def unlink(self, request, identity):
        return (
            Preserialized(Empty, b"") if request.path.at else Empty()
        )  # neither is what the method replies with

    async def scan_inodes(self, request, identity) -> AsyncIterator[Inode]:
        try:
            for number in range(request.limit):
                yield Inode(id=number)
            raise NotFound("the end")
        finally:
            self.closed_streams += 1

    def __getattr__(self, name):
        if name not in vars(methods.Meta):
            raise AttributeError(name)
        return lambda request, identity: InodeReply()


def bound(service):
    return methods.bind(methods.Meta, service)
