"""The frameworks themselves, on small models: every sample once an epoch, on one rank and two, also after a stop."""

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from luciola.cli.datadir import free_ports
from luciola.plugins.dataset import Loader, MapDataset, open_records
from number_records import epoch_of, first_numbers, write_numbers
from pipeline_ranks import Ranks

lightning = pytest.importorskip("lightning")
ModelCheckpoint = pytest.importorskip("lightning.pytorch.callbacks").ModelCheckpoint
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


@pytest.fixture(scope="module")
def framework_ranks() -> Iterator[Ranks]:
    """Forks the ranks from one parent that has imported the frameworks: that takes longer than their trainings."""
    made = Ranks("framework_cases")
    yield made
    made.close()


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [1, 2])
def test_losses_with_and_without_a_stop(framework_ranks: Ranks, tmp_path: Path, ranks: int) -> None:
    """Equal bit by bit, for 0, 1, 2 and 4 workers; the loader is older than the process group."""
    write_numbers(tmp_path, 60)
    [port] = free_ports(1)
    result = str(tmp_path / "result")
    answers = framework_ranks.run("train_all", ranks, directory=str(tmp_path), result=result, port=port)
    assert [(each.error, each.message, each.status) for each in answers] == [("", "", 0)] * ranks
    parts = [each.value for each in answers]
    dataset = MapDataset(open_records(tmp_path))
    wanted = [batch for epoch in range(2) for batch in epoch_of(dataset, 3, epoch, 12)]
    for framework, kind in [(name, kind) for name, kinds in parts[0].items() for kind in kinds]:
        trainings = [part[framework] for part in parts]
        by_rank = [[numbers for numbers, _ in training[kind]] for training in trainings]
        if framework == "tensor parallel":
            assert all(seen == by_rank[0] for seen in by_rank), "ranks of one replica read the same"
            by_rank = by_rank[:1]
        seen = [list(itertools.chain(*step)) for step in zip(*by_rank, strict=True)]
        epochs = [sorted(itertools.chain(*seen[start : start + 5])) for start in (0, 5)]
        assert epochs == [list(range(60))] * 2, "every sample once an epoch"
        assert seen == wanted, (framework, kind)
        assert all(training[kind] == training["whole"] for training in trainings), (framework, kind)
    dataset.close()


class Counting(lightning.LightningModule):
    """Remembers the numbers that it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []
        self.validated: list[list[int]] = []

    def training_step(self, batch: Any, _index: int) -> Any:
        self.seen.append(first_numbers(batch))
        return self.layer(batch[:, :1].float() / 255).mean()

    def validation_step(self, batch: Any, _index: int) -> None:
        self.validated.append(first_numbers(batch))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.01)


@pytest.mark.filterwarnings("ignore")  # Lightning has many
def test_lightning_trains_every_epoch_validates_the_same_and_resumes(
    numbers: MapDataset, tmp_path: Path
) -> None:
    quiet = {
        "accelerator": "cpu", "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "default_root_dir": tmp_path, "max_epochs": 3,
    }  # fmt: skip

    def loaders() -> dict[str, Loader]:
        return {
            "train_dataloaders": Loader(numbers, global_batch_size=20, seed=3),
            "val_dataloaders": Loader(numbers, global_batch_size=50, shuffle=False),
        }

    model = Counting()
    stops = [
        ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1),
        ModelCheckpoint(tmp_path, "{epoch}", every_n_epochs=1, save_top_k=-1),
    ]
    lightning.Trainer(num_sanity_val_steps=1, callbacks=stops, **quiet).fit(model, **loaders())
    whole = [batch for epoch in range(3) for batch in epoch_of(numbers, 3, epoch, 20)]
    assert model.seen == whole
    ordered = [list(range(50)), list(range(50, 100))]
    assert model.validated == [ordered[0], *ordered, *ordered, *ordered], (
        "and the sanity check took none of it"
    )
    for name, steps in {"step=7": 7, "epoch=0": 5, "epoch=1": 10}.items():
        again = Counting()
        lightning.Trainer(num_sanity_val_steps=0, enable_checkpointing=False, **quiet).fit(
            again, **loaders(), ckpt_path=tmp_path / f"{name}.ckpt", weights_only=False
        )
        assert again.seen == whole[steps:], name


class Summing(torch.nn.Module):
    """What a Trainer wants of a model."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)
        self.seen: list[list[int]] = []

    def forward(self, records: Any = None, **_: Any) -> dict[str, Any]:
        self.seen.append(first_numbers(records))
        return {"loss": self.layer(records[:, :1].float() / 255).mean()}


@pytest.mark.filterwarnings("ignore")
def test_transformers_trainer_takes_every_sample_once_an_epoch(numbers: MapDataset, tmp_path: Path) -> None:
    loader = Loader(
        numbers, global_batch_size=20, seed=3, collate_fn=lambda samples: {"records": samples.tensor}
    )

    class Trainer(transformers.Trainer):
        def get_train_dataloader(self) -> Loader:
            return loader

    model = Summing()
    arguments = transformers.TrainingArguments(
        str(tmp_path), num_train_epochs=2, use_cpu=True, report_to=[], save_strategy="no", disable_tqdm=True
    )
    Trainer(model, arguments, train_dataset=numbers).train()
    assert model.seen == [batch for epoch in range(2) for batch in epoch_of(numbers, 3, epoch, 20)]
    assert (loader.epoch, loader.left) in {(1, 0), (2, 5)}
