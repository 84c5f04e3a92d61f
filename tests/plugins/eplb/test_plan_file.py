"""Files of plans: what comes back, and what is refused."""

import json
import os

import pytest
import torch

from luciola.errors import CorruptData
from luciola.plugins.eplb import rebalance_experts
from luciola.plugins.eplb.plan_file import Plan

LOADS = torch.tensor([[9.0, 1, 1, 1, 1], [0, 0, 0, 0, 0], [1, 2, 3, 4, 5]], dtype=torch.float64)
PLAN = Plan("reference", 1, 1, 2, rebalance_experts(LOADS, 8, 1, 1, 2)[0])


def test_plans_come_back_and_any_tool_can_read_them(tmp_path):
    path = tmp_path / "deep" / "p.json"
    PLAN.save(path)
    assert os.listdir(path.parent) == ["p.json"]
    again = Plan.load(path)
    assert torch.equal(again.physical_to_logical_map, PLAN.physical_to_logical_map)
    assert (again.policy, again.groups, again.nodes, again.gpus) == ("reference", 1, 1, 2)
    table = json.loads(path.read_text())
    assert table["physical_to_logical_map"] == PLAN.physical_to_logical_map.tolist()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"format": "x"}, "its format is not"),
        ({"version": 2}, "version 1"),
        ({"gpus": 0}, "whole numbers from 1 on"),
        ({"gpus": 3}, "must be a multiple"),
        ({"nodes": True}, "whole numbers"),
        ({"physical_to_logical_map": [[0, -1] * 4] * 3}, "an expert in every slot"),
        ({"physical_to_logical_map": [[0.5] * 8] * 3}, "integers"),
        ({"physical_to_logical_map": [[0, 1], [0]]}, "not a plan"),
        ({"physical_to_logical_map": "x"}, "not a plan"),
    ],
)
def test_what_is_no_plan(tmp_path, change, reason):
    path = tmp_path / "p.json"
    PLAN.save(path)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CorruptData, match=reason):
        Plan.load(path)
    path.write_text("[")
    with pytest.raises(CorruptData, match="not a plan"):
        Plan.load(path)
