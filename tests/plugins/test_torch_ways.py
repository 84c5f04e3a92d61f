"""What `make gpu` compares kernels with: torch's own ways compute what the operators do."""

import importlib
import sys
from pathlib import Path

import pytest
import torch

from luciola.plugins.flashmla import flash_mla_sparse_fwd

BENCHMARKS = Path(__file__).parents[2] / "benchmarks/plugins"


@pytest.fixture
def benchmark(monkeypatch):
    """Import a benchmark by its name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(BENCHMARKS) in str(
            sys.modules[name].__file__
        ):
            del sys.modules[name]


def test_torch_s_sparse_prefill_is_ours(benchmark, monkeypatch):
    flashmla = benchmark("flashmla")
    monkeypatch.setattr(flashmla, "GATHERED", 3)  # the last part is smaller
    torch.manual_seed(0)
    q, kv = torch.randn(7, 4, 576).bfloat16(), torch.randn(50, 1, 576).bfloat16()
    indices = torch.randint(-20, 70, (7, 1, 24), dtype=torch.int32)
    indices[:, 0, 0] = 5
    wanted, _, _ = flash_mla_sparse_fwd(q, kv, indices, 0.05)
    ways = flashmla.torch_sparse_prefill(q, kv, indices, 0.05)
    assert len(ways) == 2
    for way in ways.values():
        torch.testing.assert_close(way().float(), wanted.float(), atol=0.02, rtol=0.02)


def test_torch_s_grouped_products_are_those_of_each_group(benchmark):
    deepgemm = benchmark("deepgemm")
    torch.manual_seed(0)
    x, weights = torch.randn(48, 32).bfloat16(), torch.randn(3, 16, 32).bfloat16()
    wanted = torch.cat([x[16 * g : 16 * g + 16] @ weights[g].T for g in range(3)])
    ends = torch.tensor([16, 32, 48], dtype=torch.int32)
    ways = deepgemm.torch_grouped(x, weights, ends)
    assert set(ways) == {"grouped_mm", "bmm"}
    for way in ways.values():
        torch.testing.assert_close(way(), wanted, atol=0.1, rtol=0.02)
    y = torch.randn(48, 24).bfloat16()
    (way,) = deepgemm.torch_grouped_along_k(x, y, ends).values()
    wanted = torch.stack([x[16 * g : 16 * g + 16].T @ y[16 * g : 16 * g + 16] for g in range(3)])
    torch.testing.assert_close(way(), wanted, atol=0.1, rtol=0.02)


@pytest.mark.parametrize("name", ["deepep", "deepgemm", "dualpipe", "eplb", "flashmla", "weights"])
def test_every_benchmark_can_be_imported(benchmark, name):
    assert benchmark(name).main
