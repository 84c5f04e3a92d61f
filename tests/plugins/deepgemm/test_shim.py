"""Programs written for the original run unchanged."""

import subprocess
import sys

PROGRAM = """
from luciola.plugins.deepgemm import shim
shim.install()
shim.install()
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
"""


def test_a_program_that_imports_deep_gemm_runs() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_an_installed_original_is_not_hidden_by_accident(tmp_path) -> None:
    (tmp_path / "deep_gemm.py").write_text("")
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r})\n"
        "from luciola.plugins.deepgemm import shim\n"
        "try:\n    shim.install()\nexcept ValueError as error:\n    print(error)\n"
        "shim.install(replace=True)\nimport deep_gemm\nprint(deep_gemm.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "uninstall it" in done.stdout
    assert done.stdout.endswith("luciola.plugins.deepgemm\n")
