"""The checkpoints of a directory, the policy of which are kept, faults, and errors of invalid use."""

import errno
import json
import os
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
import torch.distributed.checkpoint as dcp
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.state_dict_loader import _load_state_dict_from_keys

from luciola.client import LocalFileSystem, Location, close_locations
from luciola.errors import CorruptData, InvalidArgument, NoSpace, NotFound, Unavailable
from luciola.plugins.checkpoint import (
    Checkpoints,
    Keep,
    Reader,
    Saved,
    Writer,
    latest,
    list_checkpoints,
    load_object,
    open_stream,
    prune,
    save_object,
    verify,
)
from luciola.plugins.checkpoint.command import checkpoint
from luciola.plugins.checkpoint.commit import clean, leftovers
from luciola.plugins.checkpoint.manifest import Manifest, _crc_of, parse_manifest

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


def names(root):
    return [saved.name for saved in list_checkpoints(root)]


def manifest(serial, step):
    return Manifest(serial, step, 0, 1, 0, 0, "2", "0" * 8)


def save(root, *steps, **options):
    checkpoints = Checkpoints(root, **options)
    for step in steps:
        checkpoints.save(step, {"x": torch.full((10,), float(step))})
    return checkpoints


# Retention.


@given(
    st.lists(st.tuples(st.integers(0, 60) | st.none(), st.booleans()), max_size=12),
    st.integers(1, 5) | st.none(),
    st.integers(1, 20) | st.none(),
)
def test_policy_keeps_the_last_and_multiples(entries, last, every):
    found = [
        Saved(f"c{index}", Location(f"/c{index}"), manifest(index + 1, step), "" if whole else "cut off")
        for index, (step, whole) in enumerate(entries)
    ]
    gone = Keep(last, every).surplus(found)
    whole = [saved for saved in found if not saved.problem]
    if last is None:
        assert gone == []
        return
    assert not any(saved in gone for saved in whole[-last:]), "the newest stay"
    for saved in whole[:-last]:
        assert (saved not in gone) == (
            every is not None and saved.step is not None and saved.step % every == 0
        )
    assert all(not saved.problem for saved in gone)


@pytest.mark.parametrize(
    "arguments", [{"last": 0}, {"last": -1}, {"every": 0}, {"last": 1.5}, {"last": True}]
)
def test_invalid_policies_are_refused(arguments):
    with pytest.raises(ValueError, match="is a number from 1 on"):
        Keep(**arguments)


def test_saves_apply_the_policy(place):
    checkpoints = save(place, *range(1, 10), keep=Keep(last=2, every=4))
    assert [saved.step for saved in checkpoints.list()] == [4, 8, 9]
    assert [saved.name for saved in prune(place, Keep(last=1), dry_run=True)] == [
        "step-000000004",
        "step-000000008",
    ]
    assert len(checkpoints.list()) == 3
    prune(place, Keep(last=1))
    assert names(place) == ["step-000000009"]


def scored(values):
    made = []
    for index, value in enumerate(values):
        metrics = {} if value is None else {"loss": value}
        found = replace(manifest(index + 1, index), metrics=metrics)
        made.append(Saved(f"c{index}", Location(f"/c{index}"), found))
    return made


@given(
    st.lists(st.tuples(st.integers(0, 3) | st.none(), st.booleans()), max_size=10),
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(["min", "max"]),
)
def test_policy_keeps_the_best_whole_ones(entries, last, best, mode):
    found = scored([value for value, _ in entries])
    whole = {saved.name for saved, (_, is_whole) in zip(found, entries, strict=True) if is_whole}
    asked = []

    def is_whole(saved):
        asked.append(saved.name)
        return saved.name in whole

    gone = {saved.name for saved in Keep(last, best=best, metric="loss", mode=mode).surplus(found, is_whole)}
    standing = [saved for saved in found if saved.name in whole]
    sign = 1 if mode == "min" else -1
    ranked = sorted(
        (saved for saved in reversed(standing) if saved.manifest.metrics),
        key=lambda saved: sign * saved.manifest.metrics["loss"],
    )
    expected = {saved.name for saved in (*standing[-last:], *ranked[:best])}
    assert whole - gone == expected
    if len(standing) == len(found):
        assert len(asked) <= last + best, "files are looked at only where they protect others"


def test_saves_stat_only_the_files_of_those_that_are_kept(tmp_path):
    save(tmp_path, *range(1, 21))
    seen = []

    class Watched(LocalFileSystem):
        def scandir(self, path):
            seen.append(os.path.basename(path))
            return os.scandir(path)

        def stat(self, path):
            if not path.endswith("manifest.json"):
                seen.append(os.path.basename(os.path.dirname(path)))
            return os.stat(path)

    class WatchedWriter(Writer):
        _file_system = Watched()

    state = {"x": torch.ones(10)}
    dcp.save(state, storage_writer=WatchedWriter(tmp_path / "step-21", keep=Keep(last=3, every=10)))
    assert {name for name in seen if not name.startswith(".")} == {
        "step-21", "step-000000020", "step-000000019",
    }  # fmt: skip
    assert names(tmp_path) == ["step-000000010", "step-000000019", "step-000000020", "step-21"]


def test_checkpoint_that_was_cut_off_does_not_count(tmp_path):
    save(tmp_path, 1, 2, 3)
    os.truncate(tmp_path / "step-000000003" / "rank-00000.safetensors", 100)
    save(tmp_path, 4, keep=Keep(last=2))
    assert names(tmp_path) == ["step-000000002", "step-000000003", "step-000000004"]
    prune(tmp_path, Keep(last=2))
    assert Checkpoints(tmp_path).load({"x": torch.zeros(10)}, step=2) == 2


class RecordingWriter(Writer):
    """Notes what is there when the ranks part."""

    def finish(self, metadata, results):
        super().finish(metadata, results)
        self.seen.append(sorted(os.listdir(os.path.dirname(self._path))))


class RecordingCheckpoints(Checkpoints):
    def _writer(self, task):
        writer = super()._writer(task)
        writer.__class__, writer.seen = RecordingWriter, self.seen
        return writer


def test_old_checkpoints_are_removed_after_the_last_collective(tmp_path):
    checkpoints = RecordingCheckpoints(tmp_path, keep=Keep(last=1))
    checkpoints.seen = []
    for step in (1, 2):
        checkpoints.save(step, {"x": torch.ones(3)})
    assert checkpoints.seen == [["step-000000001"], ["step-000000001", "step-000000002"]]
    assert os.listdir(tmp_path) == ["step-000000002"]


def test_a_save_keeps_the_best(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=Keep(last=1, best=2, metric="accuracy", mode="max"))
    for step, accuracy in enumerate([0.1, 0.9, torch.tensor(0.8), 0.2, float("nan")]):
        checkpoints.save(step, {"x": torch.ones(3)}, metrics={"accuracy": accuracy})
    assert [saved.step for saved in checkpoints.list()] == [1, 2, 4]
    assert [saved.manifest.metrics for saved in checkpoints.list()][::2] == [{"accuracy": 0.9}, {}]
    result = CliRunner().invoke(
        checkpoint, ["prune", str(tmp_path), "--keep-last=1", "--keep-best=1", "--metric=accuracy"]
    )
    assert result.exit_code == 0
    assert [saved.step for saved in checkpoints.list()] == [2, 4]


@pytest.mark.parametrize(
    "arguments",
    [{"best": 1}, {"metric": "x"}, {"best": 0, "metric": "x"}, {"best": 1, "metric": "x", "mode": "least"}],
)
def test_invalid_policies_of_the_best_are_refused(arguments):
    with pytest.raises(ValueError, match=r"go together|from 1 on|'min' or 'max'"):
        Keep(**arguments)


def test_job_that_went_back_a_step_resumes_from_its_newest_save(tmp_path):
    """The newest is the one that was saved last, not the one with the greatest step."""
    save(tmp_path, 100, 200, 300)
    checkpoints = Checkpoints(tmp_path, keep=Keep(last=2))
    assert checkpoints.load({"x": torch.zeros(10)}, step=100) == 100
    checkpoints.save(110, {"x": torch.zeros(10)})
    assert checkpoints.load({"x": torch.zeros(10)}) == 110
    assert sorted(os.listdir(tmp_path)) == ["step-000000110", "step-000000300"]


# The newest, and what is not one.


def test_directory_without_checkpoints(tmp_path):
    assert latest(tmp_path / "none") is None
    assert latest(tmp_path) is None
    assert Checkpoints(tmp_path).load({"x": torch.zeros(1)}) is None
    assert Checkpoints(tmp_path / "none").list() == []
    with pytest.raises(NotFound, match="not a checkpoint: no such directory"):
        Checkpoints(tmp_path).load({"x": torch.zeros(1)}, step=3)
    with pytest.raises(CheckpointException, match=r"not a checkpoint: no manifest\.json in it"):
        dcp.load({"x": torch.zeros(1)}, storage_reader=Reader(tmp_path))


def test_foreign_and_broken_directories_are_not_the_latest(tmp_path):
    save(tmp_path, 1, 2, 3)
    (tmp_path / "zz-notes").mkdir()
    (tmp_path / "zz.txt").write_text("hello")
    (tmp_path / "step-000000003" / "rank-00000.safetensors").unlink()
    shutil.copytree(tmp_path / "step-000000002", tmp_path / "cut-9")
    (tmp_path / "cut-9" / "manifest.json").write_text("{}")
    assert latest(tmp_path).path == str(tmp_path / "step-000000002")
    problems = {saved.name: saved.problem for saved in list_checkpoints(tmp_path)}
    assert problems["step-000000003"] == "rank-00000.safetensors is missing"
    assert "not the manifest of a checkpoint" in problems["cut-9"]
    with pytest.raises(NotFound, match="no whole checkpoint of step 3"):
        Checkpoints(tmp_path).load({"x": torch.zeros(10)}, step=3)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("serial", -1),
        ("step", "3"),
        ("files", {"../x": 1}),
        ("files", {"x": -1}),
        ("files", []),
        ("metadata", "xyz"),
        ("version", 3),
        ("version", True),
        ("format", "other"),
        ("more", 1),
        ("metrics", {"x": "1"}),
        ("metrics", [1]),
    ],
)
def test_manifests_that_are_refused(key, value):
    table = json.loads(manifest(1, 2).encode())
    assert parse_manifest(json.dumps(table).encode(), "p") == manifest(1, 2)
    del table["crc32c"]
    table[key] = value
    table["crc32c"] = _crc_of(table)
    with pytest.raises(CorruptData, match="not the manifest"):
        parse_manifest(json.dumps(table).encode(), "p")


# What is in the way.


def test_a_name_that_is_taken(tmp_path):
    save(tmp_path, 1)
    state = {"x": torch.ones(10)}
    path = tmp_path / "step-000000001"
    with pytest.raises(CheckpointException, match="there is such a checkpoint: give another name"):
        dcp.save(state, storage_writer=Writer(path, overwrite=False))
    with pytest.raises(CheckpointException, match="something else has this name"):
        dcp.save(state, storage_writer=Writer(tmp_path))  # the directory of all checkpoints
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CheckpointException, match="something else has this name"):
        dcp.save(state, storage_writer=Writer(tmp_path / "file"))
    (tmp_path / "empty").mkdir()
    dcp.save(state, storage_writer=Writer(tmp_path / "empty"))
    assert sorted(os.listdir(tmp_path)) == ["empty", "file", "step-000000001"]


def test_a_checkpoint_is_replaced_in_one_step(place):
    for value in (1.0, 2.0):
        dcp.save({"x": torch.full((10,), value)}, storage_writer=Writer(f"{place}/a-1"))
    state = {"x": torch.zeros(10)}
    dcp.load(state, storage_reader=Reader(f"{place}/a-1"))
    assert state["x"][0] == 2
    assert names(place) == ["a-1"]


@pytest.mark.parametrize("name", [".hidden", "..", "x" * 181])
def test_invalid_names_are_refused(tmp_path, name):
    with pytest.raises(CheckpointException, match="a checkpoint's name"):
        dcp.save({"x": torch.ones(1)}, storage_writer=Writer(f"{tmp_path}/{name}"))


def test_invalid_use_of_writers_and_readers_is_refused(tmp_path):
    with pytest.raises(ValueError, match="step is a number from 0 on"):
        Writer(tmp_path, step=-1)
    with pytest.raises(InvalidArgument, match="not a scheme of Luciola"):
        Writer("s3://bucket/x")
    assert not Writer.validate_checkpoint_id("s3://bucket/x")
    assert Reader.validate_checkpoint_id("lu:/x") is False or "LUCIOLA_DATA" in os.environ
    with pytest.raises((CheckpointException, InvalidArgument), match="the checkpoint has no location"):
        dcp.save({"x": torch.ones(1)}, storage_writer=Writer())
    with pytest.raises(CheckpointException, match="only dense tensors"):
        dcp.save({"x": torch.ones(3, device="meta")}, storage_writer=Writer(tmp_path / "a"))
    with pytest.raises(InvalidArgument, match="without collectives no rank knows"):
        dcp.save({"x": torch.ones(1)}, storage_writer=Writer(tmp_path / "a"), use_collectives=False)
    Checkpoints(tmp_path / "c").save(1, {"x": torch.ones(3)})
    with pytest.raises(CheckpointException, match="Missing key in checkpoint state_dict: y"):
        Checkpoints(tmp_path / "c").load({"y": torch.ones(3)})


# Interrupted saves.


def test_only_directories_of_ended_saves_are_removed(tmp_path):
    save(tmp_path, 1)
    mine = Writer(tmp_path / "a-2")
    mine.reset()
    mine.set_up_storage_writer(True)
    mine.prepare_global_plan([])
    (alive,) = leftovers(LocalFileSystem(), str(tmp_path))
    ended = tmp_path / f".a-3.{alive.host}-{2**22 - 1}-77-00000000.part"
    elsewhere = tmp_path / ".a-4.00000000-5-77-00000000.part"
    silent = tmp_path / ".a-5.00000000-5-77-00000000.part"
    again = tmp_path / ".step-000000006.00000000-5-77-00000000.part"
    trash = tmp_path / ".a-7.00000000-5-77-00000000.trash"
    for path in (ended, elsewhere, silent, again, trash):
        path.mkdir()
        (path / "rank-00000.safetensors").write_text("x")
    for path in (silent, silent / "rank-00000.safetensors"):
        os.utime(path, (1e9, 1e9))
    save(tmp_path, 6)
    assert sorted(os.listdir(tmp_path)) == sorted(
        ["step-000000001", "step-000000006", os.path.basename(alive.path), elsewhere.name]
    )
    mine.abandon()
    assert not os.path.exists(alive.path)
    assert clean(LocalFileSystem(), str(tmp_path)) == []
    assert elsewhere.exists()


class FullFileSystem(LocalFileSystem):
    """Local files on a disk that is full after so many bytes."""

    def __init__(self, left):
        self.left = left

    def ring(self, entries=128):
        return FullRing(self, super().ring(entries))


class FullRing:
    def __init__(self, disk, ring):
        self._disk, self._ring = disk, ring

    def __getattr__(self, name):
        return getattr(self._ring, name)

    def drain(self, *arguments, **named):
        done = self._ring.drain(*arguments, **named)
        for index, each in enumerate(done):
            self._disk.left -= max(0, each.result)
            if self._disk.left < 0:
                done[index] = each._replace(result=-errno.ENOSPC)
        return done


class FullWriter(Writer):
    @property
    def _file_system(self):
        return self.disk


@pytest.mark.parametrize("left", [0, 3 << 20, 11 << 20])
def test_full_disk_does_not_change_earlier_checkpoints(tmp_path, left):
    save(tmp_path, 1)
    writer = FullWriter(tmp_path / "a-2")
    writer.disk = FullFileSystem(left)
    with pytest.raises(CheckpointException, match="no space left for this checkpoint: it was not saved"):
        dcp.save({"x": torch.ones(3_000_000)}, storage_writer=writer)
    assert names(tmp_path) == ["step-000000001"]
    writer.abandon()
    assert os.listdir(tmp_path) == ["step-000000001"]
    assert verify(latest(tmp_path)) == []


@pytest.mark.root
def test_a_real_full_disk(tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)], check=True)
    try:
        checkpoints = Checkpoints(disk, keep=Keep(last=1))
        checkpoints.save(1, {"x": torch.ones(700_000)})
        with pytest.raises(CheckpointException, match="no space left"):
            checkpoints.save(2, {"x": torch.ones(1_500_000)})
        assert os.listdir(disk) == ["step-000000001"]
        for step in (3, 4, 5):
            checkpoints.save(step, {"x": torch.full((700_000,), float(step))})
        state = {"x": torch.zeros(700_000)}
        assert checkpoints.load(state) == 5
        assert state["x"][-1] == 5
        with pytest.raises(NoSpace, match="no space"):
            save_object(torch.ones(3_000_000), disk / "x.pt")
        assert os.listdir(disk) == ["step-000000005"]
    finally:
        close_locations()
        subprocess.run(["umount", str(disk)], check=True)


# Faults that pass.


class FailingWriter(Writer):
    """Meets a fault at each of the next saves of a job."""

    faults: list

    def write_data(self, plan, planner):
        if self.faults:
            raise self.faults.pop(0)
        return super().write_data(plan, planner)


class FailingCheckpoints(Checkpoints):
    faults = ()

    def _writer(self, task):
        writer = super()._writer(task)
        writer.__class__, writer.faults = FailingWriter, self.faults
        return writer


def failing(root, *faults, **options):
    checkpoints = FailingCheckpoints(root, retry_delay_s=0, **options)
    checkpoints.faults = list(faults)
    return checkpoints


@pytest.mark.parametrize("fault", [Unavailable("a node restarts"), OSError(errno.EIO, "input/output error")])
def test_save_is_repeated_after_a_transient_fault(tmp_path, fault):
    checkpoints = failing(tmp_path, fault, fault)
    checkpoints.save(1, {"x": torch.ones(10)})
    checkpoints.faults[:] = [fault]
    checkpoints.async_save(2, {"x": torch.ones(10)}).result()
    checkpoints.close()
    assert sorted(os.listdir(tmp_path)) == ["step-000000001", "step-000000002"]


def test_save_fails_after_its_last_attempt_or_a_permanent_fault(tmp_path):
    checkpoints = failing(tmp_path, *[Unavailable("gone")] * 3)
    with pytest.raises(CheckpointException, match="gone"):
        checkpoints.save(1, {"x": torch.ones(10)})
    assert checkpoints.faults == []
    checkpoints.faults[:] = [NoSpace("full"), NoSpace("full")]
    with pytest.raises(CheckpointException, match="full"):
        checkpoints.save(1, {"x": torch.ones(10)})
    assert len(checkpoints.faults) == 1
    assert os.listdir(tmp_path) == []


def test_training_continues_after_an_asynchronous_save_that_failed(tmp_path):
    failed = []
    checkpoints = failing(
        tmp_path, NoSpace("full"), on_error=lambda step, error: failed.append((step, str(error)))
    )
    for step in (1, 2):
        checkpoints.async_save(step, {"x": torch.ones(10)})
    checkpoints.close()
    ((step, message),) = failed
    assert step == 1
    assert "full" in message
    assert names(tmp_path) == ["step-000000002"]
    checkpoints = failing(tmp_path, NoSpace("full"))
    checkpoints.async_save(3, {"x": torch.ones(10)})
    with pytest.raises(CheckpointException, match="full"):
        checkpoints.close()


# What states may hold.


def test_every_type_and_layout(place):
    state = {
        "types": {
            str(dtype): torch.randint(0, 2, (33, 7)).to(dtype)
            for dtype in (
                torch.bool,
                torch.uint8,
                torch.int16,
                torch.int64,
                torch.uint32,
                torch.float16,
                torch.bfloat16,
                torch.float64,
                torch.complex64,
                torch.complex128,
                torch.float8_e4m3fn,
                torch.float8_e5m2,
            )
        },
        "transposed": torch.randn(50, 30).t(),
        "strided": torch.randn(100, 100)[::3, 5:50],
        "conjugated": torch.randn(5, dtype=torch.complex64).conj(),
        "expanded": torch.randn(1, 4).expand(6, 4),
        "parameter": torch.nn.Parameter(torch.randn(3)),
        "scalar": torch.tensor(5),
        "none": torch.empty(0, 3),
        "large": torch.randn(1_000_001),
        "__metadata__": torch.ones(2),
        "rank-00000": [1, {"deep": (2, "text", None)}],
        "äöü [0:3]": torch.ones(1),
    }
    dcp.save(state, storage_writer=Writer(f"{place}/a-1"))
    assert verify(f"{place}/a-1") == []
    everything = _load_state_dict_from_keys(storage_reader=Reader(f"{place}/a-1"))
    for name, tensor in state["types"].items():
        found = everything["types"][name]
        assert found.dtype == tensor.dtype
        assert torch.equal(found.view(torch.uint8), tensor.view(torch.uint8))
    for name, value in state.items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(everything[name], value), name
    assert everything["rank-00000"] == state["rank-00000"]
    some = _load_state_dict_from_keys({"large", "types"}, storage_reader=Reader(f"{place}/a-1"))
    assert sorted(some) == ["large", "types"]


def test_a_load_converts_to_the_types_of_its_targets(tmp_path):
    dcp.save({"x": torch.arange(10.0)}, storage_writer=Writer(tmp_path / "a"))
    state = {"x": torch.zeros(10, dtype=torch.bfloat16)}
    dcp.load(state, storage_reader=Reader(tmp_path / "a"))
    assert torch.equal(state["x"], torch.arange(10.0).bfloat16())


def test_models_and_optimizers_resume(tmp_path):
    def trained(model, optimizer, steps):
        for step in range(steps):
            optimizer.zero_grad()
            model(torch.full((2, 5), float(step))).sum().backward()
            optimizer.step()

    torch.manual_seed(1)
    model = torch.nn.Linear(5, 3)
    optimizer = torch.optim.AdamW(model.parameters(), foreach=False)
    trained(model, optimizer, 3)
    checkpoints = Checkpoints(tmp_path)
    with checkpoints:
        checkpoints.async_save(3, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
        trained(model, optimizer, 4)
    other = torch.nn.Linear(5, 3)
    other_optimizer = torch.optim.AdamW(other.parameters(), foreach=False)
    trained(other, other_optimizer, 1)  # makes its state
    state = {"model": other.state_dict(), "optimizer": other_optimizer.state_dict()}
    assert checkpoints.load(state) == 3
    other.load_state_dict(state["model"])
    other_optimizer.load_state_dict(state["optimizer"])
    trained(other, other_optimizer, 4)
    assert torch.equal(other.weight, model.weight)


# torch.save and torch.load.


def test_objects(place):
    value = {"w": torch.randn(300_000), "list": [1, 2], "b": torch.arange(5)}
    save_object(value, f"{place}/x.pt")
    found = load_object(f"{place}/x.pt")
    assert torch.equal(found["w"], value["w"])
    assert found["list"] == [1, 2]
    if place.startswith("luciola"):
        with pytest.raises(InvalidArgument, match="mmap=True needs a file of this machine"):
            load_object(f"{place}/x.pt", mmap=True)
    else:
        assert torch.equal(load_object(f"{place}/x.pt", mmap=True)["w"], value["w"])


def test_streams(place):
    with open_stream(f"{place}/s", "wb") as file:
        torch.save(torch.arange(10), file)
        first = file.tell()
        torch.save(torch.arange(5), file)
    with open_stream(f"{place}/s") as file:
        file.seek(first)
        assert torch.equal(torch.load(file), torch.arange(5))
        file.seek(0)
        assert file.seekable()
        assert file.readline().startswith(b"PK")
    with pytest.raises(RuntimeError, match="stop"), open_stream(f"{place}/s", "wb") as file:
        file.write(b"other")
        raise RuntimeError("stop")
    with open_stream(f"{place}/s") as file:
        assert file.read(2) == b"PK"
    with pytest.raises(ValueError, match="mode is 'rb' or 'wb', not 'a'"), open_stream(f"{place}/s", "a"):
        pass
