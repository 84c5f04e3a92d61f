"""The Triton kernels run in Triton's interpreter, which reads this variable when a kernel is defined."""

import os

import pytest

os.environ["TRITON_INTERPRET"] = "1"

import torch


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
