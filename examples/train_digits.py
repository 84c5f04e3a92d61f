"""Trains a classifier of handwritten digits with two processes, kills them and a storage node, and resumes with one.

usage: python examples/train_digits.py demo [--plot digits.png]     everything, on a cluster of its own
       python examples/train_digits.py pack DIRECTORY               the digits as FFRecord files
       python examples/train_digits.py train OUT --data DIRECTORY [--ranks 2]

The digits are scikit-learn's: 1797 pictures of 8×8. Places are directories or locations on a cluster (lu:/digits).
`train` resumes from the last checkpoint in OUT, on any number of processes, in the middle of an epoch. The losses are
then those of a training that was never stopped, bit by bit: `Loader` gives the same global batches, and gradients are
summed up by pieces of PIECE samples, whose order does not depend on who computed them.
"""

import argparse
import io
import json
import os
import signal
import subprocess
import sys
import tempfile
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Final

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.multiprocessing.spawn import start_processes
from torch.nn import functional as F

from luciola.client import close_locations, open_location, replacing
from luciola.plugins.dataset import FFRecordWriter, Loader, MapDataset, Samples, open_records

BATCH: Final = 64
PIECE: Final = 8  # samples whose gradients are computed at once
TRAINING: Final = 1500  # of 1797 digits; the rest shows how good the result is
SEED: Final = 7
CHECKPOINT_EVERY: Final = 10  # steps


def main() -> None:
    options = parse()
    torch.set_num_threads(1)
    if options.command == "demo":
        demo(options)
    elif options.command == "pack":
        pack(options.directory)
    else:
        start_training(options)


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="command", required=True)
    one = commands.add_parser("demo", help="train, be killed, resume, compare, draw")
    one.add_argument("--plot", type=Path, default=Path("digits.png"))
    two = commands.add_parser("pack", help="write the digits")
    two.add_argument("directory")
    three = commands.add_parser("train", help="train, or resume")
    three.add_argument("out")
    three.add_argument("--data", required=True)
    three.add_argument("--ranks", type=int, choices=(1, 2, 4, 8), default=2)
    three.add_argument("--checkpoint-every", type=int, default=CHECKPOINT_EVERY, help="steps")
    three.add_argument(
        "--kill", type=int, nargs=2, metavar=("STEP", "PID"), help="SIGKILL after that step, PID too"
    )
    for command in (one, three):
        command.add_argument("--epochs", type=int, default=8)
    return parser.parse_args()


# ---- data


def pack(directory: str) -> None:
    """Two data sets. A record is 64 pixels and the label, a byte each."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    pixels = torch.from_numpy(digits.data).to(torch.uint8)
    labels = torch.from_numpy(digits.target).to(torch.uint8)
    records = torch.cat((pixels, labels.unsqueeze(1)), dim=1).numpy()
    for name, part in (("training", records[:TRAINING]), ("test", records[TRAINING:])):
        with FFRecordWriter(f"{directory}/{name}.ffr", len(part)) as writer:
            for record in part:
                writer.write(record.data)


def digits_of(samples: Samples) -> tuple[Tensor, Tensor]:
    """Pictures and labels of a batch, which is one tensor."""
    assert samples.tensor is not None, "all records are of one length"
    return samples.tensor[:, :64].view(-1, 1, 8, 8).float() / 16, samples.tensor[:, 64].long()


# ---- training


class Training:
    """Model, optimizer and loader, and how far they have come."""

    def __init__(self, options: argparse.Namespace, rank: int) -> None:
        torch.manual_seed(SEED)
        self.rank, self.ranks = rank, options.ranks
        self.out, self.every, self.kill = options.out, options.checkpoint_every, options.kill
        self.model = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip
        self.optimizer = torch.optim.Adam(self.model.parameters(), 3e-3)
        self.loader = Loader(
            MapDataset(open_records(f"{options.data}/training.ffr")),
            global_batch_size=BATCH, seed=SEED, rank=rank, ranks=options.ranks, collate_fn=digits_of,
        )  # fmt: skip
        self.losses: list[float] = []

    def run(self, epochs: int) -> None:
        while self.loader.epoch < epochs:
            for pictures, labels in self.loader:
                self.losses.append(self.step(pictures, labels))
                if self.rank == 0:
                    print(
                        f"epoch {self.loader.epoch} step {len(self.losses)} loss {self.losses[-1]:.4f}",
                        flush=True,
                    )
                if len(self.losses) % self.every == 0:
                    self.save()
                if self.kill and self.rank == 0 and len(self.losses) == self.kill[0]:
                    os.kill(self.kill[1], signal.SIGKILL)
                    os.killpg(0, signal.SIGKILL)  # this process too
        self.save()

    def step(self, pictures: Tensor, labels: Tensor) -> float:
        """One step of all ranks; the mean loss of the global batch."""
        pieces = [
            self.piece(*piece) for piece in zip(pictures.split(PIECE), labels.split(PIECE), strict=True)
        ]
        everywhere = self.gathered(torch.stack(pieces))
        mean = everywhere.sum(0) / BATCH
        place = 1
        for parameter in self.model.parameters():
            parameter.grad = mean[place : place + parameter.numel()].view_as(parameter).clone()
            place += parameter.numel()
        self.optimizer.step()
        return float(mean[0])

    def piece(self, pictures: Tensor, labels: Tensor) -> Tensor:
        """The loss of a few samples, and behind it all gradients."""
        self.model.zero_grad()
        loss = F.cross_entropy(self.model(pictures), labels, reduction="sum")
        loss.backward()
        gradients = [
            parameter.grad.flatten() for parameter in self.model.parameters() if parameter.grad is not None
        ]
        return torch.cat((loss.detach().view(1), *gradients))

    def gathered(self, own: Tensor) -> Tensor:
        """The pieces of all ranks, in the order of the global batch."""
        if self.ranks == 1:
            return own
        found = [torch.empty_like(own) for _ in range(self.ranks)]
        dist.all_gather(found, own)
        return torch.cat(found)

    def save(self) -> None:
        """A checkpoint, which takes its name when it is complete and durable."""
        if self.rank == 0:
            state = {
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "loader": self.loader.state_dict(),
                "losses": self.losses,
            }
            files, path = open_location(f"{self.out}/checkpoint.pt")
            with replacing(files, path) as file:
                torch.save(state, file)

    def resume(self) -> None:
        """Resume from the checkpoint, if there is one."""
        files, path = open_location(f"{self.out}/checkpoint.pt")
        if files.exists(path):
            state: dict[str, Any] = torch.load(io.BytesIO(files.read(path)), weights_only=True)
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.loader.load_state_dict(state["loader"])
            self.losses = state["losses"]
            if self.rank == 0:
                epoch, sample = self.loader.epoch, self.loader.sample
                print(f"resuming after step {len(self.losses)}: epoch {epoch}, sample {sample}", flush=True)


def start_training(options: argparse.Namespace) -> None:
    """With as many processes as `ranks`."""
    if options.ranks == 1:
        train(0, options, None)
    else:
        with tempfile.TemporaryDirectory() as meeting:
            start_processes(train, (options, f"{meeting}/store"), nprocs=options.ranks, start_method="fork")


def train(rank: int, options: argparse.Namespace, meeting: str | None) -> None:
    """One process of a training."""
    if meeting is not None:
        dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=options.ranks)
    try:
        training = Training(options, rank)
        training.resume()
        training.run(options.epochs)
        if rank == 0:
            files, path = open_location(f"{options.out}/losses.json")
            with replacing(files, path) as file:
                file.write(json.dumps(training.losses).encode())
            print(f"of the digits that it has not seen it knows {accuracy(training.model, options.data):.1%}")
    finally:
        if meeting is not None:
            dist.destroy_process_group()
        close_locations()


def accuracy(model: nn.Module, data: str) -> float:
    """The share of the test's digits that the model knows."""
    dataset = MapDataset(open_records(f"{data}/test.ffr"))
    pictures, labels = digits_of(dataset.__getitems__(range(len(dataset))))
    with torch.no_grad():
        return float((model(pictures).argmax(1) == labels).float().mean())


# ---- the demonstration


def demo(options: argparse.Namespace) -> None:
    """Trains without a stop; trains, kills, and resumes; both have to give the same losses."""
    with tempfile.TemporaryDirectory(prefix="luciola-digits-") as root:
        data = Path(root) / "data"
        luciola("up", "--data", str(data), "--storage-nodes", "3", "--replicas", "2", "--detach")
        try:
            compare(data, options)
        finally:
            close_locations()
            luciola("down", "--data", str(data))


def compare(data: Path, options: argparse.Namespace) -> None:
    cluster = f"luciola://{data}!"
    torch.optim.Adam([torch.zeros(1)])  # the first one imports for seconds: here once, for all that is forked
    pack(f"{cluster}/digits")
    run_training(cluster, "unstopped", options, ranks=2)
    steps = TRAINING // BATCH * options.epochs
    kill_at = steps * 5 // 8 + 3
    print(f"\nand now with a stop after step {kill_at}")
    node = storage_node(data)
    killed = run_training(cluster, "stopped", options, ranks=2, kill=(kill_at, node))
    print(f"killed both processes, and storage node {node} with them")
    first, *reported = run_training(cluster, "stopped", options, ranks=1)
    resumed = int(first.partition("step ")[2].partition(":")[0])
    assert 0 < resumed <= kill_at, first
    assert reported[: kill_at - resumed] == killed[resumed:], "the steps behind the checkpoint, done again"
    unstopped, stopped = (
        json.loads(read(f"{cluster}/{name}/losses.json")) for name in ("unstopped", "stopped")
    )
    draw(options.plot, unstopped, [float(line.split()[-1]) for line in killed], stopped[resumed:])
    if unstopped != stopped:
        sys.exit("the losses differ")
    print(
        f"\n{len(stopped)} losses, equal in every bit to those of the training without a stop: {options.plot}"
    )


def run_training(
    cluster: str, name: str, options: argparse.Namespace, *, ranks: int, kill: tuple[int, int] | None = None
) -> list[str]:
    """The lines that it printed. `kill`: the step after which it is killed, and a process that is killed with it."""
    training = argparse.Namespace(
        out=f"{cluster}/{name}", data=f"{cluster}/digits", ranks=ranks,
        epochs=options.epochs, checkpoint_every=CHECKPOINT_EVERY, kill=kill,
    )  # fmt: skip
    output, end = os.pipe()
    process = get_context("fork").Process(target=train_apart, args=(training, end))
    process.start()
    os.close(end)
    lines: list[str] = []
    with open(output) as printed:
        for line in printed:
            print(f"{name}, {ranks} processes: {line}", end="")
            lines.append(line)
    process.join()
    if process.exitcode != (0 if kill is None else -signal.SIGKILL):
        sys.exit(f"the training {name!r} ended with {process.exitcode}")
    return lines


def train_apart(options: argparse.Namespace, output: int) -> None:
    """A training in a process group of its own, which can be killed as a whole, and prints into a pipe."""
    os.setsid()
    os.dup2(output, sys.stdout.fileno())
    os.close(output)
    start_training(options)


def storage_node(data: Path) -> int:
    """The process of the first storage node that runs."""
    status = json.loads(luciola("status", "--data", str(data), "--json", check=False))
    return next(each["pid"] for each in status["services"] if each["kind"] == "storage" and each["pid"])


def luciola(*arguments: str, check: bool = True) -> str:
    """The command line, in a process of its own."""
    command = [sys.executable, "-m", "luciola", *arguments]
    return subprocess.run(command, check=check, stdout=subprocess.PIPE, text=True).stdout


def read(location: str) -> bytes:
    files, path = open_location(location)
    return files.read(path)


def draw(path: Path, unstopped: list[float], killed: list[float], resumed: list[float]) -> None:
    """The curves, and where the second was stopped."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.add_subplot()
    steps, stop = len(unstopped), len(killed)
    start = steps - len(resumed)
    axes.plot(
        range(1, steps + 1), unstopped, linewidth=6, color="#b9d7ea", label="never stopped, two processes"
    )
    axes.plot(range(1, stop + 1), killed, linewidth=1.4, color="#1f4e79", label="stopped: two processes")
    label = f"then one, from the checkpoint of step {start}"
    axes.plot(range(start + 1, steps + 1), resumed, "--", linewidth=1.4, color="#c0392b", label=label)
    axes.axvline(stop, color="black", linewidth=0.8)
    axes.annotate(
        "both processes and a storage node killed ",
        (stop, max(unstopped) * 0.8),
        horizontalalignment="right",
        fontsize=9,
    )
    for end in range(TRAINING // BATCH, steps, TRAINING // BATCH):
        axes.axvline(end, color="gray", linewidth=0.5, linestyle=":")
    axes.set_xlabel("step (dotted: ends of epochs)")
    axes.set_ylabel("loss")
    axes.set_yscale("log")
    axes.legend(loc="lower left")
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
