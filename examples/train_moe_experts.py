"""Trains a small mixture of experts that are spread over four processes, and the same one in a single process.

usage: python examples/train_moe_experts.py [--out DIR] [--steps 30]

Each process has its part of the batch and some of the eight experts; tokens travel to their experts and back. Losses of
both trainings are printed side by side: they begin with the same weights and see the same tokens.

DIR is a directory or a place on a cluster (lu:/moe, luciola:///DATA_DIR!/moe). The experts' initial weights are written
there, and each process reads those that it serves and no others; the loads of experts are left there in
loads.safetensors, for `luciola eplb plan`. Without --out all this happens in a directory that is removed again.
"""

import argparse
import json
import tempfile
from dataclasses import dataclass
from typing import Final

import torch
import torch.distributed as dist
import torch.nn.functional as F
from moe import ExpertParallel, PhysicalExperts
from torch import Tensor, multiprocessing, nn

from luciola.client import close_locations, open_location
from luciola.plugins.deepep import Buffer
from luciola.plugins.eplb import LoadRecorder
from luciola.plugins.weights import save

ADDRESS: Final = "127.0.0.1"
RANKS: Final = 4
VOCABULARY, HIDDEN, WIDTH, EXPERTS, CHOSEN = 32, 128, 64, 8, 2
BATCH: Final = 128  # pairs of a step, of all ranks together
PLACEMENT: Final = (0, 1, 2, 3, 4, 5, 6, 7, 0, 1, 2, 3)  # three slots a rank: four experts have a replica
TEMPLATE: Final = "layers.{layer}.experts.{expert}.{name}"
LEARNING_RATE: Final = 3e-3
NORMAL_BYTES: Final = 1 << 20
TIMEOUT_S: Final = 60.0


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    out: str
    steps: int = 30
    seed: int = 7


class AllExperts(nn.Module):
    """Every expert, in one process."""

    def __init__(self, gate_up: Tensor, down: Tensor) -> None:
        super().__init__()
        self.gate_up, self.down = nn.Parameter(gate_up), nn.Parameter(down)

    def forward(self, x: Tensor, chosen: Tensor, weights: Tensor) -> Tensor:
        """As ExpertParallel.forward."""
        total = torch.zeros(x.shape)
        gate_up, down = (each.to(torch.bfloat16).float() for each in (self.gate_up, self.down))
        for expert in range(EXPERTS):
            token, place = (chosen == expert).nonzero(as_tuple=True)
            gate, up = (x[token].float() @ gate_up[expert].T).to(torch.bfloat16).float().chunk(2, -1)
            answer = (F.silu(gate) * up).to(torch.bfloat16).float() @ down[expert].T
            total = total.index_add(0, token, answer * weights[token, place, None])
        return total.to(torch.bfloat16)


class Model(nn.Module):
    """Says what comes of two symbols; what it cannot add up linearly, its experts must know."""

    def __init__(self, experts: nn.Module, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.first, self.second = nn.Embedding(VOCABULARY, HIDDEN), nn.Embedding(VOCABULARY, HIDDEN)
        self.norm = nn.RMSNorm(HIDDEN)
        self.router = nn.Linear(HIDDEN, EXPERTS, bias=False)
        self.head = nn.Linear(HIDDEN, VOCABULARY, bias=False)
        self.experts = experts

    def forward(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """Scores of each symbol, and the chosen experts."""
        x = self.norm(self.first(pairs[:, 0]) + self.second(pairs[:, 1]))
        shares, chosen = self.router(x).softmax(-1).topk(CHOSEN, -1)
        weights = shares / shares.sum(-1, keepdim=True)
        mixed = self.experts(x.to(torch.bfloat16), chosen, weights)
        return self.head(x + mixed.float()), chosen

    def loss(self, pairs: Tensor) -> tuple[Tensor, Tensor]:
        """The mean over pairs, and the chosen experts."""
        scores, chosen = self(pairs)
        return F.cross_entropy(scores, (pairs[:, 0] * pairs[:, 1] + pairs[:, 0]) % VOCABULARY), chosen

    def shared(self) -> list[nn.Parameter]:
        """What every process has."""
        return [each for name, each in self.named_parameters() if not name.startswith("experts.")]


def batch(step: int, seed: int) -> Tensor:
    """The pairs of a step: (BATCH, 2)."""
    return torch.randint(VOCABULARY, (BATCH, 2), generator=torch.Generator().manual_seed(1000 * seed + step))


def initial_experts(seed: int) -> tuple[Tensor, Tensor]:
    """gate_up (experts, 2 · width, hidden) and down (experts, hidden, width)."""
    generator = torch.Generator().manual_seed(seed)
    gate_up = torch.randn(EXPERTS, 2 * WIDTH, HIDDEN, generator=generator) * HIDDEN**-0.5
    return gate_up, torch.randn(EXPERTS, HIDDEN, WIDTH, generator=generator) * WIDTH**-0.5


def write_experts(options: Options) -> None:
    """The initial weights, a tensor for each expert and name, as checkpoints have them."""
    gate_up, down = initial_experts(options.seed)
    tensors = {}
    for expert in range(EXPERTS):
        parts = {
            "gate_proj": gate_up[expert, :WIDTH],
            "up_proj": gate_up[expert, WIDTH:],
            "down_proj": down[expert],
        }
        for name, value in parts.items():
            tensors[TEMPLATE.format(layer=0, expert=expert, name=f"{name}.weight")] = value.contiguous()
    save(tensors, f"{options.out}/experts.safetensors")


def run_rank(rank: int, port: int, options: Options) -> None:
    """One process of four."""
    torch.set_num_threads(1)
    store = dist.TCPStore(ADDRESS, port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    try:
        train_rank(rank, options)
    finally:
        dist.destroy_process_group()
        close_locations()


def train_rank(rank: int, options: Options) -> None:
    """Its part of each batch."""
    buffer = Buffer(dist.group.WORLD, NORMAL_BYTES, timeout_s=TIMEOUT_S, explicitly_destroy=True)
    placement = PhysicalExperts(torch.tensor(PLACEMENT), ranks=RANKS)
    layer = ExpertParallel(buffer, placement, hidden=HIDDEN, width=WIDTH, dtype=torch.float32)
    report = layer.load_weights(f"{options.out}/experts.safetensors", template=TEMPLATE)
    print(f"rank {rank}: {report.read} experts read over {buffer.transport}", flush=True)
    model = Model(layer, options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    recorder = LoadRecorder(1, EXPERTS)
    losses = []
    for step in range(options.steps):
        pairs = batch(step, options.seed).chunk(RANKS)[rank]
        loss, chosen = model.loss(pairs)
        optimizer.zero_grad()
        loss.backward()
        average_gradients(model, layer)
        optimizer.step()
        recorder.record(0, chosen)
        recorder.step()
        mean = loss.detach().clone()
        dist.all_reduce(mean)
        losses.append(float(mean) / RANKS)
    loads = recorder.reduced()
    if rank == 0:
        loads.save(f"{options.out}/loads.safetensors")
        file_system, path = open_location(f"{options.out}/losses.json")
        file_system.write(path, json.dumps(losses).encode())
    buffer.destroy()


def average_gradients(model: Model, layer: ExpertParallel) -> None:
    """Over ranks: each has the mean loss of its part, and an expert has seen the tokens of all."""
    for parameter in model.shared():
        dist.all_reduce(parameter.grad)
        parameter.grad /= RANKS
    layer.sum_replica_gradients()
    for parameter in layer.parameters():
        parameter.grad /= RANKS


def train_alone(options: Options) -> list[float]:
    """All experts and the whole batch in this process."""
    model = Model(AllExperts(*initial_experts(options.seed)), options.seed)
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE)
    losses = []
    for step in range(options.steps):
        loss, _ = model.loss(batch(step, options.seed))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def train(options: Options) -> None:
    """Four processes, then one."""
    write_experts(options)
    close_locations()
    store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
    multiprocessing.set_forkserver_preload(["torch", "moe.layer"])  # once for all
    multiprocessing.start_processes(run_rank, (store.port, options), nprocs=RANKS, start_method="forkserver")
    file_system, path = open_location(f"{options.out}/losses.json")
    spread = json.loads(file_system.read(path))
    print("step  four processes  one process")
    for step, (ours, alone) in enumerate(zip(spread, train_alone(options), strict=True), 1):
        print(f"{step:4} {ours:15.4f} {alone:12.4f}", flush=True)
    close_locations()


def main() -> None:
    """Reads the command line and trains."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", help="directory or place on a cluster")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--seed", type=int, default=Options.seed)
    given = parser.parse_args()
    if given.steps < 1:
        parser.error("--steps must be at least 1")
    if given.out is not None:
        train(Options(given.out, given.steps, given.seed))
        return
    with tempfile.TemporaryDirectory() as directory:
        train(Options(directory, given.steps, given.seed))


if __name__ == "__main__":
    main()
