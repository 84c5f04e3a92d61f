"""Kernels compiled ahead of time: machine code gates, and a cache directory shared by many writers."""

import json
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from luciola.plugins.deepgemm import aot_cache
from luciola.plugins.kernels.errors import BadArgument
from machine_code import run_program

# Compiles in a process without the interpreter and prints what the gates say.
GATES = """
import json, sys
from luciola.plugins.deepgemm import aot_cache
from machine_code import machine_code

# Launched beside a fast kernel, by the Triton layer's rules.
PLAIN = ("split_sum_kernel", "paged_mqa_logits_metadata_kernel")

def look(call, layer, wanted=None):
    product = "QGMMA" if "fp8" in call.operator else "HGMMA"
    for each in aot_cache.compile_call(call, layer=layer):
        code = machine_code(each)
        if code.name in PLAIN:
            asked = []
        elif wanted is not None:
            asked = wanted
        else:
            asked = [product] if "gemm" in code.name or "logits_kernel" in code.name else []
            asked += ["UTMALDG"] if "gemm" in code.name and "prenorm" not in code.name else []
        # Memory bounds this one, not the order of its instructions.
        failures = code.failures(wanted=asked, serialised="prenorm" in code.name)
        yield {"call": str(call), "kernel": code.name, "failures": failures}

layer, given = sys.argv[1], json.load(sys.stdin)
found = []
for line, wanted in given["calls"]:
    for call in aot_cache.parse([line]):
        found += look(call, layer, wanted)
"""
# The same of kernels that are bad in one way each. Tiles are part of the key in Triton's cache; kernels that are bad by
# anything else are compiled again each time.
BAD = """
import tempfile
from triton.experimental.gluon.language._core import builtin
from luciola.plugins.deepgemm.gemm import hopper, hopper_products, launch, tiles

fp8, bf16 = aot_cache.parse(["fp8_gemm_nt m=4096 n=4096 k=7168", "bf16_gemm_nt m=4096 n=4096 k=7168"])

def with_tile(*choice):
    launch.choose = lambda *_sizes, **_details: tiles.Tile(*choice)
    return next(look(fp8, "triton"))["failures"]

def fast(call, wanted=()):
    return next(look(call, "hopper", wanted))["failures"]

wait = hopper_products.warpgroup_mma_wait

@builtin
def touched(outstanding=0, deps=None, _semantic=None):
    return wait(outstanding, deps=deps, _semantic=_semantic).__mul__(2.0, _semantic=_semantic)

bad = [
    ("no QGMMA", with_tile(16, 128, 128, 2, 4)),  # too few rows for the warpgroup's instruction
    ("shared memory", with_tile(128, 128, 128, 12, 8)),
    *((f"no {each}", fast(bf16, [each])) for each in ("QGMMA.64x128x32", "HGMMA.64x128x16")),
]
aot_cache.set_cache_dir(tempfile.mkdtemp(dir=sys.argv[2]))
hopper.CONSUMER_REGISTERS = 208  # two sums of 64 x 128 and an accumulator
bad.append(("spills", fast(fp8)))
hopper.CONSUMER_REGISTERS, hopper.TMA_BYTES = 240, 1 << 30
bad.append(("no UTMASTG", fast(fp8, ["UTMASTG"])))  # results that leave number by number
hopper.TMA_BYTES, hopper_products.warpgroup_mma_wait = 16, touched
hopper.CONSUMER_REGISTERS = 224  # a key of its own in the cache
bad.append(("wait for one another", fast(bf16)))  # sums that change while they are added to
"""
PRODUCTS = """
fp8_gemm_nt m=64,4096 n=4096 k=7168
fp8_gemm_nt_accumulate m=4096 n=7168 k=2048
bf16_gemm_nt m=4096 n=4096 k=7168
m_grouped_fp8_gemm_nt_contiguous groups=4 m=8192 n=4096 k=7168
m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=20 n=4096 k=7168
k_grouped_fp8_gemm_nt_contiguous groups=4 m=4096 n=7168 k=8192
k_grouped_bf16_gemm_tn_contiguous groups=4 m=4096 n=7168 k=8192
"""
OTHERS = """
quantize_activations m=4096 n=7168
fp8_mqa_logits s=2048 tokens=4096 heads=64 d=128
fp8_paged_mqa_logits b=16 next_n=2 heads=64 d=128 max_context_len=4096
einsum_bmk_bnk_mn b=4096 m=128 n=384 k=128
einsum_bhd_bhr_hdr b=4096 h=128 r=512 d=128
fp8_einsum_bhr_hdr_bhd b=4096 h=8 r=4096 d=1024
tf32_hc_prenorm_gemm m=4096 n=24 k=7168 num_splits=16
"""
BF16, WIDE, FP8 = "HGMMA.64x128x16", "HGMMA.64x256x16", "QGMMA.64x128x32"
ALWAYS = ("UTMALDG", "USETMAXREG")
FAST = {
    "fp8_gemm_nt m=16 n=2112 k=7168": ("QGMMA.64x16x32",),
    "fp8_gemm_nt m=128 n=24576 k=1536": ("QGMMA.64x64x32",),
    "m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=20 n=4096 k=7168": ("QGMMA.64x32x32",),
    "fp8_mqa_logits s=2048 tokens=4096 heads=64 d=128": ("QGMMA.64x64x32",),
    "fp8_paged_mqa_logits b=16 next_n=2 heads=64 d=128 max_context_len=4096": ("QGMMA.64x64x32",),
    "fp8_gemm_nt m=4096 n=4096 k=7168": (FP8, "UTMASTG"),  # 128 x 256
    "fp8_gemm_nt m=32768 n=128 k=7168": (FP8, "UTMASTG"),  # 256 x 128
    "fp8_gemm_nt_accumulate m=4096 n=7168 k=2048": (FP8,),
    "m_grouped_fp8_gemm_nt_contiguous groups=4 m=8192 n=7168 k=2048": (FP8, "UTMASTG"),
    "m_grouped_fp8_gemm_nt_contiguous_psum groups=4 m=8192 n=7168 k=2048": (FP8, "UTMASTG"),
    "m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=512 n=4096 k=7168": (FP8, "UTMASTG"),
    "k_grouped_fp8_gemm_nt_contiguous groups=4 m=4096 n=7168 k=8192": (FP8,),
    "bf16_gemm_nt m=128 n=4096 k=7168": (BF16,),
    "bf16_gemm_tn m=4096 n=4096 k=7168": (WIDE, "UTMASTG"),
    "m_grouped_bf16_gemm_nt_contiguous groups=4 m=8192 n=7168 k=2048": (WIDE, "UTMASTG"),
    "m_grouped_bf16_gemm_nn_contiguous groups=4 m=8192 n=7168 k=2048": (WIDE, "UTMASTG"),
    "m_grouped_bf16_gemm_nt_masked groups=8 max_m=4096 expected_m=512 n=4096 k=7168": (WIDE, "UTMASTG"),
    "k_grouped_bf16_gemm_tn_contiguous groups=4 m=4096 n=7168 k=8192": (BF16,),
}


def lines(text: str) -> list[tuple[str, None]]:
    """Calls, with the instructions that their layer wants."""
    return [(each, None) for each in text.splitlines()]


PIECES = {
    "triton": (GATES + BAD, "triton", lines(PRODUCTS + OTHERS)),
    "fast": (GATES + "bad = None", "hopper", [(call, [*ALWAYS, *wanted]) for call, wanted in FAST.items()]),
}
NAMES = {
    "triton": {
        "fp8_gemm_1d2d_kernel", "fp8_gemm_1d1d_kernel", "bf16_gemm_kernel",
        "m_grouped_contiguous_fp8_gemm_1d2d_kernel", "m_grouped_masked_fp8_gemm_1d2d_kernel",
        "k_grouped_fp8_gemm_1d1d_kernel", "k_grouped_bf16_gemm_kernel",
        "per_token_cast_kernel", "mqa_logits_kernel", "paged_mqa_logits_kernel", "paged_mqa_logits_metadata_kernel",
        "bmn_bnk_mn_gemm_impl", "batched_bf16_gemm_kernel", "batched_fp8_gemm_1d2d_kernel",
        "tf32_hc_prenorm_gemm_kernel",
    },
    "fast": {
        "fp8_gemm_1d2d_decode_ws_kernel", "m_grouped_masked_fp8_gemm_1d2d_decode_ws_kernel", "split_sum_kernel",
        "mqa_logits_ws_kernel", "paged_mqa_logits_ws_kernel", "paged_mqa_logits_metadata_kernel",
        "fp8_gemm_1d2d_ws_kernel", "fp8_gemm_1d1d_ws_kernel", "m_grouped_contiguous_fp8_gemm_1d2d_ws_kernel",
        "m_grouped_psum_fp8_gemm_1d2d_ws_kernel", "m_grouped_masked_fp8_gemm_1d2d_ws_kernel",
        "k_grouped_fp8_gemm_1d1d_ws_kernel",
        "bf16_gemm_ws_kernel", "m_grouped_contiguous_bf16_gemm_ws_kernel", "bf16_gemm_decode_ws_kernel",
        "m_grouped_masked_bf16_gemm_ws_kernel", "k_grouped_bf16_gemm_ws_kernel",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(two_at_once: Executor, warm_python: str, tmp_path_factory) -> dict[str, Callable]:
    """What the gates say of each piece. Kernels that have not changed come from Triton's cache, bad ones never."""
    own = str(tmp_path_factory.mktemp("kernels"))

    def compile_in_a_process(script: str, layer: str, calls: list) -> list:
        script += "\nprint(json.dumps([found, bad]))"
        return run_program(warm_python, "-c", script, layer, own, given=json.dumps({"calls": calls}))

    return {piece: two_at_once.submit(compile_in_a_process, *each).result for piece, each in PIECES.items()}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("piece", NAMES)
def test_every_kernel_compiles_for_hopper_as_it_should(compiled: dict, piece: str) -> None:
    found, _ = compiled[piece]()
    assert [each for each in found if each["failures"]] == []
    assert {each["kernel"] for each in found} == NAMES[piece]


@pytest.mark.timeout(600)
def test_gates_find_bad_kernels(compiled: dict) -> None:
    _, bad = compiled["triton"]()
    assert len(bad) == 7
    for wrong, messages in bad:
        assert any(wrong in each for each in messages), f"{wrong}: {messages}"


def entries(directory: Path) -> int:
    return len(list(directory.rglob("*.cubin")))


@pytest.mark.mount
def test_many_writers_fill_one_shared_directory(mounted_dir: Path) -> None:
    shapes, directory = "quantize_activations m=64,4096 n=512\n", mounted_dir / "kernels"
    command = (
        "-m",
        "luciola",
        "deepgemm",
        "warm",
        "-",
        "--cache-dir",
        str(directory),
        "--jobs",
        "1",
        "--json",
    )
    calls = aot_cache.parse(shapes.splitlines())
    with ThreadPoolExecutor() as threads:
        other = threads.submit(run_program, sys.executable, *command, given=shapes)
        mine = list(aot_cache.warm(calls, directory))
        assert len(mine) == len(other.result()) == 2
    count = entries(directory)
    again = list(aot_cache.warm(calls, directory))
    assert [each.cached for each in again] == [len(each.kernels) for each in again] == [1, 1]
    assert entries(directory) == count > 0


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("fp9_gemm m=1", "line 1: operator is fp9_gemm"),
        ("\nfp8_gemm_nt m=1 n=8", "line 2: fp8_gemm_nt lacks k"),
        ("fp8_gemm_nt m=1 n=8 k=x", "k is 'x'"),
        ("fp8_gemm_nt m=1 m=2 n=8 k=16", "each once"),
        ("fp8_gemm_nt m=0 n=8 k=16", "positive"),
    ],
)
def test_a_bad_line_is_named(text: str, message: str) -> None:
    with pytest.raises(BadArgument, match=message):
        aot_cache.parse(text.splitlines())


def test_lists_of_sizes_are_combined() -> None:
    calls = aot_cache.parse(["fp8_gemm_nt m=1,2 n=8 k=16,32  # all four", "# nothing"])
    assert [str(each) for each in calls] == [f"fp8_gemm_nt m={m} n=8 k={k}" for m in (1, 2) for k in (16, 32)]
