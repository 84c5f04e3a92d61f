"""Real ranks over gloo: what 1, 2 or 4 of them save, 1, 2 or 4 of them load, sharded in another way."""

import os

import pytest
import torch

from cluster import LocalCluster
from luciola.plugins.checkpoint import Checkpoints, Keep, latest, list_checkpoints, prune, verify
from pipeline_ranks import Ranks


def done(answers):
    """The values of all ranks, none of which has failed."""
    assert [(answer.error, answer.message) for answer in answers if answer.error] == []
    assert all(answer.status == 0 for answer in answers)
    return [answer.value for answer in answers]


@pytest.mark.parametrize(
    ("savers", "saved", "loaders", "loaded"),
    [
        (1, "rows", 2, "columns"),
        (2, "rows", 4, "both"),
        (4, "both", 2, "rows"),
        (4, "columns", 1, "rows"),
        (2, "replicated", 2, "rows"),
    ],
)
def test_another_number_of_ranks_in_another_sharding(
    checkpoint_ranks: Ranks, tmp_path, savers, saved, loaders, loaded
):
    root = str(tmp_path)
    done(checkpoint_ranks.run("save", savers, root=root, step=7, sharding=saved))
    assert done(checkpoint_ranks.run("load", loaders, root=root, sharding=loaded)) == [7] * loaders
    assert verify(latest(root)) == []
    (found,) = list_checkpoints(root)
    assert (found.step, found.manifest.ranks, found.problem) == (7, savers, "")
    whole_bytes = 37 * 24 * 4 + 37 * 6 * 2 + 3 * 5 * 4 + 300 * 1400 * 4 + 1000 * 4
    assert (
        whole_bytes <= found.manifest.data_bytes < whole_bytes + 20_000
    )  # what all ranks have is there once


@pytest.mark.parametrize("how", ["sync", "thread"])
def test_two_ranks_on_every_kind_of_place(checkpoint_ranks: Ranks, place, how):
    assert done(checkpoint_ranks.run("load", 2, root=place, sharding="rows")) == [None, None]
    done(checkpoint_ranks.run("save", 2, root=place, step=1, sharding="rows", how=how))
    assert done(checkpoint_ranks.run("load", 2, root=place, sharding="columns")) == [1, 1]


@pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")
def test_all_ranks_of_a_trainer_raise_the_error_of_the_first(checkpoint_ranks: Ranks, tmp_path):
    root, target = str(tmp_path / "runs"), str(tmp_path / "out")
    Checkpoints(root).save(1, {"files": {"state.json": torch.ones(3).byte()}})
    restored = checkpoint_ranks.run("restore_for_trainer", 2, root=root, directory=target)
    assert done(restored) == [os.path.join(target, "checkpoint-1")] * 2
    Checkpoints(root).save(2, {"files": {"../evil": torch.ones(3).byte()}})
    refused = checkpoint_ranks.run("restore_for_trainer", 2, root=root, directory=target)
    assert done(refused) == ["CorruptData"] * 2


@pytest.mark.slow
def test_save_in_another_process(checkpoint_ranks: Ranks, shared_cluster: LocalCluster, request):
    root = f"luciola://{shared_cluster.data}!/{request.node.name}"
    done(checkpoint_ranks.run("save", 1, root=root, step=1, sharding="rows", how="process"))
    assert done(checkpoint_ranks.run("load", 1, root=root, sharding="rows")) == [1]


@pytest.mark.parametrize("how", ["parts", "state"])
def test_a_model_and_its_optimizer_under_fsdp(checkpoint_ranks: Ranks, tmp_path, how):
    """As parts of an application, and as a state dict of torch's."""
    sums = done(checkpoint_ranks.run("fsdp", 2, root=str(tmp_path), train=True, how=how))
    assert sums[0] == sums[1]
    loaded = done(checkpoint_ranks.run("fsdp", 4, root=str(tmp_path), train=False, how=how))
    assert loaded == [sums[0]] * 4


def test_a_planner_that_keeps_its_plans(checkpoint_ranks: Ranks, tmp_path):
    done(checkpoint_ranks.run("save_twice_with_kept_plans", 2, root=str(tmp_path)))
    assert [saved.name for saved in list_checkpoints(tmp_path)] == ["step-1", "step-2"]


def test_one_writer_for_many_checkpoints(checkpoint_ranks: Ranks, tmp_path):
    done(checkpoint_ranks.run("save_with_torch_defaults", 2, root=str(tmp_path)))
    assert os.listdir(tmp_path) == ["2"]
    assert prune(tmp_path, Keep(last=1)) == []


@pytest.mark.parametrize("overwrite", [False, True])
def test_killed_before_each_operation_on_files(checkpoint_ranks: Ranks, tmp_path, overwrite):
    (values,) = done(
        checkpoint_ranks.run("stop_at_every_operation", 1, root=str(tmp_path), overwrite=overwrite)
    )
    assert len(values) > 15
    turn = values.index(2)
    assert set(values[:turn]) == {1}
    assert set(values[turn:]) == {2}
    assert turn < len(values) - 1  # it may still be killed after the checkpoint has its name


@pytest.mark.slow
@pytest.mark.parametrize(
    ("place", "victims", "how", "delay_ms"),
    [
        ("local", [1], "sync", 5),
        ("local", [0, 1], "thread", 20),
        ("native", [0], "sync", 15),
        ("native", [1], "thread", 35),
        ("native", [0, 1], "sync", 70),
        ("mount", [0, 1], "sync", 40),
    ],
    indirect=["place"],
)
def test_ranks_killed_in_the_middle_of_a_save(checkpoint_ranks: Ranks, place, victims, how, delay_ms):
    """Whenever it comes, there is the checkpoint before or the new one, whole; the next save leaves nothing else."""
    answers = checkpoint_ranks.run(
        "die_while_saving", 2, root=place, victims=victims, delay_s=delay_ms / 1000, how=how
    )
    assert all(answer.status == 9 for rank, answer in enumerate(answers) if rank in victims)
    (step,) = done(checkpoint_ranks.run("load_filled", 1, root=place))
    assert step in {1, 2}
    if any(answer.value == "saved" for answer in answers):
        assert step == 2
    assert all(verify(saved.location) == [] for saved in list_checkpoints(place))
    done(checkpoint_ranks.run("save_filled", 2, root=place, step=3))
    assert [saved.step for saved in list_checkpoints(place)] in ([1, 3], [1, 2, 3])
    assert done(checkpoint_ranks.run("load_filled", 1, root=place)) == [3]
