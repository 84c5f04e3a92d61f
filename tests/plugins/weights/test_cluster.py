"""Checkpoints on a real cluster, through the native client."""

import pytest
import torch

from cluster import LocalCluster
from counting import CountingFileSystem
from luciola.client import Buffer, close_locations, open_location
from luciola.errors import CorruptData
from luciola.plugins.weights import Checkpoint, Slice, save

MIB = 1 << 20


@pytest.fixture(scope="module")
def model(shared_cluster: LocalCluster):
    """(location, tensors)."""
    generator = torch.Generator().manual_seed(8)
    tensors = {
        "experts": torch.randn(8, 300, 512, generator=generator).bfloat16(),
        "wide": torch.randn(32, 30_000, generator=generator),
        "norm": torch.randn(512, generator=generator),
        "scale": torch.tensor(0.5, dtype=torch.float64),
        "none": torch.empty(0, 4),
    }
    location = f"luciola://{shared_cluster.data}!/models/m"
    save(tensors, location, shard_bytes=3 * MIB)
    yield location, tensors
    fs, _ = open_location(location)
    fs.rmtree("/models")
    close_locations()


def test_whole_tensors_into_shared_and_other_memory(model):
    location, tensors = model
    checkpoint = Checkpoint.open(location)
    assert len(checkpoint.files) == 3
    shared = {}
    for name, tensor in tensors.items():
        memory = torch.frombuffer(Buffer(max(tensor.nbytes, 1)), dtype=torch.uint8)
        shared[name] = memory[: tensor.nbytes].view(tensor.dtype).view(tensor.shape)
    for targets in (shared, {name: torch.empty_like(tensor) for name, tensor in tensors.items()}):
        report = checkpoint.read_into(targets)
        assert all(torch.equal(targets[name], tensor) for name, tensor in tensors.items())
        assert report.verified == report.needed == sum(tensor.nbytes for tensor in tensors.values())


def test_shards_read_what_they_need(model):
    location, tensors = model
    fs, path = open_location(location)
    counter = CountingFileSystem(fs)
    checkpoint = Checkpoint(counter, path)
    counter.read_bytes = counter.reads = 0
    expert = torch.empty(300, 512, dtype=torch.bfloat16)
    columns = torch.empty(32, 500)
    checkpoint.read_slices(
        [Slice("experts", expert, 5), Slice("wide", columns, (slice(None), slice(29_500, 30_000)))]
    )
    assert torch.equal(expert, tensors["experts"][5])
    assert torch.equal(columns, tensors["wide"][:, 29_500:])
    assert counter.read_bytes == expert.nbytes + columns.nbytes
    half = torch.empty(300, 256, 2, dtype=torch.float32).permute(2, 0, 1)
    checkpoint.read_slices([Slice("experts", half, (slice(2, 4), slice(None), slice(0, 256)))], convert=True)
    assert torch.equal(half, tensors["experts"][2:4, :, :256].float())


def test_damage_names_file_and_tensor(model):
    location, tensors = model
    fs, path = open_location(location)
    copy = f"{path}-damaged"
    fs.mkdir(copy)
    try:
        for name in fs.listdir(path):
            fs.write(f"{copy}/{name}", fs.read(f"{path}/{name}"))
        info = Checkpoint(fs, copy).info("experts")
        with fs.open(info.file, "r+b") as file:
            file.pwrite(b"\x01\x02\x03", info.offset + MIB + 5)
        with pytest.raises(CorruptData, match="'experts': bytes 1048576 to 2097152") as caught:
            Checkpoint(fs, copy).load()
        assert caught.value.filename == info.file
        assert torch.equal(Checkpoint(fs, copy).load(["wide"])["wide"], tensors["wide"])
    finally:
        fs.rmtree(copy)
