"""Programs written for the original run unchanged, and the page says what differs."""

import inspect
import os
import re
import subprocess
from pathlib import Path

from luciola.plugins import flashmla
from luciola.plugins.flashmla import interface

PAGE = Path(__file__).parents[3] / "docs" / "plugins" / "flashmla.md"
PROGRAM = """
from luciola.plugins.compat import install
install("flash_mla")
import torch
import flash_mla
from flash_mla import flash_attn_varlen_func, flash_mla_sparse_fwd, flash_mla_with_kvcache, get_mla_metadata
from flash_mla import flash_attn_varlen_kvpacked_func, flash_attn_varlen_qkvpacked_func
from flash_mla.flash_mla_interface import FlashMLASchedMeta

assert flash_mla.__version__ == "1.0.0" and flash_mla.__all__ == sorted(flash_mla.__all__)
lengths = torch.tensor([70, 0], dtype=torch.int32)
schedule, num_splits = get_mla_metadata(lengths, 2 * 4 // 1, 1)
assert isinstance(schedule, FlashMLASchedMeta) and num_splits is None
q, cache = torch.randn(2, 2, 4, 576).bfloat16(), torch.randn(3, 64, 1, 576).bfloat16()
table = torch.tensor([[2, 0], [0, 0]], dtype=torch.int32)
out, lse = flash_mla.flash_mla_with_kvcache(
    q, cache, table, lengths, 512, schedule, num_splits, softmax_scale=None, causal=True, is_fp8_kvcache=False
)
assert out.shape == (2, 2, 4, 512) and lse.shape == (2, 4, 2) and lse[1].isposinf().all()
assert schedule.have_initialized and schedule.tile_scheduler_metadata.shape[1] == 8
assert schedule.num_splits.shape == (3,) and schedule.config.causal
out, most, lse = flash_mla_sparse_fwd(q[0], cache[0], torch.zeros(2, 1, 128, dtype=torch.int32), 0.1)
assert out.shape == (2, 4, 512) and most.shape == lse.shape == (2, 4)

import luciola.plugins.flashmla as mla
print(mla.layer_for(q), mla.describe()["state"], sep=": ")
with mla.using_layer("triton"):
    try: mla.layer_for(q)
    except RuntimeError as error: print(error)
"""


def test_a_program_that_imports_flash_mla_runs_in_the_reference_without_a_gpu_and_the_interpreter(
    warm_python,
):
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": ""}
    command = [warm_python, "-c", PROGRAM]
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=280, check=False
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, second = done.stdout.splitlines()
    assert first == "reference: no CUDA device: reference operators on the CPU"
    assert "start the process with TRITON_INTERPRET=1" in second


def test_every_function_and_argument_is_in_the_table_of_the_page():
    rows = dict(re.findall(r"^\| `(\w+)\((.*?)\)` \|", PAGE.read_text(), re.MULTILINE))
    assert sorted(rows) == interface.__all__
    for name, arguments in rows.items():
        said = []
        for each in inspect.signature(getattr(flashmla, name)).parameters.values():
            default = "" if each.default is each.empty else f"={each.default!r}"
            variable = {each.VAR_POSITIONAL: "*args", each.VAR_KEYWORD: "**kwargs"}
            said.append(variable.get(each.kind, each.name + default))
        assert [each.strip() for each in arguments.split(", ")] == said, name
