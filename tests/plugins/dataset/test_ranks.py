"""Ranks of process groups, meshes and launchers: what is not known is an error."""

import pytest
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.testing._internal.distributed.fake_pg import FakeStore

from luciola.plugins.dataset import Loader, MapDataset
from luciola.plugins.dataset.ranks import LAUNCHERS, Rank, RankSource, rank_of_environment
from number_records import first_numbers


@pytest.mark.parametrize("names", [each[1:] for each in LAUNCHERS], ids=lambda names: names[0])
def test_launchers(names: tuple[str, str]) -> None:
    rank, ranks = names
    assert rank_of_environment({rank: "3", ranks: "4"}) == Rank(3, 4)
    with pytest.raises(RuntimeError, match=f"{rank}=4 is not below {ranks}=4"):
        rank_of_environment({rank: "4", ranks: "4"})
    with pytest.raises(RuntimeError, match=f"{rank}='x' of the environment is not a number"):
        rank_of_environment({rank: "x", ranks: "4"})


def test_an_unknown_rank_is_an_error() -> None:
    assert rank_of_environment({}) is None
    assert rank_of_environment({"WORLD_SIZE": "1"}) is None
    assert rank_of_environment({"SLURM_PROCID": "0", "SLURM_NTASKS": "8"}) is None, (
        "a batch script, not a step"
    )
    with pytest.raises(RuntimeError, match="WORLD_SIZE is 2 and RANK is not set"):
        rank_of_environment({"WORLD_SIZE": "2", "LOCAL_RANK": "0", "NODE_RANK": "0"})


def test_a_loader_asks_when_it_begins(numbers: MapDataset, monkeypatch) -> None:
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    loader = Loader(numbers, global_batch_size=10)
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(RuntimeError, match="this process's part of the data is not known"):
        iter(loader)
    monkeypatch.setenv("RANK", "1")
    assert len(next(iter(loader))) == 5
    monkeypatch.setenv("WORLD_SIZE", "3")
    with pytest.raises(RuntimeError, match=r"has read as rank 1 of 2, .* says 1 of 3"):
        iter(loader)
    with pytest.warns(UserWarning, match="their parts differ by one sample"):
        iter(Loader(numbers, global_batch_size=10))
    resumed = Loader(numbers, global_batch_size=10)
    resumed.load_state_dict(resumed.state_dict())
    with pytest.warns(UserWarning, match="their parts differ by one sample"):
        iter(resumed)
    iter(resumed)
    monkeypatch.setenv("WORLD_SIZE", "20")
    with pytest.raises(ValueError, match="too small for 20 ranks"):
        iter(Loader(numbers, global_batch_size=10))


def test_replicas_of_a_mesh_read_the_same(numbers: MapDataset) -> None:
    """Eight ranks as two of data by four of tensors, each of which is tried in this process."""
    for rank in range(8):
        dist.init_process_group("fake", rank=rank, world_size=8, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", (2, 4), mesh_dim_names=("data", "tensor"))
            assert RankSource(None, None, mesh["data"], None).find() == Rank(rank // 4, 2)
            assert RankSource(None, None, mesh, None).find() == Rank(rank, 8)
            assert RankSource(None, None, None, mesh["data"].get_group()).find() == Rank(rank // 4, 2)
            assert RankSource(None, None, None, None).find() == Rank(rank, 8)
            loader = Loader(numbers, global_batch_size=10, shuffle=False, mesh=mesh["data"])
            assert next(iter(loader))[0, 0] == 5 * (rank // 4)
        finally:
            dist.destroy_process_group()


def test_each_parallelism_of_a_mesh_reads_as_its_data_dimensions_say(numbers: MapDataset) -> None:
    """Pipelines, two kinds of data parallelism, contexts and tensors: 32 ranks, each of which is tried here.

    Experts are spread over ranks of data and contexts, whose samples do not change.
    """
    names = ("pipeline", "replicate", "shard", "context", "tensor")
    for rank in range(32):
        place = dict(zip(names, map(int, f"{rank:05b}"), strict=True))
        dist.init_process_group("fake", rank=rank, world_size=32, store=FakeStore())
        try:
            mesh = init_device_mesh("cpu", (2,) * 5, mesh_dim_names=names)
            data = mesh["replicate", "shard"]
            own = 2 * place["replicate"] + place["shard"]
            for given in (data, data._flatten(f"data of {rank}")):
                loader = Loader(numbers, global_batch_size=20, shuffle=False, mesh=given)
                assert first_numbers(next(iter(loader))) == list(range(5 * own, 5 * own + 5))
            experts = init_device_mesh(
                "cpu", (2, 2, 4, 2), mesh_dim_names=("pipeline", "replicate", "expert", "tensor")
            )
            both = RankSource(None, None, experts["replicate", "expert"], None).find()
            assert both == Rank(4 * place["replicate"] + 2 * place["shard"] + place["context"], 8)
        finally:
            dist.destroy_process_group()


def test_one_source_only() -> None:
    with pytest.raises(ValueError, match="one of them"):
        RankSource(0, 1, object(), None)
    with pytest.raises(RuntimeError, match=r"torch\.distributed is not initialized"):
        RankSource(None, None, None, object()).find()
