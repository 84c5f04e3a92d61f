"""How many inodes there are, for statfs: counted in the background after a start, kept up to date from then on.

The count goes through inodes by id. It meets new ones, which have larger ids than all before, and not those whose ids
were reserved earlier (reservations.py): behind it these are added, and what is removed there is subtracted. A commit
whose outcome stays unknown may leave it off by one until the next start.
"""

import asyncio
from collections.abc import Sequence
from typing import Final

from ..kv import Engine
from . import schema

PAGE: Final = 512  # a millisecond of the event loop


class InodeCounter:
    """The number of inodes."""

    def __init__(self) -> None:
        self.count = 0
        self._cursor = 0  # ids below have been counted
        self._is_done = False
        self._round = 0

    async def count_all(self, engine: Engine) -> None:
        """Count all inodes; requests are served meanwhile. Called again, it counts from the start."""
        self.count = self._cursor = 0
        self._is_done = False
        self._round += 1
        this = self._round
        end = schema.kind_range(b"I")[1]
        while this == self._round:
            pairs = engine.begin().snapshot_range(schema.inode_key(self._cursor), end, limit=PAGE)
            self.count += len(pairs)
            if len(pairs) < PAGE:
                self._is_done = True
                return
            self._cursor = schema.split_one(pairs[-1][0])[0] + 1
            await asyncio.sleep(0)

    def added(self, inodes: Sequence[int]) -> None:
        """New inodes have been stored."""
        self.count += len(inodes) if self._is_done else sum(inode < self._cursor for inode in inodes)

    def removed(self, inode: int) -> None:
        """An inode is no more."""
        if self._is_done or inode < self._cursor:
            self.count -= 1


__all__ = ["InodeCounter"]
