"""DeepGEMM's products on this machine's GPU, beside torch's own in the same run.

    python benchmarks/plugins/deepgemm.py [--only fp8_gemm_nt] [--json FILE]

Time of a call in a CUDA graph with a cold L2 cache (triton.testing.do_bench_cudagraph), random inputs; TFLOP/s, GB/s,
and the share of what the chip could do at best: the larger of the time to move the bytes and the time to multiply.
Without a GPU it says so and shows the machine code of every tile instead.
"""

import argparse
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from luciola.cli.output import print_table
from luciola.plugins import deepgemm
from luciola.plugins.deepgemm import warm
from luciola.plugins.deepgemm.testing import count_bytes

# (memory GB/s, FP8 TFLOP/s, BF16 TFLOP/s), dense, by data sheet.
PEAKS = {"H100": (3350, 1979, 989), "H800": (3350, 1979, 989), "H200": (4800, 1979, 989)}
SHAPES = [(2112, 7168), (24576, 1536), (32768, 512), (7168, 16384), (4096, 7168), (7168, 2048)]
ROWS = (64, 128, 4096)
GROUPS = [(4, 8192), (8, 4096)]
MASKED = [(1, 1024), (2, 512), (4, 256), (32, 20)]
GROUPED_SHAPES = [(4096, 7168), (7168, 2048)]
CODE = """
fp8_gemm_nt m=1,32,64,128,4096 n=4096 k=7168
fp8_gemm_nt_accumulate m=4096 n=7168 k=2048
bf16_gemm_nt m=64,4096 n=4096 k=7168
m_grouped_fp8_gemm_nt_contiguous groups=4 m=8192 n=4096 k=7168
m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=20,512 n=4096 k=7168
quantize_activations m=4096 n=7168
fp8_mqa_logits s=2048 tokens=4096 heads=64 d=128
fp8_paged_mqa_logits b=16 next_n=2 heads=64 d=128 max_context_len=4096
"""


@dataclass(frozen=True)
class Case:
    """One call, its cost, and torch's way to the same result, if there is one."""

    operator: str
    shape: str
    run: Callable[[], object]
    flops: float
    moved_bytes: int
    baseline: Callable[[], object] | None
    fp8: bool = True


@dataclass(frozen=True)
class Result:
    """What was measured of a case."""

    operator: str
    shape: str
    time_us: float
    tflops: float
    gb_s: float
    share_of_roofline: float | None
    baseline_over_ours: float | None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="operators whose name contains this")
    parser.add_argument("--json", metavar="FILE", help="write the figures there, too")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("There is no GPU here: no speed is measured. Machine code for sm_90a instead:\n")
        show_code()
        return
    name = torch.cuda.get_device_name()
    peaks = next((peak for card, peak in PEAKS.items() if card in name), None)
    print(f"{name}, torch {torch.__version__}\n")
    torch.manual_seed(0)
    results = [measure(case, peaks) for case in cases() if arguments.only in case.operator]
    print_table(
        ("OPERATOR", "SHAPE", "TIME us", "TFLOP/s", "GB/s", "ROOFLINE", "TORCH/OURS"),
        [row(each) for each in results],
        right=range(2, 7),
    )
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump({"card": name, "results": [asdict(each) for each in results]}, file, indent=2)


def row(result: Result) -> tuple[str, ...]:
    share = "" if result.share_of_roofline is None else f"{result.share_of_roofline:.0%}"
    ratio = "" if result.baseline_over_ours is None else f"{result.baseline_over_ours:.2f}"
    return (
        result.operator,
        result.shape,
        f"{result.time_us:.1f}",
        f"{result.tflops:.0f}",
        f"{result.gb_s:.0f}",
        share,
        ratio,
    )


def measure(case: Case, peaks: tuple[int, int, int] | None) -> Result:
    seconds = time_s(case.run)
    share = None
    if peaks is not None:
        best = max(case.moved_bytes / (peaks[0] * 1e9), case.flops / (peaks[1 if case.fp8 else 2] * 1e12))
        share = best / seconds
    ratio = None if case.baseline is None else time_s(case.baseline) / seconds
    return Result(
        case.operator,
        case.shape,
        seconds * 1e6,
        case.flops / seconds / 1e12,
        case.moved_bytes / seconds / 1e9,
        share,
        ratio,
    )


def time_s(call: Callable[[], object]) -> float:
    from triton.testing import do_bench_cudagraph

    return do_bench_cudagraph(call) / 1e3


def cases() -> Iterator[Case]:
    for m in ROWS:
        for n, k in SHAPES:
            yield dense(m, n, k)
    for m in ROWS:
        yield bf16(m, 4096, 7168)
    for n, k in GROUPED_SHAPES:
        for groups, m in GROUPS:
            yield contiguous(groups, m, n, k)
        for groups, m in MASKED:
            yield masked(groups, m, n, k)


def operands(m: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    return (
        torch.randn(m, k, device="cuda", dtype=torch.bfloat16),
        torch.randn(n, k, device="cuda", dtype=torch.bfloat16),
    )


def dense(m: int, n: int, k: int) -> Case:
    x, weight = operands(m, n, k)
    a, b = deepgemm.quantize_activations(x), deepgemm.per_block_cast_to_fp8(weight, False)
    d = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    return Case(
        "fp8_gemm_nt",
        f"{m} x {n} x {k}",
        lambda: deepgemm.fp8_gemm_nt(a, b, d),
        2.0 * m * n * k,
        count_bytes(a, b, d),
        torch_block_scaled(a, b),
    )


def torch_block_scaled(a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Callable[[], object] | None:
    """torch's product with the same scales, where this build of torch has it."""
    from torch.nn import functional

    kinds = getattr(functional, "ScalingType", None)
    if kinds is None:
        return None

    def call() -> Tensor:
        return functional.scaled_mm(
            a[0],
            b[0].T,
            a[1],
            kinds.BlockWise1x128,
            b[1].T,
            kinds.BlockWise128x128,
            output_dtype=torch.bfloat16,
        )

    try:
        call()
    except (RuntimeError, ValueError, TypeError) as error:
        print(f"torch's block-scaled product does not run here: {error}")
        return None
    return call


def bf16(m: int, n: int, k: int) -> Case:
    x, weight = operands(m, n, k)
    d = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
    return Case(
        "bf16_gemm_nt",
        f"{m} x {n} x {k}",
        lambda: deepgemm.bf16_gemm_nt(x, weight, d),
        2.0 * m * n * k,
        count_bytes(x, weight, d),
        lambda: torch.matmul(x, weight.T, out=d),
        fp8=False,
    )


def experts(groups: int, n: int, k: int) -> tuple[Tensor, Tensor]:
    parts = [
        deepgemm.per_block_cast_to_fp8(torch.randn(n, k, device="cuda", dtype=torch.bfloat16), False)
        for _ in range(groups)
    ]
    return torch.stack([each[0] for each in parts]), torch.stack([each[1] for each in parts])


def contiguous(groups: int, m: int, n: int, k: int) -> Case:
    b = experts(groups, n, k)
    a = deepgemm.quantize_activations(torch.randn(groups * m, k, device="cuda", dtype=torch.bfloat16))
    layout = torch.arange(groups, device="cuda", dtype=torch.int32).repeat_interleave(m)
    d = torch.empty(groups * m, n, device="cuda", dtype=torch.bfloat16)
    return Case(
        "m_grouped_fp8_gemm_nt_contiguous",
        f"{groups} x {m} x {n} x {k}",
        lambda: deepgemm.m_grouped_fp8_gemm_nt_contiguous(a, b, d, layout),
        2.0 * groups * m * n * k,
        count_bytes(a, b, d),
        None,
    )


def masked(groups: int, m: int, n: int, k: int) -> Case:
    b = experts(groups, n, k)
    values, scales = deepgemm.quantize_activations(
        torch.randn(groups * m, k, device="cuda", dtype=torch.bfloat16)
    )
    a = (values.view(groups, m, k), scales.contiguous().view(groups, m, -1))
    d = torch.empty(groups, m, n, device="cuda", dtype=torch.bfloat16)
    counts = torch.full((groups,), m, device="cuda", dtype=torch.int32)
    return Case(
        "m_grouped_fp8_gemm_nt_masked",
        f"{groups} x {m} x {n} x {k}",
        lambda: deepgemm.m_grouped_fp8_gemm_nt_masked(a, b, d, counts, m),
        2.0 * groups * m * n * k,
        count_bytes(a, b, d),
        None,
    )


def show_code() -> None:
    from luciola.plugins.kernels.ahead import machine_code

    rows = []
    for call in warm.parse(CODE.splitlines()):
        for kernel in warm.compile_call(call):
            code = machine_code(kernel)
            rows.append(
                (
                    str(call),
                    code.name,
                    str(code.registers),
                    str(code.spills),
                    f"{code.shared_bytes / 1024:.0f}",
                    str(code.instructions["QGMMA"] + code.instructions["HGMMA"]),
                    str(code.instructions["UTMALDG"]),
                )
            )
    print_table(
        ("CALL", "KERNEL", "REGISTERS", "SPILLS", "SHARED KiB", "WGMMA", "TMA LOADS"), rows, right=range(2, 7)
    )


if __name__ == "__main__":
    main()
