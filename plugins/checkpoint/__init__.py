"""Checkpoints of training jobs: `torch.distributed.checkpoint` on a location.

    job          `Checkpoints`: the checkpoints of one job, by step
    application  its parts: model, optimizer, scheduler, loader, each rank's own
    writer       `Writer`, the StorageWriter
    reader       `Reader`, the StorageReader
    torch_io     `save_object`, `load_object`, `open_stream`: torch.save and torch.load
    lightning    Lightning's CheckpointIO
    huggingface  a callback of Hugging Face's Trainer
    catalog      the checkpoints of a directory: `list_checkpoints`, `latest`
    retention    `Keep`: the ones that are kept
    commit       the atomic, durable rename of a checkpoint, and the cleanup after interrupted ones
    manifest     the file that makes a directory a checkpoint
    entries      the names of tensors in its safetensors files
    items        the file that one rank writes
    sharing      files that are unchanged since the save before
    tensorfile   one such file, written by many writes in flight
    plain        the objects that may be in it, and how they load
    verification  every byte against its checksum

    state = {"model": model.state_dict(), "step": 100}
    dcp.save(state, storage_writer=Writer("lu:/runs/7/step-100"))
    dcp.load(state, storage_reader=Reader(latest("lu:/runs/7")))

Importing this package imports neither torch nor the client until one of its names is used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from .application import RandomState
    from .catalog import Saved, latest, list_checkpoints
    from .job import Checkpoints
    from .reader import Reader
    from .retention import Keep, prune
    from .torch_io import load_object, open_stream, save_object
    from .verification import Damage, verify
    from .writer import Writer

_HOMES: Final = {
    "Checkpoints": "job",
    "Damage": "verification",
    "Keep": "retention",
    "RandomState": "application",
    "Reader": "reader",
    "Saved": "catalog",
    "Writer": "writer",
    "latest": "catalog",
    "list_checkpoints": "catalog",
    "load_object": "torch_io",
    "open_stream": "torch_io",
    "prune": "retention",
    "save_object": "torch_io",
    "verify": "verification",
}

__all__ = [
    "Checkpoints",
    "Damage",
    "Keep",
    "RandomState",
    "Reader",
    "Saved",
    "Writer",
    "describe",
    "latest",
    "list_checkpoints",
    "load_object",
    "open_stream",
    "prune",
    "save_object",
    "verify",
]


def describe() -> dict[str, str]:
    """Describe the plugin for `luciola plugins`."""
    from importlib.util import find_spec

    if find_spec("torch") is None:
        return {"state": "commands only: saving and loading need torch (pip install 'luciola[plugins]')"}
    return {"state": "ready: torch.distributed.checkpoint on any location"}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
