"""A rank of examples/train_moe_dualpipe.py, forked from a process that has imported torch."""

import os
import signal
import sys
from pathlib import Path


def train(rank, size, *, port, options, killed_in=None):
    sys.path.insert(0, str(Path(__file__).parents[4] / "examples"))
    import train_moe_dualpipe as example

    assert size == example.RANKS
    update, steps = example.Model.update, []

    def counted(model):
        update(model)
        steps.append(model)
        if len(steps) == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)

    example.Model.update = counted
    example.run_rank(rank, port, example.Options(**options))


train.without_group = True
