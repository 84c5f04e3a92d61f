"""The policy of which checkpoints are kept, and the removal of others. Does not import torch."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

from luciola.client import Location

from .catalog import Saved, find_named, opened, problem_of
from .commit import clean, discard


@dataclass(frozen=True)
class Keep:
    """Keeps the `last` newest whole checkpoints, those whose step is a multiple of `every`, and the `best` by a metric:
    its least ("min") or greatest ("max") values, of equal ones the newest.

    `last` is at least 1, so the newest whole one is always kept. With `last=None` nothing is removed. Checkpoints that
    are cut off count neither among the last nor among the best.
    """

    last: int | None = None
    every: int | None = None
    best: int | None = None
    metric: str | None = None
    mode: Literal["min", "max"] = "min"

    def __post_init__(self) -> None:
        for name in ("last", "every", "best"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < 1):
                raise ValueError(f"{name} is a number from 1 on, not {value!r}")
        if (self.best is None) != (self.metric is None):
            raise ValueError("best= and metric= go together: how many, by which of the metrics of a save")
        if self.mode not in {"min", "max"}:
            raise ValueError(f"mode is 'min' or 'max', not {self.mode!r}")

    def surplus(
        self, found: Sequence[Saved], is_whole: Callable[[Saved], bool] = lambda saved: not saved.problem
    ) -> list[Saved]:
        """List the checkpoints that this policy removes, oldest first. Those with a known problem are kept.

        `is_whole` is called for those that count, no others: it may stat every file of one.
        """
        if self.last is None:
            return []
        newest_first = sorted(found, key=lambda saved: saved.order, reverse=True)
        kept = _first(newest_first, self.last, is_whole) | self._best(newest_first, is_whole)
        return [
            saved
            for saved in reversed(newest_first)
            if not saved.problem and saved.name not in kept and not self._is_multiple(saved)
        ]

    def _best(self, newest_first: Sequence[Saved], is_whole: Callable[[Saved], bool]) -> set[str]:
        if self.best is None or self.metric is None:
            return set()
        sign = 1 if self.mode == "min" else -1
        values = {
            saved.name: sign * saved.manifest.metrics[self.metric]
            for saved in newest_first
            if saved.manifest is not None and self.metric in saved.manifest.metrics
        }
        ranked = sorted(
            (saved for saved in newest_first if saved.name in values), key=lambda each: values[each.name]
        )
        return _first(ranked, self.best, is_whole)

    def _is_multiple(self, saved: Saved) -> bool:
        return self.every is not None and saved.step is not None and saved.step % self.every == 0


def _first(ordered: Sequence[Saved], count: int, is_whole: Callable[[Saved], bool]) -> set[str]:
    """List the names up to the whole one number `count`, with the cut-off ones between them."""
    names = set()
    for saved in ordered:
        if count == 0:
            break
        names.add(saved.name)
        count -= is_whole(saved)
    return names


def prune(  # noqa: PLR0913 (by keyword)
    location: str | os.PathLike[str] | Location,
    keep: Keep,
    *,
    dry_run: bool = False,
    secret_file: str | os.PathLike[str] | None = None,
    token: str | None = None,
    token_file: str | os.PathLike[str] | None = None,
) -> list[Saved]:
    """Remove what the policy does not keep of a directory, and what interrupted saves of this machine have left.

    Returns the checkpoints that were removed, oldest first; with `dry_run`, those that would be.
    """
    file_system, path, parent = opened(location, secret_file=secret_file, token=token, token_file=token_file)
    found = find_named(file_system, path, parent)
    surplus = keep.surplus(found, lambda saved: not problem_of(file_system, path, saved))
    if not dry_run:
        for saved in surplus:
            discard(file_system, os.path.join(path, saved.name))
        clean(file_system, path)
    return surplus


__all__ = ["Keep", "prune"]
