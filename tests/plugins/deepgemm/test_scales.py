"""Layouts of scales: exact values and exact strides."""

import pytest
import torch

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType


def bytes_of(packed: torch.Tensor) -> torch.Tensor:
    """Bytes along the last dimension, whatever the strides."""
    return torch.empty(packed.shape, dtype=torch.int32).copy_(packed).view(torch.uint8)


@pytest.mark.parametrize("groups", [None, 1, 3])
@pytest.mark.parametrize("mn", [1, 4, 4097])
@pytest.mark.parametrize("k", [128, 7296])
def test_mn_major_keeps_values_and_aligns_columns(groups: int | None, mn: int, k: int) -> None:
    shape = (mn, k // 128) if groups is None else (groups, mn, k // 128)
    sf = torch.rand(shape)
    result = deepgemm.get_mn_major_tma_aligned_tensor(sf)
    aligned = -(-mn // 4) * 4
    assert torch.equal(result, sf)
    assert result.stride()[-2:] == (1, aligned)
    if groups is not None:
        assert result.stride(0) == aligned * (k // 128)
    assert deepgemm.get_mn_major_tma_aligned_tensor(result) is result


@pytest.mark.parametrize("columns", [1, 4, 7])
def test_packed_scales_hold_four_exponents_and_zeros_after_the_last(columns: int) -> None:
    exponents = torch.randint(1, 255, (5, columns))
    sf = (exponents.to(torch.int32) << 23).view(torch.float32)
    packed = deepgemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(sf)
    assert packed.stride() == (1, 8)
    read = bytes_of(packed)
    assert torch.equal(read[:, :columns].long(), exponents)
    assert not read[:, columns:].any()
    assert torch.equal(deepgemm.unpack_ue8m0_from_int(packed)[:, :columns], sf)


def test_rows_between_groups_may_hold_anything_when_packed() -> None:
    sf = torch.full((256, 4), float("nan"))
    sf[:3] = 2.0
    sf[128:130] = 4.0
    packed = deepgemm.get_mn_major_tma_aligned_packed_ue8m0_tensor(
        sf, torch.tensor([3, 130], dtype=torch.int32)
    )
    assert bytes_of(packed[129]).tolist() == [129] * 4


def test_k_grouped_scales_are_packed_group_by_group() -> None:
    sf = torch.full((6, 8), 2.0)
    layout = torch.tensor([128, 0, 640], dtype=torch.int32)
    packed = deepgemm.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(sf, layout, [128, 0, 640])
    assert packed.shape == (8, 3)
    assert bytes_of(packed[0]).tolist() == [128, 0, 0, 0, 128, 128, 128, 128, 128, 0, 0, 0]
    with pytest.raises(BadArgument, match="asks for 5"):
        deepgemm.get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor(sf, layout, [0, 0, 640])


def test_required_layouts_and_what_is_refused() -> None:
    transform = deepgemm.transform_sf_into_required_layout
    assert transform(torch.rand(130, 2), 130, 256, (1, 128, 128), is_sfa=True).stride() == (1, 132)
    assert transform(torch.rand(130, 2), 130, 256, (1, 128)).stride() == (1, 132)
    weights = torch.rand(2, 2)
    assert transform(weights, 130, 256, (1, 128, 128), is_sfa=False) is weights
    with pytest.raises(BadArgument, match=r"must be \(130, 2\)"):
        transform(torch.rand(129, 2), 130, 256, (1, 128))
    with pytest.raises(BadArgument, match="two without"):
        transform(weights, 130, 256, (1, 128, 128))
    with pytest.raises(BadType, match="later GPUs"):
        transform(torch.zeros(130, 1, dtype=torch.int32), 130, 256, (1, 128))


def test_aligned_sizes() -> None:
    assert [deepgemm.get_tma_aligned_size(x, 4) for x in (0, 1, 4, 5)] == [0, 4, 4, 8]
    assert deepgemm.get_tma_aligned_size(3, 1) == 16
