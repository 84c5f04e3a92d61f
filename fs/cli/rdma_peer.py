"""A verified test between two machines: a queue pair at each end, messages back and forth, bytes both ways.

One end listens on TCP, over which the two agree; everything else goes over RDMA. The client does the work, so that it
also has the results:

    client                                          listener
    {"check": 1, "ports": [...], "gid": ...}   →
                                               ←    {"port": which of them, "end": {...}}
    {"end": {...}}                             →
                                               ←    {"ready": true}                      receives posted
    SEND, PINGS times                          ⇄    SEND, with what came
    WRITE to all slots, ROUNDS times; "check"  →    compares every byte with the pattern  {"good": ...}
    "fill"                                     →    fills all slots again                 {"good": true}
    READ from all slots, ROUNDS times, compares every byte

Nothing of a machine but the test's own buffer can be reached by the other end. Any program that connects can run it;
the listener does one at a time, each within a limit.
"""

import json
import random
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Final, Protocol, Self, TypedDict, Unpack, cast

from ..errors import CorruptData, Error, InvalidArgument, Timeout, Unavailable
from .rdma_findings import Usable
from .rdma_survey import V4, Verbs, rank

# Not a registered number of any service that would be found on a storage node.
PORT: Final = 18615
VERSION: Final = 1
PING_BYTES: Final = 64
SLOT_BYTES: Final = 1 << 20
SLOTS: Final = 4
# What one line of the agreement may have: more than any honest one needs.
LINE_BYTES: Final = 64 << 10
# For one step of the test, however slow the fabric and busy the machines: what fails, fails sooner.
STEP_S: Final = 120.0
# The device tries seven times in all, each 67 ms or more; more than 6 retries means "indefinitely" to some.
RETRIES: Final = 6
TIMEOUT: Final = 14
READS: Final = 4
BUFFER_BYTES: Final = SLOTS * SLOT_BYTES + 2 * PING_BYTES


@dataclass(frozen=True)
class Result:
    """What a test found."""

    ours: str
    theirs: str
    mtu: int
    pings: int
    ping_us_min: float
    ping_us_median: float
    bytes: int
    write_mib_s: float
    read_mib_s: float


class Offer(TypedDict):
    """A port, as the agreement has it."""

    name: str
    link: str
    gid: str
    mtu: int
    lid: int


class Card(Offer):
    """What the other end must know of a port's queue pair and memory."""

    qpn: int
    psn: int
    address: int
    rkey: int


class Message(TypedDict, total=False):
    """One line of the agreement. What a peer sent has the names that were asked for; their values are its own."""

    check: int
    ports: list[Offer]
    port: int
    end: Card
    pings: int
    ready: bool
    step: str
    seed: int
    good: bool
    difference: int
    error: str


class QueuePairAttributes(Protocol):
    """Those of pyverbs that are set here."""

    qp_access_flags: int
    path_mtu: int
    max_rd_atomic: int
    max_dest_rd_atomic: int
    min_rnr_timer: int
    rnr_retry: int
    retry_cnt: int
    timeout: int
    dest_qp_num: int
    rq_psn: int
    sq_psn: int
    ah_attr: object


class Line:
    """JSON messages, one a line, over TCP."""

    def __init__(self, connection: socket.socket) -> None:
        connection.settimeout(STEP_S)
        self.file = connection.makefile("rwb")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    def say(self, **message: Unpack[Message]) -> None:
        """Send one message."""
        self.file.write(json.dumps(message).encode() + b"\n")
        self.file.flush()

    def hear(self, *names: str) -> Message:
        """The next message, which has these names. Raises: Unavailable, with the peer's own words if it sent any."""
        line = self.file.readline(LINE_BYTES)
        if not line:
            raise Unavailable("the other end closed the connection; see what it says")
        try:
            message = json.loads(line)
        except ValueError as error:
            raise Unavailable("what answers there is no `luciola rdma check --listen`") from error
        if isinstance(message, dict) and "error" in message:
            raise Unavailable(f"the other end says: {message['error']}")
        if not isinstance(message, dict) or not all(name in message for name in names):
            raise Unavailable("what answers there is no `luciola rdma check` of this version")
        return cast("Message", message)


class End:
    """One end's queue pair and buffer."""

    def __init__(self, verbs: Verbs, usable: Usable) -> None:
        self.verbs = verbs
        self.usable = usable
        enums = verbs.enums
        self.access = (
            enums.IBV_ACCESS_LOCAL_WRITE | enums.IBV_ACCESS_REMOTE_WRITE | enums.IBV_ACCESS_REMOTE_READ
        )
        self.context = verbs.device.Context(name=usable.device.name)
        domain = verbs.pd.PD(self.context)
        self.queue = verbs.cq.CQ(self.context, 64)
        self.memory = verbs.mr.MR(domain, BUFFER_BYTES, self.access)
        cap = verbs.qp.QPCap(max_send_wr=16, max_recv_wr=16, max_send_sge=1, max_recv_sge=1)
        initial = verbs.qp.QPInitAttr(
            qp_type=enums.IBV_QPT_RC, scq=self.queue, rcq=self.queue, cap=cap, sq_sig_all=1
        )
        self.pair = verbs.qp.QP(domain, initial, self._attributes())
        self.psn = random.SystemRandom().getrandbits(24)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.context.close()

    def card(self) -> Card:
        """Return what the other end must know."""
        return {
            **describe(self.usable),
            "qpn": self.pair.qp_num,
            "psn": self.psn,
            "address": self.memory.buf,
            "rkey": self.memory.rkey,
        }

    def connect(self, theirs: Card) -> None:
        """Make the queue pair ready for the other end."""
        verbs, port = self.verbs, self.usable.port
        attributes = self._attributes()
        attributes.path_mtu = mtu_number(min(port.mtu, int(theirs["mtu"])))
        attributes.max_rd_atomic = attributes.max_dest_rd_atomic = min(
            READS, self.usable.device.limits["max_qp_rd_atom"]
        )
        attributes.min_rnr_timer, attributes.rnr_retry = 12, 6
        attributes.retry_cnt, attributes.timeout = RETRIES, TIMEOUT
        attributes.dest_qp_num, attributes.rq_psn = int(theirs["qpn"]), int(theirs["psn"])
        attributes.sq_psn = self.psn
        route = verbs.addr.GlobalRoute(
            dgid=verbs.addr.GID(theirs["gid"]), sgid_index=self.usable.gid.index, hop_limit=64
        )
        attributes.ah_attr = verbs.addr.AHAttr(
            gr=route, is_global=1, dlid=int(theirs["lid"]), port_num=port.number
        )
        self.pair.to_rts(attributes)
        self.theirs = theirs

    def _attributes(self) -> QueuePairAttributes:
        attributes: QueuePairAttributes = self.verbs.qp.QPAttr(port_num=self.usable.port.number)
        attributes.qp_access_flags = self.access
        return attributes

    def post_receive(self, offset: int, size: int) -> None:
        """Give the device a buffer for a message."""
        self.pair.post_recv(self.verbs.wr.RecvWR(num_sge=1, sg=[self._piece(offset, size)]))

    def post(self, opcode: int, offset: int, size: int) -> None:
        """Send, write or read: from here to the same offset there, or the other way."""
        work = self.verbs.wr.SendWR(opcode=opcode, num_sge=1, sg=[self._piece(offset, size)])
        if opcode != self.verbs.enums.IBV_WR_SEND:
            work.set_wr_rdma(self.theirs["rkey"], self.theirs["address"] + offset)
        self.pair.post_send(work)

    def _piece(self, offset: int, size: int) -> object:
        return self.verbs.wr.SGE(self.memory.buf + offset, size, self.memory.lkey)

    def finish(self, count: int) -> None:
        """Wait for so many completions. Raises: Unavailable if one failed, Timeout if they do not come."""
        enums = self.verbs.enums
        limit = time.monotonic() + STEP_S
        while count:
            _, completions = self.queue.poll(count)
            for completion in completions:
                if completion.status != enums.IBV_WC_SUCCESS:
                    raise Unavailable(explain(enums, completion.status))
            count -= len(completions)
            if time.monotonic() > limit:
                raise Timeout(f"{count} requests did not complete within {STEP_S:.0f} s")

    def fill(self, seed: int) -> None:
        """Fill all slots with bytes that depend on the seed."""
        for slot in range(SLOTS):
            self.memory.write(pattern(seed, slot), SLOT_BYTES, slot * SLOT_BYTES)

    def first_difference(self, seed: int) -> int:
        """Return the offset of the first byte that is not the seed's; -1: all are."""
        for slot in range(SLOTS):
            found, expected = self.memory.read(SLOT_BYTES, slot * SLOT_BYTES), pattern(seed, slot)
            if found != expected:
                place = next(place for place in range(SLOT_BYTES) if found[place] != expected[place])
                return slot * SLOT_BYTES + place
        return -1


def pattern(seed: int, slot: int) -> bytes:
    """Return the bytes of a slot."""
    return random.Random(seed * SLOTS + slot).randbytes(SLOT_BYTES)  # noqa: S311 - to be repeated, not to be secret


def describe(usable: Usable) -> Offer:
    """Return a port, as the agreement has it."""
    port = usable.port
    return {"name": usable.name, "link": port.link, "gid": usable.gid.gid, "mtu": port.mtu, "lid": port.lid}


def mtu_number(size: int) -> int:
    """As verbs numbers it: 1 for 256 bytes to 5 for 4096."""
    return max(1, min(5, size.bit_length() - 8))


def choose_pair(ours: Sequence[Offer], theirs: Sequence[Offer]) -> tuple[int, int] | None:
    """Return the closest two ports, as indices; None if none can reach one another."""
    best: tuple[int, int] | None = None
    highest = 0
    for our, a in enumerate(ours):
        for their, b in enumerate(theirs):
            close = closeness(a, b)
            if close > highest:
                best, highest = (our, their), close
    return best


def closeness(a: Offer, b: Offer) -> int:
    """How near two ports are, at least 1; 0 if they cannot reach each other."""
    if a["link"] != b["link"]:
        return 0
    bits = 128 - (int(a["gid"].replace(":", ""), 16) ^ int(b["gid"].replace(":", ""), 16)).bit_length()
    if a["link"] != "Ethernet":
        return 1000 if bits >= 64 else 0
    if rank(a["gid"]) != rank(b["gid"]):
        return 0
    return 1 + min(bits, 120 if a["gid"].startswith(V4) else 64)


def explain(enums: ModuleType, status: int) -> str:
    """Return what a failed completion means, and what to look at."""
    meanings = {
        enums.IBV_WC_RETRY_EXC_ERR: "no answer over RDMA, though TCP works: packets are lost on the way; "
        "let UDP port 4791 through firewalls, use addresses of one network, and an MTU that every switch carries",
        enums.IBV_WC_RNR_RETRY_EXC_ERR: "the other end took no messages; look at what it says",
        enums.IBV_WC_REM_ACCESS_ERR: "the other end refused an access to its own test buffer; "
        "both ends need the same release",
        enums.IBV_WC_WR_FLUSH_ERR: "the queue pair failed; is the link up at both ends?",
    }
    return meanings.get(
        status, f"a request failed with completion status {status}; see the kernel's log (`dmesg`)"
    )


def run_client(
    address: tuple[str, int], verbs: Verbs, ports: Sequence[Usable], *, rounds: int, pings: int
) -> Result:
    """Run the test against a listener. Raises: Error, with what to do."""
    try:
        connection = socket.create_connection(address, STEP_S)
    except OSError as error:
        raise Unavailable(
            f"{address[0]} does not answer on TCP port {address[1]} ({error.strerror or error}); "
            "start `luciola rdma check --listen` there, and let the port through its firewall"
        ) from error
    with connection, Line(connection) as line:
        try:
            return _test(line, verbs, ports, rounds=rounds, pings=pings)
        except TimeoutError as error:
            if isinstance(error, Error):
                raise
            raise Timeout(f"the other end said nothing for {STEP_S:.0f} s") from error
        except verbs.device.PyverbsError as error:
            raise Unavailable(f"verbs failed: {error}") from error


def _test(line: Line, verbs: Verbs, ports: Sequence[Usable], *, rounds: int, pings: int) -> Result:
    line.say(check=VERSION, ports=[describe(each) for each in ports])
    answer = line.hear("port", "end")
    chosen = answer["port"]
    if not isinstance(chosen, int) or not 0 <= chosen < len(ports):
        raise Unavailable("the other end chose a port that was not offered")
    with End(verbs, ports[chosen]) as end:
        end.connect(answer["end"])
        line.say(end=end.card(), pings=pings)
        line.hear("ready")
        times = _ping(end, pings)
        line.hear("good")
        enums = verbs.enums
        end.fill(1)
        written_s = _move(end, enums.IBV_WR_RDMA_WRITE, rounds)
        line.say(step="compare", seed=1)
        difference = line.hear("good")["difference"]
        if difference != -1:
            raise CorruptData(f"what was written differs at offset {difference}; do not use this fabric")
        line.say(step="fill", seed=2)
        line.hear("good")
        read_s = _move(end, enums.IBV_WR_RDMA_READ, rounds)
        difference = end.first_difference(2)
        if difference != -1:
            raise CorruptData(f"what was read differs at offset {difference}; do not use this fabric")
        line.say(step="end", seed=0)
        mib = rounds * SLOTS * SLOT_BYTES / (1 << 20)
        return Result(
            ours=end.usable.name,
            theirs=str(answer["end"]["name"]),
            mtu=min(end.usable.port.mtu, int(answer["end"]["mtu"])),
            pings=pings,
            ping_us_min=times[0] * 1e6,
            ping_us_median=times[len(times) // 2] * 1e6,
            bytes=rounds * SLOTS * SLOT_BYTES,
            write_mib_s=mib / written_s,
            read_mib_s=mib / read_s,
        )


def _ping(end: End, count: int) -> list[float]:
    """Messages there and back, each compared; their times in seconds, the shortest first."""
    base = SLOTS * SLOT_BYTES
    times = []
    for number in range(count):
        message = random.Random(number).randbytes(PING_BYTES)  # noqa: S311 - as above
        end.memory.write(message, PING_BYTES, base)
        end.post_receive(base + PING_BYTES, PING_BYTES)
        start = time.perf_counter()
        end.post(end.verbs.enums.IBV_WR_SEND, base, PING_BYTES)
        end.finish(2)
        times.append(time.perf_counter() - start)
        if end.memory.read(PING_BYTES, base + PING_BYTES) != message:
            raise CorruptData("a message came back with other bytes; do not use this fabric")
    return sorted(times)


def _move(end: End, opcode: int, rounds: int) -> float:
    """Move every slot so often, all slots in flight; return the seconds it took."""
    start = time.perf_counter()
    for slot in range(SLOTS):
        end.post(opcode, slot * SLOT_BYTES, SLOT_BYTES)
    for number in range(SLOTS, rounds * SLOTS):
        end.finish(1)
        end.post(opcode, number % SLOTS * SLOT_BYTES, SLOT_BYTES)
    end.finish(SLOTS)
    return time.perf_counter() - start


def listen(address: tuple[str, int]) -> socket.socket:
    """Return the listener's socket. Raises: Unavailable."""
    try:
        return socket.create_server(address, backlog=16)
    except OSError as error:
        raise Unavailable(
            f"cannot listen on {address[0] or '*'}:{address[1]}: {error.strerror or error}"
        ) from error


def serve(connection: socket.socket, verbs: Verbs, ports: Sequence[Usable]) -> str:
    """Run one test as the listener; return what was used. Raises: Error if it failed, after a message to the peer."""
    with connection, Line(connection) as line:
        try:
            return _serve(line, verbs, ports)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            # A message of another make: an operating error of the peer, not a mistake here.
            line.say(error="not a message of this check")
            raise InvalidArgument(f"the peer sent something else than a check: {error!r}") from error
        except TimeoutError as error:
            raise Timeout(f"the peer said nothing for {STEP_S:.0f} s") from error
        except verbs.device.PyverbsError as error:
            line.say(error=f"verbs failed: {error}")
            raise Unavailable(f"verbs failed: {error}") from error
        except Error as error:
            line.say(error=error.message)
            raise


def _serve(line: Line, verbs: Verbs, ports: Sequence[Usable]) -> str:
    hello = line.hear("check", "ports")
    if hello["check"] != VERSION:
        raise InvalidArgument(f"this end speaks version {VERSION} of the check, the other {hello['check']}")
    pair = choose_pair([describe(each) for each in ports], hello["ports"])
    if pair is None:
        raise InvalidArgument(
            "no port here reaches one of those: InfiniBand reaches its own subnet, RoCE addresses of the same kind"
        )
    ours, theirs = pair
    base = SLOTS * SLOT_BYTES
    with End(verbs, ports[ours]) as end:
        line.say(port=theirs, end=end.card())
        answer = line.hear("end", "pings")
        end.connect(answer["end"])
        pings = int(answer["pings"])
        end.post_receive(base, PING_BYTES)
        line.say(ready=True)
        for number in range(pings):
            end.finish(1)
            end.memory.write(end.memory.read(PING_BYTES, base), PING_BYTES, base + PING_BYTES)
            if number + 1 < pings:
                end.post_receive(base, PING_BYTES)
            end.post(verbs.enums.IBV_WR_SEND, base + PING_BYTES, PING_BYTES)
            end.finish(1)
        line.say(good=True)
        while True:
            asked = line.hear("step", "seed")
            if asked["step"] == "compare":
                line.say(good=True, difference=end.first_difference(int(asked["seed"])))
            elif asked["step"] == "fill":
                end.fill(int(asked["seed"]))
                line.say(good=True)
            else:
                return f"{ports[ours].name} with {answer['end']['name']}"


__all__ = [
    "BUFFER_BYTES",
    "PORT",
    "Result",
    "choose_pair",
    "closeness",
    "explain",
    "listen",
    "run_client",
    "serve",
]
