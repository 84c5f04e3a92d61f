"""The ring of this machine's own files."""

import errno

from luciola.client import LocalFileSystem, Operation


def test_operation_at_an_offset_that_no_file_has_is_an_error_and_the_ring_goes_on(tmp_path):
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
