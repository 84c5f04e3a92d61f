"""Saving and loading boxes of tensors as any number of ranks would, in one process, by torch's own planning."""

import io
from typing import Any

import torch
from torch.distributed.checkpoint.default_planner import (
    create_default_global_load_plan,
    create_default_global_save_plan,
)
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import (
    LoadPlan,
    LoadPlanner,
    SavePlan,
    SavePlanner,
    TensorWriteData,
    WriteItem,
    WriteItemType,
)
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from luciola.plugins.checkpoint import Reader, Writer

Box = tuple[tuple[int, ...], tuple[int, ...]]
"""Offsets and sizes."""


def cut(tensor: torch.Tensor, box: Box) -> torch.Tensor:
    offsets, sizes = box
    return tensor[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))]


class BoxSaver(SavePlanner):
    """One rank's boxes of tensors, and objects."""

    def __init__(self, boxes: list[tuple[str, torch.Tensor, Box]], objects: dict[str, bytes]) -> None:
        self._data: dict[MetadataIndex, Any] = {}
        self.items = []
        for name, tensor, box in boxes:
            index = MetadataIndex(name, torch.Size(box[0]))
            self._data[index] = cut(tensor, box)
            chunk = ChunkStorageMetadata(torch.Size(box[0]), torch.Size(box[1]))
            data = TensorWriteData(chunk, TensorProperties(tensor.dtype), tensor.size())
            self.items.append(WriteItem(index, WriteItemType.SHARD, tensor_data=data))
        for name, text in objects.items():
            index = MetadataIndex(name)
            self._data[index] = io.BytesIO(text)
            self.items.append(WriteItem(index, WriteItemType.BYTE_IO))

    def set_up_planner(self, *arguments: Any, **named: Any) -> None:
        pass

    def create_local_plan(self) -> SavePlan:
        return SavePlan(self.items)

    def create_global_plan(self, all_plans: list[SavePlan]) -> Any:
        return create_default_global_save_plan(all_plans)

    def finish_plan(self, new_plan: SavePlan) -> SavePlan:
        return new_plan

    def resolve_data(self, write_item: WriteItem) -> Any:
        return self._data[write_item.index]


class BoxLoader(LoadPlanner):
    """Boxes that one rank wants, into tensors of their own."""

    def __init__(self, wanted: list[tuple[str, Box, torch.Tensor]]) -> None:
        self.wanted = wanted
        self.committed = 0

    def set_up_planner(self, state_dict: Any, metadata: Any = None, *arguments: Any, **named: Any) -> None:
        self._metadata = metadata

    def create_local_plan(self) -> LoadPlan:
        items = []
        self._targets = {}
        for number, (name, (offsets, sizes), target) in enumerate(self.wanted):
            chunk = ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes))
            found = create_read_items_for_chunk_list(name, self._metadata.state_dict_metadata[name], [chunk])
            for item in found:
                self._targets[id(item)] = number, target
                items.append(item)
        return LoadPlan(items)

    def create_global_plan(self, global_plan: list[LoadPlan]) -> list[LoadPlan]:
        return create_default_global_load_plan(global_plan)

    def finish_plan(self, central_plan: LoadPlan) -> LoadPlan:
        return central_plan

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        raise AssertionError("none was asked for")

    def resolve_tensor(self, read_item: Any) -> torch.Tensor:
        _, target = self._targets[id(read_item)]
        return cut(target, (tuple(read_item.dest_offsets), tuple(read_item.lengths)))

    def commit_tensor(self, read_item: Any, tensor: torch.Tensor) -> None:
        self.committed += 1


def save_boxes(writers: list[Writer], savers: list[SavePlanner]) -> None:
    """The steps of `torch.distributed.checkpoint.save`, of all ranks one after the other."""
    for rank, writer in enumerate(writers):
        writer.reset()
        writer.set_up_storage_writer(rank == 0, rank=rank, use_collectives=True)
    plans = [
        writer.prepare_local_plan(saver.create_local_plan())
        for writer, saver in zip(writers, savers, strict=True)
    ]
    plans, metadata = savers[0].create_global_plan(plans)
    plans = writers[0].prepare_global_plan(plans)
    results = [
        writer.write_data(saver.finish_plan(plan), saver).value()
        for writer, saver, plan in zip(writers, savers, plans, strict=True)
    ]
    writers[0].finish(metadata, results)


def load_boxes(readers: list[Reader], loaders: list[LoadPlanner]) -> None:
    """The steps of `torch.distributed.checkpoint.load`."""
    plans = []
    for rank, (reader, loader) in enumerate(zip(readers, loaders, strict=True)):
        reader.reset()
        metadata = reader.read_metadata()
        loader.set_up_planner({}, metadata, rank == 0)
        reader.set_up_storage_reader(metadata, rank == 0)
        plans.append(reader.prepare_local_plan(loader.create_local_plan()))
    plans = readers[0].prepare_global_plan(loaders[0].create_global_plan(plans))
    for reader, loader, plan in zip(readers, loaders, plans, strict=True):
        reader.read_data(loader.finish_plan(plan), loader).wait()
