"""Many reads and writes in flight: submit them, continue, take the results later.

    ring = fs.ring(128)
    buffer = luciola.client.Buffer(128 << 20)                # storage nodes place bytes here without a copy
    ring.submit(Operation(file, i << 20, buffer, i << 20, 1 << 20, user_data=i) for i in range(128))
    for done in ring.drain(128, least=1, timeout_s=5):
        use(done.user_data, done.moved)                      # bytes, or raises the error

Buffers may be any writable bytes-like object (read-only for writes); those that are not a `Buffer`, or a view of one
by memoryview, numpy or torch, cost one copy. The order of results is unspecified. A ring belongs to one process.
"""

import errno as _errno
import os
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import luciola_core

from ..closing import Closing
from ..errors import Error
from .file import File

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

    from .local import LocalFile


UserData: TypeAlias = Any
"""The caller's own: a ring hands it back and never looks at it."""


class Operation(NamedTuple):
    """One read into, or write from, `length` bytes at `buffer_offset` of `buffer` (by default all that follow).

    A write completes when every replica has it; it is durable after `File.fsync`.
    """

    file: "File | LocalFile"
    offset: int
    buffer: "ReadableBuffer"
    buffer_offset: int = 0
    length: int | None = None
    write: bool = False
    user_data: UserData = None


class Completion(NamedTuple):
    """The end of one operation: bytes moved (fewer than asked only at the end of the file), or a negative errno."""

    user_data: UserData
    result: int

    @property
    def moved(self) -> int:
        """Bytes moved. Raises: OSError, of the class for its errno."""
        if self.result < 0:
            number = -self.result
            raise (
                Error(os.strerror(number), errno=number)
                if number == _errno.EIO
                else OSError(number, os.strerror(number))
            )
        return self.result


class Ring(Closing):
    """Submission and completion. Made by `FileSystem.ring`. May be used by several threads."""

    def __init__(self, native: luciola_core.Ring) -> None:
        self._native = native
        self._waiting: dict[int, UserData] = {}

    @property
    def entries(self) -> int:
        """How many operations may be in flight, counted until they are drained."""
        return self._native.entries

    @property
    def in_flight(self) -> int:
        return self._native.in_flight

    def submit(self, operations: Iterable[Operation]) -> int:
        """Take operations, in order, as long as there is room; return how many it has taken.

        Raises: ValueError for a range outside its buffer or a closed file; nothing is taken then.
        """
        return self.submit_from(list(operations))

    def submit_from(self, queue: list[Operation]) -> int:
        """Take operations from the front of `queue`, as `submit`, and remove those from it.

        An exception of a signal handler leaves each operation in the queue or in flight, and in one of them only.
        """
        return self._native.submit(queue, self._waiting)

    def drain(
        self,
        most: int | None = None,
        *,
        least: int = 0,
        timeout_s: float | None = None,
        into: list[Completion] | None = None,
    ) -> list[Completion]:
        """Take up to `most` results, once there are `least` of them or `timeout_s` has passed.

        Waits for no more than are in flight. Signal handlers run while it waits. Results are appended to `into`, where
        they are also if a handler raises as this returns; by default they are in a new list.
        """
        results: list[Completion] = [] if into is None else into
        most = self.entries if most is None else most
        self._native.drain(results, self._waiting, Completion, most, least, timeout_s)
        return results

    def fileno(self) -> int:
        """A descriptor (eventfd) that is readable while there are results to drain, for select, poll and asyncio."""
        return self._native.fileno()

    def close(self) -> None:
        """Wait for what is in flight. Its results may still be drained."""
        self._native.close()


__all__ = ["Completion", "Operation", "Ring"]
