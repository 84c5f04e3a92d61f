"""Every operation that changes something, each over a prepared world, for tests that make it fail on the way."""

from collections.abc import Callable
from dataclasses import dataclass

from luciola.wire.pb import meta_pb2 as pb

from .world import CHAINS, CHUNK, TIMEOUT_S, World

DATA = bytes(range(256)) * (CHUNK // 256) * 2 + b"tail"


@dataclass(frozen=True)
class Scenario:
    name: str
    prepare: Callable[[World], object]
    act: Callable[[World], object]  # sends one request, always the same one
    cleans: bool = False  # the collector's work, not a request


def _nothing(world):
    world.mkdir(b"d/e", parents=True)


def _files(world):
    world.mkdir(b"d/e/f", parents=True)
    world.mkdir(b"empty")
    world.chunked(b"file", DATA)
    world.chunked(b"other", DATA[:100])
    world.link(b"file", b"second")
    world.symlink(b"link", b"file")
    world.xattr("set", world.lookup(b"file").id, b"user.a", b"b")


def _writing(world):
    """Client 1 writes "file"; client 2 too."""
    world.chunked(b"file", DATA, close=False)
    world.open(b"file", write=True, read=False, client=2)


def _session(world, client=1):
    return next(s for i, s, c in world.dependencies.writers.of_clients_outside(()) if c == client)


def _inline(world):
    world.create(b"small")


def _spare(world):
    """Client 1 has put the bytes of "small" under a spare content."""
    reply = world.create(b"small")
    inode = world.sync(
        reply.inode.id, reply.session, has_inline=True, inline_data=b"hello", inline_base=reply.inode.change
    )
    world.base = inode.change
    world.spare = world.reserve(inode, reply.session)
    world.write_to(inode, world.spare.content, 0, b"hello and")


SEQUENCE = 77_777  # of the request that is made to fail

SCENARIOS = (
    Scenario("create", _nothing, lambda w: w.create(b"d/new", read=True, sequence=SEQUENCE)),
    Scenario("create existing", _files, lambda w: w.create(b"file", sequence=SEQUENCE)),
    Scenario("create truncating", _files, lambda w: w.create(b"file", truncate=True, sequence=SEQUENCE)),
    Scenario(
        "create truncating what others write",
        _writing,
        lambda w: w.create(b"file", truncate=True, client=3, sequence=SEQUENCE),
    ),
    Scenario("open for writing", _files, lambda w: w.open(b"file", write=True, sequence=SEQUENCE)),
    Scenario(
        "open truncating", _files, lambda w: w.open(b"link", write=True, truncate=True, sequence=SEQUENCE)
    ),
    Scenario(
        "close",
        _writing,
        lambda w: w.close_one(
            w.lookup(b"file").id, _close_session(w), length=3 * CHUNK, mtime_ns=5, sequence=SEQUENCE
        ),
    ),
    Scenario(
        "close asking chains",
        _writing,
        lambda w: w.close_one(
            w.lookup(b"file").id,
            _close_session(w),
            length=3 * CHUNK,
            truncate_version=9,
            sequence=SEQUENCE,
        ),
    ),
    Scenario(
        "close with inline bytes",
        _inline,
        lambda w: w.close_one(
            w.lookup(b"small").id,
            _close_session(w),
            has_inline=True,
            inline_data=b"hello",
            inline_base=1,
            sequence=SEQUENCE,
        ),
    ),
    Scenario(
        "sync inline bytes",
        _inline,
        lambda w: w.sync(
            w.lookup(b"small").id,
            _close_session(w),
            has_inline=True,
            inline_data=b"hello",
            inline_base=1,
            durable=True,
            sequence=SEQUENCE,
        ),
    ),
    Scenario(
        "sync with attributes",
        _inline,
        lambda w: w.sync(
            w.lookup(b"small").id,
            _close_session(w),
            length=9,
            attributes=pb.SetAttrRequest(permissions=0o640, mtime_ns=5),
            sequence=SEQUENCE,
        ),
    ),
    Scenario(
        "leave inline",
        _inline,
        lambda w: w.sync(
            w.lookup(b"small").id,
            _close_session(w),
            leave_inline=True,
            inline_base=1,
            length=9,
            sequence=SEQUENCE,
        ),
    ),
    Scenario(
        "reserve a spare content",
        _inline,
        lambda w: w.sync(
            w.lookup(b"small").id,
            _close_session(w),
            reserve_spare=True,
            inline_base=1,
            sequence=SEQUENCE,
        ),
    ),
    Scenario(
        "leave inline for a spare content",
        _spare,
        lambda w: w.sync(
            w.lookup(b"small").id,
            _close_session(w),
            leave_inline=True,
            inline_base=w.base,
            spare=w.spare,
            length=9,
            sequence=SEQUENCE,
        ),
    ),
    Scenario("sync exact", _writing, lambda w: w.sync(w.lookup(b"file").id, exact=True, sequence=SEQUENCE)),
    Scenario("mknod", _nothing, lambda w: w.mknod(b"d/p", pb.FIFO, sequence=SEQUENCE)),
    Scenario(
        "apply",
        _files,
        lambda w: w.apply((b"d/1", b"one"), (b"file", b""), (b"d/2", b"two"), sequence=SEQUENCE),
    ),
    Scenario("mkdir", _nothing, lambda w: w.mkdir(b"d/n", sequence=SEQUENCE)),
    Scenario("mkdir parents", _nothing, lambda w: w.mkdir(b"d/n/o/p", parents=True, sequence=SEQUENCE)),
    Scenario("symlink", _nothing, lambda w: w.symlink(b"d/s", b"target", sequence=SEQUENCE)),
    Scenario("link", _files, lambda w: w.link(b"file", b"d/third", sequence=SEQUENCE)),
    Scenario("unlink one of two", _files, lambda w: w.unlink(b"second", sequence=SEQUENCE)),
    Scenario("unlink the last", _files, lambda w: w.unlink(b"other", sequence=SEQUENCE)),
    Scenario("unlink while open", _writing, lambda w: w.unlink(b"file", sequence=SEQUENCE)),
    Scenario("rmdir", _files, lambda w: w.rmdir(b"d/e/f", sequence=SEQUENCE)),
    Scenario("rename", _files, lambda w: w.rename(b"file", b"d/moved", sequence=SEQUENCE)),
    Scenario("rename replacing", _files, lambda w: w.rename(b"file", b"other", sequence=SEQUENCE)),
    Scenario("rename directory", _files, lambda w: w.rename(b"d/e", b"empty/e", sequence=SEQUENCE)),
    Scenario("rename replacing directory", _files, lambda w: w.rename(b"d/e", b"empty", sequence=SEQUENCE)),
    Scenario("exchange", _files, lambda w: w.rename(b"d/e", b"file", exchange=True, sequence=SEQUENCE)),
    Scenario("rename onto itself", _files, lambda w: w.rename(b"file", b"second", sequence=SEQUENCE)),
    Scenario(
        "chmod and chown", _files, lambda w: w.set_attr(b"file", permissions=0o600, uid=5, sequence=SEQUENCE)
    ),
    Scenario("utimes of a directory", _files, lambda w: w.set_attr(b"d", mtime_ns=5, sequence=SEQUENCE)),
    Scenario("truncate", _files, lambda w: w.set_attr(b"file", length=CHUNK + 7, sequence=SEQUENCE)),
    Scenario("truncate to nothing", _files, lambda w: w.set_attr(b"file", length=0, sequence=SEQUENCE)),
    Scenario(
        "truncate what others write", _writing, lambda w: w.set_attr(b"file", length=0, sequence=SEQUENCE)
    ),
    Scenario(
        "truncate and chmod",
        _writing,
        lambda w: w.set_attr(b"file", length=9, permissions=0o6755, sequence=SEQUENCE),
    ),
    Scenario("extend", _files, lambda w: w.set_attr(b"file", length=9 * CHUNK, sequence=SEQUENCE)),
    Scenario("remove tree", _files, lambda w: w.remove_tree(b"d", sequence=SEQUENCE)),
    Scenario(
        "set xattr",
        _files,
        lambda w: w.xattr("set", w.lookup(b"other").id, b"user.x", b"1", flags=1, sequence=SEQUENCE),
    ),
    Scenario(
        "remove xattr",
        _files,
        lambda w: w.xattr("remove", w.lookup(b"file").id, b"user.a", sequence=SEQUENCE),
    ),
)


def _close_session(world):
    """Client 1's session, also when it has been closed already: the request is the same one."""
    known = getattr(world, "first_session", None)
    if known is None:
        known = world.first_session = _session(world)
    return known


def _removed_tree(world):
    _files(world)
    world.create(b"d/e/x")
    world.chunked(b"d/e/f/y", DATA)
    world.close_one(world.stat(b"d/e/x").id, _session(world))
    world.remove_tree(b"d")
    world.unlink(b"other")
    world.set_attr(b"file", length=0)
    world.clock.advance(2)


def _dead_client(world):
    world.chunked(b"file", DATA, close=False, client=9)
    inode = world.lookup(b"file")
    world.write(inode, len(DATA), b"unreported")
    world.members.known = {1}
    world.collect()
    world.clock.advance(TIMEOUT_S + 1)


def _pending_cut(world):
    _files(world)
    world.control.down.update(CHAINS[:4])
    try:
        world.set_attr(b"file", length=CHUNK)
    except OSError:
        world.control.down.clear()


CLEANING = (
    Scenario("collect", _removed_tree, World.collect, cleans=True),
    Scenario("prune", _dead_client, World.collect, cleans=True),
    Scenario("resume a truncation", _pending_cut, World.collect, cleans=True),
)
