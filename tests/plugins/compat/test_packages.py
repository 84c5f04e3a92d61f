"""The originals' packages: in every process of an environment that has luciola-compat, and never over an original."""

import json
import os
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import pytest

from luciola.plugins import compat

ROOT = Path(__file__).parents[3]
PACKAGES = Path(compat.__file__).parent
VERSIONS = {"deep_ep": "2.1.0", "deep_gemm": "2.6.1", "dualpipe": "1.0.0", "flash_mla": "1.0.0"}
# What the originals' tests, examples and callers import, by module.
IMPORTS = {
    "flash_mla": """
        get_mla_metadata flash_mla_with_kvcache flash_attn_varlen_func flash_attn_varlen_qkvpacked_func
        flash_attn_varlen_kvpacked_func flash_mla_sparse_fwd flash_mla_interface
    """,
    "flash_mla.flash_mla_interface": "FlashMLASchedMeta get_mla_metadata flash_mla_with_kvcache",
    "deep_gemm": "testing utils fp8_gemm_nt bf16_gemm_nt ceil_div get_num_sms get_k_alignment_for_contiguous_layout",
    "deep_gemm.testing": "bench bench_kineto calc_diff count_bytes ignore_env get_arch_major test_filter",
    "deep_gemm.testing.numeric": "calc_diff count_bytes",
    "deep_gemm.testing.bench": "bench bench_kineto",
    "deep_gemm.utils": "layout math dist align ceil_div per_token_cast_to_fp8 get_mn_major_tma_aligned_tensor",
    "deep_gemm.utils.layout": "get_mn_major_tma_aligned_packed_ue8m0_tensor",
    "deep_gemm.utils.dist": "init_dist dist_print uneven_all_gather",
    "deep_ep": """
        Buffer ElasticBuffer EPHandle EventOverlap EventHandle Config topk_idx_t get_physical_domain_size
        get_logical_domain_size destroy_all_managed_nccl_comm utils buffers
    """,
    "deep_ep.buffer": "Buffer",
    "deep_ep.buffers.legacy": "Buffer",
    "deep_ep.buffers.elastic": "ElasticBuffer EPHandle",
    "deep_ep._C": "Config EventHandle topk_idx_t",
    "deep_ep_cpp": "Config EventHandle topk_idx_t",
    "deep_ep.utils": "EventOverlap EventHandle envs math bench init_dist",
    "deep_ep.utils.comm": "get_nccl_comm_handle destroy_all_managed_nccl_comm",
    "deep_ep.utils.envs": """
        init_dist init_seed dist_print check_nvlink_connections check_torch_deterministic
        get_physical_domain_size get_logical_domain_size
    """,
    "deep_ep.utils.event": "EventOverlap EventHandle",
    "deep_ep.utils.gate": "get_unbalanced_scores",
    "deep_ep.utils.math": """
        calc_diff create_grouped_scores inplace_unique per_token_cast_to_fp8 per_token_cast_back hash_tensor align
        ceil_div count_bytes safe_div
    """,
    "deep_ep.utils.refs": "dispatch combine generate_pre_combine_data ordered_accumulate",
    "deep_ep.utils.testing": "bench bench_kineto",
    "dualpipe": "DualPipe DualPipeV WeightGradStore set_p2p_tensor_shapes set_p2p_tensor_dtype",
    "dualpipe.dualpipe": "DualPipe",
    "dualpipe.dualpipev": "DualPipeV",
    "dualpipe.comm": "set_p2p_tensor_shapes set_p2p_tensor_dtype",
    "dualpipe.utils": "WeightGradStore run_backward",
    "eplb": "rebalance_experts balanced_packing replicate_experts rebalance_experts_hierarchical inverse",
}
ASK = """
import json, sys
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context

versions, imports, folder = json.load(sys.stdin)
assert "luciola" not in sys.modules
for name in (*versions, "eplb", "deep_ep_cpp"):
    spec = find_spec(name)
    assert spec.origin.startswith(folder) and spec.loader is not None, spec
for name, version in versions.items():
    assert import_module(name).__version__ == version and import_module(name).__spec__.name == name
import deep_ep.utils
assert import_module("deep_gemm").utils.__name__ == "deep_gemm.utils"
loaded = {name for name in sys.modules if name.startswith("luciola.plugins.")}
assert "torch" not in sys.modules and not any(name.count(".") > 2 and "kernels" not in name for name in loaded), loaded
import deep_ep.utils.event
loaded = {name for name in sys.modules if name.startswith("luciola.plugins.deepep.")}
assert not any(part in name for name in loaded for part in ("elastic", "low_latency", "interface", "choose")), loaded
import deep_gemm
deep_gemm.get_num_sms, deep_gemm.ceil_div, deep_gemm.utils.layout
operators = [name for name in sys.modules if name.startswith("luciola.plugins.deepgemm.")]
wanted = {"settings", "unsupported", "scales", "checks"}
operators = [name for name in operators if name.split(".")[3] not in wanted]
assert not operators, operators
for module, names in imports.items():
    for name in names.split():
        if not hasattr(import_module(module), name):
            print("lacks", module, name)
try:
    import_module("deep_ep").what
except AttributeError as error:
    assert "module 'deep_ep' has no attribute 'what'" in str(error)
with get_context("spawn").Pool(1) as pool:
    assert pool.apply(find_spec, ("deep_gemm",)).origin == find_spec("deep_gemm").origin
print("fine")
"""


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment with what this one has, and luciola-compat as its wheel has it. Returns its site-packages."""
    here = tmp_path_factory.mktemp("environment")
    build = "import sys; from setuptools.build_meta import build_wheel; build_wheel(sys.argv[1])"
    source = here / "source"
    source.mkdir()
    for each in (ROOT / "compat").iterdir():
        if each.is_file():
            (source / each.name).write_bytes(each.read_bytes())
    subprocess.run([sys.executable, "-c", build, str(here)], cwd=source, check=True, capture_output=True)
    venv.create(here / "venv", symlinks=True, with_pip=False)
    (site,) = (here / "venv").glob("lib/python3*/site-packages")
    with zipfile.ZipFile(next(here.glob("luciola_compat-*.whl"))) as wheel:
        wheel.extractall(site)
    (site / "zz_rest.pth").write_text("".join(f"{each}\n" for each in sys.path if os.path.isdir(each)))
    return site


def run(site: Path, code: str, *, given: str = "") -> str:
    command = [str(site.parents[2] / "bin" / "python"), "-c", code]
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False, cwd=site)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_name_is_there_in_every_process_and_nothing_is_imported_for_it(environment):
    given = json.dumps([VERSIONS, IMPORTS, str(PACKAGES)])
    assert run(environment, ASK, given=given) == "fine\n"


def test_an_installed_original_is_the_one_that_is_imported(environment, tmp_path):
    original = environment / "flash_mla.py"
    original.write_text("")
    try:
        assert run(environment, "import flash_mla; print(flash_mla.__file__)") == f"{original}\n"
    finally:
        original.unlink()
    # One that an editable installation finds by a finder of its own, which came later.
    (tmp_path / "eplb.py").write_text("")
    code = (
        "import sys\nfrom importlib.machinery import PathFinder\n"
        "class Late:\n    @staticmethod\n    def find_spec(name, path=None, target=None):\n"
        f"        return PathFinder.find_spec(name, [{str(tmp_path)!r}]) if name == 'eplb' else None\n"
        "sys.meta_path.append(Late)\nimport eplb; print(eplb.__file__)"
    )
    assert run(environment, code) == f"{tmp_path / 'eplb.py'}\n"


def test_without_luciola_the_names_are_simply_not_there(environment):
    code = (
        "import importlib.util, sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p and 'src' not in p]"
        "\nassert 'luciola_compat' in sys.modules\nprint(importlib.util.find_spec('deep_ep'))"
    )
    assert run(environment, code) == "None\n"


def test_both_places_name_the_same_packages():
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'compat')!r}); import luciola_compat as c; print(*c.NAMES)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    there = sorted(each.stem for each in PACKAGES.iterdir() if each.stem not in ("__init__", "__pycache__"))
    assert done.stdout.split() == list(compat.NAMES) == there


def test_install_serves_one_process_and_does_not_hide_an_original_by_accident(tmp_path):
    (tmp_path / "deep_ep.py").write_text("")
    code = (
        "import sys\nfrom luciola.plugins import compat\n"
        "sys.path.insert(0, sys.argv[1])\n"
        "try:\n    compat.install('deep_ep')\nexcept ValueError as error:\n    print(error)\n"
        "import deep_ep\nassert deep_ep.__file__.startswith(sys.argv[1])\n"
        "compat.install('deep_ep', replace=True)\nimport deep_ep, deep_ep.utils\nprint(deep_ep.__version__)\n"
        "compat.install('eplb')\ncompat.install('eplb')\nfrom importlib.util import find_spec\n"
        "print(find_spec('eplb').name, len([each for each in sys.meta_path if 'compat' in type(each).__module__]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=True, cwd=tmp_path
    )
    said, version, rest = done.stdout.splitlines()
    assert said.startswith("deep_ep is installed (")
    assert "uninstall it" in said
    assert (version, rest) == (VERSIONS["deep_ep"], "eplb 2")
    with pytest.raises(ValueError, match=r"name must be one of deep_ep.*not 'torch'"):
        compat.install("torch")
