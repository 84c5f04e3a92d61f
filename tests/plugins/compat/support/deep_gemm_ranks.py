"""What a rank does in the tests of `deep_gemm.utils.dist`."""

import contextlib
import io
import os

import torch

from luciola.plugins.compat import install


def join_print_and_gather(rank, size, *, port):
    os.environ.update(MASTER_PORT=str(port), CUDA_VISIBLE_DEVICES="")
    install("deep_gemm")
    from deep_gemm.utils.dist import dist_print, init_dist, uneven_all_gather

    assert init_dist(rank, size)[:2] == (rank, size)
    torch.set_default_device("cpu")
    rows = torch.arange(6.0).view(3, 2).bfloat16()[: 3 if rank else 0]
    assert torch.equal(uneven_all_gather(rows), torch.arange(6.0).view(3, 2).bfloat16())
    columns = torch.full((2, rank + 1), rank, dtype=torch.int64)
    assert uneven_all_gather(columns, dim=-1).tolist() == [[0, 1, 1]] * 2
    fp8 = torch.ones(rank + 1).to(torch.float8_e4m3fn)
    assert uneven_all_gather(fp8).float().tolist() == [1.0] * 3
    assert uneven_all_gather(torch.empty(rank, 0)).shape == (1, 0)
    try:
        uneven_all_gather(torch.empty(1, rank + 1))
    except ValueError as error:
        refused = str(error)
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        dist_print("once", once_in_node=True)
        dist_print(f"rank {rank}")
    torch.distributed.destroy_process_group()
    return refused, printed.getvalue()


join_print_and_gather.without_group = True
