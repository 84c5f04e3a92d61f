"""The processes that run the ranks of all cases."""

import os

import pytest

from pipeline_ranks import Ranks

collect_ignore = [] if os.environ.get("LUCIOLA_TEST_DEVICE") == "cuda" else ["test_gpu_ranks.py"]


@pytest.fixture(scope="session")
def experts(ranks: Ranks) -> Ranks:
    """For cases of transports, layouts and buffers."""
    return ranks.of("expert_cases")


@pytest.fixture(scope="session")
def dispatchers(experts: Ranks) -> Ranks:
    """For cases of normal mode."""
    return experts.of("dispatch_cases")


@pytest.fixture(scope="session")
def elastics(experts: Ranks) -> Ranks:
    """For cases of `ElasticBuffer`."""
    return experts.of("elastic_cases")
