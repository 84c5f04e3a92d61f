"""Both ends of a data-plane connection over RDMA, on pyverbs: a second implementation, written from docs/protocol.md.

`Wire` is a queue pair with credits and messages; `Client` and `Server` put frames on it, after the handshake over TCP.
They do what they are asked, also what an honest peer would not.
"""

import os
import socket
import struct
import time
from typing import Self

from luciola.cli.rdma_survey import choose_gid, load_verbs, survey
from luciola.wire import CLIENT, handshake, mint
from rdma import frames
from rdma.frames import Frame

SECRET = bytes([42]) * 32
MESSAGE = 4096
SENDS = 8
RECEIVE = 1 << 63
PATIENCE_S = 180
V = load_verbs()
E = V.enums
LOCAL = E.IBV_ACCESS_LOCAL_WRITE
REMOTE = LOCAL | E.IBV_ACCESS_REMOTE_WRITE | E.IBV_ACCESS_REMOTE_READ


class Broken(Exception):
    """The queue pair has failed; `status` is the completion's."""

    def __init__(self, status: int) -> None:
        super().__init__(f"completion status {status}")
        self.status = status


class Wire:
    """One queue pair: messages with credits, and one-sided operations."""

    def __init__(
        self, device: str, *, remote_access: bool, data_bytes: int = 4 << 20, window: int = 8
    ) -> None:
        (found,) = [each for each in survey().devices if each.name == device]
        self.port = found.ports[0]
        self.gid = choose_gid(self.port)
        self.window = window
        self.access = REMOTE if remote_access else LOCAL
        self.context = V.device.Context(name=device)
        domain = V.pd.PD(self.context)
        self.queue = V.cq.CQ(self.context, 512)
        self.messages = V.mr.MR(domain, (window + SENDS) * MESSAGE, LOCAL)
        self.data = V.mr.MR(domain, data_bytes, self.access)
        self.domain = domain
        cap = V.qp.QPCap(max_send_wr=64, max_recv_wr=window, max_send_sge=1, max_recv_sge=1)
        initial = V.qp.QPInitAttr(qp_type=E.IBV_QPT_RC, scq=self.queue, rcq=self.queue, cap=cap, sq_sig_all=1)
        attributes = V.qp.QPAttr(port_num=1)
        # Without remote access, "local write" says nothing about a queue pair.
        attributes.qp_access_flags = self.access if remote_access else 0
        self.pair = V.qp.QP(domain, initial, attributes)
        self.psn = int.from_bytes(os.urandom(3), "little")
        for slot in range(window):
            self.post_receive(slot)
        self.inbox = bytearray()
        self.free = self.owed = self.asked = self.done = 0
        self.messages_in = 0
        self.one_sided = 0
        self.returned: list[int] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def end(self, *, port: int = 0, status: int = 0, flags: int = 0, window: int | None = None) -> tuple:
        gid = bytes.fromhex(self.gid.gid.replace(":", ""))
        mtu = self.port.mtu.bit_length() - 8
        window = self.window if window is None else window
        return (status, port, self.pair.qp_num, self.psn, 0, frames.ETHERNET, mtu, gid, window, 16, flags)

    def offer(self) -> tuple:
        _, _, _, _, lid, link, mtu, gid, *_ = self.end()
        return gid, link, mtu, lid, 0

    def connect(self, theirs: tuple) -> None:
        _, _, number, psn, lid, _, mtu, gid, window, reads, _ = theirs
        attributes = V.qp.QPAttr(port_num=1)
        attributes.qp_access_flags = self.access if self.access != LOCAL else 0
        attributes.path_mtu = mtu
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = max(1, min(reads, 16))
        attributes.min_rnr_timer, attributes.rnr_retry, attributes.retry_cnt, attributes.timeout = (
            12,
            0,
            6,
            14,
        )
        attributes.dest_qp_num, attributes.rq_psn, attributes.sq_psn = number, psn, self.psn
        text = gid.hex()
        gid = V.addr.GID(":".join(text[at : at + 4] for at in range(0, 32, 4)))
        route = V.addr.GlobalRoute(dgid=gid, sgid_index=self.gid.index, hop_limit=64)
        attributes.ah_attr = V.addr.AHAttr(gr=route, is_global=1, dlid=lid, port_num=1)
        self.pair.to_rts(attributes)
        self.free = self.free_max = window

    # Messages.

    def post_receive(self, slot: int) -> None:
        piece = V.wr.SGE(self.messages.buf + slot * MESSAGE, MESSAGE, self.messages.lkey)
        self.pair.post_recv(V.wr.RecvWR(wr_id=RECEIVE | slot, num_sge=1, sg=[piece]))

    def pump(self) -> bool:
        """Takes what has completed; whether there was anything. Raises: Broken."""
        count, completions = self.queue.poll(16)
        for completion in completions:
            if completion.status != E.IBV_WC_SUCCESS:
                raise Broken(completion.status)
            if completion.wr_id & RECEIVE:
                slot = completion.wr_id & ~RECEIVE
                assert completion.wc_flags & E.IBV_WC_WITH_IMM, "every message has immediate data"
                returned = immediate(completion.imm_data)
                self.returned.append(returned)
                self.free += returned
                assert self.free <= self.free_max, "more buffers were returned than the window has"
                self.messages_in += 1
                self.inbox += self.messages.read(completion.byte_len, slot * MESSAGE)
                self.post_receive(slot)
                # A message without bytes only returns buffers; its own counts at once.
                self.owed += 1
            else:
                self.done += 1
        return count > 0

    def wait(self, condition) -> None:
        limit = time.monotonic() + PATIENCE_S
        while not condition():
            if not self.pump():
                assert time.monotonic() < limit, f"nothing came for {PATIENCE_S} s"
                time.sleep(0.0005)

    def send(self, data: bytes) -> None:
        for start in range(0, len(data), MESSAGE):
            self.wait(lambda: self.free >= 2)
            self.send_message(data[start : start + MESSAGE])

    def send_message(self, data: bytes, *, returned: int | None = None) -> None:
        """Without asking whether there is a buffer for it."""
        self.wait(lambda: self.asked - self.done < SENDS)
        offset = (self.window + self.asked % SENDS) * MESSAGE
        if data:
            self.messages.write(data, len(data), offset)
        owed, self.owed = self.owed, 0
        number = immediate(owed if returned is None else returned)
        piece = V.wr.SGE(self.messages.buf + offset, len(data), self.messages.lkey)
        work = V.wr.SendWR(opcode=E.IBV_WR_SEND_WITH_IMM, num_sge=1, sg=[piece], imm_data=number)
        self.free -= 1
        self.asked += 1
        self.pair.post_send(work)

    def receive(self, count: int) -> bytes:
        def is_there() -> bool:
            if self.owed >= self.window // 2 and self.free >= 1:
                self.send_message(b"")
            return len(self.inbox) >= count

        self.wait(is_there)
        taken = bytes(self.inbox[:count])
        del self.inbox[:count]
        return taken

    # One-sided.

    def transfer(self, opcode: int, offset: int, length: int, address: int, rkey: int) -> None:
        """Moves bytes between `data` here and memory there; returns when it is done. Raises: Broken."""
        work = V.wr.SendWR(
            opcode=opcode, num_sge=1, sg=[V.wr.SGE(self.data.buf + offset, length, self.data.lkey)]
        )
        work.set_wr_rdma(rkey, address)
        self.wait(lambda: self.asked - self.done < SENDS)
        self.asked += 1
        self.pair.post_send(work)
        self.wait(lambda: self.done == self.asked)
        self.one_sided += 1

    def read_from(self, offset: int, length: int, address: int, rkey: int) -> None:
        self.transfer(E.IBV_WR_RDMA_READ, offset, length, address, rkey)

    def write_to(self, offset: int, length: int, address: int, rkey: int) -> None:
        self.transfer(E.IBV_WR_RDMA_WRITE, offset, length, address, rkey)


def immediate(number: int) -> int:
    """Immediate data as it is handed to verbs: big-endian on the wire. Its own inverse."""
    return socket.htonl(number)


def receive_exactly(connection: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = connection.recv(count - len(data))
        if not piece:
            raise ConnectionError("the peer has closed the TCP connection")
        data += piece
    return data


class Conversation:
    """Frames, over TCP first and over the wire later."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(PATIENCE_S)
        self.connection = connection
        self.wire: Wire | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        if self.wire is not None:
            self.wire.context.close()

    def put(self, frame: Frame) -> None:
        if self.wire is None:
            self.connection.sendall(frame.encode())
        else:
            self.wire.send(frame.encode())

    def take(self) -> Frame:
        def receive(count: int) -> bytes:
            return receive_exactly(self.connection, count) if self.wire is None else self.wire.receive(count)

        head = receive(frames.HEADER.size)
        return frames.decode(head, receive(frames.table_bytes(head)))

    def is_closed(self) -> bool:
        """Whether the peer ends the TCP connection, now or soon."""
        try:
            return self.connection.recv(1) == b""
        except ConnectionResetError:
            return True


class Client(Conversation):
    """A client of a storage server."""

    def __init__(self, address: tuple[str, int], *, role: int = CLIENT) -> None:
        super().__init__(socket.create_connection(address, PATIENCE_S))
        side = handshake.ClientSide(mint(SECRET, role=role), kind=handshake.DATA)
        self.connection.sendall(side.answer(receive_exactly(self.connection, handshake.HELLO.size)))
        side.finish(receive_exactly(self.connection, handshake.WELCOME.size))
        self.number = 0
        # The server's clock, and when it was heard.
        self.clock_ms, self.heard_at = 0, time.monotonic()

    def call(self, kind: int, rows: list[tuple], *, clock_ms: int = 0) -> Frame:
        self.number += 1
        self.put(Frame(kind, self.number, rows, deadline_ms=1000 * PATIENCE_S, clock_ms=clock_ms))
        reply = self.take()
        assert (reply.kind, reply.id) == (kind | frames.REPLY, self.number)
        self.clock_ms, self.heard_at = reply.clock_ms, time.monotonic()
        return reply

    def due_ms(self) -> int:
        """The server's clock when our patience ends, at the latest: as much has passed there as here."""
        return self.clock_ms + int(1000 * (time.monotonic() - self.heard_at + PATIENCE_S))

    def resume(self, wire: Wire, *, window: int | None = None) -> int:
        """Continue over the wire; return the status of the server's answer to the offer."""
        (theirs,) = self.call(frames.OFFER, [wire.offer()]).rows
        if theirs[0]:
            return theirs[0]
        wire.connect(theirs)
        ((status, _, _),) = self.call(frames.CONNECT, [wire.end(window=window)]).rows
        assert status == 0
        self.wire = wire
        self.call(frames.PING, [])
        return 0

    def register(self, slot: int, address: int, rkey: int, length: int) -> None:
        """Has no reply."""
        self.put(Frame(frames.REGISTER, 0, [(slot, address, rkey, length)]))

    def write(
        self,
        index: int,
        data: bytes,
        *,
        sequence: int,
        offset: int = 0,
        crc: int | None = None,
        slot: int = 0,
    ):
        """Asks the server to take `data` from `offset` of slot 0's memory; the reply's row."""
        crc = frames.crc32c(data) if crc is None else crc
        row = (
            1,
            slot,
            frames.WRITE,
            1,
            5,
            index,
            0,
            len(data),
            crc,
            7,
            sequence,
            0,
            offset,
            frames.CRC_IS_SET,
            0,
            0,
            0,
        )
        (result,) = self.call(frames.UPDATE, [row], clock_ms=self.due_ms()).rows
        return result

    def read(self, index: int, length: int, *, offset: int = 0, slot: int = 0):
        """Asks the server to place bytes at `offset` of a slot's memory; the reply's row."""
        (result,) = self.call(frames.READ, [read_row(index, length, offset, slot)]).rows
        return result


def read_row(index: int, length: int, offset: int, slot: int = 0) -> tuple:
    return (1, slot, 0, 1, 5, index, 0, length, 0, offset)


class Server(Conversation):
    """A storage server for one client, its chunks in a dictionary."""

    def __init__(self, connection: socket.socket) -> None:
        super().__init__(connection)
        side = handshake.ServerSide(SECRET, kind=handshake.DATA)
        connection.sendall(side.hello)
        data = b""
        while (answer := side.answer(data)) is None:
            piece = connection.recv(4096)
            if not piece:
                raise ConnectionError("the client left during the handshake")
            data += piece
        connection.sendall(answer[1])
        assert answer[2] == len(data), "a client waits for its welcome"
        self.begun = time.monotonic()
        self.chunks: dict[tuple[int, int], bytes] = {}
        self.slots: dict[int, tuple[int, int, int]] = {}
        self.kinds: list[int] = []

    def reply(self, request: Frame, rows: list[tuple]) -> None:
        clock = int(1000 * (time.monotonic() - self.begun))
        self.put(Frame(request.kind | frames.REPLY, request.id, rows, clock_ms=clock))

    def accept(self, wire: Wire, *, status: int = 0) -> tuple:
        """Answers the client's offer and its connect; the client's end."""
        request = self.take()
        assert request.kind == frames.OFFER
        offers = request.rows
        self.reply(
            request, [wire.end(status=status) if not status else (status, *(0,) * 6, bytes(16), 0, 0, 0)]
        )
        if status:
            return ()
        assert wire.offer()[1] == offers[0][1]
        request = self.take()
        assert request.kind == frames.CONNECT
        (theirs,) = request.rows
        wire.connect(theirs)
        self.reply(request, [(0, 0, 0)])
        self.wire = wire
        return theirs

    def place(self, slot: int, offset: int, length: int) -> tuple[int, int]:
        address, rkey, size = self.slots[slot]
        assert offset + length <= size, "an honest client names places inside its regions"
        return address + offset, rkey

    def serve(self, request: Frame) -> None:
        """Answers one request as a server should."""
        self.kinds.append(request.kind)
        assert self.wire is not None
        if request.kind == frames.REGISTER:
            ((slot, address, rkey, length),) = request.rows
            self.slots[slot] = (address, rkey, length)
        elif request.kind == frames.PING:
            self.reply(request, [])
        elif request.kind == frames.UPDATE:
            self.reply(request, [self.update(row) for row in request.rows])
        elif request.kind == frames.READ:
            self.reply(request, [self.read(row) for row in request.rows])
        else:
            raise AssertionError(f"kind {request.kind}")

    def update(self, row: tuple) -> tuple:
        _, slot, op, _, content, index, start, length, crc, _, _, _, offset, flags, _, _, _ = row
        assert (op, start) == (frames.WRITE, 0)
        assert self.wire is not None
        self.wire.read_from(0, length, *self.place(slot, offset, length))
        data = self.wire.data.read(length, 0) if length else b""
        assert flags & frames.CRC_IS_SET, "every payload has a checksum"
        if crc != frames.crc32c(data):
            return frames.CHECKSUM, 0, 0, 0
        self.chunks[content, index] = data
        return frames.OK, 0, length, 1

    def read(self, row: tuple, *, damage: int = 0) -> tuple:
        _, slot, _, _, content, index, start, length, _, offset = row
        assert self.wire is not None
        data = self.chunks.get((content, index))
        if data is None:
            return frames.NOT_FOUND, 0, 0, 0, 0, 0
        data = data[start : start + length]
        crc = frames.crc32c(data) ^ damage
        if data:
            self.wire.data.write(data, len(data), 0)
            self.wire.write_to(0, len(data), *self.place(slot, offset, length))
        return frames.OK, frames.CRC_IS_SET, len(data), 1, crc, 0


def pattern(length: int, seed: int) -> bytes:
    """As the other end makes it."""
    block = bytes((31 * at + 17 * seed) % 251 for at in range(251))
    return (block * (length // 251 + 1))[:length]


def unpack_header(frame: bytes) -> tuple:
    return struct.unpack_from("<4sBBH", frame)
