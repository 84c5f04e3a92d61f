"""Programs written for the original run unchanged, and find every name that it has."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from luciola.plugins import deepgemm
from luciola.plugins.kernels.errors import BadArgument

ROOT = Path(__file__).parents[3]
# The original's public names, release 2.6.1, and those of its first release.
NAMES = {
    "deep_gemm": """
        set_num_sms get_num_sms set_tc_util get_tc_util set_pdl get_pdl set_ignore_compile_dims
        set_block_size_multiple_of
        cublaslt_gemm_nt cublaslt_gemm_nn cublaslt_gemm_tn cublaslt_gemm_tt
        fp8_fp4_gemm_nt fp8_fp4_gemm_nn fp8_fp4_gemm_tn fp8_fp4_gemm_tt
        fp8_gemm_nt fp8_gemm_nn fp8_gemm_tn fp8_gemm_tt fp8_gemm_nt_skip_head_mid
        m_grouped_fp8_fp4_gemm_nt_contiguous m_grouped_fp8_fp4_gemm_nn_contiguous m_grouped_fp8_fp4_gemm_nt_masked
        m_grouped_fp8_gemm_nt_contiguous m_grouped_fp8_gemm_nn_contiguous m_grouped_fp8_gemm_nt_masked
        k_grouped_fp8_gemm_nt_contiguous k_grouped_fp8_gemm_tn_contiguous
        bf16_gemm_nt bf16_gemm_nn bf16_gemm_tn bf16_gemm_tt
        m_grouped_bf16_gemm_nt_contiguous m_grouped_bf16_gemm_nn_contiguous m_grouped_bf16_gemm_nt_masked
        k_grouped_bf16_gemm_tn_contiguous
        einsum fp8_einsum tf32_hc_prenorm_gemm
        fp8_fp4_mqa_logits fp8_mqa_logits fp8_fp4_paged_mqa_logits fp8_paged_mqa_logits get_paged_mqa_logits_metadata
        transform_sf_into_required_layout
        SymmBuffer get_symm_buffer_for_mega_moe transform_weights_for_mega_moe fp8_fp4_mega_moe bf16_mega_moe
        fp8_m_grouped_gemm_nt_masked bf16_m_grouped_gemm_nt_masked
        get_col_major_tma_aligned_tensor get_m_alignment_for_contiguous_layout
        gemm_fp8_fp8_bf16_nt m_grouped_gemm_fp8_fp8_bf16_nt_contiguous m_grouped_gemm_fp8_fp8_bf16_nt_masked
        wgrad_gemm_fp8_fp8_fp32_nt k_grouped_wgrad_gemm_fp8_fp8_fp32_nt get_best_configs
    """,
    "deep_gemm.utils.layout": """
        get_tma_aligned_size get_mn_major_tma_aligned_tensor get_mn_major_tma_aligned_packed_ue8m0_tensor
        get_k_grouped_mn_major_tma_aligned_packed_ue8m0_tensor set_mk_alignment_for_contiguous_layout
        get_mk_alignment_for_contiguous_layout get_theoretical_mk_alignment_for_contiguous_layout
    """,
    "deep_gemm.utils.math": """
        ceil_div align ceil_to_ue8m0 pack_ue8m0_to_int unpack_ue8m0_from_int per_token_cast_to_fp8
        per_channel_cast_to_fp8 per_block_cast_to_fp8 per_custom_dims_cast_to_fp8 per_token_cast_to_fp4
        transpose_packed_fp4 cast_back_from_fp4
    """,
    "deep_gemm.utils.dist": "init_dist uneven_all_gather dist_print",
    "deep_gemm.testing": """
        bench bench_kineto calc_diff count_bytes assert_bitwise_equal get_arch_major test_filter ignore_env
    """,
}
REFUSED = {
    "fp8_gemm_nn", "fp8_gemm_tn", "fp8_gemm_tt", "m_grouped_fp8_gemm_nn_contiguous", "k_grouped_fp8_gemm_tn_contiguous",
    "SymmBuffer", "get_symm_buffer_for_mega_moe", "transform_weights_for_mega_moe", "fp8_fp4_mega_moe",
    "bf16_mega_moe", "k_grouped_wgrad_gemm_fp8_fp8_fp32_nt", "get_best_configs",
    "per_token_cast_to_fp4", "transpose_packed_fp4", "cast_back_from_fp4",
}  # fmt: skip
PROGRAM = """
from luciola.plugins.compat import install
install("deep_gemm")
import torch
import deep_gemm
from deep_gemm import fp8_gemm_nt, get_col_major_tma_aligned_tensor
from deep_gemm.testing import calc_diff, count_bytes
from deep_gemm.utils.math import per_token_cast_to_fp8, per_block_cast_to_fp8
from deep_gemm.utils.math import cast_back_from_fp4
from deep_gemm.testing import bench, bench_kineto, test_filter
from deep_gemm.utils.layout import get_mn_major_tma_aligned_tensor, get_mk_alignment_for_contiguous_layout
import deep_gemm.utils

a, b = torch.randn(4, 128), torch.randn(16, 128)
d = torch.empty(4, 16, dtype=torch.bfloat16)
lhs = per_token_cast_to_fp8(a, use_ue8m0=False)
fp8_gemm_nt((lhs[0], get_col_major_tma_aligned_tensor(lhs[1])), per_block_cast_to_fp8(b, use_ue8m0=False), d)
assert calc_diff(d, a @ b.T) < 2e-3
assert count_bytes(d, (a, [b]), None) == 2 * 64 + 4 * (512 + 2048)
deep_gemm.gemm_fp8_fp8_bf16_nt(lhs, per_block_cast_to_fp8(b, use_ue8m0=False), d)
assert deep_gemm.get_m_alignment_for_contiguous_layout() == 128
print("fine")

import json, sys
from importlib import import_module

for module, names in json.load(sys.stdin).items():
    for name in names.split():
        if not callable(getattr(import_module(module), name, None)):
            print(module, name)
        if not module.endswith(("dist", "testing")) and not hasattr(deep_gemm, name):
            print("deep_gemm", name)
"""


def test_a_program_that_imports_deep_gemm_runs_and_finds_every_name() -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(NAMES), capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_what_cannot_be_done_is_refused_with_a_reason(name: str) -> None:
    with pytest.raises(BadArgument, match=r"not here: |not for SM90|contiguous along k"):
        getattr(deepgemm, name)()


def test_the_documentation_lists_every_name() -> None:
    table = (ROOT / "docs/plugins/deepgemm.md").read_text().partition("## Names of the original")[2]
    rows = dict(re.findall(r"^\| `(\w+)` \| (\w+)", table, re.MULTILINE))
    wanted = {name for names in NAMES.values() for name in names.split()}
    assert set(rows) == wanted
    assert {name for name, state in rows.items() if state == "refused"} >= REFUSED
