"""A grouped engine for tests that run without an event loop."""

import asyncio

from luciola.kv import Engine, Transaction
from luciola.kv.grouped import GroupedEngine


class StoredNowAndThen(GroupedEngine):
    """Every third commit waits until all are stored: some are seen before, and some after."""

    def __init__(self, inner: Engine, *, commits_max: int) -> None:
        super().__init__(inner, commits_max=commits_max)
        self._loop = asyncio.new_event_loop()
        self._commits = 0

    def commit(self, transaction: Transaction) -> int:
        version = super().commit(transaction)
        self._commits += 1
        if not self._commits % 3:
            self._loop.run_until_complete(self.sync())
        return version

    def close(self) -> None:
        super().close()
        self._loop.close()
