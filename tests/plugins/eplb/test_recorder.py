"""Recorded loads against counting by hand, over steps, windows, ranks and files."""

import os

import pytest
import torch
from safetensors.torch import load_file, save_file

from luciola.errors import CorruptData
from luciola.plugins.eplb import LoadRecorder, Loads
from pipeline_ranks import Ranks

LAYERS, EXPERTS = 3, 8
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def ids_of(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-1, EXPERTS, shape, generator=generator)


def counts_of(ids):
    return torch.bincount(ids[ids >= 0].flatten(), minlength=EXPERTS).double()


@pytest.mark.parametrize("device", DEVICES)
def test_the_average_is_the_weighted_mean_of_the_steps(device):
    recorder = LoadRecorder(LAYERS, EXPERTS, half_life_steps=2, device=device)
    steps = [
        [ids_of(10 * step + layer, 5, 2).to(torch.int32) for layer in range(LAYERS)] for step in range(7)
    ]
    for step in steps:
        for layer, ids in enumerate(step):
            recorder.record(layer, ids[:2].to(device))
            recorder.record(layer, ids[2:])
        recorder.step()
    weights = torch.tensor([0.5 ** (age / 2) for age in range(7)][::-1], dtype=torch.float64)
    counts = torch.stack([torch.stack([counts_of(ids) for ids in step]) for step in steps])
    expected = (counts * weights[:, None, None]).sum(0) / weights.sum()
    loads = recorder.loads()
    torch.testing.assert_close(loads.average, expected, rtol=1e-12, atol=0)
    assert (loads.steps, loads.windows.shape) == (7, (0, LAYERS, EXPERTS))


def test_a_steady_load_is_reported_exactly_from_the_first_step_on():
    recorder = LoadRecorder(1, 2, half_life_steps=1e6)
    for _ in range(3):
        recorder.record_counts(torch.tensor([[5, 1]]))
        recorder.step()
        torch.testing.assert_close(recorder.loads().average, torch.tensor([[5.0, 1.0]]).double())


def test_counts_and_ids_add_up_and_an_open_step_does_not_count():
    recorder = LoadRecorder(2, 3)
    recorder.record_counts(torch.tensor([1, 2, 3]), layer=1)
    recorder.record_counts(torch.ones(2, 3, dtype=torch.int64))
    recorder.record(1, torch.tensor([[2, -1], [2, 0]]))
    recorder.step()
    recorder.record(0, torch.tensor([0]))
    assert recorder.loads().average.tolist() == [[1, 1, 1], [3, 3, 6]]


def test_ids_may_name_slots():
    recorder = LoadRecorder(1, 3)
    recorder.record(0, torch.tensor([0, 1, 2, 3, 3, -1]), expert_of_slot=torch.tensor([2, 0, 1, 2]))
    recorder.step()
    assert recorder.loads().average.tolist() == [[1, 1, 3]]


@pytest.mark.parametrize(
    ("ids", "table"),
    [([3], None), ([-2], None), ([1 << 40], None), ([2], [0, 1]), ([1], [0, -1]), ([1], [0, 3])],
)
def test_ids_beyond_the_experts_are_reported_when_loads_are_looked_at(ids, table):
    recorder = LoadRecorder(2, 3)
    table = None if table is None else torch.tensor(table)
    recorder.record(1, torch.tensor([*ids, 0]), expert_of_slot=table)
    recorder.step()
    recorder.step()
    with pytest.raises(
        ValueError, match="1 ids were neither -1 nor one of the 3 experts, most of them in layer 1"
    ):
        recorder.loads()


def test_windows_are_the_last_means_oldest_first():
    recorder = LoadRecorder(1, 2, windows=2, window_steps=3)
    for step in range(11):
        recorder.record_counts(torch.tensor([[step, 1]]))
        recorder.step()
        count = min(2, (step + 1) // 3)
        assert len(recorder.loads().windows) == count
    assert recorder.loads().windows.tolist() == [[[4, 1]], [[7, 1]]]


def test_files_come_back(tmp_path):
    recorder = LoadRecorder(LAYERS, EXPERTS, half_life_steps=5, windows=2, window_steps=4)
    for step in range(12):
        recorder.record(step % LAYERS, ids_of(step, 100))
        recorder.step()
    loads, path = recorder.loads(), tmp_path / "deep" / "loads.safetensors"
    loads.save(path)
    assert os.listdir(path.parent) == ["loads.safetensors"]
    again = Loads.load(path)
    assert torch.equal(again.average, loads.average)
    assert torch.equal(again.windows, loads.windows)
    assert (again.steps, again.half_life_steps) == (12, 5)
    assert load_file(path)["average"].dtype == torch.float64  # any tool may read it


def test_ranks_are_reduced_by_torch_distributed(ranks: Ranks):
    answers = ranks.of("recorder_ranks").run("reduce", 2)
    reduced = ([[1.0, 2.0, 0.0]], [[[1.0, 2.0, 0.0]]], [2.0, 1.0], ["rank 0", "rank 1"])
    assert [each.value for each in answers] == [reduced] * 2, answers


def test_without_torch_distributed_reduced_is_local():
    recorder = LoadRecorder(1, 1)
    recorder.record(0, torch.tensor([0]))
    recorder.step()
    assert recorder.reduced().average.tolist() == [[1]]


@pytest.mark.parametrize(
    ("named", "reason"),
    [
        ({"num_layers": 0}, "num_layers must be at least 1, not 0"),
        ({"num_experts": -1}, "num_experts must be at least 1"),
        ({"windows": -1}, "windows must be at least 0"),
        ({"window_steps": 0}, "window_steps must be at least 1"),
        ({"half_life_steps": 0}, "half_life_steps must be positive and finite, not 0"),
        ({"half_life_steps": float("nan")}, "half_life_steps must be positive"),
    ],
)
def test_recorders_that_cannot_be(named, reason):
    with pytest.raises(ValueError, match=reason):
        LoadRecorder(**({"num_layers": 1, "num_experts": 1} | named))


def test_records_that_do_not_fit():
    recorder = LoadRecorder(2, 3)
    with pytest.raises(ValueError, match="no step has ended"):
        recorder.loads()
    with pytest.raises(ValueError, match="layer must be 0 to 1, not 2"):
        recorder.record(2, torch.tensor([0]))
    with pytest.raises(ValueError, match="layer must be 0 to 1, not -1"):
        recorder.record_counts(torch.zeros(3), layer=-1)
    with pytest.raises(TypeError, match="must be integers"):
        recorder.record(0, torch.tensor([0.0]))
    with pytest.raises(ValueError, match=r"shape \(2, 3\), not \(3,\)"):
        recorder.record_counts(torch.zeros(3))


GOOD = {"average": torch.ones(1, 2).double(), "windows": torch.zeros(0, 1, 2).double()}
FACTS = {"format": "luciola-eplb-loads", "version": "1", "steps": "3", "half_life_steps": "5.0"}


@pytest.mark.parametrize(
    ("tensors", "facts", "reason"),
    [
        (GOOD, FACTS | {"version": "2"}, "not recorded loads"),
        (GOOD, {}, "not recorded loads"),
        (GOOD, FACTS | {"steps": "x"}, "invalid literal"),
        ({"average": GOOD["average"]}, FACTS, "average .layers, experts. and windows"),
        (GOOD | {"average": torch.ones(1, 2)}, FACTS, "average .layers, experts. and windows"),
        (GOOD | {"average": -GOOD["average"]}, FACTS, "from zero on"),
        (GOOD | {"average": GOOD["average"] * float("nan")}, FACTS, "from zero on"),
    ],
)
def test_files_that_are_no_loads(tmp_path, tensors, facts, reason):
    save_file(tensors, tmp_path / "f.safetensors", facts)
    with pytest.raises(CorruptData, match=reason):
        Loads.load(tmp_path / "f.safetensors")
