"""Removes the chunks of replicas that are no longer part of their chains.

A replica may be removed while its node runs, or while it is away: then its chunks are found when the node returns.
What this node has lost, and no other node has, is never among them:

    F1  chunks are removed only of a chain that routing knows, that has no replica here, and all of whose replicas serve
"""

import asyncio
import logging
from typing import Final

from ..errors import Error
from ..wire import RoutingTable
from ..wire.pb.mgmtd_pb2 import SERVING, Chain
from .engine import Engine

log = logging.getLogger(__name__)

SPACING_S: Final = 1.0  # between two looks, while routing changes
RETRY_S: Final = 30.0  # after chunks that could not be removed


class Leftovers:
    """Looks for such chunks after each change of routing."""

    def __init__(self, engine: Engine, table: RoutingTable, *, node: int) -> None:
        self._engine = engine
        self._table = table
        self._node = node
        self._changed = asyncio.Event()

    def routing_changed(self) -> None:
        """Look again soon."""
        self._changed.set()

    async def run(self) -> None:
        """Remove leftovers. Return never."""
        while True:
            await self._changed.wait()
            self._changed.clear()
            if not await self.remove():
                asyncio.get_running_loop().call_later(RETRY_S, self._changed.set)
            await asyncio.sleep(SPACING_S)

    async def remove(self) -> bool:
        """Remove all that there are now. False: some could not be removed, which the log explains."""
        is_done = True
        for id_ in await self._engine.run(self._engine.node.stored_chains):
            chain = self._table.chains.get(id_)
            if chain is None or not self._is_leftover(chain):
                continue
            try:
                await self._engine.run(self._engine.node.wipe_chain, id_)
            except Error as error:
                log.warning("chain %d: removing what is left of a former replica failed: %s", id_, error)
                is_done = False
                continue
            log.info("chain %d: has no replica here any more; its chunks were removed", id_)
        return is_done

    def _is_leftover(self, chain: Chain) -> bool:  # F1
        is_whole = all(target.state == SERVING for target in chain.targets)
        return bool(chain.targets) and is_whole and all(target.node != self._node for target in chain.targets)


__all__ = ["Leftovers"]
