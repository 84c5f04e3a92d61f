"""The ring of this machine's own files."""

import errno
import threading
import time

import pytest

from luciola.client import LocalFileSystem, Operation
from luciola.errors import InvalidArgument


def test_impossible_offset_is_an_error_of_its_operation_only(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"bytes of a file")
    buffer = bytearray(5)
    with LocalFileSystem().ring(16) as ring, open(path, "rb", buffering=0) as file:
        for _ in range(10):  # more than the ring has threads
            ring.submit([Operation(file, 1 << 63, buffer, user_data="beyond")])
            assert [tuple(each) for each in ring.drain(least=1)] == [("beyond", -errno.EINVAL)]
        ring.submit([Operation(file, 0, buffer, user_data="whole")])
        assert [tuple(each) for each in ring.drain(least=1)] == [("whole", 5)]
    assert buffer == b"bytes"


class ClosingFile:
    """A file that another thread takes for the last one: the ring is closed while this one is submitted."""

    def __init__(self, file, ring) -> None:
        self.file, self.ring = file, ring
        self.closer = threading.Thread(target=ring.close)

    def fileno(self) -> int:
        self.closer.start()
        self.closer.join(0.2)
        return self.file.fileno()


def test_what_is_submitted_while_another_thread_closes_the_ring_is_done(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"bytes of a file")
    ring = LocalFileSystem().ring(4)
    with open(path, "rb", buffering=0) as file:
        closing = ClosingFile(file, ring)
        ring.submit([Operation(closing, 0, bytearray(5), user_data="last")])
        assert [tuple(each) for each in ring.drain(least=1, timeout_s=10)] == [("last", 5)]
    closing.closer.join(10)
    assert not closing.closer.is_alive()
    with pytest.raises(InvalidArgument, match="closed"):
        ring.submit([])


def test_submitting_from_a_long_queue_moves_its_rest_once(tmp_path):
    """Cost does not grow with entries times queue: taking each from the front moved the rest every time."""
    path = tmp_path / "data"
    path.write_bytes(b"bytes")
    with LocalFileSystem().ring(4000) as ring, open(path, "rb", buffering=0) as file:
        one = Operation(file, 0, bytearray(5), user_data=0)
        queue = [one] * 4_000_000
        started = time.process_time()
        assert ring.submit_from(queue) == 4000
        assert time.process_time() - started < 1, "4,000 moves of 32 MB take longer"
        assert len(queue) == 3_996_000
        done = 0
        while done < 4000:
            done += len(ring.drain(least=1, timeout_s=10))


def test_timeout_beyond_the_clock_is_none(tmp_path):
    path = tmp_path / "data"
    path.write_bytes(b"bytes")
    with LocalFileSystem().ring(4) as ring, open(path, "rb", buffering=0) as file:
        ring.submit([Operation(file, 0, bytearray(5), user_data=0)])
        assert len(ring.drain(least=1, timeout_s=1e30)) == 1
