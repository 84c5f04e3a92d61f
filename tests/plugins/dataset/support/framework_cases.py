"""One rank of test_frameworks.py, with torchrun's environment.

With each framework, trains two epochs without a stop, and then once for each of its stops to a step in an epoch, where
everything is made again and resumes with another number of workers.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import torch
import torch.distributed as dist
import transformers
from accelerate import Accelerator
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

from luciola.plugins.dataset import GlobalBatches, Loader, MapDataset, Order, collate, open_records
from number_records import first_numbers

SEED = 3
BATCH = 12
EPOCHS = 2
# Workers before, workers after, the step between. Four have read beyond the end of an epoch at any of its steps.
STOPS = ((1, 4, 2), (2, 0, 6))
SAME_STOPS = ((1, 1, 2), (4, 4, 6))  # for what resumes with as many workers only

Seen = list[tuple[list[int], str]]
"""Of each step the numbers of this rank and its loss, in hexadecimal."""


def loss_of(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch[:, :4].float() / 255) - 0.5).square().mean()


def new_model() -> torch.nn.Module:
    torch.manual_seed(1)
    return torch.nn.Linear(4, 1)


def note(seen: Seen, batch: torch.Tensor, loss: torch.Tensor) -> None:
    seen.append((first_numbers(batch), loss.item().hex()))


class Loop:
    """A loop of one's own around a model that `wrap` has made parallel."""

    def __init__(self, loader: Any, wrap: Callable[[torch.nn.Module], Any]) -> None:
        self.loader = loader
        self.model = wrap(new_model())
        self.optimizer = torch.optim.SGD(self.model.parameters(), lr=0.1, momentum=0.9)

    def run(self, seen: Seen, stop: int | None) -> dict[str, Any]:
        for _ in range(self.loader.epoch, EPOCHS):
            for batch in self.loader:
                loss = loss_of(self.model, batch)
                self.optimizer.zero_grad()
                loss.backward()
                self.optimizer.step()
                note(seen, batch, loss.detach())
                if len(seen) == stop:
                    return self.state()
        return {}

    def state(self) -> dict[str, Any]:
        return {
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "loader": self.loader.state_dict(),
        }

    def load(self, state: dict[str, Any]) -> None:
        for name, part in state.items():
            getattr(self, name).load_state_dict(part)


class Stateful:
    """torchdata's loader in the global order, with the epoch that it is in."""

    def __init__(self, given: Loader) -> None:
        self.epoch = 0
        order = Order(given.dataset.sizes, seed=SEED)
        batches = GlobalBatches(
            order, global_batch_size=BATCH, rank=dist.get_rank(), ranks=dist.get_world_size()
        )
        self.inner = StatefulDataLoader(
            given.dataset, batch_sampler=batches, collate_fn=collate, num_workers=given.num_workers
        )

    def __iter__(self) -> Any:
        yield from self.inner
        self.epoch += 1

    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch, "inner": self.inner.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.epoch = state["epoch"]
        self.inner.load_state_dict(state["inner"])


def mesh_of_one_replica() -> Any:
    """All ranks are one replica, over whose ranks tensors are cut: they read the same samples."""
    return init_device_mesh("cpu", (1, dist.get_world_size()), mesh_dim_names=("data", "tensor"))


def tensor_parallel(_model: torch.nn.Module) -> torch.nn.Module:
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Linear(8, 1))
    plan = {"0": ColwiseParallel(), "1": RowwiseParallel()}
    return parallelize_module(model, mesh_of_one_replica()["tensor"], plan)


def one_replica(given: Loader) -> Loader:
    return Loader(
        given.dataset, global_batch_size=BATCH, seed=SEED, num_workers=given.num_workers,
        mesh=mesh_of_one_replica()["data"],
    )  # fmt: skip


def own_loop(
    wrap: Callable[[torch.nn.Module], Any], loader_of: Callable[[Loader], Any] = lambda given: given
) -> Callable[..., None]:
    def train(
        loaders: Callable[[], Loader], _place: Path, seen: Seen, stop: int | None, *, resume: bool
    ) -> None:
        loop = Loop(loader_of(loaders()), wrap)
        if resume:
            loop.load(saved.pop())
        elif stop is not None:
            saved.append(loop.run(seen, stop))
            return
        loop.run(seen, None)

    saved: list[dict[str, Any]] = []
    return train


def accelerate_loop(
    loaders: Callable[[], Loader], place: Path, seen: Seen, stop: int | None, *, resume: bool
) -> None:
    accelerator = Accelerator(cpu=True)
    original = new_model()
    optimizer = torch.optim.SGD(original.parameters(), lr=0.1, momentum=0.9)
    given = loaders()
    model, optimizer, loader = accelerator.prepare(original, optimizer, given)
    assert loader is given
    if resume:
        accelerator.load_state(str(place))
    for _ in range(loader.epoch, EPOCHS):
        for batch in loader:
            loss = loss_of(model, batch)
            optimizer.zero_grad()
            accelerator.backward(loss)
            optimizer.step()
            note(seen, batch, loss.detach())
            if stop is not None and len(seen) == stop:
                accelerator.save_state(str(place))
                return


class Module(lightning.LightningModule):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.layer = new_model()
        self.seen = seen
        self.validated: list[list[int]] = []

    def training_step(self, batch: Any, _index: int) -> Any:
        loss = loss_of(self.layer, batch)
        note(self.seen, batch, loss.detach())
        return loss

    def validation_step(self, batch: Any, _index: int) -> None:
        self.validated.append(first_numbers(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)


def lightning_loop(
    loaders: Callable[[], Loader], place: Path, seen: Seen, stop: int | None, *, resume: bool
) -> None:
    """With a sanity check and a validation, which see the same each time."""
    train = loaders()
    validation = Loader(train.dataset, global_batch_size=20, shuffle=False)
    module = Module(seen)
    callbacks = [] if stop is None else [ModelCheckpoint(place, "stop", every_n_train_steps=stop)]
    ranks = dist.get_world_size()
    trainer = lightning.Trainer(
        accelerator="cpu", devices=ranks, strategy="ddp", max_epochs=EPOCHS, max_steps=stop or -1,
        num_sanity_val_steps=1, callbacks=callbacks, enable_checkpointing=bool(callbacks), logger=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=place,
    )  # fmt: skip
    checkpoint = place / "stop.ckpt" if resume else None
    trainer.fit(module, train, validation, ckpt_path=checkpoint, weights_only=False)
    own = 20 // ranks
    one = [list(range(at + own * dist.get_rank(), at + own * (dist.get_rank() + 1))) for at in (0, 20, 40)]
    sanity = [] if resume else one[:1]
    assert module.validated in ([*sanity, *one * times] for times in range(EPOCHS + 1)), module.validated


class ForTrainer(torch.nn.Module):
    def __init__(self, seen: Seen) -> None:
        super().__init__()
        self.layer = new_model()
        self.seen = seen

    def forward(self, records: Any = None, **_: Any) -> dict[str, Any]:
        loss = loss_of(self.layer, records)
        if self.training:
            note(self.seen, records, loss.detach())
        return {"loss": loss}


class KeepLoader(transformers.TrainerCallback):
    """The loader's place beside each checkpoint."""

    def __init__(self, loader: Loader) -> None:
        self.loader = loader

    def on_save(self, args: Any, state: Any, _control: Any, **_: Any) -> None:
        (Path(args.output_dir) / f"checkpoint-{state.global_step}" / "loader.json").write_text(
            json.dumps(self.loader.state_dict())
        )


def trainer_loop(
    loaders: Callable[[], Loader], place: Path, seen: Seen, stop: int | None, *, resume: bool
) -> None:
    loader = loaders()
    loader.collate_fn = lambda samples: {"records": samples.tensor}

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Loader:
            return loader

    arguments = transformers.TrainingArguments(
        str(place), num_train_epochs=EPOCHS, use_cpu=True, report_to=[], disable_tqdm=True, ignore_data_skip=True,
        save_strategy="no" if stop is None else "steps", save_steps=stop or 1, seed=1, max_grad_norm=0,
        lr_scheduler_type="constant", optim="sgd", learning_rate=0.1,
    )  # fmt: skip

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, _args: Any, state: Any, control: Any, **_: Any) -> None:
            control.should_training_stop = state.global_step == stop

    trainer = Trainer(
        ForTrainer(seen), arguments, train_dataset=loader.dataset, callbacks=[KeepLoader(loader), Stop()]
    )
    checkpoint = max(place.glob("checkpoint-*")) if resume else None
    if checkpoint is not None:
        loader.load_state_dict(json.loads((checkpoint / "loader.json").read_text()))
    trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))


FRAMEWORKS: dict[str, tuple[Callable[..., None], tuple[tuple[int, int, int], ...]]] = {
    "ddp": (own_loop(DistributedDataParallel), STOPS),
    "fsdp2": (own_loop(fully_shard), STOPS),
    "tensor parallel": (own_loop(tensor_parallel, one_replica), STOPS),
    "torchdata": (own_loop(DistributedDataParallel, Stateful), SAME_STOPS),
    "accelerate": (accelerate_loop, STOPS),
    "lightning": (lightning_loop, STOPS),
    "trainer": (trainer_loop, STOPS),  # the last: its batches are dictionaries
}


def metrics_and_accumulation(dataset: MapDataset) -> None:
    """What Accelerate decides by its loaders: as with one of its own, by the same batches."""
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=3)
    accelerator.gradient_state.plugin_kwargs["num_steps"] = 3  # the state is shared with those before
    steps: dict[str, list[bool]] = {}
    loaders = {
        "luciola": Loader(dataset, global_batch_size=16, tail="pad", shuffle=False),
        "accelerate": DataLoader(dataset, batch_size=16 // accelerator.num_processes),
    }
    for name, given in loaders.items():
        model, loader = accelerator.prepare(torch.nn.Linear(4, 1), given)
        gathered: list[int] = []
        steps[name] = []
        for _ in range(2):
            for batch in loader:
                tensor = batch if isinstance(batch, torch.Tensor) else torch.stack(list(batch))
                with accelerator.accumulate(model):
                    accelerator.backward(loss_of(model, tensor))
                    steps[name].append(accelerator.sync_gradients)
                gathered += accelerator.gather_for_metrics(torch.tensor(first_numbers(tensor))).tolist()
        assert sorted(gathered) == sorted([*range(len(dataset))] * 2), (name, gathered)
    assert steps["luciola"] == steps["accelerate"], steps


def train_all(rank: int, size: int, *, directory: str, result: str, port: int) -> dict[str, dict[str, Seen]]:
    """What each training of each framework has seen, and its losses."""
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "ACCELERATE_USE_CPU": "true",
        "WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size), "RANK": str(rank), "LOCAL_RANK": str(rank),
        "GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test",
    }  # fmt: skip
    dataset = MapDataset(open_records(directory))
    early = Loader(dataset, global_batch_size=BATCH, seed=SEED)  # before the process group
    dist.init_process_group("gloo")
    seen: dict[str, dict[str, Seen]] = {}
    for framework, (train, stops) in FRAMEWORKS.items():
        seen[framework] = trained(dataset, train, stops, early, f"{result}-{framework}")
    metrics_and_accumulation(dataset)
    dist.destroy_process_group()
    return seen


train_all.without_group = True


def trained(
    dataset: MapDataset,
    train: Callable[..., None],
    stops: tuple[tuple[int, int, int], ...],
    early: Loader,
    result: str,
) -> dict[str, Seen]:
    """Without a stop, and with each of some."""

    def loaders(workers: int) -> Loader:
        return Loader(dataset, global_batch_size=BATCH, seed=SEED, num_workers=workers)

    seen: dict[str, Seen] = {"whole": []}
    early.seek(0)
    train(lambda: early, Path(f"{result}-whole"), seen["whole"], None, resume=False)
    for before, after, stop in stops:
        stopped = seen[f"{before} workers, {stop} steps, {after} workers"] = []
        place = Path(f"{result}-{before}")
        train(lambda workers=before: loaders(workers), place, stopped, stop, resume=False)
        assert len(stopped) == stop, stopped
        dist.barrier()
        train(lambda workers=after: loaders(workers), place, stopped, None, resume=True)
    return seen
