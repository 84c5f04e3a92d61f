"""A few hundred of the random calls that `fuzz.py` makes by the thousand."""

import pytest

from pipeline_ranks import Ranks


@pytest.mark.parametrize(("size", "seed"), [(2, 0), (4, 1000), (8, 2000)])
def test_random_calls_are_right(experts: Ranks, size, seed) -> None:
    seeds = list(range(seed, seed + (60 if size < 8 else 30)))
    answers = experts.run("expert_fuzz", size, seeds=seeds)
    again = f"python tests/plugins/deepep/fuzz.py --cases {len(seeds)} --seed {seed} --ranks {size}"
    assert [each.message for each in answers] == [""] * size, again
    assert [each.value for each in answers] == [len(seeds)] * size, again
