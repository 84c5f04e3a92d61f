"""The native moves, sums and casts of rows give the bits that torch gives."""

import luciola_core
import numpy as np
import pytest
import torch

from luciola.plugins.deepep import routes, rows
from luciola.plugins.deepep.quantize import cast_to_fp8, from_logfmt, to_logfmt
from luciola.plugins.kernels.quantize import FP8


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(torch.bfloat16)


@pytest.mark.parametrize("width", [1, 7, 64, 1500])
def test_rows_that_lie_apart_go_where_numbers_say(width) -> None:
    source, target = random(9, width + 3), torch.zeros(7, width + 5, dtype=torch.bfloat16)
    came, put = torch.tensor([8, 0, 3, 3]), torch.tensor([6, 2, 0, 5])
    rows.copy(target[:, 5:], source[:, :width], target_rows=put, source_rows=came)
    wanted = torch.zeros_like(target)
    wanted[put, 5:] = source[came, :width]
    assert torch.equal(target, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("hidden", [1, 40, 513, 2048])
@pytest.mark.parametrize("bias", [0, 2])
def test_sums_have_the_bits_of_torch(dtype, hidden, bias) -> None:
    member = torch.rand(33, 5, generator=torch.Generator().manual_seed(hidden)) < 0.6
    parts = [random(count, hidden, seed=count).to(dtype) for count in member.sum(0).tolist()]
    biases = [random(33, hidden, seed=90 + each).to(dtype) for each in range(bias)]
    own = torch.arange(33).unsqueeze(1).expand(-1, bias)
    out = torch.empty(33, hidden, dtype=dtype)
    rows.sum_into(out, [*biases, *parts], torch.cat([own, routes.heads(member)], 1))
    total = torch.zeros(33, hidden)
    for each in biases:
        total += each
    for rank, part in enumerate(parts):
        total.index_add_(0, torch.nonzero(member[:, rank]).view(-1), part.float())
    assert torch.equal(out, total.to(dtype))


def test_weighted_sums_have_the_bits_of_torch() -> None:
    part, weights = random(50, 384), torch.rand(20, 6, generator=torch.Generator().manual_seed(3))
    places = torch.randint(-1, 50, (20, 6), generator=torch.Generator().manual_seed(4))
    total = torch.zeros(20, 384)
    for k in range(6):
        values = part[places[:, k]].float() * weights[:, k, None]
        total += torch.where(places[:, k, None] >= 0, values, 0.0)
    out = torch.empty(20, 384, dtype=torch.bfloat16)
    rows.sum_into(out, [part] * 6, places, weights)
    assert torch.equal(out, total.to(torch.bfloat16))


@pytest.mark.parametrize("round_scale", [False, True])
def test_casts_have_the_bits_of_torch(round_scale) -> None:
    every = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = torch.where(every.isfinite(), every, 1.0)
    x = torch.cat([random(64, 512), random(64, 512) * 1e-6, torch.zeros(1, 512).to(torch.bfloat16)])
    for source in (x, every.view(128, 512), every.view(512, 128).T.reshape(128, 512).contiguous()):
        values, scales = torch.empty(len(source), 512, dtype=torch.uint8), torch.empty(len(source), 4)
        rows.cast_to_fp8(values, scales.view(torch.uint8), source, round_scale=round_scale)
        wanted, wanted_scales = cast_to_fp8(source, round_scale=round_scale)
        assert torch.equal(scales, wanted_scales)
        assert torch.equal(values, wanted.view(torch.uint8))


def test_what_is_no_number_stays_none() -> None:
    x = torch.ones(2, 128, dtype=torch.bfloat16)
    x[0, 5], x[1, 7] = float("nan"), float("inf")
    values, scales = torch.empty(2, 128, dtype=torch.uint8), torch.empty(2, 4, dtype=torch.uint8)
    rows.cast_to_fp8(values, scales, x, round_scale=False)
    wanted, wanted_scales = cast_to_fp8(x)
    assert torch.equal(scales.view(torch.float32).isnan(), wanted_scales.isnan())
    assert torch.equal(values.view(FP8).float().isnan(), wanted.float().isnan())


def packed_logs(x: torch.Tensor) -> torch.Tensor:
    packed = torch.empty(len(x), x.shape[1] // 4 * 5 + x.shape[1] // 128 * 8, dtype=torch.uint8)
    rows.pack_logs(packed, x)
    return packed


def unpacked(packed: torch.Tensor, hidden: int) -> torch.Tensor:
    out = torch.empty(len(packed), hidden)
    rows.sum_logs_into(out, packed, torch.arange(len(packed)).view(-1, 1), torch.ones(len(packed), 1))
    return out


def test_logarithms_have_the_bits_of_torch() -> None:
    x = random(40, 384)
    x[1, :128], x[2, 5], x[3] = 0, -0.0, 3
    x[4, :64] *= 1e-20
    x[6, 0] = -1e-38
    every = torch.arange(0, 1 << 16, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    every = torch.where(every.isfinite(), every, 1.0).view(-1, 384 // 3).repeat_interleave(3, 1)
    for source in (x, random(300, 384, seed=2) * 1e-37, every):
        codes, ranges = to_logfmt(source)
        packed = packed_logs(source)
        assert torch.equal(packed[:, :480], codes)
        assert torch.equal(packed[:, 480:].contiguous().view(torch.float32), ranges.flatten(1))
        assert torch.equal(unpacked(packed, 384), from_logfmt(codes, ranges))


def test_logarithms_of_what_is_not_finite_come_back_as_nan() -> None:
    x = random(3, 256)
    x[0, 5], x[1, 200], x[2, 0], x[:, 7] = float("inf"), float("nan"), -float("inf"), 0
    (codes, ranges), packed = to_logfmt(x), packed_logs(x)
    assert torch.equal(packed[:, :320], codes)
    assert torch.equal(packed[:, 320:].contiguous().view(torch.float32).isnan(), ranges.flatten(1).isnan())
    back, wanted = unpacked(packed, 256), from_logfmt(codes, ranges)
    assert torch.equal(back.isnan(), wanted.isnan())
    assert torch.equal(back.nan_to_num(), wanted.nan_to_num())
    assert back[1, 128:].isnan().all()
    assert not back[:, 7].any()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_logarithms_go_and_are_summed_where_numbers_say(dtype) -> None:
    x, weights = random(9, 256), torch.rand(7, 3, generator=torch.Generator().manual_seed(5))
    slots = torch.zeros(12, 400, dtype=torch.uint8)
    put, came = torch.tensor([11, 0, 5, 2]), torch.tensor([8, 3, 3, 1])
    rows.pack_logs(slots[:, 40:376], x, target_rows=put, source_rows=came)
    assert torch.equal(slots[put, 40:376], packed_logs(x[came]))
    assert not slots[:, :40].any()
    assert not slots[:, 376:].any()
    places = put[torch.randint(0, 4, (7, 3), generator=torch.Generator().manual_seed(6))]
    places[0, 1] = places[3, 0] = places[5] = -1
    values = unpacked(slots[:, 40:376], 256)
    total = torch.zeros(7, 256)
    for k in range(3):
        part = values[places[:, k]] * weights[:, k, None]
        total += torch.where(places[:, k, None] >= 0, part, 0.0)
    out = torch.empty(7, 300, dtype=dtype)[:, :256]
    rows.sum_logs_into(out, slots[:, 40:376], places, weights)
    assert torch.equal(out, total.to(dtype))


def test_packed_rows_of_another_width_are_refused() -> None:
    x, places = random(2, 256), torch.zeros(2, 1, dtype=torch.int64)
    for wrong in (packed_logs(x)[:, 1:], packed_logs(x[:, :128].contiguous())):
        with pytest.raises(ValueError, match="for 256 channels: it must be 336 and whole blocks of 128"):
            rows.pack_logs(wrong, x)
        with pytest.raises(ValueError, match="for 256 channels: it must be 336 and whole blocks of 128"):
            rows.sum_logs_into(torch.empty(2, 256), wrong, places, torch.ones(2, 1))
    with pytest.raises(ValueError, match="places hold 2; there are 2 rows"):
        rows.sum_logs_into(torch.empty(2, 256), packed_logs(x), places + 2, torch.ones(2, 1))


def test_numbers_of_no_row_are_refused_before_anything_is_written() -> None:
    target, source = torch.zeros(2, 4), torch.ones(3, 4)
    for numbers in ([0, 3], [-1, 0]):
        with pytest.raises(ValueError, match="there are 3 rows"):
            rows.copy(target, source, source_rows=torch.tensor(numbers))
    with pytest.raises(ValueError, match="1 rows do not fit into 2"):
        rows.copy(target, source, source_rows=torch.tensor([1]))
    with pytest.raises(ValueError, match="places hold 3; there are 3 rows"):
        rows.sum_into(target, [source], torch.tensor([[0], [3]]))
    assert not target.any()


def test_memory_that_holds_no_rows_is_refused() -> None:
    good = np.zeros((2, 4), np.uint8)
    frozen = good.copy()
    frozen.flags.writeable = False
    for bad, words in (
        (np.zeros(8, np.uint8), "1 dimensions"),
        (good.T, "contiguous"),
        (frozen, "read-only"),
    ):
        with pytest.raises(BufferError, match=words):
            luciola_core.rows_copy(bad, good)
    with pytest.raises(BufferError, match="single bytes"):
        luciola_core.rows_copy(good.view(np.int32), good)
    with pytest.raises(BufferError, match="i64"):
        luciola_core.rows_copy(good, good, source_rows=np.zeros(2, np.int32))
    with pytest.raises(ValueError, match="it must be bfloat16 or float32"):
        luciola_core.rows_sum(good, [good], np.zeros(2, np.int64), number="float16")
