"""The names of tensors in the files of a checkpoint, and the parts that they are. Does not import torch.

A file is a safetensors file, so every program that reads those can read it. A tensor that is whole has its own name,
a part of one is called "NAME[0:512, 64:128]". The file's own metadata describe an entry:

    "luciola.entries"   JSON: entry -> {"tensor": NAME, "offsets": […], "size": [of the whole], "form": FORM}

FORM is "tensor"; "bytes", an object that torch.save has written, as U8; or "real", a complex tensor of a type that the
format does not have, with a last dimension of two more.
"""

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any, Final

from luciola.errors import CorruptData

from ..weights.header import METADATA, TensorInfo

KEY: Final = "luciola.entries"
FORMS: Final = ("tensor", "bytes", "real")


@dataclass(frozen=True)
class Stored:
    """The place of one item of a state dict: its storage data in metadata.pickle."""

    file: str
    entry: str
    form: str = "tensor"


@dataclass(frozen=True)
class Part:
    """The elements of a tensor that an entry has."""

    tensor: str
    offsets: tuple[int, ...]
    size: tuple[int, ...]
    form: str = "tensor"


def entry_name(
    tensor: str, offsets: Sequence[int], sizes: Sequence[int], size: Sequence[int], taken: Container[str]
) -> str:
    """Name an entry, differently from those in `taken`."""
    name = tensor.encode("utf-8", "backslashreplace").decode()
    if tuple(sizes) != tuple(size):
        box = ", ".join(f"{offset}:{offset + length}" for offset, length in zip(offsets, sizes, strict=True))
        name += f"[{box}]"
    while name in taken or name == METADATA:
        name += "~"
    return name


def encode_parts(parts: dict[str, Part]) -> dict[str, str]:
    """Encode the metadata of a file; nothing for whole tensors of the same name."""
    table = {
        entry: {
            "tensor": part.tensor,
            "offsets": list(part.offsets),
            "size": list(part.size),
            "form": part.form,
        }
        for entry, part in parts.items()
        if part.form != "tensor" or part.tensor != entry
    }
    return {"format": "pt", **({KEY: json.dumps(table, separators=(",", ":"))} if table else {})}


def parse_parts(metadata: dict[str, str], infos: dict[str, TensorInfo], path: str) -> dict[str, Part]:
    """Decode the parts that the entries of a file are. Raises: CorruptData."""
    try:
        table = json.loads(metadata.get(KEY, "{}"))
        return {
            entry: _part(table[entry]) if entry in table else Part(entry, (0,) * len(info.shape), info.shape)
            for entry, info in infos.items()
        }
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptData(f"its metadata {KEY!r} cannot be parsed: {error!s:.100}", path=path) from error


def _part(table: Any) -> Part:
    offsets, size = tuple(table["offsets"]), tuple(table["size"])
    if table["form"] not in FORMS or not all(type(each) is int for each in (*offsets, *size)):
        raise ValueError("not a part of a tensor")
    return Part(str(table["tensor"]), offsets, size, table["form"])


__all__ = ["KEY", "Part", "Stored", "encode_parts", "entry_name", "parse_parts"]
