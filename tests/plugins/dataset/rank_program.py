"""One rank of test_frameworks.py: `python rank_program.py DIRECTORY RESULT`, with torchrun's environment."""

import json
import sys

import torch
import torch.distributed as dist
from accelerate import Accelerator
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from luciola.plugins.dataset import Loader, MapDataset, open_records
from number_records import first_numbers

BATCH = 20


def main(directory: str, result: str) -> None:
    dataset = MapDataset(open_records(directory))
    early = Loader(dataset, global_batch_size=BATCH, seed=3)  # before the process group
    dist.init_process_group("gloo")
    seen = {
        "plain": [first_numbers(batch) for batch in early],
        "ddp": trained(early, DistributedDataParallel(torch.nn.Linear(1, 1))),
        "fsdp": trained(early, fully_shard(torch.nn.Linear(1, 1))),
        "accelerate": accelerated(Loader(dataset, global_batch_size=BATCH, seed=3, num_workers=1), result),
    }
    with open(f"{result}-{dist.get_rank()}.json", "w") as file:
        json.dump(seen, file)
    dist.destroy_process_group()


def trained(loader: Loader, model: torch.nn.Module) -> list[list[int]]:
    """An epoch of it."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    seen = []
    for batch in loader:
        seen.append(first_numbers(batch))
        model(batch[:, :1].float() / 255).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
    return seen


def accelerated(loader: Loader, result: str) -> list[list[int]]:
    """An epoch, with a state that is saved and loaded in the middle."""
    accelerator = Accelerator(cpu=True)
    _model, prepared = accelerator.prepare(torch.nn.Linear(1, 1), loader)
    assert prepared is loader
    stream = iter(prepared)
    seen = [first_numbers(next(stream)) for _ in range(2)]
    accelerator.save_state(f"{result}-state")
    next(stream)
    dist.barrier()
    accelerator.load_state(f"{result}-state")
    return seen + [first_numbers(batch) for batch in prepared]


if __name__ == "__main__":
    main(*sys.argv[1:])
