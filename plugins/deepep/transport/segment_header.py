"""What all ranks of a call must give alike: facts at the beginning of a segment of memory, or of what a rank sends.

A rank that refuses its arguments says so in its facts, and takes no part in the call.
"""

import json
from collections.abc import Mapping
from typing import Final, TypeAlias

import torch
from torch import Tensor

from .errors import REASON_MAX, RanksDisagree, decode

Fact: TypeAlias = int | float | str

HEADER_BYTES: Final = 4096
"""Of the facts of one call, or of a refusal: `REASON_MAX` letters, which take up to seven bytes each."""
_REFUSED: Final = "refused"


def pack(facts: Mapping[str, Fact]) -> Tensor:
    """The facts as (HEADER_BYTES,) uint8, on the CPU."""
    data = json.dumps(dict(facts)).encode()
    assert len(data) <= HEADER_BYTES, "facts and reasons are short"
    return torch.frombuffer(bytearray(data.ljust(HEADER_BYTES)), dtype=torch.uint8)


def unpack(header: Tensor) -> dict[str, Fact]:
    """What `pack` was given."""
    return dict(json.loads(header.numpy().tobytes()))


def refusal(error: Exception, *, rank: int, call: str) -> dict[str, Fact]:
    """The facts of a rank that has refused its arguments."""
    what = f"rank {rank} has refused its arguments: {type(error).__name__}: {error}"[:REASON_MAX]
    reason = RanksDisagree(what, rank=rank, phase=f"{call}: arguments", peer=rank)
    return {_REFUSED: reason.encode().decode()}


def is_refusal(facts: Mapping[str, Fact]) -> bool:
    """Whether the rank with these facts takes no part."""
    return _REFUSED in facts


def compare(facts: Mapping[int, Mapping[str, Fact]], *, rank: int, call: str) -> None:
    """Compare the facts by rank. Raises: RanksDisagree, also where a rank has refused its arguments."""
    for each in facts.values():
        if is_refusal(each):
            raise decode(str(each[_REFUSED]).encode())
    first = next(iter(facts))
    for peer, each in facts.items():
        for name in {**facts[first], **each}:
            mine, other = (found.get(name, "nothing") for found in (facts[first], each))
            if mine != other:
                raise RanksDisagree(
                    f"rank {first} has {name} = {mine}, rank {peer} has {other}; all ranks must give the same",
                    rank=rank, phase=call, peer=peer,
                )  # fmt: skip


__all__ = ["HEADER_BYTES", "Fact", "compare", "is_refusal", "pack", "refusal", "unpack"]
