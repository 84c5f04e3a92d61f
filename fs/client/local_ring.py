"""`LocalRing`: the ring of this machine's own files, whose reads and writes a few threads do.

I1  An operation is in the caller's queue or has one of `entries` tickets, until its result is in the caller's list and
    the ticket is back. Each move is one call that runs no Python code, so that an exception of a signal handler, which
    may come between any two of the program's steps, neither loses an operation nor doubles it.
"""

import contextlib
import errno as _errno
import itertools
import operator
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterable
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Final

from ..closing import Closing
from ..errors import InvalidArgument
from .ring import Completion, Operation

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

THREADS: Final = 8  # of one ring: a disk or a mount gains nothing from more
SLICE_S: Final = 0.05  # a waiting thread looks so often: another one may have taken the word that woke it

_first = operator.itemgetter(0)


class _Job:
    """Bytes to move. The descriptor is its own, so that a file that is closed meanwhile does no harm."""

    __slots__ = ("descriptor", "view")

    def __init__(self, operation: Operation) -> None:
        self.view = view_of(operation)
        self.descriptor = os.dup(operation.file.fileno())

    def __del__(self) -> None:
        with contextlib.suppress(AttributeError, OSError):
            os.close(self.descriptor)


class LocalRing(Closing):
    """`Ring` for local files. Made by `LocalFileSystem.ring`. May be used by several threads."""

    def __init__(self, entries: int) -> None:
        if entries < 1:
            raise InvalidArgument(f"a ring has at least one entry, not {entries}")
        self.entries = entries
        self._process = os.getpid()
        self._room: deque[int] = deque(range(entries))
        self._lock = threading.Lock()
        self._shared = _Shared()
        self._threads = [
            threading.Thread(target=_work, args=(self._shared,), name="luciola-local", daemon=True)
            for _ in range(min(entries, THREADS))
        ]
        for thread in self._threads:
            thread.start()
        self._is_closed = False
        weakref.finalize(self, _end, self._shared, self._threads, self._process)

    @property
    def in_flight(self) -> int:
        return self.entries - len(self._room)

    def submit(self, operations: Iterable[Operation]) -> int:
        """As `Ring.submit`. Raises: ValueError for a range outside its buffer or a closed file."""
        return self.submit_from(list(operations))

    def submit_from(self, queue: list[Operation]) -> int:
        """As `Ring.submit_from`."""
        self._require_own_process()
        with self._lock:
            if self._is_closed:
                raise InvalidArgument("the ring is closed")
            operations = queue[: len(self._room)]
            jobs = [_Job(operation) for operation in operations]
            count = len(jobs)
            tickets = itertools.starmap(self._room.pop, itertools.repeat((), count))
            put = map(self._shared.jobs.put, zip(jobs, operations, tickets, strict=True))
            # All of them at once: the rest of a long queue moves up once.
            removed = map(queue.__delitem__, [slice(count)])
            deque(itertools.chain(put, removed), maxlen=0)
        return count

    def drain(
        self,
        most: int | None = None,
        *,
        least: int = 0,
        timeout_s: float | None = None,
        into: list[Completion] | None = None,
    ) -> list[Completion]:
        """As `Ring.drain`."""
        self._require_own_process()
        results: list[Completion] = [] if into is None else into
        most = self.entries if most is None else most
        self._wait(min(least, most), timeout_s)
        shared = self._shared
        with self._lock:
            count = min(most, len(shared.completed))
            done = itertools.starmap(shared.completed.popleft, itertools.repeat((), count))
            taken, tickets = itertools.tee(done)
            back = map(self._room.append, map(operator.itemgetter(1), tickets))
            results.extend(map(_first, map(_first, zip(taken, back, strict=True))))
            if count:
                shared.quieten()
        return results

    def _wait(self, least: int, timeout_s: float | None) -> None:
        """Until there are `least` results, or as many as are in flight."""
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while len(self._shared.completed) < min(least, self.in_flight):
            left = SLICE_S if deadline is None else min(SLICE_S, deadline - time.monotonic())
            if left <= 0:
                return
            with contextlib.suppress(Empty):
                self._shared.wake_ups.get(timeout=left)

    def fileno(self) -> int:
        """Return a descriptor (eventfd) that is readable while there are results to drain."""
        return self._shared.event

    def close(self) -> None:
        """Wait for what is in flight. Its results may still be drained."""
        if self._process != os.getpid():
            return
        with self._lock:  # what was submitted before is in front of the threads' end
            self._is_closed = True
        _end(self._shared, self._threads, self._process)

    def _require_own_process(self) -> None:
        if self._process != os.getpid():
            raise InvalidArgument(
                "this ring belongs to the process that made it: make one in the child, or start it by spawn"
            )


class _Shared:
    """What the threads have of a ring: not the ring itself, which ends with its last user."""

    def __init__(self) -> None:
        self.jobs: SimpleQueue[tuple[_Job, Operation, int] | None] = SimpleQueue()
        self.completed: deque[tuple[Completion, int]] = deque()
        self.wake_ups: SimpleQueue[None] = SimpleQueue()
        self.event = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._event_lock = threading.Lock()
        weakref.finalize(self, os.close, self.event)

    def add(self, completion: Completion, ticket: int) -> None:
        with self._event_lock:
            self.completed.append((completion, ticket))
            os.eventfd_write(self.event, 1)
        if self.wake_ups.empty():
            self.wake_ups.put(None)

    def quieten(self) -> None:
        """The descriptor is readable only while there is a result."""
        with self._event_lock:
            if not self.completed:
                with contextlib.suppress(BlockingIOError):
                    os.eventfd_read(self.event)


def _work(shared: _Shared) -> None:
    while (taken := shared.jobs.get()) is not None:
        job, wanted, ticket = taken
        try:
            move = write_fully if wanted.write else read_fully
            result = move(job.descriptor, job.view, wanted.offset)
        except OSError as error:
            result = -(error.errno or _errno.EIO)
        except OverflowError:  # an offset that no file has must not end this thread
            result = -_errno.EINVAL
        completion = Completion(wanted.user_data, result)
        del taken, job, wanted
        shared.add(completion, ticket)
        del completion


def _end(shared: _Shared, threads: list[threading.Thread], process: int) -> None:
    """End the threads when all that was submitted is done. May be called again."""
    if process != os.getpid():
        return
    for _ in threads:
        shared.jobs.put(None)
    for thread in threads:
        if thread is not threading.current_thread():
            thread.join()


def bytes_of(data: "ReadableBuffer") -> memoryview:
    """Return the bytes of any contiguous buffer."""
    view = memoryview(data)
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def read_fully(descriptor: int, buffer: memoryview, offset: int) -> int:
    """Fill `buffer` from `offset`; return the number of bytes, fewer only at the end of the file."""
    done = 0
    while done < buffer.nbytes:
        count = os.preadv(descriptor, [buffer[done:]], offset + done)
        if count == 0:
            break
        done += count
    return done


def write_fully(descriptor: int, data: memoryview, offset: int) -> int:
    """Write all of `data` at `offset`; return its length."""
    done = 0
    while done < data.nbytes:
        done += os.pwritev(descriptor, [data[done:]], offset + done)
    return done


def view_of(operation: Operation) -> memoryview:
    """Return the bytes an operation moves. Raises: ValueError."""
    whole = bytes_of(operation.buffer)
    start, length = operation.buffer_offset, operation.length
    if length is None:
        length = whole.nbytes - start
    if start < 0 or length < 0 or start + length > whole.nbytes:
        raise ValueError("the range is not inside the buffer")
    if whole.readonly and not operation.write:
        raise ValueError("the buffer is read-only")
    return whole[start : start + length]


__all__ = ["LocalRing", "bytes_of", "read_fully", "view_of", "write_fully"]
