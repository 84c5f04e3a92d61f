"""Files of loads and of plans: what is read, and what is refused."""

import dataclasses
import io
import json
import os

import numpy as np
import pytest
import torch

from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.eplb import LoadRecorder, gpu_loads, rebalance_experts
from luciola.plugins.eplb.load_files import read_loads
from luciola.plugins.eplb.plan_file import Plan, balance_of, experts_in_order

VALUES = [[1.0, 2.0, 0.5], [4.0, 0.0, 3.0]]


def npy(array):
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=True)
    return buffer.getvalue()


def npz(array):
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("l.npy", npy(np.array(VALUES, dtype=np.float32))),
        ("l.NPY", npy(np.array(VALUES))),
    ],
)
def test_one_moment(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    loads = read_loads(str(tmp_path / name))
    assert loads.average.tolist() == VALUES
    assert loads.average.dtype == torch.float64
    assert tuple(loads.windows.shape) == (0, 2, 3)


def test_several_windows(tmp_path):
    (tmp_path / "l.npy").write_bytes(npy(np.array([VALUES, np.zeros((2, 3))])))
    loads = read_loads(str(tmp_path / "l.npy"))
    assert loads.average.tolist() == (torch.tensor(VALUES) / 2).tolist()
    assert loads.windows[0].tolist() == VALUES


def test_what_a_recorder_saved(tmp_path):
    recorder = LoadRecorder(2, 3, windows=1, window_steps=1)
    recorder.record_counts(torch.tensor(VALUES))
    recorder.step()
    recorder.loads().save(tmp_path / "l.safetensors")
    loads = read_loads(str(tmp_path / "l.safetensors"))
    assert (loads.average.tolist(), loads.windows.tolist()) == (VALUES, [VALUES])


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("l.npy", b"", "not loads"),
        ("l.npy", npy(np.array(VALUES))[:-1], "not loads"),
        ("l.npy", npy(np.array([{}])), "allow_pickle"),
        ("l.npy", npy(np.array(VALUES)).replace(b"(2, 3)", b"(9, 9)"), "not loads"),
        ("l.npy", npz(np.array(VALUES)), "not loads"),
        ("l.npy", npz(np.array(VALUES))[:60], "not loads"),
        ("l.npy", npy(np.array(3.0)), r"shape \(\)"),
        ("l.npy", npy(np.zeros((0, 3))), r"shape \(0, 3\)"),
        ("l.npy", npy(np.array([["a"]])), "not of numbers"),
        ("l.npy", npy(np.array([[1j]])), "not of numbers"),
        ("l.npy", npy(np.array([[True]])), "not of numbers"),
        ("l.npy", npy(np.array([[1, np.inf]])), "from zero on"),
        ("l.npy", npy(np.array([[1, -1]])), "from zero on"),
        ("l.npy", npy(np.array([[1, np.nan]])), "from zero on"),
        ("l.safetensors", b"abc", "not a safetensors file"),
    ],
)
def test_what_is_no_file_of_loads(tmp_path, name, data, reason):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CorruptData, match=reason) as caught:
        read_loads(str(tmp_path / name))
    assert caught.value.filename == str(tmp_path / name)


def test_other_kinds_and_sizes_of_files(tmp_path):
    with pytest.raises(InvalidArgument, match=r"\.safetensors or \.npy"):
        read_loads("loads.txt")
    with open(tmp_path / "l.npy", "wb") as file:
        file.truncate((256 << 20) + 1)
    with pytest.raises(InvalidArgument, match=r"at most 256\.0 MiB are read"):
        read_loads(str(tmp_path / "l.npy"))
    with pytest.raises(FileNotFoundError):
        read_loads(str(tmp_path / "none.npy"))


# Plans.


def plan_of(loads, slots=8, gpus=2):
    placement = rebalance_experts(loads, slots, 1, 1, gpus)[0]
    return Plan("reference", 1, 1, gpus, loads, placement)


LOADS = torch.tensor([[9.0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], dtype=torch.float64)


def test_plans_come_back(tmp_path):
    plan = dataclasses.replace(plan_of(LOADS), moves=((0, 1, 0, 3, 5, 1),))
    path = tmp_path / "deep" / "p.json"
    plan.save(path)
    assert os.listdir(path.parent) == ["p.json"]
    again = Plan.load(path)
    assert again.moves == plan.moves
    assert torch.equal(again.loads, plan.loads)
    assert torch.equal(again.placement, plan.placement)
    assert (again.policy, again.groups, again.nodes, again.gpus) == ("reference", 1, 1, 2)
    plan_of(LOADS).save(path)
    assert Plan.load(path).moves is None


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "its format is not"),
        ({"version": 2}, "version 1"),
        ({"gpus": 0}, "whole numbers from 1 on"),
        ({"gpus": 3}, "must be a multiple"),
        ({"nodes": True}, "whole numbers"),
        ({"loads": [[1.0, 2.0]]}, "has 3 layers, weight has 1"),
        ({"loads": "x"}, "not a plan"),
        ({"physical_to_logical_map": [[0] * 8] * 3}, "without a slot"),
        ({"physical_to_logical_map": [[0.5] * 8] * 3}, "integers"),
        ({"physical_to_logical_map": [[0, 1], [0]]}, "not a plan"),
        ({"moves": [["a"]]}, "not a plan"),
        ({"moves": 3}, "not a plan"),
    ],
)
def test_what_is_no_plan(tmp_path, change, reason):
    path = tmp_path / "p.json"
    plan_of(LOADS).save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptData, match=reason):
        Plan.load(path)
    path.write_text("[")
    with pytest.raises(CorruptData, match="not a plan"):
        Plan.load(path)


def test_balance_of_layers():
    plan = Plan("x", 1, 1, 2, LOADS, torch.tensor([[0, 0, 1, 2, 3, 4, 0, 1]] * 3))
    first, empty, last = balance_of(plan, LOADS)
    loads = gpu_loads(LOADS, plan.placement, 2)
    assert loads[0].tolist() == [7.5, 5.5]
    assert (first.mean, first.ratio, first.gpu, first.most_replicas, first.doubles) == (
        6.5,
        7.5 / 6.5,
        0,
        3,
        1,
    )
    assert first.bound == pytest.approx(1.0)
    assert (empty.ratio, empty.bound) == (1.0, 1.0)
    assert last.gpu == 1


def test_experts_in_order():
    assert experts_in_order(LOADS[:2], 8).tolist() == [[0, 1, 2, 3, 4, 0, 1, 2]] * 2
    assert experts_in_order(LOADS[:1, :4], 8, nodes=2).tolist() == [[0, 1, 0, 1, 2, 3, 2, 3]]
