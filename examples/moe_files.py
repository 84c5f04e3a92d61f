"""The files of `train_moe_dualpipe.py`: token data and checkpoints, on a cluster or on this machine.

    OUT/tokens.bin              text, a byte a token
    OUT/step-000040/stage-2.pt  weights and optimizer state of one stage; only of steps that are a checkpoint
    OUT/latest.json             the step to resume from, and all losses until then; replaced at once, when all stages
                                of the step are durable

Which sequences are in a batch depends on the seed and the step alone, so training resumes anywhere with the same data.
"""

import ast
import io
import json
import os
import posixpath
import sysconfig
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any, Final

import torch
from torch import Tensor

from luciola.client.location import AnyFileSystem, Location, open_location, parse_location, replacing

TEXT_BYTES: Final = 300_000
"""Of the token data that this example makes: enough that a short training sees nothing twice."""

CHECKPOINTS_KEPT: Final = 2


def location_of(text: str) -> Location:
    """What the user named."""
    return parse_location(text, os.environ)


def docstrings(size: int) -> bytes:
    """`size` bytes of what the Python standard library says of itself, the same for one version of Python."""
    text = bytearray()
    for path in _library():
        with open(path, "rb") as file:
            tree = ast.parse(file.read())
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef):
                text += f"{ast.get_docstring(node) or ''}\n\n".encode()
        if len(text) >= size:
            break
    return bytes(text[:size])


def _library() -> Iterator[str]:
    root = sysconfig.get_path("stdlib")
    for name in sorted(os.listdir(root)):
        if name.endswith(".py"):
            yield os.path.join(root, name)


def make_tokens(location: Location) -> None:
    """Writes token data there unless there are some."""
    file_system, path = open_location(location)
    if not file_system.exists(path):
        with replacing(file_system, path) as file:
            file.write(docstrings(TEXT_BYTES))


class Tokens:
    """Token data, read where they are, a sequence at a time."""

    def __init__(self, location: Location, *, sequence: int, seed: int) -> None:
        file_system, path = open_location(location)
        self.count = file_system.stat(path).st_size
        if self.count <= sequence:
            raise ValueError(f"{location} has {self.count} tokens; a sequence needs {sequence + 1}")
        self.sequence, self.seed = sequence, seed
        self.file: Any = file_system.open(path, "rb")

    def close(self) -> None:
        """Ends reading."""
        self.file.close()

    def batch(self, step: int, size: int) -> tuple[Tensor, Tensor]:
        """Tokens and the tokens after them, both [size, sequence], for one step."""
        source = torch.Generator().manual_seed(self.seed * 1_000_003 + step)
        offsets = torch.randint(self.count - self.sequence, (size,), generator=source)
        rows = [self._row(int(offset)) for offset in offsets]
        tokens = torch.stack(rows).long()
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def _row(self, offset: int) -> Tensor:
        row = torch.empty(self.sequence + 1, dtype=torch.uint8)
        count = self.file.pread_into(row.numpy(), offset)
        if count != len(row):
            raise ValueError(f"token data ended after {offset + count} bytes: they have become shorter")
        return row


@dataclass(frozen=True)
class Latest:
    """Where a training stands."""

    step: int
    """Steps that are done."""
    losses: list[float]
    settings: dict[str, Any]
    """What must not change from one start to the next."""


class Checkpoints:
    """The checkpoints of one training."""

    def __init__(self, location: Location) -> None:
        self.location = location
        self.files, self.root = open_location(location)

    def latest(self) -> Latest | None:
        """The last complete checkpoint."""
        path = posixpath.join(self.root, "latest.json")
        if not self.files.exists(path):
            return None
        return Latest(**json.loads(self.files.read(path)))

    def load(self, step: int, stage: int) -> Any:
        """The state of one stage."""
        data = self.files.read(self._path(step, stage))
        return torch.load(io.BytesIO(data), weights_only=True)

    def save(self, step: int, stage: int, state: Any) -> None:
        """Writes the state of one stage; counts only when `finish` has been called."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        with replacing(self.files, self._path(step, stage)) as file:
            file.write(buffer.getvalue())

    def finish(self, latest: Latest) -> None:
        """Makes a checkpoint, whose stages are all saved, the latest, and removes old ones."""
        with replacing(self.files, posixpath.join(self.root, "latest.json")) as file:
            file.write(json.dumps(asdict(latest)).encode())
        steps = sorted(each for each in self.files.listdir(self.root) if each.startswith("step-"))
        for name in steps[:-CHECKPOINTS_KEPT]:
            self.files.rmtree(posixpath.join(self.root, name))

    def write(self, name: str, data: bytes) -> None:
        """Another file beside them."""
        with replacing(self.files, posixpath.join(self.root, name)) as file:
            file.write(data)

    def _path(self, step: int, stage: int) -> str:
        return posixpath.join(self.root, f"step-{step:06}", f"stage-{stage}.pt")


__all__ = ["AnyFileSystem", "Checkpoints", "Latest", "Tokens", "docstrings", "location_of", "make_tokens"]
