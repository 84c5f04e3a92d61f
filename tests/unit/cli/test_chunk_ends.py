"""Where the chunks of a content end, for any order in which chains list them."""

from itertools import permutations

import pytest

from luciola.cli.chunk_ends import ChunkEnds, Unowned
from luciola.wire.pb import storage_pb2 as pb

CHUNK = 1 << 20


def record(content: int, index: int, length: int) -> pb.ChunkRecord:
    return pb.ChunkRecord(chunk=pb.ChunkName(content=content, index=index), length=length)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_content_ends_with_its_last_chunk(order):
    records = [record(7, 0, CHUNK), record(7, 5, 10), record(7, 2, 500)]
    with ChunkEnds() as ends:
        for number in order:
            ends.add([records[number]])
        assert ends.end(7, CHUNK) == 5 * CHUNK + 10
        assert ends.end(8, CHUNK) == 0


def test_contents_that_no_file_asked_for_are_counted():
    with ChunkEnds() as ends:
        ends.add([record(7, 0, 1), record(8, 0, 1), record(8, 1, 1), record(9, 3, 1)])
        assert ends.end(7, CHUNK) == 1
        assert ends.unowned() == Unowned(contents=2, chunks=3)
