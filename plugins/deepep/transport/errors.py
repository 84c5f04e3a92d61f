"""What goes wrong between ranks.

    CommunicationError            RuntimeError   a call that ranks make together did not end well
    ├─ PeerLost                                  another rank's process has ended, or it has closed its buffer
    ├─ PeerTimeout                TimeoutError   another rank did not come in time
    └─ RanksDisagree              ValueError     ranks call with arguments that do not fit together

Bad arguments that one rank can see by itself raise the classes of `plugins/kernels/errors.py`. After PeerLost and
PeerTimeout the buffer can only be destroyed; after RanksDisagree it can be used on.
"""

import json
from typing import Final

ENCODED_BYTES_MAX: Final = 2048  # JSON takes up to twelve bytes for a letter
REASON_MAX: Final = 500
"""Letters of another exception's text that travel."""


class CommunicationError(RuntimeError):
    """A call that ranks make together did not end well.

    rank: the one that noticed it first. phase: what it was doing. peer: the rank that it blames.
    """

    def __init__(self, what: str, *, rank: int, phase: str, peer: int) -> None:
        super().__init__(f"rank {rank}, {phase}: {what}")
        self.what, self.rank, self.phase, self.peer = what, rank, phase, peer

    def encode(self) -> bytes:
        """For the other ranks: at most ENCODED_BYTES_MAX, the end of what happened is cut off."""
        what = self.what
        while True:
            data = json.dumps([type(self).__name__, what, self.rank, self.phase, self.peer]).encode()
            if len(data) <= ENCODED_BYTES_MAX or not what:
                return data
            what = what[: len(what) * ENCODED_BYTES_MAX // len(data)]

    def __reduce__(self) -> tuple[object, ...]:
        return decode, (self.encode(),)


class PeerLost(CommunicationError):
    """The process of another rank has ended, or it has closed its buffer."""


class PeerTimeout(CommunicationError, TimeoutError):
    """Another rank did not come in time."""


class RanksDisagree(CommunicationError, ValueError):
    """Ranks call with arguments that do not fit together."""


def decode(data: bytes) -> CommunicationError:
    """The error that another rank has encoded."""
    name, what, rank, phase, peer = json.loads(data)
    classes = {each.__name__: each for each in (CommunicationError, PeerLost, PeerTimeout, RanksDisagree)}
    return classes[name](what, rank=rank, phase=phase, peer=peer)


__all__ = [
    "ENCODED_BYTES_MAX", "REASON_MAX", "CommunicationError", "PeerLost", "PeerTimeout", "RanksDisagree", "decode",
]  # fmt: skip
