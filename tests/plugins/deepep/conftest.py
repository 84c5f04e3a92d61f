"""The processes that run the ranks of all cases."""

from collections.abc import Iterator

import pytest

from pipeline_ranks import Ranks


@pytest.fixture(scope="session")
def experts() -> Iterator[Ranks]:
    """Forks the ranks of each case from one parent that has imported torch."""
    made = Ranks("expert_cases")
    yield made
    made.close()
