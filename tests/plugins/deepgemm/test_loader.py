"""Weights of a checkpoint become operands: whole, by rank, stacked; from a cluster and from a directory."""

from pathlib import Path

import pytest
import torch

from cluster import LocalCluster
from luciola.plugins import deepgemm
from luciola.plugins.deepgemm.loader import SCALE_SUFFIX, load_weights
from luciola.plugins.kernels.errors import BadArgument
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.weights import Checkpoint, save

N, K = 256, 384
EXPERTS = [f"experts.{each}.up.weight" for each in range(4)]


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    torch.manual_seed(3)
    result = {"plain.weight": torch.randn(6, 10).bfloat16(), "bias": torch.zeros(4)}
    for name in EXPERTS:
        values, scales = deepgemm.per_block_cast_to_fp8(torch.randn(N, K), False)
        result |= {name: values, name + SCALE_SUFFIX: scales}
    return result | {
        "odd.weight": torch.zeros(128, 128).to(torch.float8_e4m3fn),
        "odd.weight_scale_inv": torch.ones(2, 1),
    }


@pytest.fixture
def checkpoint(tensors: dict[str, torch.Tensor], tmp_path: Path) -> Checkpoint:
    save(tensors, tmp_path / "model.safetensors")
    return Checkpoint.open(tmp_path / "model.safetensors")


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(
        one.view(torch.uint8), other.contiguous().view(torch.uint8)
    )


def test_a_whole_weight_is_an_operand(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    values, scales = load_weights(checkpoint, EXPERTS[1], device=torch.get_default_device())
    assert same(values, tensors[EXPERTS[1]])
    assert same(scales, tensors[EXPERTS[1] + SCALE_SUFFIX])
    x, out = torch.randn(3, K), torch.empty(3, N, dtype=torch.bfloat16)
    with using_layer("reference"):
        deepgemm.fp8_gemm_nt(deepgemm.per_token_cast_to_fp8(x, False), (values, scales), out)
    assert torch.isfinite(out.float()).all()


@pytest.mark.parametrize(("by", "ranks"), [("rows", 2), ("columns", 3)])
def test_ranks_shares_are_joined_to_the_whole(
    checkpoint: Checkpoint, tensors: dict[str, torch.Tensor], by: str, ranks: int
) -> None:
    info, dimension = checkpoint.info(EXPERTS[0]), 0 if by == "rows" else 1
    parts = [info.shard(rank, ranks, dimension=dimension) for rank in range(ranks)]
    shares = [load_weights(checkpoint, EXPERTS[0], index=part) for part in parts]
    for place, name in enumerate((EXPERTS[0], EXPERTS[0] + SCALE_SUFFIX)):
        joined = torch.cat([share[place].view(torch.uint8) for share in shares], dim=dimension)
        assert torch.equal(joined, tensors[name].view(torch.uint8))


def test_experts_are_stacked_in_the_order_asked_for(
    checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]
) -> None:
    chosen = [EXPERTS[3], EXPERTS[1]]
    values, scales = load_weights(checkpoint, chosen, index=[slice(N // 2, None)])
    assert (values.shape, scales.shape) == ((2, N // 2, K), (2, 1, 3))
    for place, name in enumerate(chosen):
        assert same(values[place], tensors[name][N // 2 :])
        assert same(scales[place], tensors[name + SCALE_SUFFIX][1:])


def test_bf16_weights_need_no_blocks(checkpoint: Checkpoint, tensors: dict[str, torch.Tensor]) -> None:
    assert same(load_weights(checkpoint, "plain.weight"), tensors["plain.weight"])
    assert same(load_weights(checkpoint, "plain.weight", index=[slice(4, 6)]), tensors["plain.weight"][4:])


def test_what_does_not_fit_is_named(checkpoint: Checkpoint) -> None:
    cases = [
        (lambda: load_weights(checkpoint, []), "names is empty"),
        (lambda: load_weights(checkpoint, "bias"), "matrix of F8_E4M3 or BF16"),
        (lambda: load_weights(checkpoint, [EXPERTS[0], "plain.weight"]), "it must be as"),
        (lambda: load_weights(checkpoint, EXPERTS[0], index=[slice(64)]), "multiples of 128"),
        (lambda: load_weights(checkpoint, "plain.weight", index=[slice(7)]), "within \\(6, 10\\)"),
        (lambda: load_weights(checkpoint, "odd.weight"), "128 x 128"),
    ]
    for call, message in cases:
        with pytest.raises(BadArgument, match=message):
            call()
    with pytest.raises(KeyError, match="did you mean"):
        load_weights(checkpoint, EXPERTS[0] + "s")


@pytest.mark.mount
def test_experts_from_a_cluster(shared_cluster: LocalCluster, tensors: dict[str, torch.Tensor]) -> None:
    location = f"luciola://{shared_cluster.data}!/deepgemm.safetensors"
    save(tensors, location)
    values, scales = load_weights(Checkpoint.open(location), EXPERTS)
    for place, name in enumerate(EXPERTS):
        assert same(values[place], tensors[name])
        assert same(scales[place], tensors[name + SCALE_SUFFIX])
