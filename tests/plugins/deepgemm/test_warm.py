"""Kernels compiled ahead of time: machine code gates, and a cache directory shared by many writers."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from pathlib import Path

import pytest

from luciola.plugins.deepgemm import warm
from luciola.plugins.kernels.errors import BadArgument

# Compiles in a process without the interpreter and prints what the gates say.
GATES = """
import json, sys
from luciola.plugins.deepgemm import hopper, launch, tiles, warm
from luciola.plugins.kernels.ahead import machine_code

def look(call, layer):
    product, depth = ("QGMMA", 32) if "fp8" in call.operator else ("HGMMA", 16)
    for each in warm.compile_call(call, layer=layer):
        code = machine_code(each)
        wanted = [product] if "gemm" in code.name or "logits_kernel" in code.name else []
        wanted += ["UTMALDG"] if "gemm" in code.name and "prenorm" not in code.name else []
        wanted += [f"{product}.64x128x{depth}", "USETMAXREG"] if "_ws_" in code.name else []
        yield {"call": str(call), "kernel": code.name, "failures": code.failures(wanted=wanted)}

def with_tile(choice):
    launch.choose = lambda *_sizes, **_details: tiles.Tile(*choice)
    return next(look(dense, "triton"))["failures"]

layer, given = sys.argv[1], json.load(sys.stdin)
found = [each for call in warm.parse(given["calls"].splitlines()) for each in look(call, layer)]
dense, = warm.parse(["fp8_gemm_nt m=4096 n=4096 k=7168"])
bad = [with_tile(each) for each in given["tiles"]]
if given["tiles"]:
    hopper.STAGES = 8
    bad.append(next(look(dense, layer))["failures"])
print(json.dumps([found, bad]))
"""
PRODUCTS = """
fp8_gemm_nt m=64,128,4096 n=4096 k=7168
fp8_gemm_nt_accumulate m=4096 n=7168 k=2048
bf16_gemm_nt m=64,4096 n=4096 k=7168
bf16_gemm_tn m=4096 n=4096 k=7168
m_grouped_fp8_gemm_nt_contiguous groups=4 m=8192 n=4096 k=7168
m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=20,512 n=4096 k=7168
k_grouped_fp8_gemm_nt_contiguous groups=4 m=4096 n=7168 k=8192
k_grouped_bf16_gemm_tn_contiguous groups=4 m=4096 n=7168 k=8192
"""
OTHERS = """
quantize_activations m=4096 n=7168
fp8_mqa_logits s=2048 tokens=4096 heads=64 d=128
fp8_paged_mqa_logits b=16 next_n=2 heads=64 d=128 max_context_len=4096
einsum_bmk_bnk_mn b=4096 m=128 n=384 k=128
einsum_bhd_hdr_bhr b=4096 h=128 r=512 d=128
einsum_bhd_bhr_hdr b=4096 h=128 r=512 d=128
fp8_einsum_bhr_hdr_bhd b=4096 h=8 r=4096 d=1024
tf32_hc_prenorm_gemm m=4096 n=24 k=7168 num_splits=16
"""
FAST = """
fp8_gemm_nt m=4096 n=4096 k=7168
fp8_gemm_nt_accumulate m=4096 n=7168 k=2048
m_grouped_fp8_gemm_nt_contiguous groups=4 m=8192 n=7168 k=2048
m_grouped_fp8_gemm_nt_contiguous_psum groups=4 m=8192 n=7168 k=2048
m_grouped_fp8_gemm_nt_masked groups=8 max_m=4096 expected_m=512 n=4096 k=7168
k_grouped_fp8_gemm_nt_contiguous groups=4 m=4096 n=7168 k=8192
k_grouped_bf16_gemm_tn_contiguous groups=4 m=4096 n=7168 k=8192
"""
BAD_TILES = [
    [128, 256, 128, 3, 4],  # accumulators that cannot fit the registers
    [16, 128, 128, 2, 4],  # too few rows for the warpgroup's instruction
    [128, 128, 128, 12, 8],
]
WRONG = ["spills", "no QGMMA", "shared memory", "shared memory"]  # the last one: a fast path of eight slots


def compile_in_a_process(layer: str, given: dict, cache: Path) -> list:
    environment = {**os.environ, "TRITON_CACHE_DIR": str(cache)}
    environment.pop("TRITON_INTERPRET", None)
    done = subprocess.run(
        [sys.executable, "-c", GATES, layer],
        input=json.dumps(given), capture_output=True, text=True, timeout=500, check=False, env=environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


PIECES = {
    "products": ("triton", PRODUCTS, []),
    "others": ("triton", OTHERS, []),
    "fast": ("hopper", FAST, []),
    "bad": ("hopper", "", BAD_TILES),
}
NAMES = {
    "products": {
        "fp8_gemm_1d2d_kernel", "fp8_gemm_1d1d_kernel", "bf16_gemm_kernel",
        "m_grouped_contiguous_fp8_gemm_1d2d_kernel", "m_grouped_masked_fp8_gemm_1d2d_kernel",
        "k_grouped_fp8_gemm_1d1d_kernel", "k_grouped_bf16_gemm_kernel",
    },
    "others": {
        "per_token_cast_kernel", "mqa_logits_kernel", "paged_mqa_logits_kernel", "paged_mqa_logits_metadata_kernel",
        "bmn_bnk_mn_gemm_impl", "batched_bf16_gemm_kernel", "batched_fp8_gemm_1d2d_kernel",
        "tf32_hc_prenorm_gemm_kernel",
    },
    "fast": {
        "fp8_gemm_1d2d_ws_kernel", "fp8_gemm_1d1d_ws_kernel", "m_grouped_contiguous_fp8_gemm_1d2d_ws_kernel",
        "m_grouped_psum_fp8_gemm_1d2d_ws_kernel", "m_grouped_masked_fp8_gemm_1d2d_ws_kernel",
        "k_grouped_fp8_gemm_1d1d_ws_kernel", "k_grouped_bf16_gemm_ws_kernel",
    },
}  # fmt: skip


@pytest.fixture(scope="module")
def compiled(two_at_once: Executor, tmp_path_factory) -> dict[str, Callable]:
    """What the gates say of each piece."""
    cache = tmp_path_factory.mktemp("kernels")
    return {
        piece: two_at_once.submit(compile_in_a_process, layer, {"calls": calls, "tiles": tiles}, cache).result
        for piece, (layer, calls, tiles) in PIECES.items()
    }


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("piece", NAMES)
def test_every_kernel_compiles_for_hopper_as_it_should(compiled: dict, piece: str) -> None:
    found, _ = compiled[piece]()
    assert [each for each in found if each["failures"]] == []
    assert {each["kernel"] for each in found} == NAMES[piece]


@pytest.mark.timeout(600)
def test_gates_find_bad_kernels(compiled: dict) -> None:
    _, found = compiled["bad"]()
    for messages, wrong in zip(found, WRONG, strict=True):
        assert any(wrong in each for each in messages), f"{wrong}: {messages}"


def luciola(*arguments: str, given: str) -> list:
    done = subprocess.run(
        [sys.executable, "-m", "luciola.cli", *arguments],
        input=given,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def entries(directory: Path) -> int:
    return len(list(directory.rglob("*.cubin")))


@pytest.mark.mount
def test_many_writers_fill_one_shared_directory(mounted_dir: Path) -> None:
    shapes = "bf16_gemm_nt m=1,64 n=256 k=512\nquantize_activations m=64 n=512\n"
    arguments = [
        "deepgemm",
        "warm",
        "-",
        "--cache-dir",
        str(mounted_dir / "kernels"),
        "--jobs",
        "1",
        "--json",
    ]
    with ThreadPoolExecutor() as threads:
        writers = [threads.submit(luciola, *arguments, given=shapes) for _ in range(2)]
        assert [len(each.result()) for each in writers] == [3, 3]
    count = entries(mounted_dir / "kernels")
    again = warm.warm(warm.parse(shapes.splitlines()), mounted_dir / "kernels")
    assert [each.cached for each in again] == [1, 1, 1]
    assert entries(mounted_dir / "kernels") == count > 0


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
        warm.parse(text.splitlines())


def test_lists_of_sizes_are_combined() -> None:
    calls = warm.parse(["fp8_gemm_nt m=1,2 n=8 k=16,32  # all four", "# nothing"])
    assert [str(each) for each in calls] == [f"fp8_gemm_nt m={m} n=8 k={k}" for m in (1, 2) for k in (16, 32)]
