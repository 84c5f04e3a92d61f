"""What `make gpu` runs beside tests and benchmarks, each in a process of its own.

usage: python benchmarks/plugins/gpu_steps.py graphs|kv_staging|nccl|dualpipe [--device cuda]

    graphs       every call of FlashMLA in a CUDA graph, replayed on other numbers and lengths, against the call itself
    kv_staging   pages saved from and loaded into caches on the device, whole and by layers, beside other work
    nccl         sums and exchanges between all GPUs of this machine, through NCCL also if there is one
    dualpipe     a training step of DualPipeV on all GPUs, against the same model on one

A step prints what it did and ends with an error if anything differs. `--device cpu` runs those that need no GPU by
themselves, all but `graphs`, with gloo.
"""

import argparse
import socket
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn

from luciola.plugins.kernels.layers import recording

Call = Callable[[], object]


def graphs(_device: str) -> None:
    for name, kernel, make in graph_cases():
        call, change = make()
        call()  # compiles
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph), recording() as launches:
            captured = call()
        names = [each.kernel for each in launches]
        assert kernel in names, f"{name}: {kernel} was not captured, but {names}"
        for _ in range(2):
            change()
            graph.replay()
            torch.cuda.synchronize()
            for got, want in zip(captured, call(), strict=True):
                assert torch.equal(got.nan_to_num(7.0), want.nan_to_num(7.0)), f"{name}: the replay differs"
        print(f"{name}: {', '.join(names)} captured and replayed", flush=True)


def graph_cases() -> list[tuple[str, str, Callable[[], tuple[Call, Call]]]]:
    """Calls, the kernel that each must take on sm_90, and what changes their inputs in place."""
    from luciola.plugins import flashmla as mla

    b, h, pages = 4, 64, 16

    def rows(*shape: int) -> torch.Tensor:
        return torch.randn(shape, device="cuda").bfloat16() / 10

    def dense(*, fp8: bool) -> tuple[Call, Call]:
        q, cache = rows(b, 1, h, 576), rows(b * pages, 64, 1, 576)
        cache = mla.quantize_v32(cache) if fp8 else cache
        table = torch.randperm(b * pages, device="cuda").to(torch.int32).view(b, pages)
        lengths = torch.tensor([1000, 0, 64, 333], dtype=torch.int32, device="cuda")

        def call() -> object:
            schedule, _ = mla.get_mla_metadata()  # in the graph: made again for each replay's lengths
            return mla.flash_mla_with_kvcache(q, cache, table, lengths, 512, schedule, is_fp8_kvcache=fp8)

        def change() -> None:
            q.normal_()
            lengths.copy_(lengths.roll(1))

        return call, change

    def sparse() -> tuple[Call, Call]:
        q, cache = rows(b, 2, h, 576), mla.quantize_v32(rows(pages, 64, 1, 576))
        indices = torch.randint(-1, pages * 64, (b, 2, 512), dtype=torch.int32, device="cuda")

        def call() -> object:
            schedule, _ = mla.get_mla_metadata()
            return mla.flash_mla_with_kvcache(
                q, cache, None, None, 512, schedule, is_fp8_kvcache=True, indices=indices
            )

        return call, lambda: indices.copy_(indices.roll(7, 2))

    def prefill() -> tuple[Call, Call]:
        q, kv = rows(64, h, 576), rows(4096, 1, 576)
        indices = torch.randint(-1, 4096, (64, 1, 512), dtype=torch.int32, device="cuda")
        return lambda: mla.flash_mla_sparse_fwd(q, kv, indices, 0.1), q.normal_

    def varlen() -> tuple[Call, Call]:
        q, k, v = rows(1000, 4, 192), rows(1000, 4, 192), rows(1000, 4, 128)
        starts = torch.tensor([0, 300, 300, 1000], dtype=torch.int32, device="cuda")
        return (
            lambda: mla.flash_attn_varlen_func(q, k, v, starts, starts, 1000, 1000, causal=True),
            lambda: starts[1].add_(5),
        )

    return [
        ("dense decoding", "flash_fwd_splitkv_mla_kernel_ws", lambda: dense(fp8=False)),
        ("dense decoding, FP8", "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws", lambda: dense(fp8=True)),
        ("sparse decoding", "flash_fwd_splitkv_mla_fp8_sparse_kernel_ws", sparse),
        ("sparse prefill", "sparse_attn_fwd_ws", prefill),
        ("plain attention", "flash_fwd_varlen_kernel", varlen),
    ]


def kv_staging(device: str) -> None:
    from luciola.plugins.flashmla import PageCache, PagedKVFile, PageLayout

    layout, pages = PageLayout(layers=8), 20
    tokens = list(range(pages * 64))
    caches = {"one piece": PageCache.allocate(layout, pages, device=device)}
    cache = PageCache.allocate(layout, pages, device=device)
    caches["a tensor a layer"] = PageCache.over(layout, [each.clone() for each in cache.layers])
    for layer in cache.layers:
        layer.normal_()
    with (
        tempfile.TemporaryDirectory() as root,
        PagedKVFile.create(Path(root) / "kv.pages", layout, pages, model="check") as file,
    ):
        file.save(file.names(tokens), range(pages), cache).wait()
        for name, other in caches.items():
            size = 128 if device == "cpu" else 2048  # of a load's milliseconds on either
            x = torch.randn(size, size, device=device)
            transfer = file.load(file.match(tokens), range(pages), other)
            for _ in range(20):
                x = (x @ x).tanh()  # what a model does meanwhile
            transfer.wait()
            assert all(map(_same_bits, other.layers, cache.layers)), f"{name}: other bytes came back"
            print(f"{pages} pages into {name}: every bit", flush=True)
            for each in other.layers:
                each.zero_()
            layers = file.load_layers(file.match(tokens), range(pages), other)
            seen = []
            for number, each in enumerate(other.layers):
                layers.wait_for_layer(number)
                seen.append(each.clone())  # on this stream, while later layers are on their way
            assert all(map(_same_bits, seen, cache.layers)), f"{name}: a layer was used before it was there"
            layers.wait()
            print(f"{pages} pages by layers into {name}: every bit", flush=True)


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.equal(one.view(torch.int16), other.view(torch.int16))


def nccl(device: str) -> None:
    on_all_devices(_exchange, device)


def _exchange(rank: int, size: int, device: torch.device) -> None:
    mine = torch.full((4,), float(rank + 1), device=device)
    dist.all_reduce(mine)
    assert mine.tolist() == [size * (size + 1) / 2] * 4, "the sum over all ranks"
    got = torch.empty(size, device=device)
    dist.all_gather_into_tensor(got, torch.tensor([float(rank)], device=device))
    assert got.tolist() == list(range(size)), "what each rank gave"


def dualpipe(device: str) -> None:
    on_all_devices(_train, device)


def _stages(size: int, device: torch.device) -> list[nn.Module]:
    torch.manual_seed(0)
    return [nn.Sequential(nn.Linear(64, 64), nn.Tanh()).to(device) for _ in range(2 * size)]


def _train(rank: int, size: int, device: torch.device) -> None:
    from luciola.plugins.dualpipe import DualPipeV, set_p2p_tensor_dtype, set_p2p_tensor_shapes

    chunks, samples = 4 * size, 8
    stages = _stages(size, device)
    torch.manual_seed(1)
    x, labels = (torch.randn(chunks * samples, 64).to(device) for _ in range(2))
    set_p2p_tensor_shapes([(samples, 64)])
    set_p2p_tensor_dtype(torch.float32)
    pipe = DualPipeV((stages[rank], stages[-1 - rank]))
    loss, _ = pipe.step(
        *([x] if rank == 0 else []),
        num_chunks=chunks,
        criterion=nn.functional.mse_loss,
        labels=[labels] if rank == 0 else [],
    )
    alone = _stages(size, device)
    total = 0.0
    for part, label in zip(x.chunk(chunks), labels.chunk(chunks), strict=True):
        value = nn.functional.mse_loss(nn.Sequential(*alone)(part), label)
        value.backward()
        total += value.item()
    for mine, other in ((stages[rank], alone[rank]), (stages[-1 - rank], alone[-1 - rank])):
        for one, two in zip(mine.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one.grad, two.grad, rtol=1e-3, atol=1e-5)
    if rank == 0:
        assert loss is not None
        torch.testing.assert_close(loss.sum().item(), total, rtol=1e-3, atol=1e-5)


def on_all_devices(work: Callable[[int, int, torch.device], None], device: str) -> None:
    """A process for each GPU, or two with gloo."""
    size = torch.cuda.device_count() if device == "cuda" else 2
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    torch.multiprocessing.spawn(_one, (work, size, device, port), nprocs=size)
    print(f"{size} processes with {'NCCL' if device == 'cuda' else 'gloo'}: as expected", flush=True)


def _one(rank: int, work: Callable[[int, int, torch.device], None], size: int, kind: str, port: int) -> None:
    device = torch.device(kind, rank) if kind == "cuda" else torch.device(kind)
    if kind == "cuda":
        torch.cuda.set_device(device)
    backend = "nccl" if kind == "cuda" else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=size)
    try:
        work(rank, size, device)
    finally:
        dist.destroy_process_group()


STEPS = {each.__name__: each for each in (graphs, kv_staging, nccl, dualpipe)}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("step", choices=STEPS)
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    options = parser.parse_args()
    STEPS[options.step](options.device)


if __name__ == "__main__":
    main()
