"""Watchers of metadata services in trouble, in virtual time: each makes a copy of the namespace from what it is shown.

    F1  what is shown is in the log
    F2  the copy of a watcher that goes from one process to another is what the log gives, at each position that it gets
    F3  a watcher is refused only when the log has been trimmed behind its position; it begins again from there

A failure names its seed.
"""

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial

import pytest

import replica_world
from luciola.errors import Error, NotFound
from luciola.kv.log import Record
from luciola.kv.log.ordered_log import Trimmed
from luciola.kv.record import decode_record
from luciola.meta.change_window import Window, entry_of
from luciola.meta.feed import Cursor, Feed
from luciola.meta.terms import Terms
from luciola.wire.pb import meta_pb2 as pb
from luciola.wire.pb.common_pb2 import Caller
from store_content import content
from virtual_loop import Stuck, simulate

from .test_terms import MetaWorld, path
from .watched import Copy, names_below

SEEDS = 10
SEEDS_MAX = 30  # in which a planted mistake has to be found
WAIT_MS = 1500
WATCHERS = 2
QUESTIONS_MAX = 1000  # until a watcher has seen all that was done


@dataclass
class Watcher:
    """Where it is, and its copy."""

    position: str = ""
    copy: Copy = field(default_factory=Copy)
    changes: int = 0
    began_again: int = 0


class FeedWorld(MetaWorld):
    """`MetaWorld`, of whose clients some watch, and one moves directories."""

    def __init__(self, seed: int, *, terms: type[Terms] = Terms) -> None:
        super().__init__(seed, terms=terms)
        self.watchers = [Watcher() for _ in range(WATCHERS)]
        self._sequence = 0

    async def client(self, name: int) -> None:
        if name < WATCHERS:
            await self._watch(self.watchers[name], slowness_s=8.0 * name)
        elif name == WATCHERS:
            await self._move_directories()
        else:
            await super().client(name)

    async def _watch(self, watcher: Watcher, *, slowness_s: float) -> None:
        while not self.wrong:
            await self._take(watcher, wait_ms=WAIT_MS)
            await asyncio.sleep(self.dice.uniform(0.0, slowness_s))

    async def _take(self, watcher: Watcher, *, wait_ms: int) -> None:
        request = pb.WatchRequest(path=pb.Path(at=1), after=watcher.position, wait_ms=wait_ms)
        try:
            reply = await self.answer("watch", request)
        except NotFound as error:
            bounds = await self.log.bounds()
            if (
                "too_old" not in error.fields
                or Cursor.parse(watcher.position).record.index + 1 >= bounds.first
            ):
                self.wrong.append(
                    f"F3: refused at {watcher.position}, the log begins with {bounds.first}: {error}"
                )
            watcher.position = ""
            watcher.began_again += 1
            return
        except (Error, AssertionError) as error:
            self.wrong.append(f"F2: {error!r}")
            watcher.position = ""
            return
        if not watcher.position:
            watcher.copy = Copy(self.names_at(Cursor.parse(reply.position).record.index))
        for change in reply.changes:
            watcher.copy.take(change)
        watcher.changes += len(reply.changes)
        watcher.position = reply.position
        self._compare(watcher)

    def names_at(self, index: int) -> dict[bytes, int]:
        return names_below(dict(content(self.rebuilt(index))))

    def _compare(self, watcher: Watcher) -> None:
        self.wrong += [f"F2: {each}" for each in watcher.copy.wrong]
        watcher.copy.wrong.clear()
        record, number = Cursor.parse(watcher.position)
        if record.index and (
            len(self.log.all) < record.index or self.log.all[record.index - 1].position != record
        ):
            self.wrong.append(f"F1: the log does not contain {watcher.position}")
        elif not number and self.dice.random() < 0.1:
            self._require_names(watcher, self.names_at(record.index))

    def _require_names(self, watcher: Watcher, expected: Mapping[bytes, int]) -> None:
        if watcher.copy.names != expected:
            different = set(watcher.copy.names.items()) ^ set(expected.items())
            self.wrong.append(f"F2: at {watcher.position} the copy differs by {sorted(different)[:4]}")

    async def settle(self) -> None:
        await super().settle()
        for watcher in self.watchers:
            for _ in range(QUESTIONS_MAX):
                before = watcher.position
                await self._take(watcher, wait_ms=0)
                if watcher.position == before:
                    break
            self._require_names(watcher, self.names_at(Cursor.parse(watcher.position).record.index))

    def _check_requests(self, stored: dict[bytes, bytes]) -> None:
        """Those of `MetaWorld` are checked by its own test, without the directories."""

    # One who moves directories.

    async def _move_directories(self) -> None:
        await self._change("mkdir", pb.MkdirRequest(path=path(b"t"), permissions=0o755))
        number = 0
        while True:
            number += 1
            await asyncio.sleep(self.dice.uniform(0.0, 0.05))
            try:
                await self._round(number)
            except (Error, AssertionError) as error:
                self.wrong.append(f"T1: {number}: {error!r}")
                return
            self.history.acknowledged[b"round %d" % number] = number

    async def _round(self, number: int) -> None:
        new, file = b"t/d%d" % number, b"t/d%d/f" % number
        await self._change("mkdir", pb.MkdirRequest(path=path(new), permissions=0o755))
        await self._change("create", pb.CreateRequest(path=path(file), permissions=0o644, exclusive=True))
        moved = b"t/e%d" % number
        await self._rename(new, moved)
        await self._change("set_attr", pb.SetAttrRequest(path=path(moved + b"/f"), permissions=0o600))
        if number > 1:
            before = b"t/e%d" % (number - 1)
            await self._rename(moved, before, exchange=True)
            await self._rename(before + b"/f", moved + b"/g")
            await self._change("set_attr", pb.SetAttrRequest(path=path(moved + b"/g"), permissions=0o640))
            await self._rename(moved + b"/g", moved + b"/f")  # replaces one
            await self._rename(before, moved + b"/in")
        if number % 3 == 0:
            await self._change("remove_tree", pb.RemoveTreeRequest(path=path(moved)))
            await self._change("mkdir", pb.MkdirRequest(path=path(moved), permissions=0o755))
            await self._change(
                "create", pb.CreateRequest(path=path(moved + b"/f"), permissions=0o644, exclusive=True)
            )

    async def _rename(self, source: bytes, target: bytes, *, exchange: bool = False) -> None:
        await self._change(
            "rename", pb.RenameRequest(source=path(source), target=path(target), exchange=exchange)
        )

    async def _change(self, method: str, request) -> None:
        self._sequence += 1
        sequence = self._sequence
        request.caller.CopyFrom(Caller(client=1000, sequence=sequence, settled_below=sequence))
        await self.answer(method, request)


def live(world: FeedWorld) -> FeedWorld:
    return simulate(replica_world.live(world, clients=WATCHERS + 2))


@pytest.mark.parametrize("seed", range(SEEDS))
def test_watchers_follow_through_take_overs(seed):
    world = live(FeedWorld(seed))
    assert world.wrong == []
    assert all(watcher.changes > 50 for watcher in world.watchers)


# Planted mistakes.


class ShowsUnstored(Feed):
    """What is being stored is shown already."""

    async def _changes(self, watched, cursor, *, wait_s):
        groups, last = self._engine._groups, self._applied.position
        if not groups or not groups[0].is_full or cursor != Cursor(last):
            return await super()._changes(watched, cursor, wait_s=wait_s)
        payload = groups[0].record()
        record = Record.create(payload, after=last, epoch=self._engine.epoch)
        window = Window(last)
        window.append(entry_of(record, decode_record(payload)))
        found, cursor, _ = self._collect(window, cursor, watched)
        return pb.WatchReply(directory=watched.directory, position=cursor.encode(), changes=found)


class SkipsToItsBeginning(Feed):
    """After a take-over, what the window does not have is skipped."""

    async def _changes(self, watched, cursor, *, wait_s):
        begin = self._keep().begin
        if cursor.record.index < begin.index:
            cursor = Cursor(begin)
        return await super()._changes(watched, cursor, wait_s=wait_s)


class SkipsWhatIsTrimmed(Feed):
    """Records that the log has trimmed are left out, and nothing is said."""

    async def _changes(self, watched, cursor, *, wait_s):
        try:
            await self._log.read(cursor.record, limit=1)
        except Trimmed:
            cursor = Cursor(self._keep().begin)
        return await super()._changes(watched, cursor, wait_s=wait_s)


class RepeatsRecords(Feed):
    """A position within a record is treated as its beginning."""

    def _collect(self, window, cursor, watched):
        found, after, is_complete = super()._collect(window, cursor, watched)
        return found[:1], (Cursor.parse(found[0].position) if found else after), is_complete and not found

    async def _changes(self, watched, cursor, *, wait_s):
        return await super()._changes(watched, Cursor(cursor.record), wait_s=wait_s)


class PathsOfNow(Window):
    """Names are those that the store has by now."""

    def name_before(self, inode, index, number):
        return None


class WithPathsOfNow(Feed):
    def _keep(self):
        if self._window is None:
            self._window = PathsOfNow(self._applied.position)
            self._applied.observer = self._carried_out
        return super()._keep()


def terms_with(mistaken: type[Feed]) -> type[Terms]:
    changed = {"_feed": lambda _self, engine: mistaken(engine)}
    if mistaken is ShowsUnstored:  # replies would wait for what they have seen
        changed["_answering"] = lambda _self, service, _engine: service
    return type(mistaken.__name__, (Terms,), changed)


MISTAKES = [ShowsUnstored, SkipsToItsBeginning, SkipsWhatIsTrimmed, RepeatsRecords, WithPathsOfNow]


@pytest.mark.timeout(900)  # of many simulations on a busy machine
@pytest.mark.parametrize("mistaken", MISTAKES)
def test_planted_mistake_is_found(mistaken):
    make = partial(FeedWorld, terms=terms_with(mistaken))
    for seed in range(SEEDS_MAX):
        try:
            world = live(make(seed))
        except (AssertionError, Stuck, TimeoutError):
            return
        if world.wrong:
            print("found with seed", seed, world.wrong[0])
            return
    pytest.fail(f"not found in {SEEDS_MAX} seeds")
