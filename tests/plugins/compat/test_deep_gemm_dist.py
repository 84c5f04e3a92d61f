"""Helpers of programs of several ranks: two processes with gloo."""

import pytest
import torch

from luciola.cli.datadir import free_ports
from luciola.plugins.compat.deep_gemm.utils import dist
from luciola.plugins.kernels.errors import BadCall
from pipeline_ranks import Ranks


def test_two_ranks_join_print_and_gather(ranks: Ranks):
    [port] = free_ports(1)
    answers = ranks.of("deep_gemm_ranks").run("join_print_and_gather", 2, port=port)
    assert [each.error for each in answers] == ["", ""], answers
    assert all("must be equal" in refused for refused, _ in (each.value for each in answers))
    assert [each.value[1] for each in answers] == ["once\nrank 0\n", "rank 1\n"]


def test_printing_before_joining_is_refused():
    with pytest.raises(BadCall, match="call init_dist first"):
        dist.dist_print("x")


def test_a_dimension_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="dim is 2; the tensor has 2 dimensions"):
        dist.uneven_all_gather(torch.empty(1, 1), dim=2)
