"""Random calls of expert parallelism between real processes, as many as are wished; bounded, and replayed by a seed.

usage: python tests/plugins/deepep/fuzz.py [--cases 10000] [--seed 0] [--ranks 2 4 8]

Case number n has seed SEED + n: normal mode if that is even, low-latency mode if it is odd, on each of the rank counts
in turns. FP8 and BF16, 1 to 9 experts a token of 8 to 512, uneven tokens, routes of -1, a hot expert, idle ranks.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from pipeline_ranks import Ranks

BATCH = 40  # cases over one buffer: few enough that a slow machine ends them within the limit of a run


def run(ranks: Ranks, *, cases: int, seed: int, sizes: list[int]) -> Iterator[int]:
    """Runs all cases; tells after each batch how many are done. Raises: AssertionError."""
    done = 0
    for batch, first in enumerate(range(0, cases, BATCH)):
        size = sizes[batch % len(sizes)]
        seeds = range(seed + first, seed + min(first + BATCH, cases))
        answers = ranks.run("expert_fuzz", size, seeds=list(seeds))
        wrong = [
            f"rank {rank}: {each.error} {each.message}" for rank, each in enumerate(answers) if each.error
        ]
        again = f"python tests/plugins/deepep/fuzz.py --cases {len(seeds)} --seed {seeds[0]} --ranks {size}"
        assert all(each.value == len(seeds) for each in answers), "\n".join([*wrong, f"again by: {again}"])
        done += len(seeds)
        yield done


def main() -> None:
    """Reads the command line; one line a minute."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 8])
    given = parser.parse_args()
    os.environ.setdefault("TRITON_INTERPRET", "0")
    ranks, began, told = Ranks("expert_cases"), time.monotonic(), 0.0
    try:
        for done in run(ranks, cases=given.cases, seed=given.seed, sizes=given.ranks):
            if time.monotonic() - told > 60 or done == given.cases:
                told = time.monotonic()
                print(f"{done} cases, {told - began:.0f} s", flush=True)
    finally:
        ranks.close()


if __name__ == "__main__":
    main()
