"""What the tensors in the files of a checkpoint are called, and what they are parts of. No torch.

A file is a safetensors file, so every program that reads those can read it. A tensor that is whole has its own name,
a part of one is called "NAME[0:512, 64:128]". The file's own metadata says what else there is to know of an entry:

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
    """Where one item of a state dict is: what metadata.pickle holds as its storage data."""

    file: str
    entry: str
    form: str = "tensor"


@dataclass(frozen=True)
class Part:
    """What an entry is: these elements of that tensor."""

    tensor: str
    offsets: tuple[int, ...]
    size: tuple[int, ...]
    form: str = "tensor"


def entry_name(
    tensor: str, offsets: Sequence[int], sizes: Sequence[int], size: Sequence[int], taken: Container[str]
) -> str:
    """The name of an entry, different from those in `taken`."""
    name = tensor.encode("utf-8", "backslashreplace").decode()
    if tuple(sizes) != tuple(size):
        box = ", ".join(f"{offset}:{offset + length}" for offset, length in zip(offsets, sizes, strict=True))
        name += f"[{box}]"
    while name in taken or name == METADATA:
        name += "~"
    return name


def encode_parts(parts: dict[str, Part]) -> dict[str, str]:
    """The metadata of a file; nothing for entries that are what their name says."""
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
    """What the entries of a file are. Raises: CorruptData."""
    try:
        table = json.loads(metadata.get(KEY, "{}"))
        return {
            entry: _part(table[entry]) if entry in table else Part(entry, (0,) * len(info.shape), info.shape)
            for entry, info in infos.items()
        }
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise CorruptData(f"its {KEY!r} is not understood: {error!s:.100}", path=path) from error


def _part(table: Any) -> Part:
    offsets, size = tuple(table["offsets"]), tuple(table["size"])
    if table["form"] not in FORMS or not all(type(each) is int for each in (*offsets, *size)):
        raise ValueError("not a part of a tensor")
    return Part(str(table["tensor"]), offsets, size, table["form"])


__all__ = ["KEY", "Part", "Stored", "encode_parts", "entry_name", "parse_parts"]
