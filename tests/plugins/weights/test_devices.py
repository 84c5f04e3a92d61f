"""Targets on every device of this machine: the CPU, and a GPU where torch finds one."""

import pytest
import torch
from safetensors.torch import save_file

from luciola.errors import CorruptData
from luciola.plugins.weights import Checkpoint, Slice, save
from luciola.plugins.weights.plan import BLOCK_BYTES
from luciola.plugins.weights.transfer import SLOTS

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.mark.parametrize("device", DEVICES)
def test_more_than_the_staging_buffer_holds(tmp_path, device):
    """Every slot is used several times; a slot that was given back too early would bring other bytes."""
    count = 3 * SLOTS * BLOCK_BYTES // 2
    numbers = torch.arange(count, dtype=torch.int32).to(torch.int16)
    save_file({"numbers": numbers}, tmp_path / "f.safetensors")
    target = torch.zeros(count, dtype=torch.int32, device=device)
    report = Checkpoint.open(tmp_path / "f.safetensors").read_into({"numbers": target}, convert=True)
    assert torch.equal(target.cpu(), numbers.to(torch.int32))
    assert report.read == report.needed == numbers.nbytes


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_shards_into_strided_targets(tmp_path, device, dtype):
    tensor = torch.randn(300, 4000, generator=torch.Generator().manual_seed(1)).bfloat16()
    save({"a": tensor, "b": torch.ones(3, dtype=torch.bool)}, tmp_path / "f.safetensors")
    checkpoint = Checkpoint.open(tmp_path / "f.safetensors")
    around = torch.zeros(1000, 600, dtype=dtype, device=device)
    rows = torch.zeros(100, 4000, dtype=dtype, device=device)
    flags = torch.zeros(3, dtype=torch.bool, device=device)
    checkpoint.read_slices(
        [
            Slice("a", around[:, 100:400].t(), (slice(None), slice(1000, 2000))),
            Slice("a", rows, slice(200, 300)),
            Slice("b", flags),
        ],
        convert=True,
    )
    assert torch.equal(around[:, 100:400].t().cpu(), tensor[:, 1000:2000].to(dtype))
    assert torch.equal(rows.cpu(), tensor[200:].to(dtype))
    assert flags.all()
    assert float(around[:, :100].abs().sum() + around[:, 400:].abs().sum()) == 0


@pytest.mark.parametrize("device", DEVICES)
def test_loading_and_damage(tmp_path, device):
    tensor = torch.randn(600_000, generator=torch.Generator().manual_seed(2))
    path = tmp_path / "f.safetensors"
    save({"a": tensor}, path)
    checkpoint = Checkpoint.open(path)
    assert torch.equal(checkpoint.load(device=device)["a"].cpu(), tensor)
    with open(path, "r+b") as file:
        file.seek(checkpoint.info("a").offset + BLOCK_BYTES)
        file.write(b"\x01\x02")
    with pytest.raises(CorruptData, match="tensor 'a': bytes 1048576 to 2097152"):
        Checkpoint.open(path).load(device=device)
