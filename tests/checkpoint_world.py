"""The replicas of `replica_world` with disks of their own: they make checkpoints, trim the log, and catch up.

A machine's disk holds its store and its checkpoints. Disks are lost too, one after another: the next one when the last
one has a checkpoint again from which the log can be followed. So whatever the log has forgotten must be on two disks.
"""

import asyncio
from collections.abc import Sequence
from contextlib import suppress

from luciola.errors import CorruptData, NoSpace, NotFound, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.applied import Applied
from luciola.kv.checkpoint.catch_up import Disk, open_store
from luciola.kv.checkpoint.keeper import Keeper, Member, Policy
from luciola.kv.log import START, Diverged, Position, Trimmed
from luciola.kv.record_sizes import RecordSizes
from luciola.kv.replica import PrimaryEngine
from replica_world import LEASE_S, LOG, Node, ProcessClock, ProcessLog, World
from store_content import Content, content

POLICY = Policy(
    records=30,
    size_bytes=5000,
    interval_s=20.0,
    retained=2,
    copies=2,
    kept_records=5,
    kept_bytes=1000,
    check_s=1.0,
)
RETRY_S = 1.0  # of a process that could not begin


class MemoryDisk(Disk):
    """What is on one machine's disk; also its checkpoints as a keeper sees them, while the store is open."""

    def __init__(self, world: "CheckpointWorld", node: Node) -> None:
        self._world = world
        self._node = node
        self.checkpoints: dict[Position, Content] = {}
        self.applied: Applied | None = None

    def open(self) -> Applied:
        self.applied = Applied(self._node.engine, log_id=LOG, create=True)
        return self.applied

    def positions(self) -> Sequence[Position]:
        return sorted(self.checkpoints, key=lambda each: each.index)

    async def fetch(self, address: str) -> Position:
        other = self._world.nodes[int(address)]
        self._require_reach(other)
        theirs = self._world.disks[other.number]
        if not theirs.positions():
            raise NotFound("there is no checkpoint to fetch")
        position = theirs.positions()[-1]
        await self._world.pause(self._node, 3.0)
        self._require_reach(other)
        if position not in theirs.checkpoints:
            raise NotFound("it has been removed")
        self.checkpoints[position] = theirs.checkpoints[position]
        return position

    async def replace(self, position: Position) -> None:
        self._node.engine = MemoryEngine()
        await self._world.pause(self._node, 0.5)
        self._node.engine = filled(self.checkpoints[position])

    def position(self) -> Position:
        assert self.applied is not None
        return self.applied.position

    def newest(self) -> Position:
        return self.positions()[-1] if self.checkpoints else START

    @property
    def sizes(self) -> RecordSizes:
        assert self.applied is not None
        return self.applied.sizes

    async def make(self) -> None:
        assert self.applied is not None
        if not self._world.calm and self._world.dice.random() < 0.2:
            raise NoSpace("injected")
        applied, position, made = self.applied, self.applied.position, content(self.applied.engine)
        await self._world.pause(self._node, 0.5)
        if self.applied is applied:
            self.checkpoints[position] = made

    async def retain(self, count: int) -> None:
        for position in self.positions()[:-count]:
            del self.checkpoints[position]

    def _require_reach(self, other: Node) -> None:
        if not other.is_up or (not self._world.calm and self._world.dice.random() < 0.2):
            raise Unavailable("that machine does not answer")


def filled(pairs: Content) -> MemoryEngine:
    """A store with this content, of which some keys are its own."""
    engine = MemoryEngine()
    transaction = engine.begin()
    for key, value in pairs:
        transaction._writes[key] = value
    transaction.commit()
    return engine


class CheckpointWorld(World):
    """See the module. `keeper`, `open_store`: they may have a mistake."""

    def __init__(self, seed: int, *, keeper: type[Keeper] = Keeper, opening=open_store, **more) -> None:
        super().__init__(seed, **more)
        self._keeper = keeper
        self._opening = opening
        self.disks = [MemoryDisk(self, node) for node in self.nodes]
        self.lost: Node | None = None  # whose disk was lost last
        self.restored = 0
        self.losses = 0

    def start(self, node: Node) -> None:
        assert not node.is_up
        node.clock = ProcessClock(rate=1.0)
        node.log = ProcessLog(self.log, self._plan, node.clock)
        node.replica = None
        node.task = asyncio.create_task(self._live(node), name=f"node {node.number}")

    async def pause(self, node: Node, longest_s: float) -> None:
        """What a disk or a connection takes."""
        assert node.clock is not None
        await node.clock.sleep(self.dice.uniform(0.0, longest_s))

    async def _live(self, node: Node) -> None:
        """As `run_replica`."""
        while True:
            try:
                await self._begin(node)
            except (Unavailable, TimeoutError, NoSpace):
                await asyncio.sleep(RETRY_S)
            except Trimmed:
                continue
            except (CorruptData, AssertionError) as error:
                self.wrong.append(f"node {node.number} ended with {error!r}")
                return

    async def _begin(self, node: Node) -> None:
        access, clock, disk = node.log, node.clock, self.disks[node.number]
        assert access is not None
        assert clock is not None
        before = node.engine
        applied = await self._opening(access, disk, name=str(node.number))
        self.restored += node.engine is not before
        node.replica = self._replica(
            access, applied, owner=f"node {node.number}", lease_s=LEASE_S, clock=clock
        )
        member = Member(str(node.number), str(node.number))
        keeper = self._keeper(access, disk, member=member, policy=POLICY, clock=clock)
        keeping = asyncio.create_task(keeper.run())

        async def serve(engine: PrimaryEngine) -> None:
            node.primary = engine
            try:
                await asyncio.Event().wait()
            finally:
                if node.primary is engine:
                    node.primary = None

        try:
            await node.replica.run(serve)
        finally:
            disk.applied = None
            keeping.cancel()
            await asyncio.gather(keeping, return_exceptions=True)

    # Faults.

    def lose_power(self, node: Node) -> None:
        """Of a killed process: what was not synced may be gone, not what a checkpoint has."""
        index = Applied(node.engine, log_id=LOG, create=True).position.index
        kept = min(self.disks[node.number].newest().index, index)
        node.engine = self.rebuilt(self.dice.randint(kept, index))

    async def _checkpointed(self, node: Node) -> None:
        """Instead of a checkpoint by hand: the loss of a disk, or a long time without power."""
        await self.kill(node)
        if await self._may_be_lost():
            self.losses += 1
            self.lost = node
            node.engine = MemoryEngine()
            self.disks[node.number].checkpoints.clear()
        await asyncio.sleep(self.dice.uniform(0.0, 15.0))

    async def _may_be_lost(self) -> bool:
        """Whether everything is on two disks again."""
        announced = await self.log.announced()
        if len(announced) < len(self.nodes):
            return False
        return self.lost is None or await self._fits(self.disks[self.lost.number].newest())

    async def _fits(self, position: Position) -> bool:
        with suppress(Trimmed, Diverged):
            await self.log.read(position, limit=1)
            return position != START or (await self.log.bounds()).first == 1
        return False


__all__ = ["POLICY", "CheckpointWorld", "MemoryDisk"]
