"""What a rank learns when a step fails, on whichever rank it failed."""

import json
from dataclasses import asdict, dataclass


@dataclass(frozen=True, slots=True)
class Cause:
    """Why a step failed, as one rank reports it to all."""

    rank: int
    """The rank that noticed it."""
    where: str
    """What that rank was doing, or nothing."""
    what: str

    def encode(self) -> bytes:
        """For the store."""
        return json.dumps(asdict(self)).encode()

    @classmethod
    def decode(cls, data: bytes) -> "Cause":
        """From the store."""
        return cls(**json.loads(data))

    def __str__(self) -> str:
        place = f", {self.where}" if self.where else ""
        return f"pipeline rank {self.rank}{place}: {self.what}"


class PipelineError(RuntimeError):
    """A step failed. All ranks of the pipeline get this, with the same cause.

    Gradients of the step are partial on every rank: set them to zero before another step. The pipeline and the
    process group stay usable if all processes live.
    """

    def __init__(self, cause: Cause) -> None:
        super().__init__(str(cause))
        self.cause = cause

    @property
    def rank(self) -> int:
        """The pipeline rank that noticed the failure."""
        return self.cause.rank

    def __reduce__(self) -> tuple[type["PipelineError"], tuple[Cause]]:
        return PipelineError, (self.cause,)


class LinkLost(Exception):
    """A transfer failed here: the peer has gone, cut the connection, or was too slow."""

    def __init__(self, peer: int, what: str) -> None:
        super().__init__(what)
        self.peer = peer


__all__ = ["Cause", "LinkLost", "PipelineError"]
