"""Trains a small mixture-of-experts transformer with DualPipe, four processes on one CPU, and resumes after a stop.

usage: python examples/train_moe_dualpipe.py --out DIR [--steps 60]

DIR is where token data, checkpoints and the loss curve go: a directory, or a place on a cluster (lu:/moe,
luciola:///DATA_DIR!/moe). The same command resumes from the last checkpoint; the losses and weights are then, bit by
bit, those of a training that was never stopped. `--plain` trains the same model in one process without a pipeline.
"""

import argparse
import contextlib
import io
import sys
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
import torch.distributed as dist
from moe_files import Checkpoints, Latest, Tokens, location_of, make_tokens
from moe_stage import Adam, MoeConfig, build_stage, next_token_loss
from torch import Tensor, multiprocessing

from luciola.client.location import close_locations
from luciola.plugins.dualpipe import DualPipe

RANKS: Final = 4
ADDRESS: Final = "127.0.0.1"
TIMEOUT_S: Final = 60.0  # no stage of this size takes a thousandth of it


@dataclass(frozen=True, kw_only=True)
class Options:
    """What the command line says."""

    out: str
    data: str | None = None
    steps: int = 60
    checkpoint_every: int = 20
    chunks: int = 8
    micro_batch: int = 2
    learning_rate: float = 3e-3
    seed: int = 7
    plain: bool = False

    @property
    def batch(self) -> int:
        return self.chunks * self.micro_batch

    @property
    def settings(self) -> dict[str, Any]:
        """What a checkpoint was made with."""
        return {
            **{
                name: getattr(self, name)
                for name in ("chunks", "micro_batch", "learning_rate", "seed", "plain")
            },
            **asdict(MoeConfig()),
        }


def main() -> None:
    """Trains until the wished step."""
    options = parse()
    data = location_of(options.data) if options.data else location_of(options.out).join("tokens.bin")
    make_tokens(data)
    latest = Checkpoints(location_of(options.out)).latest()
    if latest is not None:
        if latest.settings != options.settings:
            sys.exit(
                f"{options.out} holds a training with other settings, {latest.settings}: use another --out"
            )
        print(f"resuming after step {latest.step}", flush=True)
    if options.plain:
        Trainer(options, PlainModel(options)).train()
    else:
        close_locations()
        store = dist.TCPStore(ADDRESS, 0, is_master=True, wait_for_workers=False)
        multiprocessing.set_forkserver_preload(["torch", "luciola.plugins.dualpipe.pipeline"])  # once for all
        multiprocessing.start_processes(
            run_rank, (store.port, options), nprocs=RANKS, start_method="forkserver"
        )
    close_locations()


def parse() -> Options:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", required=True, help="directory or place on a cluster")
    parser.add_argument("--data", help="token data, a byte a token; made from docstrings if there is nothing")
    parser.add_argument("--steps", type=int, default=Options.steps)
    parser.add_argument("--checkpoint-every", type=int, default=Options.checkpoint_every)
    parser.add_argument("--chunks", type=int, default=Options.chunks, help="micro-batches of a step")
    parser.add_argument("--micro-batch", type=int, default=Options.micro_batch, help="sequences")
    parser.add_argument("--learning-rate", type=float, default=Options.learning_rate)
    parser.add_argument("--seed", type=int, default=Options.seed)
    parser.add_argument("--plain", action="store_true", help="one process, no pipeline")
    options = Options(**vars(parser.parse_args()))
    if min(options.steps, options.checkpoint_every, options.micro_batch) < 1:
        parser.error("--steps, --checkpoint-every and --micro-batch must be at least 1")
    if options.chunks < 2 * RANKS or options.chunks % 2:
        parser.error(f"--chunks must be even and at least {2 * RANKS}")
    return options


def run_rank(rank: int, port: int, options: Options) -> None:
    """One process of the pipeline."""
    torch.set_num_threads(1)
    store = dist.TCPStore(ADDRESS, port, is_master=False)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=RANKS)
    try:
        Trainer(options, PipelineModel(options, rank)).train()
    finally:
        dist.destroy_process_group()
        close_locations()


class Model:
    """A part of the model with its optimizers, in one process; `step` computes gradients of one batch."""

    saved: dict[int, int]
    """The stages that this process saves, and which of its modules they are."""
    writes = True
    """This process writes what there is once."""

    def __init__(self, stages: Iterable[int], options: Options) -> None:
        config = MoeConfig()
        self.stages = list(stages)
        self.modules = [build_stage(config, stage, options.seed) for stage in self.stages]
        self.optimizers = [Adam(module, rate=options.learning_rate) for module in self.modules]

    def step(self, tokens: Tensor, labels: Tensor) -> float:
        """Gradients in `.grad`, loads in the experts; returns the mean loss."""
        raise NotImplementedError

    def loads(self) -> list[Tensor]:
        """How often each expert of each module was chosen in this step, by all copies of the stage."""
        return [module.loads() for module in self.modules]

    def update(self) -> None:
        """Takes an optimizer step."""
        for module, optimizer, load in zip(self.modules, self.optimizers, self.loads(), strict=True):
            optimizer.step()
            module.rebalance(load)

    def wait(self) -> None:
        """Until all processes are here."""

    def state(self, index: int) -> dict[str, Any]:
        """Of one module."""
        return {"model": self.modules[index].state_dict(), "optimizer": self.optimizers[index].state_dict()}

    def load(self, index: int, state: dict[str, Any]) -> None:
        """What `state` gave."""
        self.modules[index].load_state_dict(state["model"])
        self.optimizers[index].load_state_dict(state["optimizer"])


class PipelineModel(Model):
    """Two stages on one rank of the pipeline."""

    def __init__(self, options: Options, rank: int) -> None:
        super().__init__((rank, RANKS - 1 - rank), options)
        self.saved, self.writes = {rank: 0}, rank == 0
        self.rank, self.chunks = rank, options.chunks
        self.pipeline = DualPipe(self.modules, timeout_s=TIMEOUT_S, gradient_scale="mean")

    def step(self, tokens: Tensor, labels: Tensor) -> float:
        if self.rank in (0, RANKS - 1):
            half = 0 if self.rank == 0 else 1
            inputs, own_labels = [tokens.chunk(2)[half]], [labels.chunk(2)[1 - half]]  # that come out here
        else:
            inputs, own_labels = [], []
        losses, _ = self.pipeline.step(
            *inputs, num_chunks=self.chunks, criterion=next_token_loss, labels=own_labels
        )
        self.pipeline.reduce_mirror_gradients()
        everywhere = gathered(torch.zeros(self.chunks // 2) if losses is None else losses)
        return float(torch.cat((everywhere[-1], everywhere[0])).mean())

    def loads(self) -> list[Tensor]:
        own = torch.stack([module.loads() for module in self.modules])
        mirror = gathered(own)[RANKS - 1 - self.rank]
        return list(own + mirror.flip(0))

    def wait(self) -> None:
        dist.barrier()


def gathered(tensor: Tensor) -> list[Tensor]:
    """The tensors of all ranks."""
    found = [torch.empty_like(tensor) for _ in range(RANKS)]
    dist.all_gather(found, tensor)
    return found


class PlainModel(Model):
    """All stages in one process."""

    def __init__(self, options: Options) -> None:
        super().__init__(range(RANKS), options)
        self.saved, self.chunks = {stage: stage for stage in self.stages}, options.chunks

    def step(self, tokens: Tensor, labels: Tensor) -> float:
        losses = []
        for x, wanted in zip(tokens.chunk(self.chunks), labels.chunk(self.chunks), strict=True):
            for module in self.modules:
                x = module(x)  # noqa: PLW2901 - the output of one stage is the input of the next
            loss = next_token_loss(x, wanted)
            (loss / self.chunks).backward()
            losses.append(loss.detach())
        return float(torch.stack(losses).mean())


class Trainer:
    """The training loop, on each rank alike."""

    def __init__(self, options: Options, model: Model) -> None:
        self.options, self.model = options, model
        self.checkpoints = Checkpoints(location_of(options.out))
        data = location_of(options.data) if options.data else location_of(options.out).join("tokens.bin")
        self.tokens = Tokens(data, sequence=MoeConfig().sequence, seed=options.seed)
        self.losses: list[float] = []

    def train(self) -> None:
        """From the last checkpoint to the last step."""
        self.resume()
        with contextlib.closing(self.tokens):
            self.run_steps()
        if self.model.writes:
            self.checkpoints.write("loss.png", loss_curve(self.losses))

    def run_steps(self) -> None:
        options, model = self.options, self.model
        for step in range(len(self.losses), options.steps):
            self.losses.append(model.step(*self.tokens.batch(step, options.batch)))
            model.update()
            if model.writes:
                print(f"step {step + 1} loss {self.losses[-1]:.4f}", flush=True)
            if (step + 1) % options.checkpoint_every == 0 or step + 1 == options.steps:
                self.save(step + 1)

    def resume(self) -> None:
        latest = self.checkpoints.latest()
        if latest is None:
            return
        self.losses = latest.losses
        for index, stage in enumerate(self.model.stages):
            self.model.load(index, self.checkpoints.load(latest.step, stage))

    def save(self, step: int) -> None:
        for stage, index in self.model.saved.items():
            self.checkpoints.save(step, stage, self.model.state(index))
        self.model.wait()
        if self.model.writes:
            self.checkpoints.finish(Latest(step, self.losses, self.options.settings))
        self.model.wait()


def loss_curve(losses: list[float]) -> bytes:
    """A PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4), layout="constrained")
    axes = figure.add_subplot()
    axes.plot(range(1, len(losses) + 1), losses, linewidth=1.5)
    axes.set_xlabel("step")
    axes.set_ylabel("loss, nats a byte")
    axes.set_title("mixture of experts on docstrings")
    axes.grid(alpha=0.3)
    picture = io.BytesIO()
    figure.savefig(picture, dpi=120)
    return picture.getvalue()


if __name__ == "__main__":
    main()
