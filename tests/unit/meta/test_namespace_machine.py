"""Random histories, with commits that fail and processes that end, beside a model; each seed repeats its history."""

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from luciola.errors import Error
from luciola.kv import Engine, MemoryEngine
from luciola.kv.faulty import Fault, FaultyEngine
from luciola.kv.grouped import GroupedEngine
from luciola.kv.rocksdb import RocksEngine
from luciola.meta.schema import INODES
from luciola.wire.pb import meta_pb2 as pb

from .model import Model, Refused
from .world import CHUNK, World, check_store, dump

NAMES = st.sampled_from([b"a", b"b", b"c"])
ANY = st.lists(NAMES, min_size=1, max_size=3).map(b"/".join)
PATHS = st.one_of(
    st.integers(0, 1000), st.integers(0, 1000), st.integers(0, 1000), ANY
)  # numbers: see `pick`
DEPTH_MAX = 4
LENGTHS = st.sampled_from([0, 1, 5, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK])
FLAGS = st.booleans()


class Namespace(RuleBasedStateMachine):
    """Root's view of one service, through faults and restarts."""

    def __init__(self, directory: Path | None = None, *, grouped: bool = False) -> None:
        super().__init__()
        self.directory = directory
        inner: Engine = (
            MemoryEngine() if directory is None else RocksEngine(directory, cached=INODES, create=True)
        )
        if grouped:
            inner = GroupedEngine(inner)
        self.engine = FaultyEngine(inner, lambda _: Fault.NONE)
        self.world = World(self.engine)
        self.model = Model()
        self.changed = False

    @initialize(seed=st.integers(0, 1 << 30), probability=st.sampled_from([0.0, 0.2, 0.4]))
    def faults(self, seed, probability):
        source = random.Random(seed)

        def plan(_: int) -> Fault:
            if source.random() >= probability:
                return Fault.NONE
            return source.choice((Fault.CONFLICT, Fault.MAYBE_DONE, Fault.MAYBE_LOST))

        self.engine.plan = plan

    def pick(self, path: int | bytes) -> bytes:
        """A path that exists, or a free name in a directory that exists; bytes are a path already."""
        if isinstance(path, bytes):
            return path
        seen = self.model.dump()
        known = sorted(seen)[1:]
        free = [
            directory + b"/" + name
            for directory, (kind, *_) in sorted(seen.items())
            for name in (b"a", b"b", b"c")
            if kind == pb.DIRECTORY
            and directory + b"/" + name not in seen
            and directory.count(b"/") < DEPTH_MAX
        ]
        choice = known if path % 3 and known else free or known
        return choice[path // 3 % len(choice)][1:]

    def both(self, act, expect):
        """Lets both do it; they agree on the outcome."""
        self.changed = True
        try:
            expect()
            expected = 0
        except Refused as refused:
            expected = refused.errno
        try:
            reply = act()
            found = 0
        except Error as error:
            reply, found = None, error.errno
        assert found == expected, f"the service says {found}, the model {expected}"
        return reply

    @rule(path=PATHS, exclusive=FLAGS, truncate=FLAGS, permissions=st.sampled_from([0o644, 0o600, 0o4755]))
    def create(self, path, exclusive, truncate, permissions):
        path = self.pick(path)
        reply = self.both(
            lambda: self.world.create(path, exclusive=exclusive, truncate=truncate, permissions=permissions),
            lambda: self.model.create(path, exclusive=exclusive, truncate=truncate, permissions=permissions),
        )
        if reply is not None:
            self.world.close_one(reply.inode.id, reply.session)

    @rule(path=PATHS, parents=FLAGS)
    def mkdir(self, path, parents):
        path = self.pick(path)
        expect = self.model.make_parents if parents else self.model.mkdir
        self.both(lambda: self.world.mkdir(path, parents=parents), lambda: expect(path))

    @rule(path=PATHS, to=st.one_of(ANY, ANY.map(lambda path: b"/" + path)))
    def symlink(self, path, to):
        path = self.pick(path)
        self.both(lambda: self.world.symlink(path, to), lambda: self.model.symlink(path, to))

    @rule(source=PATHS, to=PATHS)
    def link(self, source, to):
        source = self.pick(source)
        to = self.pick(to)
        self.both(lambda: self.world.link(source, to), lambda: self.model.link(source, to))

    @rule(path=PATHS)
    def unlink(self, path):
        path = self.pick(path)
        self.both(lambda: self.world.unlink(path), lambda: self.model.unlink(path))

    @rule(path=PATHS)
    def rmdir(self, path):
        path = self.pick(path)
        self.both(lambda: self.world.rmdir(path), lambda: self.model.rmdir(path))

    @rule(path=PATHS)
    def remove_tree(self, path):
        path = self.pick(path)
        self.both(lambda: self.world.remove_tree(path), lambda: self.model.remove_tree(path))
        self.collect()  # other names of files in the tree lose their links then

    @rule(source=PATHS, to=PATHS, flags=st.sampled_from(["", "", "no_replace", "exchange", "both"]))
    def rename(self, source, to, flags):
        source = self.pick(source)
        to = self.pick(to)
        how = {"no_replace": flags in ("no_replace", "both"), "exchange": flags in ("exchange", "both")}
        self.both(
            lambda: self.world.rename(source, to, **how),
            lambda: self.model.rename(source, to, **how),
        )

    @rule(path=PATHS, length=LENGTHS, open_=FLAGS)
    def truncate(self, path, length, open_):
        path = self.pick(path)

        def act():
            if not open_:
                return self.world.set_attr(path, length=length)
            reply = self.world.open(path, write=True, read=False)
            try:
                return self.world.set_attr(b"", at=reply.inode.id, length=length, session=reply.session)
            finally:
                self.world.close_one(reply.inode.id, reply.session)

        self.both(act, lambda: self.model.truncate(path, length))

    @rule(path=PATHS, permissions=st.sampled_from([0o644, 0o700, 0o6755]))
    def chmod(self, path, permissions):
        path = self.pick(path)
        self.both(
            lambda: self.world.set_attr(path, permissions=permissions),
            lambda: self.model.chmod(path, permissions),
        )

    @rule(path=PATHS, name=st.sampled_from([b"user.x", b"user.y"]), value=st.binary(max_size=5))
    def set_attribute(self, path, name, value):
        path = self.pick(path)
        self.both(
            lambda: self.world.xattr("set", self.world.stat(path).id, name, value),
            lambda: self.model.set_attribute(path, name, value),
        )

    @rule(path=PATHS, offset=LENGTHS, size=st.sampled_from([1, 100, 5000, CHUNK + 1]), by=st.integers(1, 250))
    def write(self, path, offset, size, by):
        """As a client writes: inline while it fits, else chunks; then it closes."""
        path = self.pick(path)
        try:
            _, _, node = self.model.existing(path, follow=True)
        except Refused:
            return
        if node.kind != "file":
            return
        self.changed = True
        data = bytes([by]) * size
        before = node.data.ljust(offset, b"\0")
        node.data = before[:offset] + data + before[offset + size :]
        self._write_as_client(path, offset, data)

    def _write_as_client(self, path, offset, data):
        world = self.world
        reply = world.open(path, write=True, read=False)
        inode = reply.inode
        hint = {"length": max(inode.length, offset + len(data)), "truncate_version": inode.truncate_version}
        if inode.is_inline:
            whole = world.read(inode).ljust(offset, b"\0")
            whole = whole[:offset] + data + whole[offset + len(data) :]
            if len(whole) <= inode.layout.inline_bytes:
                _, error = world.close_one(
                    inode.id, reply.session, has_inline=True, inline_data=whole, inline_base=inode.change
                )
                assert not error.code, error
                return
            inode = world.leave(inode, reply.session)
            world.write(inode, offset, data)
        else:
            world.write(inode, offset, data)
        _, error = world.close_one(inode.id, reply.session, **hint)
        assert not error.code, error

    @rule(path=PATHS)
    def unlinked_but_open(self, path):
        """A client that has a file open keeps it when its name goes, until it is closed."""
        path = self.pick(path)
        try:
            _, _, node = self.model.existing(path, follow=False)
        except Refused:
            return
        if node.kind != "file":
            return
        self.changed = True
        reply = self.world.open(path, write=True, read=False)
        self.world.unlink(path)
        self.model.unlink(path)
        self.world.clock.advance(5)
        self.world.collect()
        inode = self.world.stat(b"", at=reply.inode.id)
        assert self.world.read(inode) == node.data
        self.world.close_one(inode.id, reply.session)

    @rule()
    def crash(self):
        plan, self.engine.plan = self.engine.plan, lambda _: Fault.NONE
        if self.directory is not None:
            self.engine.close()
            self.engine = FaultyEngine(
                RocksEngine(self.directory, cached=INODES, create=True), self.engine.plan
            )
            self.world.engine = self.engine
        self.world.crash()
        self.engine.plan = plan

    @rule()
    def collect(self):
        self.world.clock.advance(5)
        self.world.collect()

    @invariant()
    def agrees(self):
        if not self.changed:
            return
        self.changed = False
        assert dump(self.world) == self.model.dump()
        check_store(self.world)

    def teardown(self):
        self.world.clock.advance(100)
        self.world.collect()
        check_store(self.world)
        for kind in (b"O", b"G", b"P", b"S"):
            assert self.world.keys(kind) == []
        assert dump(self.world) == self.model.dump()
        self.world.close()


Namespace.TestCase.settings = settings(
    max_examples=30,
    phases=[
        Phase.explicit,
        Phase.generate,
    ],  # shrinking would take longer than a test may; 40 steps can be read
    stateful_step_count=40,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
TestNamespace = Namespace.TestCase


def walk(seed: int, steps: int, directory: Path | None = None, *, grouped: bool = False) -> None:
    """A long history from one seed: `walk(SEED, STEPS)` replays it."""
    dice = random.Random(seed)
    machine = Namespace(directory, grouped=grouped)
    machine.faults(seed, dice.choice([0.0, 0.1, 0.3]))

    def path():
        return dice.randrange(1000) if dice.random() < 0.8 else dice.choice([b"a", b"b/a", b"a/b/c", b"c"])

    lengths = [0, 1, 5, 4096, 4097, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK]
    flag = (False, True)
    acts = [
        (4, lambda: machine.create(path(), dice.choice(flag), dice.choice(flag), 0o644)),
        (4, lambda: machine.mkdir(path(), dice.choice(flag))),
        (1, lambda: machine.symlink(path(), dice.choice([b"a", b"/a/b", b"b/a", b"c/a"]))),
        (2, lambda: machine.link(path(), path())),
        (2, lambda: machine.unlink(path())),
        (1, lambda: machine.rmdir(path())),
        (0.3, lambda: machine.remove_tree(path())),
        (6, lambda: machine.rename(path(), path(), dice.choice(["", "", "no_replace", "exchange"]))),
        (6, lambda: machine.truncate(path(), dice.choice(lengths), dice.choice(flag))),
        (1, lambda: machine.chmod(path(), dice.choice([0o644, 0o700]))),
        (1, lambda: machine.set_attribute(path(), b"user.x", b"v")),
        (6, lambda: machine.write(path(), dice.choice(lengths), dice.choice([1, 5000, CHUNK + 1]), 7)),
        (1, lambda: machine.unlinked_but_open(path())),
        (0.5, machine.crash),
        (1, machine.collect),
    ]
    weights = [weight for weight, _ in acts]
    machine.mkdir(b"a", False)
    machine.mkdir(b"b", False)
    for _ in range(steps):
        dice.choices([act for _, act in acts], weights)[0]()
        machine.agrees()
    machine.teardown()
    machine.engine.close()


@pytest.mark.parametrize("seed", range(12))
def test_long_history(seed):
    walk(seed, 250)


@pytest.mark.parametrize("seed", range(200, 204))
def test_history_with_commits_that_are_stored_later(seed):
    walk(seed, 120, grouped=True)


@pytest.mark.parametrize("seed", range(100, 103))
def test_history_on_disk(seed, tmp_path):
    """A crash closes the store here and opens it again."""
    walk(seed, 120, tmp_path)
