"""Which versions are still being read.

A view is shared by all who look at the same version. Nearly every transaction begins and ends between two commits of
others, so nobody looks at a version any more when the next commit comes; then nothing has to be remembered of it. Views
are known by weak references: a transaction that is dropped without an end counts no longer.

    V1  a view that somebody holds when a commit is made has been told to `keep` its version before
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
        """The store is about to change: see to it that this version stays readable. Called again, it does nothing."""


View = TypeVar("View", bound=Keeping)

_NONE: Final[Callable[[], None]] = lambda: None  # noqa: E731, in place of a reference


class OpenViews(Generic[View]):
    """The view of the newest version, and those that commits have overtaken."""

    __slots__ = ("_newest", "_overtaken")

    def __init__(self) -> None:
        self._newest: Callable[[], View | None] = _NONE
        self._overtaken: deque[tuple[int, Callable[[], View | None]]] = deque()  # oldest first

    def newest(self) -> View | None:
        """The view of the newest version, if anybody holds one."""
        return self._newest()

    def add(self, view: View) -> None:
        """`view` is of the newest version, of which nobody held one."""
        self._newest = ref(view)

    def keep(self) -> None:
        """A commit is about to be made (V1)."""
        view = self._newest()
        if view is not None:
            view.keep()

    def overtake(self) -> None:
        """The commit was made."""
        view = self._newest()
        if view is not None:
            self._overtaken.append((view.version, self._newest))
        self._newest = _NONE

    def has_overtaken(self, floor: int) -> bool:
        """Whether anybody holds a view of an older version, from `floor` on."""
        overtaken = self._overtaken
        while overtaken and (overtaken[0][0] < floor or overtaken[0][1]() is None):
            overtaken.popleft()
        return bool(overtaken)


__all__ = ["Keeping", "OpenViews"]
