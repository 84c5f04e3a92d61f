"""Properties of the schedule, of either maker; and a schedule worked out by hand."""

import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from luciola.plugins.flashmla.call import Scope, SparseDecode
from luciola.plugins.flashmla.kernel import schedule_kernel
from luciola.plugins.flashmla.schedule import (
    BLOCK_TOKENS,
    FIXED_COST_BLOCKS,
    FlashMLASchedMeta,
    make_schedule,
    part_count,
)


def pieces_of(table, splits, lengths):
    blocks = [max(-(-length // BLOCK_TOKENS), 1) for length in lengths]
    pieces = [[] for _ in lengths]
    for first, last, begin, end, number, first_split, last_split, pad in table.tolist():
        assert pad == 0
        for request in range(first, last + 1):
            start = begin if request == first else 0
            stop = end if request == last else blocks[request]
            assert len(pieces[request]) == (number if request == first else 0)
            pieces[request].append((start, stop))
            split = splits[request + 1] - splits[request] > 1
            if request == first:
                assert bool(first_split) == split
            if request == last:
                assert bool(last_split) == split
    return pieces, blocks


@given(lengths=st.lists(st.integers(0, 5000), max_size=12), parts=st.integers(1, 40))
def test_pieces_cover_every_block_exactly_once(lengths, parts):
    table, splits = make_schedule(torch.tensor(lengths, dtype=torch.int32), parts)
    pieces, blocks = pieces_of(table, splits.tolist(), lengths)
    assert splits.diff().tolist() == [len(each) for each in pieces]
    for request, each in enumerate(pieces):
        assert each[0][0] == 0
        assert each[-1][1] == blocks[request]
        assert all(before[1] == after[0] for before, after in itertools.pairwise(each))
        assert all(start < stop for start, stop in each)


@given(lengths=st.lists(st.integers(0, 5000), min_size=1, max_size=12), parts=st.integers(1, 40))
def test_no_part_gets_more_than_its_share(lengths, parts):
    table, splits = make_schedule(torch.tensor(lengths, dtype=torch.int32), parts)
    _, blocks = pieces_of(table, splits.tolist(), lengths)
    share = -(-sum(each + FIXED_COST_BLOCKS for each in blocks) // parts) + FIXED_COST_BLOCKS
    for first, last, begin, end, *_ in table.tolist():
        work = sum(
            (end if request == last else blocks[request])
            - (begin if request == first else 0)
            + FIXED_COST_BLOCKS
            for request in range(first, last + 1)
        )
        assert work <= share


def test_by_hand():
    # 10 and 1 blocks, 3 parts: payload = ceil(21 / 3) + 5 = 12. 7 blocks; 3 + 5 = 8 of 12 and not enough left over
    # to take the second sequence (1 + 5) whole: 4 left is no more than 5, so it goes to the third part.
    table, splits = make_schedule(torch.tensor([640, 3], dtype=torch.int32), 3)
    assert splits.tolist() == [0, 2, 3]
    assert table.tolist() == [
        [0, 0, 0, 7, 0, 1, 1, 0],
        [0, 0, 7, 10, 1, 1, 1, 0],
        [1, 1, 0, 1, 0, 0, 0, 0],
    ]


@settings(max_examples=25, deadline=None)
@given(lengths=st.lists(st.integers(-3, 3000), max_size=6), parts=st.integers(1, 12))
def test_the_kernel_makes_the_same(lengths, parts):
    given_ = torch.tensor(lengths, dtype=torch.int32)
    table, splits = (
        torch.full((parts, 8), -9, dtype=torch.int32),
        torch.full((len(lengths) + 1,), -9, dtype=torch.int32),
    )
    schedule_kernel[(1,)](given_, table, splits, len(lengths), parts)
    want_table, want_splits = make_schedule(given_, parts)
    assert torch.equal(splits, want_splits.to(splits.device))
    assert torch.equal(table, want_table.to(table.device))


@pytest.mark.parametrize(
    ("kv_heads", "rows", "want"), [(1, 128, 66), (1, 64, 132), (1, 65, 66), (8, 16, 16), (2, 64 * 100, 1)]
)
def test_parts_fill_the_multiprocessors(kv_heads, rows, want):
    assert part_count(132, kv_heads=kv_heads, rows=rows) == want


def test_lengths_of_two_lists_join_at_a_block():
    def lengths(*lists):
        scopes = (Scope(q, q.new_zeros((3, 1, most)), length) for most, length in lists)
        return SparseDecode(q, tuple(scopes), FlashMLASchedMeta(), 1.0, None).lengths.tolist()

    q = torch.zeros(3, 1, 1, 576, device="cpu")
    first, second = (
        torch.tensor(each, dtype=torch.int32, device="cpu") for each in ([65, 0, 999], [3, 7, 1])
    )
    assert lengths((200, first), (10, second)) == [131, 7, 257]
    assert lengths((200, first)) == [65, 0, 200]
    assert lengths((200, None), (10, None)) == [266] * 3
