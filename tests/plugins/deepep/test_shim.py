"""Programs written for the original find all that they import; those that call it are in test_dispatch."""

import subprocess
import sys

import pytest

pytestmark = pytest.mark.timeout(300)  # torch takes a minute to import on a very busy machine

PROGRAM = """
import sys
from luciola.plugins import compat
sys.path.insert(0, sys.argv[1])                 # where there is another deep_ep
try:
    compat.install("deep_ep")
except ValueError as error:
    assert "uninstall it" in str(error)
else:
    raise AssertionError("the original is hidden")
compat.install("deep_ep", replace=True)
import deep_ep
assert deep_ep.ElasticBuffer.__module__ == "luciola.plugins.deepep.elastic.buffer"
sys.path.pop(0)
compat.install("deep_ep")
compat.install("deep_ep")
import torch
import deep_ep
import deep_ep.utils
from deep_ep import Buffer, Config, EventHandle, EventOverlap, topk_idx_t
from deep_ep import ElasticBuffer, EPHandle, get_logical_domain_size, get_physical_domain_size
from deep_ep.buffer import Buffer as other
from deep_ep.buffers.elastic import ElasticBuffer as elastic
from deep_ep.utils import EventHandle, EventOverlap
from deep_ep.utils.envs import dist_print, init_dist, init_seed
from deep_ep.utils.gate import get_unbalanced_scores
from deep_ep.utils.math import (
    align, calc_diff, ceil_div, count_bytes, create_grouped_scores, hash_tensor, inplace_unique, per_token_cast_back,
    per_token_cast_to_fp8, safe_div,
)
from deep_ep.utils.refs import combine, dispatch, generate_pre_combine_data, ordered_accumulate
from deep_ep.utils.testing import bench, bench_kineto
from deep_ep_cpp import Config as same

assert (other, same, elastic) == (Buffer, Config, ElasticBuffer) and topk_idx_t is torch.int64
x = torch.tensor([[3, 3, 1, -1], [0, 1, 2, 3], [-1, -1, -1, -1]])
inplace_unique(x, 4)
assert x.tolist() == [[3, 1, -1, -1], [0, 1, 2, 3], [-1, -1, -1, -1]], x
scores = create_grouped_scores(torch.ones(2, 4), torch.tensor([[0], [1]]), 2)
assert scores.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
assert count_bytes(x, [scores, None]) == 96 + 32
assert hash_tensor(x) != hash_tensor(x.flip(0))
y = torch.randn(5, 256).bfloat16()
assert calc_diff(per_token_cast_back(*per_token_cast_to_fp8(y)), y) < 1e-3
least = bench(lambda: y + y, 1, 3)[1]
assert least > 0
config = Buffer.get_dispatch_config(8)
assert config.num_sms == Buffer.num_sms == 20 and config.get_nvl_buffer_size_hint(14336, 8) > 0
assert config.get_rdma_buffer_size_hint(14336, 8) == 0 < config.get_rdma_buffer_size_hint(14336, 16)
Buffer.set_num_sms(24)
assert Buffer.get_combine_config(4).num_sms == 24
for wrong in (lambda: Config(3), lambda: Config(20, 256, 256), lambda: config.get_nvl_buffer_size_hint(64, 12)):
    try:
        wrong()
    except ValueError as error:
        assert "it must be" in str(error)
    else:
        raise AssertionError
assert get_unbalanced_scores(3, 8, 2, 2, 1.0, True).shape == (3, 8)
assert safe_div(3, 0) == 0 and safe_div(3, 2) == 1.5
print("fine")
"""


def test_a_program_that_imports_deep_ep_runs(tmp_path) -> None:
    """And an original that is installed is not hidden by accident."""
    (tmp_path / "deep_ep.py").write_text("")
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "fine\n"), done.stderr


def test_importing_the_package_does_not_import_torch() -> None:
    code = (
        "import sys, luciola.plugins.deepep as plugin; assert 'torch' not in sys.modules; "
        "print(plugin.describe()['transports'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "shared-memory" in done.stdout
