"""Why an attempt at an operation ends without an outcome, and what must happen before the next one.

Operations never wait. Where one cannot continue until something outside its transaction has happened, it raises one of
these; `execution.Execution` sees to it, and runs the operation again from the start.
"""

from collections.abc import Awaitable, Callable

from ..wire.pb.meta_pb2 import Inode


class RetryLater(Exception):
    """The operation cannot continue before something has happened outside its transaction."""


class RetryAfterRefill(RetryLater):
    """No reserved id is left: `refill` reserves more."""

    def __init__(self, refill: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self.refill = refill


class RetryAfterMeasure(RetryLater):
    """The chains must be asked for the length of this file, with the content that this operation gives it."""

    def __init__(self, file: Inode) -> None:
        super().__init__(file.id)
        self.file = file


class RetryAfterTruncate(RetryLater):
    """Chunks of this file beyond `length` must be removed from its chains first."""

    def __init__(self, inode: int, length: int) -> None:
        super().__init__(inode, length)
        self.inode = inode
        self.length = length


class RetryAfterWait(RetryLater):
    """A truncation of this file is in progress."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


class RetryAfterCheck(RetryLater):
    """All below this directory must be walked, to see that the user may remove it."""

    def __init__(self, inode: int) -> None:
        super().__init__(inode)
        self.inode = inode


__all__ = [
    "RetryAfterCheck",
    "RetryAfterMeasure",
    "RetryAfterRefill",
    "RetryAfterTruncate",
    "RetryAfterWait",
    "RetryLater",
]
