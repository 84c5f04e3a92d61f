"""What a rank does in the tests of recorded loads."""

import torch
import torch.distributed as dist

from luciola.plugins.eplb import LoadRecorder
from luciola.plugins.eplb.refresh import TorchRanks

STORE: list[dist.Store] = []


def reduce(rank, size):
    recorder = LoadRecorder(1, 3, windows=1, window_steps=1)
    recorder.record(0, torch.full((rank + 1,), rank))
    recorder.step()
    loads = recorder.reduced()
    ranks = TorchRanks(recorder.device)  # what a refresher does with the others
    added = ranks.add(torch.tensor([1.0, rank])).tolist()
    return loads.average.tolist(), loads.windows.tolist(), added, ranks.gather(f"rank {rank}")
