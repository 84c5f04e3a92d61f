"""The lane: protobuf requests in frames on a stream socket (docs/protocol.md).

    frames         headers, and limits of what travels
    server         serves bound methods (methods.py)

Its clients are written in Rust (core/src/client); those of tests are in tests/lane_client.py.

Invariants:

    I1  Nothing is parsed before the handshake has proved who calls.
    I2  What a connection can make us hold is bounded: FRAME_BYTES_MAX of unparsed input, IN_FLIGHT_MAX
        requests of HELD_BYTES_MAX together, BATCH_BYTES and one reply to those that are answered at once, and
        we stop reading and serving while it does not read.
    I3  A malformed frame closes its connection and nothing else; a handler's mistake closes nothing.
    I4  A connection ends when its token expires.
"""

from .frames import DEFAULT_TIMEOUT_S
from .server import LaneServer

__all__ = ["DEFAULT_TIMEOUT_S", "LaneServer"]
