"""The frameworks themselves, on small models: every sample once an epoch, on one rank and two, also after a stop."""

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from luciola.plugins.dataset import Loader, MapDataset
from number_records import epoch_of, first_numbers, write_numbers

lightning = pytest.importorskip("lightning")
ModelCheckpoint = pytest.importorskip("lightning.pytorch.callbacks").ModelCheckpoint
transformers = pytest.importorskip("transformers")
pytest.importorskip("accelerate")


def test_two_ranks_of_ddp_fsdp_and_accelerate(numbers: MapDataset, tmp_path: Path) -> None:
    """The loader is made before the process group, and asked when it begins."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    program = Path(__file__).with_name("rank_program.py")
    paths = os.pathsep.join([str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")])
    common = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}
    ranks = [
        subprocess.Popen(
            [sys.executable, str(program), str(tmp_path), str(tmp_path / "result")],
            env={**os.environ, **common, "PYTHONPATH": paths, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        _, errors = rank.communicate()
        assert rank.returncode == 0, errors[-3000:]
    parts = [json.loads((tmp_path / f"result-{rank}.json").read_text()) for rank in range(2)]
    for epoch, kind in ((0, "plain"), (1, "ddp"), (2, "fsdp"), (0, "accelerate")):
        batches = [one + two for one, two in zip(parts[0][kind], parts[1][kind], strict=True)]
        assert batches == epoch_of(numbers, 3, epoch, 20), kind


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
def test_lightning_trains_every_epoch_validates_the_same_and_goes_on(
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
    stops = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=7, save_top_k=-1)
    lightning.Trainer(num_sanity_val_steps=1, callbacks=[stops], **quiet).fit(model, **loaders())
    whole = [batch for epoch in range(3) for batch in epoch_of(numbers, 3, epoch, 20)]
    assert model.seen == whole
    ordered = [list(range(50)), list(range(50, 100))]
    assert model.validated == [ordered[0], *ordered, *ordered, *ordered], (
        "and the sanity check took none of it"
    )
    again = Counting()
    lightning.Trainer(num_sanity_val_steps=0, enable_checkpointing=False, **quiet).fit(
        again, **loaders(), ckpt_path=tmp_path / "step=7.ckpt", weights_only=False
    )
    assert again.seen == whole[7:]


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


@pytest.mark.filterwarnings("ignore:This DataLoader will create 4 worker processes:UserWarning")
@pytest.mark.parametrize("ranks", [1, 2])
def test_stops_and_workers_change_nothing(tmp_path: Path, ranks: int) -> None:
    """1, 2 and 4 workers, each stopped and gone on with another number: the global batches are those of the order."""
    from luciola.plugins.dataset import open_records

    write_numbers(tmp_path, 60)
    dataset = MapDataset(open_records(tmp_path))
    wanted = epoch_of(dataset, 3, 0, 12)
    for workers, later in ((1, 4), (2, 1), (4, 2)):
        seen: list[list[list[int]]] = []
        for rank in range(ranks):
            options = {"global_batch_size": 12, "seed": 3, "rank": rank, "ranks": ranks}
            loader = Loader(dataset, num_workers=workers, **options)
            mine = [first_numbers(batch) for batch in itertools.islice(loader, 2)]
            resumed = Loader(dataset, num_workers=later, **options)
            resumed.load_state_dict(loader.state_dict())
            seen.append(mine + [first_numbers(batch) for batch in resumed])
        assert [list(itertools.chain(*parts)) for parts in zip(*seen, strict=True)] == wanted
    dataset.close()
