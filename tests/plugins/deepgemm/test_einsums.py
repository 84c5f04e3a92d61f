"""Einstein sums: kernels and reference against float32 sums, with NaN behind every row."""

import pytest
import torch

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument, BadType
from luciola.plugins.kernels.layers import using_layer
from luciola.plugins.kernels.quantize import dequantize

POISON = float("nan")


@pytest.fixture(params=["reference", "triton"])
def _layer(request):
    with using_layer(request.param):
        yield


def spread(*shape, dtype=torch.bfloat16):
    """Random numbers whose rows have NaN behind them."""
    whole = torch.full((*shape[:2], shape[2] + 8), POISON, dtype=dtype)
    whole[..., : shape[2]] = torch.randn(shape).to(dtype)
    return whole[..., : shape[2]]


@pytest.mark.usefixtures("_layer")
@pytest.mark.parametrize(("batches", "m", "n", "k"), [(1, 16, 24, 32), (9, 130, 40, 72), (5, 64, 136, 8)])
def test_sum_over_batches(batches, m, n, k):
    a, b = spread(batches, m, k), spread(batches, n, k)
    want = torch.einsum("bmk,bnk->mn", a.float(), b.float())
    d = torch.full((m, n), POISON, dtype=torch.bfloat16)
    deepgemm.einsum("bmk,bnk->mn", a, b, d)
    assert deepgemm.calc_diff(d, want) < 1e-5
    c = torch.randn(m, n) * 100
    added = c.clone()
    deepgemm.einsum("bmk,bnk->mn", a, b, added, added)
    assert deepgemm.calc_diff(added, want + c) < 1e-9


@pytest.mark.usefixtures("_layer")
@pytest.mark.parametrize(("b", "h", "r", "d"), [(1, 2, 64, 8), (70, 3, 72, 40), (5, 1, 200, 136)])
def test_products_of_heads(b, h, r, d):
    x, y = spread(b, h, r), spread(h, d, r)
    z = torch.full((b, h, d), POISON, dtype=torch.bfloat16)
    deepgemm.einsum("bhr,hdr->bhd", x, y, z)
    assert deepgemm.calc_diff(z, torch.einsum("bhr,hdr->bhd", x.float(), y.float())) < 1e-5
    x = spread(b, h, d)
    z = torch.full((b, h, r), POISON, dtype=torch.bfloat16)
    deepgemm.einsum("bhd,hdr->bhr", x, y, z)
    assert deepgemm.calc_diff(z, torch.einsum("bhd,hdr->bhr", x.float(), y.float())) < 1e-5


@pytest.mark.usefixtures("_layer")
@pytest.mark.parametrize("b", [1, 70])
def test_gradient_of_heads(b):
    x, y = spread(b, 2, 40), spread(b, 2, 72)
    want = torch.einsum("bhd,bhr->hdr", x.float(), y.float())
    c = torch.randn(2, 40, 72)
    for added in (None, c):
        d = torch.full_like(c, POISON)
        deepgemm.einsum("bhd,bhr->hdr", x, y, d, added)
        assert deepgemm.calc_diff(d, want if added is None else want + added) < 1e-9


@pytest.mark.usefixtures("_layer")
@pytest.mark.parametrize(("b", "h", "r", "d"), [(1, 2, 128, 8), (70, 2, 272, 136)])
def test_fp8_product_of_heads(b, h, r, d):
    values, scales = deepgemm.per_token_cast_to_fp8(torch.randn(b * h, r), False)
    a = values.view(b, h, r), scales.view(b, h, -1)
    parts = [deepgemm.per_block_cast_to_fp8(torch.randn(d, r), False) for _ in range(h)]
    y = tuple(torch.stack([each[side] for each in parts]) for side in (0, 1))
    z = torch.full((b, h, d), POISON, dtype=torch.bfloat16)
    deepgemm.fp8_einsum("bhr,hdr->bhd", a, y, z)
    plain = dequantize(*a), dequantize(*y, gran_m=128)
    assert deepgemm.calc_diff(z, torch.einsum("bhr,hdr->bhd", *plain)) < 1e-5


@pytest.mark.usefixtures("_layer")
def test_nothing_to_sum_is_zero_or_what_is_added():
    c = torch.randn(16, 24)
    for added, want in ((None, 0.0), (c, c)):
        d = torch.full_like(c, POISON)
        none = torch.empty(0, 16, 32, dtype=torch.bfloat16), torch.empty(0, 24, 32, dtype=torch.bfloat16)
        deepgemm.einsum("bmk,bnk->mn", *none, d, added)
        assert bool((d == want).all())


def test_torch_s_own_product_is_there():
    x, y, z = spread(3, 2, 64), spread(2, 8, 64), torch.empty(3, 2, 8, dtype=torch.bfloat16)
    deepgemm.einsum("bhr,hdr->bhd", x, y, z, use_cublaslt=True)
    assert deepgemm.calc_diff(z, torch.einsum("bhr,hdr->bhd", x.float(), y.float())) < 1e-5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"expr": "ab,bc->ac"}, "bmk,bnk->mn, bhr,hdr->bhd"),
        ({"a": torch.empty(2, 16, 32)}, "a has dtype torch.float32"),
        ({"a": torch.empty(3, 16, 32, dtype=torch.bfloat16)}, '"b" of bmk,bnk->mn is 3 in a and 2 in b'),
        ({"d": torch.empty(16, 16)}, r"it must be \(16, 24\)"),
        ({"a": torch.empty(2, 32, 16, dtype=torch.bfloat16).mT}, "last dimension must be contiguous"),
        ({"a": torch.empty(2, 16, 36, dtype=torch.bfloat16)[..., :32]}, "multiples of 16 bytes"),
        ({"c": torch.empty(16, 24)}, "leave c out"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    given = {
        "expr": "bmk,bnk->mn",
        "a": torch.empty(2, 16, 32, dtype=torch.bfloat16),
        "b": torch.empty(2, 24, 32, dtype=torch.bfloat16),
        "d": torch.empty(16, 24, dtype=torch.bfloat16),
    }
    moved = {name: each.to(given["b"].device) for name, each in changes.items() if name != "expr"}
    with pytest.raises((BadArgument, BadType), match=message):
        deepgemm.einsum(**{**given, **changes, **moved})


def test_fp8_sums_that_the_chip_cannot_do_are_refused():
    pair = torch.empty(2, 2, 128, dtype=torch.float8_e4m3fn), torch.empty(2, 2, 1)
    d = torch.empty(2, 2, 2, dtype=torch.bfloat16)
    with pytest.raises(BadArgument, match="contiguous along what is summed: bhr,hdr->bhd"):
        deepgemm.fp8_einsum("bhd,hdr->bhr", pair, pair, d)
    with pytest.raises(BadArgument, match="do not accumulate"):
        deepgemm.fp8_einsum("bhr,hdr->bhd", pair, pair, d, d)
