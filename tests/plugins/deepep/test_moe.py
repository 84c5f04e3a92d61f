"""The mixture-of-experts layer over ranks, beside one process that has all experts."""

import pytest
import torch

from expert_inputs import values
from luciola.plugins.weights import save
from moe_cases import CHECKPOINT_NAMES, EXPERTS, HIDDEN, WIDTH, PhysicalExperts, weights
from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)  # several runs of real processes
UNEVEN = (5, 0, 8, 1)
REPLICAS = [0, 1, 2, 3, 4, 5, 6, 7, 0, 0, 1, 3]  # 3 slots on each of 4 ranks


@pytest.mark.parametrize("placement", [None, REPLICAS])
def test_forward_and_backward_are_those_of_one_process(experts: Ranks, placement) -> None:
    found = values(experts.run("moe_gradients", 4, counts=UNEVEN, placement=placement))
    for differences in found:
        assert set(differences) == {"result", "x", "weights", "gate_up", "down"}
        assert max(differences.values()) < 0.02, differences  # bfloat16 has 8 bits


def test_fp8_products_are_near_too(experts: Ranks) -> None:
    """E4m3 has three bits; the gradient of a weight is a sum over a whole row."""
    for differences in values(experts.run("moe_gradients", 2, counts=(4, 3), precision="fp8")):
        assert max(differences.values()) < 0.25, differences


@pytest.mark.parametrize(("precision", "limit"), [("bf16", 0.02), ("fp8", 0.15)])
def test_decoding_by_low_latency_mode_gives_the_same(experts: Ranks, precision, limit) -> None:
    for differences in values(experts.run("moe_decoding", 4, counts=UNEVEN, precision=precision)):
        assert max(differences.values()) < limit, differences


def test_a_rank_reads_the_experts_that_it_serves_and_no_others(experts: Ranks, tmp_path) -> None:
    tensors = {}
    for name, (weight, part) in CHECKPOINT_NAMES.items():
        for expert in range(EXPERTS):
            tensors[f"layers.3.experts.{expert}.{name}"] = weights()[weight][expert][part].contiguous()
    save(tensors, tmp_path / "model.safetensors")
    found = values(experts.run("moe_loading", 4, location=str(tmp_path), placement=REPLICAS))
    expert_bytes = 3 * WIDTH * HIDDEN * 2
    assert found == [
        (3, 3 * expert_bytes),
        (3, 3 * expert_bytes),
        (2 + 1, 3 * expert_bytes),
        (3, 3 * expert_bytes),
    ]


def test_replicas_take_the_tokens_of_their_expert_in_turns() -> None:
    experts = PhysicalExperts(torch.tensor(REPLICAS), ranks=4)
    assert experts.replicas.tolist() == [3, 2, 1, 2, 1, 1, 1, 1]
    routes = torch.zeros(6, 1, dtype=torch.int64)
    assert experts.route(routes).flatten().tolist() == [0, 8, 9, 0, 8, 9]
    assert experts.route(routes, offset=1).flatten().tolist() == [8, 9, 0, 8, 9, 0]
    odd = torch.tensor([[-1, 2], [1, 8], [1, 7]])
    assert experts.route(odd).tolist() == [[-1, 2], [10, -1], [1, 7]]
    assert experts.slots_of(2).tolist() == [6, 7, 0]


@pytest.mark.parametrize(
    ("placement", "ranks", "words"),
    [
        ([0, 1, 2], 2, "of 3 slots; ranks .2. must share them evenly"),
        ([0, 2, 2, 0], 2, r"no slot for experts \[1\]"),
        ([0, 1, -1, 1], 2, "or empty slots"),
        ([[0, 1]], 2, "it is .slots,. of integers"),
    ],
)
def test_placements_that_cannot_be_served_are_refused(placement, ranks, words) -> None:
    with pytest.raises(ValueError, match=words):
        PhysicalExperts(torch.tensor(placement), ranks=ranks)
