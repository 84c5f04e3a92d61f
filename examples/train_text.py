"""Trains a small language model on Python's own documentation, and resumes after it was killed, on other processes.

    python examples/train_text.py train --out /tmp/text --processes 2     # kill it whenever you like
    python examples/train_text.py train --out /tmp/text --processes 4     # and it resumes
    python examples/train_text.py compare --out lu:/text --plot loss.png  # both, and the curves of their losses

Texts are FFRecord files read by `luciola.plugins.dataset`, checkpoints are made by `luciola.plugins.checkpoint` while
training resumes. Weights are the same on all processes, the optimizer's moments are sharded among them (as FSDP or
ZeRO do), so another number of processes means another sharding. Gradients are those of MICRO_BATCHES equal parts of
each batch, added in one order whichever process computed them: so losses are the same, bit by bit, whatever happens.

`compare` trains once without a stop on two processes; then again, where all processes are killed (SIGKILL) in the
middle, and one process, or as many as `--resume-processes` says, resumes.
"""

import argparse
import functools
import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from moe_files import docstrings
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard
from torch.nn import functional as F

from luciola.client import close_locations, open_location, replacing
from luciola.client.location import Location, parse_location
from luciola.plugins.checkpoint import Checkpoints, Keep, list_checkpoints
from luciola.plugins.dataset import FFRecordWriter, Loader, MapDataset, open_records

TEXT_BYTES: Final = 400_000
CONTEXT: Final = 64  # bytes of text that the model sees
WIDTH, HEADS, LAYERS, VOCABULARY = 64, 4, 2, 256
BATCH: Final = 32
MICRO_BATCHES: Final = 4  # so 1, 2 or 4 processes
RATE, BETA1, BETA2, EPSILON = 3e-3, 0.9, 0.99, 1e-8
WAIT_S: Final = 300.0


class Block(nn.Module):
    """Attention to what came before, and a wide layer."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.project, self.output = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.wide, self.narrow = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """(samples, positions, WIDTH) to the same."""
        parts = self.project(self.before(x)).chunk(3, -1)
        query, key, value = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in parts)
        seen = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        x = x + self.output(seen.transpose(1, 2).flatten(-2))
        return x + self.narrow(F.gelu(self.wide(self.between(x))))


class Model(nn.Module):
    """The next byte of a text."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes, self.places = nn.Embedding(VOCABULARY, WIDTH), nn.Embedding(CONTEXT, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(LAYERS)))
        self.norm, self.head = nn.LayerNorm(WIDTH), nn.Linear(WIDTH, VOCABULARY)

    def forward(self, text: Tensor) -> Tensor:
        """The mean loss of every byte but the first."""
        text = text.long()
        hidden = self.blocks(self.bytes(text[:, :-1]) + self.places.weight)
        return F.cross_entropy(self.head(self.norm(hidden)).flatten(0, 1), text[:, 1:].flatten())


class Adam:
    """The optimizer; each process has its part of the moments, of all parameters in one row."""

    def __init__(self, model: Model) -> None:
        self.parameters = list(model.parameters())
        self.count = sum(parameter.numel() for parameter in self.parameters)
        mesh = init_device_mesh("cpu", (dist.get_world_size(),))
        self.moments = [self._sharded(mesh) for _ in range(2)]

    def _sharded(self, mesh: Any) -> DTensor:
        share = -(-self.count // dist.get_world_size())
        begin = min(self.count, dist.get_rank() * share)
        self.own = slice(begin, min(self.count, begin + share))
        local = torch.zeros(self.own.stop - self.own.start)
        return DTensor.from_local(local, mesh, [Shard(0)], shape=torch.Size([self.count]), stride=(1,))

    def step(self, gradient: Tensor, number: int) -> None:
        """Updates the parameters by the gradient of all of them in one row."""
        first, second = (moment.to_local() for moment in self.moments)
        mine = gradient[self.own]
        first.mul_(BETA1).add_(mine, alpha=1 - BETA1)
        second.mul_(BETA2).addcmul_(mine, mine, value=1 - BETA2)
        scale = (second / (1 - BETA2**number)).sqrt_().add_(EPSILON)
        change = (first / (1 - BETA1**number)).div_(scale).mul_(-RATE)
        share = -(-self.count // dist.get_world_size())
        parts = [torch.zeros(share) for _ in range(dist.get_world_size())]
        dist.all_gather(parts, F.pad(change, (0, share - change.numel())))
        everything = torch.cat(parts)[: self.count].split([each.numel() for each in self.parameters])
        with torch.no_grad():
            for parameter, part in zip(self.parameters, everything, strict=True):
                parameter.add_(part.view_as(parameter))


class Trainer:
    """One process of a training."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options = options
        torch.manual_seed(options.seed)
        self.model = Model()
        self.optimizer = Adam(self.model)
        data = MapDataset(open_records(place(options.out, "text.ffr")))
        self.loader = Loader(data, global_batch_size=BATCH, seed=options.seed)
        self.losses = torch.zeros(options.steps, dtype=torch.float64)

    def state(self) -> dict[str, Any]:
        """All that training needs to resume."""
        return {
            "model": self.model.state_dict(),
            "moments": self.optimizer.moments,
            "loader": self.loader.state_dict(),
            "losses": self.losses,
        }

    def run(self) -> None:
        """Trains to the last step, from the newest checkpoint on."""
        options = self.options
        with Checkpoints(place(options.out, "checkpoints"), keep=Keep(last=2)) as checkpoints:
            state = self.state()
            step = checkpoints.load(state) or 0
            self.loader.load_state_dict(state["loader"])
            if step and dist.get_rank() == 0:
                print(f"{dist.get_world_size()} processes resume after step {step}", flush=True)
            while step < options.steps:
                for batch in self.loader:
                    self.losses[step] = self.step(batch, step + 1)
                    step += 1
                    if step % options.every == 0 or step == options.steps:
                        checkpoints.async_save(step, self.state())
                    if step == options.steps:
                        break
        if dist.get_rank() == 0:
            self.write_losses()

    def step(self, batch: Tensor, number: int) -> float:
        """One step; the loss of the whole batch."""
        gradients, losses = [], []
        for part in batch.split(BATCH // MICRO_BATCHES):
            self.model.zero_grad(set_to_none=True)
            loss = self.model(part)
            loss.backward()
            gradients.append(torch.cat([each.grad.flatten() for each in self.optimizer.parameters]))
            losses.append(loss.detach().double())
        self.optimizer.step(in_order(gradients) / MICRO_BATCHES, number)
        return float(in_order(losses) / MICRO_BATCHES)

    def write_losses(self) -> None:
        """The losses of all steps, in losses.json."""
        file_system, path = open_location(place(self.options.out, "losses.json"))
        with replacing(file_system, path) as file:
            file.write(json.dumps(self.losses.tolist()).encode())


def in_order(own: list[Tensor]) -> Tensor:
    """The sum of what all micro-batches have, the first first."""
    stacked = torch.stack(own)
    found = [torch.empty_like(stacked) for _ in range(dist.get_world_size())]
    dist.all_gather(found, stacked)
    total = torch.zeros_like(own[0])
    for each in torch.cat(found):
        total += each
    return total


def place(out: str, *names: str) -> Location:
    """Something below the location of a training."""
    return parse_location(out, os.environ).join(*names)


def make_text(out: str) -> None:
    """The records, if they are not there: pieces of text of one length."""
    where = place(out, "text.ffr")
    file_system, path = open_location(where)
    if not file_system.exists(path):
        text = docstrings(TEXT_BYTES)
        file_system.makedirs(os.path.dirname(path), exist_ok=True)
        starts = range(0, len(text) - CONTEXT - 1, CONTEXT)
        with FFRecordWriter(where, len(starts)) as writer:
            for start in starts:
                writer.write(text[start : start + CONTEXT + 1])


def train(options: argparse.Namespace) -> None:
    """This process is the first rank; the others are forked from it."""
    make_text(options.out)
    close_locations()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    others = [fork(functools.partial(run_rank, rank, port, options)) for rank in range(1, options.processes)]
    try:
        run_rank(0, port, options)
    except BaseException:
        for pid in others:
            os.kill(pid, signal.SIGKILL)
        raise
    finally:
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in others]
    if any(codes):
        sys.exit(f"processes ended with {codes}; the same command resumes")


def fork(work: Callable[[], None]) -> int:
    """Another process, with all that this one has imported."""
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        work()
        code = 0
    except BaseException:  # noqa: BLE001 (the top of this process)
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def run_rank(rank: int, port: int, options: argparse.Namespace) -> None:
    """One rank of a training."""
    size = options.processes
    store = dist.TCPStore("127.0.0.1", port, size, is_master=rank == 0)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size)
    try:
        Trainer(options).run()
        dist.barrier()  # the first process has the store: it leaves last
    finally:
        dist.destroy_process_group()
        close_locations()


def compare(options: argparse.Namespace) -> None:
    """The training that is stopped beside the one that is not."""
    whole, stopped = str(place(options.out, "whole")), str(place(options.out, "stopped"))
    wait(start(options, whole, 2))
    job = start(options, stopped, 2)
    try:
        wait_for_checkpoint(stopped, options.steps // 2, job)
    finally:
        os.killpg(job, signal.SIGKILL)
        os.waitpid(job, 0)
    kept = [saved.step or 0 for saved in list_checkpoints(place(stopped, "checkpoints"))]
    print(f"killed; checkpoints of steps {kept} are there", flush=True)
    wait(start(options, stopped, options.resume_processes))
    curves = [read_losses(whole), read_losses(stopped)]
    if options.plot:
        draw(curves, max(kept), options)
    close_locations()
    if curves[0] != curves[1]:
        sys.exit("the losses differ")
    first, last = curves[0][0], curves[0][-1]
    print(
        f"the losses of all {options.steps} steps are equal, bit by bit: {first:.3f} to {last:.3f}",
        flush=True,
    )


def start(options: argparse.Namespace, out: str, processes: int) -> int:
    """A training of its own, whose processes can be killed together."""

    def work() -> None:
        os.setsid()
        train(argparse.Namespace(**{**vars(options), "out": out, "processes": processes}))

    return fork(work)


def wait(job: int) -> None:
    """Returns when a training has come to its end."""
    code = os.waitstatus_to_exitcode(os.waitpid(job, 0)[1])
    if code:
        sys.exit(f"a training ended with {code}")


def wait_for_checkpoint(out: str, step: int, job: int) -> None:
    """Returns when there is one of that step or later."""
    deadline = time.monotonic() + WAIT_S
    where = place(out, "checkpoints")
    while True:
        file_system, path = open_location(where)
        found = list_checkpoints(where) if file_system.isdir(path) else []
        if any(saved.step is not None and saved.step >= step for saved in found):
            return
        ended = os.waitid(os.P_PID, job, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if ended is not None or time.monotonic() > deadline:
            sys.exit("the training ended before it could be killed: give more --steps")
        time.sleep(0.02)


def read_losses(out: str) -> list[float]:
    """What a training has written."""
    file_system, path = open_location(place(out, "losses.json"))
    losses: list[float] = json.loads(file_system.read(path))
    return losses


def draw(curves: list[list[float]], stop: int, options: argparse.Namespace) -> None:
    """Both curves, the second dotted over the first."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4), layout="constrained")
    axes.plot(
        range(1, options.steps + 1), curves[0], color="tab:blue", linewidth=3, label="2 processes, no stop"
    )
    label = f"2 processes, killed, then {options.resume_processes}"
    axes.plot(range(1, options.steps + 1), curves[1], color="black", linestyle=":", label=label)
    axes.axvline(stop, color="tab:red", linewidth=1, label=f"resumes after step {stop}")
    axes.set(xlabel="step", ylabel="loss (nats per byte)", title="A language model on Python's documentation")
    axes.legend()
    figure.savefig(options.plot, dpi=120)
    plt.close(figure)


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("command", choices=("train", "compare"))
    parser.add_argument("--out", required=True, help="directory, or place on a cluster")
    parser.add_argument("--processes", type=int, default=2, choices=(1, 2, 4))
    parser.add_argument("--resume-processes", type=int, default=1, choices=(1, 2, 4))
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--every", type=int, default=10, help="steps between checkpoints")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--plot", type=Path, help="file for the curves of `compare`")
    options = parser.parse_args()
    if min(options.steps, options.every) < 1:
        parser.error("--steps and --every must be at least 1")
    return options


def main() -> None:
    """Trains, or compares."""
    torch.set_num_threads(1)
    options = parse()
    (compare if options.command == "compare" else train)(options)


if __name__ == "__main__":
    main()
