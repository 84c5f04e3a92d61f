"""Random calls, with poison wherever a call must not look, and FlashMLA's measure of closeness."""

import os
import random
from dataclasses import dataclass

import torch

NAN = float("nan")
DEVICE = os.environ.get("LUCIOLA_TEST_DEVICE", "cpu")  # tensors are made on the CPU, by seeds, and go there
WILD = 2147480000  # a page number that no kernel may follow


@dataclass
class Dense:
    q: torch.Tensor
    k_cache: torch.Tensor
    block_table: torch.Tensor
    cache_seqlens: torch.Tensor

    @property
    def arguments(self):
        return self.q, self.k_cache, self.block_table, self.cache_seqlens


def dense(seed, lengths, *, s_q=1, h_q=4, h_kv=1, page=64, dtype=torch.bfloat16):
    """Pages in random order; NaN in every slot and page, and wild numbers in every table entry, that is not used."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = random.Random(seed)
    per = [-(-length // page) for length in lengths]
    pages = list(range(sum(per) + 2))
    shuffled.shuffle(pages)
    table = torch.full((len(lengths), max(per, default=0) + 1), WILD, dtype=torch.int32, device="cpu")
    cache = torch.full((len(pages), page, h_kv, 576), NAN, dtype=dtype, device="cpu")
    for request, length in enumerate(lengths):
        for place in range(per[request]):
            number = pages.pop()
            table[request, place] = number
            used = min(page, length - place * page)
            rows = torch.randn((used, h_kv, 576), generator=generator, device="cpu") / 10
            cache[number, :used] = rows.clamp(-1, 1).to(dtype)
    q = (torch.randn((len(lengths), s_q, h_q, 576), generator=generator, device="cpu") / 10).to(dtype)
    seqlens = torch.tensor(lengths, dtype=torch.int32, device="cpu")
    return Dense(*(each.to(DEVICE) for each in (q, cache, table, seqlens)))


def rows(seed, *shape):
    generator = torch.Generator().manual_seed(seed)
    return (
        (torch.randn(shape, generator=generator, device="cpu") / 10).clamp(-1, 1).to(DEVICE, torch.bfloat16)
    )


def indices(seed, shape, slots, *, holes=0.2):
    """Slot numbers, some of which are -1 or otherwise name nothing."""
    generator = torch.Generator().manual_seed(seed)
    found = torch.randint(0, max(slots, 1), shape, generator=generator, dtype=torch.int32, device="cpu")
    hole = torch.rand(shape, generator=generator, device="cpu") < (holes if slots else 2.0)
    return found.masked_fill(hole, -1).to(DEVICE)


def assert_close(got, want, *, absolute=8e-4, relative=2.01 / 128, cosine=5e-6):
    """Every number within `absolute` or `relative`, infinities in the same places, and the directions alike.

    The bounds are those of FlashMLA's tests of dense decoding.
    """
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    a, b = got.double(), want.double()
    assert not a.isnan().any(), "a NaN leaked"
    assert torch.equal(a.isinf(), b.isinf())
    assert torch.equal(a[a.isinf()], b[b.isinf()])
    a, b = a[a.isfinite()], b[b.isfinite()]
    error = (a - b).abs()
    close = (error < absolute) | (error < relative * b.abs())
    assert close.all(), f"{(~close).sum()} of {close.numel()} numbers differ, by up to {error.max()}"
    if scale := float((a * a + b * b).sum()):
        assert 1 - 2 * float((a * b).sum()) / scale < cosine


def assert_close_lse(got, want):
    assert_close(got, want, absolute=1e-6, relative=8.01 / 65536, cosine=1.0)
