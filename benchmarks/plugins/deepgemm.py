"""DeepGEMM's products on this machine's GPU, beside torch's own in the same run.

    python benchmarks/plugins/deepgemm.py [--only fp8_gemm_nt] [--json FILE]

Time of a call in a CUDA graph with a cold L2 cache, random inputs, every layer that has the operator; TFLOP/s, GB/s,
the share of what the chip could do at best (the larger of the time to move the bytes and the time to multiply), and
torch's fastest way over ours. A failed case is reported, and the others still run.
Without a GPU it says so.
"""

import argparse
import json
from collections.abc import Callable, Iterator

import torch
from measuring import Case, Work, measure, print_figures, print_lines
from torch import Tensor

from luciola.plugins import deepgemm
from luciola.plugins.compat.deep_gemm.testing import count_bytes

SHAPES = [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
ROWS = (64, 128, 4096)
GROUPS = [(4, 8192), (8, 4096)]
MASKED = [(1, 1024), (2, 512), (4, 256), (32, 20)]
GROUPED_SHAPES = [(4096, 7168), (7168, 2048)]
BOTH = ("triton", "hopper")
HEADS = [(128, 512, 128), (8, 4096, 1024)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    parser.add_argument(
        "--lines", type=int, metavar="FIRST", help="cases from that number on, as lines of JSON"
    )
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: no speed is measured.")
        return
    torch.manual_seed(0)
    chosen = [case for case in cases() if arguments.only in case.operator]
    if arguments.lines is not None:
        print_lines(chosen, arguments.lines)
        return
    name = torch.cuda.get_device_name()
    print(f"{name}, torch {torch.__version__}\n")
    figures = [line for case in chosen for line in measure(case)]
    print_figures(figures)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"card": name, "figures": figures}, file, indent=2)


def cases() -> Iterator[Case]:
    yield from products()
    yield from grouped_products()
    for h, r, d in HEADS:
        for b in (32, 4096):
            shape, given = f"b {b} h {h} r {r} d {d}", {"b": b, "h": h, "r": r, "d": d}
            for expr in ("bhr,hdr->bhd", "bhd,hdr->bhr"):
                yield Case(f"einsum {expr}", shape, lambda given=given, expr=expr: heads(expr, **given))
    yield Case("fp8_einsum bhr,hdr->bhd", "b 4096 h 8 r 4096 d 1024", lambda: fp8_heads(4096, 8, 4096, 1024))
    yield Case("fp8_mqa_logits", "s 4096 tokens 8192 h 64 d 128", lambda: logits(4096, 8192, 64, 128), BOTH)
    yield Case(
        "fp8_paged_mqa_logits", "b 64 x 2 tokens 8192 h 64 d 128", lambda: paged(64, 2, 8192, 64, 128), BOTH
    )


def products() -> Iterator[Case]:
    for m in ROWS:
        for n, k in SHAPES:
            yield Case("fp8_gemm_nt", f"{m} x {n} x {k}", lambda m=m, n=n, k=k: dense(m, n, k), BOTH)
    yield Case("fp8_gemm_nt (1, 1, 128)", "4096 x 7168 x 2048", lambda: accumulated(4096, 7168, 2048), BOTH)
    for m in ROWS:
        yield Case("bf16_gemm_nt", f"{m} x 4096 x 7168", lambda m=m: bf16(m, 4096, 7168), BOTH)
    yield Case("bf16_gemm_nt", "8192 x 8192 x 8192", lambda: bf16(8192, 8192, 8192), BOTH)


def grouped_products() -> Iterator[Case]:
    for n, k in GROUPED_SHAPES:
        for groups, m in GROUPS:
            shape, given = f"{groups} x {m} x {n} x {k}", {"groups": groups, "m": m, "n": n, "k": k}
            name = "m_grouped_fp8_gemm_nt_contiguous"
            yield Case(name, shape, lambda given=given: contiguous(**given, psum=False), BOTH)
            yield Case(f"{name} by ends", shape, lambda given=given: contiguous(**given, psum=True), BOTH)
        for groups, m in MASKED:
            shape, given = f"{groups} x {m} x {n} x {k}", {"groups": groups, "m": m, "n": n, "k": k}
            name = "m_grouped_fp8_gemm_nt_masked"
            yield Case(name, shape, lambda given=given: masked(**given), BOTH)
        shape, given = f"4 x 8192 x {n} x {k}", {"groups": 4, "m": 8192, "n": n, "k": k}
        yield Case("m_grouped_bf16_gemm_nt_contiguous", shape, lambda given=given: bf16_groups(**given), BOTH)
    name, sizes = "k_grouped_fp8_gemm_nt_contiguous", (4, 4096, 7168, 8192)
    yield Case(name, "4 x 4096 x 7168 x 8192", lambda: k_grouped(*sizes), BOTH)


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16)


def dense(m: int, n: int, k: int) -> Work:
    x, weight = random(m, k), random(n, k)
    a, b = deepgemm.quantize_activations(x), deepgemm.per_block_cast_to_fp8(weight, False)
    d = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    ways = {"scaled_mm": torch_block_scaled(a, b), "bf16 matmul": lambda: x @ weight.T}
    return Work(
        lambda: deepgemm.fp8_gemm_nt(a, b, d),
        2.0 * m * n * k,
        count_bytes(a, b, d),
        d,
        fp8=True,
        torch_ways=ways,
    )


def accumulated(m: int, n: int, k: int) -> Work:
    a, b = (deepgemm.per_token_cast_to_fp8(random(rows, k), False) for rows in (m, n))
    d = torch.zeros(m, n, device="cuda")
    run = lambda: deepgemm.fp8_gemm_nt(a, b, d, d, recipe=(1, 1, 128))  # noqa: E731
    return Work(run, 2.0 * m * n * k, count_bytes(a, b, d, d), d, fp8=True, prepare=d.zero_)


def torch_block_scaled(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Callable[[], object]:
    """torch's product with the same scales; builds of torch without it raise."""
    from torch.nn import functional

    def call() -> Tensor:
        kinds = functional.ScalingType
        return functional.scaled_mm(
            a[0],
            b[0].T,
            a[1],
            kinds.BlockWise1x128,
            b[1].T,
            kinds.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    return call


def bf16(m: int, n: int, k: int) -> Work:
    x, weight = random(m, k), random(n, k)
    d = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    ways = {"matmul": lambda: torch.matmul(x, weight.T)}
    moved = count_bytes(x, weight, d)
    return Work(lambda: deepgemm.bf16_gemm_nt(x, weight, d), 2.0 * m * n * k, moved, d, torch_ways=ways)


def bf16_groups(groups: int, m: int, n: int, k: int) -> Work:
    x, weights = random(groups * m, k), random(groups, n, k)
    layout = torch.arange(groups, device="cuda", dtype=torch.int32).repeat_interleave(m)
    d = torch.empty(groups * m, n, device="cuda", dtype=torch.bfloat16)
    return Work(
        lambda: deepgemm.m_grouped_bf16_gemm_nt_contiguous(x, weights, d, layout),
        2.0 * groups * m * n * k,
        count_bytes(x, weights, d),
        d,
        torch_ways=torch_grouped(x, weights, rows_of(groups, m)),
    )


def rows_of(groups: int, m: int) -> Tensor:
    """Where each group's rows end."""
    return (torch.arange(groups, device="cuda", dtype=torch.int32) + 1) * m


def torch_grouped(x: Tensor, weights: Tensor, ends: Tensor) -> dict[str, Callable[[], Tensor]]:
    """torch's grouped product of (rows, k) in bfloat16 with (groups, n, k), and one of equal groups."""
    groups = len(weights)
    return {
        "grouped_mm": lambda: torch._grouped_mm(x, weights.mT, ends),  # noqa: SLF001
        "bmm": lambda: torch.bmm(x.view(groups, -1, x.shape[1]), weights.mT).flatten(0, 1),
    }


def torch_grouped_along_k(x: Tensor, y: Tensor, ends: Tensor) -> dict[str, Callable[[], Tensor]]:
    """torch's products of (all k, m) and (all k, n) in bfloat16, (groups, m, n): the gradients of weights."""
    return {"bf16 grouped_mm": lambda: torch._grouped_mm(x.mT, y, ends)}  # noqa: SLF001


def torch_grouped_fp8(
    a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], m: int
) -> dict[str, Callable[[], object]]:
    """In FP8 torch's grouped product has one scale a row, so the numbers differ and the work hardly; or one by one.

    a: (groups * m, k) with its scales, b: (groups, n, k) with its scales. In bfloat16 beside them.
    """
    groups, n, _ = b[0].shape
    ends = rows_of(groups, m)
    by_row, by_column = (torch.ones(size, device="cuda") for size in ((groups * m,), (groups, n)))
    x, weights = a[0].bfloat16(), b[0].bfloat16()

    def one_scale_a_row() -> Tensor:
        return torch._scaled_grouped_mm(  # noqa: SLF001
            a[0], b[0].mT, by_row, by_column, ends, out_dtype=torch.bfloat16, use_fast_accum=False
        )

    return {
        "scaled_mm, groups one by one": one_by_one(a, b, m),
        "scaled_grouped_mm, a scale a row": one_scale_a_row,
        **{f"bf16 {name}": way for name, way in torch_grouped(x, weights, ends).items()},
    }


def experts(groups: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    parts = [deepgemm.per_block_cast_to_fp8(random(n, k), False) for _ in range(groups)]
    return torch.stack([each[0] for each in parts]), torch.stack([each[1] for each in parts])


def one_by_one(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], m: int) -> Callable[[], object]:
    """torch's product of each group on its own: it has no grouped one with such scales."""
    calls = []
    for group, (values, scales) in enumerate(zip(*b, strict=True)):
        rows = slice(group * m, (group + 1) * m)
        own = a[0][rows], a[1].T[:, rows].contiguous().T
        calls.append(torch_block_scaled(own, (values, scales)))
    return lambda: [call() for call in calls]


def contiguous(groups: int, m: int, n: int, k: int, *, psum: bool) -> Work:
    b, a = experts(groups, n, k), deepgemm.quantize_activations(random(groups * m, k))
    layout = torch.arange(groups, device="cuda", dtype=torch.int32).repeat_interleave(m)
    ends = rows_of(groups, m)
    d = torch.empty(groups * m, n, device="cuda", dtype=torch.bfloat16)
    by = ends if psum else layout
    return Work(
        lambda: deepgemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, by, use_psum_layout=psum),
        2.0 * groups * m * n * k,
        count_bytes(a, b, d),
        d,
        fp8=True,
        torch_ways=torch_grouped_fp8(a, b, m),
    )


def masked(groups: int, m: int, n: int, k: int) -> Work:
    b = experts(groups, n, k)
    values, scales = deepgemm.quantize_activations(random(groups * m, k))
    a = (values.view(groups, m, k), scales.contiguous().view(groups, m, -1))
    d = torch.empty(groups, m, n, device="cuda", dtype=torch.bfloat16)
    counts = torch.full((groups,), m, device="cuda", dtype=torch.int32)
    return Work(
        lambda: deepgemm.m_grouped_fp8_gemm_nt_masked(a, b, d, counts, m),
        2.0 * groups * m * n * k,
        count_bytes(a, b, d),
        d,
        fp8=True,
        torch_ways=torch_grouped_fp8((values, scales), b, m),
    )


def k_grouped(groups: int, m: int, n: int, k: int) -> Work:
    def flat(rows: int) -> tuple[Tensor, Tensor]:
        parts = [deepgemm.per_token_cast_to_fp8(random(rows, k), False) for _ in range(groups)]
        return torch.cat([each[0].flatten() for each in parts]), torch.cat([each[1] for each in parts], dim=1)

    a, b, ks = flat(m), flat(n), [k] * groups
    sizes, d = torch.tensor(ks, device="cuda", dtype=torch.int32), torch.zeros(groups, m, n, device="cuda")
    run = lambda: deepgemm.k_grouped_fp8_gemm_nt_contiguous(a, b, d, ks, sizes, d)  # noqa: E731
    ways = torch_grouped_along_k(random(groups * k, m), random(groups * k, n), rows_of(groups, k))
    moved = count_bytes(a, b, d, d)
    return Work(run, 2.0 * groups * m * n * k, moved, d, fp8=True, prepare=d.zero_, torch_ways=ways)


def heads(expr: str, b: int, h: int, r: int, d: int) -> Work:
    last, out = (r, d) if expr.startswith("bhr") else (d, r)
    x, y, z = random(b, h, last), random(h, d, r), torch.empty(b, h, out, device="cuda", dtype=torch.bfloat16)
    ways = {"einsum": lambda: torch.einsum(expr, x, y)}
    return Work(
        lambda: deepgemm.einsum(expr, x, y, z), 2.0 * b * h * r * d, count_bytes(x, y, z), z, torch_ways=ways
    )


def fp8_heads(b: int, h: int, r: int, d: int) -> Work:
    x, y = random(b, h, r), random(h, d, r)
    values, scales = deepgemm.per_token_cast_to_fp8(x.view(-1, r), False)
    parts = [deepgemm.per_block_cast_to_fp8(each, False) for each in y]
    weights = torch.stack([each[0] for each in parts]), torch.stack([each[1] for each in parts])
    a, z = (values.view(b, h, r), scales.view(b, h, -1)), torch.empty(b, h, d, device="cuda", dtype=x.dtype)
    return Work(
        lambda: deepgemm.fp8_einsum("bhr,hdr->bhd", a, weights, z),
        2.0 * b * h * r * d,
        count_bytes(a, weights, z),
        z,
        fp8=True,
        torch_ways={"bf16 einsum": lambda: torch.einsum("bhr,hdr->bhd", x, y)},
    )


def logits(s: int, tokens: int, h: int, d: int) -> Work:
    q, keys = random(s, h, d).to(torch.float8_e4m3fn), random(tokens, d).to(torch.float8_e4m3fn)
    sf, weights = torch.rand(tokens, device="cuda"), torch.randn(s, h, device="cuda")
    starts = torch.zeros(s, device="cuda", dtype=torch.int32)
    ends = torch.full_like(starts, tokens)
    moved = count_bytes(q, keys, sf, weights) + 4.0 * s * tokens
    run = lambda: deepgemm.fp8_mqa_logits(q, (keys, sf), weights, starts, ends)  # noqa: E731
    return Work(run, 2.0 * s * tokens * h * d, moved, fp8=True)


def paged(b: int, next_n: int, tokens: int, h: int, d: int) -> Work:
    pages = tokens // 64
    q, values = (
        random(b, next_n, h, d).to(torch.float8_e4m3fn),
        random(b * pages, 64 * d).to(torch.float8_e4m3fn),
    )
    scales = torch.rand(b * pages, 64, device="cuda")
    cache = torch.cat([each.view(torch.uint8) for each in (values, scales)], 1).view(b * pages, 64, 1, d + 4)
    table = torch.randperm(b * pages, device="cuda", dtype=torch.int32).view(b, pages)
    lengths, weights = (
        torch.full((b, next_n), tokens, device="cuda", dtype=torch.int32),
        torch.randn(b * next_n, h, device="cuda"),
    )
    schedule = deepgemm.get_paged_mqa_logits_metadata(lengths, 64, deepgemm.get_num_sms())
    run = lambda: deepgemm.fp8_paged_mqa_logits(q, cache, weights, lengths, table, schedule, tokens)  # noqa: E731
    return Work(
        run,
        2.0 * b * next_n * tokens * h * d,
        count_bytes(q, cache, weights) + 4.0 * b * next_n * tokens,
        fp8=True,
    )


if __name__ == "__main__":
    main()
