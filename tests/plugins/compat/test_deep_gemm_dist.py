"""Helpers of programs of several ranks: two processes with gloo."""

import os
import socket
import subprocess
import sys

import pytest
import torch

from luciola.plugins.compat.deep_gemm.utils import dist
from luciola.plugins.kernels.errors import BadCall

PROGRAM = """
import sys
import torch
from luciola.plugins.compat import install
install("deep_gemm")
from deep_gemm.utils.dist import dist_print, init_dist, uneven_all_gather
from torch import distributed

torch.set_num_threads(1)
me = int(sys.argv[1])
assert init_dist(me, 2)[:2] == (me, 2)
torch.set_default_device("cpu")
rows = torch.arange(6.0).view(3, 2).bfloat16()[: 3 if me else 0]
assert torch.equal(uneven_all_gather(rows), torch.arange(6.0).view(3, 2).bfloat16())
columns = torch.full((2, me + 1), me, dtype=torch.int64)
assert uneven_all_gather(columns, dim=-1).tolist() == [[0, 1, 1]] * 2
fp8 = torch.ones(me + 1).to(torch.float8_e4m3fn)
assert uneven_all_gather(fp8).float().tolist() == [1.0] * 3
assert uneven_all_gather(torch.empty(me, 0)).shape == (1, 0)
try:
    uneven_all_gather(torch.empty(1, me + 1))
except ValueError as error:
    assert "must be equal" in str(error)
else:
    raise AssertionError("shapes that differ elsewhere are refused")
dist_print("once", once_in_node=True)
dist_print(f"rank {me}")
distributed.destroy_process_group()
"""


def test_two_ranks_join_print_and_gather():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "MASTER_PORT": str(port), "CUDA_VISIBLE_DEVICES": ""}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, str(rank)],
            env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )
        for rank in range(2)
    ]  # fmt: skip
    try:
        said = [each.communicate(timeout=280) for each in processes]
    finally:
        for each in processes:
            each.kill()
            each.wait()
    assert [each.returncode for each in processes] == [0, 0], said
    assert [out for out, _ in said] == ["once\nrank 0\n", "rank 1\n"]


def test_printing_before_joining_is_refused():
    with pytest.raises(BadCall, match="call init_dist first"):
        dist.dist_print("x")


def test_a_dimension_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="dim is 2; the tensor has 2 dimensions"):
        dist.uneven_all_gather(torch.empty(1, 1), dim=2)
