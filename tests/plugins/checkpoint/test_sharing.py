"""Saves that share what has not changed: fewer bytes, the same checkpoints, whatever happens to the one before."""

import os
import shutil

import pytest
import torch

from luciola.plugins.checkpoint import Checkpoints, Keep, Reader, latest, verify
from pipeline_ranks import Ranks

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def state_of(step):
    """Two tensors that stay, one that stays from step 3 on, one that changes, and an object."""
    generator = torch.Generator().manual_seed(7)
    return {
        "frozen": torch.randn(300_000, generator=generator),
        "table": torch.randn(50, 40, generator=generator).bfloat16(),
        "late": torch.full((1000,), float(min(step, 3))),
        "head": torch.full((100,), float(step)),
        "step": step,
    }


def save(root, *steps, **options):
    checkpoints = Checkpoints(root, share=True, **options)
    for step in steps:
        checkpoints.save(step, state_of(step))
    return checkpoints


def check(root, *steps):
    for step in steps:
        state = {name: torch.zeros_like(each) if name != "step" else 0 for name, each in state_of(0).items()}
        assert Checkpoints(root).load(state, step=step) == step
        for name, value in state_of(step).items():
            same = (
                torch.equal(state[name], value) if isinstance(value, torch.Tensor) else state[name] == value
            )
            assert same, (step, name)
        assert verify(os.path.join(root, f"step-{step:09}")) == []


def inodes(root, step):
    place = f"{root}/step-{step:09}"
    return {name: os.stat(f"{place}/{name}").st_ino for name in os.listdir(place) if "safetensors" in name}


def same_file(root, first, second):
    name = "rank-00000-same.safetensors"
    one, other = inodes(root, first), inodes(root, second)
    return (
        one.get(name) is not None
        and one[name] == other.get(name)
        and one[f"{name}.crc32c"] == other[f"{name}.crc32c"]
    )


def test_unchanged_tensors_are_written_twice_and_then_shared(tmp_path):
    save(tmp_path, *range(1, 8))
    check(tmp_path, *range(1, 8))
    assert set(inodes(tmp_path, 1)) == {"rank-00000.safetensors", "rank-00000.safetensors.crc32c"}
    assert [same_file(tmp_path, step, step + 1) for step in range(1, 7)] == [
        False,
        True,
        True,
        True,
        True,
        True,
    ]
    for step in range(2, 7):
        assert (
            inodes(tmp_path, step)["rank-00000.safetensors"]
            != inodes(tmp_path, step + 1)["rank-00000.safetensors"]
        )
    assert len({inode for step in range(1, 8) for inode in inodes(tmp_path, step).values()}) == 2 * (7 + 1)


def test_removing_a_checkpoint_leaves_what_others_share(tmp_path):
    save(tmp_path, *range(1, 6), keep=Keep(last=2))
    assert sorted(os.listdir(tmp_path)) == ["step-000000004", "step-000000005"]
    check(tmp_path, 4, 5)
    assert same_file(tmp_path, 4, 5)


def test_one_tensor_that_changes_again_is_written_again(tmp_path):
    checkpoints = save(tmp_path, 1, 2, 3)
    state = state_of(4)
    state["frozen"][17] += 1
    checkpoints.save(4, state)
    assert not same_file(tmp_path, 3, 4)
    found = {"frozen": torch.zeros(300_000)}
    checkpoints.load(found, step=4, allow_unused="*")
    assert torch.equal(found["frozen"], state["frozen"])
    check(tmp_path, 1, 2, 3)


@pytest.mark.parametrize(
    "change",
    [
        lambda frozen: frozen.double(),
        lambda frozen: frozen.reshape(300, 1000),
        lambda frozen: frozen.view(torch.int32),
        lambda frozen: frozen[:-1],
    ],
)
def test_the_same_bytes_of_another_type_or_shape_are_another_tensor(tmp_path, change):
    checkpoints = save(tmp_path, 1, 2)
    state = state_of(3)
    state["frozen"] = change(state["frozen"])
    checkpoints.save(3, state)
    found = {"frozen": torch.zeros_like(state["frozen"])}
    checkpoints.load(found, allow_unused="*")
    assert torch.equal(found["frozen"], state["frozen"])


def test_a_job_of_which_nothing_changes_shares_all(tmp_path):
    state = {"a": torch.arange(1000.0), "b": torch.arange(10)}
    checkpoints = Checkpoints(tmp_path, share=True)
    for step in (1, 2, 3):
        checkpoints.save(step, state)
    assert inodes(tmp_path, 1) == inodes(tmp_path, 2) == inodes(tmp_path, 3)
    assert verify(latest(tmp_path)) == []


def test_each_rank_shares_its_own(checkpoint_ranks: Ranks, tmp_path):
    answers = checkpoint_ranks.run("save_shared", 2, root=str(tmp_path))
    assert [(answer.error, answer.message) for answer in answers] == [("", "")] * 2
    names = [f"rank-0000{rank}-same.safetensors{end}" for rank in (0, 1) for end in ("", ".crc32c")]
    assert answers[0].value == names
    assert verify(latest(tmp_path)) == []


# What is in the way.


def test_the_base_is_the_newest_whole_one(tmp_path):
    save(tmp_path, 1, 2, 3)
    os.truncate(tmp_path / "step-000000003" / "rank-00000.safetensors", 1000)  # its shared file is whole
    save(tmp_path, 4)
    check(tmp_path, 2, 4)
    assert same_file(tmp_path, 2, 4)


@pytest.mark.parametrize("name", ["rank-00000-same.safetensors", "rank-00000-same.safetensors.crc32c"])
def test_a_damaged_file_is_not_shared(tmp_path, name):
    save(tmp_path, 1, 2)
    with open(tmp_path / "step-000000002" / name, "r+b") as file:
        file.seek(-3, os.SEEK_END)
        last = file.read(1)
        file.seek(-3, os.SEEK_END)
        file.write(bytes([last[0] ^ 1]))
    save(tmp_path, 3)
    check(tmp_path, 3)
    assert not same_file(tmp_path, 2, 3)


class LinklessCheckpoints(Checkpoints):
    """On a file system without hard links."""

    def _writer(self, task):
        writer = super()._writer(task)
        files = writer._file_system

        class Linkless(type(files)):
            def link(self, source, target):
                if source.endswith(".crc32c"):  # the file itself has its second name already
                    raise PermissionError(1, "operation not permitted", source)
                os.link(source, target)

        class LinklessWriter(type(writer)):
            _file_system = Linkless()

        writer.__class__ = LinklessWriter
        return writer


def test_without_links_everything_is_written(tmp_path):
    checkpoints = LinklessCheckpoints(tmp_path, share=True)
    for step in (1, 2, 3):
        checkpoints.save(step, state_of(step))
    check(tmp_path, 1, 2, 3)
    assert not same_file(tmp_path, 2, 3)


def test_a_base_of_other_saves_is_shared_with_none(tmp_path):
    Checkpoints(tmp_path).save(1, state_of(1))  # has no digests
    save(tmp_path, 2)
    shutil.rmtree(tmp_path / "step-000000001")
    check(tmp_path, 2)
    assert set(inodes(tmp_path, 2)) == {"rank-00000.safetensors", "rank-00000.safetensors.crc32c"}


def test_asynchronous_saves_share_on_every_kind_of_place(place):
    with Checkpoints(place, share=True) as checkpoints:
        for step in (1, 2, 3):
            checkpoints.async_save(step, state_of(step))
    check(place, 1, 2, 3)
    files = [set(Reader(saved.location).manifest().files) for saved in checkpoints.list()]
    assert ["rank-00000-same.safetensors" in names for names in files] == [False, True, True]
