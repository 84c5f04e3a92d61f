"""Requests made of any values: an operating error or an answer, never a broken manager."""

import asyncio
from collections.abc import Awaitable
from functools import cache

import pytest
from google.protobuf.descriptor import FieldDescriptor
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.clock import ManualClock
from luciola.errors import Error
from luciola.ids import NodeId
from luciola.kv import MemoryEngine
from luciola.mgmtd.records import NodeRecord
from luciola.mgmtd.service import Service, Settings
from luciola.mgmtd.store import Store
from luciola.wire import SERVICE, methods
from luciola.wire.credentials import Identity
from luciola.wire.pb import mgmtd_pb2 as pb

WHO = Identity(SERVICE, 0, 0, ())
SMALL = st.integers(0, 3)
INTEGERS = {
    FieldDescriptor.TYPE_UINT32: st.one_of(SMALL, st.sampled_from([1000, 1001, 100_001, 2**31, 2**32 - 1])),
    FieldDescriptor.TYPE_UINT64: st.one_of(SMALL, st.sampled_from([100_001_001, 2**63, 2**64 - 1])),
    FieldDescriptor.TYPE_ENUM: st.one_of(SMALL, st.sampled_from([4, 8, 77, 2**31 - 1, -1])),
}


def values(field: FieldDescriptor) -> st.SearchStrategy:
    if field.type == FieldDescriptor.TYPE_MESSAGE:
        return messages(field.message_type)
    if field.type == FieldDescriptor.TYPE_BOOL:
        return st.booleans()
    if field.type == FieldDescriptor.TYPE_STRING:
        return st.sampled_from(["", "a", "\x00", "é", "[mgmtd]\nlease_ms = 1", "x" * 300_000])
    if field.type == FieldDescriptor.TYPE_BYTES:
        return st.sampled_from([b"", b"a", b"\xff" * 16, b"x" * 300_000])
    return INTEGERS[field.type]


@cache  # to make them takes longer than to draw from them
def messages(descriptor) -> st.SearchStrategy:
    """Field values of a message as keyword arguments."""
    fields = {
        field.name: st.lists(values(field), max_size=3) if field.is_repeated else values(field)
        for field in descriptor.fields
        # The one would wait for the clock, the other is how a storage node ends a manager whose store is older.
        if field.name not in ("wait_ms", "outdated")
    }
    return st.fixed_dictionaries({}, optional=fields)


REQUESTS = st.sampled_from(
    [method for method in methods.methods_of(methods.Mgmtd) if not method.streams]
).flatmap(lambda method: st.tuples(st.just(method), messages(method.request.DESCRIPTOR)))


async def call(service: Service, name: str, request):
    answer = getattr(service, name)(request, WHO)
    return await answer if isinstance(answer, Awaitable) else answer


@pytest.mark.timeout(300)
@settings(max_examples=60, deadline=None)
@given(requests=st.lists(REQUESTS, min_size=10, max_size=30))
def test_no_request_breaks_the_manager(requests):
    async def play() -> None:
        clock = ManualClock()
        node = NodeRecord(NodeId(1), pb.NODE_MGMTD, incarnation=1)
        service = Service(Store(MemoryEngine(), cluster_id="c"), Settings("c", node, sole=True), clock=clock)
        running = asyncio.ensure_future(service.run())
        for _ in range(20):
            await asyncio.sleep(0)
        await call(service, "heartbeat", beat(1000))
        await call(service, "create_chain_table", pb.CreateChainTableRequest(table=1, replicas=1, chains=1))
        for method, fields in requests:
            try:
                reply = await call(service, method.attribute, method.request(**fields))
                assert isinstance(reply, method.reply)
                reply.SerializeToString()
            except Error:
                pass
            clock.advance(0.1)
            for _ in range(20):
                await asyncio.sleep(0)
        assert service.is_primary, "a request made it step down"
        assert not running.done()
        await call(service, "get_routing", pb.GetRoutingRequest())
        await call(service, "list_clients", pb.GetRoutingRequest())
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(play())


def beat(node: int) -> pb.HeartbeatRequest:
    return pb.HeartbeatRequest(node=pb.Node(id=node, kind=pb.NODE_STORAGE, incarnation=1), sequence=1)
