"""The lane's parser against arbitrary bytes, cut at arbitrary places; no sockets, so thousands of cases are cheap."""

import asyncio
import socket
import struct
from itertools import pairwise

from hypothesis import example, given, settings
from hypothesis import strategies as st

from luciola.wire import handshake, methods
from luciola.wire.credentials import mint
from luciola.wire.lane import server as lane_server
from luciola.wire.lane.frames import FRAME_BYTES_MAX, REPLY
from luciola.wire.pb.meta_pb2 import InodeReply, LookupRequest

from .service import SECRET, Service, bound

TOKEN = mint(SECRET, uid=1, gid=1, groups=())
LOOKUP = methods.Meta.lookup.lane


class Pipe(asyncio.Transport):
    """A transport that keeps what is written."""

    def __init__(self):
        super().__init__()
        self.written = bytearray()
        self.closed = False
        self.paused = False

    def write(self, data):
        assert not self.closed, "nothing is written after the end"
        self.written += data

    def close(self):
        self.closed = True

    abort = close

    def is_closing(self):
        return self.closed

    def pause_reading(self):
        self.paused = True

    def resume_reading(self):
        self.paused = False

    def get_extra_info(self, name, default=None):
        return _NoSocket() if name == "socket" else default


class _NoSocket:
    family = socket.AF_INET

    def setsockopt(self, *_):
        pass


def talk(test):
    """Runs `test(connection, pipe)` on a fresh connection of a server, in a loop."""

    async def main():
        server = lane_server.LaneServer(bound(Service()), secret=SECRET)
        connection = lane_server._ServerConnection(server)
        pipe = Pipe()
        connection.connection_made(pipe)
        result = test(connection, pipe)
        connection.connection_lost(None)
        assert server.connection_count == 0
        assert not server._unauthenticated
        return result

    return asyncio.run(main())


def open_(connection, pipe):
    """A good handshake."""
    side = handshake.ClientSide(TOKEN, kind=handshake.LANE)
    connection.data_received(side.answer(bytes(pipe.written)))
    side.finish(bytes(pipe.written[handshake.HELLO.size :]))
    pipe.written.clear()


def feed(connection, pipe, data, cuts):
    places = sorted({min(cut, len(data)) for cut in cuts} | {0, len(data)})
    for start, stop in pairwise(places):
        if pipe.closed:
            return
        connection.data_received(data[start:stop])


def replies(written):
    """Every whole frame; nothing may be left over."""
    found, offset = [], 0
    while offset < len(written):
        length, number, flags, request = struct.unpack_from("<IHHQ", written, offset)
        assert flags & REPLY
        found.append((number, flags, request, bytes(written[offset + 16 : offset + 16 + length])))
        offset += 16 + length
    assert offset == len(written)
    return found


cuts = st.lists(st.integers(0, 400), max_size=8)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=300), cuts)
@example(b"LUC1\x01\x01\xff\xff" + bytes(36), [])
@example(b"LUC1\x01\x01\x00\x00" + bytes(68), [3, 40])
def test_bytes_without_a_handshake_get_a_refusal_or_nothing(data, places):
    def test(connection, pipe):
        pipe.written.clear()
        feed(connection, pipe, data, places)
        assert bytes(pipe.written) in (b"", handshake.REFUSAL)
        assert connection._server.methods  # the server is whole
        if not pipe.closed:
            assert len(connection._buffer) <= handshake.ANSWER_BYTES_MAX
        return pipe.closed

    talk(test)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400), cuts)
@example(struct.pack("<IHHQ", FRAME_BYTES_MAX + 1, LOOKUP, 0, 1), [])
@example(struct.pack("<IHHQ", FRAME_BYTES_MAX, LOOKUP, 0, 1) + bytes(50), [7])
def test_bytes_after_the_handshake_get_replies_or_the_end(data, places):
    def test(connection, pipe):
        open_(connection, pipe)
        feed(connection, pipe, data, places)
        replies(pipe.written)
        assert len(connection._buffer) <= len(data)

    talk(test)


frames = st.lists(
    st.tuples(st.sampled_from([LOOKUP, methods.Meta.stat.lane, 60_000]), st.binary(max_size=40)), max_size=8
)


@settings(max_examples=200, deadline=None)
@given(frames, cuts)
def test_replies_do_not_depend_on_how_requests_are_cut(requests, places):
    data = b"".join(
        struct.pack("<IHHQ", len(payload), number, 0, place) + payload
        for place, (number, payload) in enumerate(requests)
    )

    def run(where):
        def test(connection, pipe):
            open_(connection, pipe)
            feed(connection, pipe, data, where)
            assert not pipe.closed
            return replies(pipe.written)

        return talk(test)

    whole = run([])
    assert [(number, request) for number, _, request, _ in whole] == [
        (number, place) for place, (number, _) in enumerate(requests)
    ]
    assert run(places) == whole


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**63), st.binary(max_size=100))
def test_request_comes_back_whole(parent, name):
    def test(connection, pipe):
        open_(connection, pipe)
        payload = LookupRequest(parent=parent, name=name).SerializeToString()
        connection.data_received(struct.pack("<IHHQ", len(payload), LOOKUP, 0, 9) + payload)
        ((number, flags, request, reply),) = replies(pipe.written)
        assert (number, flags, request) == (LOOKUP, REPLY, 9)
        inode = InodeReply.FromString(reply).inode
        assert (inode.id, inode.name) == (parent, name)

    talk(test)


class Narrow(Pipe):
    """A transport whose client reads when the test does."""

    connection = None

    def write(self, data):
        super().write(data)
        if self.connection is not None:
            self.connection.pause_writing()

    def read(self):
        read = bytes(self.written)
        self.written.clear()
        self.connection.resume_writing()
        return read


def lookups(count, name):
    payload = LookupRequest(parent=1, name=name).SerializeToString()
    return b"".join(struct.pack("<IHHQ", len(payload), LOOKUP, 0, each) + payload for each in range(count))


def test_replies_to_a_burst_are_held_one_batch_at_a_time():
    async def main():
        service = Service()
        connection = lane_server._ServerConnection(lane_server.LaneServer(bound(service), secret=SECRET))
        pipe = Narrow()
        connection.connection_made(pipe)
        open_(connection, pipe)
        pipe.connection = connection
        for count, name, most in ((1000, b"n", 64), (40, bytes(200_000), 6)):
            service.calls = 0
            connection.data_received(lookups(count, name))
            await asyncio.sleep(0)
            assert service.calls == most, "nothing more before the client reads"
            found = []
            while service.calls < count or pipe.written:
                assert len(pipe.written) <= lane_server.BATCH_BYTES + 210_000
                found += replies(pipe.read())
                await asyncio.sleep(0)
            assert [request for _, _, request, _ in found] == list(range(count))
            assert not connection._buffer
        connection.connection_lost(None)

    asyncio.run(main())


def test_a_burst_leaves_other_connections_their_turn():
    async def main():
        service = Service()
        connection = lane_server._ServerConnection(lane_server.LaneServer(bound(service), secret=SECRET))
        pipe = Pipe()
        connection.connection_made(pipe)
        open_(connection, pipe)
        connection.data_received(lookups(200, b"n"))
        seen = []
        while service.calls < 200:
            seen.append(service.calls)
            await asyncio.sleep(0)
        assert seen == [64, 128, 192]
        assert not pipe.paused
        assert len(replies(pipe.written)) == 200
        connection.connection_lost(None)

    asyncio.run(main())


def test_a_client_that_reads_meanwhile_gets_no_more_turns():
    async def main():
        service = Service()
        connection = lane_server._ServerConnection(lane_server.LaneServer(bound(service), secret=SECRET))
        pipe = Pipe()
        connection.connection_made(pipe)
        open_(connection, pipe)
        connection.data_received(lookups(500, b"n"))
        while service.calls < 500:
            before = service.calls
            connection.pause_writing()
            connection.resume_writing()
            await asyncio.sleep(0)
            assert service.calls - before <= lane_server.BATCH_REPLIES
        assert len(replies(pipe.written)) == 500
        connection.connection_lost(None)

    asyncio.run(main())
