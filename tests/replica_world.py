"""Three replicas of one store, their log and their clocks, in virtual time; clients that count, and a checker.

Clients increment a counter, each request at most once however often it is sent, and read it. Each attempt also writes a
key of its own, so that what was reported of it can be compared with what is there in the end.

    W1  a request that was acknowledged is in the store, with the answer that was given, and none is there twice
    W2  reads and increments are linearizable: an answer is never behind one that was given before it was asked for
    W3  an attempt that was reported as thrown away is not in the store
    W4  no two processes lead at one moment
    W5  when faults have ended, somebody serves again, and all stores are equal to the log, byte by byte
"""

import asyncio
import random
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field

from luciola.errors import Busy, Conflict, Error, MaybeCommitted, Unavailable
from luciola.kv import MemoryEngine
from luciola.kv.applied import Applied
from luciola.kv.engine import Unstored
from luciola.kv.log import DRIFT, START, MemoryLog, Position, Record, Trimmed
from luciola.kv.log.faulty import Fault, FaultyLog, Outcome
from luciola.kv.replica import PrimaryEngine, Replica, first_to_keep
from store_content import content
from virtual_loop import LoopClock

LOG = b"simulated"
LEASE_S = 2.0
QUIET_S = 60.0  # after the last fault: far more than a lease and some records
COUNTER = b"counter"


class Archive(MemoryLog):
    """The log, which also remembers what was trimmed."""

    def __init__(self) -> None:
        super().__init__()
        self.all: list[Record] = []

    async def append(self, record: Record) -> None:
        await super().append(record)
        self.all.append(record)


class ProcessClock(LoopClock):
    """A clock of a process that can be paused: sleepers wake when the process continues."""

    def __init__(self, rate: float) -> None:
        super().__init__(rate=rate)
        self.running = asyncio.Event()
        self.running.set()

    async def sleep(self, duration_s: float) -> None:
        await super().sleep(duration_s)
        await self.running.wait()


class ProcessLog(FaultyLog):
    """A process's access to the log, which sees no answer while the process is paused."""

    def __init__(self, inner: MemoryLog, plan: Callable[[str], Outcome], clock: ProcessClock) -> None:
        super().__init__(inner, plan)
        self._running = clock.running

    async def _read(self, method, call):
        try:
            return await super()._read(method, call)
        finally:
            await self._running.wait()

    async def _write(self, method, call):
        await self._running.wait()
        try:
            return await super()._write(method, call)
        finally:
            await self._running.wait()

    async def _arrive(self, method: str) -> None:
        await super()._arrive(method)
        await self._running.wait()


@dataclass
class Node:
    """A machine: what is on its disk, and the process that runs there, if one does."""

    number: int
    engine: MemoryEngine
    clock: ProcessClock | None = None
    log: ProcessLog | None = None
    replica: Replica | None = None
    task: asyncio.Task[None] | None = None
    primary: PrimaryEngine | None = None
    checkpoint: int = 0

    @property
    def is_up(self) -> bool:
        return self.task is not None and not self.task.done()


@dataclass
class Answer:
    """The answer to a client."""

    asked_s: float
    answered_s: float
    value: int
    is_read: bool


@dataclass
class History:
    """What clients have seen."""

    answers: list[Answer] = field(default_factory=list)
    acknowledged: dict[bytes, int] = field(default_factory=dict)  # by request
    thrown_away: set[bytes] = field(default_factory=set)  # attempts
    attempts: int = 0


class World:
    """See the module. `replica` and `applied`: classes, which may have a mistake."""

    def __init__(
        self,
        seed: int,
        *,
        replica: type[Replica] = Replica,
        applied: type[Applied] = Applied,
        nodes: int = 3,
    ) -> None:
        self.dice = random.Random(seed)
        self.log = Archive()
        self.history = History()
        self.wrong: list[str] = []
        self.calm = False
        self._replica = replica
        self._applied = applied
        self.nodes = [Node(number, MemoryEngine()) for number in range(nodes)]

    # Processes.

    def start(self, node: Node) -> None:
        assert not node.is_up
        node.clock = ProcessClock(rate=1 + self.dice.uniform(-DRIFT, DRIFT) / 2)
        node.log = ProcessLog(self.log, self._plan, node.clock)
        applied = self._applied(node.engine, log_id=LOG, create=True)
        node.replica = self._replica(
            node.log, applied, owner=f"node {node.number}", lease_s=LEASE_S, clock=node.clock
        )
        node.task = asyncio.create_task(self._run(node, node.replica), name=f"node {node.number}")

    async def kill(self, node: Node) -> None:
        """As `kill -9`: nothing is said to the log any more."""
        if node.task is None:
            return
        assert node.log is not None
        assert node.clock is not None
        node.log.cut()
        node.clock.running.set()
        node.primary = None
        node.task.cancel()
        await asyncio.gather(node.task, return_exceptions=True)
        await node.log.close()
        node.task = None

    def lose_power(self, node: Node) -> None:
        """Of a killed process: what was not synced may be gone."""
        applied = Applied(node.engine, log_id=LOG, create=True)
        kept = self.dice.randint(min(node.checkpoint, applied.position.index), applied.position.index)
        node.engine = self.rebuilt(kept)

    def rebuilt(self, index: int) -> MemoryEngine:
        """A store as the log's first records give it."""
        engine = MemoryEngine()
        applied = Applied(engine, log_id=LOG, create=True)
        for record in self.log.all[:index]:
            applied.apply(record)
        return engine

    def leaders(self) -> list[Node]:
        return [
            node
            for node in self.nodes
            if node.primary is not None and node.is_up and node.primary._leadership.holds()
        ]

    async def _run(self, node: Node, replica: Replica) -> None:
        async def serve(engine: PrimaryEngine) -> None:
            node.primary = engine
            try:
                await self.serve(node, engine)
            finally:
                if node.primary is engine:
                    node.primary = None

        try:
            await replica.run(serve)
        except Trimmed:
            newest = max(other.checkpoint for other in self.nodes)
            first = (await self.log.bounds()).first
            if newest + 1 < first:
                self.wrong.append(f"F5: the log begins with {first}, and the newest checkpoint is {newest}")
            node.engine = self.rebuilt(newest)
        except (Unavailable, asyncio.CancelledError):
            raise
        except Exception as error:  # noqa: BLE001, whatever it is, the checker shows it
            self.wrong.append(f"node {node.number} ended with {error!r}")

    async def serve(self, node: Node, engine: PrimaryEngine) -> None:
        """What the process does with its store while it leads."""
        await asyncio.Event().wait()

    def first_to_keep(self, _last: Position) -> int:
        return first_to_keep([node.checkpoint for node in self.nodes], copies=2, kept=2)

    # Faults.

    def _plan(self, method: str) -> Outcome:
        if self.calm:
            return Outcome(before_s=0.001, after_s=0.001)
        dice = self.dice
        slow_s = dice.choice([0.001, 0.001, 0.005, 0.3])
        fault = Fault.NONE
        if dice.random() < 0.06:
            fault = dice.choice([Fault.REFUSED, Fault.DONE, Fault.LOST, Fault.LATE])
        if dice.random() < 0.005:
            fault = Fault.FULL
        return Outcome(fault, before_s=slow_s * dice.random(), after_s=slow_s * dice.random(), late_s=1.0)

    async def make_trouble(self, duration_s: float) -> None:
        """One fault after another; each ends before the next begins, but for processes that stay dead a while."""
        loop = asyncio.get_running_loop()
        end_s = loop.time() + duration_s
        while loop.time() < end_s:
            await asyncio.sleep(self.dice.uniform(0.2, 3.0))
            leaders = self.leaders()
            node = leaders[0] if leaders and self.dice.random() < 0.6 else self.dice.choice(self.nodes)
            await self.dice.choice([self._killed, self._paused, self._parted, self._checkpointed])(node)
            for each in self.nodes:
                if not each.is_up and self.dice.random() < 0.7:
                    await self.kill(each)
                    self.start(each)

    async def _killed(self, node: Node) -> None:
        await self.kill(node)
        if self.dice.random() < 0.4:
            self.lose_power(node)
        await asyncio.sleep(self.dice.uniform(0.0, 2 * LEASE_S))

    async def _paused(self, node: Node) -> None:
        """As SIGSTOP and SIGCONT, with a request that is served first."""
        if node.clock is None or not node.is_up:
            return
        engine = node.primary
        node.primary = None  # serves no one
        await asyncio.sleep(self.dice.choice([0.0, 0.5]))  # what is in flight is stored, or not
        if not node.is_up:
            return
        node.clock.running.clear()
        await asyncio.sleep(self.dice.uniform(0.1, 3 * LEASE_S))
        if not node.is_up or node.clock.running.is_set():
            return
        if engine is not None and engine.failure is None:
            node.primary = engine
            with suppress(Error):
                self._read_stored(node)
        node.clock.running.set()

    async def _parted(self, node: Node) -> None:
        if node.log is None:
            return
        access = node.log
        access.cut()
        await asyncio.sleep(self.dice.uniform(0.1, 2 * LEASE_S))
        if node.is_up and node.log is access:
            access.join()

    async def _checkpointed(self, node: Node) -> None:
        if node.is_up and node.replica is not None:
            node.checkpoint = max(node.checkpoint, (await node.replica.applied.sync()).index)
        with suppress(Error):
            await self.log.trim(self.first_to_keep((await self.log.bounds()).last))

    # Clients.

    async def client(self, name: int) -> None:
        """Increments and reads until it is cancelled."""
        number = 0
        while True:
            number += 1
            await asyncio.sleep(self.dice.uniform(0.0, 0.05))
            if self.dice.random() < 0.5:
                await self.increment(b"%d/%d" % (name, number))
                continue
            with suppress(Error):
                await self.read(self._some_primary())

    def _some_primary(self) -> Node:
        believed = [node for node in self.nodes if node.primary is not None]
        return self.dice.choice(believed or self.nodes)

    async def read(self, node: Node) -> None:
        asked_s = asyncio.get_running_loop().time()
        value, unstored = self._look(node)
        if unstored is not None:
            await unstored.stored()
        self._answer(asked_s, value, is_read=True)

    def _read_stored(self, node: Node) -> None:
        """A read that is answered in the moment in which it is asked, if it has seen only what is stored."""
        value, unstored = self._look(node)
        if unstored is None:
            self._answer(asyncio.get_running_loop().time(), value, is_read=True)

    def _look(self, node: Node) -> tuple[int, Unstored | None]:
        engine = node.primary
        if engine is None:
            raise Unavailable("it is no primary")
        value = int(engine.begin().get(COUNTER) or b"0")
        self._check_leaders(engine)
        return value, engine.unstored

    async def increment(self, request: bytes) -> None:
        """Until it is acknowledged."""
        asked_s = asyncio.get_running_loop().time()
        while True:
            self.history.attempts += 1
            attempt = b"%d" % self.history.attempts
            try:
                value = await self._attempt(request, attempt)
            except (Unavailable, Conflict, Busy, MaybeCommitted):
                await asyncio.sleep(self.dice.uniform(0.01, 0.3))
            else:
                self._answer(asked_s, value, is_read=False)
                self.history.acknowledged[request] = value
                return

    async def _attempt(self, request: bytes, attempt: bytes) -> int:
        engine = self._some_primary().primary
        if engine is None:
            raise Unavailable("no process leads")
        transaction = engine.begin()
        done = transaction.get(b"request/" + request)
        value = int(done) if done is not None else int(transaction.get(COUNTER) or b"0") + 1
        if done is None:
            transaction.put(COUNTER, b"%d" % value)
            transaction.put(b"request/" + request, b"%d" % value)
            transaction.put(b"attempt/" + attempt, request)
        transaction.commit()
        unstored = engine.unstored
        if unstored is not None:
            try:
                await unstored.stored()
            except Unavailable:
                if done is None:
                    self.history.thrown_away.add(attempt)
                raise
        return value

    # Checks.

    def _check_leaders(self, engine: PrimaryEngine) -> None:
        others = [node for node in self.leaders() if node.primary is not engine]
        if engine._leadership.holds() and others:
            self.wrong.append("W4: two processes lead")

    def _answer(self, asked_s: float, value: int, *, is_read: bool) -> None:
        answered_s = asyncio.get_running_loop().time()
        self.history.answers.append(Answer(asked_s, answered_s, value, is_read))

    async def calm_down(self) -> None:
        """End all faults, and start what is down."""
        self.calm = True
        for node in self.nodes:
            if node.log is not None:
                node.log.join()
            if node.clock is not None:
                node.clock.running.set()
            if not node.is_up:
                await self.kill(node)
                self.start(node)

    async def settle(self) -> None:
        """Wait until all stores are at the end of the log (W5)."""
        end_s = asyncio.get_running_loop().time() + QUIET_S
        while asyncio.get_running_loop().time() < end_s:
            await asyncio.sleep(0.5)
            for node in self.nodes:
                if not node.is_up:  # it needed a checkpoint, or its store was closed
                    await self.kill(node)
                    self.start(node)
            last = (await self.log.bounds()).last
            if self.leaders() and all(self._position(node) == last for node in self.nodes):
                return
        places = {node.number: self._position(node).index for node in self.nodes}
        last = (await self.log.bounds()).last.index
        roles = [node.replica.role.value for node in self.nodes if node.replica is not None]
        self.wrong.append(f"W5: after {QUIET_S} s without faults: at {places} of {last}, {roles}")

    def _position(self, node: Node) -> Position:
        return node.replica.applied.position if node.replica is not None else START

    def check(self) -> None:
        """Compare what clients have seen with what is there."""
        expected = content(self.rebuilt(len(self.log.all)))
        for node in self.nodes:
            if content(node.engine) != expected:
                self.wrong.append(f"W5: the store of node {node.number} is not what the log gives")
        self._check_requests(dict(expected))
        self._check_order()

    def _check_requests(self, stored: dict[bytes, bytes]) -> None:
        requests = {
            key[len(b"request/") :]: int(value)
            for key, value in stored.items()
            if key.startswith(b"request/")
        }
        if int(stored.get(COUNTER, b"0")) != len(requests) or len(set(requests.values())) != len(requests):
            self.wrong.append(f"W1: {len(requests)} requests, and the counter is {stored.get(COUNTER)!r}")
        for request, value in self.history.acknowledged.items():
            if requests.get(request) != value:
                self.wrong.append(
                    f"W1: {request!r} was answered {value}, and the store has {requests.get(request)}"
                )
        for attempt in self.history.thrown_away:
            if b"attempt/" + attempt in stored:
                self.wrong.append(f"W3: attempt {attempt!r} was thrown away, and is there")

    def _check_order(self) -> None:
        answers = sorted(self.history.answers, key=lambda answer: answer.answered_s)
        asked = sorted(self.history.answers, key=lambda answer: answer.asked_s)
        highest, place = 0, 0
        for answer in asked:
            while place < len(answers) and answers[place].answered_s < answer.asked_s:
                highest = max(highest, answers[place].value)
                place += 1
            if answer.value < highest:
                self.wrong.append(f"W2: {answer} is behind {highest}, which was answered before")


async def live(world: World, *, duration_s: float = 40.0, clients: int = 3) -> World:
    """Let the world go through trouble, come to rest, and be checked."""
    for node in world.nodes:
        world.start(node)
    working = [asyncio.create_task(world.client(name)) for name in range(clients)]
    try:
        await world.make_trouble(duration_s)
        await world.calm_down()
        await asyncio.sleep(5 * LEASE_S)
        for task in working:
            if task.done():
                task.result()
        working_on = len(world.history.acknowledged)
        await asyncio.sleep(5 * LEASE_S)
        if len(world.history.acknowledged) == working_on:
            world.wrong.append("W5: no request is served any more")
    finally:
        for task in working:
            task.cancel()
        await asyncio.gather(*working, return_exceptions=True)
    await world.settle()
    for node in world.nodes:
        await world.kill(node)
    world.check()
    return world


__all__ = ["LEASE_S", "LOG", "Archive", "Node", "World", "live"]
