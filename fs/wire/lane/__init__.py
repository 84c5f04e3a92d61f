"""The lane: protobuf requests in frames on a stream socket (docs/protocol.md).

    frames         what travels, and limits of it
    server         serves bound methods (methods.py)
    client         asks and waits
    async_client   asks, with many requests in flight

Invariants:

    I1  Nothing is parsed before the handshake has proved who calls.
    I2  What a connection can make us hold is bounded: FRAME_BYTES_MAX of unparsed input, IN_FLIGHT_MAX
        requests of HELD_BYTES_MAX together, and we stop reading while it does not read.
    I3  A malformed frame closes its connection and nothing else; a handler's mistake closes nothing.
    I4  A connection ends when its token expires.
    I5  A client repeats nothing by itself: a request whose reply is missing may have been executed.
"""

from .async_client import AsyncLaneClient
from .client import LaneClient
from .frames import DEFAULT_TIMEOUT_S
from .server import LaneServer

__all__ = ["DEFAULT_TIMEOUT_S", "AsyncLaneClient", "LaneClient", "LaneServer"]
