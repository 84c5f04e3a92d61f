"""Any sharding comes back in any other, bit for bit; damage is found wherever it is read."""

import itertools
import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from checkpoint_boxes import BoxLoader, BoxSaver, cut, load_boxes, save_boxes
from luciola.errors import CorruptData
from luciola.plugins.checkpoint import Reader, Writer, verify
from luciola.plugins.weights.plan import BLOCK_BYTES

DTYPES = (
    torch.float32,
    torch.bfloat16,
    torch.int8,
    torch.float64,
    torch.complex64,
    torch.complex128,
    torch.bool,
)


@st.composite
def tensors(draw):
    """A tensor of 1 to 3 dimensions, now and then of several blocks."""
    dtype = draw(st.sampled_from(DTYPES))
    shape = draw(st.lists(st.integers(1, 9), min_size=1, max_size=3))
    if draw(st.integers(0, 3)) == 0:
        shape[draw(st.integers(0, len(shape) - 1))] = draw(st.integers(20_000, 80_000))
        shape = [min(size, 9) if size < 20_000 else size for size in shape]
        while torch.Size(shape).numel() * dtype.itemsize > 6 * BLOCK_BYTES:
            shape = [max(1, size // 2) for size in shape]
    data = torch.randint(0, 2, (torch.Size(shape).numel() * dtype.itemsize,), dtype=torch.uint8)
    if dtype is not torch.bool:
        data = torch.randint(0, 256, data.shape, dtype=torch.uint8)
    return data.view(dtype).reshape(shape)


@st.composite
def grids(draw, shape):
    """A cover of a shape by boxes: each dimension cut anywhere."""
    sides = []
    for size in shape:
        cuts = draw(st.lists(st.integers(0, size), max_size=3, unique=True))
        edges = sorted({0, size, *cuts})
        sides.append(list(itertools.pairwise(edges)))
    return [
        (tuple(first for first, _ in box), tuple(end - first for first, end in box))
        for box in itertools.product(*sides)
    ]


@st.composite
def boxes(draw, shape):
    """Any part of a shape, an empty one too."""
    edges = [sorted(draw(st.tuples(st.integers(0, size), st.integers(0, size)))) for size in shape]
    return tuple(first for first, _ in edges), tuple(end - first for first, end in edges)


def same(left, right):
    left, right = (each.contiguous().reshape(-1).view(torch.uint8) for each in (left, right))
    return torch.equal(left, right)


@given(st.data())
@settings(deadline=None, max_examples=60)
def test_any_sharding_into_any_other(tmp_path_factory, data):
    root = str(tmp_path_factory.mktemp("boxes"))
    ranks = data.draw(st.integers(1, 4))
    state = {f"t{index}": data.draw(tensors()) for index in range(data.draw(st.integers(1, 3)))}
    of_rank = [[] for _ in range(ranks)]
    for name, tensor in state.items():
        for box in data.draw(grids(tensor.shape)):
            of_rank[data.draw(st.integers(0, ranks - 1))].append((name, tensor, box))
    savers = [BoxSaver(mine, {f"object{rank}": b"x" * rank}) for rank, mine in enumerate(of_rank)]
    save_boxes([Writer(f"{root}/a-1") for _ in range(ranks)], savers)
    assert verify(f"{root}/a-1") == []
    wanted = []
    for _ in range(data.draw(st.integers(1, 4))):
        name = data.draw(st.sampled_from(sorted(state)))
        box = data.draw(boxes(state[name].shape))
        target = torch.zeros(box[1], dtype=state[name].dtype)
        if data.draw(st.booleans()):  # another layout in memory
            target = torch.zeros(box[1][::-1], dtype=state[name].dtype).permute(*reversed(range(len(box[1]))))
        wanted.append((name, box, target))
    verifying = data.draw(st.booleans())
    reader = Reader(f"{root}/a-1", verify=verifying)
    load_boxes([reader], [BoxLoader(wanted)])
    for name, box, target in wanted:
        assert same(target, cut(state[name], box))
    assert reader.report.needed == sum(target.nbytes for *_, target in wanted)
    if verifying:
        assert reader.report.verified >= reader.report.needed
    else:
        assert reader.report.verified == 0


ROWS, COLUMNS = 700, 1000  # floats: three blocks, the last one shorter


def saved(root):
    tensor = torch.randn(ROWS, COLUMNS)
    halves = [[("w", tensor, ((0, 0), (350, COLUMNS)))], [("w", tensor, ((350, 0), (350, COLUMNS)))]]
    save_boxes([Writer(f"{root}/a-1") for _ in range(2)], [BoxSaver(half, {}) for half in halves])
    return tensor


def spoil(path, offset, *, from_end=False):
    with open(path, "r+b") as file:
        file.seek(-offset if from_end else offset, os.SEEK_END if from_end else os.SEEK_SET)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 4]))


@pytest.mark.parametrize(
    "box", [((690, 0), (3, COLUMNS)), ((0, 990), (ROWS, 3)), ((0, 0), (ROWS, COLUMNS)), ((699, 0), (1, 1))]
)
def test_a_spoiled_byte_is_named_by_every_load_of_its_block(tmp_path, box):
    """Also where the load wants other bytes of the block than the one that is spoiled."""
    tensor = saved(tmp_path)
    path = str(tmp_path / "a-1" / "rank-00001.safetensors")
    spoil(path, 400, from_end=True)
    target = torch.zeros(box[1])
    with pytest.raises(
        CorruptData, match=r"tensor 'w\[350:700, 0:1000\]': bytes 1048576 to 1400000"
    ) as caught:
        load_boxes([Reader(tmp_path / "a-1")], [BoxLoader([("w", box, target)])])
    assert caught.value.filename == path
    (damage,) = verify(tmp_path / "a-1")
    assert (damage.file, damage.tensor) == (path, "w[350:700, 0:1000]")
    load_boxes([Reader(tmp_path / "a-1", verify=False)], [BoxLoader([("w", box, target)])])
    first = torch.zeros(300, COLUMNS)
    load_boxes([Reader(tmp_path / "a-1")], [BoxLoader([("w", ((0, 0), (300, COLUMNS)), first)])])
    assert torch.equal(first, tensor[:300])


@pytest.mark.parametrize(
    ("file", "offset", "reason"),
    [
        ("manifest.json", 40, "not the manifest of a checkpoint"),
        ("metadata.pickle", 100, "does not match the checksum in the manifest"),
        ("rank-00000.safetensors", 3000, "its header"),
        ("rank-00000.safetensors.crc32c", 2, "not a file of checksums"),
    ],
)
def test_a_spoiled_byte_elsewhere_names_the_file(tmp_path, file, offset, reason):
    saved(tmp_path)
    path = str(tmp_path / "a-1" / file)
    spoil(path, offset)
    with pytest.raises(CorruptData, match=reason) as caught:
        load_boxes([Reader(tmp_path / "a-1")], [BoxLoader([("w", ((0, 0), (1, 1)), torch.zeros(1, 1))])])
    assert caught.value.filename == path
    (damage,) = verify(tmp_path / "a-1")
    assert damage.file == path
    assert damage.tensor == ""


def test_a_file_that_is_cut_or_gone(tmp_path):
    saved(tmp_path)
    path = tmp_path / "a-1" / "rank-00001.safetensors"
    os.truncate(path, 5000)
    assert [(damage.file, damage.what) for damage in verify(tmp_path / "a-1")] == [
        (str(path), "5000 bytes long, not 1404096")
    ]
    path.unlink()
    (damage,) = verify(tmp_path / "a-1")
    assert damage.what == "missing"
