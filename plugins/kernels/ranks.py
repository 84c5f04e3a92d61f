"""The processes of a run on several devices find one another."""

import os

import torch
from torch import distributed as dist


def join(local_rank: int, num_local_ranks: int) -> tuple[int, int, dist.ProcessGroup]:
    """Joins the processes of a run: (rank, number of ranks, group of all). Tensors are made on this rank's GPU then.

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


__all__ = ["join"]
