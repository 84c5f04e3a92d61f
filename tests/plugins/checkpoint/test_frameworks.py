"""Lightning and Hugging Face's Trainer, their real packages: a job that was stopped resumes with the same weights."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from cluster import LocalCluster
from luciola.client import close_locations, open_location
from luciola.errors import CorruptData, InvalidArgument
from luciola.plugins.checkpoint import Checkpoints, Keep, latest, list_checkpoints, verify

pytestmark = pytest.mark.filterwarnings("ignore")  # of the frameworks and what they import


@pytest.fixture
def root(shared_cluster: LocalCluster, tmp_path):
    """An empty directory of a cluster."""
    place = f"luciola://{shared_cluster.data}!/frameworks-{tmp_path.name}"
    yield place
    fs, path = open_location(place)
    fs.rmtree(path, ignore_errors=True)
    close_locations()


DATA = torch.utils.data.TensorDataset(torch.arange(24.0).reshape(8, 3) / 24, torch.arange(8.0))


# Lightning.


def lightning_job(root, epochs, resume=None):
    import lightning
    from lightning.pytorch.callbacks import ModelCheckpoint

    from luciola.plugins.checkpoint.lightning import LuciolaCheckpointIO

    class Module(lightning.LightningModule):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(3, 1)

        def training_step(self, batch, _):
            return (self.layer(batch[0])[:, 0] - batch[1]).square().mean()

        def configure_optimizers(self):
            return torch.optim.Adam(self.parameters(), lr=0.1)

    lightning.seed_everything(1)
    module = Module()
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        plugins=[LuciolaCheckpointIO()],
        callbacks=[ModelCheckpoint(dirpath=root, filename="{epoch}", save_top_k=1, monitor=None)],
    )
    loader = torch.utils.data.DataLoader(DATA, batch_size=4)
    trainer.fit(module, loader, ckpt_path=resume)
    return torch.cat([each.flatten() for each in module.parameters()])


def test_lightning_job_resumes(root, tmp_path):
    whole = lightning_job(str(tmp_path), 4)
    assert os.listdir(tmp_path) == ["epoch=3.ckpt"], "older ones are removed"
    lightning_job(root, 2)
    fs, path = open_location(root)
    assert fs.listdir(path) == ["epoch=1.ckpt"]
    resumed = lightning_job(root, 4, resume=f"{root}/epoch=1.ckpt")
    assert torch.equal(resumed, whole)
    assert fs.listdir(path) == ["epoch=3.ckpt"]


def test_methods_of_the_checkpoint_io(tmp_path):
    from luciola.plugins.checkpoint.lightning import LuciolaCheckpointIO

    plugin = LuciolaCheckpointIO()
    path = tmp_path / "deep" / "x.ckpt"
    plugin.save_checkpoint({"a": torch.ones(2)}, path)
    assert os.listdir(tmp_path / "deep") == ["x.ckpt"]
    assert torch.equal(plugin.load_checkpoint(path)["a"], torch.ones(2))
    with pytest.raises(InvalidArgument, match="there are no storage options"):
        plugin.save_checkpoint({}, path, storage_options={})
    plugin.save_checkpoint({"path": Path("x")}, path)
    with pytest.raises(Exception, match="weights_only"):
        plugin.load_checkpoint(path)
    assert plugin.load_checkpoint(path, weights_only=False) == {"path": Path("x")}
    for _ in range(2):
        plugin.remove_checkpoint(path)
    assert os.listdir(tmp_path / "deep") == []


# Hugging Face's Trainer.


def trainer_job(root, output, steps, *, resume=False):
    import transformers

    from luciola.plugins.checkpoint.huggingface import TrainerCheckpoints

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Sequential(torch.nn.Dropout(0.5), torch.nn.Linear(3, 1))

        def forward(self, x, labels):
            return {"loss": (self.layer(x)[:, 0] - labels).square().mean()}

    transformers.set_seed(1)
    model = Model()
    callback = TrainerCheckpoints(root, keep=Keep(last=1, best=1, metric="loss"))
    arguments = transformers.TrainingArguments(
        output_dir=str(output),
        max_steps=6,
        save_steps=2,
        save_total_limit=1,
        logging_steps=2,
        per_device_train_batch_size=2,
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        lr_scheduler_type="linear",
        learning_rate=0.05,
    )

    class Stop(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, **_):
            control.should_training_stop = state.global_step >= steps

    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=[{"x": x, "labels": y} for x, y in DATA],
        callbacks=[callback, Stop()],
    )
    trainer.train(resume_from_checkpoint=callback.restore(output) if resume else None)
    return torch.cat([each.detach().flatten() for each in model.parameters()])


def test_trainer_resumes_on_another_machine(root, tmp_path):
    whole = trainer_job(tmp_path / "runs", tmp_path / "whole", 6)
    trainer_job(root, tmp_path / "first", 4)
    steps = [saved.step for saved in list_checkpoints(root)]
    assert steps[-1] == 4
    assert set(list_checkpoints(root)[-1].manifest.metrics) >= {"loss", "learning_rate"}
    assert verify(latest(root)) == []
    resumed = trainer_job(root, tmp_path / "second", 6, resume=True)
    assert torch.equal(resumed, whole)
    state = json.loads((tmp_path / "second" / "checkpoint-6" / "trainer_state.json").read_text())
    assert state["global_step"] == 6


def test_sharded_trainers_and_foreign_checkpoints_are_refused(tmp_path):
    from luciola.plugins.checkpoint.huggingface import TrainerCheckpoints

    callback = TrainerCheckpoints(tmp_path / "runs")
    assert callback.restore(tmp_path / "out") is None
    for options in ({"fsdp": "full_shard", "deepspeed": None}, {"fsdp": "", "deepspeed": "x.json"}):
        with pytest.raises(InvalidArgument, match="FSDP and DeepSpeed write parts of each rank"):
            callback.on_train_begin(SimpleNamespace(**options), None, None)
    for name in ("../evil", "/evil", "a/../../evil"):
        Checkpoints(tmp_path / "runs").save(1, {"files": {name: torch.ones(3).byte()}})
        with pytest.raises(CorruptData, match="not a checkpoint of a Trainer"):
            callback.restore(tmp_path / "out")
    assert not (tmp_path / "evil").exists()
