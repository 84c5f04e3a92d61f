"""What ranks must agree on in a call, as text that each of them writes and all read."""

from collections.abc import Mapping, Sequence
from typing import Final, TypeAlias

from ..failure import RanksDisagree, decode

Fact: TypeAlias = int | str

TEXT_BYTES: Final = 4096
"""Of the facts of one call, or of a refusal: `REASON_MAX` letters, which take up to seven bytes each."""
REFUSED: Final = "refused"
"""The fact of a rank that does not take part: its error, encoded."""


def compare(told: Sequence[Mapping[str, Fact]], *, rank: int, call: str) -> None:
    """Look at the facts of all ranks. Raises: RanksDisagree, also where one has refused its arguments."""
    for each in told:
        if REFUSED in each:
            raise decode(str(each[REFUSED]).encode())
    for peer, each in enumerate(told):
        for name in {**told[0], **each}:
            first, other = told[0].get(name, "nothing"), each.get(name, "nothing")
            if first != other:
                raise RanksDisagree(
                    f"rank 0 has {name} = {first}, rank {peer} has {other}; all ranks must give the same",
                    rank=rank, phase=call, peer=peer,
                )  # fmt: skip


__all__ = ["REFUSED", "TEXT_BYTES", "Fact", "compare"]
