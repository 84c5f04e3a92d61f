"""Checkpoints on local files: equal to what the safetensors library reads, and no more is read than is needed."""

import json
import os
import pickle
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from counting import CountingFileSystem
from luciola.client import Buffer, LocalFileSystem
from luciola.errors import CorruptData, InvalidArgument, NotFound
from luciola.plugins.weights import Checkpoint, Slice, save
from luciola.plugins.weights.dtypes import DTYPES

MIB = 1 << 20
HEAD_BYTES = 256 << 10  # what opening a file may read
FORMATS = [each for each in DTYPES.values() if each.torch_name is not None]


def raw(*shape, dtype=torch.float32, seed=1):
    """Random bytes as a tensor: every bit pattern, NaNs included."""
    generator = torch.Generator().manual_seed(seed)
    count = int(torch.Size(shape).numel())
    if dtype is torch.bool:
        return torch.randint(0, 2, shape, generator=generator).bool()
    data = torch.randint(0, 256, (count * dtype.itemsize,), dtype=torch.uint8, generator=generator)
    return data.view(dtype).reshape(shape)


def bits(tensor):
    """All bytes in order. A copy, because a tensor of one number or none counts as contiguous with any stride."""
    return torch.empty(tensor.numel(), dtype=tensor.dtype).copy_(tensor.reshape(-1)).view(torch.uint8)


def same(left, right):
    """Equal bit for bit."""
    return left.dtype == right.dtype and left.shape == right.shape and torch.equal(bits(left), bits(right))


@pytest.fixture
def one(tmp_path):
    """A file of the library with large, small, empty and 0-d tensors; (path, tensors)."""
    tensors = {
        "large": raw(1500, 513),
        "bf16": raw(700, 1024, dtype=torch.bfloat16, seed=2),
        "small": raw(33, seed=3),
        "bytes": raw(5, dtype=torch.uint8, seed=4),
        "scalar": raw(dtype=torch.float64, seed=5),
        "none": torch.empty(0, 3),
    }
    save_file(tensors, tmp_path / "one.safetensors", {"made": "here"})
    return str(tmp_path / "one.safetensors"), tensors


def counted(path):
    """The checkpoint through a file system that counts, from after its opening on."""
    counter = CountingFileSystem(LocalFileSystem())
    checkpoint = Checkpoint(counter, path)
    assert counter.read_bytes <= HEAD_BYTES * len(checkpoint.files) + MIB
    counter.read_bytes = counter.reads = 0
    return checkpoint, counter


@pytest.mark.parametrize("dtype", FORMATS, ids=lambda dtype: dtype.name)
def test_every_type_comes_back_bit_for_bit_both_ways(tmp_path, dtype):
    kind = getattr(torch, dtype.torch_name)
    tensors = {"a": raw(3, 4, 2, dtype=kind), "z": raw(1, dtype=kind), "big": raw(130_000, 3, dtype=kind)}
    if dtype.packed == 1:
        tensors |= {"d": raw(dtype=kind), "e": raw(0, 5, dtype=kind)}
    save_file(tensors, tmp_path / "theirs.safetensors")
    save(tensors, tmp_path / "ours.safetensors")
    theirs_of_ours = load_file(tmp_path / "ours.safetensors")
    for file in ("theirs", "ours"):
        checkpoint = Checkpoint.open(tmp_path / f"{file}.safetensors")
        assert {info.dtype for info in checkpoint.tensors.values()} == {dtype.name}
        loaded = checkpoint.load()
        assert loaded.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same(loaded[name], tensor)
            assert same(theirs_of_ours[name], tensor)


def test_facts_of_a_file(one):
    path, tensors = one
    checkpoint = Checkpoint.open(path)
    assert checkpoint.metadata == {"made": "here"}
    assert list(checkpoint.tensors) == sorted(tensors)
    info = checkpoint.info("bf16")
    assert (info.dtype, info.shape, info.nbytes, info.file) == ("BF16", (700, 1024), 1433600, path)
    with open(path, "rb") as file:
        file.seek(info.offset)
        assert file.read(info.nbytes) == bytes(tensors["bf16"].view(torch.uint8).numpy())
    assert "6 tensors in 1 files" in repr(checkpoint)
    with pytest.raises(KeyError, match="did you mean 'large'"):
        checkpoint.info("largo")


def test_whole_tensors_read_their_bytes_and_nothing_else(one):
    path, tensors = one
    checkpoint, counter = counted(path)
    targets = {name: torch.empty_like(tensors[name]) for name in ("large", "scalar", "none")}
    report = checkpoint.read_into(targets)
    assert all(same(targets[name], tensors[name]) for name in targets)
    assert report.needed == counter.read_bytes == report.read == 1500 * 513 * 4 + 8
    assert (report.reads, report.verified) == (counter.reads, 0)


def test_row_shards_read_their_rows(one):
    path, tensors = one
    checkpoint, counter = counted(path)
    target = torch.empty(400, 513)
    checkpoint.read_slices([Slice("large", target, slice(700, 1100))])
    assert same(target, tensors["large"][700:1100])
    assert counter.read_bytes == 400 * 513 * 4


def test_column_shards_by_runs_or_through_gaps(tmp_path):
    wide = raw(40, 20_000)
    save_file({"wide": wide}, tmp_path / "f.safetensors")
    checkpoint, counter = counted(str(tmp_path / "f.safetensors"))
    target = torch.empty(40, 1000)
    checkpoint.read_slices([Slice("wide", target, (slice(None), slice(3000, 4000)))])
    assert same(target, wide[:, 3000:4000])
    assert (counter.read_bytes, counter.reads) == (40 * 1000 * 4, 40)
    counter.read_bytes = counter.reads = 0
    target.zero_()
    checkpoint.read_slices([Slice("wide", target, (slice(None), slice(3000, 4000)))], gap_bytes=MIB)
    assert same(target, wide[:, 3000:4000])
    assert (counter.read_bytes, counter.reads) == ((40 * 20_000 - 3 * 19_000) * 4, 3)


@pytest.mark.parametrize("dimension", [0, 1])
def test_the_shards_of_all_ranks_are_the_tensor(one, dimension):
    path, tensors = one
    checkpoint = Checkpoint.open(path)
    info = checkpoint.info("bf16")
    parts = list(torch.empty(700, 1024, dtype=torch.bfloat16).chunk(4, dimension))
    checkpoint.read_slices(
        Slice("bf16", part, info.shard(rank, 4, dimension=dimension)) for rank, part in enumerate(parts)
    )
    assert same(torch.cat(parts, dimension), tensors["bf16"])


def test_shards_that_cannot_be(one):
    info = Checkpoint.open(one[0]).info("large")
    with pytest.raises(ValueError, match="rank must be 0 to 1, not 2"):
        info.shard(2, 2)
    with pytest.raises(ValueError, match="2 dimensions: dimension must be below, not 2"):
        info.shard(0, 2, dimension=2)
    with pytest.raises(ValueError, match=r"dimension 1 of 'large' \(513\) must be a multiple of ranks \(2\)"):
        info.shard(0, 2, dimension=1)


def test_near_small_tensors_share_a_read(tmp_path):
    tensors = {f"t{index:03}": raw(100 + index, seed=index) for index in range(300)}
    save_file(tensors, tmp_path / "f.safetensors")
    checkpoint, counter = counted(str(tmp_path / "f.safetensors"))
    loaded = checkpoint.load()
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    assert counter.reads == 1
    counter.reads = counter.read_bytes = 0
    checkpoint.read_into({name: loaded[name] for name in ("t000", "t299")})
    assert counter.reads == 2
    assert counter.read_bytes == 100 * 4 + 399 * 4


@st.composite
def slicings(draw):
    shape = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    index = []
    for size in shape[: draw(st.integers(0, len(shape)))]:
        first = draw(st.integers(0, size - 1))
        index.append(
            draw(st.sampled_from([first, slice(first, draw(st.integers(first, size))), slice(None)]))
        )
    dtype = draw(st.sampled_from([torch.float32, torch.bfloat16, torch.uint8, torch.bool]))
    return (
        shape,
        tuple(index),
        dtype,
        draw(st.sampled_from(["plain", "strided", "transposed"])),
        draw(st.integers(0, 99)),
    )


@given(slicings(), st.sampled_from([0, 8, 4096]), st.booleans())
@settings(deadline=None, max_examples=40)
def test_any_slice_into_any_layout_of_target(tmp_path_factory, slicing, gap_bytes, whole_blocks):
    shape, index, dtype, layout, seed = slicing
    tensor = raw(*shape, dtype=dtype, seed=seed)
    path = str(tmp_path_factory.mktemp("slices") / "f.safetensors")
    # A tensor of one byte before it puts it where it is not aligned.
    save_file({"tensor": tensor, "a": torch.zeros(1, dtype=torch.uint8)}, path)
    expected = tensor[index]
    if layout == "strided":
        around = torch.zeros(
            [*expected.shape[:-1], 2 * expected.shape[-1] + 3] if expected.dim() else [3], dtype=dtype
        )
        target = around[..., 1 : 1 + expected.shape[-1]] if expected.dim() else around[1]
    elif layout == "transposed":
        target = torch.zeros(list(expected.shape)[::-1], dtype=dtype).permute(
            list(reversed(range(expected.dim())))
        )
    else:
        target = torch.zeros(expected.shape, dtype=dtype)
    slices = [Slice("tensor", target, index)]
    report = Checkpoint.open(path).read_slices(slices, gap_bytes=gap_bytes, whole_blocks=whole_blocks)
    assert same(target, expected)
    assert report.needed == expected.numel() * dtype.itemsize
    assert report.read >= report.needed
    if gap_bytes == 0 and not whole_blocks:
        assert report.read == report.needed
    if layout == "strided":
        assert (around.flatten()[:1] == 0).all()
        assert (around.flatten()[-1:] == 0).all()


def test_targets_over_a_buffer_of_the_client(one):
    path, tensors = one
    buffer = Buffer(tensors["large"].nbytes)
    target = torch.frombuffer(buffer, dtype=torch.float32).reshape(1500, 513)
    Checkpoint.open(path).read_into({"large": target})
    assert bytes(buffer) == bytes(tensors["large"].view(torch.uint8).numpy())


def test_conversion_only_when_asked_for(one):
    path, tensors = one
    checkpoint = Checkpoint.open(path)
    target = torch.empty(700, 1024)
    with pytest.raises(TypeError, match="convert=True"):
        checkpoint.read_into({"bf16": target})
    checkpoint.read_into({"bf16": target}, convert=True)
    assert same(target, tensors["bf16"].float())
    part = torch.empty(1024, 10, dtype=torch.float64).t()
    checkpoint.read_slices([Slice("bf16", part, slice(5, 15))], convert=True)
    assert same(part, tensors["bf16"][5:15].double())


def test_a_parameter_is_filled_in_place(one):
    path, tensors = one
    module = torch.nn.Linear(513, 1500, bias=False)
    Checkpoint.open(path).read_into({"large": module.weight})
    assert same(module.weight.detach(), tensors["large"])


@pytest.mark.parametrize(
    ("target", "index", "kind", "reason"),
    [
        (torch.empty(1500, 512), (), ValueError, r"shape \[1500, 512\].*has \[1500, 513\]"),
        (torch.empty(513), (slice(0, 1),), ValueError, "shape"),
        (
            torch.empty(10, 513),
            slice(1495, 1505),
            ValueError,
            r"slice\(1495, 1505, None\) does not lie within",
        ),
        (torch.empty(10, 513), slice(-10, None), ValueError, "does not lie within"),
        (torch.empty(10, 513), slice(0, 20, 2), ValueError, "step 1"),
        (torch.empty(513), -1, ValueError, "-1 is not an index"),
        (torch.empty(513), 1500, ValueError, "1500 is not an index"),
        (torch.empty(513), "0", TypeError, "str"),
        (torch.empty(()), (0, 0, 0), ValueError, "3 indices for 'large', which has 2"),
        (torch.empty(513).expand(1500, 513), (), ValueError, "share memory"),
        (torch.empty(1500, 513, device="meta"), (), ValueError, "no memory of its own"),
        (torch.empty(1500, 513).to_sparse(), (), ValueError, "no memory of its own"),
        ([0.0], (), TypeError, "a list, not a tensor"),
    ],
)
def test_targets_that_do_not_fit(one, target, index, kind, reason):
    with pytest.raises(kind, match=reason):
        Checkpoint.open(one[0]).read_slices([Slice("large", target, index)])


def test_names_and_gaps_that_do_not_fit(one):
    checkpoint = Checkpoint.open(one[0])
    with pytest.raises(KeyError, match="no tensor 'x'"):
        checkpoint.load(["x"])
    with pytest.raises(ValueError, match="not negative"):
        checkpoint.read_into({}, gap_bytes=-1)


def test_types_without_a_torch_type_are_listed_and_verified_only(tmp_path):
    text = json.dumps({"six": {"dtype": "F6_E2M3", "shape": [4], "data_offsets": [0, 3]}}).encode()
    (tmp_path / "f.safetensors").write_bytes(len(text).to_bytes(8, "little") + text + b"abc")
    checkpoint = Checkpoint.open(tmp_path / "f.safetensors")
    assert checkpoint.info("six").nbytes == 3
    assert checkpoint.verify() == []
    with pytest.raises(TypeError, match="has no type for F6_E2M3"):
        checkpoint.load()


# Several files.


def write_shards(directory, *, index=True):
    shards = {"a.safetensors": {"x": raw(10), "y": raw(2, 2)}, "b.safetensors": {"z": raw(300_000, seed=9)}}
    for file, tensors in shards.items():
        save_file(tensors, directory / file)
    weight_map = {name: file for file, tensors in shards.items() for name in tensors}
    if index:
        (directory / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return {name: tensor for tensors in shards.values() for name, tensor in tensors.items()}


@pytest.mark.parametrize("index", [True, False])
def test_a_directory_of_shards(tmp_path, index):
    tensors = write_shards(tmp_path, index=index)
    locations = [tmp_path, tmp_path / "model.safetensors.index.json"] if index else [tmp_path]
    for location in locations:
        checkpoint = Checkpoint.open(location)
        assert [os.path.basename(file) for file in checkpoint.files] == ["a.safetensors", "b.safetensors"]
        loaded = checkpoint.load()
        assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    checkpoint, counter = counted(str(tmp_path))
    checkpoint.load(["z"])
    assert counter.read_bytes == 1_200_000


@pytest.mark.parametrize(
    ("table", "reason"),
    [
        ("{", "not an index"),
        ("[]", "no weight_map"),
        ('{"weight_map": {}}', "no weight_map"),
        ('{"weight_map": {"x": "../a.safetensors"}}', "not the name of a file beside"),
        ('{"weight_map": {"x": "/a.safetensors"}}', "not the name of a file beside"),
        ('{"weight_map": {"x": ".."}}', "not the name of a file beside"),
        ('{"weight_map": {"x": 1}}', "not the name of a file beside"),
        ('{"weight_map": {"z": "a.safetensors"}}', "says that tensor 'z' is in this file"),
    ],
)
def test_hostile_indexes(tmp_path, table, reason):
    write_shards(tmp_path)
    (tmp_path / "model.safetensors.index.json").write_text(table)
    with pytest.raises(CorruptData, match=reason):
        Checkpoint.open(tmp_path)


def test_directories_that_are_no_checkpoint(tmp_path):
    with pytest.raises(NotFound, match=r"no .safetensors file"):
        Checkpoint.open(tmp_path)
    with pytest.raises(FileNotFoundError):
        Checkpoint.open(tmp_path / "none.safetensors")
    write_shards(tmp_path)
    (tmp_path / "other.safetensors.index.json").write_text("{}")
    with pytest.raises(InvalidArgument, match="several checkpoints"):
        Checkpoint.open(tmp_path)
    for name in ("other", "model"):
        (tmp_path / f"{name}.safetensors.index.json").unlink()
    save_file({"x": raw(1)}, tmp_path / "c.safetensors")
    with pytest.raises(CorruptData, match=r"tensor 'x' is also in .*a.safetensors"):
        Checkpoint.open(tmp_path)


def test_a_header_longer_than_the_first_read(tmp_path):
    tensors = {
        f"a rather long name for a tensor, number {index}": torch.tensor(index) for index in range(9000)
    }
    save_file(tensors, tmp_path / "f.safetensors")
    assert len(json.dumps(list(tensors))) > HEAD_BYTES
    checkpoint = Checkpoint.open(tmp_path / "f.safetensors")
    assert len(checkpoint.tensors) == 9000
    loaded = checkpoint.load()
    assert all(int(loaded[name]) == int(tensor) for name, tensor in tensors.items())


def test_a_file_that_was_replaced_or_cut_is_refused(one):
    path, tensors = one
    checkpoint = Checkpoint.open(path)
    copy = pickle.loads(pickle.dumps(checkpoint))
    assert same(copy.load(["small"])["small"], tensors["small"])
    save_file({"large": raw(1500, 513)}, path)
    with pytest.raises(InvalidArgument, match="open it again"):
        checkpoint.load(["large"])
    os.truncate(path, 1 * MIB)
    with pytest.raises(CorruptData, match="are not within"):
        Checkpoint.open(path)


# Saving and checksums.


def test_saved_files_are_the_librarys(one, tmp_path):
    _, tensors = one
    save(tensors, tmp_path / "ours.safetensors", metadata={"k": "ü"})
    theirs = load_file(tmp_path / "ours.safetensors")
    assert all(same(theirs[name], tensor) for name, tensor in tensors.items())
    with safe_open(tmp_path / "ours.safetensors", "pt") as file:
        assert file.metadata() == {"k": "ü"}
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "ours.safetensors", "ours.safetensors.crc32c"]
    save({"x": tensors["large"].t()[3:7]}, tmp_path / "ours.safetensors", checksums=False)
    assert same(load_file(tmp_path / "ours.safetensors")["x"], tensors["large"].t()[3:7])
    assert sorted(os.listdir(tmp_path)) == ["one.safetensors", "ours.safetensors"]


def test_saving_in_shards(one, tmp_path):
    _, tensors = one
    save(tensors, tmp_path / "model", shard_bytes=MIB)
    checkpoint = Checkpoint.open(tmp_path / "model")
    assert len(checkpoint.files) == 5  # the two large ones alone
    assert all(map(checkpoint.file_has_checksums, checkpoint.files))
    loaded = checkpoint.load()
    assert all(same(loaded[name], tensor) for name, tensor in tensors.items())
    with pytest.raises(ValueError, match="at least 1"):
        save(tensors, tmp_path / "model", shard_bytes=0)


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(TypeError, match=r"no type for torch\.complex128"):
        save({"x": torch.zeros(1, dtype=torch.complex128)}, tmp_path / "f")
    with pytest.raises(TypeError, match="table of texts"):
        save({}, tmp_path / "f", metadata={"a": 1})
    with pytest.raises(ValueError, match="not a name"):
        save({"__metadata__": torch.zeros(1)}, tmp_path / "f")
    assert os.listdir(tmp_path) == []


def test_damage_is_found_and_named(one, tmp_path):
    _, tensors = one
    path = tmp_path / "f.safetensors"
    save(tensors, path)
    checkpoint = Checkpoint.open(path)
    total = sum(tensor.nbytes for tensor in tensors.values())
    report = checkpoint.read_into({name: torch.empty_like(tensor) for name, tensor in tensors.items()})
    assert report.verified == total
    assert checkpoint.verify() == []
    shard = torch.empty(1000, 513)
    report = checkpoint.read_slices([Slice("large", shard, slice(0, 1000))])
    assert report.verified == MIB  # the one block that it has whole

    flip(path, checkpoint.info("large").offset + MIB + 17)
    flip(path, checkpoint.info("small").offset + 3)
    checkpoint = Checkpoint.open(path)
    with pytest.raises(CorruptData, match="tensor 'large': bytes 1048576 to 2097152") as caught:
        checkpoint.load(["large"])
    assert caught.value.filename == str(path)
    with pytest.raises(CorruptData, match="tensor 'small': bytes 0 to 132"):
        checkpoint.load(["small"])
    assert same(checkpoint.load(["bf16"])["bf16"], tensors["bf16"])
    found = [(damage.tensor, damage.begin, damage.end) for damage in checkpoint.verify()]
    assert found == [("large", MIB, 2 * MIB), ("small", 0, 132)]
    assert Checkpoint.open(path, verify=False).load(["large"])["large"].shape == (1500, 513)


def flip(path, offset):
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)[0]
        file.seek(offset)
        file.write(bytes([byte ^ 0x10]))


@pytest.mark.parametrize("conversion", [False, True])
def test_damage_is_found_on_every_way(tmp_path, conversion):
    """Direct, small and converted reads are verified alike."""
    path = tmp_path / "f.safetensors"
    tensors = {"long": raw(700_000), "short": raw(9)}
    save(tensors, path)
    rng = random.Random(5)
    dtype = torch.float64 if conversion else torch.float32
    for name, tensor in tensors.items():
        where = Checkpoint.open(path).info(name).offset + rng.randrange(tensor.nbytes)
        flip(path, where)
        with pytest.raises(CorruptData, match=f"tensor '{name}'"):
            Checkpoint.open(path).read_into({name: torch.empty(tensor.shape, dtype=dtype)}, convert=True)
        flip(path, where)
        Checkpoint.open(path).read_into({name: torch.empty(tensor.shape, dtype=dtype)}, convert=True)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda table: table.update(version=2), "not 'luciola-weights-crc32c', version 1"),
        (lambda table: table.update(block_bytes=4096), "blocks are 4096 bytes"),
        (lambda table: table.update(header="00000000"), "luciola weights checksum"),
        (lambda table: table.update(file_bytes=1), "luciola weights checksum"),
        (lambda table: table["tensors"].update(x="123"), "groups of eight"),
        (lambda table: table["tensors"].update(x=[1]), "not a file of checksums"),
        (lambda table: table["tensors"].update(x=""), "not the checksums of the tensors"),
        (lambda table: table["tensors"].pop("x"), "not the checksums of the tensors"),
        (lambda table: table.pop("header"), "not a file of checksums"),
    ],
)
def test_checksums_that_are_not_of_the_file(tmp_path, change, reason):
    save({"x": raw(10)}, tmp_path / "f.safetensors")
    beside = tmp_path / "f.safetensors.crc32c"
    table = json.loads(beside.read_text())
    change(table)
    beside.write_text(json.dumps(table))
    with pytest.raises(CorruptData, match=reason):
        Checkpoint.open(tmp_path / "f.safetensors")
    Checkpoint.open(tmp_path / "f.safetensors", verify=False).load()
