"""Which checkpoints stay: a policy, and what it removes. No torch."""

import os
from collections.abc import Sequence
from dataclasses import dataclass

from luciola.client import Location, open_location

from .catalog import Saved, as_location, find
from .publish import clean, discard


@dataclass(frozen=True)
class Keep:
    """The `last` newest whole checkpoints stay, and of the others those whose step is a multiple of `every`.

    `last` is at least 1, so the newest whole one always stays. With `last=None` nothing is removed.
    """

    last: int | None = None
    every: int | None = None

    def __post_init__(self) -> None:
        for name, value in (("last", self.last), ("every", self.every)):
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is a number from 1 on, not {value!r}")

    def surplus(self, found: Sequence[Saved]) -> list[Saved]:
        """What this policy removes of some checkpoints, oldest first. Damaged ones neither count nor go."""
        if self.last is None:
            return []
        whole = sorted((saved for saved in found if not saved.problem), key=lambda saved: saved.order)
        return [saved for saved in whole[: -self.last] if not self._is_kept(saved)]

    def _is_kept(self, saved: Saved) -> bool:
        return self.every is not None and saved.step is not None and saved.step % self.every == 0


def prune(
    location: str | os.PathLike[str] | Location,
    keep: Keep,
    *,
    dry_run: bool = False,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
) -> list[Saved]:
    """Removes what the policy does not keep of a directory, and what interrupted saves of this machine have left.

    Returns the checkpoints that were removed, oldest first; with `dry_run`, those that would be.
    """
    file_system, path = open_location(location, secret_file=secret_file, token=token)
    surplus = keep.surplus(
        find(file_system, path, as_location(location, secret_file=secret_file, token=token))
    )
    if not dry_run:
        for saved in surplus:
            discard(file_system, os.path.join(path, saved.name))
        clean(file_system, path)
    return surplus


__all__ = ["Keep", "prune"]
