"""What a checkpoint may hold beside tensors: objects and metadata that load without running code of the file.

L1  Objects load by torch's weights-only unpickler: numbers, texts, containers, tensors, and the classes that this
    process has allowed with `torch.serialization.add_safe_globals`. numpy's classes are not among them: a pickle can
    give them a state that corrupts memory.
L2  Metadata loads by a table of the classes that torch's planners use. Every one of them is a blank, made for one
    load, until its state has been checked: a pickle changes no class and calls no constructor.
L3  An object that could not be loaded again is refused when it is saved.

L1 does not make torch's own code safe for hostile files: load those of people you trust.
"""

import io
import pickle
import re
from collections.abc import Callable
from typing import Any, Final

import torch
from torch.distributed.checkpoint.metadata import (
    BytesStorageMetadata,
    ChunkStorageMetadata,
    Metadata,
    MetadataIndex,
    StorageMeta,
    TensorProperties,
    TensorStorageMetadata,
)

from luciola.errors import CorruptData, InvalidArgument

from .entries import FORMS, Stored

ADVICE: Final = (
    "keep numbers, texts, lists, dictionaries and tensors instead, or allow the class in every process that saves or "
    "loads: torch.serialization.add_safe_globals([…])"
)
MEMORY_FORMATS: Final = (torch.contiguous_format, torch.channels_last, torch.preserve_format)
"""As torch numbers them."""


def load_plain(data: io.BytesIO, name: str) -> Any:
    """Load what `torch.save` has written, by the allow-list (L1). Raises: CorruptData."""
    try:
        return torch.load(data, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, LookupError, TypeError) as error:
        raise CorruptData(f"object {name!r} was refused: {_reason(error)}; {ADVICE}") from error


def require_plain(data: io.BytesIO, name: str) -> None:
    """Require that `load_plain` accepts it, and rewind it. Raises: InvalidArgument."""
    data.seek(0)
    try:
        load_plain(data, name)
    except CorruptData as error:
        raise InvalidArgument(
            f"object {name!r} could not be loaded again: {_reason(error.__cause__)}; {ADVICE}"
        ) from error
    data.seek(0)


def _reason(error: BaseException | None) -> str:
    """Extract the class from torch's message."""
    if isinstance(error, pickle.UnpicklingError):
        found = re.search(r"WeightsUnpickler error: *(\S.*?)(?: Please use|$)", str(error), re.MULTILINE)
        return "torch's weights-only loading refuses it" if found is None else found[1][:200]
    return str(error).strip().partition("\n")[0][:200] or "it is damaged"


def encode_metadata(metadata: Metadata) -> bytes:
    """Encode metadata.pickle. Raises: InvalidArgument for a planner's data that could not be loaded."""
    try:
        decode_metadata(pickle.dumps(Metadata({}, planner_data=metadata.planner_data)), "metadata")
    except CorruptData as error:
        raise InvalidArgument(
            f"the planner's data could not be loaded again: {error.message}; {ADVICE}"
        ) from error
    return pickle.dumps(metadata)


def decode_metadata(text: bytes, path: str) -> Metadata:
    """Decode metadata.pickle, by the allow-list (L2). Raises: CorruptData."""
    try:
        return _metadata(_Unpickler(io.BytesIO(text)).load())
    except (
        pickle.UnpicklingError, ArithmeticError, AttributeError, EOFError, ImportError, LookupError, RecursionError,
        TypeError, ValueError,
    ) as error:  # fmt: skip
        raise CorruptData(f"not the metadata of a checkpoint: {error!s:.200}", path=path) from error


class _Blank:
    """A placeholder for an object of the pickle."""

    __slots__ = ("state",)
    kind = ""
    state: Any

    def __setstate__(self, state: Any) -> None:
        self.state = state


class _Unpickler(pickle.Unpickler):
    """Resolves names by a table that is made for one load."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file)
        torch_module, metadata = "torch", "torch.distributed.checkpoint.metadata"
        self._table: dict[tuple[str, str], Any] = {
            (metadata, kind.__name__): _blank(kind.__name__)
            for kind in (
                BytesStorageMetadata, ChunkStorageMetadata, Metadata, MetadataIndex, StorageMeta, TensorProperties,
                TensorStorageMetadata,
            )
        }  # fmt: skip
        self._table[Stored.__module__, "Stored"] = _blank("Stored")
        self._table[torch_module, "Size"] = _fresh(_sizes)
        self._table["torch.serialization", "_get_layout"] = _fresh(_layout)
        self._table[metadata, "_MEM_FORMAT_ENCODING"] = _fresh(_memory_format)

    def find_class(self, module: str, name: str, /) -> Any:
        found = self._table.get((module, name))
        if found is None and module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
            found = getattr(torch, name)
        if found is None:
            raise pickle.UnpicklingError(f"{module}.{name} is not allowed in metadata")
        return found


def _blank(kind: str) -> type[_Blank]:
    return type(kind, (_Blank,), {"__slots__": (), "kind": kind})


def _fresh(function: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Wrap a function: a pickle can set attributes of the one that it gets."""

    def call(argument: Any) -> Any:
        return function(argument)

    return call


def _sizes(value: Any) -> torch.Size:
    if type(value) not in {tuple, list, torch.Size} or not all(type(each) is int for each in value):
        raise ValueError(f"not the size of a tensor: {value!r:.60}")
    return torch.Size(value)


def _layout(name: Any) -> torch.layout:
    if name != "torch.strided":
        raise ValueError(f"not a layout of tensors in a checkpoint: {name!r:.60}")
    return torch.strided


def _memory_format(number: Any) -> torch.memory_format:
    return MEMORY_FORMATS[_of(number, int)]


def _of(value: Any, *kinds: type) -> Any:
    if type(value) not in kinds:
        raise ValueError(f"{type(value).__name__} where {kinds[0].__name__} belongs")
    return value


def _table(value: Any, kind: str) -> dict[str, Any]:
    """Return the state of one object: its fields by their names."""
    if not isinstance(value, _Blank) or value.kind != kind:
        raise ValueError(f"{type(value).__name__} where {kind} belongs")
    table: dict[str, Any] = _of(getattr(value, "state", None) or {}, dict)
    return table


def _metadata(value: Any) -> Metadata:
    table = _table(value, "Metadata")
    stored = table.get("storage_data")
    meta = table.get("storage_meta")
    return Metadata(
        {_of(name, str): _storage(each) for name, each in _of(table["state_dict_metadata"], dict).items()},
        _plain(table.get("planner_data")),
        None if stored is None else {_index(key): _stored(each) for key, each in _of(stored, dict).items()},
        None if meta is None else _storage_meta(meta),
        _of(table.get("version"), str, type(None)),
    )


def _storage(value: Any) -> TensorStorageMetadata | BytesStorageMetadata:
    if isinstance(value, _Blank) and value.kind == "BytesStorageMetadata":
        return BytesStorageMetadata()
    table = _table(value, "TensorStorageMetadata")
    chunks = [_table(chunk, "ChunkStorageMetadata") for chunk in _of(table["chunks"], list)]
    return TensorStorageMetadata(
        _properties(table["properties"]),
        _sizes(table["size"]),
        [ChunkStorageMetadata(_sizes(chunk["offsets"]), _sizes(chunk["sizes"])) for chunk in chunks],
    )


def _properties(value: Any) -> TensorProperties:
    if not isinstance(value, _Blank) or value.kind != "TensorProperties":
        raise ValueError("not the properties of a tensor")
    dtype, layout, requires_grad, memory_format, pin_memory, *rest = _of(value.state, tuple)
    return TensorProperties(
        _of(dtype, torch.dtype),
        _of(layout, torch.layout),
        _of(requires_grad, bool),
        _of(memory_format, torch.memory_format),
        _of(pin_memory, bool),
        None if not rest or rest[0] is None else tuple(_sizes(rest[0])),
    )


def _index(value: Any) -> MetadataIndex:
    table = _table(value, "MetadataIndex")
    offset = table.get("offset")
    return MetadataIndex(
        _of(table["fqn"], str),
        None if offset is None else _sizes(offset),
        _of(table.get("index"), int, type(None)),
    )


def _stored(value: Any) -> Stored:
    table = _table(value, "Stored")
    file, form = _of(table["file"], str), _of(table["form"], str)
    if "/" in file or file in {"", ".", ".."} or form not in FORMS:
        raise ValueError(f"not a file of a checkpoint: {file!r:.60}")
    return Stored(file, _of(table["entry"], str), form)


def _storage_meta(value: Any) -> StorageMeta:
    table = _table(value, "StorageMeta")
    checkpoint, save, load = (
        _of(table.get(name), str, type(None)) for name in ("checkpoint_id", "save_id", "load_id")
    )
    return StorageMeta(
        checkpoint, save, load, [_of(name, str) for name in _of(table.get("modules", []), list)]
    )


def _plain(value: Any) -> Any:
    """Copy a value of builtin types. Raises: ValueError for other types."""
    convert: dict[type, Callable[[Any], Any]] = {
        dict: lambda table: {_plain(key): _plain(each) for key, each in table.items()},
        list: lambda entries: [_plain(each) for each in entries],
        tuple: lambda entries: tuple(_plain(each) for each in entries),
    }
    kind = type(value)
    if kind in convert:
        return convert[kind](value)
    return _of(value, str, int, float, bool, bytes, type(None), torch.Size)


__all__ = ["decode_metadata", "encode_metadata", "load_plain", "require_plain"]
