"""torch's libraries on `luciola://` and on a mount: DataLoader workers that hold the file system, safetensors."""

from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load, load_file, save, save_file
from torch.utils.data import DataLoader, Dataset

from cluster import LocalCluster
from luciola.plugins.weights import Checkpoint
from luciola.plugins.weights import save as save_weights

pytest.importorskip("fsspec", reason="needs the extra `fsspec`")

from luciola.client.fsspec import LuciolaFileSystem

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b.weight": torch.ones(1000, 50, dtype=torch.bfloat16)}


pytestmark = pytest.mark.usefixtures("locations")


class Files(Dataset[int]):
    """A data set as people write them: one file a sample, the file system as an attribute."""

    def __init__(self, fs: LuciolaFileSystem, paths: list[str]) -> None:
        self.fs = fs
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> int:
        with self.fs.open(self.paths[index], "rb") as file:
            return int(file.read())

    def __getitems__(self, indices: list[int]) -> list[int]:
        return [int(data) for data in self.fs.cat_ranges([self.paths[i] for i in indices], None, None)]


def test_workers_of_a_loader_hold_the_file_system(fs: LuciolaFileSystem, top: str) -> None:
    paths = [f"{top}/{index}" for index in range(40)]
    fs.pipe({path: b"%d" % index for index, path in enumerate(paths)})
    assert fs.cat_ranges(paths[:3], None, None) == [b"0", b"1", b"2"]  # used in the parent before the fork
    loader = DataLoader(Files(fs, paths), batch_size=7, num_workers=2, multiprocessing_context="fork")
    assert [int(each) for batch in loader for each in batch] == list(range(40))


def same(found: dict[str, torch.Tensor]) -> bool:
    return found.keys() == TENSORS.keys() and all(torch.equal(found[name], TENSORS[name]) for name in TENSORS)


@pytest.mark.mount
def test_safetensors_on_the_mount_and_by_url(
    shared_cluster: LocalCluster, fs: LuciolaFileSystem, top: str
) -> None:
    assert shared_cluster.mountpoint is not None, "it was started with a mount"
    mounted = Path(f"{shared_cluster.mountpoint}{top}")
    save_file(TENSORS, mounted / "theirs.safetensors")
    assert same(load_file(mounted / "theirs.safetensors"))
    with safe_open(mounted / "theirs.safetensors", "pt") as file:
        assert torch.equal(file.get_slice("b.weight")[10:20], TENSORS["b.weight"][10:20])
    assert same(load(fs.cat_file(f"{top}/theirs.safetensors")))
    assert same(Checkpoint.open(f"{fs.unstrip_protocol(top)}/theirs.safetensors").load())
    save_weights(TENSORS, f"{fs.unstrip_protocol(top)}/ours.safetensors")
    assert same(load_file(mounted / "ours.safetensors"))
    fs.pipe_file(f"{top}/piped.safetensors", save(TENSORS))
    assert same(load_file(mounted / "piped.safetensors"))


def test_torch_saves_and_loads_through_open_files(fs: LuciolaFileSystem, top: str) -> None:
    with fs.open(f"{top}/state.pt", "wb", atomic=True) as file:
        torch.save({"tensors": TENSORS, "step": 7}, file)
    with fs.open(f"{top}/state.pt", "rb") as file:
        loaded = torch.load(file)
    assert loaded["step"] == 7
    assert same(loaded["tensors"])
