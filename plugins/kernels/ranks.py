"""Processes of a run on several devices: how they find one another, and the texts of their libraries' errors."""

import os

import torch
from torch import distributed as dist


def join(local_rank: int, num_local_ranks: int) -> tuple[int, int, dist.ProcessGroup]:
    """Join the processes of a run: (rank, number of ranks, group of all). Tensors are made on this rank's GPU then.

    MASTER_ADDR, MASTER_PORT, WORLD_SIZE (hosts) and RANK (of this host) say where, as for the originals. Ranks share
    GPUs if there are fewer; gloo connects those, and CPUs, because NCCL refuses two ranks on one GPU.
    """
    hosts, host = int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0"))
    address = os.environ.get("MASTER_ADDR", "127.0.0.1")
    port = int(os.environ.get("MASTER_PORT", "8361"))
    gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if gpus:
        torch.cuda.set_device(local_rank % gpus)
        torch.set_default_device("cuda")
    ranks, rank = hosts * num_local_ranks, host * num_local_ranks + local_rank
    backend = "nccl" if gpus >= num_local_ranks else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://{address}:{port}", world_size=ranks, rank=rank)
    group = dist.group.WORLD
    assert group is not None, "it has just been made"
    return rank, ranks, group


def first_line(error: BaseException) -> str:
    """Return the first line of torch's or gloo's error, without where it was raised."""
    text = str(error).splitlines()[0] if str(error) else type(error).__name__
    if text.startswith("[") and "] " in text:  # gloo begins with its source file
        text = text.split("] ", 1)[1]
    return text.split(". This is typically")[0]


__all__ = ["first_line", "join"]
