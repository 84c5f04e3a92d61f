"""DeepEP's functions and `Config`, with the original's results; its own tests' calls are in tests/plugins/deepep."""

import pytest
import torch

from luciola.plugins.compat.deep_ep.utils.gate import get_unbalanced_scores
from luciola.plugins.compat.deep_ep.utils.math import (
    calc_diff,
    count_bytes,
    create_grouped_scores,
    hash_tensor,
    inplace_unique,
    per_token_cast_back,
    per_token_cast_to_fp8,
    safe_div,
)
from luciola.plugins.compat.deep_ep.utils.testing import bench
from luciola.plugins.deepep import Buffer, Config


def test_arithmetic_helpers_are_the_originals() -> None:
    x = torch.tensor([[3, 3, 1, -1], [0, 1, 2, 3], [-1, -1, -1, -1]])
    inplace_unique(x, 4)
    assert x.tolist() == [[3, 1, -1, -1], [0, 1, 2, 3], [-1, -1, -1, -1]]
    scores = create_grouped_scores(torch.ones(2, 4), torch.tensor([[0], [1]]), 2)
    assert scores.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert count_bytes(x, [scores, None]) == 96 + 32
    assert hash_tensor(x) != hash_tensor(x.flip(0))
    assert (safe_div(3, 0), safe_div(3, 2)) == (0, 1.5)
    assert bench(lambda: x + x, 1, 3)[1] > 0
    assert get_unbalanced_scores(3, 8, 2, 2, 1.0, True).shape == (3, 8)


def test_casts_of_rows_take_any_width() -> None:
    y = torch.randn(5, 256, generator=torch.Generator().manual_seed(1)).bfloat16()
    y[:, 200:] = 0
    codes, scales = per_token_cast_to_fp8(y)
    assert calc_diff(per_token_cast_back(codes, scales), y) < 1e-3
    narrow_codes, narrow_scales = per_token_cast_to_fp8(y[:, :200])
    assert torch.equal(narrow_codes.view(torch.uint8), codes[:, :200].view(torch.uint8))
    assert torch.equal(narrow_scales, scales)
    assert calc_diff(per_token_cast_back(narrow_codes, narrow_scales), y[:, :200]) < 1e-3
    assert per_token_cast_back(narrow_codes[:0], narrow_scales[:0]).shape == (0, 200)


def test_configurations_have_the_originals_hints() -> None:
    config, before = Buffer.get_dispatch_config(8), Buffer.num_sms
    assert config.num_sms == before == 20
    assert config.get_nvl_buffer_size_hint(14336, 8) == 10 * 8 * 256 * (14336 + 1024)
    assert config.get_rdma_buffer_size_hint(14336, 8) == 0
    assert config.get_rdma_buffer_size_hint(14336, 16) == 2 * 10 * 2 * 128 * (14336 + 1024)
    Buffer.set_num_sms(24)
    assert Buffer.get_combine_config(4).num_sms == 24
    Buffer.set_num_sms(before)


@pytest.mark.parametrize(
    "wrong",
    [lambda: Config(3), lambda: Config(20, 256, 256), lambda: Config().get_nvl_buffer_size_hint(64, 12)],
)
def test_configurations_that_cannot_be_are_refused(wrong) -> None:
    with pytest.raises(ValueError, match="it must be"):
        wrong()
