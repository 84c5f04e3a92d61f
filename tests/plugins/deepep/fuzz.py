"""Random calls of expert parallelism between real processes, as many as are wished; bounded, and replayed by a seed.

usage: python tests/plugins/deepep/fuzz.py [--first 0] [--cases 10000] [--ranks 2 4 2 8 2 4]

Case n has seed n: normal mode if that is even, low-latency mode if it is odd. Each 200 cases have processes and a
buffer of their own, on the rank counts in turns; resume a stopped run with --first and the last number that it printed.
FP8 and BF16, 1 to 9 experts a token of 8 to 512, uneven tokens, routes of -1, a hot expert, idle ranks.
"""

import argparse
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
sys.path.insert(0, str(Path(__file__).with_name("support")))

from pipeline_ranks import Ranks

BATCH = 200
LIMIT_S = 1800.0  # of a batch: no machine is so busy


def run(ranks: Ranks, *, first: int, cases: int, sizes: list[int]) -> Iterator[int]:
    """Runs all cases; yields after each batch how many are done. Raises: AssertionError."""
    for start in range(first, first + cases, BATCH):
        seeds = range(start, min(start + BATCH, first + cases))
        size = sizes[start // BATCH % len(sizes)]
        answers = ranks.run("expert_fuzz", size, limit_s=LIMIT_S, seeds=list(seeds))
        wrong = [
            f"rank {rank}: {each.error} {each.message}" for rank, each in enumerate(answers) if each.error
        ]
        again = f"python tests/plugins/deepep/fuzz.py --first {start} --cases {len(seeds)} --ranks {size}"
        assert all(each.value == len(seeds) for each in answers), "\n".join([*wrong, f"again by: {again}"])
        yield seeds[-1] + 1 - first


def main() -> None:
    """Reads the command line; one line a minute."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--cases", type=int, default=10_000)
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4, 2, 8, 2, 4])
    given = parser.parse_args()
    os.environ.setdefault("TRITON_INTERPRET", "0")
    ranks, began, printed = Ranks("expert_cases"), time.monotonic(), 0.0
    try:
        for done in run(ranks, first=given.first, cases=given.cases, sizes=given.ranks):
            if time.monotonic() - printed > 60 or done == given.cases:
                printed = time.monotonic()
                print(f"{done} cases from {given.first} on are right, {printed - began:.0f} s", flush=True)
    finally:
        ranks.close()


if __name__ == "__main__":
    main()
