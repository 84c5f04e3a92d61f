"""Files that would run code, or change a class, when they are loaded: refused; and what could not load is not saved."""

import io
import os
import pickle
from collections import Counter, OrderedDict, deque

import numpy as np
import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from checkpoint_boxes import BoxSaver, save_boxes
from luciola.errors import CorruptData
from luciola.plugins.checkpoint import Checkpoints, Reader, Writer, list_checkpoints
from luciola.plugins.checkpoint.entries import Stored
from luciola.plugins.checkpoint.plain import decode_metadata, encode_metadata, load_plain

pytestmark = pytest.mark.filterwarnings("ignore:torch.distributed is:UserWarning")


class Place:
    def __init__(self, sample):
        self.sample = sample


class Calls:
    """Runs a function when it is unpickled."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


class Builds:
    """A global that gets a state: the BUILD opcode on a class."""

    def __init__(self, target, state):
        self.target, self.state = target, state


class BuildPickler(pickle._Pickler):
    """Writes `Builds` as its global, its state, and BUILD."""

    def save(self, value, *options):
        if isinstance(value, Builds):
            self.save_global(value.target)
            super().save(value.state)
            self.write(pickle.BUILD)
        else:
            super().save(value, *options)


def built(target, state):
    data = io.BytesIO()
    BuildPickler(data, 2).dump(Builds(target, state))
    return data.getvalue()


# Objects.


@pytest.mark.parametrize(
    "value",
    [deque([1]), np.float64(0.5), np.arange(3), [1, {"deep": deque()}], frozenset([1]), print],
    ids=lambda value: type(value).__name__,
)
def test_an_object_that_could_not_be_loaded_again_is_not_saved(tmp_path, value):
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(
        CheckpointException, match=r"object 'thing' could not be loaded again: \w+.*; keep numbers"
    ):
        checkpoints.save(1, {"x": torch.ones(2), "thing": (value,)})
    assert os.listdir(tmp_path) == []


def test_plain_objects_come_back_equal(tmp_path):
    value = (
        1, -2.5, None, True, "text", b"bytes", bytearray(b"x"), 3 + 4j, {1, 2}, Counter("aab"), OrderedDict(a=1),
        torch.Size([2, 3]), torch.bfloat16, torch.device("cpu"), [{"deep": (torch.arange(3).tolist(), ())}],
    )  # fmt: skip
    Checkpoints(tmp_path).save(1, {"thing": value})
    state = {"thing": None}
    Checkpoints(tmp_path).load(state)
    assert state["thing"] == value
    assert [type(each) for each in state["thing"]] == [type(each) for each in value]


def test_a_class_that_the_process_allows_is_saved_and_loaded(tmp_path):
    with torch.serialization.safe_globals([Place]):
        Checkpoints(tmp_path).save(1, {"thing": Place(7)})
        state = {"thing": None}
        Checkpoints(tmp_path).load(state)
    assert state["thing"].sample == 7
    with pytest.raises(
        CheckpointException, match=r"object 'thing' was refused: .*Place was not an allowed global"
    ):
        Checkpoints(tmp_path).load(state)


def hostile_checkpoint(tmp_path, data):
    """One whose object is `data`, which another program has written: its checksums are right."""
    saver = BoxSaver([("x", torch.ones(3), ((0,), (3,)))], {"thing": data})
    save_boxes([Writer(tmp_path / "step-1")], [saver])
    return tmp_path / "step-1"


@pytest.mark.parametrize("legacy", [False, True])
def test_an_object_that_calls_a_function_is_not_loaded(tmp_path, legacy):
    victim = tmp_path / "victim"
    victim.mkdir()
    data = io.BytesIO()
    torch.save(Calls(os.rmdir, str(victim)), data, _use_new_zipfile_serialization=not legacy)
    place = hostile_checkpoint(tmp_path, data.getvalue())
    for load in (
        lambda: dcp.load({"x": torch.zeros(3), "thing": None}, storage_reader=Reader(place)),
        lambda: Checkpoints(tmp_path).load({"x": torch.zeros(3), "thing": None}),
    ):
        with pytest.raises(CheckpointException, match="object 'thing' was refused"):
            load()
    assert victim.exists()


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04", b"\x80\x02N", bytes(100)])
def test_an_object_that_torch_has_not_written_is_damage(data):
    with pytest.raises(CorruptData, match="object 'thing' was refused"):
        load_plain(io.BytesIO(data), "thing")


# Metadata.


def whole_metadata():
    properties = TensorProperties(torch.bfloat16, memory_format=torch.channels_last, strides=(4, 1))
    chunk = ChunkStorageMetadata(torch.Size([0, 2]), torch.Size([3, 2]))
    return Metadata(
        {"w": TensorStorageMetadata(properties, torch.Size([3, 4]), [chunk]), "b": BytesStorageMetadata()},
        {"w": ("model", 0, "w"), "b": ("b",)},
        {
            MetadataIndex("w", torch.Size([0, 2]), 1): Stored(
                "rank-00000.safetensors", "w[0:3, 2:4]", "real"
            ),
            MetadataIndex("b"): Stored("rank-00000.safetensors", "b", "bytes"),
        },
        StorageMeta("/x", "save", "load", ["m"]),
        "1.0",
    )


def test_metadata_comes_back_equal():
    metadata = whole_metadata()
    found = decode_metadata(encode_metadata(metadata), "p")
    assert found == metadata
    assert [key.index for key in found.storage_data] == [1, None]
    found.state_dict_metadata["w"].properties.__getstate__()
    assert decode_metadata(encode_metadata(Metadata({})), "p") == Metadata({})


@pytest.mark.parametrize("function", [os.system, eval, getattr, np.ndarray, np.dtype, torch.load, deque])
def test_metadata_that_calls_something_is_refused(function):
    with pytest.raises(CorruptData, match=r"is not allowed in metadata"):
        decode_metadata(pickle.dumps(Metadata({}, Calls(function, "x"))), "p")


@pytest.mark.parametrize(
    "target", [Metadata, MetadataIndex, TensorProperties, Stored, torch.Size, torch.float32]
)
@pytest.mark.parametrize("state", [{"planted": 1}, (None, {"planted": 1})])
def test_metadata_cannot_change_a_class(target, state):
    if isinstance(target, torch.dtype):
        data = pickle.dumps(target, 2)[:-1] + pickle.dumps(state, 2)[2:-1] + pickle.BUILD + b"."
    else:
        data = built(target, state)
    with pytest.raises(CorruptData, match="not the metadata of a checkpoint"):
        decode_metadata(data, "p")
    assert not hasattr(target, "planted")
    assert decode_metadata(encode_metadata(whole_metadata()), "p") == whole_metadata(), (
        "later loads are as before"
    )


def _changed(path, value):
    metadata = whole_metadata()
    target = metadata
    for step in path[:-1]:
        target = target[step] if isinstance(target, dict | list) else getattr(target, step)
    if isinstance(target, dict | list):
        target[path[-1]] = value
    else:
        object.__setattr__(target, path[-1], value)
    return pickle.dumps(metadata)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("state_dict_metadata",), [1]),
        (("state_dict_metadata", "w", "size"), (3, "4")),
        (("state_dict_metadata", "w", "size"), 12),
        (("state_dict_metadata", "w", "chunks"), [StorageMeta()]),
        (("state_dict_metadata", "w", "chunks", 0, "sizes"), None),
        (("state_dict_metadata", "w", "properties"), StorageMeta()),
        (("state_dict_metadata", "w", "properties", "dtype"), "float32"),
        (("state_dict_metadata", "w", "properties", "strides"), ("a",)),
        (("state_dict_metadata", "b"), "text"),
        (("storage_data", MetadataIndex("b")), Stored("../../etc/passwd", "b")),
        (("storage_data", MetadataIndex("b")), Stored("rank-00000.safetensors", "b", "other")),
        (("storage_data", "text"), Stored("rank-00000.safetensors", "b")),
        (("planner_data", "w"), StorageMeta()),
        (("storage_meta",), BytesStorageMetadata()),
        (("storage_meta", "modules"), [1]),
        (("version",), 3),
    ],
)
def test_metadata_whose_state_is_not_what_it_should_be_is_refused(path, value):
    with pytest.raises(CorruptData, match="not the metadata of a checkpoint"):
        decode_metadata(_changed(path, value), "p")


@pytest.mark.parametrize("data", [b"", b"garbage", pickle.dumps(None), pickle.dumps({}), b"\x80\x04."])
def test_what_is_no_metadata_is_damage(data):
    with pytest.raises(CorruptData, match="not the metadata of a checkpoint"):
        decode_metadata(data, "p")


class StrangeSaver(BoxSaver):
    """A planner with data of a class of its own."""

    def create_global_plan(self, all_plans):
        plans, metadata = super().create_global_plan(all_plans)
        metadata.planner_data = {"thing": deque([1])}
        return plans, metadata


def test_a_planner_whose_data_could_not_be_loaded_again_is_refused(tmp_path):
    saver = StrangeSaver([("x", torch.ones(3), ((0,), (3,)))], {})
    with pytest.raises(ValueError, match="the planner's data could not be loaded again"):
        save_boxes([Writer(tmp_path / "step-1")], [saver])
    assert list_checkpoints(tmp_path) == []
