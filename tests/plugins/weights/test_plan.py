"""Blocks of boxes, against numpy's own indexing."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from luciola.plugins.weights.plan import BLOCK_BYTES, Dimension, blocks, joined, span


@st.composite
def boxes(draw):
    """(shape, box as slices, order of the target's dimensions)."""
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=4))
    parts = []
    for size in shape:
        first = draw(st.integers(0, size))
        parts.append(slice(first, draw(st.integers(first, size))))
    return shape, tuple(parts), draw(st.permutations(range(len(shape))))


def dimensions_of(shape, parts, order):
    strides = [int(np.prod(shape[index + 1 :])) for index in range(len(shape))]
    sizes = [part.stop - part.start for part in parts]
    target, steps = 1, {}
    for index in reversed(order):
        steps[index] = target
        target *= sizes[index]
    start = sum(part.start * stride for part, stride in zip(parts, strides, strict=True))
    return [
        Dimension(*each) for each in zip(sizes, strides, [steps[i] for i in range(len(shape))], strict=True)
    ], start


def offsets(block_dimensions, which):
    if not block_dimensions:
        return np.zeros(1, dtype=int)
    grids = np.meshgrid(*(np.arange(each.size) for each in block_dimensions), indexing="ij")
    return sum(grid * each[which] for grid, each in zip(grids, block_dimensions, strict=True)).ravel()


@given(
    boxes(),
    st.sampled_from([0, 1, 3, 16]),
    st.sampled_from([BLOCK_BYTES, BLOCK_BYTES // 8, BLOCK_BYTES // 32]),
    st.booleans(),
)
def test_blocks_are_the_box(box, gap, item_bytes, aligned):
    """Every element once, from the right place to the right place, in blocks that keep the limits."""
    shape, parts, order = box
    dimensions, start = dimensions_of(shape, parts, order)
    source = np.arange(np.prod(shape))
    sizes = [part.stop - part.start for part in parts]
    expected = source.reshape(shape)[parts].transpose(order).ravel()
    target = np.full(int(np.prod(sizes)), -1)
    last = -1
    for block in blocks(dimensions, start, item_bytes, gap_bytes=gap * item_bytes, aligned=aligned):
        at = block.target + offsets(block.dimensions, 2)
        assert (target[at] == -1).all(), "an element comes twice"
        target[at] = source[block.source + offsets(block.dimensions, 1)]
        assert block.span * item_bytes <= BLOCK_BYTES
        if aligned:
            first, end = block.source * item_bytes, (block.source + block.span) * item_bytes
            assert first // BLOCK_BYTES == (end - 1) // BLOCK_BYTES
        assert block.source >= last
        last = block.source
        taken = np.unique(offsets(block.dimensions, 1))
        assert np.diff(taken, prepend=taken[0]).max() <= gap + 1, "a gap is larger than allowed"
        if block.is_run:
            assert (np.diff(at) == 1).all()
            assert block.span == len(at)
    assert (target == expected).all()


def test_whole_tensors_and_row_shards_are_one_run_cut_at_blocks():
    item_bytes, columns = 2, 300_000
    rows = [Dimension(5, columns, columns), Dimension(columns, 1, 1)]
    assert joined(rows) == (Dimension(5 * columns, 1, 1),)
    cut = list(blocks(rows, 2 * columns, item_bytes))
    assert all(block.is_run for block in cut)
    assert sum(block.span for block in cut) == 5 * columns
    per_block = BLOCK_BYTES // item_bytes
    assert [block.source % per_block for block in cut[1:]] == [0] * (len(cut) - 1)


@pytest.mark.parametrize(("columns", "reads"), [(4096 + 512, 1), (1 << 20, 8)])
def test_column_shards_read_small_gaps_and_leave_large_ones(columns, reads):
    shard = [Dimension(8, columns, 512), Dimension(512, 1, 1)]
    cut = list(blocks(shard, 0, 4))
    assert len(cut) == reads
    assert cut[0].span == (7 * columns + 512 if reads == 1 else 512)


def test_empty_boxes_and_single_elements():
    assert list(blocks([Dimension(3, 0, 0), Dimension(0, 1, 1)], 0, 4)) == []
    (block,) = blocks([], 5, 4)
    assert (block.source, block.target, block.span, block.is_run) == (5, 0, 1, True)
    assert span([]) == 1
