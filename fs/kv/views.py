"""Which versions are still being read.

All transactions that read the same version share one view. Nearly every transaction begins and ends between two commits
of others, so at the next commit no transaction reads the version any more, and nothing has to be kept of it. Views are
held by weak references: a transaction that is dropped without commit or abort does not count.

    V1  `keep` is called on a view that a transaction holds before the next commit is applied
    V2  while such a view is held, and is not too old to be read, `has_overtaken` says so
"""

from collections import deque
from collections.abc import Callable
from typing import Final, Generic, Protocol, TypeVar
from weakref import ref


class Keeping(Protocol):
    """What is asked of a view here."""

    version: int

    def keep(self) -> None:
        """Keep this version readable after the commit that is about to be applied. Idempotent."""


View = TypeVar("View", bound=Keeping)

_NONE: Final[Callable[[], None]] = lambda: None  # noqa: E731, in place of a reference


class OpenViews(Generic[View]):
    """The view of the newest version, and those that commits have overtaken."""

    __slots__ = ("_newest", "_overtaken")

    def __init__(self) -> None:
        self._newest: Callable[[], View | None] = _NONE
        self._overtaken: deque[tuple[int, Callable[[], View | None]]] = deque()  # oldest first

    def newest(self) -> View | None:
        """Return the view of the newest version, if a transaction holds one."""
        return self._newest()

    def add(self, view: View) -> None:
        """`view` is of the newest version, which had no view."""
        assert self._newest() is None, "transactions of one version share a view"
        assert not self._overtaken or view.version > self._overtaken[-1][0], "versions grow"
        self._newest = ref(view)

    def keep(self) -> None:
        """Called before a commit is applied (V1)."""
        view = self._newest()
        if view is not None:
            view.keep()

    def overtake(self) -> None:
        """Called after the commit was applied."""
        view = self._newest()
        if view is not None:
            assert not self._overtaken or view.version > self._overtaken[-1][0], "versions grow"
            self._overtaken.append((view.version, self._newest))
        self._newest = _NONE

    def has_overtaken(self, floor: int) -> bool:
        """Return whether a transaction holds a view of an older version, from `floor` on."""
        overtaken = self._overtaken
        while overtaken and (overtaken[0][0] < floor or overtaken[0][1]() is None):
            overtaken.popleft()
        return bool(overtaken)


__all__ = ["Keeping", "OpenViews"]
