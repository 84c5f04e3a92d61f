"""What a CUDA graph asks of a call, without a GPU: nothing is read on the host, and nothing comes from it.

Tensors have no memory ("meta"), so a read of their values is an error, and kernels are noted instead of launched.
"""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import mla_kernels as machine
from luciola.plugins.flashmla import using_layer
from luciola.plugins.kernels.layers import launching_with, recording

CALLS = {
    "dense": (lambda: machine.dense(128, torch.bfloat16), "flash_fwd_splitkv_mla_kernel_ws"),
    "dense, FP8": (
        lambda: machine.dense(128, torch.bfloat16, fp8=True), "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws",
    ),
    "few rows": (lambda: machine.dense(16, torch.bfloat16), "flash_fwd_splitkv_mla_kernel"),
    "sparse, 656": (lambda: machine.sparse(128, 656), "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws"),
    "sparse, 584": (lambda: machine.sparse(128, 584), "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws"),
    "prefill": (machine._prefill(128, 576), "sparse_attn_fwd_ws"),
    "gradients": (machine._gradients(192), "flash_bwd_varlen_tokens_kernel"),
}  # fmt: skip


class Watching(TorchDispatchMode):
    """Notes what reads a tensor on the host, or brings one from there."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        tensors = [
            each for each in (*args, *(kwargs or {}).values(), result) if isinstance(each, torch.Tensor)
        ]
        if "_local_scalar_dense" in str(function) or any(each.device.type == "cpu" for each in tensors):
            self.found.append(str(function))
        return result


@pytest.mark.parametrize("name", CALLS)
def test_a_call_reads_nothing_on_the_host(name):
    call, kernel = CALLS[name]
    nothing = lambda *_arguments, **_constants: None  # noqa: E731
    with launching_with(nothing), using_layer("hopper"), recording() as launches, Watching() as watching:
        call()
    assert watching.found == []
    assert kernel in {each.kernel for each in launches}


def test_a_read_would_be_seen():
    with Watching() as watching:
        torch.ones(1).item()
    assert any("_local_scalar_dense" in each for each in watching.found)
