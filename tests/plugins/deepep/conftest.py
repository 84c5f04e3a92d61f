"""The processes that run the ranks of all cases."""

import os
from collections.abc import Iterator

import pytest

from pipeline_ranks import Ranks

collect_ignore = [] if os.environ.get("LUCIOLA_TEST_DEVICE") == "cuda" else ["test_gpu_ranks.py"]


@pytest.fixture(scope="session")
def experts() -> Iterator[Ranks]:
    """Forks the ranks of each case from one parent that has imported torch."""
    made = Ranks("expert_cases")
    yield made
    made.close()


@pytest.fixture(scope="session")
def dispatchers(experts: Ranks) -> Ranks:
    """For cases of normal mode."""
    return experts.of("dispatch_cases")


@pytest.fixture(scope="session")
def elastics(experts: Ranks) -> Ranks:
    """For cases of `ElasticBuffer`."""
    return experts.of("elastic_cases")
