"""Some of the random calls that `fuzz.py` makes by the thousand."""

import pytest

from pipeline_ranks import Ranks

pytestmark = pytest.mark.timeout(300)
CASES = {2: 12, 4: 8}
"""Of a run: few enough that a busy machine ends them within the limit of a run."""


@pytest.mark.parametrize("size", CASES)
def test_random_calls_are_right(experts: Ranks, size) -> None:
    seed = 1000 * size
    seeds = list(range(seed, seed + CASES[size]))
    answers = experts.run("expert_fuzz", size, seeds=seeds)
    again = f"python tests/plugins/deepep/fuzz.py --first {seed} --cases {len(seeds)} --ranks {size}"
    assert [each.message for each in answers] == [""] * size, again
    assert [each.value for each in answers] == [len(seeds)] * size, again
